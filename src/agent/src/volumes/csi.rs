//! Volumes of CSI drivers (pkg/volume/csi): attached, where their driver wants that, staged once for the node,
//! published to each pod; and taken down in the other order.
//!
//! A pod's volume: wanted (written down) → attached (somebody else does it; the Node says so) → staged → published →
//! unpublished → unstaged, with the last use of the node → forgotten. A call that failed for good leaves the volume
//! as it was before it; of any other nobody knows what it did, so that the driver is asked to undo it.
//!
//! Invariants: what may have been done is written down before it is asked for (`journal`), and read from there when it
//! is undone, so that an agent that was killed at any point leaves nothing. Of one volume one call is made at a time;
//! each has an end; and a pod waits for its own volumes alone.

mod journal;
mod mount;
mod policy;
mod unmount;
mod wanted;

pub(super) use journal::VOLUMES;
pub(super) use wanted::Wanted;

use super::{MountedVolume, VolumeError, tokens};
use crate::csi::Drivers;
use crate::csi::driver::CallError;
use crate::csi::name::DriverName;
use crate::env::{ObjectError, Objects};
use crate::node::State;
use crate::sync::lock;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio_util::sync::CancellationToken;

/// How long one try waits for a volume to be attached (`podAttachAndMountTimeout`).
const ATTACH: Duration = Duration::from_secs(123);
/// How often a driver that wants it is asked again, in seconds (the kubelet does with each sync of a pod).
const REPUBLISH: i64 = 90;

const ATTACHING: &str = "MountVolume.WaitForAttach";
const STAGING: &str = "MountVolume.MountDevice";
const SETUP: &str = "MountVolume.SetUp";
const TEARDOWN: &str = "UnmountVolume.TearDown";
const UNSTAGING: &str = "UnmountDevice";

/// A driver's volume that is not as it should be: which step it failed in.
// The space is upstream's, before the colon of what follows.
#[derive(Debug, thiserror::Error)]
#[error("{step} failed for volume \"{volume}\" ")]
pub struct Failure {
    step: &'static str,
    volume: String,
    #[source]
    why: Box<Why>,
}

impl Failure {
    fn new(step: &'static str, volume: &str, why: Why) -> Self {
        Failure { step, volume: volume.to_owned(), why: Box::new(why) }
    }
}

