//! What a machine has of the things that podway makes, so that two counts can be compared.
//!
//! The whole machine is counted, so that what was made under a name that nobody expects is found too.
//! Where others work on the same machine, `PODWAY_E2E_SHARED=1` counts only what bears the cluster's
//! directory or podway's own names.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What was there at one moment. Everything by name, so that a difference tells what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Processes of the cluster, and those in containers of it.
    pub processes: BTreeSet<String>,
    /// Mount points.
    pub mounts: BTreeSet<String>,
    /// Named network namespaces.
    pub netns: BTreeSet<String>,
    /// Network devices of the host, and of each named network namespace.
    pub links: BTreeSet<String>,
    /// cgroups.
    pub cgroups: BTreeSet<String>,
    /// Addresses that CNI's host-local has given out.
    pub addresses: BTreeSet<String>,
}

impl Snapshot {
    /// Looks. `state_dir` is the cluster's.
    #[must_use]
    pub fn take(state_dir: &Path) -> Self {
        let whole = Snapshot {
            processes: processes(state_dir),
            mounts: mounts(),
            netns: names(Path::new("/run/netns")),
            links: links(),
            cgroups: cgroups(),
            addresses: addresses(state_dir),
        };
        if std::env::var_os("PODWAY_E2E_SHARED").is_some() { whole.ours(state_dir) } else { whole }
    }

    /// Only what bears the cluster's directory or podway's names (`/podway/` is its cgroup's root).
    fn ours(mut self, state_dir: &Path) -> Self {
        let dir = state_dir.display().to_string();
        self.mounts.retain(|m| {
            m.starts_with(&dir) || m.starts_with("/run/podway") || m.starts_with("/run/netns/podway")
        });
        self.netns.retain(|n| n.starts_with("podway"));
        self.links.retain(|l| l.starts_with("podway"));
        self.cgroups.retain(|c| c.split('/').any(|part| part == "podway"));
        self
    }

    /// What is there now and was not before, one line each.
    #[must_use]
    pub fn new_since(&self, before: &Snapshot) -> Vec<String> {
        let kinds = [
            ("process", &self.processes, &before.processes),
            ("mount", &self.mounts, &before.mounts),
            ("network namespace", &self.netns, &before.netns),
            ("network device", &self.links, &before.links),
            ("cgroup", &self.cgroups, &before.cgroups),
            ("address", &self.addresses, &before.addresses),
        ];
        kinds
            .into_iter()
            .flat_map(|(kind, now, then)| now.difference(then).map(move |name| format!("{kind} {name}")))
            .collect()
    }

    /// How many there are of each.
    #[must_use]
    pub fn counts(&self) -> String {
        format!(
            "{} processes, {} mounts, {} network namespaces, {} network devices, {} cgroups, {} addresses",
            self.processes.len(),
            self.mounts.len(),
            self.netns.len(),
            self.links.len(),
            self.cgroups.len(),
            self.addresses.len(),
        )
    }
}

fn names(dir: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeSet::new() };
    entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// Processes that were started for the cluster (they are marked), and those whose root is a mount
/// below its directory. A process that ends while it is looked at is not there.
fn processes(state_dir: &Path) -> BTreeSet<String> {
    let dir = state_dir.display().to_string();
    let mark = format!("{}={dir}\0", podway_cluster::process::MARK);
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    let mut found = BTreeSet::new();
    for pid in names(Path::new("/proc")).into_iter().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) {
        let proc = Path::new("/proc").join(&pid);
        let read =
            |file: &str| String::from_utf8_lossy(&fs::read(proc.join(file)).unwrap_or_default()).into_owned();
        let marked = (read("environ") + "\0").contains(&mark);
        let inside = || fs::read_link(proc.join("ns/mnt")).ok() != own && read("mountinfo").contains(&dir);
        if marked || inside() {
            found.insert(format!("{pid} {}", read("cmdline").replace('\0', " ").trim()));
        }
    }
    found
}

fn mounts() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(|l| l.split(' ').nth(4)).map(str::to_owned).collect()
}

