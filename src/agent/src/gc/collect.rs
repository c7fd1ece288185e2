//! Dead containers and unused images (`pkg/kubelet/kuberuntime/kuberuntime_gc.go`,
//! `pkg/kubelet/images/image_gc_manager.go`).
//!
//! Of a container of a living pod the newest dead instance stays, for its `lastState` and its log; the
//! pod's worker removes older ones itself. Here go those that nobody's worker will: of pods that the
//! node no longer has, and, under pressure, those of pods that are at their end. An image goes when no
//! container has it, it was not detected in the last 2 minutes, and the disk is over 85 % full: the one
//! that was used longest ago first, until 80 % are left.

use crate::cri::{CallError, Cri};
use crate::node::events::{Happening, Writer};
use crate::node::machine;
use crate::pod::cri_config::POD_UID;
use crate::source::PodSource;
use podway_cri::v1;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// When images go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImagePolicy {
    /// `imageGCHighThresholdPercent`: over that much of the disk, images go ...
    pub high: u64,
    /// `imageGCLowThresholdPercent`: ... until it is this much.
    pub low: u64,
    /// `imageMinimumGCAge`.
    pub min_age: Duration,
    /// `imageMaximumGCAge`: an image that was not used that long goes anyhow; none: never for that.
    pub max_age: Option<Duration>,
}

impl Default for ImagePolicy {
    fn default() -> Self {
        ImagePolicy { high: 85, low: 80, min_age: Duration::from_secs(120), max_age: None }
    }
}

/// Why something was not collected.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The runtime.
    #[error(transparent)]
    Runtime(#[from] CallError),
    /// The disk.
    #[error("the image file system cannot be read")]
    Disk,
    /// Not enough went.
    #[error("{0}")]
    Insufficient(String),
}

/// What is known of an image.
#[derive(Clone, Copy, Debug)]
struct Record {
    detected: Instant,
    used: Option<Instant>,
    size: u64,
    pinned: bool,
}

/// What is known of all images, over time.
#[derive(Debug, Default)]
struct Records(HashMap<String, Record>);

impl Records {
    /// Takes in what there is and what is used now.
    fn detect(&mut self, images: &[v1::Image], in_use: &HashSet<String>, now: Instant) {
        let there: HashSet<&str> = images.iter().map(|i| i.id.as_str()).collect();
        self.0.retain(|id, _| there.contains(id.as_str()));
        for image in images {
            let fresh = Record { detected: now, used: None, size: 0, pinned: false };
            let record = self.0.entry(image.id.clone()).or_insert(fresh);
            (record.size, record.pinned) = (image.size, image.pinned);
            if in_use.contains(&image.id) {
                record.used = Some(now);
            }
        }
    }

    /// The images that may go, the one that was used longest ago first.
    fn order(&self, in_use: &HashSet<String>) -> Vec<(String, Record)> {
        let free = self.0.iter().filter(|(id, r)| !in_use.contains(*id) && !r.pinned);
        let mut all: Vec<(String, Record)> = free.map(|(id, r)| (id.clone(), *r)).collect();
        all.sort_by_key(|(_, r)| (r.used, r.detected));
        all
    }
}

/// Which images of `order` go: for their age, then to free `bytes`.
fn choose(
    order: Vec<(String, Record)>,
    bytes: u64,
    policy: ImagePolicy,
    age_of_agent: Duration,
    now: Instant,
) -> Vec<(String, u64)> {
    let mut chosen = Vec::new();
    let mut freed = 0_u64;
    for (id, record) in order {
        let idle = now.saturating_duration_since(record.used.unwrap_or(record.detected));
        // What the agent has not yet seen for that long is not known to be unused that long.
        let old = policy.max_age.is_some_and(|most| age_of_agent > most && idle > most);
        let young = now.saturating_duration_since(record.detected) < policy.min_age;
        if old || (freed < bytes && !young) {
            freed = freed.saturating_add(record.size);
            chosen.push((id, record.size));
        }
    }
    chosen
}