/// Why it is not.
#[derive(Debug, thiserror::Error)]
enum Why {
    #[error("kubernetes.io/csi: {0:?} is no name of a CSI driver")]
    Name(String),
    #[error("kubernetes.io/csi: the volume handle is empty")]
    NoHandle,
    #[error("kubernetes.io/csi: {0}: driver name {1} not found in the list of registered CSI drivers")]
    Absent(&'static str, DriverName),
    #[error("kubernetes.io/csi: mounter.SetupAt failed to check volume lifecycle mode: {0}")]
    Mode(String),
    #[error("timed out waiting for external-attacher of {0} CSI driver to attach volume {1}")]
    Attach(DriverName, String),
    #[error("no existing VolumeAttachment found")]
    NoAttachment,
    #[error("kubernetes.io/csi: {0}")]
    Said(&'static str, #[source] CallError),
    #[error(transparent)]
    Call(CallError),
    #[error("fetching {0} {1}/{2} failed")]
    Secret(&'static str, String, String, #[source] Box<NoSecret>),
    /// The files, or the API server.
    #[error(transparent)]
    Other(Box<VolumeError>),
    #[error("the pod is going")]
    Going,
}

fn other(error: impl Into<VolumeError>) -> Why {
    Why::Other(Box::new(error.into()))
}

/// Why a secret cannot be given to a driver.
#[derive(Debug, thiserror::Error)]
enum NoSecret {
    #[error("not found")]
    Missing,
    #[error("the value of its key {0:?} is not UTF-8, as CSI has it")]
    NotText(String),
    #[error(transparent)]
    Object(#[from] ObjectError),
}

/// A volume of a driver: on a node there is one of it.
type Volume = (DriverName, String);

/// A published volume of a pod, and when its driver is to be asked again.
#[derive(Clone)]
struct Stand {
    mounted: MountedVolume,
    again: Option<jiff::Timestamp>,
}

/// Mounts volumes of drivers, for the pods of this node.
pub struct Csi {
    root: PathBuf,
    node: String,
    drivers: Arc<Drivers>,
    objects: Arc<dyn Objects>,
    tokens: tokens::Cache,
    known: watch::Receiver<State>,
    in_use: watch::Sender<BTreeSet<String>>,
    turns: Mutex<HashMap<Volume, Arc<tokio::sync::Mutex<()>>>>,
    /// By pod and volume: what this agent has published.
    stands: Mutex<HashMap<(String, String), Stand>>,
    /// What this agent has staged.
    staged: Mutex<HashSet<Volume>>,
}

/// What the Node calls an attached volume.
fn unique_name(driver: &DriverName, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// The attached volumes that a former agent had in use on a node with this root: to be told before anything else
/// of the Node, since what is in use is not detached.
///
/// # Errors
/// [`VolumeError::Io`] when the pods' directories cannot be read.
pub fn attached(root: &Path) -> Result<BTreeSet<String>, VolumeError> {
    let uses = journal::uses(root)?;
    Ok(uses.iter().filter(|(_, u)| u.attached).map(|(_, u)| unique_name(&u.driver, &u.handle)).collect())
}

/// What [`Csi`] goes by.
pub struct Parts {
    /// The kubelet's `--root-dir`.
    pub root: PathBuf,
    /// The node's name.
    pub node: String,
    /// The drivers.
    pub drivers: Arc<Drivers>,
    /// How the node stands.
    pub known: watch::Receiver<State>,
    /// The attached volumes that are in use: what the Node is to say of them.
    pub in_use: watch::Sender<BTreeSet<String>>,
}

impl Csi {
    /// Volumes of those drivers; nothing of it is begun.
    pub(super) fn new(parts: Parts, objects: Arc<dyn Objects>, tokens: tokens::Cache) -> Self {
        let Parts { root, node, drivers, known, in_use } = parts;
        Csi {
            root,
            node,
            drivers,
            objects,
            tokens,
            known,
            in_use,
            turns: Mutex::default(),
            stands: Mutex::default(),
            staged: Mutex::default(),
        }
    }

    /// When the first of a pod's volumes is to be published again.
    pub(super) fn refresh(&self, uid: &str) -> Option<jiff::Timestamp> {
        let stands = lock(&self.stands);
        stands.iter().filter(|((of, _), _)| of == uid).filter_map(|(_, stand)| stand.again).min()
    }

    /// The turn of a volume: nobody else asks its driver anything about it meanwhile.
    async fn turn(&self, volume: &Volume) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = lock(&self.turns);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(volume.clone()).or_default())
        };
        turn.lock_owned().await
    }

    /// Where a pod's volume is, without what the driver mounts.
    fn place(&self, uid: &str, volume: &str) -> Result<PathBuf, VolumeError> {
        let pod = super::pod_dir(&self.root, uid)?;
        Ok(pod.join(journal::VOLUMES).join(super::component(volume)?))
    }

    /// Where a volume is staged, without what the driver mounts (`makeDeviceMountPath`).
    fn stage_place(&self, (driver, handle): &Volume) -> PathBuf {
        let drivers = self.root.join("plugins/kubernetes.io/csi");
        drivers.join(driver.as_str()).join(wanted::hash(&[handle]))
    }
}

/// Ends with the pod, where `work` takes longer.
async fn unless<T>(quit: &CancellationToken, work: impl Future<Output = T>) -> Result<T, Why> {
    tokio::select! {
        done = work => Ok(done),
        () = quit.cancelled() => Err(Why::Going),
    }
}

#[cfg(test)]
pub(crate) mod tests;
