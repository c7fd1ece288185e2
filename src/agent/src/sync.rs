//! A mutex that a panic of another task does not close.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is behind it: whoever panicked has changed all of it or nothing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
