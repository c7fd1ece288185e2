//! Why a pod is not Ready, or not gone yet: each moment of its life has one cause, and what it waits
//! for now is a chain from the pod down to what must change. Pure: from the pod, its flow and the time.
//!
//! Invariant: the intervals follow each other without a gap or an overlap from the request to now, so
//! their sum is the wall time. Of phases that run at once the one that ends last is what is waited
//! for: had another been quicker, nothing would have come sooner.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};
use podway_flow::conditions::{NOT_BEGUN, NOT_RECORDED};
use podway_flow::{Flow, Micros, Outcome, Phase, Record};
use serde::Serialize;

/// A part of a pod's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interval {
    /// Since when, µs since 1970.
    pub from: Micros,
    /// Until when.
    pub to: Micros,
    /// Who is waited for: `API server`, `scheduler`, `agent`, `runtime`, `pod`, `nobody`.
    pub who: &'static str,
    /// What for.
    pub cause: String,
}

impl Interval {
    /// How long, in µs.
    #[must_use]
    pub fn micros(&self) -> u64 {
        self.to.since(self.from)
    }
}

/// A pod, explained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Whether it is as it should be.
    pub settled: bool,
    /// From the pod down to what must change; the first says how the pod stands.
    pub chain: Vec<String>,
    /// Its life.
    pub life: Vec<Interval>,
}

fn second(at: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time) -> Micros {
    Micros(at.0.as_microsecond())
}

fn named(record: &Record) -> String {
    match &record.subject {
        Some(subject) => format!("{} of {subject}", record.phase),
        None => record.phase.to_string(),
    }
}

fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == type_)
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let all = status.into_iter().flat_map(|s| [&s.init_container_statuses, &s.container_statuses]);
    all.flat_map(|list| list.iter().flatten())
}

/// The cause of a moment in which `record` is what runs, or (`None`) nothing that is recorded does.
fn cause(flow: &Flow, from: Micros, to: Micros) -> (&'static str, String) {
    let records = || flow.records.iter().filter(|r| r.end.is_none_or(|end| end > r.start));
    let active = records().filter(|r| r.start <= from && r.end.is_none_or(|end| end >= to));
    // The one that ends last; of two that end at once the later step.
    if let Some(record) = active.max_by_key(|r| (r.end.unwrap_or(Micros(i64::MAX)), r.phase)) {
        return (record.phase.writer().name(), named(record));
    }
    let before = flow.records.iter().filter(|r| r.end.is_some_and(|end| end <= from));
    let last = before.max_by_key(|r| (r.end, r.phase));
    let next = flow.records.iter().filter(|r| r.start >= to).min_by_key(|r| (r.start, r.phase));
    match (last, next) {
        (Some(last), _) if last.outcome == Outcome::Failed => {
            let why = if last.message.is_empty() { &last.reason } else { &last.message };
            (last.phase.writer().name(), format!("the next try of {}, which failed: {why}", named(last)))
        }
        (_, Some(next)) => (next.phase.writer().name(), format!("{} to begin", named(next))),
        (Some(last), None) => (after(last.phase), format!("what comes after {}", named(last))),
        (None, None) => ("nobody", "not recorded".to_owned()),
    }
}

/// Who has the pod in hand after a phase.
fn after(phase: Phase) -> &'static str {
    match phase {
        Phase::Requested | Phase::Persisted => "scheduler",
        Phase::ContainersStarted | Phase::StatusReported | Phase::Ready => "pod",
        Phase::Bound => "agent",
        other => other.writer().name(),
    }
}

