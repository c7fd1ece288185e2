//! Tables for each rule, and a simulated runtime that the core must never lead astray.

use super::*;
use crate::pod::model::tests::pod;
use crate::pod::model::{Deletion, RestartPolicy};
use proptest::prelude::*;
use serde_json::json;

pub(super) const T0: Micros = Micros(1_000_000_000_000);

fn at(seconds: u64) -> Micros {
    add(T0, Duration::from_secs(seconds))
}

fn sandbox() -> Sandbox {
    Sandbox { id: "s".into(), ready: true, attempt: 0, created: T0, ips: vec!["10.0.0.2".into()] }
}

fn instance(pod: &Pod, name: &str, restarts: u32, state: State) -> Instance {
    Instance {
        id: format!("{name}-{restarts}"),
        sandbox: "s".into(),
        name: name.into(),
        restarts,
        hash: pod.container(name).unwrap().hash,
        created: at(u64::from(restarts)),
        started: at(u64::from(restarts)),
        state,
        image_id: "i".into(),
        waited: None,
    }
}

pub(super) fn exited(code: i32, finished: Micros) -> State {
    State::Exited { code, finished, reason: String::new(), message: String::new() }
}

fn ready_journal(pod: &Pod) -> Journal {
    let mut journal = Journal { started: T0, volumes_ready: true, ..Journal::default() };
    for c in pod.containers() {
        journal.of_mut(&c.name).image_ready = true;
    }
    journal
}

fn simple(policy: &str) -> Pod {
    pod(json!({"restartPolicy": policy, "containers": [{"name": "c", "image": "i:1"}]}))
}

#[test]
fn a_new_pod_makes_its_sandbox_and_pulls_at_once_then_creates_then_starts() {
    let p = simple("Always");
    let mut journal = Journal { started: T0, ..Journal::default() };
    let mut observed = Observed::default();
    assert_eq!(
        next(&p, &observed, &journal, T0),
        vec![Action::CreateSandbox { attempt: 0 }, Action::PullImage { container: "c".into() }]
    );
    observed.sandboxes.push(sandbox());
    assert_eq!(next(&p, &observed, &journal, T0), vec![Action::PullImage { container: "c".into() }]);
    journal.of_mut("c").image_ready = true;
    assert_eq!(next(&p, &observed, &journal, T0), vec![], "volumes are awaited");
    journal.volumes_ready = true;
    assert_eq!(
        next(&p, &observed, &journal, T0),
        vec![Action::CreateContainer { container: "c".into(), sandbox: "s".into(), restarts: 0 }]
    );
    observed.containers.push(instance(&p, "c", 0, State::Created));
    assert_eq!(
        next(&p, &observed, &journal, T0),
        vec![Action::StartContainer { container: "c".into(), id: "c-0".into() }]
    );
    observed.containers[0].state = State::Running;
    assert_eq!(next(&p, &observed, &journal, T0), vec![], "a settled pod asks for nothing");
}

#[test]
fn restart_delays_double_to_300_s_and_start_over_after_10_min() {
    let mut delays = vec![];
    let mut previous = None;
    for _ in 0..8 {
        let d = restart_delay(previous, Duration::from_secs(1));
        delays.push(d.as_secs());
        previous = Some(d);
    }
    assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
    assert_eq!(restart_delay(previous, BACKOFF_RESET), Duration::ZERO);
}

#[test]
fn a_changed_container_begins_anew_with_its_delays() {
    let p = simple("Always");
    for while_it_waits in [false, true] {
        let mut journal = ready_journal(&p);
        journal.of_mut("c").restart = Some((Duration::from_secs(80), T0));
        let mut observed = Observed {
            sandboxes: vec![sandbox()],
            containers: vec![instance(&p, "c", 4, exited(1, at(10)))],
        };
        let mut delay = |observed: &Observed| {
            note_exits(&p, observed, &mut journal);
            journal.of("c").restart.unwrap().0.as_secs()
        };
        if while_it_waits {
            assert_eq!(delay(&observed), 160);
        }
        observed.containers[0].hash ^= 1;
        assert_eq!(delay(&observed), 0, "{while_it_waits}");
        observed.containers = vec![instance(&p, "c", 5, exited(1, at(20)))];
        assert_eq!(delay(&observed), 10);
    }
}

