//! What is remembered of a pod between two runs of the core.

use crate::pod::core::observed::{Observed, State};
use crate::pod::core::restart::{add, micros};
use crate::pod::model::{Container, Pod};
use crate::pod::resize::Resize;
use crate::probe::schedule::Probes;
use podway_flow::Micros;
use std::collections::BTreeMap;
use std::time::Duration;

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
    /// The instance whose `postStart` is done.
    pub post_started: Option<String>,
    /// The instance that must go, for a probe or hook of it failed.
    pub killed: Option<Killed>,
}

/// An instance that must go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Killed {
    /// Its id.
    pub id: String,
    /// The probe's own grace; the pod's where there is none.
    pub grace: Option<Duration>,
    /// What it failed, e.g. `failed liveness probe`.
    pub why: &'static str,
}

impl Memory {
    /// Whether an instance was told to go for a probe or hook that failed.
    #[must_use]
    pub fn kills(&self, id: &str) -> bool {
        self.killed.as_ref().is_some_and(|k| k.id == id)
    }

    /// Whether nothing of `container`'s start is left to do for a running instance.
    #[must_use]
    pub fn is_up(&self, container: &Container, id: &str) -> bool {
        container.care.post_start.is_none() || self.post_started.as_deref() == Some(id)
    }
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

/// An end that the node gives a pod: it is short of something, or it goes down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The pod-level reason: `Evicted`, `Terminated`.
    pub reason: String,
    /// The pod-level message.
    pub message: String,
    /// What the pod has to end in, at most.
    pub grace: Duration,
    /// The message of the condition `DisruptionTarget`, if it has one.
    pub disruption: Option<String>,
}

/// What is remembered of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
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
    /// What the pod has to end in, where that is not its own to say.
    pub grace: Option<Duration>,
    /// The message of the condition `DisruptionTarget`.
    pub disruption: Option<String>,
    /// Whether the terminal status is in the API.
    pub terminal_reported: bool,
    /// What became of the wish for other resources.
    pub resize: Resize,
    /// What the probes found.
    pub probes: Probes,
    /// When SIGTERM was first asked for, so that the grace only shrinks.
    pub stopping_since: Option<Micros>,
}

impl Journal {
    /// What an agent that begins knows of a pod: from its object alone. The rest comes from the runtime
    /// ([`Journal::adopt`], and `note_exits` for the restart delays).
    #[must_use]
    pub fn recalled(pod: &Pod, seen: Micros) -> Journal {
        let status = pod.object.status.clone().unwrap_or_default();
        let started = status.start_time.as_ref().map_or(seen, |t| Micros(t.0.as_microsecond()));
        let mut journal = Journal { started, ..Journal::default() };
        let known = || {
            let debug = status.ephemeral_container_statuses.iter().flatten();
            status.container_statuses.iter().chain(&status.init_container_statuses).flatten().chain(debug)
        };
        for one in known() {
            journal.of_mut(&one.name).restarts = u32::try_from(one.restart_count).unwrap_or(0);
        }
        journal.probes = Probes::recalling(known().filter_map(|s| {
            let id = s.container_id.as_ref()?.rsplit('/').next()?;
            Some((id.to_owned(), s.started == Some(true), s.ready))
        }));
        // The grace began when the deletion was asked for, whoever was there to see it.
        journal.stopping_since = pod.deletion.map(|d| Micros(d.at.0.saturating_sub(micros(d.grace))));
        journal
    }

    /// Takes over what runs already: a hook that may have been done is not done twice.
    pub fn adopt(&mut self, observed: &Observed) {
        for instance in observed.containers.iter().filter(|c| c.state == State::Running) {
            self.of_mut(&instance.name).post_started = Some(instance.id.clone());
        }
    }

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
