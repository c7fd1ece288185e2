//! podway-cluster.
