//! Plugins that tell of themselves (pkg/kubelet/pluginmanager): each has a socket in the registry's directory, or
//! below it, on which it is asked who it is and told whether it was taken. CSI drivers register so.
//!
//! A socket: seen (inotify, never polled), asked, refused (asked again, ever later) or taken, gone. Each has a task of
//! its own: one that hangs holds up nobody else's. One that is made anew is another socket: the plugin behind the old
//! one leaves first.

use crate::csi::{Drivers, Offer, OfferError};
use crate::pod::actions::chain;
use crate::rpc::{self, timed};
use futures::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};
use podway_cri::client::{self, ConnectError};
use podway_cri::pluginregistration::registration_client::RegistrationClient;
use podway_cri::pluginregistration::{InfoRequest, PluginInfo, RegistrationStatus};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

/// How long a plugin may take to be connected to, and to be told (`dialTimeoutDuration`, `notifyTimeoutDuration`).
const CONNECT: Duration = Duration::from_secs(10);
/// How long it may take to say who it is.
const ASK: Duration = Duration::from_secs(1);
/// The first and the longest pause after a plugin that was refused (`exponentialbackoff`).
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(122));
/// How deep the sockets may lie.
const DEPTH: usize = 8;

/// Why a plugin is not taken.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("RegisterPlugin error -- dial failed at socket {0}")]
    Dial(String, #[source] ConnectError),
    #[error("RegisterPlugin error -- failed to get plugin info using RPC GetInfo at socket {0}, err: {said}", said = rpc::said(.1))]
    Info(String, Status),
    #[error("RegisterPlugin error -- no handler registered for plugin type: {0} at socket {1}")]
    Type(String, String),
    #[error("RegisterPlugin error -- plugin validation failed with err: {0}")]
    Validation(String),
    #[error("RegisterPlugin error -- plugin registration failed with err: {0}")]
    Registration(String),
    #[error("RegisterPlugin error -- failed to send registration status at socket {0}, err: {said}", said = rpc::said(.1))]
    Told(String, Status),
}

/// Which socket it is that has a path: one that is made anew is another.
type Identity = (u64, Option<SystemTime>);

struct Entry {
    identity: Identity,
    /// That the socket is gone.
    gone: CancellationToken,
    task: JoinHandle<()>,
}

/// The registry of plugins.
#[derive(Debug)]
pub struct Plugins {
    dir: PathBuf,
    drivers: Arc<Drivers>,
}

impl Plugins {
    /// Those with a socket in `dir`.
    #[must_use]
    pub fn new(dir: &Path, drivers: Arc<Drivers>) -> Arc<Self> {
        Arc::new(Plugins { dir: dir.to_owned(), drivers })
    }

    /// Has plugins register, until it is dropped. Where the directory cannot be watched, the node goes on without.
    pub async fn serve(self: Arc<Self>) {
        if let Err(error) = self.follow().await {
            tracing::error!(%error, dir = %self.dir.display(), "plugins cannot register");
            self.drivers.settle().await;
        }
        std::future::pending().await
    }

    async fn follow(self: &Arc<Self>) -> io::Result<()> {
        let mut known = BTreeMap::new();
        let mut beginning = Some(mpsc::channel::<()>(1));
        loop {
            // Listed after the watch stands: what comes in between is not missed.
            let dir = self.dir.clone();
            let looked = tokio::task::spawn_blocking(move || {
                std::fs::DirBuilder::new().recursive(true).mode(0o750).create(&dir)?;
                let changes = watch(&dir)?;
                Ok::<_, io::Error>((changes, sockets(&dir)))
            });
            let (mut changes, found) = looked.await.map_err(io::Error::other)??;
            let first = beginning.take();
            self.take(&mut known, found, first.as_ref().map(|(begun, _)| begun));
            if let Some((begun, mut tried)) = first {
                drop(begun);
                let drivers = Arc::clone(&self.drivers);
                tokio::spawn(async move {
                    // Ends when the last of the first sockets has dropped its end.
                    while tried.recv().await.is_some() {}
                    drivers.settle().await;
                });
            }
            if let Some(Err(error)) = changes.next().await {
                return Err(error);
            }
        }
    }

    /// Begins what is new and ends what is gone.
    fn take(
        self: &Arc<Self>,
        known: &mut BTreeMap<PathBuf, Entry>,
        found: BTreeMap<PathBuf, Identity>,
        first: Option<&mpsc::Sender<()>>,
    ) {
        known.retain(|path, entry| {
            let here = found.contains_key(path);
            if !here {
                entry.gone.cancel();
            }
            // One that is still leaving is waited for by the next of its path.
            here || !entry.task.is_finished()
        });
        for (path, identity) in found {
            let same = |entry: &Entry| entry.identity == identity && !entry.gone.is_cancelled();
            if known.get(&path).is_some_and(same) {
                continue;
            }
            let before = known.remove(&path);
            let gone = CancellationToken::new();
            let work = Arc::clone(self).keep(path.clone(), before, gone.clone(), first.cloned());
            known.insert(path, Entry { identity, gone, task: tokio::spawn(work) });
        }
    }

