//! A CRI server alone, with nothing of a cluster around it: podway's runtime or containerd, on a
//! [`stage`] of its own (registry, network, directories), asked by a plain [`client`].
//!
//! What runs on it: the suite `tests/cri.rs`, which puts the same questions to both; `podway-critest`,
//! which has the CRI validation suite of Kubernetes do so; and the bench of both side by side.

pub mod client;
pub mod images;
pub mod server;
pub mod stage;

pub use client::Cri;
pub use server::{Kind, Server};
pub use stage::Stage;
