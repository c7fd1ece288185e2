//! podway-runtime.