    /// One socket, from when it is seen until it is gone.
    async fn keep(
        self: Arc<Self>,
        socket: PathBuf,
        before: Option<Entry>,
        gone: CancellationToken,
        mut first: Option<mpsc::Sender<()>>,
    ) {
        if let Some(before) = before {
            before.gone.cancel();
            if let Err(error) = before.task.await {
                tracing::error!(%error, "a plugin's task broke: a defect of the agent");
            }
        }
        let (mut pause, longest) = RETRY;
        let mut told = None;
        while !gone.is_cancelled() {
            // Not cut short when the socket goes: what has begun has an end of its own, and a beginning to be undone.
            let registered = self.register(&socket).await;
            drop(first.take());
            match registered {
                Ok(offer) => {
                    gone.cancelled().await;
                    return self.drivers.deregister(&offer).await;
                }
                Err(error) => {
                    let error = chain(&error);
                    if told.as_ref() != Some(&error) {
                        tracing::warn!(socket = %socket.display(), error, "a plugin is not taken");
                        told = Some(error);
                    }
                }
            }
            tokio::select! {
                () = gone.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(longest);
        }
    }

    /// Asks a plugin who it is, takes it on, and tells it so.
    async fn register(&self, socket: &Path) -> Result<Offer, Refused> {
        let at = socket.display().to_string();
        let endpoint = format!("unix://{at}");
        let connected = tokio::time::timeout(CONNECT, client::connect(&endpoint)).await;
        let late =
            |_| Refused::Info(at.clone(), Status::deadline_exceeded("it does not take the connection"));
        let channel = connected.map_err(late)?.map_err(|e| Refused::Dial(at.clone(), e))?;
        let mut plugin = RegistrationClient::new(channel);
        let info = timed(ASK, plugin.get_info(InfoRequest {})).await;
        let PluginInfo { r#type, name, endpoint, supported_versions } =
            info.map_err(|status| Refused::Info(at.clone(), status))?;
        if r#type != "CSIPlugin" {
            let refused = Refused::Type(podway_flow::record::bounded(&r#type, 64), at);
            return Err(refuse(plugin, refused).await);
        }
        let endpoint = if endpoint.is_empty() { socket.to_owned() } else { PathBuf::from(endpoint) };
        let offer = Offer { socket: socket.to_owned(), name, endpoint, versions: supported_versions };
        let said = |error: OfferError| chain(&error);
        if let Err(error) = self.drivers.validate(&offer) {
            return Err(refuse(plugin, Refused::Validation(said(error))).await);
        }
        if let Err(error) = self.drivers.register(&offer).await {
            return Err(refuse(plugin, Refused::Registration(said(error))).await);
        }
        let taken = RegistrationStatus { plugin_registered: true, error: String::new() };
        if let Err(status) = timed(CONNECT, plugin.notify_registration_status(taken)).await {
            self.drivers.deregister(&offer).await;
            return Err(Refused::Told(at, status));
        }
        Ok(offer)
    }
}

/// Tells a plugin why it is not taken, as well as may be: the reason stands whether or not it hears of it.
async fn refuse(mut plugin: RegistrationClient<Channel>, why: Refused) -> Refused {
    let status = RegistrationStatus { plugin_registered: false, error: why.to_string() };
    if let Err(status) = timed(CONNECT, plugin.notify_registration_status(status)).await {
        tracing::debug!(error = rpc::said(&status), "a plugin does not hear that it is not taken");
    }
    why
}

/// What lies in `dir` and below it that is no link and whose name does not begin with a dot.
fn below(dir: &Path, depth: usize, each: &mut dyn FnMut(&Path, &std::fs::Metadata)) {
    // What cannot be listed, or has gone meanwhile, has nothing to register.
    let Ok(list) = std::fs::read_dir(dir) else { return };
    for entry in list.flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        each(&entry.path(), &meta);
        if meta.is_dir() && depth < DEPTH {
            below(&entry.path(), depth + 1, each);
        }
    }
}

/// The sockets of the registry.
fn sockets(dir: &Path) -> BTreeMap<PathBuf, Identity> {
    let mut found = BTreeMap::new();
    below(dir, 0, &mut |path, meta| {
        if meta.file_type().is_socket() {
            // When it was made tells two of one inode apart; not every file system says.
            found.insert(path.to_owned(), (meta.ino(), meta.created().ok()));
        }
    });
    found
}

/// A watch on the registry's directories.
fn watch(dir: &Path) -> io::Result<EventStream<[u8; 4096]>> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO
        | WatchMask::DELETE_SELF
        | WatchMask::ONLYDIR;
    inotify.watches().add(dir, mask)?;
    below(dir, 0, &mut |path, meta| {
        // One that has gone meanwhile was told of by the directory above it.
        if meta.is_dir()
            && let Err(error) = inotify.watches().add(path, mask)
        {
            tracing::debug!(%error, path = %path.display(), "a directory of the registry is not watched");
        }
    });
    inotify.into_event_stream([0; 4096])
}

#[cfg(test)]
mod tests;