#[test]
fn each_policy_and_exit_code_has_its_consequence() {
    for (policy, code, expected) in [
        ("Always", 0, None),
        ("Always", 1, None),
        ("OnFailure", 1, None),
        ("OnFailure", 0, Some(false)),
        ("Never", 0, Some(false)),
        ("Never", 3, Some(true)),
    ] {
        let p = simple(policy);
        let mut journal = ready_journal(&p);
        let observed = Observed {
            sandboxes: vec![sandbox()],
            containers: vec![instance(&p, "c", 0, exited(code, at(1)))],
        };
        note_exits(&p, &observed, &mut journal);
        let plan = next(&p, &observed, &journal, at(1));
        match expected {
            None => assert_eq!(
                plan,
                vec![Action::CreateContainer { container: "c".into(), sandbox: "s".into(), restarts: 1 }],
                "{policy} {code}"
            ),
            Some(failed) => assert!(
                matches!(&plan[..], [Action::ReportTerminal(t)] if t.failed == failed),
                "{policy} {code}: {plan:?}"
            ),
        }
    }
}

#[test]
fn a_second_crash_waits_10_s() {
    let p = simple("Always");
    let mut journal = ready_journal(&p);
    let mut observed =
        Observed { sandboxes: vec![sandbox()], containers: vec![instance(&p, "c", 0, exited(1, at(1)))] };
    note_exits(&p, &observed, &mut journal);
    observed.containers.push(instance(&p, "c", 1, exited(1, at(2))));
    note_exits(&p, &observed, &mut journal);
    note_exits(&p, &observed, &mut journal);
    assert_eq!(next(&p, &observed, &journal, at(3)), vec![Action::WaitUntil(at(12))]);
    assert!(matches!(
        &next(&p, &observed, &journal, at(12))[..],
        [Action::CreateContainer { restarts: 2, .. }]
    ));
}

#[test]
fn init_containers_go_in_order_and_a_failed_one_ends_a_pod_that_never_restarts() {
    let p = pod(json!({"restartPolicy": "Never",
        "initContainers": [
            {"name": "a", "image": "i:1"},
            {"name": "side", "image": "i:1", "restartPolicy": "Always"},
            {"name": "b", "image": "i:1"}],
        "containers": [{"name": "c", "image": "i:1"}, {"name": "d", "image": "i:1"}]}));
    let journal = ready_journal(&p);
    let mut observed = Observed { sandboxes: vec![sandbox()], containers: vec![] };
    let created = |plan: &Plan| -> Vec<String> {
        plan.iter()
            .filter_map(|a| match a {
                Action::CreateContainer { container, .. } => Some(container.clone()),
                _ => None,
            })
            .collect()
    };
    assert_eq!(created(&next(&p, &observed, &journal, T0)), ["a"]);
    observed.containers.push(instance(&p, "a", 0, exited(0, T0)));
    assert_eq!(created(&next(&p, &observed, &journal, T0)), ["side"]);
    observed.containers.push(instance(&p, "side", 0, State::Running));
    assert_eq!(created(&next(&p, &observed, &journal, T0)), ["b"]);
    observed.containers.push(instance(&p, "b", 0, exited(0, T0)));
    assert_eq!(created(&next(&p, &observed, &journal, T0)), ["c", "d"], "apps in parallel");
    observed.containers[2].state = exited(1, T0);
    assert!(matches!(&next(&p, &observed, &journal, T0)[..], [Action::ReportTerminal(t)] if t.failed));
}

