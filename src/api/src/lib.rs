//! podway-api: the names and shapes that podway shares with a Kubernetes API server.
//!
//! The `PodFlow` and `SchedulerProfile` resources, the closed set of reasons, the annotations and labels, and the
//! picture of a pod that our agent did not run ([`stock`]), why a pod waits ([`explain`]). Pure: types and
//! conversions, no client calls.

pub mod annotations;
pub mod crds;
pub mod explain;
pub mod join;
pub mod placement;
pub mod podflow;
pub mod profile;
pub mod reasons;
pub mod stock;

pub use crds::{Crd, crds};
pub use podflow::{PodFlow, PodFlowSpec, PodFlowStatus};
pub use profile::{ProfileSpec, SchedulerProfile, SchedulerProfileStatus};
