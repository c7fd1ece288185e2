//! A small cache whose entries each end at a time of their own.

use crate::sync::lock;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Keeps at most so many entries; when it is full and none has ended, the one that ends first goes.
#[derive(Debug)]
pub struct Cache<K, V> {
    most: usize,
    entries: Mutex<BTreeMap<K, (Instant, V)>>,
}

impl<K: Ord + Clone, V: Clone> Cache<K, V> {
    /// An empty cache of at most `most` entries.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Cache { most, entries: Mutex::new(BTreeMap::new()) }
    }

    /// What was put under `key`, unless it has ended.
    pub fn get(&self, key: &K) -> Option<V> {
        let entries = lock(&self.entries);
        entries.get(key).filter(|(end, _)| Instant::now() < *end).map(|(_, value)| value.clone())
    }

    /// Keeps `value` for `ttl`.
    pub fn put(&self, key: K, value: V, ttl: Duration) {
        let now = Instant::now();
        let mut entries = lock(&self.entries);
        if entries.len() >= self.most && !entries.contains_key(&key) {
            entries.retain(|_, (end, _)| now < *end);
            if entries.len() >= self.most
                && let Some(first) = entries.iter().min_by_key(|(_, (end, _))| *end).map(|(k, _)| k.clone())
            {
                entries.remove(&first);
            }
        }
        entries.insert(key, (now + ttl, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_end_and_the_number_is_bounded() {
        let cache = Cache::new(2);
        cache.put(1, 'a', Duration::from_secs(10));
        cache.put(2, 'b', Duration::ZERO);
        assert_eq!((cache.get(&1), cache.get(&2)), (Some('a'), None));
        cache.put(3, 'c', Duration::from_secs(20));
        cache.put(4, 'd', Duration::from_secs(30));
        assert_eq!([1, 3, 4].map(|key| cache.get(&key)), [None, Some('c'), Some('d')]);
    }
}
