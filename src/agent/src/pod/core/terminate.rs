//! How a pod is taken down.

use crate::pod::core::{Action, Instance, Journal, Observed, Plan, State, Terminal};
use crate::pod::model::{Pod, Role};
use podway_flow::Micros;
use std::time::Duration;

/// Takes everything down: apps in parallel, then sidecars in reverse order, then sandboxes.
pub(super) fn terminate(
    pod: &Pod,
    observed: &Observed,
    journal: &Journal,
    grace: Duration,
    now: Micros,
    deleting: bool,
) -> Plan {
    // Within the one grace: what was used up counts, and at least 2 s are left for a clean end
    // unless the caller asked for less.
    let used = journal.stopping_since.map_or(Duration::ZERO, |since| Duration::from_micros(now.since(since)));
    let left = grace.saturating_sub(used).max(grace.min(Duration::from_secs(2)));
    let stop = |c: &Instance| Action::StopContainer { id: c.id.clone(), grace: left };
    let sidecar = |c: &&Instance| pod.init.iter().any(|s| s.name == c.name && s.role == Role::Sidecar);
    let live: Vec<&Instance> = observed.containers.iter().filter(|c| c.live()).collect();
    let mains: Vec<Action> = live.iter().filter(|c| !sidecar(c)).map(|c| stop(c)).collect();
    if !mains.is_empty() {
        return mains;
    }
    for container in pod.init.iter().rev() {
        let due: Vec<Action> = live.iter().filter(|c| c.name == container.name).map(|c| stop(c)).collect();
        if !due.is_empty() {
            return due;
        }
    }
    let mut plan: Plan = observed
        .sandboxes
        .iter()
        .filter(|s| s.ready)
        .map(|s| Action::StopSandbox { id: s.id.clone() })
        .collect();
    if !deleting {
        return plan;
    }
    // The runtime's records are the only proof of the exit codes: they go once the end is in the
    // API server. A pod that never had a container has no end to tell of.
    let stored = pod.stored_over();
    let told = journal.terminal_reported || stored || observed.containers.is_empty();
    if !told {
        if journal.terminal.is_none() {
            let failed = pod.apps.iter().any(|c| {
                observed.newest(&c.name).is_none_or(|i| !matches!(i.state, State::Exited { code: 0, .. }))
            });
            plan.push(Action::ReportTerminal(Terminal {
                failed,
                reason: String::new(),
                message: String::new(),
            }));
        }
        return plan;
    }
    if !plan.is_empty() {
        return plan;
    }
    let sandboxes: Plan =
        observed.sandboxes.iter().map(|s| Action::RemoveSandbox { id: s.id.clone() }).collect();
    if !sandboxes.is_empty() {
        return sandboxes;
    }
    // Containers of which the runtime has no sandbox any more.
    let containers: Plan =
        observed.containers.iter().map(|c| Action::RemoveContainer { id: c.id.clone() }).collect();
    if containers.is_empty() { vec![Action::DeleteFromApi] } else { containers }
}
