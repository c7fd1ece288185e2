//! One CRI server on a [`Stage`]: started, waited for, and at the end emptied of its pods and stopped.

use super::client::Cri;
use super::stage::{Stage, remove_bridge};
use crate::cluster::built;
use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use podway_cluster::Program;
use podway_cri::v1;
use podway_systemd::Driver;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// How long a server may take until it is ready.
const LIMIT: Duration = Duration::from_secs(60);

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `podway-runtime`.
    Podway,
    /// containerd 2.
    Containerd,
}

impl Kind {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Podway => "podway",
            Kind::Containerd => "containerd",
        }
    }
}

/// A server that runs.
#[derive(Debug)]
pub struct Server {
    /// Which.
    pub kind: Kind,
    /// `unix:///…`.
    pub endpoint: String,
    /// What it writes.
    pub log: PathBuf,
    /// Everything of it is below this, and its helpers name it in their command lines.
    pub dir: PathBuf,
    command: Command,
    child: Child,
    bridge: String,
}

impl Server {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// When it cannot be started, or ends.
    pub async fn start(stage: &Stage, kind: Kind) -> anyhow::Result<Self> {
        let name = kind.name();
        let dir = stage.at(name);
        std::fs::create_dir_all(&dir)?;
        let socket = dir.join("cri.sock");
        let (conf, bridge) = stage.network(name, kind as u8)?;
        let config = dir.join("config.toml");
        let mut command = match kind {
            Kind::Podway => {
                std::fs::write(&config, podway(stage, &dir, &socket, &conf)?)?;
                let mut command = Command::new(built("podway-runtime")?);
                command.arg("--config").arg(&config);
                command
            }
            Kind::Containerd => {
                let programs = Program::Containerd.locate(&|line: &str| eprintln!("{line}")).await?;
                let settings = Containerd {
                    dir: &dir,
                    socket: &socket,
                    hosts: &stage.hosts(),
                    runc: &stage.runc,
                    cni: &stage.cni,
                    conf: &conf,
                };
                std::fs::write(&config, settings.toml())?;
                let mut command = Command::new(programs.join("containerd"));
                let path = std::env::var("PATH").unwrap_or_default();
                // It finds its shim there.
                command.env("PATH", format!("{}:{path}", programs.display())).arg("--config").arg(&config);
                command
            }
        };
        let log = dir.join("log");
        let out = std::fs::File::create(&log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        let endpoint = format!("unix://{}", socket.display());
        let mut server = Server { kind, endpoint, log, dir, command, child, bridge };
        server.answers().await?;
        Ok(server)
    }

    /// Ends the server (its pods go on) and starts it again; gives the time from the new process' start until
    /// it is ready.
    ///
    /// # Errors
    /// When it does not end, cannot be started or ends.
    pub async fn restart(&mut self) -> anyhow::Result<Duration> {
        self.end().await?;
        let begun = Instant::now();
        self.child = self.command.spawn().with_context(|| format!("starting {}", self.kind.name()))?;
        self.answers().await?;
        Ok(begun.elapsed())
    }

    /// Waits for the two conditions that the CRI knows; containerd has others, of what it deprecates.
    async fn answers(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            if let Ok(mut cri) = Cri::connect(&self.endpoint).await {
                let status = cri.runtime.status(v1::StatusRequest::default()).await;
                let conditions =
                    status.map(|s| s.into_inner().status.unwrap_or_default().conditions).unwrap_or_default();
                let holds = |of: &str| conditions.iter().any(|c| c.r#type == of && c.status);
                if holds("RuntimeReady") && holds("NetworkReady") {
                    return Ok(());
                }
                ensure!(begun.elapsed() < LIMIT, "{} is not ready: {conditions:?}", self.kind.name());
            }
            ensure!(begun.elapsed() < LIMIT, "{} does not answer", self.kind.name());
            if let Some(status) = self.child.try_wait()? {
                let said = std::fs::read_to_string(&self.log).unwrap_or_default();
                bail!("{} has ended: {status}\n{said}", self.kind.name());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// A client of it.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn client(&self) -> anyhow::Result<Cri> {
        let handler = match self.kind {
            Kind::Podway => handler()?.map(|(name, _)| name),
            Kind::Containerd => None,
        };
        Ok(Cri { handler: handler.unwrap_or_default(), ..Cri::connect(&self.endpoint).await? })
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Removes every pod and stops the server.
    ///
    /// # Errors
    /// When a pod does not go, or the server does not end.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let removed = async { Ok::<_, anyhow::Error>(self.client().await?.remove_all().await?) };
        let removed = removed.await.with_context(|| format!("emptying {}", self.kind.name()));
        self.end().await?;
        remove_bridge(&self.bridge).await?;
        removed?;
        match (self.kind, driver()?) {
            (Kind::Containerd, _) => Ok(()),
            (Kind::Podway, Driver::Cgroupfs) => remove_cgroups(&parent()?),
            (Kind::Podway, Driver::Systemd) => stop_slice(&parent()?).await,
        }
    }

    async fn end(&mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id().and_then(|p| i32::try_from(p).ok()) {
            kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM)?;
        }
        let ended = tokio::time::timeout(Duration::from_secs(30), self.child.wait()).await;
        ended.with_context(|| format!("{} does not end", self.kind.name()))??;
        Ok(())
    }
}

/// Who makes the cgroups of our server's pods: `PODWAY_CRI_CGROUP_DRIVER`, for machines with a systemd. containerd's are
/// its own, since under systemd it wants each pod to name a slice.
///
/// # Errors
/// When it is neither `cgroupfs` nor `systemd`.
pub fn driver() -> anyhow::Result<Driver> {
    const NAME: &str = "PODWAY_CRI_CGROUP_DRIVER";
    let Some(asked) = std::env::var_os(NAME) else { return Ok(Driver::default()) };
    let known = [Driver::Cgroupfs, Driver::Systemd].into_iter().find(|driver| asked == driver.name());
    known.with_context(|| format!("{NAME} is cgroupfs or systemd"))
}

/// The handler that pods of our server are run with, and the program that it is: `PODWAY_CRI_HANDLER`, for example
/// `crun=/usr/bin/crun`. Without it they are runc's, as containerd's always are.
fn handler() -> anyhow::Result<Option<(String, PathBuf)>> {
    const NAME: &str = "PODWAY_CRI_HANDLER";
    let Some(asked) = std::env::var_os(NAME) else { return Ok(None) };
    let named = asked.to_str().and_then(|text| text.split_once('='));
    let (name, path) =
        named.with_context(|| format!("{NAME} is NAME=PATH, for example crun=/usr/bin/crun"))?;
    Ok(Some((name.to_owned(), PathBuf::from(path))))
}

/// The cgroup of our server's pods: what has none of its own names it.
fn parent() -> anyhow::Result<String> {
    let pid = std::process::id();
    Ok(match driver()? {
        Driver::Cgroupfs => format!("/podway-cri-{pid}"),
        Driver::Systemd => format!("podwaycri{pid}.slice"),
    })
}

/// Ends a slice; one that has something in it is a leak.
async fn stop_slice(name: &str) -> anyhow::Result<()> {
    let within = Path::new("/sys/fs/cgroup").join(name);
    let left = std::fs::read_dir(&within).into_iter().flatten().flatten().filter(|e| e.path().is_dir());
    let left: Vec<_> = left.map(|e| e.path()).collect();
    ensure!(left.is_empty(), "in {name} there stay {left:?}");
    let stopped = Command::new("systemctl").args(["stop", name]).status().await.context("systemctl")?;
    ensure!(stopped.success(), "systemctl stop {name}: {stopped}");
    Ok(())
}

/// Removes the emptied cgroup in every hierarchy; one that is not empty is a leak.
fn remove_cgroups(name: &str) -> anyhow::Result<()> {
    let mount = Path::new("/sys/fs/cgroup");
    let name = name.trim_start_matches('/');
    let trees = std::fs::read_dir(mount).context("the cgroup mount")?.flatten().map(|e| e.path());
    for dir in trees.chain([mount.to_owned()]).map(|tree| tree.join(name)).filter(|dir| dir.is_dir()) {
        match std::fs::remove_dir(&dir) {
            // Some hierarchies have two names.
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => bail!("{} stays: {e}", dir.display()),
            _ => {}
        }
    }
    Ok(())
}

fn podway(stage: &Stage, dir: &Path, socket: &Path, conf: &Path) -> anyhow::Result<String> {
    let text = |path: PathBuf| json!(path).to_string();
    let other = handler()?.map(|(name, path)| format!("[runtimes.{name}]\npath = {}\n", text(path)));
    Ok(format!(
        "listen = {}\nroot = {}\nstate = {}\ncgroup_driver = {}\ncgroup_parent = {}\n\
         [registry]\nconfig_path = {}\n[cni]\nbin_dirs = [{}]\nconf_dir = {}\n[runc]\npath = {}\n{}",
        json!(format!("unix://{}", socket.display())),
        text(dir.join("root")),
        text(dir.join("state")),
        json!(driver()?.name()),
        json!(parent()?),
        text(stage.hosts()),
        text(stage.cni.clone()),
        text(conf.to_owned()),
        text(stage.runc.clone()),
        other.unwrap_or_default(),
    ))
}

/// What containerd's configuration names.
#[derive(Debug)]
pub struct Containerd<'a> {
    /// Everything of it is below this.
    pub dir: &'a Path,
    /// Where it listens.
    pub socket: &'a Path,
    /// The mirrors.
    pub hosts: &'a Path,
    /// runc.
    pub runc: &'a Path,
    /// The directory of the plugins.
    pub cni: &'a Path,
    /// The directory of their configuration.
    pub conf: &'a Path,
}

impl Containerd<'_> {
    /// The file.
    #[must_use]
    pub fn toml(&self) -> String {
        // The strings of TOML are those of JSON.
        let text = |path: &Path| json!(path).to_string();
        let at = |name: &str| text(&self.dir.join(name));
        format!(
            r#"version = 3
root = {root}
state = {state}
[grpc]
address = {socket}
[ttrpc]
address = {ttrpc}
[plugins.'io.containerd.internal.v1.opt']
path = {opt}
[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "registry.k8s.io/pause:3.10.1"
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = {hosts}
[plugins.'io.containerd.cri.v1.runtime']
# A negative score is refused where CAP_SYS_RESOURCE is missing.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = [{cni}]
conf_dir = {conf}
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = {runc}
SystemdCgroup = false
"#,
            root = at("root"),
            state = at("state"),
            socket = text(self.socket),
            ttrpc = at("ttrpc.sock"),
            opt = at("opt"),
            hosts = text(self.hosts),
            cni = text(self.cni),
            conf = text(self.conf),
            runc = text(self.runc),
        )
    }
}