#[test]
fn deletion_stops_mains_then_sidecars_then_the_sandbox_then_the_object() {
    let mut p = pod(json!({
        "initContainers": [{"name": "side", "image": "i:1", "restartPolicy": "Always"}],
        "containers": [{"name": "c", "image": "i:1"}]}));
    p.deletion = Some(Deletion { at: at(5), grace: Duration::from_secs(5) });
    let mut journal = ready_journal(&p);
    let mut observed = Observed {
        sandboxes: vec![sandbox()],
        containers: vec![instance(&p, "side", 0, State::Running), instance(&p, "c", 0, State::Running)],
    };
    let stop = |id: &str| vec![Action::StopContainer { id: id.into(), grace: Duration::from_secs(5) }];
    assert_eq!(next(&p, &observed, &journal, T0), stop("c-0"));
    observed.containers[1].state = exited(0, T0);
    assert_eq!(next(&p, &observed, &journal, T0), stop("side-0"));
    observed.containers[0].state = exited(0, T0);
    let plan = next(&p, &observed, &journal, T0);
    assert!(
        matches!(&plan[..], [Action::StopSandbox { .. }, Action::ReportTerminal(t)] if !t.failed),
        "{plan:?}"
    );
    observed.sandboxes[0].ready = false;
    journal.terminal = Some(Terminal { failed: false, reason: String::new(), message: String::new() });
    assert_eq!(next(&p, &observed, &journal, T0), vec![], "the end is in the API server first");
    journal.terminal_reported = true;
    assert_eq!(next(&p, &observed, &journal, T0), vec![Action::RemoveSandbox { id: "s".into() }]);
    observed.sandboxes.clear();
    let remove = |id: &str| Action::RemoveContainer { id: id.into() };
    assert_eq!(next(&p, &observed, &journal, T0), vec![remove("side-0"), remove("c-0")]);
    observed.containers.clear();
    assert_eq!(next(&p, &observed, &journal, T0), vec![Action::DeleteFromApi]);
    assert_eq!(next(&p, &Observed::default(), &Journal::default(), T0), vec![Action::DeleteFromApi]);
}

#[test]
fn the_deadline_ends_a_running_pod() {
    let mut p = simple("Always");
    p.deadline = Some(Duration::from_secs(30));
    let journal = ready_journal(&p);
    let observed =
        Observed { sandboxes: vec![sandbox()], containers: vec![instance(&p, "c", 0, State::Running)] };
    assert_eq!(next(&p, &observed, &journal, at(1)), vec![Action::WaitUntil(at(30))]);
    let plan = next(&p, &observed, &journal, at(30));
    assert!(matches!(&plan[..], [Action::ReportTerminal(t)] if t.reason == "DeadlineExceeded"), "{plan:?}");
}

#[test]
fn a_failed_pull_is_tried_again_only_when_due() {
    let p = simple("Always");
    let mut journal = ready_journal(&p);
    let memory = journal.of_mut("c");
    memory.image_ready = false;
    memory.image_failure = Some(Failure {
        reason: "ErrImagePull".into(),
        message: String::new(),
        retry: at(10),
        delay: BACKOFF_FIRST,
    });
    let observed = Observed { sandboxes: vec![sandbox()], containers: vec![] };
    assert_eq!(next(&p, &observed, &journal, at(9)), vec![Action::WaitUntil(at(10))]);
    assert_eq!(next(&p, &observed, &journal, at(10)), vec![Action::PullImage { container: "c".into() }]);
    assert_eq!(failure_delay(journal.of("c").image_failure.as_ref()), Duration::from_secs(20));
}

#[test]
fn a_lost_sandbox_is_replaced_after_what_ran_in_it_is_stopped() {
    let p = simple("Always");
    let journal = ready_journal(&p);
    let mut observed =
        Observed { sandboxes: vec![sandbox()], containers: vec![instance(&p, "c", 0, State::Running)] };
    observed.sandboxes[0].ready = false;
    assert!(matches!(&next(&p, &observed, &journal, T0)[..], [Action::StopContainer { .. }]));
    observed.containers[0].state = exited(137, T0);
    assert!(matches!(&next(&p, &observed, &journal, T0)[..], [Action::CreateSandbox { attempt: 1 }, ..]));
}

