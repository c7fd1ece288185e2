//! The heart: from what a pod should be, what the runtime reports and what is remembered, to what
//! to do next. Pure: no I/O, no clock. The worker carries a plan out, observes, asks again.
//!
//! States: `running` → `terminating` (deleted, deadline, or finished) → `terminated`; never back.
//! Invariants (property-tested): no container starts while terminating or after a terminal phase; at
//! most one live container per name; an app starts only after every init container is done; a pod is
//! deleted from the API only when nothing of it runs.

pub mod journal;
pub mod observed;
pub mod restart;
mod terminate;

pub use journal::{Ending, Failure, Journal, Killed, Memory, Terminal};
pub use observed::{Instance, Observed, Sandbox, State};
pub use restart::{
    BACKOFF_FIRST, BACKOFF_LONGEST, BACKOFF_RESET, Verdict, add, failure_delay, note_exits, restart_delay,
    restartable, verdict,
};

use crate::pod::model::{Container, Pod, Role};
use podway_flow::Micros;
use std::time::Duration;
use terminate::terminate;

/// What a container is left at the least to end in, if it is not its pod that is deleted.
const GRACE_LEAST: Duration = Duration::from_secs(2);

/// One thing to do. Actions of one plan do not depend on each other and may run at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the sandbox.
    CreateSandbox {
        /// 0 for the first.
        attempt: u32,
    },
    /// Make the container's image present.
    PullImage {
        /// The container's name.
        container: String,
    },
    /// Make a container in the ready sandbox.
    CreateContainer {
        /// The container's name.
        container: String,
        /// The sandbox.
        sandbox: String,
        /// Its restart count.
        restarts: u32,
    },
    /// Start a container that was made.
    StartContainer {
        /// The container's name.
        container: String,
        /// Its id.
        id: String,
    },
    /// Do a running container's `postStart`.
    PostStart {
        /// The container's name.
        container: String,
        /// Its id.
        id: String,
    },
    /// Stop a container.
    StopContainer {
        /// Its id.
        id: String,
        /// SIGTERM to SIGKILL.
        grace: Duration,
    },
    /// Stop a sandbox, its network included.
    StopSandbox {
        /// Its id.
        id: String,
    },
    /// Remove a stopped sandbox.
    RemoveSandbox {
        /// Its id.
        id: String,
    },
    /// Remove a dead container that is no longer needed for `lastState`.
    RemoveContainer {
        /// Its id.
        id: String,
    },
    /// The pod has come to its end: remember it, and report it.
    ReportTerminal(Terminal),
    /// Nothing is left: delete the object with grace 0 and the UID as precondition.
    DeleteFromApi,
    /// Ask again at this time, if nothing happens before.
    WaitUntil(Micros),
}

/// What to do next; empty when the pod is as it should be and only events can change that.
pub type Plan = Vec<Action>;

/// Init's progress.
enum Init<'a> {
    Done,
    At(&'a Container),
    Failed,
}

/// How far init is in the ready sandbox: what ran in a lost one counts for nothing there, since a
/// new sandbox begins with the first init container again.
fn init_progress<'a>(pod: &'a Pod, observed: &Observed, journal: &Journal, now: Micros) -> Init<'a> {
    let sandbox = observed.ready_sandbox().map(|s| s.id.as_str());
    let here = |name: &str| observed.newest(name).filter(|i| Some(i.sandbox.as_str()) == sandbox);
    // An app that was ever made here proves that init was done, even if its instances were removed.
    if pod.apps.iter().any(|c| here(&c.name).is_some()) {
        return Init::Done;
    }
    for container in &pod.init {
        let done = match here(&container.name) {
            None => false,
            Some(i) => match (&i.state, container.role) {
                (State::Running, Role::Sidecar) => {
                    journal.of(&container.name).is_up(container, &i.id)
                        && journal.probes.started(container, &i.id)
                }
                (State::Exited { code: 0, .. }, Role::Init) => i.hash == container.hash,
                (State::Exited { .. }, Role::Init)
                    if verdict(pod, container, i, &journal.of(&container.name), now) == Verdict::Finished =>
                {
                    return Init::Failed;
                }
                _ => false,
            },
        };
        if !done {
            return Init::At(container);
        }
    }
    Init::Done
}

/// Whether an init container has failed for good, in whichever sandbox: its pod is over.
fn init_failed(pod: &Pod, observed: &Observed, journal: &Journal, now: Micros) -> bool {
    pod.apps.iter().all(|c| observed.newest(&c.name).is_none())
        && pod.init.iter().filter(|c| c.role == Role::Init).any(|c| {
            observed.newest(&c.name).is_some_and(|i| {
                !matches!(i.state, State::Exited { code: 0, .. })
                    && matches!(i.state, State::Exited { .. })
                    && verdict(pod, c, i, &journal.of(&c.name), now) == Verdict::Finished
            })
        })
}

