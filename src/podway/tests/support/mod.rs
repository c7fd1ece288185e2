//! What the tests of the binary have in common: an API server that only tells, a cluster's worth of pods
//! for it, and a browser.
#![allow(dead_code, reason = "each test uses its part")]

pub mod api;
pub mod chromium;
pub mod world;
