//! The calls to systemd's manager (org.freedesktop.systemd1.Manager) that a cgroup driver needs, as libcontainer
//! makes them (cgroups/systemd/common.go): a transient unit is there when its job has ended, a unit that is stopped
//! is forgotten also where it failed.
//!
//! The connection is made with the first call, to the system bus, or where there is none to the manager's own
//! socket, which root may use; one that has broken is made anew, once, with the next call.

use crate::bus;
use crate::jobs::Jobs;
use crate::slice::Slice;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use zbus::Variant;
use zbus::{Connection, Proxy, connection};

/// The manager's own socket.
const PRIVATE: &str = "unix:path=/run/systemd/private";
/// How long a job may take; libcontainer's time.
const LIMIT: Duration = Duration::from_secs(30);

/// A property of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Property {
    /// A number; `u64::MAX` is infinity.
    Number(&'static str, u64),
    /// Yes or no.
    Flag(&'static str, bool),
    /// Text.
    Text(&'static str, String),
    /// Processes.
    Processes(&'static str, Vec<u32>),
    /// The names of other units.
    Units(&'static str, Vec<String>),
}

impl Property {
    fn wire(&self) -> (&'static str, Variant<'_>) {
        match self {
            Property::Number(name, n) => (name, Variant::from(*n)),
            Property::Flag(name, on) => (name, Variant::from(*on)),
            Property::Text(name, text) => (name, Variant::from(text.as_str())),
            Property::Processes(name, pids) => (name, Variant::from(pids)),
            Property::Units(name, units) => (name, Variant::from(units)),
        }
    }
}

/// Why systemd did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// There is no way to it.
    #[error("systemd does not answer: neither the system bus nor /run/systemd/private can be used")]
    Connect(#[source] zbus::Error),
    /// It refused.
    #[error("systemd refused to {verb} {unit}")]
    Refused {
        /// What was asked.
        verb: &'static str,
        /// Of which unit.
        unit: String,
        /// Why not.
        #[source]
        source: zbus::Error,
    },
    /// The job did not end well.
    #[error("systemd did not {verb} {unit}: the job ended with {result:?}")]
    Job {
        /// What was asked.
        verb: &'static str,
        /// Of which unit.
        unit: String,
        /// systemd's word: `failed`, `timeout`, `canceled`, …
        result: String,
    },
}

/// systemd, reached when it is needed.
#[derive(Debug, Default)]
pub struct Manager {
    link: Mutex<Option<Arc<Link>>>,
}

/// A connection, and who listens on it for the ends of jobs.
#[derive(Debug)]
struct Link {
    connection: Connection,
    manager: Proxy<'static>,
    jobs: Arc<Jobs>,
    listener: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Link {
    async fn new() -> zbus::Result<Self> {
        let connection = Self::connect().await?;
        let manager = bus::MANAGER.on(&connection).await?;
        let jobs = Arc::<Jobs>::default();
        let ends = manager.receive_signal("JobRemoved").await?;
        // Without it signals are not sent at all.
        manager.call_method("Subscribe", &()).await?;
        let listener = tokio::spawn(Arc::clone(&jobs).listen(ends));
        Ok(Link { connection, manager, jobs, listener })
    }

    async fn call<B>(
        &self,
        (verb, unit): (&'static str, &str),
        method: &'static str,
        body: &B,
    ) -> Result<zbus::Message, ManagerError>
    where
        B: serde::Serialize + zbus::wire::DynamicType,
    {
        let answer = self.manager.call_method(method, body).await;
        answer.map_err(|source| ManagerError::Refused { verb, unit: unit.to_owned(), source })
    }

    async fn connect() -> zbus::Result<Connection> {
        match connection::Builder::system().build().await {
            Ok(connection) => Ok(connection),
            Err(error) => {
                tracing::debug!(%error, "no system bus: systemd's own socket is tried");
                connection::Builder::address(PRIVATE).p2p().build().await
            }
        }
    }
}

impl Manager {
    /// Makes a slice, or finds it there: with every kind of accounting, and no dependency but on the slice that it
    /// lies in.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub async fn start_slice(&self, slice: &Slice, v2: bool) -> Result<(), ManagerError> {
        let mut properties = vec![
            Property::Text("Description", format!("podway slice {slice}")),
            Property::Units("Wants", vec![slice.parent()]),
        ];
        properties.extend(accounting(v2));
        match self.start(slice.name(), &properties).await {
            Err(ManagerError::Refused { source, .. }) if named(&source, "UnitExists") => Ok(()),
            other => other,
        }
    }

    /// Changes a unit until the next boot.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub async fn set(&self, unit: &str, properties: &[Property]) -> Result<(), ManagerError> {
        let wire: Vec<(&str, Variant<'_>)> = properties.iter().map(Property::wire).collect();
        let asked = ("change", unit);
        self.link().await?.call(asked, "SetUnitProperties", &(unit, true, wire)).await.map(drop)
    }

    /// Puts a process into a scope of its own in a slice; the scope goes with its last process.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub async fn start_scope(
        &self,
        name: &str,
        slice: &Slice,
        pid: u32,
        v2: bool,
    ) -> Result<(), ManagerError> {
        let mut properties = vec![
            Property::Text("Description", format!("podway {name}")),
            Property::Text("Slice", slice.name().to_owned()),
            Property::Flag("Delegate", true),
            Property::Processes("PIDs", vec![pid]),
        ];
        properties.extend(accounting(v2));
        match self.start(name, &properties).await {
            // One of that name has failed and was not forgotten.
            Err(ManagerError::Refused { source, .. }) if named(&source, "UnitExists") => {
                self.forget(name).await?;
                self.start(name, &properties).await
            }
            other => other,
        }
    }

    /// Ends a unit with all that runs in it, and has it forgotten; one that is not there has ended.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub async fn stop(&self, unit: &str) -> Result<(), ManagerError> {
        match self.job(("stop", unit), "StopUnit", &(unit, "replace")).await {
            Err(ManagerError::Refused { source, .. }) if named(&source, "NoSuchUnit") => Ok(()),
            Ok(()) => self.forget(unit).await,
            other => other,
        }
    }

    /// Has a unit that failed forgotten; one that is not there is.
    async fn forget(&self, unit: &str) -> Result<(), ManagerError> {
        match self.link().await?.call(("forget", unit), "ResetFailedUnit", &(unit,)).await {
            Err(ManagerError::Refused { source, .. }) if named(&source, "NoSuchUnit") => Ok(()),
            other => other.map(drop),
        }
    }

    async fn start(&self, unit: &str, properties: &[Property]) -> Result<(), ManagerError> {
        let wire: Vec<(&str, Variant<'_>)> = properties.iter().map(Property::wire).collect();
        let others: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
        self.job(("start", unit), "StartTransientUnit", &(unit, "replace", wire, others)).await
    }

    /// Asks for a job and waits for its end, which is told to whoever listens.
    async fn job<B>(
        &self,
        asked: (&'static str, &str),
        method: &'static str,
        body: &B,
    ) -> Result<(), ManagerError>
    where
        B: serde::Serialize + zbus::wire::DynamicType,
    {
        let (verb, unit) = (asked.0, asked.1.to_owned());
        let refused = |source| ManagerError::Refused { verb, unit: unit.clone(), source };
        let link = self.link().await?;
        // Before the call, so that the end of a quick job is not missed.
        let call = link.jobs.call();
        let answer = link.call(asked, method, body).await?;
        let end = call.began(answer.body().deserialize().map_err(refused)?);
        let result = match tokio::time::timeout(LIMIT, end).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => return Err(refused(zbus::Error::Failure("the connection has ended".to_owned()))),
            Err(_) => "no end in 30s".to_owned(),
        };
        match result.as_str() {
            "done" => Ok(()),
            _ => Err(ManagerError::Job { verb, unit: unit.clone(), result }),
        }
    }

    /// Which systemd it is: `252.38-1~deb12u1`.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub async fn version(&self) -> Result<String, ManagerError> {
        let value = self.link().await?.manager.get_property("Version").await;
        value.map_err(|source| ManagerError::Refused { verb: "tell", unit: "Version".to_owned(), source })
    }

    async fn link(&self) -> Result<Arc<Link>, ManagerError> {
        let mut held = self.link.lock().await;
        if let Some(link) = held.as_ref().filter(|link| !link.connection.is_closed()) {
            return Ok(Arc::clone(link));
        }
        let link = Arc::new(Link::new().await.map_err(ManagerError::Connect)?);
        *held = Some(Arc::clone(&link));
        Ok(link)
    }
}

/// Always on: it is what a cgroup of the other driver has, and the kernel does not count what came before.
fn accounting(v2: bool) -> Vec<Property> {
    let io = if v2 { "IOAccounting" } else { "BlockIOAccounting" };
    let mut all: Vec<Property> = ["MemoryAccounting", "CPUAccounting", io, "TasksAccounting"]
        .map(|name| Property::Flag(name, true))
        .into();
    all.push(Property::Flag("DefaultDependencies", false));
    all
}

/// Whether systemd refused by this name.
fn named(error: &zbus::Error, name: &str) -> bool {
    match error {
        zbus::Error::MethodError(full, _, _) => {
            full.as_str().strip_prefix("org.freedesktop.systemd1.") == Some(name)
        }
        _ => false,
    }
}