#[test]
fn init_begins_again_in_a_new_sandbox_but_a_failed_one_stays_the_end() {
    let p = pod(json!({"restartPolicy": "OnFailure", "initContainers": [{"name": "a", "image": "i:1"}],
        "containers": [{"name": "c", "image": "i:1"}]}));
    let journal = ready_journal(&p);
    let mut observed = Observed {
        sandboxes: vec![sandbox(), Sandbox { id: "new".into(), attempt: 1, ..sandbox() }],
        containers: vec![instance(&p, "a", 0, exited(0, T0)), instance(&p, "c", 0, exited(137, T0))],
    };
    observed.sandboxes[0].ready = false;
    let create = |container: &str, restarts| Action::CreateContainer {
        container: container.into(),
        sandbox: "new".into(),
        restarts,
    };
    assert_eq!(next(&p, &observed, &journal, T0), vec![create("a", 1)]);
    observed.containers.push(Instance { sandbox: "new".into(), ..instance(&p, "a", 1, exited(0, T0)) });
    assert_eq!(next(&p, &observed, &journal, T0), vec![create("c", 1)]);
    let never = Pod { restart: RestartPolicy::Never, ..p };
    observed.containers = vec![instance(&never, "a", 0, exited(1, T0))];
    assert!(matches!(&next(&never, &observed, &journal, T0)[..], [Action::ReportTerminal(t)] if t.failed));
}

#[test]
fn a_failed_pull_wakes_the_pod_when_its_word_turns() {
    let p = simple("Always");
    let mut journal = ready_journal(&p);
    let memory = journal.of_mut("c");
    memory.image_ready = false;
    let reason = "ErrImagePull".to_owned();
    memory.image_failure =
        Some(Failure { reason, message: String::new(), retry: at(10), delay: BACKOFF_FIRST });
    let observed = Observed { sandboxes: vec![sandbox()], containers: vec![] };
    assert_eq!(next(&p, &observed, &journal, T0), vec![Action::WaitUntil(at(1))]);
    assert_eq!(next(&p, &observed, &journal, at(1)), vec![Action::WaitUntil(at(10))]);
}

#[test]
fn a_container_that_did_not_start_is_not_started_again_at_once() {
    let p = simple("Always");
    let mut journal = ready_journal(&p);
    let reason = "RunContainerError".to_owned();
    journal.of_mut("c").start_failure =
        Some(Failure { reason, message: String::new(), retry: at(10), delay: BACKOFF_FIRST });
    let observed =
        Observed { sandboxes: vec![sandbox()], containers: vec![instance(&p, "c", 0, State::Created)] };
    assert_eq!(next(&p, &observed, &journal, T0), vec![Action::WaitUntil(at(10))]);
    assert!(matches!(&next(&p, &observed, &journal, at(10))[..], [Action::StartContainer { .. }]));
}

#[test]
fn what_a_probe_killed_is_stopped_with_its_grace_and_starts_again_unless_the_policy_says_never() {
    for (policy, again) in [("Always", true), ("OnFailure", true), ("Never", false)] {
        let p = simple(policy);
        let mut journal = ready_journal(&p);
        let mut observed =
            Observed { sandboxes: vec![sandbox()], containers: vec![instance(&p, "c", 0, State::Running)] };
        assert_eq!(next(&p, &observed, &journal, at(9)), vec![]);
        let grace = Some(Duration::from_secs(7));
        journal.of_mut("c").killed = Some(Killed { id: "c-0".into(), grace, why: "failed liveness probe" });
        assert_eq!(
            next(&p, &observed, &journal, at(9)),
            vec![Action::StopContainer { id: "c-0".into(), grace: Duration::from_secs(7) }]
        );
        observed.containers[0].state = exited(0, at(9));
        let plan = next(&p, &observed, &journal, at(9));
        let starts = matches!(&plan[..], [Action::CreateContainer { restarts: 1, .. }]);
        assert_eq!(starts, again, "{policy}: {plan:?}");
    }
}

