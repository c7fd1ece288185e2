//! One pod: what it is ([`model`]), what to do next ([`core`]), what to tell of it ([`status`]).
pub mod actions;
pub mod admission;
pub mod classes;
pub mod confinement;
pub mod context;
pub mod core;
pub mod cri_config;
pub mod image_name;
pub mod ledger;
pub mod model;
pub mod observe;
pub mod pull_secrets;
pub mod resize;
pub mod resources;
pub mod start;
pub mod status;
pub mod worker;
