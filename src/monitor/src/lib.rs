//! podway-monitor protocol.
