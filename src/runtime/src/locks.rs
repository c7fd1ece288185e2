//! One lock per sandbox and container, so that calls on one thing follow each other while all
//! others go on. Order: a sandbox before its containers.

use crate::ids::Id;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::RwLock;

/// The locks that somebody holds or waits for.
#[derive(Debug, Default)]
pub struct Locks(Mutex<HashMap<Id, Weak<RwLock<()>>>>);

impl Locks {
    /// The lock of a thing; it need not exist.
    #[must_use]
    pub fn of(&self, id: &Id) -> Arc<RwLock<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(id).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(RwLock::new(()));
        locks.insert(id.clone(), Arc::downgrade(&lock));
        lock
    }
}
