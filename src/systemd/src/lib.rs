//! systemd, over D-Bus: the names of slices and scopes ([`slice`](mod@slice)), the calls that make and end them
//! ([`manager`]), and the shutdown of the machine ([`logind`]). It knows nobody.

pub mod logind;
pub mod manager;
pub mod slice;

pub use manager::{Manager, ManagerError, Property};
pub use slice::{InvalidSlice, Slice};
