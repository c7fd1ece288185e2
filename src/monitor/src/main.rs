//! podway-monitor.
fn main() {}
