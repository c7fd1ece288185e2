//! `podway runtime check`: what this machine lacks for a runtime as configured. It looks and tries, and leaves
//! nothing behind.
//!
//! A finding is fine, worth knowing (a pod that asks for it is refused), or missing (no pod can run).

mod runc;

use crate::apparmor;
use crate::cgroup::driver::Units;
use crate::cgroup::{Cgroups, Version};
use crate::cni::Network;
use crate::config::Config;
use crate::container::checkpoint::criu;
use crate::features::Features;
use crate::handlers::{Handler, HandlerError};
use crate::image::pull::chain;
use crate::podns;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use podway_systemd::Driver;
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Pods run; who needs this is refused, or a known hole is open.
    Warning,
    /// No pod runs.
    Missing,
}

/// What was found about one thing.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The thing.
    pub what: &'static str,
    /// How bad it is.
    pub state: State,
    /// In words: what is there, or what is wrong and what helps.
    pub said: String,
}

fn finding(what: &'static str, state: State, said: impl Into<String>) -> Finding {
    Finding { what, state, said: said.into() }
}

/// Ok with what is there, or `bad` with the error.
fn of<T: Into<String>, E: std::error::Error>(what: &'static str, bad: State, found: Result<T, E>) -> Finding {
    match found {
        Ok(said) => finding(what, State::Ok, said),
        Err(error) => finding(what, bad, chain(&error)),
    }
}

