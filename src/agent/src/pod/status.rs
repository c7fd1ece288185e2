//! What to tell of a pod: `PodStatus` from spec, observation and journal. Pure; the words are the
//! kubelet's (1.36). `lastTransitionTime` moves only on a flip, foreign conditions are kept.

use crate::pod::core::{Instance, Journal, Memory, Observed, State, Verdict, verdict};
use crate::pod::go_duration::go_duration;
use crate::pod::model::{Container, Pod, Role};
use crate::pod::resize::Resize;
use crate::status::diff::OWN;
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use podway_flow::record::bounded;
use podway_flow::{Flow, Micros, conditions};
use std::time::Duration;

/// The longest message of a terminated container, in bytes (kubelet's limit).
const MESSAGE_LIMIT: usize = 4096;

/// What the node adds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The runtime's name, the scheme of container ids.
    pub runtime: String,
    /// The node's addresses, the primary one first.
    pub ips: Vec<String>,
}

/// The status of a pod now. Without `flow` (its start is over) the flow's conditions stay as they are.
#[must_use]
pub fn of(
    pod: &Pod,
    observed: &Observed,
    journal: &Journal,
    flow: Option<&Flow>,
    node: &Node,
    now: Micros,
) -> api::PodStatus {
    let statuses = |list: &[Container]| -> Vec<api::ContainerStatus> {
        list.iter().map(|c| container(pod, c, observed, journal, node, now)).collect()
    };
    let (init, apps) = (statuses(&pod.init), statuses(&pod.apps));
    let debug: Vec<api::ContainerStatus> =
        pod.debug.iter().map(|d| container(pod, &d.model, observed, journal, node, now)).collect();
    let phase = phase(pod, observed, journal);
    // A pod that was refused never had a container to tell of: its reason stands alone.
    let refused = observed.containers.is_empty()
        && observed.sandboxes.is_empty()
        && journal.terminal.as_ref().is_some_and(|t| !t.reason.is_empty());
    let ips = match observed.ready_sandbox().or(observed.sandboxes.iter().max_by_key(|s| s.attempt)) {
        Some(_) if pod.host_network => node.ips.clone(),
        Some(sandbox) => sandbox.ips.clone(),
        None => Vec::new(),
    };
    let old = pod.object.status.as_ref();
    let terminal = journal.terminal.as_ref();
    api::PodStatus {
        conditions: Some(merged(
            pod,
            &core_conditions(pod, phase, observed, journal, &init, &apps),
            &journal.resize,
            flow,
            now,
        )),
        container_statuses: (!refused).then_some(apps),
        ephemeral_container_statuses: (!debug.is_empty() && !refused).then_some(debug),
        init_container_statuses: (!init.is_empty() && !refused).then_some(init),
        host_ip: node.ips.first().cloned(),
        host_ips: Some(node.ips.iter().map(|ip| api::HostIP { ip: ip.clone() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.iter().map(|ip| api::PodIP { ip: ip.clone() }).collect()),
        message: terminal.map(|t| t.message.clone()).filter(|m| !m.is_empty()),
        reason: terminal.map(|t| t.reason.clone()).filter(|r| !r.is_empty()),
        observed_generation: Some(pod.generation),
        phase: Some(phase.to_owned()),
        qos_class: old.and_then(|s| s.qos_class.clone()),
        start_time: old.and_then(|s| s.start_time.clone()).or(Some(time(journal.started))),
        ..api::PodStatus::default()
    }
}

/// The phase; a terminal one that the API holds is final.
#[must_use]
pub fn phase(pod: &Pod, observed: &Observed, journal: &Journal) -> &'static str {
    match (pod.stored_phase.as_str(), &journal.terminal) {
        ("Succeeded", _) => return "Succeeded",
        ("Failed", _) => return "Failed",
        // While a process runs the pod is not over, whatever was decided.
        (_, Some(t)) if !observed.anything_live() => return if t.failed { "Failed" } else { "Succeeded" },
        _ => {}
    }
    let started = |c: &Container| {
        observed.newest(&c.name).is_some_and(|i| match i.state {
            State::Created => false,
            State::Running => journal.of(&c.name).is_up(c, &i.id),
            State::Exited { .. } | State::Unknown => true,
        })
    };
    if pod.apps.iter().all(started) { "Running" } else { "Pending" }
}

fn time(at: Micros) -> Time {
    // metav1.Time has whole seconds on the wire.
    Time(jiff::Timestamp::from_second(at.0.div_euclid(1_000_000)).unwrap_or_default())
}

fn container(
    pod: &Pod,
    c: &Container,
    observed: &Observed,
    journal: &Journal,
    node: &Node,
    now: Micros,
) -> api::ContainerStatus {
    let memory = journal.of(&c.name);
    let history = observed.history(&c.name);
    let newest = history.first().copied();
    let id = |i: &Instance| format!("{}://{}", node.runtime, i.id);
    let former = |i: Option<&&Instance>| i.and_then(|i| terminated(i, id(i)));
    let known = newest.map_or(0, |i| i.restarts).max(memory.restarts);
    let (state, last, restarts) = match newest {
        Some(i) if i.state == State::Running && memory.is_up(c, &i.id) => {
            (running(i), former(history.get(1)), known)
        }
        Some(i) if matches!(i.state, State::Exited { .. } | State::Unknown) => {
            let waits = journal.terminal.is_none() && pod.deletion.is_none();
            match restart_wait(pod, c, i, &memory, now).filter(|_| waits) {
                Some((reason, message)) => (waiting(&reason, &message), terminated(i, id(i)), known),
                None => (terminated(i, id(i)).unwrap_or_default(), former(history.get(1)), known),
            }
        }
        other => {
            let (reason, message) = start_wait(pod, c, &memory, now);
            let before = history.get(usize::from(other.is_some()));
            // A restart counts once it runs: until then the count would be of another instance than the last state.
            let restarts = before.filter(|_| other.is_some()).map_or(known, |i| i.restarts);
            (waiting(&reason, &message), former(before), restarts)
        }
    };
    let runs = newest.filter(|_| state.running.is_some()).map(|i| i.id.as_str());
    let started = runs.is_some_and(|id| journal.probes.started(c, id));
    let ready = runs.is_some_and(|id| journal.probes.ready(c, id));
    // What was given, and what its cgroup has: they differ while a resize is done.
    let given = crate::pod::cri_config::api_container(pod, &c.name).filter(|_| c.role != Role::Ephemeral);
    let given = given.map(|c| c.resources.clone().unwrap_or_default());
    let actual = journal.resize.actual.get(&c.name).cloned();
    let completed = c.role == Role::Init && state.terminated.as_ref().is_some_and(|t| t.exit_code == 0);
    api::ContainerStatus {
        name: c.name.clone(),
        image: c.image.clone(),
        image_id: newest.map(|i| i.image_id.clone()).unwrap_or_default(),
        container_id: newest.map(id),
        restart_count: i32::try_from(restarts).unwrap_or(i32::MAX),
        ready: completed || ready,
        started: Some(started),
        state: Some(state),
        // The API server has it always, as `{}`: told so, what it answers is what was asked for.
        last_state: Some(last.unwrap_or_default()),
        allocated_resources: given.as_ref().and_then(|r| r.requests.clone()),
        resources: actual.or(given),
        ..api::ContainerStatus::default()
    }
}

fn running(i: &Instance) -> api::ContainerState {
    let running = api::ContainerStateRunning { started_at: Some(time(i.started)) };
    api::ContainerState { running: Some(running), ..api::ContainerState::default() }
}

fn waiting(reason: &str, message: &str) -> api::ContainerState {
    let waiting = api::ContainerStateWaiting {
        reason: Some(reason.to_owned()),
        message: (!message.is_empty()).then(|| message.to_owned()),
    };
    api::ContainerState { waiting: Some(waiting), ..api::ContainerState::default() }
}

fn terminated(i: &Instance, id: String) -> Option<api::ContainerState> {
    let (code, finished, reason, message) = match &i.state {
        State::Exited { code, finished, reason, message } => {
            (*code, *finished, reason.as_str(), message.as_str())
        }
        State::Unknown => (137, i.created, "ContainerStatusUnknown", "The container could not be located"),
        State::Created | State::Running => return None,
    };
    let reason = match (reason, code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (given, _) => given,
    };
    let terminated = api::ContainerStateTerminated {
        container_id: Some(id),
        exit_code: code,
        finished_at: Some(time(finished)),
        started_at: Some(time(i.started)),
        reason: Some(reason.to_owned()),
        message: (!message.is_empty()).then(|| bounded(message, MESSAGE_LIMIT)),
        signal: None,
    };
    Some(api::ContainerState { terminated: Some(terminated), ..api::ContainerState::default() })
}

/// Why an ended container waits before it runs again; `None` where it does not.
fn restart_wait(
    pod: &Pod,
    c: &Container,
    i: &Instance,
    memory: &Memory,
    now: Micros,
) -> Option<(String, String)> {
    match verdict(pod, c, i, memory, now) {
        Verdict::Finished => None,
        Verdict::Wait(at, delay) => Some((
            "CrashLoopBackOff".to_owned(),
            format!(
                "back-off {} restarting failed container={} pod={}_{}({}), next start at {}",
                go_duration(Duration::from_secs(delay.as_secs())),
                c.name,
                pod.name,
                pod.namespace,
                pod.uid,
                time(at).0
            ),
        )),
        Verdict::Restart if memory.image_failure.is_some() || memory.start_failure.is_some() => {
            Some(start_wait(pod, c, memory, now))
        }
        Verdict::Restart => None,
    }
}

/// Why a container that never ran waits.
fn start_wait(pod: &Pod, c: &Container, memory: &Memory, now: Micros) -> (String, String) {
    if let Some(f) = &memory.start_failure {
        return (f.reason.clone(), f.message.clone());
    }
    if let Some(f) = &memory.image_failure {
        // A failed pull shows as such for a second, then as waiting for the next.
        if f.reason == "ErrImagePull" && now >= f.turns() {
            let message = format!("Back-off pulling image \"{}\": ErrImagePull: {}", c.image, f.message);
            return ("ImagePullBackOff".to_owned(), message);
        }
        return (f.reason.clone(), f.message.clone());
    }
    let reason = if pod.init.is_empty() { "ContainerCreating" } else { "PodInitializing" };
    (reason.to_owned(), String::new())
}

struct Verdicts {
    type_: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

/// The core five, in the kubelet's order.
fn core_conditions(
    pod: &Pod,
    phase: &str,
    observed: &Observed,
    journal: &Journal,
    init: &[api::ContainerStatus],
    apps: &[api::ContainerStatus],
) -> Vec<Verdicts> {
    let make = |type_, holds, reason, message| Verdicts { type_, holds, reason, message };
    let yes = |type_| make(type_, true, "", String::new());
    let sandbox = observed.ready_sandbox().is_some() && journal.volumes_ready;
    let sidecar = |s: &api::ContainerStatus| pod.container(&s.name).is_some_and(|c| c.role == Role::Sidecar);
    let done = |s: &api::ContainerStatus| if sidecar(s) { s.started == Some(true) } else { s.ready };
    let names = |list: Vec<&api::ContainerStatus>| {
        format!("[{}]", list.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(" "))
    };
    let incomplete: Vec<_> = init.iter().filter(|s| !done(s)).collect();
    let unready: Vec<_> = init.iter().filter(|s| sidecar(s)).chain(apps).filter(|s| !s.ready).collect();
    let initialized = if phase == "Succeeded" {
        make("Initialized", true, "PodCompleted", String::new())
    } else if incomplete.is_empty() || phase == "Running" {
        yes("Initialized")
    } else {
        let message = format!("containers with incomplete status: {}", names(incomplete));
        make("Initialized", false, "ContainersNotInitialized", message)
    };
    let gates: Vec<String> = pod
        .object
        .spec
        .iter()
        .flat_map(|s| s.readiness_gates.iter().flatten())
        .filter(|gate| {
            let have = pod.object.status.iter().flat_map(|s| s.conditions.iter().flatten());
            !have.into_iter().any(|c| c.type_ == gate.condition_type && c.status == "True")
        })
        .map(|gate| {
            format!(
                "corresponding condition of pod readiness gate \"{}\" does not exist or is not True.",
                gate.condition_type
            )
        })
        .collect();
    let ready = |type_| match phase {
        "Succeeded" => make(type_, false, "PodCompleted", String::new()),
        "Failed" => make(type_, false, "PodFailed", String::new()),
        _ if unready.is_empty() && type_ == "Ready" && !gates.is_empty() => {
            make(type_, false, "ReadinessGatesNotReady", gates.join(", "))
        }
        _ if unready.is_empty() => yes(type_),
        _ => {
            let message = format!("containers with unready status: {}", names(unready.clone()));
            make(type_, false, "ContainersNotReady", message)
        }
    };
    let disrupted = journal
        .disruption
        .as_ref()
        .map(|message| make("DisruptionTarget", true, "TerminationByKubelet", message.clone()));
    let all = vec![
        make("PodReadyToStartContainers", sandbox, "", String::new()),
        initialized,
        ready("Ready"),
        ready("ContainersReady"),
        yes("PodScheduled"),
    ];
    all.into_iter().chain(disrupted).collect()
}

/// Ours first, then the flow's, then those of others as they stand.
fn merged(
    pod: &Pod,
    core: &[Verdicts],
    resize: &Resize,
    flow: Option<&Flow>,
    now: Micros,
) -> Vec<api::PodCondition> {
    let old: Vec<&api::PodCondition> =
        pod.object.status.iter().flat_map(|s| s.conditions.iter().flatten()).collect();
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let lay = |type_: &str, status: &str, reason: &str, message: &str, at: Micros| {
        let before = old.iter().find(|c| c.type_ == type_ && c.status == status);
        api::PodCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: some(reason),
            message: some(message),
            last_transition_time: before.and_then(|c| c.last_transition_time.clone()).or(Some(time(at))),
            last_probe_time: None,
            observed_generation: Some(pod.generation),
        }
    };
    let mut all: Vec<api::PodCondition> = core
        .iter()
        .map(|v| lay(v.type_, if v.holds { "True" } else { "False" }, v.reason, &v.message, now))
        .collect();
    if let Some(denied) = &resize.pending {
        all.push(lay("PodResizePending", "True", denied.reason(), denied.message(), now));
    }
    if let Some(message) = &resize.progress {
        let reason = if message.is_empty() { "" } else { "Error" };
        all.push(lay("PodResizeInProgress", "True", reason, message, now));
    }
    let flow = flow.map(conditions::for_pod).unwrap_or_default();
    all.extend(
        flow.iter().map(|c| lay(&c.type_, c.status.as_str(), &c.reason, &c.message, c.last_transition)),
    );
    let foreign: Vec<_> = old
        .iter()
        .filter(|c| !OWN.contains(&c.type_.as_str()) && all.iter().all(|n| n.type_ != c.type_))
        .map(|c| (*c).clone())
        .collect();
    all.extend(foreign);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::core::{Failure, Sandbox, note_exits};
    use crate::pod::model::tests::pod;
    use serde_json::json;

    const T: Micros = Micros(1_000_000_000);

    fn node() -> Node {
        Node { runtime: "podway".into(), ips: vec!["192.0.2.1".into()] }
    }

    fn observed(p: &Pod, state: State, restarts: u32) -> Observed {
        Observed {
            sandboxes: vec![Sandbox {
                id: "s".into(),
                ready: true,
                attempt: 0,
                created: T,
                ips: vec!["10.0.0.2".into()],
            }],
            containers: vec![Instance {
                id: "c0".into(),
                sandbox: "s".into(),
                name: "c".into(),
                restarts,
                hash: p.apps[0].hash,
                created: T,
                started: T,
                state,
                image_id: "sha256:1".into(),
                waited: None,
            }],
        }
    }

    fn reason(s: &api::PodStatus) -> String {
        let state = s.container_statuses.as_ref().unwrap()[0].state.clone().unwrap();
        state
            .waiting
            .and_then(|w| w.reason)
            .or(state.terminated.and_then(|t| t.reason))
            .unwrap_or("running".into())
    }

    #[test]
    fn a_running_pod_is_ready_and_its_status_is_stable() {
        let p = pod(json!({"containers": [{"name": "c", "image": "i:1"}]}));
        let journal = Journal { started: T, volumes_ready: true, ..Journal::default() };
        let o = observed(&p, State::Running, 0);
        let s = of(&p, &o, &journal, Some(&Flow::default()), &node(), T);
        assert_eq!((s.phase.as_deref(), s.pod_ip.as_deref()), (Some("Running"), Some("10.0.0.2")));
        let c = s.conditions.clone().unwrap();
        assert!(c[..5].iter().all(|c| c.status == "True" && c.observed_generation == Some(3)));
        assert_eq!(s.container_statuses.as_ref().unwrap()[0].container_id.as_deref(), Some("podway://c0"));
        // Read back and made again later, nothing moves.
        let mut object = (*p.object).clone();
        let mut old = s.clone();
        old.conditions.as_mut().unwrap().push(api::PodCondition {
            type_: "foreign".into(),
            status: "True".into(),
            ..Default::default()
        });
        object.status = Some(old.clone());
        let p = Pod::read(std::sync::Arc::new(object)).unwrap();
        assert_eq!(of(&p, &o, &journal, Some(&Flow::default()), &node(), Micros(T.0 + 90_000_000)), old);
    }

    #[test]
    fn each_waiting_and_terminated_reason_is_the_kubelets() {
        let p = pod(json!({"containers": [{"name": "c", "image": "i:1"}]}));
        let mut journal = Journal { started: T, ..Journal::default() };
        let show = |o: &Observed, j: &Journal, now| of(&p, o, j, Some(&Flow::default()), &node(), now);
        assert_eq!(reason(&show(&Observed::default(), &journal, T)), "ContainerCreating");
        journal.of_mut("c").image_failure = Some(Failure {
            reason: "ErrImagePull".into(),
            message: "no".into(),
            retry: Micros(T.0 + 10_000_000),
            delay: Duration::from_secs(10),
        });
        assert_eq!(reason(&show(&Observed::default(), &journal, T)), "ErrImagePull");
        assert_eq!(
            reason(&show(&Observed::default(), &journal, Micros(T.0 + 2_000_000))),
            "ImagePullBackOff"
        );
        let mut journal = Journal { started: T, ..Journal::default() };
        journal.of_mut("c").restart = Some((Duration::ZERO, Micros(1)));
        let gone =
            |r: &str, code| State::Exited { code, finished: T, reason: r.into(), message: String::new() };
        let o = observed(&p, gone("", 1), 1);
        note_exits(&p, &o, &mut journal);
        let s = show(&o, &journal, T);
        let c = &s.container_statuses.as_ref().unwrap()[0];
        assert_eq!(reason(&s), "CrashLoopBackOff");
        assert_eq!(
            c.state.as_ref().unwrap().waiting.as_ref().unwrap().message.as_deref(),
            Some(
                "back-off 10s restarting failed container=c pod=p_ns(u-1), next start at 1970-01-01T00:16:50Z"
            )
        );
        assert_eq!(
            (c.restart_count, c.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code),
            (1, 1)
        );
        // The next one is made, and does not run yet: what is told is still of the last.
        let mut next = o.clone();
        let made =
            Instance { id: "c1".into(), restarts: 2, state: State::Created, ..o.containers[0].clone() };
        next.containers.push(made);
        note_exits(&p, &next, &mut journal);
        let told = |o: &Observed| {
            let c = show(o, &journal, T).container_statuses.unwrap().remove(0);
            (c.restart_count, c.state.unwrap().waiting.is_some(), c.last_state.unwrap().terminated.is_some())
        };
        assert_eq!(told(&next), (1, true, true));
        next.containers[1].state = State::Running;
        assert_eq!(told(&next), (2, false, true));
        let never = pod(json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}));
        for (given, code, expected) in
            [("", 0, "Completed"), ("", 2, "Error"), ("OOMKilled", 137, "OOMKilled")]
        {
            let o = observed(&never, gone(given, code), 0);
            assert_eq!(
                reason(&of(&never, &o, &Journal::default(), Some(&Flow::default()), &node(), T)),
                expected
            );
        }
    }
}
