//! When a status is written. Pure: the worker asks, writes, and tells what came of it.
//!
//! One write is in flight at a time; what changes meanwhile goes into the next. What flips within
//! 20 ms shares a write; before the pod runs nothing is written for its first second, unless it
//! failed. What is only on its way goes by the node's pace ([`Pace`]) and at most once a second;
//! Ready, the phase and the end never wait for it. The state that the API server last answered with
//! is the base: nothing is read.

use crate::status::diff;
use crate::status::pace::{POD_GAP, Pace, Slot};
use k8s_openapi::api::core::v1::PodStatus;
use podway_flow::Micros;
use serde_json::Value;
use std::time::Duration;

/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(20);
/// How long a pod that is on its way says nothing.
const QUIET: Duration = Duration::from_secs(1);
/// The first delay after a failed write, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// How much a status matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// The pod is on its way: its first second needs no word.
    Later,
    /// Nobody waits for it: it may lie for a second.
    Rest,
    /// Something changed that people wait for.
    Soon,
    /// Nothing more is coming: gathering would only delay it.
    Now,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Send this patch.
    Write(Value),
    /// Ask again then.
    Wait(Micros),
    /// Nothing differs, or a write is in flight.
    Idle,
}

/// The writer of one pod.
#[derive(Debug)]
pub struct Writer {
    uid: String,
    base: PodStatus,
    wanted: Option<PodStatus>,
    due: Micros,
    changed: Option<Micros>,
    /// Since when something waits that people wait for.
    hurry: Option<Micros>,
    in_flight: bool,
    failures: u32,
    born: Micros,
    not_before: Micros,
    sent: Option<PodStatus>,
    pace: Pace,
    /// When the next intermediate word may go.
    slot: Option<Slot>,
    /// When the last one went.
    word: Option<Micros>,
    /// What the API server made of the last write, where that is not what was asked for: it may drop a
    /// field that it does not know, and must not be asked for it again and again.
    answered: Option<PodStatus>,
}

fn after(at: Micros, delay: Duration) -> Micros {
    crate::pod::core::add(at, delay)
}

/// What others act upon, and what therefore never waits: the phase, and whether it is ready.
fn decides(status: &PodStatus) -> (Option<&str>, [bool; 2]) {
    let holds =
        |type_: &str| status.conditions.iter().flatten().any(|c| c.type_ == type_ && c.status == "True");
    (status.phase.as_deref(), ["Ready", "ContainersReady"].map(holds))
}

impl Writer {
    /// For the pod `uid`, of which the API server holds `base`, taken on at `born`, on a node of that
    /// `pace`.
    #[must_use]
    pub fn new(uid: &str, base: PodStatus, born: Micros, pace: Pace) -> Self {
        Writer {
            uid: uid.to_owned(),
            base,
            wanted: None,
            due: born,
            changed: None,
            hurry: None,
            in_flight: false,
            failures: 0,
            born,
            not_before: born,
            sent: None,
            pace,
            slot: None,
            word: None,
            answered: None,
        }
    }

    /// The status that the API server is known to hold.
    #[must_use]
    pub fn base(&self) -> &PodStatus {
        &self.base
    }

