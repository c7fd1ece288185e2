//! The rate at which bytes come, over the last two seconds.

use std::time::{Duration, Instant};

/// How long a byte counts.
pub(super) const WINDOW: Duration = Duration::from_secs(2);
const SLOT: Duration = Duration::from_millis(250);
const SLOTS: u64 = 8;

/// Bytes by quarters of a second since the first.
#[derive(Clone, Debug, Default)]
pub(super) struct Meter {
    began: Option<Instant>,
    /// The number of a slot and its bytes; its place is the number's rest.
    slots: [(u64, u64); SLOTS as usize],
}

impl Meter {
    fn slot(began: Instant, now: Instant) -> u64 {
        let slot = now.saturating_duration_since(began).as_millis() / SLOT.as_millis();
        u64::try_from(slot).unwrap_or(u64::MAX)
    }

    pub(super) fn add(&mut self, now: Instant, bytes: u64) {
        let began = *self.began.get_or_insert(now);
        let slot = Self::slot(began, now);
        let place = usize::try_from(slot % SLOTS).unwrap_or(0);
        let kept = &mut self.slots[place];
        if kept.0 != slot {
            *kept = (slot, 0);
        }
        kept.1 = kept.1.saturating_add(bytes);
    }

    /// Bytes a second.
    pub(super) fn rate(&self, now: Instant) -> u64 {
        let Some(began) = self.began else { return 0 };
        let current = Self::slot(began, now);
        let recent = self.slots.iter().filter(|(slot, _)| *slot + SLOTS > current);
        let bytes = recent.fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        // A rate over less than a quarter of a second says nothing.
        let over = now.saturating_duration_since(began).clamp(SLOT, WINDOW).as_millis();
        let rate = u128::from(bytes) * 1000 / over;
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_two_seconds() {
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        let mut meter = Meter::default();
        assert_eq!(meter.rate(began), 0);
        meter.add(at(0), 1000);
        assert_eq!(meter.rate(at(0)), 4000, "at first as if a quarter of a second had passed");
        assert_eq!(meter.rate(at(1000)), 1000);
        for n in 1..=40 {
            meter.add(at(n * 100), 100);
        }
        assert_eq!(
            meter.rate(at(4000)),
            900,
            "the first 1000 do not count any more, nor a slot that has begun"
        );
        assert_eq!(meter.rate(at(9000)), 0, "nothing comes");
        meter.add(at(9000), 500);
        assert_eq!(meter.rate(at(9000)), 250);
    }
}
