//! What a worker does for the care of a running container: it asks its probes and does its hooks.

use super::*;
use crate::metrics::probes::Series;
use crate::pod::core::Killed;
use crate::probe::run::{self, Target};
use crate::probe::schedule::Answer;
use crate::probe::spec::Kind;

impl Worker {
    /// Whom probes and hooks of a container are for.
    fn target(&self, container: &str, id: &str) -> Target {
        let address = if self.pod.host_network {
            self.context.node.ips.first()
        } else {
            self.observed.ready_sandbox().and_then(|s| s.ips.first())
        };
        Target {
            id: id.to_owned(),
            name: container.to_owned(),
            address: address.cloned().unwrap_or_default(),
        }
    }

    /// Asks the probes that are due. Returns when the next one is.
    pub(super) fn probe(&mut self, now: Micros) -> Option<Micros> {
        let ending = self.pod.deletion.is_some() || self.journal.terminal.is_some();
        let (mut wake, mut asked) = (None, Vec::new());
        for container in self.pod.containers() {
            let newest = self.observed.newest(&container.name).filter(|i| i.state == State::Running);
            let Some(instance) = newest else { continue };
            if !self.journal.of(&container.name).is_up(container, &instance.id) {
                continue;
            }
            self.journal.probes.follow(container, instance);
            let (due, next) = self.journal.probes.due(container, instance, ending, now);
            wake = earlier(wake, next);
            for kind in due {
                let probe = container.care.probe(kind).cloned();
                asked.extend(probe.map(|p| (container.name.clone(), instance.id.clone(), kind, p)));
            }
        }
        for (container, id, kind, probe) in asked {
            let (cri, target) = (self.context.cri.clone(), self.target(&container, &id));
            self.spawn(Key::Probe(container.clone(), kind), Vec::new(), async move {
                let answer = run::ask(&cri, &target, &probe).await;
                Done::Probe { container, id, kind, answer }
            });
        }
        wake
    }

    /// Takes a probe's answer.
    pub(super) fn answered(&mut self, name: &str, id: &str, kind: Kind, answer: &Answer, now: Micros) {
        let Some(container) = self.pod.container(name) else { return };
        self.context.metrics.probes.count(Series {
            uid: self.pod.uid.clone(),
            namespace: self.pod.namespace.clone(),
            pod: self.pod.name.clone(),
            container: name.to_owned(),
            kind: kind.word(),
            result: match answer {
                Answer::Good | Answer::Warning(_) => "successful",
                Answer::Bad(_) => "failed",
                Answer::Error(_) => "unknown",
            },
        });
        let Some(news) = self.journal.probes.take(container, id, kind, answer, now) else { return };
        let grace = container.care.probe(kind).and_then(|p| p.grace);
        if news.kill {
            self.journal.of_mut(name).killed = Some(Killed {
                id: id.to_owned(),
                grace,
                why: if kind == Kind::Startup { "failed startup probe" } else { "failed liveness probe" },
            });
        }
        if news.tell {
            let word = kind.word();
            match answer {
                Answer::Good => {}
                Answer::Warning(why) => self.warn("ProbeWarning", &format!("{word} probe warning: {why}")),
                Answer::Bad(why) => self.warn("Unhealthy", &format!("{word} probe failed: {why}")),
                Answer::Error(why) => self
                    .warn("Unhealthy", &format!("{word} probe errored and resulted in unknown state: {why}")),
            }
        }
    }

    /// Begins a container's `postStart`.
    pub(super) fn post_start(&mut self, container: &str, id: &str) {
        let hook = self.pod.container(container).and_then(|c| c.care.post_start.clone());
        let (Some(hook), key) = (hook, Key::PostStart(id.to_owned())) else { return };
        if self.runs(&key) {
            return;
        }
        let (cri, target) = (self.context.cri.clone(), self.target(container, id));
        let (container, id) = (container.to_owned(), id.to_owned());
        self.spawn(key, Vec::new(), async move {
            let result = run::hook(&cri, &target, &hook).await;
            Done::PostStart { container, id, result }
        });
    }

    /// Takes what a `postStart` came to: one that failed costs the container its life.
    pub(super) fn post_started(
        &mut self,
        container: &str,
        id: String,
        result: Result<Option<String>, String>,
        now: Micros,
    ) {
        match result {
            Ok(word) => {
                if let Some(word) = word {
                    self.warn("LifecycleHTTPFallback", &word);
                }
                self.journal.of_mut(container).post_started = Some(id);
            }
            Err(why) => {
                self.warn("FailedPostStartHook", "PostStartHook failed");
                let memory = self.journal.of_mut(container);
                memory.killed = Some(Killed { id, grace: None, why: "failed postStart hook" });
                let failed = Failed { reason: "PostStartHookError".to_owned(), message: why };
                memory.start_failure = Some(later_failure(failed, BACKOFF_FIRST, now));
            }
        }
    }

    /// How a container is stopped: with its `preStop` the first time, if there is time for one.
    pub(super) fn stopping(&mut self, id: &str, grace: Duration) -> stop::Stop {
        let found = self.observed.containers.iter().find(|c| c.id == id);
        let runs = found.is_some_and(|i| i.state == State::Running);
        let name = found.map(|i| i.name.clone()).unwrap_or_default();
        let sandbox = found.map(|i| i.sandbox.clone()).unwrap_or_default();
        let hook = self.pod.container(&name).and_then(|c| c.care.pre_stop.clone());
        let due = runs && !grace.is_zero();
        if runs && self.stopped.insert(id.to_owned()) {
            let ending = self.pod.deletion.is_some() || self.journal.terminal.is_some();
            // The words that people know (computePodActions of kuberuntime_manager.go).
            let text = match self.journal.of(&name).killed.filter(|k| k.id == id && !ending) {
                Some(killed) => format!("Container {name} {}, will be restarted", killed.why),
                None if ending => format!("Stopping container {name}"),
                None => format!("Container {name} definition changed, will be restarted"),
            };
            self.context.note(&self.pod, &name, "Killing", text);
        }
        let hook = hook.filter(|_| due && self.pre_stopped.insert(id.to_owned()));
        stop::Stop { target: self.target(&name, id), sandbox, grace, hook }
    }
}
