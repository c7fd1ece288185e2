//! The namespaces of a sandbox, held by bind mounts and not by a process.
//!
//! A thread of its own unshares them, sets them up from the inside (loopback, hostname, sysctls)
//! and pins each at `state/ns/<sandbox>/<kind>`; then the thread ends and the mounts hold them.
//! The thread is never reused: it stays in the new namespaces until it ends. What a thread cannot make
//! (a user namespace and what it owns, a shared PID namespace) [`podns`] has a process make.

use crate::cgroup::home::Home;
use crate::journal::private_dir;
use crate::podns;
use crate::points::{self, Point};
use crate::spec::Mapping;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// What to make.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where the pins go.
    pub dir: PathBuf,
    /// A network namespace; without it the pod is on the host's.
    pub net: bool,
    /// An IPC namespace.
    pub ipc: bool,
    /// The hostname in a UTS namespace; `None` keeps the host's.
    pub hostname: Option<String>,
    /// Sysctls, by dotted name.
    pub sysctls: BTreeMap<String, String>,
    /// A user namespace that owns them.
    pub user: Option<Mapping>,
    /// A PID namespace for all containers.
    pub pid: bool,
    /// The pod's directory.
    pub pod: PathBuf,
    /// The program of the monitor.
    pub monitor: PathBuf,
    /// Where process 1 of a PID namespace lives, as the monitors do.
    pub home: Home,
}

/// Why the namespaces could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// A step failed.
    #[error("cannot {step}")]
    Step {
        /// What was tried.
        step: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A sysctl that is not the pod's own.
    #[error(
        "sysctl {0:?} is not allowed: only namespaced ones (net.*, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*) of a pod with that namespace may be set"
    )]
    Sysctl(String),
}

pub(crate) fn step<E: Into<io::Error>>(name: impl Into<String>) -> impl FnOnce(E) -> NamespaceError {
    let step = name.into();
    move |e| NamespaceError::Step { step, source: e.into() }
}

/// The file of a sysctl, if the pod may set it: the trap of GHSA-w2j5-3rcx-vx7x is that a name or
/// a value smuggles a second sysctl in, or one that is the host's.
///
/// # Errors
/// [`NamespaceError::Sysctl`] for any other.
pub fn sysctl_path(name: &str, net: bool, ipc: bool) -> Result<PathBuf, NamespaceError> {
    let plain = name.replace('/', ".");
    let well_formed = plain.split('.').count() > 1
        && plain.split('.').all(|p| {
            !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        });
    let ours = (net && plain.starts_with("net."))
        || (ipc
            && (plain.starts_with("kernel.shm")
                || plain.starts_with("kernel.msg")
                || plain == "kernel.sem"
                || plain.starts_with("fs.mqueue.")));
    if well_formed && ours {
        Ok(Path::new("/proc/sys").join(plain.replace('.', "/")))
    } else {
        Err(NamespaceError::Sysctl(podway_flow::record::bounded(name, 80)))
    }
}

/// Makes and pins the namespaces. On an error whatever was pinned is unpinned.
///
/// # Errors
/// [`NamespaceError`] naming the step.
pub async fn create(wanted: Wanted) -> Result<(), NamespaceError> {
    for name in wanted.sysctls.keys() {
        sysctl_path(name, wanted.net, wanted.ipc)?;
    }
    private_dir(&wanted.dir).map_err(step(format!("make {}", wanted.dir.display())))?;
    if wanted.user.is_some() || wanted.pid {
        private_dir(&wanted.pod).map_err(step(format!("make {}", wanted.pod.display())))?;
        by_process(&wanted).await?;
    }
    let (send, receive) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            let result = set_up(&wanted);
            if result.is_err() {
                // The failure that is reported is the first one; what stays pinned is found again by recovery.
                if let Err(error) = remove(&wanted.dir) {
                    tracing::warn!(%error, dir = %wanted.dir.display(), "namespaces stay pinned");
                }
            }
            // The caller is gone only if its call was cancelled; then recovery or Remove unpins.
            drop(send.send(result));
        })
        .map_err(step("start the namespace thread"))?;
    receive.await.map_err(|_| NamespaceError::Step {
        step: "set up namespaces".to_owned(),
        source: io::Error::other("the namespace thread ended early"),
    })?
}

/// Has a process make what a thread cannot; on an error nothing of it is left.
async fn by_process(wanted: &Wanted) -> Result<(), NamespaceError> {
    let owned = [("net", wanted.net), ("ipc", wanted.ipc), ("uts", wanted.hostname.is_some())];
    let owned = owned.into_iter().filter(|(_, want)| *want && wanted.user.is_some()).map(|(kind, _)| kind);
    let writes = wanted.sysctls.iter().filter(|_| wanted.user.is_some());
    let writes = writes.map(|(name, value)| Ok((sysctl_path(name, wanted.net, wanted.ipc)?, value.clone())));
    let made = podns::create(&podns::Wanted {
        program: wanted.monitor.clone(),
        home: wanted.home.clone(),
        pins: wanted.dir.clone(),
        pod: wanted.pod.clone(),
        user: wanted.user,
        pid: wanted.pid,
        others: owned.collect(),
        writes: writes.collect::<Result<_, NamespaceError>>()?,
    })
    .await;
    if made.is_err()
        && let Err(error) = podns::end(&wanted.pod).and_then(|()| remove(&wanted.dir))
    {
        tracing::warn!(%error, dir = %wanted.dir.display(), "namespaces stay pinned");
    }
    made
}

