//! podway-scheduler.
