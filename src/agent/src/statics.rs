//! Static pods: those that the files of a directory (`staticPodPath`) stand for. They run without the API
//! server, and it sees each through its mirror pod.
//!
//! A static pod is a pod like any other to its worker; what it says goes to [`Local`] instead of the API
//! server, which keeps the status beside the pod's name on disk (so that an agent that starts again
//! goes on where it was) and hands it to the mirror's task. The slot of a name orders what the files
//! want: one pod of a name at a time; what changed or is gone ends within its own grace, whatever
//! becomes of the mirror meanwhile, and only then the next one begins.

pub mod dir;
pub mod file;
pub mod mirror;

use crate::api::{ApiError, PodApi};
use crate::files;
use crate::sync::lock;
use async_trait::async_trait;
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Pod, PodStatus, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use podway_flow::Flow;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Namespace and name.
pub type Name = (String, String);

/// The name of a pod.
#[must_use]
pub fn name(pod: &Pod) -> Name {
    let meta = &pod.metadata;
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// What is to be done for a name.
#[derive(Clone, Debug, PartialEq)]
pub enum Do {
    /// A worker takes this pod on.
    Begin(Arc<Pod>),
    /// The worker of this pod is told that it is deleted.
    End(Arc<Pod>),
}

#[derive(Debug, Default)]
struct Slot {
    wanted: Option<Arc<Pod>>,
    /// The pod that a worker has, and whether it was told to end.
    running: Option<(Arc<Pod>, bool)>,
}

/// Which pod of each name runs, and which is to. Pure.
#[derive(Debug, Default)]
pub struct Slots(HashMap<Name, Slot>);

impl Slots {
    /// The files stand for these pods now.
    pub fn want(&mut self, pods: Vec<Arc<Pod>>) -> Vec<Do> {
        self.0.values_mut().for_each(|slot| slot.wanted = None);
        for pod in pods {
            let of = name(&pod);
            self.0.entry(of).or_default().wanted = Some(pod);
        }
        let steps = self.0.values_mut().filter_map(Slot::step).collect();
        self.0.retain(|_, slot| slot.wanted.is_some() || slot.running.is_some());
        steps
    }

    /// Nothing is left of the pod `uid` of that name.
    pub fn ended(&mut self, name: &Name, uid_: &str) -> Option<Do> {
        let slot = self.0.get_mut(name)?;
        if slot.running.as_ref().is_some_and(|(pod, _)| uid(pod) == uid_) {
            slot.running = None;
        }
        let step = slot.step();
        if slot.wanted.is_none() && slot.running.is_none() {
            self.0.remove(name);
        }
        step
    }

    /// Whether a name is a static pod's.
    #[must_use]
    pub fn has(&self, name: &Name) -> bool {
        self.0.contains_key(name)
    }
}

impl Slot {
    fn step(&mut self) -> Option<Do> {
        match (&self.wanted, &mut self.running) {
            (Some(pod), None) => {
                self.running = Some((Arc::clone(pod), false));
                Some(Do::Begin(Arc::clone(pod)))
            }
            (wanted, Some((pod, told))) if !*told && wanted.as_deref().map(uid) != Some(uid(pod)) => {
                *told = true;
                Some(Do::End(Arc::clone(pod)))
            }
            _ => None,
        }
    }
}

/// The pod as the API server would show it once somebody had deleted it.
#[must_use]
pub fn deleted(pod: &Pod, now: jiff::Timestamp) -> Pod {
    let mut pod = pod.clone();
    let grace = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30).max(0);
    let at = now.checked_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now);
    pod.metadata.deletion_timestamp = Some(Time(at));
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    pod
}

/// Stands in the API server's place for one static pod.
pub struct Local {
    inner: Arc<dyn PodApi>,
    mirror: mirror::Handle,
    pod: Mutex<Arc<Pod>>,
    path: PathBuf,
}

impl Local {
    /// For `pod`, whose status an agent before this one may have left below `root`.
    #[must_use]
    pub fn new(inner: Arc<dyn PodApi>, mirror: mirror::Handle, pod: &Pod, root: &Path) -> Self {
        let path = root.join("static").join(format!("{}.json", uid(pod)));
        let mut pod = pod.clone();
        match files::recall(&path) {
            Ok(Some(status)) => pod.status = Some(status),
            Ok(None) => {}
            Err(error) => tracing::warn!(uid = uid(&pod), %error, "a static pod's status cannot be read"),
        }
        let pod = Arc::new(pod);
        mirror.want(Some(Arc::clone(&pod)));
        Local { inner, mirror, pod: Mutex::new(pod), path }
    }

