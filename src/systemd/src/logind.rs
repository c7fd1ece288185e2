//! The calls to systemd-logind (org.freedesktop.login1.Manager) by which a daemon puts a shutdown of the machine off
//! for as long as it has to finish its work: an inhibitor lock of mode `delay`, as the kubelet takes it
//! (pkg/kubelet/nodeshutdown/systemd/inhibit_linux.go; <https://systemd.io/INHIBITOR_LOCKS>).

use crate::bus;
use futures::{Stream, StreamExt as _};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zbus::{Connection, OwnedFd, Proxy};

/// Where settings of one's own go, and the file that is the kubelet's.
const SETTINGS: &str = "etc/systemd/logind.conf.d";
const FILE: &str = "99-kubelet.conf";
/// What makes it read its settings again.
const SIGHUP: i32 = 1;
/// logind reads its settings again some time after it was told to: how long it is asked whether it has.
const REREAD: [u64; 5] = [100, 200, 400, 800, 1600];

/// Why a shutdown is not put off.
#[derive(Debug, thiserror::Error)]
pub enum LogindError {
    /// It does not answer.
    #[error("systemd-logind does not {verb}")]
    Call {
        /// What was asked.
        verb: &'static str,
        /// Why not.
        #[source]
        source: zbus::Error,
    },
    /// Its settings cannot be written.
    #[error("cannot write {0}")]
    Settings(PathBuf, #[source] io::Error),
    /// It does not allow as much.
    #[error(
        "systemd-logind lets a shutdown be put off by {allowed:?} at most, and not by {wanted:?}: InhibitDelayMaxSec \
         is set elsewhere"
    )]
    Delay {
        /// What it allows.
        allowed: Duration,
        /// What was asked for.
        wanted: Duration,
    },
}

fn failed(verb: &'static str) -> impl FnOnce(zbus::Error) -> LogindError {
    move |source| LogindError::Call { verb, source }
}

/// A shutdown of the machine waits while this is held, for as long as logind allows.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "what is held is the open file")] OwnedFd);

/// systemd-logind.
#[derive(Debug)]
pub struct Logind {
    connection: Connection,
    proxy: Proxy<'static>,
}

impl Logind {
    /// Reaches it over the system bus.
    ///
    /// # Errors
    /// [`LogindError`].
    pub async fn connect() -> Result<Self, LogindError> {
        let connection = Connection::system().await.map_err(failed("answer: there is no system bus"))?;
        let proxy = bus::LOGIND.on(&connection).await.map_err(failed("answer"))?;
        Ok(Logind { connection, proxy })
    }

    /// How long a shutdown can be put off (`InhibitDelayMaxSec`).
    ///
    /// # Errors
    /// [`LogindError`].
    pub async fn delay(&self) -> Result<Duration, LogindError> {
        let micros = self.proxy.get_property::<u64>("InhibitDelayMaxUSec").await;
        Ok(Duration::from_micros(micros.map_err(failed("tell InhibitDelayMaxUSec"))?))
    }

    /// Has it allow at least `wanted`, by a settings file below `root` where it allows less.
    ///
    /// # Errors
    /// [`LogindError`], also where another file of settings goes before ours.
    pub async fn allow(&self, wanted: Duration, root: &Path) -> Result<(), LogindError> {
        if self.delay().await? >= wanted {
            return Ok(());
        }
        let dir = root.join(SETTINGS);
        let file = dir.join(FILE);
        let text = format!("# Kubelet logind override\n[Login]\nInhibitDelayMaxSec={}\n", wanted.as_secs());
        let written = std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(&file, text));
        written.map_err(|e| LogindError::Settings(file, e))?;
        let systemd = bus::MANAGER.on(&self.connection).await.map_err(failed("read its settings again"))?;
        let hangup = ("systemd-logind.service", "all", SIGHUP);
        systemd.call_method("KillUnit", &hangup).await.map_err(failed("read its settings again"))?;
        let mut allowed = Duration::ZERO;
        for wait in REREAD {
            allowed = self.delay().await?;
            if allowed >= wanted {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
        Err(LogindError::Delay { allowed, wanted })
    }

    /// Takes a lock.
    ///
    /// # Errors
    /// [`LogindError`].
    pub async fn inhibit(&self, who: &str, why: &str) -> Result<Lock, LogindError> {
        let asked = ("shutdown", who, why, "delay");
        let lock = self.proxy.call::<_, _, OwnedFd>("Inhibit", &asked).await;
        lock.map(Lock).map_err(failed("give an inhibitor lock"))
    }

    /// Tells of shutdowns: `true` when one begins, `false` when it was called off. It ends with the connection.
    ///
    /// # Errors
    /// [`LogindError`].
    pub async fn shutdowns(&self) -> Result<impl Stream<Item = bool> + use<>, LogindError> {
        let signals = self.proxy.receive_signal("PrepareForShutdown").await;
        let signals = signals.map_err(failed("tell of shutdowns"))?;
        Ok(signals.filter_map(async |message| message.body().deserialize::<bool>().ok()))
    }
}
