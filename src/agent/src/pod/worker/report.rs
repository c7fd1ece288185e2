//! What a worker tells: the status, the flow, warnings, and the view of the kubelet API. It acts on
//! nothing of the pod.

use super::{Done, Key, Worker, earlier, is_ready};
use crate::api::ApiError;
use crate::pod::actions::chain;
use crate::pod::core::{State, add};
use crate::pod::start::record;
use crate::pod::{cri_config, status};
use crate::source::{ContainerView, PodView};
use crate::status::writer::{Step, Urgency};
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use podway_flow::otlp::PARENT_ANNOTATION;
use podway_flow::phase::CONDITION_PREFIX;
use podway_flow::{Flow, Micros, Outcome, Phase, Record};
use std::sync::Arc;
use std::time::Duration;

/// How long a start waits for the API server's audit log before its flow is written without it.
const AUDIT_PATIENCE: Duration = Duration::from_millis(500);
/// A flow of a pod that is on its way is first written after this long.
const FLOW_FIRST: Duration = Duration::from_secs(3);
/// A flow of a pod that does not get on is written again only after this long.
const FLOW_AGAIN: Duration = Duration::from_secs(10);
/// A flow that cannot be written this often (the CRD is not there) is given up: the pod matters more.
pub(super) const FLOW_ATTEMPTS: u32 = 8;

impl Worker {
    pub(super) fn warn(&self, reason: &str, message: &str) {
        self.context.tell(&self.pod, reason, message);
    }

    pub(super) fn patched(&mut self, result: Result<Box<api::Pod>, ApiError>, now: Micros) -> bool {
        let object = match result {
            Ok(object) => Arc::new(*object),
            Err(error) => {
                self.writer.failed(now);
                return self.logged(Err(chain(&error)), "write its status");
            }
        };
        let took = self.writer.written(object.status.clone().unwrap_or_default(), now);
        self.context.metrics.status_write(took);
        let version = object.metadata.resource_version.clone().unwrap_or_default();
        let phase = object.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
        let ready = is_ready(object.status.as_ref());
        self.object(object, false);
        if matches!(phase.as_str(), "Succeeded" | "Failed") {
            self.journal.terminal_reported = true;
        }
        if ready {
            self.ready_at.get_or_insert(now);
        }
        // A container may be seen to run before its start was answered: the report after the answer seals.
        let open = self.told.iter().flat_map(|told| &told.records).any(|r| r.outcome == Outcome::Running);
        let whole = (ready && !open) || self.journal.terminal_reported;
        if whole
            && !self.start.closed()
            && let Some(told) = self.told.take()
        {
            let now = self.ready_at.unwrap_or(now);
            let offered = self.told_ready.unwrap_or(now);
            let mut reported = record(Phase::StatusReported, None, offered, Some(now), "Reported");
            reported.evidence.insert("resourceVersion".to_owned(), version);
            let mut last = vec![reported];
            if ready {
                last.push(record(Phase::Ready, None, now, Some(now), "Ready"));
            }
            self.start.seal(told, last);
        }
        self.flow_due = Some(whole || self.flow_due == Some(true));
        true
    }

