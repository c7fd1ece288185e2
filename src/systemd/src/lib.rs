//! systemd as the manager of cgroups, over D-Bus: the names of slices and scopes ([`slice`]), and the calls that
//! make, change and end them ([`manager`]). It knows nobody: runtime and agent both use it.

pub mod manager;
pub mod slice;

pub use manager::{Manager, ManagerError, Property};
pub use slice::{InvalidSlice, Slice};
