//! What three watches tell: pods, their `PodFlow`s, and the events of those that have none; and what the nodes of
//! pods that start tell of their image pulls ([`pulling`]).
//!
//! Each watch ends in a map by UID and a tick of [`Store::changes`]; a page is made from the maps as they
//! stand. A watch that the API server refuses leaves its trouble for the page, and the others go on.

mod pulling;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::core::NamespaceResourceScope;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use podway_api::{PodFlow, join};
use podway_flow::html::{Entry, State, Told};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

use crate::select::Selector;

/// The most events that are kept: a cluster without podway has some for each pod, for an hour.
const MOST_EVENTS: usize = 50_000;

/// The objects of one watch.
#[derive(Debug)]
struct Kept<K> {
    objects: BTreeMap<String, K>,
    /// Those of a listing that has begun, which replaces `objects` when it is whole.
    listing: BTreeMap<String, K>,
    trouble: Option<String>,
}

impl<K> Default for Kept<K> {
    fn default() -> Self {
        Kept { objects: BTreeMap::new(), listing: BTreeMap::new(), trouble: None }
    }
}

impl<K: ResourceExt> Kept<K> {
    /// Takes what a watch tells. Whether the page may differ now.
    fn take(&mut self, event: watcher::Event<K>) -> bool {
        self.trouble = None;
        match event {
            watcher::Event::Init => self.listing.clear(),
            watcher::Event::InitApply(object) => {
                self.listing.insert(key(&object), object);
            }
            watcher::Event::InitDone => {
                self.objects = std::mem::take(&mut self.listing);
                return true;
            }
            watcher::Event::Apply(object) => {
                self.objects.insert(key(&object), object);
                return true;
            }
            watcher::Event::Delete(object) => {
                self.objects.remove(&key(&object));
                return true;
            }
        }
        false
    }
}

fn key<K: ResourceExt>(object: &K) -> String {
    object
        .uid()
        .unwrap_or_else(|| format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any()))
}

#[derive(Debug, Default)]
struct Inside {
    pods: Kept<Pod>,
    flows: Kept<PodFlow>,
    events: Kept<Event>,
    /// By node.
    pulls: BTreeMap<String, Told>,
}

/// What is known of the pods. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    inside: Arc<Mutex<Inside>>,
    version: Arc<watch::Sender<u64>>,
}

impl Default for Store {
    fn default() -> Self {
        Store { inside: Arc::default(), version: Arc::new(watch::Sender::new(0)) }
    }
}

impl Store {
    /// Ticks whenever a page may look different.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// The pods that `selector` takes, with their flows.
    #[must_use]
    pub fn entries(&self, selector: &Selector) -> Vec<Entry> {
        let inside = self.lock();
        let taken = |pod: &&Pod| selector.takes(pod.metadata.labels.as_ref().unwrap_or(&BTreeMap::new()));
        let pods: Vec<Pod> = inside.pods.objects.values().filter(taken).cloned().collect();
        let flows: Vec<PodFlow> = inside.flows.objects.values().cloned().collect();
        let events: Vec<Event> = inside.events.objects.values().cloned().collect();
        drop(inside);
        let flows = join::flows(&pods, &flows, &events);
        pods.iter().zip(flows).map(|(pod, flow)| Entry { flow, state: state(pod) }).collect()
    }

    /// One pod.
    #[must_use]
    pub fn entry(&self, namespace: &str, name: &str) -> Option<Entry> {
        let of = |e: &Entry| e.flow.pod.namespace == namespace && e.flow.pod.name == name;
        self.entries(&Selector::default()).into_iter().find(of)
    }

