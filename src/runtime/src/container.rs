//! A container's life: journalled → root filesystem → config.json → `runc create` → `runc start` →
//! exited → removed. The monitor runs runc and makes the exit durable; these modules ask it.
//!
//! What runc refuses at `create` is told at `start`, as clients of CRI know it (containerd makes its
//! task there): the container is there as created, its start fails, and then it has ended with
//! [`START_ERROR`], reason `StartError` and runc's words.

mod create;
mod exec;
mod life;

pub use crate::follow::START_ERROR;
pub use create::create;
pub use exec::{ExecFile, exec_file, exec_sync};
pub use life::{remove, start, stop};