/// What to do next.
#[must_use]
pub fn next(pod: &Pod, observed: &Observed, journal: &Journal, now: Micros) -> Plan {
    let deadline = pod.deadline.map(|d| add(journal.started, d));
    if pod.deletion.is_some() {
        let grace = pod.deletion.map_or(pod.grace, |d| d.grace);
        let grace = journal.grace.map_or(grace, |most| most.min(grace));
        return terminate(pod, observed, journal, grace, now, true);
    }
    if journal.terminal.is_some() || pod.stored_over() {
        let grace = journal.grace.map_or(pod.grace, |most| most.min(pod.grace));
        return terminate(pod, observed, journal, grace, now, false);
    }
    if deadline.is_some_and(|at| now >= at) {
        return vec![Action::ReportTerminal(Terminal {
            failed: true,
            reason: "DeadlineExceeded".to_owned(),
            message: "Pod was active on the node longer than the specified deadline".to_owned(),
        })];
    }
    if let Some(terminal) = ended(pod, observed, journal, now) {
        return vec![Action::ReportTerminal(terminal)];
    }
    let mut plan = advance(pod, observed, journal, now);
    if let Some(at) = deadline {
        plan.push(Action::WaitUntil(at));
    }
    one_wait(plan)
}

/// The end of a pod whose containers have all ended for good.
fn ended(pod: &Pod, observed: &Observed, journal: &Journal, now: Micros) -> Option<Terminal> {
    let end = |failed| Some(Terminal { failed, reason: String::new(), message: String::new() });
    if init_failed(pod, observed, journal, now) {
        return end(true);
    }
    let mut failed = false;
    for container in &pod.apps {
        let instance = observed.newest(&container.name)?;
        let State::Exited { code, .. } = instance.state else { return None };
        if verdict(pod, container, instance, &journal.of(&container.name), now) != Verdict::Finished {
            return None;
        }
        failed |= code != 0;
    }
    end(failed)
}

fn advance(pod: &Pod, observed: &Observed, journal: &Journal, now: Micros) -> Plan {
    let mut plan = Plan::new();
    let init = init_progress(pod, observed, journal, now);
    // Which containers are wanted now, and which images may be fetched ahead of their turn.
    let wanted: Vec<&Container> = match init {
        Init::Done => pod.init.iter().filter(|c| c.role == Role::Sidecar).chain(&pod.apps).collect(),
        Init::At(at) => {
            let before = pod.init.iter().take_while(|c| c.name != at.name);
            before.filter(|c| c.role == Role::Sidecar).chain([at]).collect()
        }
        Init::Failed => return plan,
    };
    let Some(sandbox) = observed.ready_sandbox() else {
        // What ran in a lost sandbox is stopped before another is made.
        for lost in &observed.sandboxes {
            let live = observed.containers.iter().filter(|c| c.sandbox == lost.id && c.live());
            let before = plan.len();
            plan.extend(live.map(|c| Action::StopContainer { id: c.id.clone(), grace: pod.grace }));
            if plan.len() > before {
                return plan;
            }
        }
        match &journal.sandbox_failure {
            Some(f) if now < f.retry => plan.push(Action::WaitUntil(f.retry)),
            _ => {
                let attempt = observed.sandboxes.iter().map(|s| s.attempt + 1).max().unwrap_or(0);
                plan.push(Action::CreateSandbox { attempt });
            }
        }
        // Pulling does not need the sandbox: both at once.
        for container in wanted {
            pull(container, journal, now, &mut plan);
        }
        return plan;
    };
    // Whoever looks into a pod does not wait for it. Started once: what it came to is never repeated.
    for debug in pod.debug.iter().map(|d| &d.model) {
        if observed.newest(&debug.name).is_none_or(|i| i.state == State::Created) {
            bring_up(pod, debug, observed, sandbox, journal, now, &mut plan);
        }
    }
    for container in wanted {
        bring_up(pod, container, observed, sandbox, journal, now, &mut plan);
        if holds(container, observed, journal) {
            break;
        }
    }
    prune(pod, observed, sandbox, &mut plan);
    plan
}

