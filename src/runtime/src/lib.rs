//! podway-runtime: a CRI v1 server that invokes runc directly.
//!
//! A sandbox is pinned namespaces ([`netns`]), a network ([`cni`]) and a cgroup parent
//! ([`cgroup`]), without a pause container; a container is an overlay ([`rootfs`]) and a
//! `config.json`. Every effect that outlives the process is in the [`journal`] before it is made.

pub mod cgroup;
pub mod cni;
pub mod config;
pub mod ids;
pub mod image;
pub mod journal;
pub mod netns;
pub mod rootfs;