    /// Writes the flow: whole when the start is over, and while a pod does not get on now and then.
    pub(super) fn tell_flow(&mut self, now: Micros) -> Option<Micros> {
        let whole = self.flow_due?;
        // A pod that goes takes its flow along: nobody makes one for it.
        if self.flow_told || (self.pod.deletion.is_some() && !self.flow_made) {
            self.flow_due = None;
            return None;
        }
        let annotations = self.pod.object.metadata.annotations.as_ref();
        let off =
            annotations.and_then(|a| a.get(podway_api::annotations::PODFLOW)).is_some_and(|v| v == "off");
        if !self.context.podflow || off || self.flow_failures >= FLOW_ATTEMPTS {
            self.flow_due = None;
            if whole {
                self.start_is_over();
            }
            return None;
        }
        if self.runs(&Key::Flow) {
            return None;
        }
        let early = self.flow_written.map_or(add(self.born, FLOW_FIRST), |at| add(at, FLOW_AGAIN));
        let early = Some(early).filter(|at| !whole && now < *at);
        if let Some(at) = early.or(self.waits(&Key::Flow, now)) {
            return Some(at);
        }
        let slot = self.flow_slot.take();
        if !whole {
            let slot = slot.unwrap_or_else(|| self.context.pace.slot(now));
            if now < slot.at() {
                return Some(self.flow_slot.insert(slot).at());
            }
            slot.used();
        }
        self.flow_due = None;
        self.flow_written = Some(now);
        let mut start = match &self.told {
            Some(told) if !whole => self.start.clone().of(told.clone()),
            _ => self.start.clone(),
        };
        let told = conditions(self.pod.object.status.as_ref());
        let (context, create) = (self.context.clone(), !self.flow_made);
        self.spawn(Key::Flow, Vec::new(), async move {
            let mut audit = Vec::new();
            if let Some(log) = &context.audit {
                let pod = start.pod().clone();
                let patience = if whole { AUDIT_PATIENCE } else { Duration::ZERO };
                match log.find(&pod.namespace, &pod.name, &pod.uid, patience).await {
                    Ok(records) => audit = records,
                    Err(error) => {
                        tracing::warn!(%error, "the audit log cannot be read: steps 1 to 3 stay coarse")
                    }
                }
            }
            start.audit(audit.clone());
            let result = context.api.write_flow(&start.flow([]), &told, create).await;
            Done::Flow { whole, audit, result }
        });
        None
    }

    /// The whole flow is known: it is counted, and its trace goes.
    pub(super) fn start_is_over(&mut self) {
        let flow = self.start.flow([]);
        self.context.metrics.flow(&flow);
        if let Some(traces) = &self.context.traces {
            let annotations = self.pod.object.metadata.annotations.as_ref();
            traces.offer(flow, annotations.and_then(|a| a.get(PARENT_ANNOTATION)).map(String::as_str));
        }
        self.flow_told = true;
    }

    fn open(&self) -> Vec<Record> {
        self.running.values().flat_map(|r| r.open.iter().cloned()).collect()
    }

    /// The status, and the flow behind its conditions.
    fn status(&self, now: Micros) -> (api::PodStatus, Option<Flow>) {
        let of = |flow: Option<&podway_flow::Flow>| {
            let (node, uid) = (&self.context.node, &self.pod.uid);
            let mut status = status::of(&self.pod, &self.observed, &self.journal, flow, node, now);
            self.context.devices.show(uid, &mut status);
            status
        };
        if self.start.closed() {
            return (of(None), None);
        }
        let flow = self.start.flow(self.open());
        let status = of(Some(&flow));
        let terminal = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if !is_ready(Some(&status)) && !terminal {
            return (status, Some(flow));
        }
        // Whoever reads that it was reported reads it in the report.
        let mut with = flow.clone();
        with.records.push(record(Phase::StatusReported, None, now, Some(now), "Reported"));
        (of(Some(&with)), Some(flow))
    }

    /// Tells how the pod stands.
    pub(super) fn report(&mut self, now: Micros) -> Option<Micros> {
        let stored = self.pod.stored_over();
        if self.gone || self.runs(&Key::Delete) {
            return None;
        }
        if self.pod.deletion.is_some() {
            self.end_since.get_or_insert(now);
        }
        if stored || self.journal.terminal_reported {
            return self.report_end(now);
        }
        let (mut status, flow) = self.status(now);
        let slow = self.tell_end(&mut status, now);
        let (stuck, limit) = self.tell_stuck(&mut status, flow.as_ref(), now);
        if is_ready(Some(&status)) {
            self.told_ready.get_or_insert(now);
        }
        let phase = status.phase.as_deref().unwrap_or_default();
        let failed = self.journal.sandbox_failure.is_some()
            || self.retries.contains_key(&Key::Volumes)
            || self
                .journal
                .containers
                .values()
                .any(|m| m.image_failure.is_some() || m.start_failure.is_some());
        let urgency = match phase {
            "Succeeded" | "Failed" => Urgency::Now,
            // Its end is what people wait for; what changes on the way there goes along with it.
            _ if slow == Some(Ok(())) => Urgency::Soon,
            _ if stuck => Urgency::Soon,
            _ if self.pod.deletion.is_some() => Urgency::Rest,
            // The first answer of a probe may be about to change it again.
            _ if self.settled && !self.journal.probes.may_turn() => Urgency::Now,
            // Until what was begun is done the pod is on its way, also when its processes run already.
            _ if !failed && (phase == "Pending" || self.running.values().any(|r| r.key.makes())) => {
                Urgency::Later
            }
            _ => Urgency::Soon,
        };
        self.warn_of_crashes(&status);
        let due = earlier(slow.and_then(Result::err), limit);
        earlier(self.offer(status, flow, urgency, now), due)
    }

