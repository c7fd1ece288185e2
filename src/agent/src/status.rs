//! What the API server is told of a pod: when, how much of it, and not too often.
pub mod budget;
pub mod diff;
pub mod pace;
pub mod writer;
