//! podway-runtime.
pub mod image;
