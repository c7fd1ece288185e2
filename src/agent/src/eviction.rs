//! Eviction: when the node runs short, what is not needed goes first, and then one pod at a time, as
//! the kubelet has it (`pkg/kubelet/eviction`): hard and soft thresholds, its ranking, its messages.
//!
//! A look each 10 s costs a few reads of /proc and one `statvfs`; the runtime is asked what pods use
//! only when a threshold is met or a pod has a limit of its own on the disk. The pod's own worker ends
//! it (`Input::End`): nothing here touches a container.

pub mod rank;
pub mod signals;

use crate::gc::Collector;
use crate::metrics::Metrics;
use crate::node::events::{Happening, Writer};
use crate::node::machine::{Reader, Sample};
use crate::node::pressure::{Memory, Pressures, Thresholds};
use crate::pod::admission::Refusal;
use crate::pod::core::Ending;
use crate::pods::Pods;
use crate::source::{PodSource as _, PodView};
use crate::stats::look::{Depth, Look, Stats};
use k8s_openapi::api::core::v1::{Pod, Toleration};
use signals::{Disk, Met};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often is looked (`evictionMonitoringPeriod`).
const EVERY: Duration = Duration::from_secs(10);
/// How long an evicted pod is waited for before the next look (`podCleanupTimeout`).
const CLEANUP: Duration = Duration::from_secs(30);

/// The node's eviction.
pub struct Eviction {
    /// The pods.
    pub pods: Arc<Pods>,
    /// What they use.
    pub stats: Arc<Stats>,
    /// What is not needed.
    pub collector: Arc<Collector>,
    /// Tells people of the node.
    pub events: Writer,
    /// Remembers what is short, and has its condition say it at once.
    pub node: crate::node::Handle,
    /// `evictionHard` and `evictionSoft`.
    pub thresholds: Thresholds,
    /// Reads the machine.
    pub reader: Reader,
    /// Where volumes are.
    pub root_dir: PathBuf,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Eviction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Eviction").field("thresholds", &self.thresholds).finish_non_exhaustive()
    }
}

