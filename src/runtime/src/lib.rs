//! podway-runtime: a CRI v1 server that invokes runc directly.
//!
//! A sandbox is pinned namespaces ([`netns`]), a network ([`cni`]) and a cgroup parent
//! ([`cgroup`]), without a pause container; a container is an overlay ([`rootfs`]) and a
//! `config.json` ([`spec`]). Every effect that outlives the process is in the [`journal`] before
//! it is made; [`run`] adopts or undoes what it finds there.

pub mod allocator;
pub mod apparmor;
pub mod cgroup;
pub mod check;
pub mod cni;
pub mod config;
pub mod container;
pub mod error;
pub mod events;
pub mod features;
pub mod follow;
pub mod handlers;
pub mod ids;
pub mod image;
pub mod journal;
pub mod locks;
pub mod metrics;
pub mod names;
pub mod netns;
pub mod orphan;
pub mod podns;
pub mod points;
pub mod recover;
pub mod rootfs;
pub mod run;
pub mod sandbox;
pub mod service;
pub mod spec;
pub mod state;
pub mod stats;
pub mod status;
pub mod streaming;
pub mod supervisor;
pub mod telemetry;
