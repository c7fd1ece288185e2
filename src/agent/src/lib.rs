//! podway-agent.