/// Whether the node may end the pod at all: it is not at its end and not going.
pub(crate) fn active(view: &PodView) -> bool {
    let phase = view.object.status.as_ref().and_then(|s| s.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed")) && view.object.metadata.deletion_timestamp.is_none()
}

/// Why a node that is short does not take a new pod (the eviction manager's `Admit`): with a shortage
/// of memory alone only those without any request, and those that tolerate it neither.
#[must_use]
pub fn refuses(pod: &Pod, pressures: Pressures) -> Option<Refusal> {
    let conditions: Vec<&str> = [
        (pressures.memory, "MemoryPressure"),
        (pressures.disk, "DiskPressure"),
        (pressures.pids, "PIDPressure"),
    ]
    .into_iter()
    .filter_map(|(is, name)| is.then_some(name))
    .collect();
    if conditions.is_empty() || rank::critical(pod) {
        return None;
    }
    if conditions == ["MemoryPressure"] {
        let qos = pod.status.as_ref().and_then(|s| s.qos_class.as_deref());
        let tolerations = pod.spec.iter().flat_map(|s| s.tolerations.iter().flatten());
        let tolerates = |t: &Toleration| {
            let key = t.key.as_deref().unwrap_or_default();
            let operator = t.operator.as_deref().unwrap_or("Equal");
            let effect = t.effect.as_deref().unwrap_or_default();
            let keyed =
                key == "node.kubernetes.io/memory-pressure" || (key.is_empty() && operator == "Exists");
            let valued = operator == "Exists" || t.value.as_deref().unwrap_or_default().is_empty();
            keyed && valued && matches!(effect, "" | "NoSchedule")
        };
        if qos != Some("BestEffort") || tolerations.into_iter().any(tolerates) {
            return None;
        }
    }
    let message = format!("Pod was rejected: The node had condition: [{}]. ", conditions.join(" "));
    Some(Refusal { reason: "Evicted".to_owned(), message })
}

impl Eviction {
    /// Looks until the future is dropped.
    pub async fn run(self) {
        let mut images: Option<PathBuf> = None;
        loop {
            tokio::time::sleep(EVERY).await;
            if images.is_none() {
                images = self.image_dir().await;
            }
            let Some(dir) = &images else { continue };
            if let Some(uid) = self.round(dir).await {
                self.gone(&uid).await;
            }
        }
    }

    async fn image_dir(&self) -> Option<PathBuf> {
        match self.stats.source().image_fs().await {
            Ok(answer) => {
                let first = answer.image_filesystems.into_iter().next()?;
                Some(PathBuf::from(first.fs_id?.mountpoint))
            }
            Err(error) => {
                tracing::warn!(%error, "the runtime does not tell where images lie: nothing is evicted");
                None
            }
        }
    }

    async fn sample(&self, images: &Path) -> Option<(Sample, bool)> {
        let (reader, root, images) = (self.reader.clone(), self.root_dir.clone(), images.to_owned());
        // A file system that hangs must not hold up a thread of the executor.
        let read = tokio::task::spawn_blocking(move || {
            let device = |path: &Path| rustix::fs::stat(path).ok().map(|s| s.st_dev);
            let split = device(&root) != device(&images);
            reader.sample(&root, &images).map(|sample| (sample, split))
        });
        match read.await {
            Ok(Ok(found)) => Some(found),
            Ok(Err(error)) => {
                tracing::warn!(%error, "what is free cannot be read: nothing is evicted");
                None
            }
            Err(_) => None,
        }
    }

    async fn look(&self) -> Option<Look> {
        let look = self.stats.look_anyhow(self.pods.as_ref(), Depth::Disk);
        match tokio::time::timeout(crate::stats::look::PATIENCE, look).await {
            Ok(Ok(look)) => Some(look),
            Ok(Err(error)) => {
                tracing::warn!(%error, "what pods use is not known");
                None
            }
            Err(_) => {
                tracing::warn!("the runtime does not tell what pods use");
                None
            }
        }
    }

    /// One look. The pod that was evicted, if one was.
    async fn round(&self, images: &Path) -> Option<String> {
        let (sample, split) = self.sample(images).await?;
        let views: Vec<PodView> = self.pods.pods().into_iter().filter(active).collect();
        let calling = self.node.observe(&sample, &self.thresholds);
        let met: Vec<Met> = calling.iter().filter_map(|t| Met::of(t, &sample)).collect();
        let limited = views.iter().any(|v| rank::limited(&v.object));
        if met.is_empty() && !limited {
            return None;
        }
        if limited && let Some(look) = self.look().await {
            for view in views.iter().filter(|v| rank::limited(&v.object) && !rank::critical(&v.object)) {
                let uid = view.object.metadata.uid.clone().unwrap_or_default();
                let usage = look.summary.pods.iter().find(|p| p.pod_ref.uid == uid);
                if let Some(message) = usage.and_then(|u| rank::over_limit(&view.object, u, split)) {
                    self.evict(&uid, "ephemeral-storage.limit", signals::IMMEDIATE, message, None);
                    return Some(uid);
                }
            }
        }
        let first = met.first()?.clone();
        tracing::warn!(signal = first.signal, available = first.available, "the node is short");
        let resource = first.resource.name();
        let note = format!("Attempting to reclaim {resource}");
        self.events.write(vec![Happening { reason: "EvictionThresholdMet", note, warning: true }]);
        if first.disk.is_some() && self.reclaim(&first, images, split).await {
            tracing::info!(resource, "what was not needed was enough");
            return None;
        }
        let look = self.look().await;
        self.choose(&views, look.as_ref(), &first, split)
    }

    /// Removes what is not needed; true when that was enough.
    async fn reclaim(&self, met: &Met, images: &Path, split: bool) -> bool {
        let failed = |what, error: &dyn std::fmt::Display| tracing::warn!(%error, "{what}");
        if met.disk == Some(Disk::Image) || !split {
            if let Err(error) = self.collector.dead_containers(true).await {
                failed("dead containers were not removed", &error);
            }
            if let Err(error) = self.collector.unused_images().await {
                failed("unused images were not removed", &error);
            }
        }
        match self.sample(images).await {
            Some((sample, _)) => Memory::relieved(&sample, &self.thresholds),
            None => false,
        }
    }

    fn choose(&self, views: &[PodView], look: Option<&Look>, met: &Met, split: bool) -> Option<String> {
        let usage = |view: &PodView| {
            let uid = view.object.metadata.uid.as_deref()?;
            look?.summary.pods.iter().find(|p| p.pod_ref.uid == uid)
        };
        let mut ranked: Vec<_> = views.iter().map(|v| (v.object.as_ref(), usage(v))).collect();
        rank::rank(&mut ranked, met, split);
        let Some((pod, usage)) = ranked.into_iter().find(|(pod, _)| !rank::critical(pod)) else {
            tracing::error!(signal = met.signal, "thresholds are met, but no pod may be evicted");
            return None;
        };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let message = rank::message(pod, usage, met);
        let own = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
        let grace = met.grace(own, self.thresholds.max_pod_grace);
        self.evict(&uid, met.signal, grace, message.clone(), Some(message));
        Some(uid)
    }

    fn evict(
        &self,
        uid: &str,
        signal: &'static str,
        grace: Duration,
        message: String,
        disruption: Option<String>,
    ) {
        tracing::warn!(uid, signal, message, "a pod is evicted");
        self.metrics.evicted(signal);
        let ending = Ending { reason: "Evicted".to_owned(), message, grace, disruption };
        self.pods.end(uid, ending);
    }

    /// Waits until nothing of the pod runs, so that the next look sees what that gave.
    async fn gone(&self, uid: &str) {
        let Some(mut view) = self.pods.view(uid) else { return };
        let ended = view.wait_for(|v| v.containers.iter().all(|c| !c.running));
        if tokio::time::timeout(CLEANUP, ended).await.is_err() {
            tracing::warn!(uid, "an evicted pod does not end");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_is_not_taken_by_a_node_that_is_short() {
        let pod = |qos: &str, priority: i32, tolerations: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {}, "status": {"qosClass": qos},
                "spec": {"containers": [], "priority": priority, "tolerations": tolerations}}))
            .unwrap()
        };
        let short = |memory, disk, pids| Pressures { memory, disk, pids };
        let plain = |qos| pod(qos, 0, json!([]));
        let refused = |pod: &Pod, pressures| refuses(pod, pressures).map(|r| r.message);
        assert_eq!(refused(&plain("BestEffort"), Pressures::default()), None);
        assert_eq!(
            refused(&plain("BestEffort"), short(true, false, false)).as_deref(),
            Some("Pod was rejected: The node had condition: [MemoryPressure]. ")
        );
        assert_eq!(refused(&plain("Burstable"), short(true, false, false)), None);
        assert_eq!(
            refused(&plain("Guaranteed"), short(true, true, false)).as_deref(),
            Some("Pod was rejected: The node had condition: [MemoryPressure DiskPressure]. ")
        );
        let tolerates = json!([{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]);
        assert_eq!(refused(&pod("BestEffort", 0, tolerates.clone()), short(true, false, false)), None);
        assert!(refused(&pod("BestEffort", 0, tolerates), short(false, false, true)).is_some());
        let other = json!([{"key": "node.kubernetes.io/disk-pressure", "operator": "Exists"}]);
        assert!(refused(&pod("BestEffort", 0, other), short(true, false, false)).is_some());
        assert_eq!(refused(&pod("BestEffort", 2_000_000_000, json!([])), short(true, true, true)), None);
    }
}
