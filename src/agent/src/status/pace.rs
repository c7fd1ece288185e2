//! How many words of the way a node sends: what is on its way is told at most once in 200 ms by the
//! whole node, so that a burst of starts costs its ends and not its middles. Ready and the end of a
//! pod never wait here.
//!
//! A pod that wants to tell takes a slot: the first free time, 200 ms from every other. A slot that is
//! no longer wanted (the pod became ready) is dropped, and is free for the next that asks.

use podway_flow::Micros;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The least time between two intermediate words of one node.
pub const NODE_GAP: Duration = Duration::from_millis(200);
/// The least time between two intermediate words of one pod.
pub const POD_GAP: Duration = Duration::from_secs(1);

/// The times that are taken. Shared by all pods of a node.
#[derive(Clone, Debug, Default)]
pub struct Pace(Arc<Mutex<BTreeSet<Micros>>>);

/// A time at which one word may be sent. Dropped before it is used, it is free again.
#[derive(Debug)]
pub struct Slot {
    at: Micros,
    pace: Option<Pace>,
}

fn after(at: Micros, delay: Duration) -> Micros {
    crate::pod::core::add(at, delay)
}

impl Pace {
    fn taken(&self) -> MutexGuard<'_, BTreeSet<Micros>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first free time from `now` on.
    #[must_use]
    pub fn slot(&self, now: Micros) -> Slot {
        let mut taken = self.taken();
        // What lies a whole gap behind keeps nobody waiting.
        taken.retain(|at| after(*at, NODE_GAP) > now);
        let mut at = now;
        for other in taken.iter() {
            if *other >= after(at, NODE_GAP) {
                break;
            }
            at = at.max(after(*other, NODE_GAP));
        }
        taken.insert(at);
        Slot { at, pace: Some(self.clone()) }
    }
}

impl Slot {
    /// When.
    #[must_use]
    pub fn at(&self) -> Micros {
        self.at
    }

    /// The word goes out: the time stays taken.
    pub fn used(mut self) {
        self.pace = None;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(pace) = self.pace.take() {
            pace.taken().remove(&self.at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Micros = Micros(1_000_000_000);

    fn ms(n: u64) -> Micros {
        after(T, Duration::from_millis(n))
    }

    #[test]
    fn words_are_a_gap_apart_and_a_dropped_slot_is_free_again() {
        let pace = Pace::default();
        let first = pace.slot(T);
        let (second, third) = (pace.slot(T), pace.slot(ms(10)));
        assert_eq!([first.at(), second.at(), third.at()], [T, ms(200), ms(400)]);
        first.used();
        drop(second);
        let again = pace.slot(ms(50));
        assert_eq!(again.at(), ms(200), "the one that was given back");
        assert_eq!(pace.slot(ms(50)).at(), ms(600));
    }

    #[test]
    fn a_node_that_was_quiet_waits_for_nothing() {
        let pace = Pace::default();
        pace.slot(T).used();
        assert_eq!(pace.slot(ms(150)).at(), ms(200));
        assert_eq!(pace.slot(ms(1000)).at(), ms(1000));
    }
}
