//! The cgroups above containers: `<root>/kubepods[/burstable|/besteffort]/pod<uid>`, with the pod's
//! limits, on v1 (a tree per controller) and v2 (one tree).
//!
//! The name is the journal: a directory `pod<uid>` below our root belongs to the pod of that UID, so
//! that what a crash left is found by listing and removed when no such pod is known. Formulas are the
//! kubelet's (pkg/kubelet/cm).

use crate::env::quantity;
use crate::node::allocatable::PodsLimits;
use crate::pod::resources;
use k8s_openapi::api::core::v1 as api;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The controllers in which pod limits stand on v1; runc makes the others' directories itself.
const V1_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// What is passed down to children on v2, as far as the machine has it.
const V2_CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];

/// Why a cgroup could not be made or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} cgroup {path}")]
pub struct CgroupError {
    verb: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn at(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError { verb, path, source }
}

/// A pod's share of the machine: what its cgroup is set to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodLimits {
    /// CPU requests as cgroup v1 shares.
    pub cpu_shares: i64,
    /// CPU limit in µs per 100 ms; `None` unless every container has one.
    pub cpu_quota: Option<i64>,
    /// Memory limit in bytes; `None` unless every container has one.
    pub memory: Option<i64>,
}

/// The limits of a pod: the larger of what its containers ask for together and what any one init
/// container asks for alone; sidecars add up with the containers.
#[must_use]
pub fn limits(spec: &api::PodSpec) -> PodLimits {
    let sum = |which: fn(&api::ResourceRequirements) -> Option<&Amounts>, key: &str| total(spec, which, key);
    let requests: fn(&api::ResourceRequirements) -> Option<&Amounts> = |r| r.requests.as_ref();
    let limits: fn(&api::ResourceRequirements) -> Option<&Amounts> = |r| r.limits.as_ref();
    let cpu = sum(requests, "cpu").0;
    let (cpu_limit, cpu_limited) = sum(limits, "cpu");
    let (memory, memory_limited) = sum(limits, "memory");
    PodLimits {
        cpu_shares: resources::shares(cpu),
        cpu_quota: (cpu_limited && cpu_limit > 0).then(|| resources::quota(cpu_limit)),
        memory: (memory_limited && memory > 0).then(|| i64::try_from(memory).unwrap_or(i64::MAX)),
    }
}

/// What a pod asks of its node: millicores and bytes.
#[must_use]
pub fn requests(spec: &api::PodSpec) -> (i128, i128) {
    (total(spec, |r| r.requests.as_ref(), "cpu").0, total(spec, |r| r.requests.as_ref(), "memory").0)
}

type Amounts = BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>;

/// The sum (in milli for cpu, in units else), and whether every regular container states it.
fn total(
    spec: &api::PodSpec,
    which: fn(&api::ResourceRequirements) -> Option<&Amounts>,
    key: &str,
) -> (i128, bool) {
    let of = |c: &api::Container| {
        let text = &c.resources.as_ref().and_then(which)?.get(key)?.0;
        if key == "cpu" { quantity::milli(text) } else { quantity::value(text) }
    };
    let mut sum: i128 = spec.containers.iter().filter_map(of).sum();
    let mut all = spec.containers.iter().all(|c| of(c).is_some_and(|v| v > 0));
    let (mut sidecars, mut peak) = (0, 0);
    for c in spec.init_containers.iter().flatten() {
        let own = of(c).unwrap_or(0);
        if c.restart_policy.as_deref() == Some("Always") {
            sidecars += own;
            all &= own > 0;
        } else {
            peak = peak.max(sidecars + own);
        }
    }
    sum = (sum + sidecars).max(peak);
    // What the pod states for itself goes before what its containers add up to.
    let own = spec.resources.as_ref().and_then(which).and_then(|list| list.get(key));
    if let Some(own) =
        own.and_then(|q| if key == "cpu" { quantity::milli(&q.0) } else { quantity::value(&q.0) })
    {
        (sum, all) = (own, true);
    }
    let overhead = spec.overhead.as_ref().and_then(|o| o.get(key));
    let overhead =
        overhead.and_then(|q| if key == "cpu" { quantity::milli(&q.0) } else { quantity::value(&q.0) });
    (sum + overhead.unwrap_or(0), all)
}

/// The cgroup tree of this node's pods.
#[derive(Debug)]
pub struct Cgroups {
    mount: PathBuf,
    v2: bool,
    base: String,
    /// CPU shares of the burstable pods by UID: their sum is their class' share.
    burstable: Mutex<BTreeMap<String, i64>>,
}

