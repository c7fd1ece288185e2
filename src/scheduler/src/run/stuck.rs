//! A pod that gets no node: it has waited three times as long as 99 of 100 did, or for a minute
//! (`podway_flow::stuck`). Only the scheduler can tell, since no agent has it.
//!
//! It is told once, as an event and as the condition `podway.dev/Stuck`, and counted as long as it waits; the
//! condition is taken back when the pod is bound. Nobody polls: the loop wakes when the oldest one's time is over.

use super::Scheduler;
use crate::queue::QueuedPod;
use crate::status::Notice;
use podway_api::reasons::UNSCHEDULABLE;
use podway_flow::stuck::{Limits, Waiting};
use podway_flow::{Micros, Phase, Record, record::bounded};

/// After how many pods the limit is computed anew.
const ANEW: u32 = 16;

/// How long a pod may wait, as learned from those before.
pub(super) struct Patience {
    limits: Limits,
    learned: u32,
    /// In µs.
    limit: u64,
}

impl Default for Patience {
    fn default() -> Self {
        let limits = Limits::default();
        Patience { limit: limits.limit(Phase::Queued), limits, learned: 0 }
    }
}

impl Patience {
    /// A pod got its node after so many µs.
    pub(super) fn learn(&mut self, micros: u64) {
        self.limits.took(Phase::Queued, micros);
        self.learned = self.learned.wrapping_add(1);
        if self.learned.is_multiple_of(ANEW) {
            self.limit = self.limits.limit(Phase::Queued);
        }
    }

    fn limit(&self) -> i64 {
        i64::try_from(self.limit).unwrap_or(i64::MAX)
    }
}

impl Scheduler {
    /// When the next pod will have waited too long.
    pub(super) fn next_stuck(&self) -> Option<Micros> {
        let since = self.queue.longest()?;
        Some(Micros(since.0.saturating_add(self.patience.limit()).saturating_add(1)))
    }

    /// Tells of those that have.
    pub(super) fn tell_stuck(&mut self, now: Micros) {
        // Before the lists are complete nobody could get a node.
        if !self.synced() || self.next_stuck().is_none_or(|at| at > now) {
            return;
        }
        let since = Micros(now.0.saturating_sub(self.patience.limit()));
        for queued in self.queue.take_stuck(since) {
            let line = bounded(&waiting(&queued, self.patience.limit).line(now), Record::MESSAGE_LIMIT);
            self.notify(Notice::Stuck(queued.pod, Some(line)));
        }
    }
}

/// What it waits for: what its condition says, once that was written and seen.
fn waiting(queued: &QueuedPod, limit: u64) -> Waiting {
    let said = queued.pod.condition.as_ref().filter(|c| c.status == "False");
    let (reason, message) = match said {
        Some(said) => (said.reason.clone(), said.message.clone()),
        None if queued.rejecting.is_empty() => ("NotDecided".to_owned(), String::new()),
        None => {
            let plugins: Vec<&str> = queued.rejecting.iter().copied().collect();
            (UNSCHEDULABLE.to_owned(), format!("refused by {}", plugins.join(", ")))
        }
    };
    Waiting {
        phase: Phase::Queued,
        subject: None,
        since: queued.waits_since,
        attempt: queued.attempts,
        reason,
        message,
        failed: queued.failures > 0,
        limit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PodInfo, ScheduledCondition};
    use crate::queue::Queue;
    use std::collections::BTreeSet;
    use std::sync::Arc;

    #[test]
    fn the_limit_is_a_minute_until_enough_was_learned() {
        let mut patience = Patience::default();
        assert_eq!(patience.limit(), 60_000_000);
        (0..16).for_each(|_| patience.learn(2_000_000));
        assert_eq!(patience.limit(), 60_000_000, "of 16 nothing can be said");
        (0..16).for_each(|_| patience.learn(2_000_000));
        assert_eq!(patience.limit(), 6_000_000);
        (0..256).for_each(|_| patience.learn(900));
        assert_eq!(patience.limit(), 1_000_000, "never below a second");
    }

    #[test]
    fn the_line_says_why_as_the_pods_condition_does() {
        let mut queue = Queue::default();
        queue.upsert(Arc::new(PodInfo { uid: "u".into(), ..PodInfo::default() }), Micros(0));
        let line = |queued: &QueuedPod| waiting(queued, 1_000_000).line(Micros(2_500_000));
        let mut queued = queue.pop(Micros(0)).unwrap();
        assert_eq!(line(&queued), "Queued for 2.5 s (limit 1.0 s): NotDecided");
        queued.rejecting = BTreeSet::from(["NodeAffinity", "NodePorts"]);
        assert_eq!(
            line(&queued),
            "Queued for 2.5 s (limit 1.0 s): Unschedulable: refused by NodeAffinity, NodePorts"
        );
        let condition = ScheduledCondition {
            status: "False".into(),
            reason: "Unschedulable".into(),
            message: "0/1 nodes are available".into(),
            ..ScheduledCondition::default()
        };
        queued.pod = Arc::new(PodInfo { condition: Some(condition), ..PodInfo::default() });
        queued.attempts = 3;
        assert_eq!(
            line(&queued),
            "Queued for 2.5 s (try 3, limit 1.0 s): Unschedulable: 0/1 nodes are available"
        );
    }
}
