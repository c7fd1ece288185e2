//! What a pod that is going waits for, told as its condition `podway.dev/Terminating`: a pod that has
//! been "Terminating" for a minute names the container, the volume or the call that it waits for.
//!
//! It is told only of an end that has taken a second already, so that a quick one costs no write.

use super::*;
use crate::status::writer::Urgency;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use podway_flow::phase::CONDITION_PREFIX;
use podway_flow::record::bounded;

/// An end that takes no longer is not told of.
const QUICK: Duration = Duration::from_secs(1);
/// The longest message, in bytes.
const MESSAGE_LIMIT: usize = 1024;

/// A time as people read it.
fn clock(at: Micros) -> String {
    jiff::Timestamp::from_second(at.0.div_euclid(1_000_000)).unwrap_or_default().to_string()
}

impl Worker {
    /// Why `key` is not done: that it runs, or what its last try said.
    fn because(&self, key: &Key) -> Option<String> {
        match (self.errors.get(key), self.retries.get(key)) {
            (Some(error), Some(retry)) => Some(format!("{error}; tried again at {}", clock(retry.at))),
            (Some(error), None) => Some(error.clone()),
            (None, _) => self.runs(key).then(|| "the call has not been answered yet".to_owned()),
        }
    }

    /// What the end of the pod waits for: a reason and a message.
    pub(super) fn waits_for(&self) -> (&'static str, String) {
        let making = self.running.values().find_map(|r| match &r.key {
            Key::Sandbox => Some("the sandbox".to_owned()),
            Key::Volumes => Some("its volumes".to_owned()),
            Key::Image(c) => Some(format!("the image of container {c}")),
            Key::Container(c) => Some(format!("container {c}")),
            _ => None,
        });
        if let Some(what) = making {
            return ("StartNotOver", format!("waiting for what was begun: {what}"));
        }
        let mut waiting: Vec<String> = Vec::new();
        for instance in self.observed.containers.iter().filter(|c| c.live()) {
            let key = Key::Stop(instance.id.clone());
            let hook = self.pod.container(&instance.name).is_some_and(|c| c.care.pre_stop.is_some());
            let hook = if hook { ", its preStop hook included" } else { "" };
            let until = self.running.values().filter(|r| r.key == key).map(|r| r.deadline).min();
            waiting.push(match (until, self.errors.get(&key)) {
                (_, Some(error)) => format!("container {} ({error})", instance.name),
                (Some(at), None) => format!("container {} (until {}{hook})", instance.name, clock(at)),
                (None, None) => format!("container {} (after the others)", instance.name),
            });
        }
        if !waiting.is_empty() {
            return ("ContainersStopping", format!("waiting for the exit of {}", waiting.join(", ")));
        }
        for sandbox in &self.observed.sandboxes {
            let stop = self.because(&Key::StopSandbox(sandbox.id.clone()));
            if let Some(why) = stop.or_else(|| self.because(&Key::Remove(sandbox.id.clone()))) {
                return ("SandboxStopping", format!("waiting for sandbox {} to go: {why}", sandbox.id));
            }
        }
        if let Some(why) = self.because(&Key::Unmount) {
            return ("VolumesUnmounting", format!("waiting for the volumes to be unmounted: {why}"));
        }
        if let Some(why) = [true, false].iter().find_map(|logs| self.because(&Key::Clean(*logs))) {
            return ("Cleaning", format!("waiting for what was made for the pod to be removed: {why}"));
        }
        ("Stopping", "waiting for its parts to be taken down".to_owned())
    }

    /// Puts the condition into a status. `Err`: when it will be due.
    pub(super) fn tell_end(&self, status: &mut api::PodStatus, now: Micros) -> Option<Result<(), Micros>> {
        let since = self.end_since?;
        let due = add(since, QUICK);
        if now < due {
            return Some(Err(due));
        }
        let (reason, message) = self.waits_for();
        let type_ = format!("{CONDITION_PREFIX}Terminating");
        let conditions = status.conditions.get_or_insert_default();
        let before = conditions.iter().position(|c| c.type_ == type_).map(|at| conditions.remove(at));
        let since = before.and_then(|c| c.last_transition_time).unwrap_or_else(|| {
            Time(jiff::Timestamp::from_second(since.0.div_euclid(1_000_000)).unwrap_or_default())
        });
        conditions.push(api::PodCondition {
            type_,
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(bounded(&message, MESSAGE_LIMIT)),
            last_transition_time: Some(since),
            observed_generation: Some(self.pod.generation),
            ..api::PodCondition::default()
        });
        Some(Ok(()))
    }

    /// The processes' end is told: what is left is what the rest waits for.
    pub(super) fn report_end(&mut self, now: Micros) -> Option<Micros> {
        let mut status = self.writer.base().clone();
        match self.tell_end(&mut status, now)? {
            Err(due) => Some(due),
            Ok(()) => self.offer(status, None, Urgency::Soon, now),
        }
    }
}
