//! Whether and when what has ended runs again: the policies, the growing delays.

use crate::pod::core::{Failure, Instance, Journal, Memory, Observed, State};
use crate::pod::model::{Container, Pod, PullPolicy, RestartPolicy, Role};
use podway_flow::Micros;
use std::time::Duration;

/// The first restart delay, and the first delay of an image pull (kubelet's `backOffPeriod`).
pub const BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// The longest delay (kubelet's `MaxContainerBackOff`).
pub const BACKOFF_LONGEST: Duration = Duration::from_secs(300);
/// A container that ran this long starts over at the first delay.
pub const BACKOFF_RESET: Duration = Duration::from_secs(600);

/// What follows from an ended instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is not started again.
    Finished,
    /// It may be started again now.
    Restart,
    /// It may be started again later.
    Wait(Micros, Duration),
}

pub(super) fn micros(d: Duration) -> i64 {
    i64::try_from(d.as_micros()).unwrap_or(i64::MAX)
}

/// `at` and `delay` later.
#[must_use]
pub fn add(at: Micros, delay: Duration) -> Micros {
    Micros(at.0.saturating_add(micros(delay)))
}

/// The next delay: none at first, then 10 s doubling to 300 s; over again after 10 min of running.
#[must_use]
pub fn restart_delay(previous: Option<Duration>, ran: Duration) -> Duration {
    match previous {
        _ if ran >= BACKOFF_RESET => Duration::ZERO,
        None => Duration::ZERO,
        Some(d) if d.is_zero() => BACKOFF_FIRST,
        Some(d) => (d * 2).min(BACKOFF_LONGEST),
    }
}

/// The next delay of something that failed: 10 s doubling to 300 s.
#[must_use]
pub fn failure_delay(previous: Option<&Failure>) -> Duration {
    previous.map_or(BACKOFF_FIRST, |f| (f.delay * 2).clamp(BACKOFF_FIRST, BACKOFF_LONGEST))
}

/// Whether a container may be started again after `code` (also used by the status).
#[must_use]
pub fn restartable(pod: &Pod, container: &Container, code: i32) -> bool {
    match (container.role, policy(pod, container)) {
        (Role::Sidecar, _) => true,
        (Role::Ephemeral, _) => false,
        // An init container that is done is done, even with `Always`.
        (Role::Init, _) if code == 0 => false,
        _ if container.rules.iter().any(|rule| rule.covers(code)) => true,
        (_, RestartPolicy::Always) => true,
        (_, RestartPolicy::OnFailure) => code != 0,
        (_, RestartPolicy::Never) => false,
    }
}

/// The container's own policy, else the pod's.
fn policy(pod: &Pod, container: &Container) -> RestartPolicy {
    container.restart.unwrap_or(pod.restart)
}

/// What follows from the newest instance having ended.
#[must_use]
pub fn verdict(
    pod: &Pod,
    container: &Container,
    instance: &Instance,
    memory: &Memory,
    now: Micros,
) -> Verdict {
    let State::Exited { code, finished, .. } = &instance.state else {
        return Verdict::Finished;
    };
    // A changed image starts over at once, whatever the policy said of the old one.
    if instance.hash != container.hash {
        return Verdict::Restart;
    }
    // What a probe killed starts again however well it ended.
    let killed = memory.kills(&instance.id) && policy(pod, container) != RestartPolicy::Never;
    if !killed && !restartable(pod, container, *code) {
        return Verdict::Finished;
    }
    let delay = match memory.restart {
        Some((delay, at)) if at == *finished => delay,
        _ => Duration::ZERO,
    };
    let ready = add(*finished, delay);
    if now >= ready { Verdict::Restart } else { Verdict::Wait(ready, delay) }
}

/// Brings the journal up to date with what is observed: delays for new exits, the restart counts.
/// Idempotent for the same observation.
pub fn note_exits(pod: &Pod, observed: &Observed, journal: &mut Journal) {
    for container in pod.everyone() {
        let Some(newest) = observed.newest(&container.name) else { continue };
        let memory = journal.of_mut(&container.name);
        memory.restarts = memory.restarts.max(newest.restarts);
        let State::Exited { finished, .. } = newest.state else { continue };
        // The kubelet's delays go by the container's hash: a changed one begins anew (`getStableKey`).
        let changed = newest.hash != container.hash;
        if let Some((delay, at)) = &mut memory.restart
            && *at == finished
        {
            // It may be changed while it waits.
            if changed {
                *delay = Duration::ZERO;
            }
            continue;
        }
        let ran =
            Duration::from_micros(if newest.started.0 > 0 { finished.since(newest.started) } else { 0 });
        // After a restart of the agent the runtime still tells how long the last start was put off.
        let before = memory.restart.map(|(d, _)| d).or(newest.waited);
        let delay = if changed { Duration::ZERO } else { restart_delay(before, ran) };
        memory.restart = Some((delay, finished));
        // What was pulled for the last start counts for that start only (`Always`).
        memory.image_ready = container.pull != PullPolicy::Always && memory.image_ready;
    }
}
