//! The worker on a fake runtime.