    /// Whether a write is under way or due.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.in_flight || self.changed.is_some()
    }

    /// The API server's object came by another way (its watch). While a write is in flight its
    /// answer is newer.
    pub fn seen(&mut self, status: PodStatus) {
        if !self.in_flight && self.answered.as_ref() != Some(&status) {
            self.base = status;
        }
    }

    /// The status as it is now.
    pub fn offer(&mut self, status: PodStatus, urgency: Urgency, now: Micros) {
        let differs = diff::patch(&self.uid, &self.base, &status).is_some();
        // One copy of a status that stays is enough.
        self.wanted = (differs || self.in_flight).then_some(status);
        if !differs {
            if !self.in_flight {
                (self.changed, self.hurry, self.slot) = (None, None, None);
            }
            return;
        }
        let first = *self.changed.get_or_insert(now);
        self.due = match urgency {
            Urgency::Now => now,
            Urgency::Soon => after(*self.hurry.get_or_insert(now), GATHER),
            Urgency::Rest => after(first, QUIET),
            Urgency::Later => after(self.born, QUIET).max(after(first, GATHER)),
        };
    }

    /// What to do now.
    #[must_use]
    pub fn step(&mut self, now: Micros) -> Step {
        let Some(wanted) = self.wanted.as_ref().filter(|_| !self.in_flight && self.changed.is_some()) else {
            return Step::Idle;
        };
        let due = self.due.max(self.not_before);
        if now < due {
            return Step::Wait(due);
        }
        match diff::patch(&self.uid, &self.base, wanted) {
            Some(patch) => {
                let flips = decides(&self.base) != decides(wanted);
                if let Some(at) = (!flips).then(|| self.paced(now)).flatten() {
                    return Step::Wait(at);
                }
                self.slot = None;
                self.in_flight = true;
                self.sent.clone_from(&self.wanted);
                Step::Write(patch)
            }
            None => {
                (self.changed, self.slot) = (None, None);
                Step::Idle
            }
        }
    }

    /// Until when an intermediate word waits; none when it goes now.
    fn paced(&mut self, now: Micros) -> Option<Micros> {
        if let Some(at) = self.word.map(|at| after(at, POD_GAP)).filter(|at| now < *at) {
            return Some(at);
        }
        let slot = self.slot.take().unwrap_or_else(|| self.pace.slot(now));
        if now < slot.at() {
            return Some(self.slot.insert(slot).at());
        }
        slot.used();
        self.word = Some(now);
        None
    }

    /// The write was answered with this status. Returns how long the change took to get there, in µs.
    pub fn written(&mut self, status: PodStatus, now: Micros) -> u64 {
        self.in_flight = false;
        self.hurry = None;
        self.failures = 0;
        let dropped = self.sent.take().filter(|sent| diff::patch(&self.uid, &status, sent).is_some());
        (self.base, self.answered) = match dropped {
            Some(sent) => (sent, Some(status)),
            None => (status, None),
        };
        let took = self.changed.map_or(0, |first| now.since(first));
        let more = self.wanted.as_ref().is_some_and(|w| diff::patch(&self.uid, &self.base, w).is_some());
        self.changed = more.then_some(now);
        if !more {
            self.wanted = None;
        }
        took
    }

    /// The write failed; it is tried again after 100 ms, doubling to 30 s.
    pub fn failed(&mut self, now: Micros) {
        self.in_flight = false;
        self.sent = None;
        let delay = RETRY.0.saturating_mul(1 << self.failures.min(9)).min(RETRY.1);
        self.failures += 1;
        self.not_before = after(now, delay);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Micros = Micros(1_000_000_000);

    fn ms(n: u64) -> Micros {
        after(T, Duration::from_millis(n))
    }

    fn status(phase: &str) -> PodStatus {
        PodStatus { phase: Some(phase.into()), ..PodStatus::default() }
    }

    fn writes(step: &Step) -> bool {
        matches!(step, Step::Write(_))
    }

    #[test]
    fn a_pod_that_starts_well_is_written_once() {
        let mut w = Writer::new("u", PodStatus::default(), T, Pace::default());
        w.offer(status("Pending"), Urgency::Later, ms(1));
        assert_eq!(w.step(ms(1)), Step::Wait(ms(1000)));
        w.offer(status("Running"), Urgency::Now, ms(60));
        assert!(writes(&w.step(ms(60))));
        assert_eq!(w.step(ms(61)), Step::Idle, "one in flight");
        assert_eq!(w.written(status("Running"), ms(63)), 62_000);
        assert_eq!(w.step(ms(2000)), Step::Idle, "a settled pod costs nothing");
        assert!(!w.busy());
    }

    #[test]
    fn a_slow_pod_says_so_after_a_second_and_flips_within_20_ms_share_a_write() {
        let mut w = Writer::new("u", PodStatus::default(), T, Pace::default());
        w.offer(status("Pending"), Urgency::Later, ms(1));
        assert!(writes(&w.step(ms(1000))));
        w.offer(status("A"), Urgency::Soon, ms(1001));
        w.written(status("Pending"), ms(1002));
        w.offer(status("A"), Urgency::Later, ms(1003));
        w.offer(status("A"), Urgency::Soon, ms(1005));
        w.offer(status("B"), Urgency::Soon, ms(1010));
        assert_eq!(w.step(ms(1010)), Step::Wait(ms(1025)), "from when it became urgent");
        let Step::Write(patch) = w.step(ms(1025)) else { unreachable!("due") };
        assert_eq!(patch["status"]["phase"], "B");
    }

    #[test]
    fn words_of_the_way_are_paced_and_the_end_is_not() {
        let pace = Pace::default();
        let word = |text: &str| PodStatus { message: Some(text.into()), ..status("Pending") };
        let mut all: Vec<Writer> =
            (0..3).map(|n| Writer::new(&format!("{n}"), status("Pending"), T, pace.clone())).collect();
        for w in &mut all {
            w.offer(word("pulling"), Urgency::Later, ms(1));
        }
        let steps: Vec<Step> = all.iter_mut().map(|w| w.step(ms(1000))).collect();
        assert!(writes(&steps[0]));
        assert_eq!(steps[1..], [Step::Wait(ms(1200)), Step::Wait(ms(1400))]);
        all[1].offer(status("Running"), Urgency::Now, ms(1010));
        assert!(writes(&all[1].step(ms(1010))), "a flip does not wait, and gives its time back");
        all[0].written(word("pulling"), ms(1005));
        all[0].offer(word("pulled"), Urgency::Soon, ms(1020));
        assert_eq!(all[0].step(ms(1040)), Step::Wait(ms(2000)), "one pod speaks once a second");
        assert!(writes(&all[0].step(ms(2000))));
    }

    #[test]
    fn what_the_server_drops_is_not_asked_for_again() {
        let mut w = Writer::new("u", PodStatus::default(), T, Pace::default());
        let wanted = PodStatus { observed_generation: Some(1), ..status("A") };
        w.offer(wanted.clone(), Urgency::Now, T);
        assert!(writes(&w.step(T)));
        w.written(status("A"), T);
        w.seen(status("A"));
        w.offer(wanted, Urgency::Now, T);
        assert_eq!(w.step(T), Step::Idle);
    }

    #[test]
    fn a_failed_write_waits_longer_each_time() {
        let mut w = Writer::new("u", PodStatus::default(), T, Pace::default());
        w.offer(status("A"), Urgency::Now, T);
        assert!(writes(&w.step(T)));
        w.failed(T);
        assert_eq!(w.step(T), Step::Wait(ms(100)));
        assert!(writes(&w.step(ms(100))));
        w.failed(ms(100));
        assert_eq!(w.step(ms(100)), Step::Wait(ms(300)));
    }
}
