//! What pods and the node use: asked of the runtime over CRI and read from the machine when somebody
//! wants to know, never on a tick. One look ([`Look`]) is what `/stats/summary`, `/metrics/resource`,
//! `/metrics/cadvisor` and eviction are made of.
//!
//! A rate (`usageNanoCores`) that the runtime does not give is made of two looks.

pub mod disk;
pub mod expose;
pub mod host;
pub mod look;
pub mod types;

pub use look::{Look, Stats};
