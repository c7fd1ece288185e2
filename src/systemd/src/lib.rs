//! systemd as the manager of cgroups, over D-Bus: the names of slices and scopes ([`slice`]), and the calls that
//! make and end them ([`manager`]). It knows nobody.

pub mod manager;
pub mod slice;

pub use manager::{Manager, ManagerError};
pub use slice::{InvalidSlice, Slice};
