//! podway's runtime beside containerd: the same calls, images, network plugins and runc, each server alone on
//! the [`crate::cri::Stage`] of one run.
//!
//! [`calls`] times the calls of a pod's life, one at a time and with many pods at once; [`crowd`] what so many
//! pods that stand cost: memory, and a restart; [`pulls`] small images and one of a gigabyte; [`figures`] is
//! what came of it, as a table.

pub mod calls;
pub mod crowd;
pub mod figures;
pub mod pulls;
