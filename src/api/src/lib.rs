//! podway-api: the names and shapes that podway shares with a Kubernetes API server.
//!
//! The `PodFlow` resource, the closed set of reasons, the annotations and labels. Pure: types and conversions, no client calls.

pub mod annotations;
pub mod crds;
pub mod podflow;
pub mod reasons;

pub use crds::{Crd, crds};
pub use podflow::{PodFlow, PodFlowSpec, PodFlowStatus};
