//! What a pod waits for, and whether it has waited too long: a phase is stuck once it has passed three
//! times its 99th percentile, as learned from the pods before, or its fixed limit, whichever comes first.
//!
//! Pure. Nobody polls: [`deadline`] says when to ask [`judge`] again, if nothing else happens before.

use crate::{Flow, Micros, Outcome, Phase, Record};
use std::collections::{BTreeMap, VecDeque};

/// How many durations of a phase are remembered.
const REMEMBERED: usize = 256;
/// How many it takes before they say what is usual.
const ENOUGH: usize = 20;
/// How often its p99 a phase may take.
const FACTOR: u64 = 3;
/// The condition of a pod that is stuck; its reason is the phase.
pub const CONDITION: &str = "podway.dev/Stuck";
/// The condition's reason once the pod has got on.
pub const GOT_ON: &str = "GotOn";
/// The event's reason.
pub const EVENT: &str = "PodStuck";
/// Below this nothing is called stuck, however quick it usually is: a person would not see it.
pub const FLOOR_MICROS: u64 = 1_000_000;

/// What is usual for each phase.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    seen: BTreeMap<Phase, VecDeque<u64>>,
}

impl Limits {
    /// Learns from each phase of a flow that ended well. Meant to be told of a pod once, when it is Ready.
    pub fn learn(&mut self, flow: &Flow) {
        for phase in Phase::ALL {
            if let Some(took) = crate::numbers::stats::duration(flow, phase) {
                self.took(phase, took);
            }
        }
    }

    /// Learns that a phase took so many µs.
    pub fn took(&mut self, phase: Phase, micros: u64) {
        let seen = self.seen.entry(phase).or_default();
        if seen.len() == REMEMBERED {
            seen.pop_front();
        }
        seen.push_back(micros);
    }

    /// What is usual among `flows`.
    #[must_use]
    pub fn of(flows: &[Flow]) -> Self {
        let mut limits = Limits::default();
        flows.iter().filter(|flow| crate::numbers::ready_in(flow).is_some()).for_each(|f| limits.learn(f));
        limits
    }

    /// How long a phase may take before it is stuck, in µs.
    #[must_use]
    pub fn limit(&self, phase: Phase) -> u64 {
        let fixed = fixed(phase);
        // How long a program takes to be Ready is its own affair, and differs from one to the next.
        let learns = phase != Phase::Ready;
        let seen = self.seen.get(&phase).filter(|seen| learns && seen.len() >= ENOUGH);
        let Some(seen) = seen else { return fixed };
        let usual = crate::numbers::Quantiles::of(seen.iter().copied().collect());
        usual.map_or(fixed, |q| q.p99_micros.saturating_mul(FACTOR).clamp(FLOOR_MICROS, fixed))
    }
}

/// The limit where nothing was learned, in µs: what waits for people or for the network has more.
const fn fixed(phase: Phase) -> u64 {
    const SECOND: u64 = 1_000_000;
    match phase {
        Phase::Queued | Phase::Ready => 60 * SECOND,
        Phase::ImagesPulled => 120 * SECOND,
        Phase::VolumesMounted | Phase::NetworkConfigured => 15 * SECOND,
        Phase::SandboxCreated
        | Phase::RootfsPrepared
        | Phase::ContainersCreated
        | Phase::ContainersStarted
        | Phase::StatusReported => 10 * SECOND,
        _ => 5 * SECOND,
    }
}

/// Something that a pod waits for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The phase.
    pub phase: Phase,
    /// What of the pod.
    pub subject: Option<String>,
    /// Since when: the first attempt's start; or the end of what went before, for a phase not begun.
    pub since: Micros,
    /// The attempt.
    pub attempt: u32,
    /// Why, in a word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// Whether the last attempt failed, so that it waits for the next.
    pub failed: bool,
    /// How long it may take, in µs.
    pub limit: u64,
}

impl Waiting {
    /// Whether the limit has passed.
    #[must_use]
    pub fn is_stuck(&self, now: Micros) -> bool {
        now.since(self.since) > self.limit
    }

    /// One line: `ImagesPulled of app for 95.2 s (try 3, limit 15.0 s): ErrImagePull: …`.
    #[must_use]
    pub fn line(&self, now: Micros) -> String {
        let of = self.subject.as_ref().map_or_else(String::new, |subject| format!(" of {subject}"));
        let attempt = if self.attempt > 1 { format!("try {}, ", self.attempt) } else { String::new() };
        let message = if self.message.is_empty() { String::new() } else { format!(": {}", self.message) };
        let age = seconds(now.since(self.since));
        format!(
            "{}{of} for {age} ({attempt}limit {}): {}{message}",
            self.phase,
            seconds(self.limit),
            self.reason
        )
    }
}

/// µs as seconds with one decimal.
#[must_use]
pub fn seconds(micros: u64) -> String {
    format!("{}.{} s", micros / 1_000_000, micros % 1_000_000 / 100_000)
}

/// What a pod waits for, the longest first; nothing once it is Ready.
#[must_use]
pub fn waiting(flow: &Flow, limits: &Limits) -> Vec<Waiting> {
    // A status that was reported without the pod being Ready is that of one at its end.
    let over = flow.summary(Phase::StatusReported).is_some_and(|s| s.end.is_some());
    if flow.records.is_empty() || over || crate::numbers::ready_in(flow).is_some() {
        return Vec::new();
    }
    let is_last = |r: &&Record| !flow.records.iter().any(|o| same(o, r) && o.attempt > r.attempt);
    let open = |r: &&Record| matches!(r.outcome, Outcome::Running | Outcome::Failed);
    let mut all: Vec<Waiting> = flow
        .records
        .iter()
        .filter(open)
        .filter(is_last)
        .map(|r| Waiting {
            phase: r.phase,
            subject: r.subject.clone(),
            since: flow.records.iter().filter(|o| same(o, r)).map(|o| o.start).min().unwrap_or(r.start),
            attempt: r.attempt,
            reason: r.reason.clone(),
            message: r.message.clone(),
            failed: r.outcome == Outcome::Failed,
            limit: limits.limit(r.phase),
        })
        .collect();
    if all.is_empty() {
        all.extend(not_begun(flow, limits));
    }
    all.sort_by_key(|w| (w.since, w.phase));
    all
}