/// The pod's life until `now`.
#[must_use]
pub fn life(pod: &Pod, flow: &Flow, now: Micros) -> Vec<Interval> {
    let created = pod.metadata.creation_timestamp.as_ref().map(second);
    let first = flow.records.iter().map(|r| r.start).min();
    let Some(begun) = first.or(created).map(|at| at.min(now)) else { return Vec::new() };
    let ready = condition(pod, "Ready");
    let is_ready = ready.is_some_and(|c| c.status == "True");
    let flipped = ready.and_then(|c| c.last_transition_time.as_ref()).map(second);
    let became = flow.summary(Phase::Ready).filter(|s| s.outcome == Outcome::Succeeded).and_then(|s| s.end);
    let became = became.or(flipped.filter(|_| is_ready)).map(|at| at.clamp(begun, now));
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
    let deleted = pod.metadata.deletion_timestamp.as_ref();
    let deleted = deleted
        .map(|at| Micros(second(at).0.saturating_sub(grace.saturating_mul(1_000_000))).clamp(begun, now));
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    let over = matches!(phase, Some("Succeeded" | "Failed"));
    let ended = statuses(pod)
        .filter_map(|s| s.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(second))
        .max()
        .filter(|_| over)
        .map(|at| at.clamp(begun, now));
    // The start is over when the first of these came; the cuts in it are the edges of the records.
    let start_over = [became, ended, deleted, Some(now)].into_iter().flatten().min().unwrap_or(now);
    let mut cuts: Vec<Micros> = flow.records.iter().flat_map(|r| [Some(r.start), r.end]).flatten().collect();
    cuts.extend([begun, start_over]);
    cuts.retain(|at| (begun..=start_over).contains(at));
    cuts.sort_unstable();
    cuts.dedup();
    let mut life: Vec<Interval> = Vec::new();
    let mut add = |from: Micros, to: Micros, who: &'static str, cause: String| {
        if from >= to {
            return;
        }
        match life.last_mut() {
            Some(last) if last.who == who && last.cause == cause => last.to = to,
            _ => life.push(Interval { from, to, who, cause }),
        }
    };
    for pair in cuts.windows(2) {
        let (who, cause) = cause(flow, pair[0], pair[1]);
        add(pair[0], pair[1], who, cause);
    }
    let end_of_run = [ended, deleted, Some(now)].into_iter().flatten().min().unwrap_or(now).max(start_over);
    let lost = flipped.filter(|_| !is_ready && became.is_some()).map(|at| at.clamp(start_over, end_of_run));
    match lost {
        Some(at) => {
            add(start_over, at, "nobody", "it was Ready".to_owned());
            let why = ready.map(reasoned).unwrap_or_default();
            add(at, end_of_run, "pod", format!("it to be Ready again: {why}"));
        }
        None => add(start_over, end_of_run, "nobody", "it was Ready".to_owned()),
    }
    let went = deleted.unwrap_or(now).max(end_of_run);
    add(end_of_run, went, "nobody", format!("it has ended: {}", phase.unwrap_or_default()));
    if deleted.is_some() {
        let (who, cause) = leaving(pod, now);
        add(went, now, who, cause);
    }
    life
}

fn reasoned(c: &PodCondition) -> String {
    let (reason, message) =
        (c.reason.as_deref().unwrap_or_default(), c.message.as_deref().unwrap_or_default());
    match (reason, message) {
        ("", text) | (text, "") => text.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    }
}

/// What a deleted pod waits for.
fn leaving(pod: &Pod, now: Micros) -> (&'static str, String) {
    if let Some(told) = condition(pod, "podway.dev/Terminating") {
        return ("agent", told.message.clone().unwrap_or_default());
    }
    if let Some(finalizer) = pod.metadata.finalizers.iter().flatten().next() {
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return ("nobody", format!("whoever set the finalizer {finalizer} to remove it"));
        }
    }
    let until = pod.metadata.deletion_timestamp.as_ref().map(second);
    match until.filter(|at| *at > now) {
        Some(at) => ("pod", format!("its containers to end; their grace ends in {}", seconds(at.since(now)))),
        None => ("agent", "its node to take it down; the grace is over".to_owned()),
    }
}

fn seconds(micros: u64) -> String {
    format!("{} s", micros.div_ceil(1_000_000))
}

