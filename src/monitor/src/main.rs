//! podway-monitor: the parent of one pod's containers.
fn main() {}
