//! The heart: from what a pod should be, what the runtime reports and what is remembered, to what
//! to do next. Pure: no I/O, no clock. The worker carries a plan out, observes, asks again.
//!
//! States: `running` → `terminating` (deleted, deadline, or finished) → `terminated`; never back.
//! Invariants (property-tested): no container starts while terminating or after a terminal phase; at
//! most one live container per name; an app starts only after every init container is done; a pod is
//! deleted from the API only when nothing of it runs.

use crate::pod::model::{Container, Pod, PullPolicy, RestartPolicy, Role};
use podway_flow::Micros;
use std::collections::BTreeMap;
use std::time::Duration;

/// The first restart delay, and the first delay of an image pull (kubelet's `backOffPeriod`).
pub const BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// The longest delay (kubelet's `MaxContainerBackOff`).
pub const BACKOFF_LONGEST: Duration = Duration::from_secs(300);
/// A container that ran this long starts over at the first delay.
pub const BACKOFF_RESET: Duration = Duration::from_secs(600);

/// A sandbox as the runtime reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// Whether it is ready.
    pub ready: bool,
    /// 0 for the first.
    pub attempt: u32,
    /// When it was made.
    pub created: Micros,
    /// Its addresses, the primary one first; empty with the host's network.
    pub ips: Vec<String>,
}

/// A container's state as the runtime reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, not started.
    Created,
    /// Running.
    Running,
    /// Ended.
    Exited {
        /// The exit code.
        code: i32,
        /// When.
        finished: Micros,
        /// The runtime's reason, e.g. `OOMKilled`; empty if it has none.
        reason: String,
        /// The runtime's message or the termination message.
        message: String,
    },
    /// The runtime has lost it.
    Unknown,
}

/// A container as the runtime reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its id.
    pub id: String,
    /// The sandbox it is in.
    pub sandbox: String,
    /// The container's name in the pod.
    pub name: String,
    /// How often the container had been restarted when this one was made.
    pub restarts: u32,
    /// The hash of the spec it was made from.
    pub hash: u32,
    /// When it was made.
    pub created: Micros,
    /// When it was started; 0 if it was not.
    pub started: Micros,
    /// Its state.
    pub state: State,
    /// The resolved image.
    pub image_id: String,
}

impl State {
    /// States only go on: what was seen later in a container's life is the newer knowledge.
    fn rank(&self) -> u8 {
        match self {
            State::Created => 0,
            State::Running => 1,
            State::Unknown => 2,
            State::Exited { .. } => 3,
        }
    }
}

impl Instance {
    fn live(&self) -> bool {
        matches!(self.state, State::Running | State::Created | State::Unknown)
    }
}

/// Everything that the runtime reports of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Sandboxes, in no order.
    pub sandboxes: Vec<Sandbox>,
    /// Containers, in no order.
    pub containers: Vec<Instance>,
}

impl Observed {
    /// The newest ready sandbox.
    #[must_use]
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.iter().filter(|s| s.ready).max_by_key(|s| (s.attempt, s.created))
    }

    /// The newest container of a name.
    #[must_use]
    pub fn newest(&self, name: &str) -> Option<&Instance> {
        self.history(name).into_iter().next()
    }

    /// Every container of a name, newest first.
    #[must_use]
    pub fn history(&self, name: &str) -> Vec<&Instance> {
        let mut all: Vec<&Instance> = self.containers.iter().filter(|c| c.name == name).collect();
        all.sort_by(|a, b| (b.restarts, b.created, &b.id).cmp(&(a.restarts, a.created, &a.id)));
        all
    }

    /// Takes in what was told of one sandbox. News may come late: one that is not ready stays so.
    pub fn learn_sandbox(&mut self, news: Sandbox) {
        match self.sandboxes.iter_mut().find(|s| s.id == news.id) {
            Some(known) => {
                known.ready &= news.ready;
                if known.ips.is_empty() {
                    known.ips = news.ips;
                }
            }
            None => self.sandboxes.push(news),
        }
    }

    /// Takes in what was told of one container. News may come late: it never goes back in its life.
    pub fn learn(&mut self, news: Instance) {
        match self.containers.iter_mut().find(|c| c.id == news.id) {
            Some(known) if news.state.rank() >= known.state.rank() => *known = news,
            Some(_) => {}
            None => self.containers.push(news),
        }
    }

    /// Whether a process of the pod runs or may run.
    #[must_use]
    pub fn anything_live(&self) -> bool {
        self.containers.iter().any(|c| matches!(c.state, State::Running | State::Unknown))
    }
}

/// A failure that will be tried again, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The waiting reason, e.g. `ErrImagePull`, `CreateContainerConfigError`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Not before.
    pub retry: Micros,
    /// The delay that leads to `retry`.
    pub delay: Duration,
}