/// The chain from the pod down to what must change.
fn chain(pod: &Pod, flow: &Flow, now: Micros) -> (bool, Vec<String>) {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let mut chain = Vec::new();
    if pod.metadata.deletion_timestamp.is_some() {
        chain.push(format!("pod {name} was deleted and is not gone yet"));
        let (_, cause) = leaving(pod, now);
        chain.push(cause);
        return (false, chain);
    }
    let status = pod.status.clone().unwrap_or_default();
    let phase = status.phase.as_deref().unwrap_or("Pending");
    if matches!(phase, "Succeeded" | "Failed") {
        chain.push(format!("pod {name} has ended: {phase}"));
        chain.extend(status.reason.iter().zip(&status.message).map(|(r, m)| format!("{r}: {m}")));
        for s in statuses(pod) {
            chain.extend(exit(s, s.state.as_ref().and_then(|x| x.terminated.as_ref())));
        }
        return (phase == "Succeeded", chain);
    }
    if condition(pod, "Ready").is_some_and(|c| c.status == "True") {
        chain.push(format!("pod {name} is Ready"));
        return (true, chain);
    }
    chain.push(format!("pod {name} is not Ready"));
    let scheduled = condition(pod, "PodScheduled");
    let bound = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
    if !bound {
        let why = scheduled.filter(|c| c.status != "True").map(reasoned);
        chain.push(match why {
            Some(why) => format!("it has no node: {why}"),
            None => {
                let by = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref());
                format!("it has no node, and scheduler {} has said nothing of it", by.unwrap_or_default())
            }
        });
        return (false, chain);
    }
    let mut said = false;
    for s in statuses(pod) {
        let waits = s.state.as_ref().and_then(|x| x.waiting.as_ref());
        let reason = waits.and_then(|w| w.reason.as_deref()).unwrap_or_default();
        if matches!(reason, "" | "ContainerCreating" | "PodInitializing") {
            continue;
        }
        said = true;
        let message = waits.and_then(|w| w.message.as_deref()).unwrap_or_default();
        chain.push(format!("container {} waits: {reason}: {message}", s.name));
        chain.extend(exit(s, s.last_state.as_ref().and_then(|x| x.terminated.as_ref())));
    }
    // What a phase says of itself, the first that is not done first: later ones follow from it.
    let told = |status: &str| {
        Phase::ALL.iter().filter(|p| **p != Phase::Ready).find_map(|p| {
            let c = condition(pod, &p.condition_type()).filter(|c| c.status == status)?;
            let reason = c.reason.as_deref().unwrap_or_default();
            (reason != NOT_BEGUN && reason != NOT_RECORDED).then_some((p, c))
        })
    };
    let failed = told("False").or_else(|| told("Unknown"));
    if let Some((phase, c)) = failed.filter(|_| !said) {
        said = true;
        let since = c.last_transition_time.as_ref().map(|t| now.since(second(t)));
        let since = since.map(|s| format!(" for {}", seconds(s))).unwrap_or_default();
        chain.push(format!("{phase} is not done{since}: {}", reasoned(c)));
    }
    let running = flow.records.iter().filter(|r| r.end.is_none()).max_by_key(|r| r.phase);
    if let Some(record) = running.filter(|_| !said) {
        said = true;
        chain.push(format!("{} has run for {}", named(record), seconds(now.since(record.start))));
    }
    for s in statuses(pod).filter(|s| !s.ready && s.state.as_ref().is_some_and(|x| x.running.is_some())) {
        said = true;
        let started = s.started == Some(true);
        let probe = if started { "readiness" } else { "startup" };
        chain.push(format!("container {} runs, and its {probe} probe has not succeeded", s.name));
    }
    for c in [condition(pod, "Ready")]
        .into_iter()
        .flatten()
        .filter(|c| !said || c.reason.as_deref() == Some("ReadinessGatesNotReady"))
    {
        chain.push(reasoned(c));
    }
    (false, chain)
}

