//! Time: monotone within a process, anchored once to the wall clock.

use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point in time: microseconds since the Unix epoch.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(transparent)]
pub struct Micros(pub i64);

impl Micros {
    /// `self - earlier` in microseconds, never below 0 (clocks of two writers may be skewed).
    #[must_use]
    pub fn since(self, earlier: Micros) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }

    /// RFC 3339 with six decimals, as `metav1.MicroTime` has it.
    #[must_use]
    pub fn rfc3339(self) -> String {
        jiff::Timestamp::from_microsecond(self.0)
            .map_or_else(|_| self.0.to_string(), |t| t.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string())
    }
}

/// A process' clock: the wall clock read once, the monotonic clock ever after, so that no
/// step of the wall clock can make a phase end before it began.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    anchor_wall: Micros,
    anchor_mono: Instant,
}

impl Clock {
    /// Reads the wall clock once.
    #[must_use]
    pub fn new() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Clock {
            anchor_wall: Micros(i64::try_from(wall.as_micros()).unwrap_or(i64::MAX)),
            anchor_mono: Instant::now(),
        }
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Micros {
        self.at(Instant::now())
    }

    /// The wall time of an instant of this process.
    #[must_use]
    pub fn at(&self, instant: Instant) -> Micros {
        let delta = match instant.checked_duration_since(self.anchor_mono) {
            Some(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
            None => -i64::try_from(self.anchor_mono.duration_since(instant).as_micros()).unwrap_or(i64::MAX),
        };
        Micros(self.anchor_wall.0.saturating_add(delta))
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}
