//! One pod: what it is ([`model`]), what to do next ([`core`]), what to tell of it ([`status`]).
pub mod admission;
pub mod core;
pub mod cri_config;
pub mod model;
pub mod observe;
pub mod resources;
pub mod status;
