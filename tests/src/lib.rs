//! End-to-end tests: what they share.
//!
//! A [`suite`] is one program: it counts what the machine has ([`leaks`]), brings up one cluster
//! ([`cluster`]) by the same `podway up` that a user runs, runs its cases in namespaces of their
//! own ([`namespace`]), takes the cluster down and counts again. A case watches and never polls
//! ([`wait`]); where one fails, the state is printed ([`dump`]). [`audit`] reads from the API
//! server's log who wrote what, [`swap`] puts containerd and a stock kubelet in the place of a node's own.
//! [`prometheus`] scrapes, and [`monitoring`] is what it is asked by our dashboard and rules; [`gate`] slows a download down, [`page`] is `podway ui`. [`meter`] and [`figures`] are for the bench driver, [`conformance`] for the one
//! that runs Kubernetes' own suite. [`differential`] compares our scheduler with a stock one.
//! [`cri`] is a CRI server without a cluster: ours, or containerd; [`cribench`] measures both.

pub mod audit;
pub mod cluster;
pub mod conformance;
pub mod cri;
pub mod cribench;
pub mod differential;
pub mod dump;
pub mod figures;
pub mod gate;
pub mod go;
pub mod leaks;
pub mod meter;
pub mod monitoring;
pub mod namespace;
pub mod observed;
pub mod otlp;
pub mod page;
pub mod plain;
pub mod prometheus;
pub mod soak;
pub mod steady;
pub mod suite;
pub mod swap;
pub mod tree;
pub mod wait;

pub use cluster::Cluster;
pub use namespace::{Ns, with_temp_ns};
