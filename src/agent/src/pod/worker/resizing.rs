//! A worker's resize: takes a new wish to the node's ledger, and what is given to the cgroups. The pod's
//! cgroup is wide enough at each moment: it grows before its containers do, and shrinks after them.

use super::*;
use crate::pod::admission;
use crate::pod::ledger::Denied;
use crate::pod::resize::{self, Given};
use crate::pod::resources;
use crate::volumes::follow;

impl Worker {
    /// Asks for what the pod wants, if it is not what it has; true where something was given.
    pub(super) fn ask_for_more(&mut self) -> bool {
        let object = Arc::clone(&self.wish);
        let Some(spec) = object.spec.as_ref() else { return false };
        let over = self.pod.deletion.is_some() || self.journal.terminal.is_some();
        let wanted = resize::wanted(spec);
        if over || wanted == self.given {
            self.journal.resize.pending = None;
            return false;
        }
        match self.context.ledger.change(&self.pod.uid, admission::ask(spec)) {
            Ok(()) => {
                let old = std::mem::replace(&mut self.given, wanted);
                self.journal.resize.pending = None;
                for (name, had) in old {
                    if self.given.get(&name) != Some(&had) {
                        self.journal.resize.actual.entry(name).or_insert(had);
                    }
                }
                self.journal.resize.progress.get_or_insert_default();
                self.journal.resize.settled = false;
                true
            }
            Err(denied) => {
                if self.journal.resize.pending.as_ref() != Some(&denied) {
                    self.warn(&format!("Resize{}", denied.reason()), denied.message());
                }
                self.journal.resize.pending = Some(denied);
                false
            }
        }
    }

    /// Asks again after others gave something back.
    pub(super) fn rewish(&mut self) {
        if self.ask_for_more() {
            self.pod.object = resize::with(&self.wish, &self.given);
            self.changed |= self
                .pod
                .object
                .spec
                .iter()
                .flat_map(|s| s.volumes.iter().flatten())
                .any(follow::shows_fields);
        }
    }

    /// Whether what others give back may help.
    pub(super) fn deferred(&self) -> bool {
        matches!(self.journal.resize.pending, Some(Denied::Deferred(_)))
    }

    /// Does what was given. Returns when to ask again.
    pub(super) fn do_resize(&mut self, now: Micros) -> Option<Micros> {
        if self.journal.terminal.is_some() {
            // Whoever is over holds nothing, whatever ended it.
            self.held = None;
            return None;
        }
        if self.journal.resize.progress.is_none() || self.runs(&Key::Resize) {
            return None;
        }
        if let Some(at) = self.waits(&Key::Resize, now) {
            return Some(at);
        }
        let behind: Vec<String> = self.journal.resize.actual.keys().cloned().collect();
        let running: Vec<_> = behind.iter().filter_map(|name| self.behind(name)).collect();
        if running.is_empty() && self.journal.resize.settled {
            if self.journal.resize.actual.is_empty() {
                self.journal.resize.progress = None;
            }
            return None;
        }
        let (context, pod, done) = (self.context.clone(), self.pod.clone(), self.given.clone());
        self.spawn(Key::Resize, Vec::new(), async move {
            Done::Resized(done, actions::resize(context, pod, running).await)
        });
        None
    }

    /// Takes over what doing it came to.
    pub(super) fn resized(&mut self, done: Given, result: Result<(), String>) -> bool {
        match result {
            Err(message) => {
                self.warn("ResizeError", &message);
                self.journal.resize.progress = Some(message);
                false
            }
            Ok(()) => {
                let now = &self.given;
                let replaced = &self.journal.resize.replaced;
                let left = std::mem::take(&mut self.journal.resize.actual).into_iter();
                let left = left.filter(|(n, _)| replaced.contains_key(n) || done.get(n) != now.get(n));
                self.journal.resize.actual = left.collect();
                self.journal.resize.settled = done == *now;
                self.journal.resize.progress = Some(String::new());
                true
            }
        }
    }

    /// What is to be done to a container that has not got what it was given: its id and its resources,
    /// or nothing where its next instance will have them.
    fn behind(&mut self, name: &str) -> Option<(String, v1::LinuxContainerResources)> {
        let given = cri_config::api_container(&self.pod, name).cloned();
        let newest = self.observed.newest(name).filter(|i| i.state == State::Running).cloned();
        let (Some(given), Some(instance)) = (given, newest) else {
            self.journal.resize.actual.remove(name);
            self.journal.resize.replaced.remove(name);
            return None;
        };
        match self.journal.resize.replaced.get(name) {
            Some(id) if *id == instance.id => return None,
            Some(_) => {
                self.journal.resize.replaced.remove(name);
                self.journal.resize.actual.remove(name);
                return None;
            }
            None => {}
        }
        let old = self.journal.resize.actual.get(name).cloned().unwrap_or_default();
        let new = given.resources.clone().unwrap_or_default();
        if resize::restarts(&given, &old, &new) {
            self.journal.resize.replaced.insert(name.to_owned(), instance.id.clone());
            let why = "resize requires restart";
            self.journal.of_mut(name).killed = Some(core::Killed { id: instance.id, grace: None, why });
            // The plan was made before: it is asked for again at once.
            self.changes.notify_one();
            return None;
        }
        let qos = cri_config::qos(&self.pod);
        Some((instance.id, resources::container(&given, qos, self.context.memory_capacity)))
    }
}
