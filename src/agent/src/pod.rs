//! One pod: what it is ([`model`]), what to do next ([`core`]), what to tell of it ([`status`]).
pub mod core;
pub mod model;
pub mod observe;
pub mod resources;
pub mod status;
