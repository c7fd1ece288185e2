//! The mirror pod of a static pod: the object by which the API server knows of it. One task per name
//! owns it: it makes it, takes away what is not it, puts it back when somebody deletes it, and writes
//! its status. No step of the static pod waits for any of that (`pkg/kubelet/pod/mirror_client.go`,
//! `tryReconcileMirrorPods`).
//!
//! [`next`] decides from what is wanted and what is there. What is there is what the watch told last, or
//! the answer to a write of ours if that is newer. A step that fails is tried again after a delay that
//! grows; without an API server that is all that happens.

use super::file::{HASH, MIRROR};
use crate::node;
use crate::status::diff;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use podway_api::annotations::AGENT_MANAGER;
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// The first and the longest delay after a step that failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// It is as it should be, or nothing can be done now.
    Nothing,
    /// It is not there.
    Create(Box<Pod>),
    /// It is there and should not, or is another's.
    Delete(String),
    /// It says something that is no longer so.
    Status(Value),
}

/// The annotation by which a mirror pod names whom it shows.
#[must_use]
pub fn shown(pod: &Pod) -> Option<&str> {
    annotation(pod, MIRROR)
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The mirror of `pod` on `node`.
fn mirror(pod: &Pod, node: &Node) -> Pod {
    let mut mirror = Pod { status: None, ..pod.clone() };
    let meta = &mut mirror.metadata;
    (meta.uid, meta.creation_timestamp, meta.generation) = (None, None, None);
    (meta.deletion_timestamp, meta.deletion_grace_period_seconds) = (None, None);
    let annotations = meta.annotations.get_or_insert_default();
    let hash = annotations.get(HASH).cloned().unwrap_or_default();
    annotations.insert(MIRROR.to_owned(), hash);
    // NodeRestriction takes a mirror pod only with this owner.
    meta.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        ..OwnerReference::default()
    }]);
    mirror
}

/// What brings the mirror nearer to what is wanted: `pod` with its status, or nothing.
#[must_use]
pub fn next(pod: Option<&Pod>, there: Option<&Pod>, node: Option<&Node>) -> Step {
    let uid = |mirror: &Pod| mirror.metadata.uid.clone().unwrap_or_default();
    match (pod, there) {
        (None, None) => Step::Nothing,
        (None, Some(old)) => Step::Delete(uid(old)),
        (Some(pod), None) => match node.filter(|n| n.metadata.deletion_timestamp.is_none()) {
            Some(node) => Step::Create(Box::new(mirror(pod, node))),
            None => Step::Nothing,
        },
        (Some(pod), Some(old)) => {
            if old.metadata.deletion_timestamp.is_some() || shown(old) != annotation(pod, HASH) {
                return Step::Delete(uid(old));
            }
            let (has, says) =
                (old.status.clone().unwrap_or_default(), pod.status.clone().unwrap_or_default());
            diff::patch(&uid(old), &has, &says).map_or(Step::Nothing, Step::Status)
        }
    }
}

/// What the task knows of the object.
#[derive(Debug, Default)]
struct Known {
    there: Option<Arc<Pod>>,
    /// The UID that we deleted: what the watch still has to tell of it is old.
    deleted: Option<String>,
    /// The status that was sent and what the API server made of it: it must not be asked for what it
    /// dropped again and again.
    sent: Option<Value>,
}

fn version(pod: &Pod) -> Option<u64> {
    pod.metadata.resource_version.as_ref()?.parse().ok()
}

impl Known {
    /// The watch told.
    fn seen(&mut self, told: Option<Arc<Pod>>) {
        match told {
            Some(pod) => {
                let old = self
                    .there
                    .as_ref()
                    .is_some_and(|t| t.metadata.uid == pod.metadata.uid && version(t) > version(&pod));
                if !old && pod.metadata.uid != self.deleted {
                    if self.there.as_ref().is_some_and(|t| t.status != pod.status) {
                        self.sent = None;
                    }
                    self.there = Some(pod);
                }
            }
            None => self.there = None,
        }
    }
}

