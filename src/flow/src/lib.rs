//! podway-flow.
