//! Images: from a name in a pod to layer directories that an overlay can be mounted from.
//!
//! [`reference`] reads names, [`hosts`] turns a registry into an ordered list of endpoints
//! (hosts.toml), [`registry`] speaks the distribution protocol to one of them, [`unpack`] turns a
//! blob into a layer directory while it arrives, [`store`] is the memory on disk, [`pull`] drives
//! them and records the phase, [`service`] is the CRI face. [`keychain`] has the machine's own
//! credentials, [`progress`] tells how far pulls have got, [`verify`] asks whether an image may be used, [`explain`] tells how one would be got.
//!
//! Invariants: nothing enters `layers/` before both of its digests were found right; the index
//! names only layers that are whole and on disk; every byte from a registry is hostile until it
//! was parsed into a type of this module.

pub mod explain;
pub mod hosts;
pub mod keychain;
pub mod progress;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod service;
pub mod store;
pub mod unpack;
pub mod verify;

pub use pull::{Pulled, Puller};
pub use reference::{Digest, ImageRef};
pub use service::ImageServer;
pub use store::{Image, ImageStore, LayerPin};