/// The way to the task of one mirror.
#[derive(Clone, Debug)]
pub struct Handle {
    wanted: Arc<watch::Sender<Option<Arc<Pod>>>>,
    seen: Arc<watch::Sender<Option<Arc<Pod>>>>,
    uid: Arc<Mutex<Option<String>>>,
}

impl Handle {
    /// What the mirror is to show; nothing: it goes.
    pub fn want(&self, pod: Option<Arc<Pod>>) {
        self.wanted.send_replace(pod);
    }

    /// What the watch told of it.
    pub fn see(&self, mirror: Option<Arc<Pod>>) {
        self.seen.send_replace(mirror);
    }

    /// The UID of the mirror that is there.
    #[must_use]
    pub fn uid(&self) -> Option<String> {
        self.uid.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Begins the task of the mirror `namespace`/`name`. It ends when its handles are dropped.
#[must_use]
pub fn spawn(
    client: kube::Client,
    namespace: &str,
    name: &str,
    mut node: watch::Receiver<node::State>,
) -> Handle {
    let (wanted, mut want) = watch::channel(None);
    let (seen, mut see) = watch::channel(None);
    let handle = Handle { wanted: Arc::new(wanted), seen: Arc::new(seen), uid: Arc::default() };
    let uid = Arc::clone(&handle.uid);
    let (api, name): (Api<Pod>, _) = (Api::namespaced(client, namespace), name.to_owned());
    tokio::spawn(async move {
        let (mut known, mut delay) = (Known::default(), RETRY.0);
        loop {
            let pod: Option<Arc<Pod>> = want.borrow_and_update().clone();
            let registered = node.borrow_and_update().node.clone();
            let mut step = next(pod.as_deref(), known.there.as_deref(), registered.as_deref());
            if matches!(&step, Step::Status(patch) if known.sent.as_ref() == Some(patch)) {
                step = Step::Nothing;
            }
            let idle = step == Step::Nothing;
            let result = act(&api, &name, step, &mut known).await;
            let of = known.there.as_ref().and_then(|t| t.metadata.uid.clone());
            *uid.lock().unwrap_or_else(PoisonError::into_inner) = of;
            let failed = result.is_err();
            match result {
                Ok(()) if !idle => {
                    delay = RETRY.0;
                    continue;
                }
                Ok(()) => {}
                Err(error) => tracing::warn!(name, %error, "a mirror pod is not as it should be"),
            }
            tokio::select! {
                told = want.changed() => if told.is_err() { return },
                told = see.changed() => {
                    if told.is_err() {
                        return;
                    }
                    known.seen(see.borrow_and_update().clone());
                }
                Ok(()) = node.changed(), if idle => {}
                () = tokio::time::sleep(delay), if failed => delay = (delay * 2).min(RETRY.1),
            }
        }
    });
    handle
}

async fn act(api: &Api<Pod>, name: &str, step: Step, known: &mut Known) -> Result<(), kube::Error> {
    match step {
        Step::Nothing => Ok(()),
        Step::Create(mirror) => {
            let params =
                PostParams { field_manager: Some(AGENT_MANAGER.to_owned()), ..PostParams::default() };
            match api.create(&params, &mirror).await {
                Ok(made) => {
                    tracing::info!(name, "made a mirror pod");
                    (known.there, known.deleted, known.sent) = (Some(Arc::new(made)), None, None);
                    Ok(())
                }
                // Whose it is the next step sees; without a watch on it nobody would tell.
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                    known.there = api.get_opt(name).await?.map(Arc::new);
                    Ok(())
                }
                Err(error) => Err(error),
            }
        }
        Step::Delete(uid) => {
            let params = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(Preconditions { uid: Some(uid.clone()), ..Preconditions::default() }),
                ..DeleteParams::default()
            };
            match api.delete(name, &params).await {
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                other => drop(other?),
            }
            tracing::info!(name, uid, "took a mirror pod away");
            (known.there, known.deleted, known.sent) = (None, Some(uid), None);
            Ok(())
        }
        Step::Status(patch) => {
            let params =
                PatchParams { field_manager: Some(AGENT_MANAGER.to_owned()), ..PatchParams::default() };
            match api.patch_status(name, &params, &Patch::Strategic(patch.clone())).await {
                Ok(written) => {
                    (known.there, known.sent) = (Some(Arc::new(written)), Some(patch));
                    Ok(())
                }
                // It is gone, or another of its name is there: the watch has told, or will.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                    known.there = api.get_opt(name).await?.map(Arc::new);
                    Ok(())
                }
                Err(error) => Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    fn wanted() -> Pod {
        pod(json!({"metadata": {"name": "w-n", "namespace": "d", "uid": "h1", "generation": 1,
            "annotations": {HASH: "h1", "kubernetes.io/config.source": "file"}},
            "spec": {"containers": [{"name": "c", "image": "i"}], "nodeName": "n"},
            "status": {"phase": "Running"}}))
    }

    fn there(hash: &str, phase: &str) -> Pod {
        pod(json!({"metadata": {"name": "w-n", "namespace": "d", "uid": "m", "annotations": {MIRROR: hash}},
            "status": {"phase": phase}}))
    }

    fn node() -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n", "uid": "node-uid"}})).unwrap()
    }

    #[test]
    fn a_mirror_is_made_kept_and_taken_away() {
        let (want, n) = (wanted(), node());
        assert_eq!(next(None, None, Some(&n)), Step::Nothing);
        assert_eq!(next(Some(&want), None, None), Step::Nothing, "before the node is registered");
        let Step::Create(made) = next(Some(&want), None, Some(&n)) else { panic!("not made") };
        let meta = &made.metadata;
        assert_eq!((shown(&made), &meta.uid, &made.status), (Some("h1"), &None, &None));
        let owner = &meta.owner_references.as_ref().unwrap()[0];
        assert_eq!(
            (owner.kind.as_str(), owner.uid.as_str(), owner.controller),
            ("Node", "node-uid", Some(true))
        );
        assert_eq!(next(Some(&want), Some(&there("h1", "Running")), Some(&n)), Step::Nothing);
        assert_eq!(
            next(Some(&want), Some(&there("h1", "Pending")), Some(&n)),
            Step::Status(json!({"metadata": {"uid": "m"}, "status": {"phase": "Running"}}))
        );
        let gone = Step::Delete("m".to_owned());
        assert_eq!(next(Some(&want), Some(&there("h0", "Running")), Some(&n)), gone, "another file's");
        assert_eq!(next(None, Some(&there("h1", "Running")), Some(&n)), gone);
        let mut going = there("h1", "Running");
        going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert_eq!(next(Some(&want), Some(&going), Some(&n)), gone, "somebody deletes it");
        let mut leaving = node();
        leaving.metadata.deletion_timestamp = going.metadata.deletion_timestamp;
        assert_eq!(next(Some(&want), None, Some(&leaving)), Step::Nothing);
    }

    #[test]
    fn what_the_watch_tells_late_is_not_believed() {
        let at = |uid: &str, version: &str| {
            Arc::new(pod(json!({"metadata": {"name": "w-n", "uid": uid, "resourceVersion": version}})))
        };
        let mut known = Known { there: Some(at("m", "10")), ..Known::default() };
        known.seen(Some(at("m", "9")));
        assert_eq!(version(known.there.as_ref().unwrap()), Some(10));
        known.seen(Some(at("m", "11")));
        assert_eq!(version(known.there.as_ref().unwrap()), Some(11));
        known.seen(None);
        assert!(known.there.is_none());
        known.deleted = Some("m".to_owned());
        known.seen(Some(at("m", "12")));
        assert!(known.there.is_none(), "we deleted it");
        known.seen(Some(at("o", "13")));
        assert!(known.there.is_some());
    }
}