#[test]
fn the_containers_after_one_with_a_post_start_wait_for_it() {
    let p = pod(json!({"containers": [{"name": "a", "image": "i:1",
        "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}}, {"name": "b", "image": "i:1"}]}));
    let mut journal = ready_journal(&p);
    let mut observed = Observed { sandboxes: vec![sandbox()], containers: vec![] };
    let made = |container: &str| Action::CreateContainer {
        container: container.into(),
        sandbox: "s".into(),
        restarts: 0,
    };
    assert_eq!(next(&p, &observed, &journal, T0), vec![made("a")]);
    observed.containers.push(instance(&p, "a", 0, State::Running));
    let hook = Action::PostStart { container: "a".into(), id: "a-0".into() };
    assert_eq!(next(&p, &observed, &journal, T0), vec![hook]);
    journal.of_mut("a").post_started = Some("a-0".into());
    assert_eq!(next(&p, &observed, &journal, T0), vec![made("b")]);
}

/// A runtime in miniature: carries out an action, or lets a container end.
pub(super) fn apply(pod: &Pod, observed: &mut Observed, journal: &mut Journal, action: &Action, now: Micros) {
    match action {
        Action::CreateSandbox { attempt } => observed.sandboxes.push(Sandbox {
            id: format!("s{attempt}"),
            ready: true,
            attempt: *attempt,
            created: now,
            ips: vec![],
        }),
        Action::PullImage { container } => journal.of_mut(container).image_ready = true,
        Action::CreateContainer { container, sandbox, restarts } => {
            let mut made = instance(pod, container, *restarts, State::Created);
            made.sandbox.clone_from(sandbox);
            made.created = now;
            made.waited = journal.of(container).restart.map(|(delay, _)| delay);
            assert!(
                observed.containers.iter().all(|c| c.name != *container || !c.live()),
                "two live containers of one name"
            );
            assert!(observed.containers.iter().all(|c| c.id != made.id), "one restart count, one container");
            observed.containers.push(made);
        }
        Action::StartContainer { id, .. } => {
            for c in observed.containers.iter_mut().filter(|c| c.id == *id) {
                c.state = State::Running;
                c.started = now;
            }
        }
        Action::PostStart { container, id } => {
            journal.of_mut(container).post_started = Some(id.clone());
        }
        Action::StopContainer { id, .. } => {
            for c in observed.containers.iter_mut().filter(|c| c.id == *id) {
                c.state = exited(137, now);
            }
        }
        Action::StopSandbox { id } => {
            observed.sandboxes.iter_mut().filter(|s| s.id == *id).for_each(|s| s.ready = false);
        }
        Action::RemoveSandbox { id } => {
            observed.sandboxes.retain(|s| s.id != *id);
            observed.containers.retain(|c| c.sandbox != *id);
        }
        Action::RemoveContainer { id } => observed.containers.retain(|c| c.id != *id),
        Action::ReportTerminal(t) => {
            assert!(journal.terminal.is_none(), "an end is decided once");
            journal.terminal = Some(t.clone());
            journal.terminal_reported = true;
        }
        Action::DeleteFromApi => assert!(!observed.anything_live(), "deleted while something runs"),
        Action::WaitUntil(at) => assert!(*at > now, "a wait lies ahead"),
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_invariants_hold(
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        events in prop::collection::vec((0u8..6, 0usize..4, 0i32..2, 1u64..400), 0..60),
    ) {
        let mut p = pod(json!({"restartPolicy": policy,
            "initContainers": [{"name": "a", "image": "i:1"},
                {"name": "side", "image": "i:1", "restartPolicy": "Always"}],
            "containers": [{"name": "c", "image": "i:1"}, {"name": "d", "image": "i:1"}]}));
        let (mut observed, mut journal, mut now) = (Observed::default(), Journal::default(), T0);
        journal.started = T0;
        journal.volumes_ready = true;
        for (kind, which, code, seconds) in events {
            now = add(now, Duration::from_secs(seconds));
            note_exits(&p, &observed, &mut journal);
            let plan = next(&p, &observed, &journal, now);
            let ending = p.deletion.is_some() || journal.terminal.is_some();
            for action in &plan {
                let starts = matches!(action, Action::CreateSandbox { .. } | Action::PullImage { .. }
                    | Action::CreateContainer { .. } | Action::StartContainer { .. });
                prop_assert!(!(ending && starts), "{action:?} after the end");
                if let Action::CreateContainer { container, .. } = action
                    && ["c", "d"].contains(&container.as_str())
                {
                    let here = observed.ready_sandbox().unwrap().id.clone();
                    let done = observed.newest("a")
                        .is_some_and(|i| i.sandbox == here && matches!(i.state, State::Exited { code: 0, .. }));
                    let before = observed.containers.iter().any(|i| i.sandbox == here && ["c", "d"].contains(&i.name.as_str()));
                    prop_assert!(done || before, "an app before init was done");
                }
                apply(&p, &mut observed, &mut journal, action, now);
            }
            match kind {
                0 | 1 => {
                    if let Some(c) = observed.containers.iter_mut().filter(|c| c.state == State::Running).nth(which) {
                        c.state = exited(code, now);
                    }
                }
                2 if which == 0 => observed.sandboxes.iter_mut().for_each(|s| s.ready = false),
                3 if which == 3 => p.deletion = Some(Deletion { at: now, grace: Duration::from_secs(1) }),
                _ => {}
            }
        }
        // Deletion always comes to its end, in a bounded number of steps.
        p.deletion = Some(Deletion { at: now, grace: Duration::from_secs(1) });
        let mut gone = false;
        for _ in 0..12 {
            let plan = next(&p, &observed, &journal, now);
            gone |= plan.contains(&Action::DeleteFromApi);
            for action in &plan {
                apply(&p, &mut observed, &mut journal, action, now);
            }
        }
        prop_assert!(gone && !observed.anything_live());
    }
}

#[test]
fn late_news_never_take_a_life_back() {
    let instance = |id: &str, state| Instance {
        id: id.into(),
        sandbox: "s".into(),
        name: "c".into(),
        restarts: 0,
        hash: 0,
        created: Micros(0),
        started: Micros(0),
        state,
        image_id: String::new(),
        waited: None,
    };
    let sandbox = |ready, ips: &[&str]| Sandbox {
        id: "s".into(),
        ready,
        attempt: 0,
        created: Micros(0),
        ips: ips.iter().map(ToString::to_string).collect(),
    };
    let gone = State::Exited { code: 1, finished: Micros(9), reason: String::new(), message: String::new() };
    let mut observed = Observed::default();
    observed.learn_sandbox(sandbox(true, &[]));
    observed.learn_sandbox(sandbox(true, &["10.0.0.2"]));
    observed.learn(instance("a", State::Created));
    observed.learn(instance("a", State::Running));
    observed.learn(instance("a", State::Created));
    assert_eq!(observed.containers[0].state, State::Running);
    observed.learn(instance("a", gone.clone()));
    observed.learn(instance("a", State::Running));
    observed.learn_sandbox(sandbox(false, &[]));
    observed.learn_sandbox(sandbox(true, &[]));
    assert_eq!((observed.containers.len(), &observed.containers[0].state), (1, &gone));
    assert_eq!(observed.sandboxes, [sandbox(false, &["10.0.0.2"])]);
}