/// `ip -o link` here and in every named namespace.
fn links() -> BTreeSet<String> {
    let mut found: BTreeSet<String> = names(Path::new("/sys/class/net"));
    for netns in names(Path::new("/run/netns")) {
        let output = std::process::Command::new("ip").args(["-n", &netns, "-o", "link"]).output();
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        let inside = text.lines().filter_map(|l| l.split(": ").nth(1)).map(|n| format!("{netns}: {n}"));
        found.extend(inside);
    }
    found
}

fn cgroups() -> BTreeSet<String> {
    fn below(dir: &Path, found: &mut BTreeSet<String>) {
        let Ok(entries) = fs::read_dir(dir) else { return };
        for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            let path = entry.path();
            found.insert(path.display().to_string());
            below(&path, found);
        }
    }
    let root = Path::new("/sys/fs/cgroup");
    let mut found = BTreeSet::new();
    below(root, &mut found);
    found.retain(|path| may_be_ours(path.trim_start_matches("/sys/fs/cgroup/")));
    found
}

/// Below a top-level cgroup of another (a service manager's, the one that this runs in) others make and
/// remove cgroups while the cases run. Ours would be top-level ones, or bear a name that is given to them.
fn may_be_ours(below_root: &str) -> bool {
    let mut parts = below_root.split('/');
    parts.clone().count() <= 2 || parts.any(|p| p.starts_with("podway") || p.starts_with("kubepods"))
}

/// host-local keeps one file per address, named by it, in a directory per network.
fn addresses(state_dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for node in names(&state_dir.join("nodes")) {
        let ipam = state_dir.join("nodes").join(node).join("ipam");
        for network in names(&ipam) {
            let files = names(&ipam.join(&network));
            found.extend(files.into_iter().filter(|f| f.parse::<std::net::IpAddr>().is_ok()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn what_is_new_is_named() {
        let before = Snapshot { netns: BTreeSet::from(["a".to_owned()]), ..Snapshot::default() };
        let now = Snapshot {
            netns: BTreeSet::from(["a".to_owned(), "b".to_owned()]),
            mounts: BTreeSet::from(["/x".to_owned()]),
            ..Snapshot::default()
        };
        assert_eq!(now.new_since(&before), ["mount /x", "network namespace b"]);
        assert_eq!(before.new_since(&now), Vec::<String>::new());
    }

    #[test]
    fn on_a_shared_machine_others_do_not_count() {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        let all = Snapshot {
            mounts: set(&["/s/nodes/a", "/run/podway/x", "/elsewhere"]),
            cgroups: set(&["/sys/fs/cgroup/cpu/podway/podway-node-0", "/sys/fs/cgroup/cpu/agent-e2e/pod1"]),
            ..Snapshot::default()
        };
        let ours = all.ours(Path::new("/s"));
        assert_eq!(ours.mounts, set(&["/run/podway/x", "/s/nodes/a"]));
        assert_eq!(ours.cgroups, set(&["/sys/fs/cgroup/cpu/podway/podway-node-0"]));
    }

    #[test]
    fn cgroups_that_others_make_below_their_own_do_not_count() {
        for (path, ours) in [
            ("memory/unexpected", true),
            ("memory/podway/podway-node-0/kubepods/burstable", true),
            ("cpu/elsewhere/kubepods/pod1", true),
            ("memory/process_api/070edae4", false),
        ] {
            assert_eq!(may_be_ours(path), ours, "{path}");
        }
    }

    #[test]
    fn a_marked_process_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mark = podway_cluster::process::MARK;
        let mut child = std::process::Command::new("cat")
            .env(mark, dir.path())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // What it was started as is in /proc only once it runs: it runs once it has answered.
        let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        to.write_all(b"x").unwrap();
        from.read_exact(&mut [0]).unwrap();
        let found = processes(dir.path());
        drop(to);
        child.wait().unwrap();
        assert!(found.contains(&format!("{} cat", child.id())), "{found:?}");
    }
}
