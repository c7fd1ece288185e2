//! A container's life: journalled → root filesystem → config.json; at its start `runc create` →
//! `runc start`; exited → removed. The monitor runs runc and makes the exit durable; these modules
//! ask it.

pub mod checkpoint;
mod create;
mod exec;
mod life;
mod oci;
pub mod signals;
mod start;
mod update;
mod volumes;

pub use crate::follow::START_ERROR;
pub use checkpoint::checkpoint;
pub use create::create;
pub use exec::{ExecFile, exec_file, exec_sync};
pub use life::{remove, stop};
pub use start::start;
pub use update::update;
