//! A start that is stuck: a phase has passed its limit (`podway_flow::stuck`). It is told once as an event, and
//! as the condition `podway.dev/Stuck` and a gauge until the pod gets on.
//!
//! Nobody polls: the worker wakes at the limit, if nothing happens before. A pod that is never stuck has neither
//! condition nor write of it.

use super::*;
use crate::metrics::Counted;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use podway_flow::record::bounded;
use podway_flow::stuck::{CONDITION, EVENT, GOT_ON, Waiting};

/// What was told of it.
#[derive(Debug, Default)]
pub(super) struct Stuck {
    /// By events.
    told: HashSet<(Phase, Option<String>)>,
    /// By the condition.
    condition: Option<api::PodCondition>,
    /// By the gauge.
    counted: Option<(Phase, Counted)>,
}

impl Worker {
    /// Puts the condition into a status that is of `flow`, the start so far; without one the start is over.
    /// Whether something is newly stuck, and when something may be next.
    pub(super) fn tell_stuck(
        &mut self,
        status: &mut api::PodStatus,
        flow: Option<&Flow>,
        now: Micros,
    ) -> (bool, Option<Micros>) {
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let over = ended || is_ready(Some(status)) || self.pod.deletion.is_some();
        let (all, next) = flow.filter(|_| !over).map_or((Vec::new(), None), |flow| {
            self.context.metrics.limits(|limits| {
                let deadline = podway_flow::stuck::deadline(flow, limits, now);
                (podway_flow::stuck::judge(flow, limits, now), deadline)
            })
        });
        for one in &all {
            if self.stuck.told.insert((one.phase, one.subject.clone())) {
                self.warn(EVENT, &bounded(&one.line(now), Record::MESSAGE_LIMIT));
            }
        }
        let worst = all.first();
        let phase = worst.map(|w| w.phase);
        if phase != self.stuck.counted.as_ref().map(|(phase, _)| *phase) {
            self.stuck.counted = phase.map(|phase| (phase, self.context.metrics.stuck(phase)));
        }
        (self.put_stuck(status, worst, now), next)
    }

    /// Whether it has become true.
    fn put_stuck(&mut self, status: &mut api::PodStatus, worst: Option<&Waiting>, now: Micros) -> bool {
        let type_ = CONDITION.to_owned();
        let conditions = status.conditions.get_or_insert_default();
        // What is stored may be of an agent before this one.
        let stored = conditions.iter().position(|c| c.type_ == type_).map(|at| conditions.remove(at));
        let before = self.stuck.condition.take().or(stored);
        let was = before.as_ref().is_some_and(|c| c.status == "True");
        let same = |w: &Waiting, c: &api::PodCondition| c.reason.as_deref() == Some(w.phase.name());
        // Its line would be another with every look: it is told as it was when it became true.
        let (value, reason, message) = match (worst, &before) {
            (Some(w), Some(c)) if was && same(w, c) => ("True", w.phase.name(), c.message.clone()),
            (Some(w), _) => ("True", w.phase.name(), Some(bounded(&w.line(now), Record::MESSAGE_LIMIT))),
            (None, Some(_)) => ("False", GOT_ON, None),
            (None, None) => return false,
        };
        let moved = was != worst.is_some();
        let since = before.and_then(|c| c.last_transition_time).filter(|_| !moved);
        let condition = api::PodCondition {
            type_,
            status: value.to_owned(),
            reason: Some(reason.to_owned()),
            message,
            last_transition_time: Some(since.unwrap_or_else(|| {
                Time(jiff::Timestamp::from_second(now.0.div_euclid(1_000_000)).unwrap_or_default())
            })),
            observed_generation: Some(self.pod.generation),
            ..api::PodCondition::default()
        };
        conditions.push(condition.clone());
        self.stuck.condition = Some(condition);
        moved && worst.is_some()
    }
}
