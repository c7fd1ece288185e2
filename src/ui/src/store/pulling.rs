//! Image pulls, asked of a node while a pod that should become Ready is on it, and not longer.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use podway_flow::html::{State, Told};
use tokio_stream::StreamMap;

use super::{Store, state};
use crate::pulls;

/// The most nodes that are asked at a time.
const MOST_NODES: usize = 64;

type Asked = StreamMap<String, Pin<Box<dyn Stream<Item = pulls::Told> + Send>>>;

impl Store {
    /// What the nodes tell, by node.
    #[must_use]
    pub fn pulls(&self) -> BTreeMap<String, Told> {
        self.lock().pulls.clone()
    }

    /// What the node of a pod tells of the pod's own images.
    #[must_use]
    pub fn pulls_of(&self, namespace: &str, name: &str) -> Option<Told> {
        let inside = self.lock();
        let is_it = |pod: &&Pod| {
            let meta = &pod.metadata;
            meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
        };
        let pod = inside.pods.objects.values().find(is_it).filter(|pod| state(pod) == State::Starting)?;
        let spec = pod.spec.as_ref()?;
        let told = inside.pulls.get(spec.node_name.as_ref()?)?;
        Some(told.as_ref().map(|told| pulls::of_images(spec, told)).map_err(Clone::clone))
    }

    /// Asks those that may pull something for a pod, as pods come and go.
    pub(super) async fn keep_pulls(&self, client: &Client) {
        let mut changes = self.changes();
        let mut asked = Asked::new();
        loop {
            changes.mark_unchanged();
            let wanted = self.nodes_that_may_pull();
            if self.forget_pulls(&wanted) {
                self.changed();
            }
            let left: Vec<String> = asked.keys().filter(|node| !wanted.contains(*node)).cloned().collect();
            for node in left {
                drop(asked.remove(&node));
            }
            for node in wanted {
                // One that has refused is not asked again before it had nothing to do.
                let refused = self.lock().pulls.get(&node).is_some_and(Result::is_err);
                if !refused && !asked.contains_key(&node) && asked.len() < MOST_NODES {
                    let told = pulls::watch(client.clone(), &node);
                    asked.insert(node, Box::pin(told));
                }
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                Some((node, told)) = asked.next(), if !asked.is_empty() => {
                    if self.take_pulls(node, told) {
                        self.changed();
                    }
                }
            }
        }
    }

    fn nodes_that_may_pull(&self) -> BTreeSet<String> {
        let inside = self.lock();
        let starting = inside.pods.objects.values().filter(|pod| state(pod) == State::Starting);
        starting.filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect()
    }

    /// Whether something was there to be forgotten.
    fn forget_pulls(&self, wanted: &BTreeSet<String>) -> bool {
        let mut inside = self.lock();
        let before = inside.pulls.len();
        inside.pulls.retain(|node, _| wanted.contains(node));
        inside.pulls.len() != before
    }

    /// Whether the page may differ now.
    fn take_pulls(&self, node: String, told: pulls::Told) -> bool {
        let told = match told {
            pulls::Told::Pulls(mut pulls) => {
                pulls.retain(|pull| !pull.has_ended());
                Ok(pulls)
            }
            pulls::Told::Refused(why) => Err(why),
        };
        self.lock().pulls.insert(node, told.clone()) != Some(told)
    }
}
