//! How many events a node writes: the kubelet's limits, so that a pod that fails over and over does
//! not fill etcd. Per object 25 at once and then one in five minutes (client-go's spam filter,
//! `tools/events` and `tools/record/events_cache.go`), for the node 100 at once and then 50 a second
//! (`eventBurst`, `eventRecordQPS`). Pure: the caller has the clock.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The most objects that are remembered; the one that was told of longest ago goes.
const OBJECTS: usize = 4096;

/// A bucket of tokens.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, burst: f64, every: Duration, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() / every.as_secs_f64();
        self.tokens = (self.tokens + gained).min(burst);
        self.at = self.at.max(now);
        let has = self.tokens >= 1.0;
        if has {
            self.tokens -= 1.0;
        }
        has
    }
}

/// Per object: at once, and how often after that.
const OBJECT: (f64, Duration) = (25.0, Duration::from_secs(300));
/// For the node.
const NODE: (f64, Duration) = (100.0, Duration::from_millis(20));

/// What is left.
#[derive(Debug)]
pub struct Budget {
    node: Bucket,
    objects: HashMap<String, Bucket>,
}

impl Budget {
    /// All of it.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Budget { node: Bucket { tokens: NODE.0, at: now }, objects: HashMap::new() }
    }

    /// Whether an event of the object `uid` may be written.
    pub fn take(&mut self, uid: &str, now: Instant) -> bool {
        if self.objects.len() >= OBJECTS && !self.objects.contains_key(uid) {
            let oldest = self.objects.iter().min_by_key(|(_, b)| b.at).map(|(uid, _)| uid.clone());
            if let Some(oldest) = oldest {
                self.objects.remove(&oldest);
            }
        }
        let fresh = Bucket { tokens: OBJECT.0, at: now };
        let object = self.objects.entry(uid.to_owned()).or_insert(fresh);
        object.take(OBJECT.0, OBJECT.1, now) && self.node.take(NODE.0, NODE.1, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_25_and_then_one_in_five_minutes() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        assert_eq!((0..40).filter(|_| budget.take("a", now)).count(), 25);
        assert!(budget.take("b", now), "another object has its own");
        assert!(!budget.take("a", now + Duration::from_secs(299)));
        assert!(budget.take("a", now + Duration::from_secs(301)));
    }

    #[test]
    fn the_node_has_100_and_then_50_a_second() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        assert_eq!((0..500).filter(|n| budget.take(&format!("u{n}"), now)).count(), 100);
        let later = now + Duration::from_millis(100);
        assert_eq!((500..999).filter(|n| budget.take(&format!("u{n}"), later)).count(), 5);
    }
}
