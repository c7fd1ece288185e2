//! podway-agent: the node agent, in the place of the kubelet.
//!
//! Watches the pods that are bound to its node (`watch`), gives each an owner task
//! (`pod::worker`), decides in a pure core ([`pod::core`]), acts over CRI v1 only and
//! writes the status back (`status`).
pub mod api;
pub mod audit;
pub mod certificates;
pub mod cgroups;
pub mod config;
pub mod connection;
pub mod cri;
pub mod csi;
pub mod devices;
pub mod dns;
pub mod env;
pub mod eviction;
mod files;
pub mod gc;
pub mod hosts;
pub mod lease;
pub mod metrics;
pub mod node;
pub mod plugins;
pub mod pod;
pub mod pods;
pub mod probe;
mod rpc;
pub mod run;
pub mod server;
pub mod shutdown;
pub mod source;
pub mod statics;
pub mod stats;
pub mod status;
mod sync;
pub mod traces;
pub mod userns;
pub mod volumes;
pub mod watch;