fn exit(
    s: &ContainerStatus,
    end: Option<&k8s_openapi::api::core::v1::ContainerStateTerminated>,
) -> Option<String> {
    let end = end?;
    let words = end.message.as_deref().map(str::trim).filter(|m| !m.is_empty());
    let words = words.map(|w| format!(": {w}")).unwrap_or_default();
    let reason = end.reason.as_deref().unwrap_or_default();
    Some(format!("container {} ended with code {} ({reason}){words}", s.name, end.exit_code))
}

/// Explains the pod at `now`.
#[must_use]
pub fn explain(pod: &Pod, flow: &Flow, now: Micros) -> Explanation {
    let (settled, chain) = chain(pod, flow, now);
    Explanation { settled, chain, life: life(pod, flow, now) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podway_flow::{PodRef, Resolution, Writer};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const T: i64 = 1_767_225_600_000_000; // 2026-01-01T00:00:00Z

    fn record(phase: Phase, start: i64, end: Option<i64>, outcome: Outcome) -> Record {
        Record {
            phase,
            subject: None,
            writer: Writer::Agent,
            attempt: 1,
            start: Micros(T + start),
            end: end.map(|at| Micros(T + at)),
            queued_micros: 0,
            outcome,
            reason: "Why".into(),
            message: String::new(),
            resolution: Resolution::Micros,
            evidence: Default::default(),
        }
    }

    fn flow(records: Vec<Record>) -> Flow {
        Flow { pod: PodRef::default(), records }
    }

    fn pod(mut extra: Value) -> Pod {
        let mut object = json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "n", "containers": []}});
        for key in ["metadata", "spec", "status"] {
            for (k, v) in extra[key].as_object_mut().into_iter().flatten() {
                object[key][k] = v.take();
            }
        }
        serde_json::from_value(object).unwrap()
    }

    fn told(life: &[Interval]) -> Vec<(i64, i64, &str)> {
        life.iter().map(|i| (i.from.0 - T, i.to.0 - T, i.cause.as_str())).collect()
    }

    #[test]
    fn of_what_runs_at_once_the_last_to_end_is_the_cause_and_gaps_have_one_too() {
        let records = vec![
            record(Phase::Requested, 0, Some(10), Outcome::Succeeded),
            record(Phase::SandboxCreated, 20, Some(30), Outcome::Succeeded),
            record(Phase::ImagesPulled, 20, Some(50), Outcome::Failed),
            record(Phase::ImagesPulled, 70, None, Outcome::Running),
        ];
        let life = life(&pod(json!({})), &flow(records), Micros(T + 100));
        assert_eq!(
            told(&life),
            [
                (0, 10, "Requested"),
                (10, 20, "SandboxCreated to begin"),
                (20, 50, "ImagesPulled"),
                (50, 70, "the next try of ImagesPulled, which failed: Why"),
                (70, 100, "ImagesPulled"),
            ]
        );
    }

    #[test]
    fn a_ready_pod_that_is_lost_and_deleted() {
        let records = vec![
            record(Phase::Requested, 0, Some(1_000_000), Outcome::Succeeded),
            record(Phase::Ready, 1_000_000, Some(1_000_000), Outcome::Succeeded),
        ];
        let extra = json!({
            "metadata": {"deletionTimestamp": "2026-01-01T00:00:40Z", "deletionGracePeriodSeconds": 30},
            "status": {"conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady",
                "message": "m", "lastTransitionTime": "2026-01-01T00:00:05Z"}]}});
        let pod = pod(extra);
        let flow = flow(records);
        let now = Micros(T + 22_500_000);
        assert_eq!(
            told(&life(&pod, &flow, now)),
            [
                (0, 1_000_000, "Requested"),
                (1_000_000, 5_000_000, "it was Ready"),
                (5_000_000, 10_000_000, "it to be Ready again: ContainersNotReady: m"),
                (10_000_000, 22_500_000, "its containers to end; their grace ends in 18 s"),
            ]
        );
        let explained = explain(&pod, &flow, now);
        assert_eq!(explained.chain[0], "pod p was deleted and is not gone yet");
        assert!(!explained.settled);
    }

    #[test]
    fn the_chain_goes_down_to_what_must_change() {
        let now = Micros(T + 60_000_000);
        let chain = |extra| explain(&pod(extra), &Flow::default(), now).chain;
        assert_eq!(
            chain(
                json!({"status": {"phase": "Pending", "containerStatuses": [{"name": "c", "image": "", "imageID": "",
                "ready": false, "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
                "lastState": {"terminated": {"exitCode": 3, "reason": "Error", "message": "no config\n"}}}]}})
            ),
            [
                "pod p is not Ready",
                "container c waits: CrashLoopBackOff: back-off 40s",
                "container c ended with code 3 (Error): no config"
            ]
        );
        assert_eq!(
            chain(json!({"status": {"phase": "Pending", "conditions": [
                {"type": "podway.dev/Requested", "status": "Unknown", "reason": "NotRecorded"},
                {"type": "podway.dev/SandboxCreated", "status": "True"},
                {"type": "podway.dev/VolumesMounted", "status": "False", "reason": "FailedMount",
                 "message": "secret \"s\" not found", "lastTransitionTime": "2026-01-01T00:00:50Z"}]}})),
            [
                "pod p is not Ready",
                "VolumesMounted is not done for 10 s: FailedMount: secret \"s\" not found"
            ]
        );
        assert_eq!(
            chain(json!({"spec": {"nodeName": null}, "status": {"conditions": [{"type": "PodScheduled",
                "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"}]}})),
            ["pod p is not Ready", "it has no node: Unschedulable: 0/1 nodes are available"]
        );
        assert_eq!(
            chain(
                json!({"status": {"phase": "Running", "containerStatuses": [{"name": "c", "image": "", "imageID": "",
                "ready": false, "started": true, "restartCount": 0, "state": {"running": {}}}]}})
            ),
            ["pod p is not Ready", "container c runs, and its readiness probe has not succeeded"]
        );
        let finalizer = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:10Z",
            "deletionGracePeriodSeconds": 0, "finalizers": ["x/y"]}, "status": {"phase": "Failed"}});
        assert_eq!(
            chain(finalizer),
            ["pod p was deleted and is not gone yet", "whoever set the finalizer x/y to remove it"]
        );
    }

    proptest! {
        /// Whatever was recorded, in whatever order: the parts are the whole.
        #[test]
        fn the_sum_is_the_wall_time(
            spans in proptest::collection::vec((0_usize..18, 0_i64..5_000_000, proptest::option::of(0_i64..3_000_000), any::<bool>()), 0..12),
            deleted in proptest::option::of(0_i64..9),
            ready in proptest::option::of((0_i64..9, any::<bool>())),
            now in 1_i64..9_000_000,
        ) {
            let records: Vec<Record> = spans.into_iter().map(|(phase, start, took, ok)| {
                let outcome = match (took, ok) {
                    (None, _) => Outcome::Running,
                    (Some(_), true) => Outcome::Succeeded,
                    (Some(_), false) => Outcome::Failed,
                };
                record(Phase::ALL[phase], start, took.map(|t| start + t), outcome)
            }).collect();
            let mut extra = json!({});
            if let Some(s) = deleted {
                extra["metadata"] = json!({"deletionTimestamp": format!("2026-01-01T00:00:0{s}Z")});
            }
            if let Some((s, is)) = ready {
                let status = if is { "True" } else { "False" };
                extra["status"] = json!({"conditions": [{"type": "Ready", "status": status,
                    "lastTransitionTime": format!("2026-01-01T00:00:0{s}Z")}]});
            }
            let begun = records.iter().map(|r| r.start.0).min().unwrap_or(T).min(T + now);
            let life = life(&pod(extra), &flow(records), Micros(T + now));
            let sum: u64 = life.iter().map(Interval::micros).sum();
            prop_assert_eq!(sum, u64::try_from(T + now - begun).unwrap(), "{:?}", life);
            for pair in life.windows(2) {
                prop_assert_eq!(pair[0].to, pair[1].from);
            }
        }
    }
}
