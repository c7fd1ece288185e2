//! What the watch tells of pods: which wait, which are placed, which are nobody's.

use super::Scheduler;
use super::listing::{self, Told};
use crate::framework::ClusterEvent;
use crate::model::PodInfo;
use crate::queue::News;
use crate::shadow::Verdict;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher;
use std::sync::Arc;

impl Scheduler {
    /// Another scheduler has bound a pod of a profile's: would this one have done the same?
    pub(super) fn compare(&mut self, pod: &PodInfo) {
        let Some(shadow) = &mut self.shadow else { return };
        let Some(profile) = self.profiles.of(&pod.scheduler_name) else { return };
        let snapshot = self.cache.snapshot();
        let compared = shadow.compare(&profile.framework, &snapshot, pod, &pod.node_name);
        self.binder.metrics.shadowed(compared.label());
        if !matches!(compared, Verdict::Same | Verdict::Tied) {
            let result = compared.label();
            tracing::info!(
                pod = pod.key(),
                node = pod.node_name,
                result,
                ?compared,
                "the schedulers disagree"
            );
        }
    }

    /// A pod left a node: who waits for room is woken if it is enough.
    pub(super) fn left(&mut self, pod: Arc<PodInfo>, node: Option<&str>) {
        let state = node.and_then(|n| self.cache.state_of(n));
        let event = ClusterEvent::AssignedPodDelete(pod);
        let news = News { on: state.as_ref(), ..News::from(&event) };
        self.queue.event_by(self.profiles.frameworks(), news, self.binder.clock.now());
    }

    pub(super) fn on_pod(&mut self, event: watcher::Event<Pod>) {
        match self.listed_pods.take(event, listing::uid) {
            None => {}
            Some(Told::Set(pod)) => self.set_pod(&pod),
            Some(Told::Gone(uid)) => self.remove_pod(&uid),
            Some(Told::Listed(seen)) => {
                let gone: Vec<String> = self
                    .cache
                    .uids()
                    .chain(self.queue.uids())
                    .chain(self.strangers.keys().map(String::as_str))
                    .filter(|u| !seen.contains(*u))
                    .map(str::to_owned)
                    .collect();
                gone.iter().for_each(|uid| self.remove_pod(uid));
                self.synced.pods = true;
            }
        }
    }

    pub(super) fn set_pod(&mut self, pod: &Pod) {
        let info = match PodInfo::parse(pod) {
            Ok(info) => Arc::new(if self.keeps_originals { info.keeping(pod) } else { info }),
            Err(error) => {
                tracing::warn!(%error, pod = pod.metadata.name, "a pod is left out");
                return;
            }
        };
        if !info.node_name.is_empty() {
            self.queue.remove(&info.uid);
            self.cache.unnominate(&info.uid);
            self.strangers.remove(&info.uid);
            if self.shadow.is_some() && self.synced() && !self.cache.is_placed(&info.uid) {
                self.compare(&info);
            }
            let event = match self.cache.confirm(info.clone()) {
                None => ClusterEvent::AssignedPodAdd(info),
                Some(old) if (&old.labels, old.deleting) == (&info.labels, info.deleting) => return,
                Some(old) => ClusterEvent::AssignedPodUpdate(old, info),
            };
            self.happened(&event);
        } else if self.cache.is_placed(&info.uid) {
            // Assumed: its binding is under way and decides what comes next, on what is known then.
            if let Some((latest, _)) = self.binding.get_mut(&info.uid) {
                *latest = info;
            }
        } else if info.deleting {
            self.forget_waiting(&info.uid);
            self.strangers.remove(&info.uid);
        } else if self.shadow.is_some() {
            // It is the other scheduler's to place.
        } else if self.profiles.of(&info.scheduler_name).is_some() {
            self.renominate(&info);
            self.queue.upsert(info, self.binder.clock.now());
        } else {
            self.strangers.insert(info.uid.clone(), info);
        }
    }

    /// A waiting pod came or changed: what it says of its nomination counts, unless it never said
    /// anything. Then what was decided here and is not written yet stands.
    pub(super) fn renominate(&mut self, info: &Arc<PodInfo>) {
        let before = self.queue.get(&info.uid).cloned();
        let said = before.as_ref().is_some_and(|b| !b.nominated.is_empty());
        if said || !info.nominated.is_empty() {
            self.cache.unnominate(&info.uid);
            if !info.nominated.is_empty() {
                self.cache.nominate(info.clone(), &info.nominated);
            }
        } else if let Some(node) = self.cache.unnominate(&info.uid) {
            self.cache.nominate(info.clone(), &node);
        }
        if let Some(before) = before.filter(|b| said && b.nominated != info.nominated) {
            self.gave_up(before);
        }
    }

    /// A pod that is no longer nominated leaves its room to pods of no higher priority.
    pub(super) fn gave_up(&mut self, pod: Arc<PodInfo>) {
        let (priority, now) = (pod.priority, self.binder.clock.now());
        let event = ClusterEvent::AssignedPodDelete(pod);
        let news = News { priority, ..News::from(&event) };
        self.queue.event_by(self.profiles.frameworks(), news, now);
    }

    /// A pod that waits will not be decided any more.
    pub(super) fn forget_waiting(&mut self, uid: &str) {
        let waited = self.queue.remove(uid);
        if self.cache.unnominate(uid).is_some()
            && let Some(queued) = waited
        {
            self.gave_up(queued.pod);
        }
    }

    pub(super) fn remove_pod(&mut self, uid: &str) {
        self.forget_waiting(uid);
        if let Some((_, recall)) = self.binding.get(uid) {
            // What may still be held up need not be.
            recall.recall();
        }
        self.strangers.remove(uid);
        let node = self.cache.node_of(uid).map(str::to_owned);
        if let Some(pod) = self.cache.remove_pod(uid) {
            self.left(pod, node.as_deref());
        }
    }
}
