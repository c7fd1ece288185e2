//! CSI drivers of this node (pkg/volume/csi): which are registered, and what the cluster is told of them. Their
//! volumes are `volumes::csi`.
//!
//! A driver: its socket in the registry is seen (`plugins`), it is asked what it calls the node, the cluster is told,
//! and only then the driver is; when the socket in the registry goes, the driver is gone, whether or not it serves.
//! Invariants: of one name one driver is registered at a time; what takes long takes it from one driver alone.

pub mod driver;
pub mod name;
pub mod node;

use crate::pod::actions::chain;
use crate::sync::lock;
use driver::Driver;
use name::{DriverName, Version};
use node::Publish;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;

/// How long a driver is waited for that may only not have been found yet, just after the agent's start.
const SETTLE: Duration = Duration::from_secs(10);

/// What a plugin of type `CSIPlugin` says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The socket that it registers with: who it is, among those of one name.
    pub socket: PathBuf,
    /// Its name.
    pub name: String,
    /// Where it serves.
    pub endpoint: PathBuf,
    /// The versions of CSI that it speaks.
    pub versions: Vec<String>,
}

/// Why a driver is not taken.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// Its name could not be a directory's, or a key.
    #[error("{0:?} is no name of a CSI driver")]
    Name(String),
    /// It would be connected to relative to wherever the agent runs.
    #[error("the endpoint {0:?} of CSI driver {1} is no absolute path")]
    Endpoint(PathBuf, DriverName),
    /// It speaks another CSI.
    #[error("validation failed for CSI driver {0}: none of the versions specified {1:?} are supported")]
    Versions(DriverName, Vec<String>),
    /// The name is taken.
    #[error(
        "CSI driver {0:?} failed. Another driver with the same name is already registered with a higher supported version"
    )]
    Taken(String),
    /// It does not say what it calls the node.
    #[error(transparent)]
    Call(#[from] driver::CallError),
    /// The cluster could not be told.
    #[error(transparent)]
    Publish(#[from] node::PublishError),
}

struct Registered {
    driver: Driver,
    version: Version,
    socket: PathBuf,
}

/// The drivers that are registered.
pub struct Drivers {
    table: Mutex<BTreeMap<DriverName, Registered>>,
    publish: Arc<dyn Publish>,
    /// Whether those whose sockets were there when the agent began have been tried.
    settled: watch::Sender<bool>,
    limit: Duration,
}

impl std::fmt::Debug for Drivers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drivers").field("names", &self.names()).finish_non_exhaustive()
    }
}

impl Drivers {
    /// None yet.
    #[must_use]
    pub fn new(publish: Arc<dyn Publish>) -> Arc<Self> {
        Drivers::with_limit(publish, driver::CALL)
    }

    /// The same, with another end of each call.
    pub(crate) fn with_limit(publish: Arc<dyn Publish>, limit: Duration) -> Arc<Self> {
        Arc::new(Drivers { table: Mutex::default(), publish, settled: watch::Sender::new(false), limit })
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<DriverName, Registered>> {
        lock(&self.table)
    }

    fn names(&self) -> BTreeSet<DriverName> {
        self.table().keys().cloned().collect()
    }

    /// The driver of a name, if it is registered. Just after the agent's start it may be about to.
    pub async fn find(&self, name: &DriverName) -> Option<Driver> {
        let known = || self.table().get(name).map(|registered| registered.driver.clone());
        if let Some(driver) = known() {
            return Some(driver);
        }
        let mut settled = self.settled.subscribe();
        // A sender that is gone has nothing more to tell, and neither has a time-out.
        let _ = tokio::time::timeout(SETTLE, settled.wait_for(|settled| *settled)).await;
        known()
    }

    /// Whether the offer may be taken (`ValidatePlugin`).
    ///
    /// # Errors
    /// [`OfferError`].
    pub fn validate(&self, offer: &Offer) -> Result<(DriverName, Version), OfferError> {
        let name = DriverName::parse(&offer.name)
            .ok_or_else(|| OfferError::Name(podway_flow::record::bounded(&offer.name, 64)))?;
        if !offer.endpoint.is_absolute() {
            return Err(OfferError::Endpoint(offer.endpoint.clone(), name));
        }
        let Some(version) = Version::highest(&offer.versions) else {
            return Err(OfferError::Versions(name, offer.versions.clone()));
        };
        let table = self.table();
        let other = table.get(&name).filter(|other| other.socket != offer.socket);
        if other.is_some_and(|other| other.version >= version) {
            return Err(OfferError::Taken(offer.name.clone()));
        }
        Ok((name, version))
    }

    /// Takes a driver on, once the cluster knows of it (`RegisterPlugin`).
    ///
    /// # Errors
    /// [`OfferError`]; the driver is not registered then.
    pub async fn register(&self, offer: &Offer) -> Result<(), OfferError> {
        let (name, version) = self.validate(offer)?;
        let driver = Driver::new(&offer.endpoint, self.limit);
        let info = driver.info().await?;
        // Taken on before the cluster is told, so that nobody else's leaving takes it from what is told.
        let registered = Registered { driver, version, socket: offer.socket.clone() };
        self.table().insert(name.clone(), registered);
        if let Err(error) = self.publish.install(&name, &info).await {
            self.forget(&name, &offer.socket).await;
            return Err(error.into());
        }
        tracing::info!(driver = %name, endpoint = %offer.endpoint.display(), node_id = info.id, "a CSI driver has registered");
        Ok(())
    }

    /// The socket that a driver had registered with is gone (`DeRegisterPlugin`).
    pub async fn deregister(&self, offer: &Offer) {
        if let Some(name) = DriverName::parse(&offer.name) {
            tracing::info!(driver = %name, "a CSI driver has left");
            self.forget(&name, &offer.socket).await;
        }
    }

    /// Takes a driver from the table and from what the cluster is told, unless another socket has its name by now.
    async fn forget(&self, name: &DriverName, socket: &Path) {
        let removed = {
            let mut table = self.table();
            let ours = table.get(name).is_some_and(|registered| registered.socket == socket);
            ours.then(|| table.remove(name))
        };
        if removed.is_some() {
            self.keep().await;
        }
    }

    /// All sockets that were there when the agent began have been tried: what the cluster still knows of others is of
    /// drivers that left while there was no agent.
    pub async fn settle(&self) {
        self.settled.send_replace(true);
        self.keep().await;
    }

    async fn keep(&self) {
        if let Err(error) = self.publish.keep(&self.names()).await {
            tracing::error!(error = chain(&error), "the cluster cannot be told that a CSI driver has left");
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
