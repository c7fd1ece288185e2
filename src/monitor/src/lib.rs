//! podway-monitor: what the runtime needs to start a pod's monitor and to talk with it.
//!
//! One monitor per pod is the parent of the pod's containers. It alone runs runc, holds the stdio
//! pipes, writes the CRI logs, reaps, and makes each exit durable before it tells anyone. The
//! runtime may die and come back at any moment: it reconnects, lists the living, and reads the
//! exit records of the dead.

pub mod client;
pub mod console;
pub mod exit;
pub mod protocol;
pub mod spawn;

pub use client::{Client, ClientError};
pub use console::Console;
pub use exit::ExitRecord;
pub use protocol::{Create, ErrorCode, Event, ListedContainer, Message, Reply, Request, VERSION};
pub use spawn::spawn;
