//! podway-api.