    /// Offers a status to the writer and begins a write that is due.
    pub(super) fn offer(
        &mut self,
        status: api::PodStatus,
        flow: Option<Flow>,
        urgency: Urgency,
        now: Micros,
    ) -> Option<Micros> {
        self.last_status = Some(status.clone());
        self.writer.offer(status, urgency, now);
        match self.writer.step(now) {
            Step::Idle => None,
            Step::Wait(at) => Some(at),
            Step::Write(patch) => {
                self.told = flow.or(self.told.take());
                let context = self.context.clone();
                let (namespace, name) = (self.pod.namespace.clone(), self.pod.name.clone());
                let whole = self.last_status.clone().unwrap_or_default();
                self.spawn(Key::Patch, Vec::new(), async move {
                    let written = context.api.patch_status(&namespace, &name, patch, &whole).await;
                    Done::Patched(written.map(Box::new))
                });
                None
            }
        }
    }

    fn warn_of_crashes(&mut self, status: &api::PodStatus) {
        let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
        let waiting = |s: &api::ContainerStatus| {
            let state = s.state.as_ref()?.waiting.as_ref()?;
            (state.reason.as_deref() == Some("CrashLoopBackOff")).then(|| s.name.clone())
        };
        for name in all.filter_map(waiting).collect::<Vec<_>>() {
            let restarts = self.observed.newest(&name).map_or(0, |i| i.restarts);
            if self.warned.insert((name.clone(), restarts)) {
                let text = format!(
                    "Back-off restarting failed container {name} in pod {}_{}({})",
                    self.pod.name, self.pod.namespace, self.pod.uid
                );
                self.warn("BackOff", &text);
            }
        }
    }

    pub(super) fn publish(&mut self) {
        let object = self.shown();
        let logs = cri_config::log_directory(&self.context.pod_logs_dir, &self.pod);
        let mut containers: Vec<ContainerView> = Vec::new();
        for container in self.pod.everyone() {
            containers.extend(self.observed.history(&container.name).into_iter().map(|i| ContainerView {
                name: i.name.clone(),
                id: i.id.clone(),
                restarts: i.restarts,
                log_path: logs.join(cri_config::log_path(&i.name, i.restarts)),
                running: i.state == State::Running,
            }));
        }
        let flow = self.start.shown(self.open());
        self.view.send_replace(Arc::new(PodView { object, containers, flow }));
    }

    /// The object with the status as it was last computed; once the API server has that one, its own.
    fn shown(&mut self) -> Arc<api::Pod> {
        let status = self.last_status.take();
        if status.is_none() || status == self.pod.object.status {
            return Arc::clone(&self.pod.object);
        }
        Arc::new(api::Pod { status, ..(*self.pod.object).clone() })
    }
}

/// The phases' conditions of a pod by the names that they have in its `PodFlow`.
fn conditions(status: Option<&api::PodStatus>) -> Vec<Condition> {
    let all = status.into_iter().flat_map(|s| s.conditions.iter().flatten());
    all.filter_map(|c| {
        let name = match c.type_.strip_prefix(CONDITION_PREFIX) {
            Some(phase) => phase,
            None if c.type_ == "Ready" => "Ready",
            None => return None,
        };
        Some(Condition {
            type_: name.to_owned(),
            status: c.status.clone(),
            reason: c.reason.clone().unwrap_or_default(),
            message: c.message.clone().unwrap_or_default(),
            last_transition_time: c.last_transition_time.clone()?,
            observed_generation: c.observed_generation,
        })
    })
    .collect()
}