fn set_up(wanted: &Wanted) -> Result<(), NamespaceError> {
    if wanted.user.is_some() {
        return finish(wanted);
    }
    let kinds = [
        ("net", CloneFlags::CLONE_NEWNET, wanted.net),
        ("ipc", CloneFlags::CLONE_NEWIPC, wanted.ipc),
        ("uts", CloneFlags::CLONE_NEWUTS, wanted.hostname.is_some()),
    ];
    let flags = kinds.iter().filter(|k| k.2).fold(CloneFlags::empty(), |f, k| f | k.1);
    unshare(flags).map_err(step("unshare namespaces"))?;
    points::at(Point::NamespacesMade);
    if wanted.net {
        loopback_up().map_err(step("bring the loopback up"))?;
    }
    if let Some(hostname) = &wanted.hostname {
        nix::unistd::sethostname(hostname).map_err(step("set the hostname"))?;
    }
    for (name, value) in &wanted.sysctls {
        let path = sysctl_path(name, wanted.net, wanted.ipc)?;
        std::fs::write(&path, value).map_err(step(format!("set sysctl {name}")))?;
    }
    for (kind, _, _) in kinds.iter().filter(|k| k.2) {
        pin(&wanted.dir, kind, &format!("/proc/thread-self/ns/{kind}"))?;
        points::at(Point::NamespacePinned);
    }
    Ok(())
}

/// Sets up what a process made and pinned, from the inside.
fn finish(wanted: &Wanted) -> Result<(), NamespaceError> {
    let enter = |kind: &str, flag| {
        let pin =
            std::fs::File::open(wanted.dir.join(kind)).map_err(step(format!("open the {kind} namespace")))?;
        setns(pin, flag).map_err(step(format!("enter the {kind} namespace")))
    };
    if wanted.net {
        enter("net", CloneFlags::CLONE_NEWNET)?;
        loopback_up().map_err(step("bring the loopback up"))?;
    }
    if let Some(hostname) = &wanted.hostname {
        enter("uts", CloneFlags::CLONE_NEWUTS)?;
        nix::unistd::sethostname(hostname).map_err(step("set the hostname"))?;
    }
    Ok(())
}

/// Holds the namespace at `source` by a bind mount at `dir/kind`.
pub(crate) fn pin(dir: &Path, kind: &str, source: &str) -> Result<(), NamespaceError> {
    let target = dir.join(kind);
    std::fs::File::create(&target).map_err(step(format!("make {}", target.display())))?;
    mount(Some(source), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(step(format!("pin the {kind} namespace")))
}

/// Brings `lo` up in the calling thread's network namespace; it has index 1 in a new one.
fn loopback_up() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let driver = tokio::spawn(connection);
        let lo = rtnetlink::LinkUnspec::new_with_index(1).up().build();
        let result = handle.link().change(lo).execute().await.map_err(io::Error::other);
        driver.abort();
        result
    })
}

/// Whether a namespace is held at `pin`. The file alone does not say so: it is there before the mount
/// and after the unmount, and a runtime may have been killed in between.
#[must_use]
pub fn pinned(pin: &Path) -> bool {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    rustix::fs::statfs(pin).is_ok_and(|s| s.f_type == NSFS_MAGIC)
}

/// Unpins the namespaces in `dir`; what is not there is unpinned already.
///
/// # Errors
/// The kernel's.
pub fn remove(dir: &Path) -> io::Result<()> {
    for kind in ["net", "ipc", "uts", "pid", "user"] {
        let path = dir.join(kind);
        match umount2(&path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(e) => return Err(e.into()),
        }
        remove_if_there(std::fs::remove_file(&path))?;
    }
    remove_if_there(std::fs::remove_dir(dir))
}

fn remove_if_there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sysctl_must_be_the_pods_own() {
        for (name, net, ipc, ok) in [
            ("net.core.somaxconn", true, false, true),
            ("net.core.somaxconn", false, true, false),
            ("kernel.shmmax", true, true, true),
            ("kernel.shmmax+net.ipv4.ip_forward", true, true, false),
            ("kernel.core_pattern", true, true, false),
            ("net/../kernel/core_pattern", true, true, false),
            ("kernel.hostname", true, true, false),
        ] {
            assert_eq!(sysctl_path(name, net, ipc).is_ok(), ok, "{name}");
        }
    }

    #[tokio::test]
    async fn namespaces_are_pinned_set_up_and_unpinned() {
        if !nix::unistd::geteuid().is_root() {
            return; // needs the right to unshare
        }
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("ns");
        let wanted = Wanted {
            dir: dir.clone(),
            net: true,
            ipc: true,
            hostname: Some("pod".to_owned()),
            sysctls: BTreeMap::from([("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned())]),
            user: None,
            pid: false,
            pod: tmp.path().join("pod"),
            monitor: PathBuf::from("/nonexistent"),
            home: Home::make(crate::cgroup::Cgroups::at(Path::new("/sys/fs/cgroup")), None).unwrap(),
        };
        create(wanted).await.unwrap();
        use std::os::unix::fs::MetadataExt as _;
        assert!(pinned(&dir.join("net")) && !pinned(tmp.path()));
        let inode = std::fs::metadata(dir.join("net")).unwrap().ino();
        assert_ne!(inode, std::fs::metadata("/proc/self/ns/net").unwrap().ino());
        remove(&dir).unwrap();
        remove(&dir).unwrap();
        assert!(!dir.exists());
    }
}