impl Cgroups {
    /// The tree below `root` (`--cgroup-root`) on the cgroup file system at `mount`.
    #[must_use]
    pub fn new(mount: &Path, root: &str) -> Self {
        let root = root.trim_matches('/');
        let base = if root.is_empty() { "/kubepods".to_owned() } else { format!("/{root}/kubepods") };
        let v2 = mount.join("cgroup.controllers").exists();
        Cgroups { mount: mount.to_owned(), v2, base, burstable: Mutex::default() }
    }

    /// 1 or 2: the cgroup version that the machine mounts.
    #[must_use]
    pub fn version(&self) -> u8 {
        1 + u8::from(self.v2)
    }

    /// A pod's cgroup, as CRI's `cgroup_parent`. `qos` is the pod's QoS class.
    #[must_use]
    pub fn pod_path(&self, qos: &str, uid: &str) -> String {
        match qos {
            "Guaranteed" => format!("{}/pod{uid}", self.base),
            "Burstable" => format!("{}/burstable/pod{uid}", self.base),
            _ => format!("{}/besteffort/pod{uid}", self.base),
        }
    }

    /// Makes the cgroups of all pods and of the two lower classes, as the kubelet does when it starts:
    /// pods share `milli` of CPU, and the lower classes begin with the least there is.
    ///
    /// # Errors
    /// [`CgroupError`] with the kernel's reason.
    pub fn prepare(&self, milli: i128) -> Result<(), CgroupError> {
        self.make_dirs(&self.base)?;
        self.set_shares(&self.base, resources::shares(milli))?;
        for class in ["burstable", "besteffort"] {
            let path = format!("{}/{class}", self.base);
            self.make_dirs(&path)?;
            // A restarted agent does not take from pods that run: each adds its own again.
            if class == "besteffort" || self.uids().is_empty() {
                self.set_shares(&path, 2)?;
            }
        }
        Ok(())
    }

    /// Holds all pods together to what the node has for them. May be repeated, also with less.
    ///
    /// # Errors
    /// [`CgroupError`] with the kernel's reason, e.g. that the pods use more memory now.
    pub fn enforce(&self, limits: PodsLimits) -> Result<(), CgroupError> {
        self.set_shares(&self.base, resources::shares(limits.milli_cpu))?;
        let file = if self.v2 { "memory.max" } else { "memory.limit_in_bytes" };
        self.set("memory", &self.base, file, &limits.memory.to_string())?;
        match limits.pids {
            Some(pids) => self.set("pids", &self.base, "pids.max", &pids.to_string()),
            None => Ok(()),
        }
    }