fn same(a: &Record, b: &Record) -> bool {
    a.phase == b.phase && a.subject == b.subject
}

/// Nothing runs and nothing failed: the phase after the last one has not begun.
fn not_begun(flow: &Flow, limits: &Limits) -> Option<Waiting> {
    let last = flow.records.iter().map(|r| r.phase).max()?;
    // The report comes with the end; what a pod waits for before it is to be Ready.
    let next = *Phase::ALL.iter().find(|&&phase| phase > last)?;
    let phase = if next == Phase::StatusReported { Phase::Ready } else { next };
    Some(Waiting {
        phase,
        subject: None,
        since: flow.records.iter().filter_map(|r| r.end).max()?,
        attempt: 1,
        reason: crate::conditions::NOT_BEGUN.to_owned(),
        message: format!("{last} was the last to be recorded"),
        failed: false,
        limit: limits.limit(phase),
    })
}

/// What of it has passed its limit.
#[must_use]
pub fn judge(flow: &Flow, limits: &Limits, now: Micros) -> Vec<Waiting> {
    waiting(flow, limits).into_iter().filter(|w| w.is_stuck(now)).collect()
}

/// When the next of it passes its limit; `None` if nothing is waited for, or all of it is stuck.
#[must_use]
pub fn deadline(flow: &Flow, limits: &Limits, now: Micros) -> Option<Micros> {
    let at = |w: Waiting| {
        Micros(w.since.0.saturating_add(i64::try_from(w.limit).unwrap_or(i64::MAX)).saturating_add(1))
    };
    waiting(flow, limits).into_iter().filter(|w| !w.is_stuck(now)).map(at).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn after(flow: &Flow, micros: i64) -> Micros {
        Micros(flow.records.iter().map(|r| r.start.0).min().unwrap() + micros)
    }

    #[test]
    fn a_running_phase_is_stuck_the_moment_it_passes_its_limit() {
        let flow = samples::stuck();
        let limits = Limits::default();
        let network = &waiting(&flow, &limits)[0];
        assert_eq!((network.phase, network.limit), (Phase::NetworkConfigured, 15_000_000));
        let end = Micros(network.since.0 + 15_000_000);
        assert_eq!(judge(&flow, &limits, end), vec![]);
        let next = deadline(&flow, &limits, end).unwrap();
        assert_eq!(next.since(end), 1);
        assert_eq!(judge(&flow, &limits, next).len(), 1);
        assert_eq!(deadline(&flow, &limits, next), None);
        assert_eq!(
            network.line(Micros(network.since.0 + 20_000_000)),
            "NetworkConfigured for 20.0 s (limit 15.0 s): Running"
        );
    }

    #[test]
    fn a_failed_attempt_is_waited_for_since_the_first() {
        let mut flow = samples::stuck();
        flow.records.retain(|r| r.phase == Phase::ImagesPulled);
        let start = flow.records[0].start;
        flow.records[1].outcome = Outcome::Failed;
        let pull = &waiting(&flow, &Limits::default())[0];
        assert_eq!((pull.since, pull.attempt, pull.failed), (start, 2, true));
        assert!(pull.line(after(&flow, 200_000_000)).starts_with("ImagesPulled of app for 200.0 s (try 2, "));
    }

    #[test]
    fn what_is_usual_is_learned_and_never_below_a_second() {
        let mut limits = Limits::of(&vec![samples::whole(); ENOUGH - 1]);
        assert_eq!(limits.limit(Phase::ContainersCreated), 10_000_000);
        limits.learn(&samples::whole());
        assert_eq!(limits.limit(Phase::ContainersCreated), FLOOR_MICROS);
        let mut slow = samples::whole();
        let created = slow.records.iter_mut().filter(|r| r.phase == Phase::ContainersCreated);
        created.for_each(|r| r.end = Some(Micros(r.start.0 + 2_000_000)));
        for _ in 0..REMEMBERED {
            limits.learn(&slow);
        }
        // Both parts take 2 s and begin 17.3 ms apart: three times that.
        assert_eq!(limits.limit(Phase::ContainersCreated), 3 * 2_017_300);
        assert_eq!(limits.limit(Phase::Queued), FLOOR_MICROS);
    }

    #[test]
    fn a_ready_pod_waits_for_nothing_and_a_gap_is_the_next_phases() {
        assert_eq!(waiting(&samples::whole(), &Limits::default()), vec![]);
        assert_eq!(waiting(&Flow::default(), &Limits::default()), vec![]);
        let mut bound = samples::whole();
        bound.records.retain(|r| r.phase <= Phase::Bound);
        let gap = &waiting(&bound, &Limits::default())[0];
        assert_eq!((gap.phase, gap.reason.as_str(), gap.failed), (Phase::Observed, "NotBegun", false));
        let mut started = samples::whole();
        started.records.retain(|r| r.phase <= Phase::ContainersStarted);
        assert_eq!(waiting(&started, &Limits::default())[0].phase, Phase::Ready);
        let mut ended = samples::whole();
        ended.records.retain(|r| r.phase != Phase::Ready);
        assert_eq!(waiting(&ended, &Limits::default()), vec![], "it was reported to be at its end");
    }
}
