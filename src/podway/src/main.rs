//! podway.
fn main() {}