/// Looks at everything that a runtime of this configuration needs.
pub async fn check(config: &Config) -> Vec<Finding> {
    let mut found = Vec::new();
    if !rustix::process::geteuid().is_root() {
        found.push(finding("root", State::Missing, "namespaces, mounts and cgroups are root's: run as root"));
    }
    let path = &config.runc.path;
    let runc = Handler::look(path).await;
    let cgroups = Cgroups::at(Path::new("/sys/fs/cgroup"));
    let features = Features::look(&cgroups, runc.as_ref().is_ok_and(|runc| runc.recursive_read_only));
    found.push(match runc {
        Ok(runc) => runc::judged(&runc.version),
        Err(error) => finding("runc", State::Missing, chain(&HandlerError::Runc(path.clone(), error))),
    });

    let network = Network::load(&config.cni.conf_dir)
        .and_then(|network| network.installed(&config.cni.bin_dirs).map(|()| network));
    found.push(of(
        "network",
        State::Missing,
        network.map(|n| format!("{}, its plugins are installed", n.name)),
    ));

    let monitor = in_path(&config.monitor.path);
    found.push(match &monitor {
        Some(path) => finding("monitor", State::Ok, path.display().to_string()),
        None => {
            let said = format!("there is no {}; set [monitor] path", config.monitor.path.display());
            finding("monitor", State::Missing, said)
        }
    });
    found.extend(controllers(&cgroups));
    if config.cgroup_driver == Driver::Systemd {
        let version = Units::new(cgroups.version()).version().await;
        found.push(of("systemd", State::Missing, version.map(|v| format!("{v} makes the cgroups"))));
    }
    let base = existing(&config.root);
    let tried = overlay(&base).map(|()| format!("can be mounted in {}", base.display()));
    found.push(of("overlay", State::Missing, tried));
    if let Some(monitor) = monitor {
        let probed = podns::probe(&monitor, &base).await.map(|()| "with id-mapped mounts");
        found.push(of("user namespaces", State::Warning, probed));
    }
    for (what, there) in [
        ("recursive read-only mounts", features.recursive_read_only),
        ("limits of swap", features.swap),
        ("limits of huge pages", features.huge_pages),
    ] {
        let said = if there { "yes" } else { "not here: a container that asks for it is refused" };
        found.push(finding(what, if there { State::Ok } else { State::Warning }, said));
    }
    found.push(if features.apparmor {
        of("AppArmor", State::Warning, apparmor::compile().await.map(|()| "yes, with a default profile"))
    } else {
        finding("AppArmor", State::Warning, "not here: a container that asks for a profile is refused")
    });
    found.push(of("criu", State::Warning, criu::check().await));
    let labels = if features.selinux {
        finding("SELinux", State::Warning, "on: not supported, a container that asks for a label is refused")
    } else {
        finding("SELinux", State::Ok, "not on: a label has no meaning, and none is given")
    };
    found.push(labels);
    for (what, dir) in [("registries", &config.registry.config_path), ("verifiers", &config.images.verifiers)]
    {
        if let Some(dir) = dir {
            let read = std::fs::read_dir(dir).map(|_| dir.display().to_string());
            found.push(of(what, State::Warning, read.map_err(|e| named(dir, e))));
        }
    }
    found
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The file itself, or the first of its name in PATH.
pub(crate) fn in_path(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// The nearest directory upwards that is there: what is below is made at the start.
fn existing(dir: &Path) -> PathBuf {
    dir.ancestors().find(|d| d.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

/// The controllers without which a limit of a pod has no effect.
fn controllers(cgroups: &Cgroups) -> Vec<Finding> {
    let root = cgroups.dir("", "/");
    let there = |name: &str| match cgroups.version() {
        Version::V1 => cgroups.dir(name, "/").join("cgroup.procs").exists(),
        Version::V2 => std::fs::read_to_string(root.join("cgroup.controllers"))
            .is_ok_and(|all| all.split_ascii_whitespace().any(|c| c == name)),
    };
    let version = match cgroups.version() {
        Version::V1 => "v1",
        Version::V2 => "v2",
    };
    let lacking: Vec<&str> = ["memory", "cpu", "cpuset", "pids"].into_iter().filter(|c| !there(c)).collect();
    vec![match lacking.as_slice() {
        [] => finding("cgroups", State::Ok, format!("{version}, with memory, cpu, cpuset and pids")),
        some => {
            let said =
                format!("{version} without {}: enable them in the kernel's command line", some.join(", "));
            finding("cgroups", State::Missing, said)
        }
    }]
}

/// Mounts an overlay in a directory of its own below `base`, and takes both away again.
fn overlay(base: &Path) -> io::Result<()> {
    let dir = base.join(format!(".podway-check-{}", std::process::id()));
    let tried = (|| {
        for part in ["lower", "upper", "work", "merged"] {
            std::fs::create_dir_all(dir.join(part))?;
        }
        let at = |part: &str| dir.join(part).display().to_string();
        let options = format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
        mount(
            Some("overlay"),
            &dir.join("merged"),
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )?;
        umount2(&dir.join("merged"), MntFlags::MNT_DETACH)?;
        Ok(())
    })();
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => tried.and(Err(error)),
        _ => tried,
    }
    .map_err(|error| named(base, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_there_is_missing_and_said_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config { root: dir.path().join("deep/root"), ..Config::default() };
        config.runc.path = dir.path().join("no-runc");
        config.monitor.path = dir.path().join("no-monitor");
        config.cni.conf_dir = dir.path().join("no-net.d");
        config.images.verifiers = Some(dir.path().join("no-verifiers"));
        let found = check(&config).await;
        let of = |what: &str| found.iter().find(|f| f.what == what).unwrap();
        for what in ["runc", "monitor", "network"] {
            assert_eq!(of(what).state, State::Missing, "{what}");
            assert!(of(what).said.contains("/no-"), "{}", of(what).said);
        }
        assert_eq!(of("verifiers").state, State::Warning);
        assert!(found.iter().all(|f| f.what != "user namespaces"), "without a monitor nobody can try");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn a_program_is_a_path_or_a_name_in_path() {
        assert!(in_path(Path::new("sh")).is_some_and(|p| p.is_absolute()));
        assert_eq!(in_path(Path::new("/bin/sh")).unwrap(), Path::new("/bin/sh"));
        assert!(in_path(Path::new("no-such-program-anywhere")).is_none());
        assert_eq!(existing(Path::new("/proc/none/deeper")), Path::new("/proc"));
    }
}