/// How much of the image disk must be freed: from `high` on, down to `low`.
fn excess(fs: &machine::Fs, policy: ImagePolicy) -> Option<(u64, u64)> {
    let available = fs.available.min(fs.capacity);
    let percent = 100 - available.saturating_mul(100).checked_div(fs.capacity)?;
    let wanted = fs.capacity / 100 * (100 - policy.low);
    (percent >= policy.high).then(|| (wanted.saturating_sub(available), percent))
}

/// Collects.
pub struct Collector {
    cri: Cri,
    pods: Arc<dyn PodSource>,
    events: Writer,
    policy: ImagePolicy,
    records: Mutex<Records>,
    begun: Instant,
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collector").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl Collector {
    /// Over the runtime `cri` and its `pods`.
    #[must_use]
    pub fn new(cri: Cri, pods: Arc<dyn PodSource>, events: Writer, policy: ImagePolicy) -> Self {
        Collector { cri, pods, events, policy, records: Mutex::default(), begun: Instant::now() }
    }

    /// Removes dead containers that no worker of a pod looks after; with `all` also those of pods that
    /// are at their end.
    ///
    /// # Errors
    /// [`CollectError`].
    pub async fn dead_containers(&self, all: bool) -> Result<usize, CollectError> {
        let (_, containers) = self.cri.holding().await?;
        let mut kept: HashSet<String> = HashSet::new();
        for view in self.pods.pods() {
            let phase = view.object.status.as_ref().and_then(|s| s.phase.as_deref());
            if !(all && matches!(phase, Some("Succeeded" | "Failed"))) {
                kept.extend(view.object.metadata.uid.clone());
            }
        }
        let mut removed = 0;
        for id in dead(&containers, &kept) {
            match self.cri.remove_container(&id).await.result {
                Ok(()) => removed += 1,
                Err(error) => tracing::warn!(container = id, %error, "a dead container was not removed"),
            }
        }
        Ok(removed)
    }

    /// What is there, and which may go in which order.
    async fn detect(&self) -> Result<Vec<(String, Record)>, CollectError> {
        let images = self.cri.images().await?;
        let (_, containers) = self.cri.holding().await?;
        let in_use: HashSet<String> = containers
            .iter()
            .flat_map(|c| [c.image_id.clone(), c.image_ref.clone()])
            .filter(|id| !id.is_empty())
            .collect();
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.detect(&images, &in_use, Instant::now());
        Ok(records.order(&in_use))
    }

    async fn remove(&self, chosen: Vec<(String, u64)>) -> u64 {
        let mut freed = 0;
        for (id, size) in chosen {
            match self.cri.remove_image(&id).await {
                Ok(()) => {
                    tracing::info!(image = id, size, "an image that nobody uses was removed");
                    freed += size;
                }
                Err(error) => tracing::warn!(image = id, %error, "an image was not removed"),
            }
        }
        freed
    }

    /// Removes every image that nobody uses (under disk pressure).
    ///
    /// # Errors
    /// [`CollectError`].
    pub async fn unused_images(&self) -> Result<u64, CollectError> {
        let order = self.detect().await?;
        let chosen = choose(order, u64::MAX, self.policy, self.begun.elapsed(), Instant::now());
        Ok(self.remove(chosen).await)
    }

    /// One round: images go if the disk is too full, or for their age.
    ///
    /// # Errors
    /// [`CollectError`].
    pub async fn images(&self) -> Result<(), CollectError> {
        let order = self.detect().await?;
        let room = self.cri.image_fs().await?.image_filesystems.into_iter().find_map(|fs| fs.fs_id);
        let dir = PathBuf::from(room.ok_or(CollectError::Disk)?.mountpoint);
        let read = tokio::task::spawn_blocking(move || machine::fs(&dir)).await;
        let Ok(Ok(fs)) = read else { return Err(CollectError::Disk) };
        let excess = excess(&fs, self.policy);
        let bytes = excess.map_or(0, |(bytes, _)| bytes);
        let chosen = choose(order, bytes, self.policy, self.begun.elapsed(), Instant::now());
        let freed = self.remove(chosen).await;
        if let Some((bytes, percent)) = excess.filter(|(bytes, _)| freed < *bytes) {
            let message = format!(
                "Insufficient free disk space on the node's image filesystem ({percent}% of {} used). \
                 Failed to free sufficient space by deleting unused images (freed {freed} bytes). \
                 Investigate disk usage, as it could be used by active images, logs, volumes, or other data.",
                size(fs.capacity)
            );
            tracing::debug!(bytes, freed, "not enough images went");
            let note = message.clone();
            self.events.write(vec![Happening { reason: "FreeDiskSpaceFailed", note, warning: true }]);
            return Err(CollectError::Insufficient(message));
        }
        Ok(())
    }
}