impl Failure {
    /// When a failed pull is no longer shown as such but as waiting for the next: after 1 s.
    #[must_use]
    pub fn turns(&self) -> Micros {
        if self.reason == "ErrImagePull" {
            add(Micros(self.retry.0.saturating_sub(micros(self.delay))), Duration::from_secs(1))
        } else {
            Micros(0)
        }
    }
}

/// What is remembered of one container between two runs of the core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Set once the image is present for the next start.
    pub image_ready: bool,
    /// The last failure to pull, kept until a pull succeeds.
    pub image_failure: Option<Failure>,
    /// The last failure to create or start, kept until one succeeds.
    pub start_failure: Option<Failure>,
    /// The restart delay that applies to the instance that exited at `.1`.
    pub restart: Option<(Duration, Micros)>,
    /// Restarts that the runtime no longer knows of.
    pub restarts: u32,
}

/// A pod's end, once decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Whether the pod failed; else it succeeded.
    pub failed: bool,
    /// The pod-level reason, e.g. `DeadlineExceeded`; empty for a pod that simply ended.
    pub reason: String,
    /// The pod-level message.
    pub message: String,
}

/// What is remembered of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Journal {
    /// When the agent took the pod on (`status.startTime`).
    pub started: Micros,
    /// Whether the volumes are in place.
    pub volumes_ready: bool,
    /// The last failure to make a sandbox.
    pub sandbox_failure: Option<Failure>,
    /// Per container.
    pub containers: BTreeMap<String, Memory>,
    /// The decided end: final.
    pub terminal: Option<Terminal>,
    /// Whether the terminal status is in the API.
    pub terminal_reported: bool,
    /// When SIGTERM was first asked for, so that the grace only shrinks.
    pub stopping_since: Option<Micros>,
}

impl Journal {
    /// The memory of a container, empty where there is none.
    #[must_use]
    pub fn of(&self, name: &str) -> Memory {
        self.containers.get(name).cloned().unwrap_or_default()
    }

    /// The memory of a container, for writing.
    pub fn of_mut(&mut self, name: &str) -> &mut Memory {
        self.containers.entry(name.to_owned()).or_default()
    }
}

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

fn micros(d: Duration) -> i64 {
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
    match (container.role, pod.restart) {
        (Role::Sidecar, _) => true,
        // An init container that is done is done, even with `Always`.
        (Role::Init, RestartPolicy::Always | RestartPolicy::OnFailure) => code != 0,
        (Role::App, RestartPolicy::Always) => true,
        (Role::App, RestartPolicy::OnFailure) => code != 0,
        (Role::Init | Role::App, RestartPolicy::Never) => false,
    }
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
    if !restartable(pod, container, *code) {
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
    for container in pod.containers() {
        let Some(newest) = observed.newest(&container.name) else { continue };
        let memory = journal.of_mut(&container.name);
        memory.restarts = memory.restarts.max(newest.restarts);
        let State::Exited { finished, .. } = newest.state else { continue };
        if memory.restart.is_some_and(|(_, at)| at == finished) {
            continue;
        }
        let ran =
            Duration::from_micros(if newest.started.0 > 0 { finished.since(newest.started) } else { 0 });
        let delay = restart_delay(memory.restart.map(|(d, _)| d), ran);
        memory.restart = Some((delay, finished));
        // What was pulled for the last start counts for that start only (`Always`).
        memory.image_ready = container.pull != PullPolicy::Always && memory.image_ready;
    }
}

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
                (State::Running, Role::Sidecar) => true,
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
        return terminate(pod, observed, journal, grace, now, true);
    }
    if journal.terminal.is_some() || matches!(pod.stored_phase.as_str(), "Succeeded" | "Failed") {
        return terminate(pod, observed, journal, pod.grace, now, false);
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
    for container in wanted {
        bring_up(pod, container, observed, sandbox, journal, now, &mut plan);
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
            State::Running if i.hash == container.hash && i.sandbox == sandbox.id => return,
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

/// Takes everything down: apps in parallel, then sidecars in reverse order, then sandboxes.
fn terminate(
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
    let stored = matches!(pod.stored_phase.as_str(), "Succeeded" | "Failed");
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

/// Folds all waits into the earliest one.
fn one_wait(plan: Plan) -> Plan {
    let earliest =
        plan.iter().filter_map(|a| if let Action::WaitUntil(at) = a { Some(*at) } else { None }).min();
    let mut plan: Plan = plan.into_iter().filter(|a| !matches!(a, Action::WaitUntil(_))).collect();
    plan.extend(earliest.map(Action::WaitUntil));
    plan
}

#[cfg(test)]
mod tests;
