//! systemd, over D-Bus, and whether it is who manages cgroups ([`Driver`]): the names of slices and scopes ([`slice`](mod@slice)), the calls that make and end them
//! ([`manager`]), and the shutdown of the machine ([`logind`]). It knows nobody.

mod bus;
mod driver;
mod jobs;
pub mod logind;
pub mod manager;
pub mod slice;

pub use driver::Driver;
pub use manager::{Manager, ManagerError, Property};
pub use slice::{InvalidSlice, Slice};
