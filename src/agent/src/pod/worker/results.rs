//! What a worker makes of what its tasks came to.

use super::report::FLOW_ATTEMPTS;
use super::*;

impl Worker {
    pub(super) fn done(&mut self, done: Result<(Id, Done), JoinError>) {
        let now = self.now();
        let (id, done) = match done {
            Ok((id, done)) => (id, Some(done)),
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(pod = %self.pod.uid, %error, "a step of a pod broke: a defect of the agent");
                }
                (error.id(), None)
            }
        };
        let Some(Running { key, .. }) = self.running.remove(&id) else { return };
        let ok = match done {
            // What it came to is not known.
            None => {
                if let Key::Probe(name, kind) = &key {
                    let id = self.observed.newest(name).map(|i| i.id.clone()).unwrap_or_default();
                    let broke = Answer::Error("a defect of the agent".to_owned());
                    self.answered(name, &id, *kind, &broke, now);
                }
                self.stale |= key.acts();
                false
            }
            Some(done) => self.result(done, now),
        };
        let error = self.last_error.take();
        if ok {
            self.retries.remove(&key);
            self.errors.remove(&key);
        } else {
            error.into_iter().for_each(|e| drop(self.errors.insert(key.clone(), e)));
            let limits = if key == Key::Volumes { MOUNT_RETRY } else { EFFECT_RETRY };
            let retry = later(self.retries.get(&key).copied(), now, limits);
            // Failures of these have their own delays, kept in the journal for people to see.
            if !matches!(key, Key::Sandbox | Key::Image(_) | Key::Container(_) | Key::Patch) {
                self.retries.insert(key, retry);
            }
        }
    }

    /// Takes a result over; false when it is to be tried again.
    fn result(&mut self, done: Done, now: Micros) -> bool {
        match done {
            Done::Devices(result) => {
                self.got_devices(result, now);
                true
            }
            Done::Sandbox(Outcomes { result, records }) => {
                self.start.absorb(records);
                match result {
                    Ok(made) => {
                        self.journal.sandbox_failure = None;
                        self.stale |= made.is_none();
                        made.into_iter().for_each(|s| self.observed.learn_sandbox(s));
                    }
                    Err(e) => {
                        self.stale = true;
                        self.warn(&e.reason, &e.message);
                        self.journal.sandbox_failure = Some(later_failure(e, BACKOFF_FIRST, now));
                    }
                }
                true
            }
            Done::Volumes(result, records) => self.mounted(result, records),
            Done::Image(container, outcomes) => {
                let Outcomes { result, records } = *outcomes;
                self.start.absorb(records);
                let memory = self.journal.of_mut(&container);
                match result {
                    Ok(image) => {
                        (memory.image_ready, memory.image_failure) = (true, None);
                        self.images.insert(container, image);
                    }
                    Err(e) => {
                        let delay = failure_delay(memory.image_failure.as_ref());
                        memory.image_failure = Some(later_failure(e.clone(), delay, now));
                        let image = self.pod.container(&container).map_or("", |c| c.image.as_str());
                        let failed = format!("Failed to pull image \"{image}\": {}", e.message);
                        match e.reason.as_str() {
                            "InvalidImageName" => self.warn("InspectFailed", &e.message),
                            "ErrImageNeverPull" => self.warn("ErrImageNeverPull", &e.message),
                            _ => self.warn("Failed", &failed),
                        }
                    }
                }
                true
            }
            Done::Container(container, Outcomes { result, records }) => {
                self.start.absorb(records);
                let init = self.pod.init.iter().any(|c| c.name == container);
                self.context.metrics.container(init, result.as_ref().err().map(|e| e.reason.as_str()));
                if result.is_ok() {
                    // Created goes without saying: each event is a write, and a start has room for 7 of them.
                    self.context.note(&self.pod, &container, "Started", "Container started".to_owned());
                }
                let memory = self.journal.of_mut(&container);
                match result {
                    Ok(started) => {
                        memory.start_failure = None;
                        self.stale |= started.is_none();
                        started.into_iter().for_each(|i| self.learn(i));
                    }
                    Err(e) => {
                        self.stale = true;
                        memory.start_failure = Some(later_failure(e.clone(), BACKOFF_FIRST, now));
                        self.warn("Failed", &format!("Error: {}", e.message));
                    }
                }
                true
            }
            Done::Took(result) => {
                match &result {
                    Err(_) | Ok(Took::Stopped(None)) => self.stale = true,
                    Ok(Took::Stopped(Some(instance))) => self.learn(instance.clone()),
                    Ok(Took::SandboxStopped(id)) => {
                        self.observed
                            .sandboxes
                            .iter_mut()
                            .filter(|s| s.id == *id)
                            .for_each(|s| s.ready = false);
                        // What ran in it was stopped with it.
                        self.stale |= self
                            .observed
                            .containers
                            .iter()
                            .any(|c| c.sandbox == *id && !matches!(c.state, State::Exited { .. }));
                    }
                    Ok(Took::SandboxRemoved(id)) => {
                        self.observed.sandboxes.retain(|s| s.id != *id);
                        self.observed.containers.retain(|c| c.sandbox != *id);
                    }
                    Ok(Took::Removed(id)) => self.observed.containers.retain(|c| c.id != *id),
                }
                self.logged(result.map(drop).map_err(|e| e.message), "take a part of it down")
            }
            Done::Probe { container, id, kind, answer } => {
                self.answered(&container, &id, kind, &answer, now);
                true
            }
            Done::PostStart { container, id, result } => {
                self.post_started(&container, id, result, now);
                true
            }
            Done::Unmounted(result) => {
                self.unmounted = result.is_ok();
                self.logged(result.map_err(|e| chain(&e)), "unmount its volumes")
            }
            Done::Resized(given, result) => self.resized(given, result),
            Done::Clean(logs, result) => {
                let ok = self.logged(result, "remove what was made for it");
                self.cleaned |= ok;
                self.removed |= ok && logs;
                ok
            }
            Done::Deleted(result) => {
                self.finished = result.is_ok();
                let ok = self.logged(result.map_err(|e| chain(&e)), "delete it from the API server");
                self.gone |= ok;
                ok
            }
            Done::Patched(result) => self.patched(result, now),
            Done::Flow { whole, audit, result } => {
                self.flow_made |= result.is_ok();
                if let Err(error) = &result {
                    let last = matches!(error, ApiError::Terminating);
                    self.flow_failures = if last { FLOW_ATTEMPTS } else { self.flow_failures + 1 };
                    self.flow_due = Some(whole || self.flow_due == Some(true));
                    if last {
                        return true;
                    }
                }
                if whole && result.is_ok() {
                    self.start.audit(audit);
                    self.start_is_over();
                }
                self.logged(result.map_err(|e| chain(&e)), "write its flow")
            }
        }
    }

    pub(super) fn logged(&mut self, result: Result<(), String>, what: &str) -> bool {
        if let Err(error) = &result {
            tracing::warn!(pod = %self.pod.uid, namespace = %self.pod.namespace, name = %self.pod.name, error, "cannot {what}");
        }
        self.last_error = result.as_ref().err().cloned();
        result.is_ok()
    }
}
