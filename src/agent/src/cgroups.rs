//! The cgroups above containers: `<root>/kubepods[/burstable|/besteffort]/pod<uid>`, with the pod's
//! limits. systemd makes and ends them where it is the manager ([`Driver`]); their values are written
//! to the kernel's files in either case.
//!
//! The name is the journal: a directory below our root that is called after a UID belongs to the pod of that UID, so
//! that what a crash left is found by listing and removed when no such pod is known. Formulas are the
//! kubelet's (pkg/kubelet/cm).

pub mod layout;
pub mod limits;
mod tree;
mod values;

use crate::node::allocatable::{Held, PodsLimits, Reserved, Resource};
use crate::pod::resources;
use layout::{Group, Layout};
pub use limits::{PodLimits, limits, requests};
use podway_systemd::{Driver, InvalidSlice, Manager, ManagerError};
use std::collections::BTreeMap;
use std::path::Path;
use tokio::sync::Mutex;
use tree::{FileError, Tree};
use values::Value;

/// Why a cgroup could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The kernel refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// systemd refused.
    #[error(transparent)]
    Systemd(#[from] ManagerError),
    /// systemd cannot have it.
    #[error(transparent)]
    Name(#[from] InvalidSlice),
    /// It is somebody else's to make.
    #[error("{0:?} cgroup does not exist")]
    Missing(String),
    /// The thread that waited for the kernel is gone.
    #[error("the kernel's answer was not waited for")]
    Thread(#[from] tokio::task::JoinError),
}

/// The cgroup tree of this node's pods.
#[derive(Debug)]
pub struct Cgroups {
    tree: Tree,
    layout: Layout,
    systemd: Option<Manager>,
    /// What each pod may have of processes and threads; none: as many as all pods together.
    pod_pids: Option<u64>,
    /// CPU shares of the burstable pods by UID: their sum is their class' share. Held while that is set, as the
    /// later of two sums is the right one.
    burstable: Mutex<BTreeMap<String, i64>>,
}

impl Cgroups {
    /// The tree of this layout on the cgroup file system at `mount`.
    #[must_use]
    pub fn new(mount: &Path, layout: Layout) -> Self {
        let systemd = (layout.driver() == Driver::Systemd).then(Manager::default);
        Cgroups { tree: Tree::new(mount), layout, systemd, pod_pids: None, burstable: Mutex::default() }
    }

    /// Each pod's processes and threads are limited to so many (`podPidsLimit`).
    #[must_use]
    pub fn with_pod_pids(self, pod_pids: Option<u64>) -> Self {
        Cgroups { pod_pids, ..self }
    }

    /// 1 or 2: the cgroup version that the machine mounts.
    #[must_use]
    pub fn version(&self) -> u8 {
        1 + u8::from(self.tree.v2())
    }

    /// A pod's cgroup, as CRI's `cgroup_parent`. `qos` is the pod's QoS class.
    ///
    /// # Errors
    /// [`InvalidSlice`] where systemd cannot have it.
    pub fn pod_path(&self, qos: &str, uid: &str) -> Result<String, InvalidSlice> {
        self.layout.pod(qos, uid).map(|group| group.path)
    }

    /// Makes the cgroups of all pods and of the two lower classes, as the kubelet does when it starts:
    /// pods share `milli` of CPU, and the lower classes begin with the least there is.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub async fn prepare(&self, milli: i128) -> Result<(), CgroupError> {
        let pods = self.layout.pods();
        self.begin(pods).await?;
        self.set(pods, &[Value::Shares(resources::shares(milli))]).await?;
        for class in ["burstable", "besteffort"] {
            let group = self.layout.class(class)?;
            self.begin(&group).await?;
            // A restarted agent does not take from pods that run: each adds its own again.
            if class == "besteffort" || self.uids().is_empty() {
                self.set(&group, &[Value::Shares(2)]).await?;
            }
        }
        Ok(())
    }

    /// Holds all pods together to what the node has for them. May be repeated, also with less.
    ///
    /// # Errors
    /// [`CgroupError`], e.g. that the pods use more memory now.
    pub async fn enforce(&self, limits: PodsLimits) -> Result<(), CgroupError> {
        let values = kept(Some(limits.milli_cpu), Some(limits.memory), limits.pids);
        self.tell(self.layout.pods(), &values).await?;
        let (tree, path) = (self.tree.clone(), self.base().to_owned());
        // The kernel may have to free memory before it answers.
        let written =
            tokio::task::spawn_blocking(move || values.iter().try_for_each(|v| v.write(&tree, &path)));
        Ok(written.await??)
    }

    /// Holds a cgroup that somebody else has made to what is kept for those who run in it.
    ///
    /// # Errors
    /// [`CgroupError`], e.g. that it is not there.
    pub async fn hold(&self, held: &Held, list: &Reserved) -> Result<(), CgroupError> {
        let group = self.layout.named(&held.cgroup)?;
        if !self.tree.whole(&group.path) {
            return Err(CgroupError::Missing(held.cgroup.clone()));
        }
        let incompressible = |resource| list.of(resource).filter(|_| !held.compressible);
        let values =
            kept(list.of(Resource::Cpu), incompressible(Resource::Memory), incompressible(Resource::Pid));
        self.set(&group, &values).await
    }

    /// The cgroup of all pods.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.layout.pods().path
    }

    /// Makes a pod's cgroup with its limits, and those above it. May be repeated.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub async fn make(&self, qos: &str, uid: &str, limits: PodLimits) -> Result<(), CgroupError> {
        let group = self.layout.pod(qos, uid)?;
        self.begin(&group).await?;
        let mut values = vec![Value::Shares(limits.cpu_shares)];
        values.extend(limits.cpu_quota.map(|quota| Value::Quota(Some(quota))));
        values.extend(limits.memory.map(|bytes| Value::Memory(Some(bytes))));
        values.extend(self.pod_pids.map(Value::Pids));
        self.set(&group, &values).await?;
        if qos == "Burstable" {
            self.note_burstable(uid, Some(limits.cpu_shares)).await?;
        }
        Ok(())
    }

    /// Sets a pod's limits anew, those that are gone included.
    ///
    /// # Errors
    /// [`CgroupError`], e.g. that the pod uses more memory now.
    pub async fn resize(&self, qos: &str, uid: &str, limits: PodLimits) -> Result<(), CgroupError> {
        let mut gone = Vec::new();
        gone.extend(limits.memory.is_none().then_some(Value::Memory(None)));
        gone.extend(limits.cpu_quota.is_none().then_some(Value::Quota(None)));
        self.set(&self.layout.pod(qos, uid)?, &gone).await?;
        self.make(qos, uid, limits).await
    }

    /// Raises what `limits` raises of a pod's limits and leaves the rest: the kernel allows no container
    /// more than its pod has, nor a pod less than its containers have.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub async fn widen(&self, qos: &str, uid: &str, limits: PodLimits) -> Result<(), CgroupError> {
        let path = self.pod_path(qos, uid)?;
        let now = |controller: &str, file: &str| self.tree.number(controller, &path, file);
        let (memory, quota) = if self.tree.v2() {
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
        self.resize(qos, uid, wide).await
    }

    /// Removes a pod's cgroup in whichever class and every controller. May be repeated.
    ///
    /// # Errors
    /// [`CgroupError`] while something runs in it.
    pub async fn remove(&self, uid: &str) -> Result<(), CgroupError> {
        let groups = ["Guaranteed", "Burstable", "BestEffort"].map(|qos| self.layout.pod(qos, uid));
        self.end(groups.into_iter().collect::<Result<_, _>>()?).await?;
        self.note_burstable(uid, None).await
    }

    /// Removes the cgroups of all pods, unless there is a pod's: for an agent that ends. The root stays, which
    /// may be somebody else's.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub async fn leave(&self) -> Result<(), CgroupError> {
        let own = self.uids().len();
        if own > 0 {
            tracing::info!(pods = own, "the pods' cgroups stay");
            return Ok(());
        }
        let pods = self.layout.pods().clone();
        self.end(vec![self.layout.class("burstable")?, self.layout.class("besteffort")?, pods]).await
    }

    /// The UIDs that have a cgroup here.
    #[must_use]
    pub fn uids(&self) -> Vec<String> {
        let classes = ["burstable", "besteffort"].into_iter().filter_map(|c| self.layout.class(c).ok());
        let mut uids: Vec<String> = std::iter::once(self.layout.pods().clone())
            .chain(classes)
            .flat_map(|group| self.tree.names(&group.path))
            .filter_map(|name| self.layout.uid(&name))
            .collect();
        uids.sort();
        uids.dedup();
        uids
    }

    async fn note_burstable(&self, uid: &str, shares: Option<i64>) -> Result<(), CgroupError> {
        let mut known = self.burstable.lock().await;
        let changed = match shares {
            Some(shares) => known.insert(uid.to_owned(), shares) != Some(shares),
            None => known.remove(uid).is_some(),
        };
        if !changed {
            return Ok(());
        }
        let sum = known.values().sum::<i64>().clamp(2, 262_144);
        self.set(&self.layout.class("burstable")?, &[Value::Shares(sum)]).await
    }

    /// Makes a cgroup. systemd makes only those directories that its version takes for needed.
    async fn begin(&self, group: &Group) -> Result<(), CgroupError> {
        if let (Some(systemd), Some(slice)) = (&self.systemd, &group.slice) {
            systemd.start_slice(slice, self.tree.v2()).await?;
        }
        Ok(self.tree.make(&group.path)?)
    }

    /// Sets values: the file last, as it is the kernel that says whether it can be done.
    async fn set(&self, group: &Group, values: &[Value]) -> Result<(), CgroupError> {
        self.tell(group, values).await?;
        Ok(values.iter().try_for_each(|value| value.write(&self.tree, &group.path))?)
    }

    /// Tells systemd of values, where it is the manager.
    async fn tell(&self, group: &Group, values: &[Value]) -> Result<(), CgroupError> {
        if let (Some(systemd), Some(slice), false) = (&self.systemd, &group.slice, values.is_empty()) {
            let properties: Vec<_> = values.iter().map(|value| value.property(self.tree.v2())).collect();
            systemd.set(slice.name(), &properties).await?;
        }
        Ok(())
    }

    /// Ends those of these cgroups that are there.
    async fn end(&self, groups: Vec<Group>) -> Result<(), CgroupError> {
        if let Some(systemd) = &self.systemd {
            let there = groups.iter().filter(|group| self.tree.has(&group.path));
            for slice in there.filter_map(|group| group.slice.as_ref()) {
                systemd.stop(slice.name()).await?;
            }
        }
        let tree = self.tree.clone();
        let removed = move || groups.iter().try_for_each(|group| tree.remove(&group.path));
        Ok(tokio::task::spawn_blocking(removed).await??)
    }
}

/// What is kept for somebody, as far as it is stated: thousandths of processors, bytes, tasks.
fn kept(cpu: Option<i128>, memory: Option<i128>, pids: Option<i128>) -> Vec<Value> {
    let memory = memory.map(|bytes| Value::Memory(Some(i64::try_from(bytes).unwrap_or(i64::MAX))));
    let pids = pids.and_then(|pids| u64::try_from(pids).ok()).map(Value::Pids);
    [cpu.map(|cpu| Value::Shares(resources::shares(cpu))), memory, pids].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