/// The dead containers whose pod is not in `kept`.
fn dead(containers: &[v1::Container], kept: &HashSet<String>) -> Vec<String> {
    let ours = containers.iter().filter(|c| {
        let over = c.state == v1::ContainerState::ContainerExited as i32;
        over && c.labels.get(POD_UID).is_some_and(|uid| !kept.contains(uid))
    });
    ours.map(|c| c.id.clone()).collect()
}

/// Bytes as upstream's `formatSize` has them.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, size: u64, pinned: bool) -> v1::Image {
        v1::Image { id: id.into(), size, pinned, ..Default::default() }
    }

    #[test]
    fn the_image_used_longest_ago_goes_first_and_a_young_or_pinned_one_stays() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let set = |ids: &[&str]| ids.iter().map(ToString::to_string).collect::<HashSet<_>>();
        let mut records = Records::default();
        let all = [image("a", 10, false), image("b", 20, false), image("c", 30, false), image("p", 99, true)];
        records.detect(&all, &set(&["a", "c"]), at(0));
        records.detect(&all, &set(&["c"]), at(100));
        let young = [&all[..], &[image("y", 40, false)]].concat();
        records.detect(&young, &set(&["c"]), at(1000));
        let ids = |chosen: Vec<(String, u64)>| chosen.into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        let order = || records.order(&set(&["c"]));
        // One that was never used goes before one that was.
        assert_eq!(order().iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["b", "y", "a"]);
        let policy = ImagePolicy::default();
        let choose = |bytes, policy, age| ids(super::choose(order(), bytes, policy, age, at(1000)));
        let hour = Duration::from_secs(3600);
        assert_eq!(choose(0, policy, hour), [""; 0]);
        assert_eq!(choose(15, policy, hour), ["b"]);
        assert_eq!(choose(u64::MAX, policy, hour), ["b", "a"], "y is too young");
        let aged = ImagePolicy { max_age: Some(Duration::from_secs(500)), ..policy };
        assert_eq!(choose(0, aged, hour), ["b", "a"]);
        assert_eq!(choose(0, aged, Duration::from_secs(400)), [""; 0], "the agent is too young to know");
        records.detect(&[image("c", 30, false)], &set(&[]), at(2000));
        assert_eq!(records.0.len(), 1, "what is gone is forgotten");
    }

    #[test]
    fn from_85_down_to_80_percent() {
        let fs = |available| machine::Fs { capacity: 1000, available, ..machine::Fs::default() };
        let policy = ImagePolicy::default();
        assert_eq!(excess(&fs(151), policy), Some((49, 85)), "as upstream: 100 - 15 is 85");
        assert_eq!(excess(&fs(160), policy), None);
        assert_eq!(excess(&fs(20), policy), Some((180, 98)));
        assert_eq!(excess(&machine::Fs::default(), policy), None, "a disk of no size");
        assert_eq!([size(12), size(1536), size(3 << 30)], ["12 B", "1.5 KiB", "3.0 GiB"]);
    }

    #[test]
    fn dead_containers_of_pods_that_nobody_looks_after() {
        let container = |id: &str, uid: &str, state: v1::ContainerState| v1::Container {
            id: id.into(),
            state: state as i32,
            labels: [(POD_UID.to_owned(), uid.to_owned())].into(),
            ..Default::default()
        };
        let all = [
            container("1", "here", v1::ContainerState::ContainerExited),
            container("2", "gone", v1::ContainerState::ContainerExited),
            container("3", "gone", v1::ContainerState::ContainerRunning),
            v1::Container { id: "4".into(), state: 2, ..Default::default() },
        ];
        assert_eq!(dead(&all, &["here".to_owned()].into()), ["2"]);
    }
}