    /// What could not be read.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        let inside = self.lock();
        [&inside.pods.trouble, &inside.flows.trouble, &inside.events.trouble]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// Whether something is expected to change with time alone: a page with a running bar is drawn anew.
    #[must_use]
    pub fn is_moving(&self) -> bool {
        self.lock().pods.objects.values().any(|pod| state(pod) == State::Starting)
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// Follows the cluster, in `namespace` or in all, until it is dropped.
    pub async fn follow(self, client: Client, namespace: Option<String>) {
        let of_pods = watcher::Config::default().fields("involvedObject.kind=Pod");
        let all = watcher::Config::default;
        let scope = namespace.as_deref();
        tokio::join!(
            self.keep(api::<Pod>(&client, scope), all(), "pods", |inside| &mut inside.pods),
            self.keep(api::<PodFlow>(&client, scope), all(), "podflows.podway.dev", |inside| &mut inside
                .flows),
            self.keep(api::<Event>(&client, scope), of_pods, "events", |inside| &mut inside.events),
            self.keep_pulls(&client),
        );
    }

    async fn keep<K>(
        &self,
        api: Api<K>,
        of: watcher::Config,
        what: &str,
        kept: fn(&mut Inside) -> &mut Kept<K>,
    ) where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        K::DynamicType: Default,
    {
        let mut changes = pin!(watcher(api, of).default_backoff());
        while let Some(change) = changes.next().await {
            let changed = match change {
                Ok(event) => {
                    let mut inside = self.lock();
                    let kept = kept(&mut inside);
                    let changed = kept.take(event);
                    while kept.objects.len() > MOST_EVENTS && what == "events" {
                        kept.objects.pop_first();
                    }
                    changed
                }
                Err(error) => {
                    let trouble = trouble(what, &error);
                    tracing::debug!(what, error = &error as &dyn std::error::Error, "a watch broke");
                    let mut inside = self.lock();
                    let kept = kept(&mut inside);
                    let changed = kept.trouble != trouble;
                    kept.trouble = trouble;
                    changed
                }
            };
            if changed {
                self.changed();
            }
        }
    }
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// What a broken watch is to the reader: nothing where it is routine.
fn trouble(what: &str, error: &watcher::Error) -> Option<String> {
    use kube::Error::Api;
    let status = match error {
        watcher::Error::InitialListFailed(Api(status))
        | watcher::Error::WatchStartFailed(Api(status))
        | watcher::Error::WatchFailed(Api(status))
        | watcher::Error::WatchError(status) => status,
        other => return Some(format!("watching {what}: {other}; trying again")),
    };
    match status.code {
        // The history is gone and is listed anew; or the cluster has no PodFlows, and pods tell of themselves.
        410 => None,
        404 if what.contains("podway") => None,
        _ => Some(format!("watching {what}: {}", status.message)),
    }
}

/// Where a pod stands by its object.
fn state(pod: &Pod) -> State {
    let status = pod.status.as_ref();
    let is = |type_: &str| {
        let mut conditions = status.into_iter().flat_map(|s| s.conditions.iter().flatten());
        conditions.any(|c| c.type_ == type_ && c.status == "True")
    };
    let ran = status.into_iter().flat_map(|s| s.container_statuses.iter().flatten()).any(|c| {
        let was = c.last_state.as_ref().is_some_and(|s| s.terminated.is_some());
        was || c.restart_count > 0
    });
    match status.and_then(|s| s.phase.as_deref()) {
        _ if pod.metadata.deletion_timestamp.is_some() => State::Going,
        Some("Succeeded" | "Failed") => State::Ended,
        _ if is("Ready") => State::Ready,
        Some("Running") if ran => State::NotReady,
        _ => State::Starting,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(uid: &str, status: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": uid, "namespace": "n", "uid": uid,
            "creationTimestamp": "2026-11-24T05:31:12Z"}, "status": status}))
        .unwrap()
    }

    #[test]
    fn a_listing_replaces_what_was_kept_only_when_it_is_whole() {
        let mut kept = Kept::default();
        assert!(kept.take(watcher::Event::Apply(pod("a", json!({})))));
        assert!(!kept.take(watcher::Event::Init));
        assert!(!kept.take(watcher::Event::InitApply(pod("b", json!({})))));
        assert_eq!(kept.objects.keys().collect::<Vec<_>>(), ["a"]);
        assert!(kept.take(watcher::Event::InitDone));
        assert_eq!(kept.objects.keys().collect::<Vec<_>>(), ["b"]);
        assert!(kept.take(watcher::Event::Delete(pod("b", json!({})))));
        assert!(kept.objects.is_empty());
    }

    #[test]
    fn a_pods_state_is_told_by_its_object() {
        let ready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        let restarted = json!({"phase": "Running", "containerStatuses": [
            {"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 2}]});
        let mut going = pod("g", ready.clone());
        going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        for (pod, wanted) in [
            (pod("p", json!({"phase": "Pending"})), State::Starting),
            (pod("p", ready), State::Ready),
            (pod("p", restarted), State::NotReady),
            (pod("p", json!({"phase": "Succeeded"})), State::Ended),
            (going, State::Going),
        ] {
            assert_eq!(state(&pod), wanted, "{:?}", pod.status);
        }
    }

    #[test]
    fn a_refusal_is_told_and_what_is_routine_is_not() {
        let said = |code| {
            let status = kube::core::Status { code, message: "no".to_owned(), ..Default::default() };
            watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))
        };
        assert_eq!(trouble("pods", &said(403)).as_deref(), Some("watching pods: no"));
        assert_eq!(trouble("pods", &said(410)), None);
        assert_eq!(trouble("podflows.podway.dev", &said(404)), None);
        assert!(trouble("pods", &said(404)).is_some());
    }
}