/// Asks for the container's image, if it is due; true once it is present.
fn pull(container: &Container, journal: &Journal, now: Micros, plan: &mut Plan) -> bool {
    let memory = journal.of(&container.name);
    match &memory.image_failure {
        _ if memory.image_ready => return true,
        // The status turns from ErrImagePull to ImagePullBackOff while the wait lasts.
        Some(f) if now < f.turns() => plan.push(Action::WaitUntil(f.turns())),
        Some(f) if now < f.retry => plan.push(Action::WaitUntil(f.retry)),
        _ => plan.push(Action::PullImage { container: container.name.clone() }),
    }
    false
}

/// Whether the containers after this one wait: each start waits for the `postStart` of the one before.
fn holds(container: &Container, observed: &Observed, journal: &Journal) -> bool {
    if container.care.post_start.is_none() {
        return false;
    }
    let memory = journal.of(&container.name);
    match observed.newest(&container.name).map(|i| (i, &i.state)) {
        None | Some((_, State::Created)) => memory.start_failure.is_none() && memory.image_failure.is_none(),
        Some((i, State::Running)) => !memory.is_up(container, &i.id) && !memory.kills(&i.id),
        Some(_) => false,
    }
}

fn bring_up(
    pod: &Pod,
    container: &Container,
    observed: &Observed,
    sandbox: &Sandbox,
    journal: &Journal,
    now: Micros,
    plan: &mut Plan,
) {
    let memory = journal.of(&container.name);
    let newest = observed.newest(&container.name);
    let restarts = match newest {
        None if memory.restarts == 0 => 0,
        None => memory.restarts + 1,
        Some(i) => i.restarts.max(memory.restarts) + 1,
    };
    if let Some(i) = newest {
        match &i.state {
            State::Running if memory.kills(&i.id) => {
                let grace = memory.killed.and_then(|k| k.grace).unwrap_or(pod.grace);
                plan.push(Action::StopContainer { id: i.id.clone(), grace: grace.max(GRACE_LEAST) });
                return;
            }
            State::Running if i.hash == container.hash && i.sandbox == sandbox.id => {
                if !memory.is_up(container, &i.id) {
                    plan.push(Action::PostStart { container: container.name.clone(), id: i.id.clone() });
                }
                return;
            }
            State::Created if i.hash == container.hash && i.sandbox == sandbox.id => {
                if let Some(f) = memory.start_failure.as_ref().filter(|f| now < f.retry) {
                    plan.push(Action::WaitUntil(f.retry));
                    return;
                }
                plan.push(Action::StartContainer { container: container.name.clone(), id: i.id.clone() });
                return;
            }
            State::Running | State::Created | State::Unknown => {
                plan.push(Action::StopContainer { id: i.id.clone(), grace: pod.grace });
                return;
            }
            // In a new sandbox init begins again, whatever it came to in the one that was lost.
            State::Exited { .. } if container.role == Role::Init && i.sandbox != sandbox.id => {}
            State::Exited { .. } => match verdict(pod, container, i, &memory, now) {
                Verdict::Finished => return,
                Verdict::Wait(at, _) => {
                    plan.push(Action::WaitUntil(at));
                    return;
                }
                Verdict::Restart => {}
            },
        }
    }
    if let Some(f) = &memory.start_failure
        && now < f.retry
    {
        plan.push(Action::WaitUntil(f.retry));
        return;
    }
    if pull(container, journal, now, plan) && journal.volumes_ready {
        plan.push(Action::CreateContainer {
            container: container.name.clone(),
            sandbox: sandbox.id.clone(),
            restarts,
        });
    }
}

/// Removes what nobody will ask for: all but the two newest of each name, and old sandboxes.
fn prune(pod: &Pod, observed: &Observed, keep: &Sandbox, plan: &mut Plan) {
    for container in pod.containers() {
        for old in observed.history(&container.name).into_iter().skip(2).filter(|c| !c.live()) {
            plan.push(Action::RemoveContainer { id: old.id.clone() });
        }
    }
    for old in observed.sandboxes.iter().filter(|s| s.id != keep.id) {
        if old.ready {
            plan.push(Action::StopSandbox { id: old.id.clone() });
        } else if observed.containers.iter().all(|c| c.sandbox != old.id) {
            plan.push(Action::RemoveSandbox { id: old.id.clone() });
        }
    }
}

/// Folds all waits into the earliest one.
fn one_wait(plan: Plan) -> Plan {
    let earliest =
        plan.iter().filter_map(|a| if let Action::WaitUntil(at) = a { Some(*at) } else { None }).min();
    let mut plan: Plan = plan.into_iter().filter(|a| !matches!(a, Action::WaitUntil(_))).collect();
    plan.extend(earliest.map(Action::WaitUntil));
    plan
}

#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;