    /// The cgroup of all pods.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Makes a cgroup and those above it.
    fn make_dirs(&self, path: &str) -> Result<(), CgroupError> {
        let mut above = String::new();
        for part in path.split('/').filter(|p| !p.is_empty()) {
            if self.v2 {
                self.delegate(&above)?;
            }
            above = format!("{above}/{part}");
            for dir in self.made_dirs(&above) {
                match std::fs::create_dir(&dir) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(at("make", &dir)(e)),
                    _ => {}
                }
            }
        }
        if self.v2 { self.delegate(path) } else { Ok(()) }
    }

    /// Makes a pod's cgroup with its limits, and those above it. May be repeated.
    ///
    /// # Errors
    /// [`CgroupError`] with the kernel's reason.
    pub fn make(&self, qos: &str, uid: &str, limits: PodLimits) -> Result<String, CgroupError> {
        let path = self.pod_path(qos, uid);
        self.make_dirs(&path)?;
        self.set_shares(&path, limits.cpu_shares)?;
        if let Some(quota) = limits.cpu_quota {
            if self.v2 {
                self.set("cpu", &path, "cpu.max", &format!("{quota} 100000"))?;
            } else {
                self.set("cpu", &path, "cpu.cfs_period_us", "100000")?;
                self.set("cpu", &path, "cpu.cfs_quota_us", &quota.to_string())?;
            }
        }
        if let Some(bytes) = limits.memory {
            let file = if self.v2 { "memory.max" } else { "memory.limit_in_bytes" };
            self.set("memory", &path, file, &bytes.to_string())?;
        }
        if qos == "Burstable" {
            self.note_burstable(uid, Some(limits.cpu_shares))?;
        }
        Ok(path)
    }

    /// Sets a pod's limits anew, those that are gone included.
    ///
    /// # Errors
    /// [`CgroupError`] with the kernel's reason, e.g. that the pod uses more memory now.
    pub fn resize(&self, qos: &str, uid: &str, limits: PodLimits) -> Result<(), CgroupError> {
        let path = self.pod_path(qos, uid);
        if limits.memory.is_none() {
            let (file, none) = if self.v2 { ("memory.max", "max") } else { ("memory.limit_in_bytes", "-1") };
            self.set("memory", &path, file, none)?;
        }
        if limits.cpu_quota.is_none() {
            let (file, none) = if self.v2 { ("cpu.max", "max 100000") } else { ("cpu.cfs_quota_us", "-1") };
            self.set("cpu", &path, file, none)?;
        }
        self.make(qos, uid, limits).map(drop)
    }

    /// Raises what `limits` raises of a pod's limits and leaves the rest: the kernel allows no container
    /// more than its pod has, nor a pod less than its containers have.
    ///
    /// # Errors
    /// [`CgroupError`] with the kernel's reason.
    pub fn widen(&self, qos: &str, uid: &str, limits: PodLimits) -> Result<(), CgroupError> {
        let path = self.pod_path(qos, uid);
        let now = |controller: &str, file: &str| {
            let text = std::fs::read_to_string(self.dir(controller, &path).join(file)).ok()?;
            text.split_whitespace().next()?.parse::<i64>().ok().filter(|v| *v > 0)
        };
        let (memory, quota) = if self.v2 {
            (now("memory", "memory.max"), now("cpu", "cpu.max"))
        } else {
            (now("memory", "memory.limit_in_bytes"), now("cpu", "cpu.cfs_quota_us"))
        };
        // What is not limited now is wide enough.
        let larger = |now: Option<i64>, new: Option<i64>| {
            new.map_or(now.is_none(), |new| now.is_none_or(|n| n >= new))
        };
        let wide = PodLimits {
            cpu_shares: limits.cpu_shares,
            cpu_quota: if larger(quota, limits.cpu_quota) { quota } else { limits.cpu_quota },
            memory: if larger(memory, limits.memory) { memory } else { limits.memory },
        };
        self.resize(qos, uid, wide)
    }

    /// Removes a pod's cgroup in whichever class and every controller. May be repeated.
    ///
    /// # Errors
    /// [`CgroupError`] while something runs in it.
    pub fn remove(&self, uid: &str) -> Result<(), CgroupError> {
        for qos in ["Guaranteed", "Burstable", "BestEffort"] {
            for dir in self.all_dirs(&self.pod_path(qos, uid)) {
                remove_tree(&dir).map_err(at("remove", &dir))?;
            }
        }
        self.note_burstable(uid, None)
    }

    /// Removes the cgroups of all pods, unless there is a pod's: for an agent that ends. The root stays, which
    /// may be somebody else's.
    ///
    /// # Errors
    /// [`CgroupError`] with the kernel's reason.
    pub fn leave(&self) -> Result<(), CgroupError> {
        if !self.uids().is_empty() {
            return Ok(());
        }
        self.all_dirs(&self.base).iter().try_for_each(|dir| remove_tree(dir).map_err(at("remove", dir)))
    }

    /// The UIDs that have a cgroup here.
    #[must_use]
    pub fn uids(&self) -> Vec<String> {
        let classes =
            [self.base.clone(), format!("{}/burstable", self.base), format!("{}/besteffort", self.base)];
        let dirs = classes.iter().flat_map(|class| self.all_dirs(class));
        let mut uids: Vec<String> = dirs
            .filter_map(|dir| std::fs::read_dir(dir).ok())
            .flatten()
            .filter_map(Result::ok)
            .filter_map(|e| Some(e.file_name().to_str()?.strip_prefix("pod")?.to_owned()))
            .collect();
        uids.sort();
        uids.dedup();
        uids
    }

    fn note_burstable(&self, uid: &str, shares: Option<i64>) -> Result<(), CgroupError> {
        let mut known = self.burstable.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = match shares {
            Some(shares) => known.insert(uid.to_owned(), shares) != Some(shares),
            None => known.remove(uid).is_some(),
        };
        if !changed {
            return Ok(());
        }
        let sum = known.values().sum::<i64>().clamp(2, 262_144);
        self.set_shares(&format!("{}/burstable", self.base), sum)
    }

    fn set_shares(&self, path: &str, shares: i64) -> Result<(), CgroupError> {
        if self.v2 {
            // runc's conversion of [2, 262144] to [1, 10000].
            let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
            self.set("cpu", path, "cpu.weight", &weight.to_string())
        } else {
            self.set("cpu", path, "cpu.shares", &shares.to_string())
        }
    }

    /// Writes one value. A controller that the machine does not have limits nothing.
    fn set(&self, controller: &str, path: &str, file: &str, value: &str) -> Result<(), CgroupError> {
        let file = self.dir(controller, path).join(file);
        match std::fs::OpenOptions::new().write(true).truncate(true).open(&file) {
            Ok(mut open) => io::Write::write_all(&mut open, value.as_bytes()).map_err(at("set", &file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(at("set", &file)(e)),
        }
    }

    /// Passes the controllers that there are on to the children of `path`.
    fn delegate(&self, path: &str) -> Result<(), CgroupError> {
        let dir = self.dir("", path);
        let has = std::fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
        let file = dir.join("cgroup.subtree_control");
        let on = std::fs::read_to_string(&file).unwrap_or_default();
        for controller in has.split_whitespace().filter(|c| V2_CONTROLLERS.contains(c)) {
            if on.split_whitespace().all(|o| o != controller) {
                std::fs::write(&file, format!("+{controller}")).map_err(at("delegate from", &dir))?;
            }
        }
        Ok(())
    }

    fn dir(&self, controller: &str, path: &str) -> PathBuf {
        let relative = path.trim_start_matches('/');
        if self.v2 { self.mount.join(relative) } else { self.mount.join(controller).join(relative) }
    }

    fn made_dirs(&self, path: &str) -> Vec<PathBuf> {
        if self.v2 {
            return vec![self.dir("", path)];
        }
        let mounted = V1_CONTROLLERS.into_iter().filter(|c| self.mount.join(c).is_dir());
        mounted.map(|c| self.dir(c, path)).collect()
    }

    fn all_dirs(&self, path: &str) -> Vec<PathBuf> {
        if self.v2 {
            return vec![self.dir("", path)];
        }
        let trees = std::fs::read_dir(&self.mount).into_iter().flatten().filter_map(Result::ok);
        trees.map(|tree| tree.path().join(path.trim_start_matches('/'))).collect()
    }
}

/// Removes a cgroup and those below it, the deepest first. Files in it are the kernel's.
fn remove_tree(dir: &Path) -> io::Result<()> {
    let gone = |e: &io::Error| matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    let entries = match std::fs::read_dir(dir) {
        Err(e) if gone(&e) => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(dir) {
        Err(e) if !gone(&e) => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> api::PodSpec {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_pods_limits_are_what_its_containers_add_up_to() {
        let with = |requests, limits| serde_json::json!({"name": "c", "resources": {"requests": requests, "limits": limits}});
        let got = limits(&spec(serde_json::json!({
            "containers": [
                with(serde_json::json!({"cpu": "100m"}), serde_json::json!({"cpu": "200m", "memory": "10Mi"})),
                with(serde_json::json!({"cpu": "400m"}), serde_json::json!({"cpu": "300m", "memory": "20Mi"}))],
            "initContainers": [with(serde_json::json!({"cpu": "1"}), serde_json::json!({"memory": "5Mi"}))]})));
        assert_eq!(got, PodLimits { cpu_shares: 1024, cpu_quota: Some(50_000), memory: Some(30 << 20) });
        let got = limits(&spec(serde_json::json!({"containers": [{"name": "c"}]})));
        assert_eq!(got, PodLimits { cpu_shares: 2, cpu_quota: None, memory: None });
        let got = limits(&spec(serde_json::json!({"containers": [{"name": "c"}],
            "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Mi"}}})));
        assert_eq!(
            got,
            PodLimits { cpu_shares: 1024, cpu_quota: None, memory: Some(1 << 20) },
            "what a pod states for itself goes before"
        );
    }

    #[test]
    fn limits_stand_in_either_tree_and_a_name_is_enough_to_remove_them() {
        let tmp = tempfile::tempdir().unwrap();
        for v2 in [false, true] {
            let mount = tmp.path().join(if v2 { "v2" } else { "v1" });
            let dirs: Vec<PathBuf> = if v2 {
                vec![mount.clone()]
            } else {
                vec![mount.join("cpu"), mount.join("memory"), mount.join("pids"), mount.join("freezer")]
            };
            for dir in &dirs {
                std::fs::create_dir_all(dir.join("mine")).unwrap();
            }
            if v2 {
                std::fs::write(mount.join("cgroup.controllers"), "cpu memory").unwrap();
            }
            let cgroups = Cgroups::new(&mount, "/mine");
            cgroups.prepare(2000).unwrap();
            cgroups.prepare(2000).unwrap();
            for class in ["", "/burstable", "/besteffort"] {
                assert!(cgroups.dir("cpu", &format!("/mine/kubepods{class}")).is_dir(), "{class}");
            }
            let limits = PodLimits { cpu_shares: 512, cpu_quota: Some(50_000), memory: Some(1 << 20) };
            let path = cgroups.make("Burstable", "u", limits).unwrap();
            assert_eq!(path, "/mine/kubepods/burstable/podu");
            assert_eq!(cgroups.uids(), ["u"]);
            assert!(cgroups.dir("memory", &path).is_dir());
            cgroups.leave().unwrap();
            assert!(cgroups.dir("memory", &path).is_dir(), "a pod is there");
            if v2 {
                let read = |file: &str| std::fs::read_to_string(mount.join(file)).unwrap();
                assert_eq!(read("cgroup.subtree_control"), "+memory");
            }
            cgroups.remove("u").unwrap();
            cgroups.remove("u").unwrap();
            assert!(!cgroups.dir("memory", &path).exists());
            cgroups.leave().unwrap();
            let base = cgroups.dir("memory", "/mine/kubepods");
            assert!(!base.exists() && base.with_file_name("").is_dir());
        }
    }

    /// On the machine's own tree, in a cgroup of this test's own.
    #[test]
    fn the_kernel_holds_what_was_set() {
        let mount = Path::new("/sys/fs/cgroup");
        let root = format!("podway-agent-test-{}", std::process::id());
        let cgroups = Cgroups::new(mount, &root);
        let limits = PodLimits { cpu_shares: 512, cpu_quota: Some(50_000), memory: Some(64 << 20) };
        let prepared = cgroups.prepare(1500);
        let Ok(path) = cgroups.make("Burstable", "u", limits) else {
            eprintln!("no cgroup can be made here: not tested");
            return;
        };
        if !cgroups.v2 {
            let read = |c: &str, f: &str| std::fs::read_to_string(cgroups.dir(c, &path).join(f)).unwrap();
            assert_eq!(read("memory", "memory.limit_in_bytes").trim(), (64 << 20).to_string());
            assert_eq!(read("cpu", "cpu.shares").trim(), "512");
            assert_eq!(read("cpu", "cpu.cfs_quota_us").trim(), "50000");
            let now = || (read("memory", "memory.limit_in_bytes"), read("cpu", "cpu.cfs_quota_us"));
            let other = PodLimits { cpu_shares: 512, cpu_quota: Some(20_000), memory: Some(128 << 20) };
            cgroups.widen("Burstable", "u", other).unwrap();
            assert_eq!(now(), (format!("{}\n", 128 << 20), "50000\n".into()), "raised, and not lowered");
            cgroups.resize("Burstable", "u", other).unwrap();
            assert_eq!(now(), (format!("{}\n", 128 << 20), "20000\n".into()));
            cgroups.resize("Burstable", "u", PodLimits { cpu_quota: None, ..other }).unwrap();
            assert_eq!(now().1, "-1\n", "a limit that is gone is taken away");
            prepared.unwrap();
            let all = PodsLimits { milli_cpu: 1500, memory: 256 << 20, pids: Some(5000) };
            cgroups.enforce(all).unwrap();
            let base = format!("/{root}/kubepods");
            let kubepods = |c: &str, f: &str| std::fs::read_to_string(cgroups.dir(c, &base).join(f)).unwrap();
            assert_eq!(kubepods("memory", "memory.limit_in_bytes").trim(), (256 << 20).to_string());
            assert_eq!(kubepods("pids", "pids.max").trim(), "5000");
            let shares = |path: &str| {
                let dir = cgroups.dir("cpu", &format!("/{root}/kubepods{path}"));
                std::fs::read_to_string(dir.join("cpu.shares")).unwrap().trim().to_owned()
            };
            assert_eq!(
                (shares(""), shares("/burstable"), shares("/besteffort")),
                ("1536".into(), "512".into(), "2".into())
            );
        }
        cgroups.remove("u").unwrap();
        assert!(!cgroups.dir("memory", &path).exists());
        for dir in cgroups.all_dirs(&format!("/{root}")) {
            remove_tree(&dir).unwrap();
        }
    }
}
