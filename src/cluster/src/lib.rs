//! The local cluster behind `podway up` and `podway down`.
//!
//! A cluster is one state directory. In it live the certificates, the data of etcd, the logs, and
//! `state.json`, which says which processes and node environments were made. Everything here can
//! be done twice: a second [`up()`] finds what runs and starts only what has died, and [`down()`]
//! removes what is there whether or not the `up` before it came to its end.
//!
//! The files, in the order in which `up` uses them: `preflight` says what the machine lacks; `program`
//! names the programs and `binaries` finds them or has `build` build them into the `cache`;
//! `pki` and `kubeconfig` give every component an identity of its own, `process` starts and stops
//! daemons, `etcd`, `apiserver` and `controller_manager` know their command lines; `network` has
//! names and addresses, `nodes` and `firewall` make them, `registry`, `images` (of `busybox`
//! and `pause`) and `push` are where images come from, `parts` knows podway's own daemons, `existing`
//! gives them identities in a cluster that was there before. `down` undoes all of it, with `cgroups`
//! and `mounts`.

pub mod apiserver;
pub mod apply;
mod binaries;
mod build;
mod busybox;
mod cache;
pub mod cgroups;
pub mod connect;
pub mod controller_manager;
pub mod down;
mod elf;
pub mod etcd;
pub mod existing;
pub mod firewall;
pub mod images;
pub mod kubeconfig;
pub mod layout;
pub mod mounts;
pub mod network;
pub mod nodes;
pub mod own;
pub mod parts;
mod pause;
pub mod pki;
mod preflight;
pub mod process;
pub mod program;
pub mod push;
mod registered;
pub mod registry;
pub mod state;
pub mod up;

pub use down::{DownError, down};
pub use layout::Layout;
pub use program::{BinaryError, Program};
pub use up::{Cluster, UpError, UpOptions, up};

/// What is called with each line of progress: one short line, lower case, no newline.
pub type Progress<'a> = &'a (dyn Fn(&str) + Send + Sync);
