//! podway-scheduler: places pods on nodes with upstream's semantics and says why.
//!
//! A pod's path through the files: [`run`] watches and owns the state; [`queue`] holds the pods
//! that wait; [`cache`] knows nodes and what runs or is assumed on them; [`cycle`] decides, by the
//! [`plugins`] behind the [`framework`]'s extension points; [`explain`] turns the decision into flow
//! records; `binding` takes a placed pod through Permit, `PreBind` and Bind, where [`bind`] writes it;
//! [`leader`] lets one of several replicas do so; [`status`] tells the pod and its events, on a lane of its own; [`metrics`] counts and [`server`]
//! shows; [`debug`] shows more, to the machine's administrator alone. [`shadow`] compares with another scheduler.
//! Now and then the cache is compared with the API server's lists ([`audit`]).
//! A run can be written to a file ([`record`]), of which [`replay`] comes to the same decisions.
//! [`extender`]s are other programs with a say.
//! When no node fits, [`preemption`] looks for pods that could make room, and `evict` has them go.
//! `model`, `objects`, `classes`, `framework`, `plugins`, `cycle`, `preemption`, `queue` and `cache` are pure: no
//! clock, no network.

pub mod audit;
pub mod bind;
mod binding;
pub mod cache;
pub mod classes;
pub mod clients;
pub mod config;
pub mod cycle;
pub mod debug;
pub mod decide;
mod evict;
pub mod explain;
pub mod extender;
pub mod framework;
pub mod leader;
pub mod metrics;
pub mod model;
pub mod objects;
pub mod plugins;
pub mod preemption;
pub mod queue;
pub mod record;
pub mod replay;
pub mod run;
pub mod server;
pub mod shadow;
pub mod status;

pub use clients::Clients;
pub use config::Config;
pub use run::{RunError, run, run_with};
