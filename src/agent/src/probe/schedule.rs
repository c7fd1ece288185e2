//! When each probe of a pod is asked, and what its answers come to. Pure: no clock, no I/O.
//!
//! A probe belongs to one instance of a container; another instance begins anew. `Startup` holds the
//! other two back until it has succeeded, and is then over; one that has failed for good, like a
//! failed `Liveness`, rests until the instance is gone. Results begin as bad (`Readiness`), good
//! (`Liveness`) and unknown (`Startup`). The first question comes exactly `initialDelaySeconds` after
//! the start: the kubelet's ticker may be a period late.

use crate::pod::core::{Instance, State, add};
use crate::pod::model::Container;
use crate::probe::spec::{Kind, Probe};
use podway_flow::Micros;
use std::collections::BTreeMap;
use std::time::Duration;

/// What an answer was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Good.
    Good,
    /// Good, but people should know.
    Warning(String),
    /// Bad, and why.
    Bad(String),
    /// The question could not be put: it counts for nothing.
    Error(String),
}

/// What an answer changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct News {
    /// Whether the probe's result is another one now.
    pub turned: bool,
    /// Whether people should be told: the first bad answer in a row, and the one that counts.
    pub tell: bool,
    /// Whether the container is to be killed.
    pub kill: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    result: Option<bool>,
    last: Option<bool>,
    run: u32,
    next: Micros,
    asking: bool,
}

impl Asked {
    fn new(kind: Kind, probe: &Probe, started: Micros, recalled: bool) -> Asked {
        let result = match kind {
            Kind::Startup => recalled.then_some(true),
            Kind::Readiness => Some(recalled),
            Kind::Liveness => Some(true),
        };
        Asked { result, last: None, run: 0, next: add(started, probe.delay), asking: false }
    }

    /// Whether it is never asked again.
    fn over(&self, kind: Kind) -> bool {
        match kind {
            Kind::Startup => self.result.is_some(),
            Kind::Readiness => false,
            Kind::Liveness => self.result == Some(false),
        }
    }
}

/// The probes of one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Care {
    id: String,
    asked: BTreeMap<Kind, Asked>,
}

/// The probes of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    containers: BTreeMap<String, Care>,
    /// What another agent had found: instance to (started, ready).
    recalled: BTreeMap<String, (bool, bool)>,
}

impl Probes {
    /// With what is known of instances from before a restart of the agent: `(id, started, ready)`.
    #[must_use]
    pub fn recalling(known: impl IntoIterator<Item = (String, bool, bool)>) -> Probes {
        let recalled = known.into_iter().map(|(id, started, ready)| (id, (started, ready))).collect();
        Probes { recalled, ..Probes::default() }
    }

    /// Takes note of the newest instance of a container.
    pub fn follow(&mut self, container: &Container, instance: &Instance) {
        let known = self.containers.get(&container.name).is_some_and(|c| c.id == instance.id);
        if known || instance.state != State::Running {
            return;
        }
        let (started, ready) = self.recalled.remove(&instance.id).unwrap_or_default();
        let asked = Kind::ALL.into_iter().filter_map(|kind| {
            let recalled = if kind == Kind::Startup { started } else { ready };
            let probe = container.care.probe(kind)?;
            Some((kind, Asked::new(kind, probe, instance.started, recalled)))
        });
        let care = Care { id: instance.id.clone(), asked: asked.collect() };
        self.containers.insert(container.name.clone(), care);
    }

    fn asked(&self, container: &Container, id: &str, kind: Kind) -> Option<&Asked> {
        self.containers.get(&container.name).filter(|c| c.id == id)?.asked.get(&kind)
    }

    fn result(&self, container: &Container, id: &str, kind: Kind) -> bool {
        container.care.probe(kind).is_none()
            || self.asked(container, id, kind).is_some_and(|a| a.result == Some(true))
    }

    /// Whether a running instance has started.
    #[must_use]
    pub fn started(&self, container: &Container, id: &str) -> bool {
        self.result(container, id, Kind::Startup)
    }

    /// Whether a running instance is ready.
    #[must_use]
    pub fn ready(&self, container: &Container, id: &str) -> bool {
        self.started(container, id) && self.result(container, id, Kind::Readiness)
    }

    /// Whether an answer on the way may be the first that makes an instance ready.
    #[must_use]
    pub fn may_turn(&self) -> bool {
        self.containers.values().any(|c| {
            c.asked
                .iter()
                .any(|(kind, a)| a.asking && *kind != Kind::Liveness && a.run == 0 && a.result != Some(true))
        })
    }

    /// Which of a running instance's probes are to be asked now, and when the next one is. A pod that
    /// is going down is asked only whether it is ready.
    pub fn due(
        &mut self,
        container: &Container,
        instance: &Instance,
        ending: bool,
        now: Micros,
    ) -> (Vec<Kind>, Option<Micros>) {
        let started = self.started(container, &instance.id);
        let (mut due, mut wake) = (Vec::new(), None::<Micros>);
        let care = self.containers.get_mut(&container.name).filter(|c| c.id == instance.id);
        for (kind, asked) in care.into_iter().flat_map(|c| c.asked.iter_mut()) {
            let waits = *kind != Kind::Startup && !started;
            let stops = ending && *kind != Kind::Readiness;
            if asked.asking || waits || stops || asked.over(*kind) {
                continue;
            }
            if asked.next <= now {
                asked.asking = true;
                // On its own beat, unless it was held back for more than one.
                let period = container.care.probe(*kind).map_or(Duration::ZERO, |p| p.period);
                if add(asked.next, period) <= now {
                    asked.next = now;
                }
                due.push(*kind);
            } else {
                wake = Some(wake.map_or(asked.next, |at| at.min(asked.next)));
            }
        }
        (due, wake)
    }

    /// Takes an answer; `None` for one of an instance that is no more.
    pub fn take(
        &mut self,
        container: &Container,
        id: &str,
        kind: Kind,
        answer: &Answer,
        now: Micros,
    ) -> Option<News> {
        let probe = container.care.probe(kind)?;
        let care = self.containers.get_mut(&container.name).filter(|c| c.id == id)?;
        let asked = care.asked.get_mut(&kind)?;
        asked.asking = false;
        asked.next = add(asked.next, probe.period).max(now);
        let good = match answer {
            Answer::Good | Answer::Warning(_) => true,
            Answer::Bad(_) => false,
            Answer::Error(_) => return Some(News { turned: false, tell: true, kill: false }),
        };
        if asked.last == Some(good) {
            asked.run = asked.run.saturating_add(1);
        } else {
            (asked.last, asked.run) = (Some(good), 1);
        }
        let enough = if good { probe.success } else { probe.failure };
        let tell = matches!(answer, Answer::Warning(_)) || (!good && (asked.run == 1 || asked.run == enough));
        if asked.run < enough {
            return Some(News { turned: false, tell, kill: false });
        }
        let turned = asked.result.replace(good) != Some(good);
        let kill = !good && kind != Kind::Readiness;
        Some(News { turned, tell, kill: kill && turned })
    }
}

#[cfg(test)]
mod tests;
