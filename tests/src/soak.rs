//! A soak: pods come and go for a long time, and nothing may grow.

pub mod plot;
pub mod sample;
pub mod trend;

pub use sample::Sample;