    /// The pod with its status.
    #[must_use]
    pub fn pod(&self) -> Arc<Pod> {
        Arc::clone(&lock(&self.pod))
    }
}

#[async_trait]
impl PodApi for Local {
    async fn patch_status(&self, _: &str, _: &str, _: Value, whole: &PodStatus) -> Result<Pod, ApiError> {
        let mut pod = (*self.pod()).clone();
        pod.status = Some(whole.clone());
        if let Err(error) = files::keep(&self.path, 0o700, whole) {
            tracing::warn!(uid = uid(&pod), %error, "a static pod's status cannot be written down");
        }
        let new = Arc::new(pod.clone());
        *lock(&self.pod) = Arc::clone(&new);
        self.mirror.want(Some(new));
        Ok(pod)
    }

    async fn delete(&self, _: &str, _: &str, _: &str) -> Result<(), ApiError> {
        self.mirror.want(None);
        if let Err(error) = files::forget(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a static pod's status is left behind");
        }
        Ok(())
    }

    async fn write_flow(&self, flow: &Flow, told: &[Condition], create: bool) -> Result<(), ApiError> {
        // It is the mirror's: what belonged to a UID that is no object's would be collected as garbage.
        let mut flow = flow.clone();
        flow.pod.uid = self.mirror.uid().ok_or(ApiError::Gone)?;
        self.inner.write_flow(&flow, told, create).await
    }

    async fn warn(&self, pod: &Pod, reason: &str, message: &str) {
        self.inner.warn(pod, reason, message).await;
    }

    async fn note(&self, pod: &Pod, container: &str, reason: &str, message: &str) {
        self.inner.note(pod, container, reason, message).await;
    }

    async fn services(&self, namespace: &str) -> Vec<Service> {
        // Those that are known: a static pod does not wait for the API server.
        self.inner.services(namespace).now_or_never().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, uid: &str) -> Arc<Pod> {
        let value = json!({"metadata": {"name": name, "namespace": "d", "uid": uid},
            "spec": {"containers": [], "terminationGracePeriodSeconds": 7}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn of_a_name_one_pod_runs_at_a_time() {
        let (one, two, three) = (pod("a", "1"), pod("a", "2"), pod("a", "3"));
        let of = name(&one);
        let mut slots = Slots::default();
        assert_eq!(slots.want(vec![Arc::clone(&one)]), [Do::Begin(Arc::clone(&one))]);
        assert_eq!(slots.want(vec![Arc::clone(&one)]), []);
        assert_eq!(slots.want(vec![Arc::clone(&two)]), [Do::End(Arc::clone(&one))]);
        assert_eq!(slots.want(vec![Arc::clone(&three)]), [], "changed again while the first one ends");
        assert_eq!(slots.ended(&of, "other"), None);
        assert_eq!(slots.ended(&of, "1"), Some(Do::Begin(three)));
        assert!(slots.has(&of));
        // Gone and back as it was, before it has ended: it ends, and begins anew.
        let last = pod("a", "3");
        assert_eq!(slots.want(Vec::new()), [Do::End(Arc::clone(&last))]);
        assert_eq!(slots.want(vec![Arc::clone(&last)]), []);
        assert_eq!(slots.ended(&of, "3"), Some(Do::Begin(Arc::clone(&last))));
        assert_eq!(slots.want(Vec::new()), [Do::End(last)]);
        assert_eq!(slots.ended(&of, "3"), None);
        assert!(!slots.has(&of));
    }

    #[test]
    fn names_do_not_wait_for_each_other_and_an_end_has_its_grace() {
        let mut slots = Slots::default();
        slots.want(vec![pod("a", "1"), pod("b", "2")]);
        assert_eq!(slots.want(vec![pod("b", "2"), pod("c", "3")]).len(), 2);
        let gone = deleted(&pod("a", "1"), jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(gone.metadata.deletion_grace_period_seconds, Some(7));
        assert_eq!(gone.metadata.deletion_timestamp.unwrap().0.as_second(), 7);
    }

    #[test]
    fn a_status_outlives_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("static/u.json");
        let recalled = |path| files::recall::<PodStatus>(path);
        assert_eq!(recalled(&path).unwrap(), None);
        let status = PodStatus { phase: Some("Running".to_owned()), ..PodStatus::default() };
        files::keep(&path, 0o700, &status).unwrap();
        assert_eq!(recalled(&path).unwrap(), Some(status));
        std::fs::write(&path, "{").unwrap();
        recalled(&path).unwrap_err();
    }
}
