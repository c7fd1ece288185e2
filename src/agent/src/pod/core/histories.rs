//! Every short history of a small pod: what may happen, happens, at each point and in each order, within
//! a budget (ends of containers, lost sandboxes, one deletion); and at each step the agent may crash.
//!
//! What is asked of the core, over all of them:
//! - a terminal phase is final, and nothing starts after it or after the deletion;
//! - two containers of one name never live at once, and a restart count never falls (`apply` asserts);
//! - an app starts only while its sidecar runs or has run here, and a sidecar ends only after the apps;
//! - an agent that crashes and comes back goes on with the very same actions.

use super::tests::{T0, apply, exited};
use super::*;
use crate::pod::model::tests::pod;
use crate::pod::model::{Deletion, Role};
use serde_json::json;
use std::collections::BTreeMap;

/// What may still happen.
#[derive(Clone, Copy)]
struct Budget {
    exits: u8,
    faults: u8,
    deletion: bool,
}

#[derive(Clone)]
struct World {
    pod: Pod,
    observed: Observed,
    journal: Journal,
    now: Micros,
    /// The highest restart count that was seen of each container.
    restarts: BTreeMap<String, u32>,
}

/// What an agent that comes back knows: the object's status and what the runtime tells.
fn recovered(world: &World) -> Journal {
    let mut journal = Journal::recalled(&world.pod, world.now);
    journal.started = world.journal.started;
    for (name, memory) in &world.journal.containers {
        // In the status, as the last write left it.
        journal.of_mut(name).restarts = memory.restarts;
    }
    journal.adopt(&world.observed);
    note_exits(&world.pod, &world.observed, &mut journal);
    // Made present again before anything else, without an effect where they are there already.
    journal.volumes_ready = world.journal.volumes_ready;
    for (name, memory) in &world.journal.containers {
        journal.of_mut(name).image_ready = memory.image_ready;
    }
    journal.terminal_reported = world.journal.terminal_reported;
    journal
}

impl World {
    fn plan(&mut self) -> Plan {
        note_exits(&self.pod, &self.observed, &mut self.journal);
        let plan = next(&self.pod, &self.observed, &self.journal, self.now);
        let again = recovered(self);
        // What was decided and told is in the API server; what was not is decided again, and the same.
        let again = match (&self.journal.terminal, self.journal.terminal_reported) {
            (Some(t), true) => Journal { terminal: Some(t.clone()), ..again },
            _ => again,
        };
        let after = next(&self.pod, &self.observed, &again, self.now);
        assert_eq!(after, plan, "an agent that comes back does the same: {:?}", self.observed);
        plan
    }

    fn check(&mut self, action: &Action) {
        let ending = self.pod.deletion.is_some() || self.journal.terminal.is_some();
        let starts = matches!(
            action,
            Action::CreateSandbox { .. }
                | Action::PullImage { .. }
                | Action::CreateContainer { .. }
                | Action::StartContainer { .. }
        );
        assert!(!(ending && starts), "{action:?} after the end");
        if let Action::CreateContainer { container, restarts, .. } = action {
            let seen = self.restarts.entry(container.clone()).or_default();
            assert!(*restarts >= *seen, "{container}: the restart count falls from {seen} to {restarts}");
            *seen = *restarts;
            if self.pod.container(container).is_some_and(|c| c.role == Role::App) {
                let here = self.observed.ready_sandbox().map(|s| s.id.clone()).unwrap_or_default();
                let ran = self.observed.containers.iter().any(|c| c.name == "side" && c.sandbox == here);
                assert!(ran, "an app before its sidecar");
            }
        }
        if let Action::StopContainer { id, .. } = action
            && ending
            && self.observed.containers.iter().any(|c| c.id == *id && c.name == "side")
        {
            let apps = self.observed.containers.iter().any(|c| c.name == "c" && c.live());
            assert!(!apps, "a sidecar is stopped before the app");
        }
    }

    /// Does what is planned until nothing is left but to wait; each prefix is a point to crash at.
    fn settle(&mut self) {
        for _ in 0..40 {
            let plan = self.plan();
            let Some(action) = plan.iter().find(|a| !matches!(a, Action::WaitUntil(_))) else { return };
            if matches!(action, Action::DeleteFromApi) {
                assert!(!self.observed.anything_live());
                return;
            }
            self.check(action);
            let decided = self.journal.terminal.clone();
            apply(&self.pod, &mut self.observed, &mut self.journal, action, self.now);
            assert!(decided.is_none() || decided == self.journal.terminal, "a terminal phase is final");
            self.now = add(self.now, Duration::from_millis(10));
        }
        panic!("it never settles: {:?}", self.observed);
    }

    /// Every history from here on; how many there were.
    fn explore(&mut self, budget: Budget) -> u32 {
        self.settle();
        let mut seen = 1;
        // Time goes by until something is due.
        let wait =
            self.plan().into_iter().find_map(|a| if let Action::WaitUntil(t) = a { Some(t) } else { None });
        if let Some(at) = wait {
            let mut later = self.clone();
            later.now = at;
            seen += later.explore(budget);
        }
        if budget.exits > 0 {
            let running: Vec<String> = self
                .observed
                .containers
                .iter()
                .filter(|c| c.state == State::Running)
                .map(|c| c.id.clone())
                .collect();
            for (id, code) in running.iter().flat_map(|id| [(id, 0), (id, 1)]) {
                let mut world = self.clone();
                world.now = add(world.now, Duration::from_secs(1));
                let now = world.now;
                world
                    .observed
                    .containers
                    .iter_mut()
                    .filter(|c| c.id == *id)
                    .for_each(|c| c.state = exited(code, now));
                seen += world.explore(Budget { exits: budget.exits - 1, ..budget });
            }
        }
        if budget.faults > 0 && self.observed.ready_sandbox().is_some() {
            let mut world = self.clone();
            world.now = add(world.now, Duration::from_secs(1));
            world.observed.sandboxes.iter_mut().for_each(|s| s.ready = false);
            seen += world.explore(Budget { faults: budget.faults - 1, ..budget });
        }
        if budget.deletion && self.pod.deletion.is_none() {
            let mut world = self.clone();
            let grace = Duration::from_secs(30);
            world.pod.deletion = Some(Deletion { at: add(world.now, grace), grace });
            world.journal.stopping_since = Some(world.now);
            seen += world.explore(Budget { deletion: false, ..budget });
        }
        seen
    }
}

#[test]
fn every_short_history_keeps_the_invariants_and_a_crash_changes_nothing() {
    for policy in ["Always", "OnFailure", "Never"] {
        let pod = pod(json!({"restartPolicy": policy,
            "initContainers": [{"name": "a", "image": "i:1"},
                {"name": "side", "image": "i:1", "restartPolicy": "Always"}],
            "containers": [{"name": "c", "image": "i:1"}]}));
        let journal = Journal { started: T0, volumes_ready: true, ..Journal::default() };
        let mut world =
            World { pod, observed: Observed::default(), journal, now: T0, restarts: BTreeMap::new() };
        let seen = world.explore(Budget { exits: 4, faults: 2, deletion: true });
        assert!(seen > 100, "{policy}: only {seen} histories");
    }
}
