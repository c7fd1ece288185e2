//! What the cluster is told of a node's drivers (pkg/volume/csi/nodeinfomanager): the CSINode of its name, an
//! annotation and topology labels of the Node. What they are to say is pure; writing it is done again where somebody
//! else wrote meanwhile.

use super::driver::NodeInfo;
use super::name::DriverName;
use crate::node::State;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::{Mutex, watch};

/// Which driver calls the node what.
const NODE_ID: &str = "csi.volume.kubernetes.io/nodeid";
/// The first pause after a write that failed, how much longer the next one is, and how often is written
/// (`updateBackoff`).
const RETRY: (Duration, u32, u32) = (Duration::from_millis(10), 5, 4);
/// How long one call to the API server may take.
const CALL: Duration = Duration::from_secs(10);

/// Why the cluster does not know of a driver.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A driver must call the node something.
    #[error("error adding CSI driver node info: driverNodeID must not be empty")]
    NoId,
    /// Two say different things of where the node is.
    #[error(
        "detected topology value collision: driver reported {key:?}:{value:?} but existing label is {key:?}:{label:?}"
    )]
    Collision {
        /// The label.
        key: String,
        /// The driver's value.
        value: String,
        /// The Node's.
        label: String,
    },
    /// The annotation is somebody's, and no JSON of names.
    #[error("failed to parse node's {NODE_ID:?} annotation value ({0:?})")]
    Annotation(String, #[source] serde_json::Error),
    /// The CSINode was of a Node of this name that is no more.
    #[error("CSINode {0:?} was owned by different node, deleted it")]
    Owner(String),
    /// The API server.
    #[error("error updating {0} object with CSI driver node info")]
    Api(&'static str, #[source] Box<kube::Error>),
    /// It does not answer, or does not have the Node yet.
    #[error("error updating {0} object with CSI driver node info: no answer in {limit} s", limit = CALL.as_secs())]
    Late(&'static str),
}

/// Who tells the cluster.
#[async_trait]
pub trait Publish: Send + Sync {
    /// The node has this driver.
    ///
    /// # Errors
    /// [`PublishError`].
    async fn install(&self, driver: &DriverName, info: &NodeInfo) -> Result<(), PublishError>;

    /// The node has none but these.
    ///
    /// # Errors
    /// [`PublishError`].
    async fn keep(&self, drivers: &BTreeSet<DriverName>) -> Result<(), PublishError>;
}

/// Through the API server, as the node.
pub struct ApiNode {
    client: kube::Client,
    name: String,
    known: watch::Receiver<State>,
    /// One write at a time.
    turn: Mutex<()>,
}

impl ApiNode {
    /// The node `name`, which stands as `known` tells.
    #[must_use]
    pub fn new(client: kube::Client, name: &str, known: watch::Receiver<State>) -> Self {
        ApiNode { client, name: name.to_owned(), known, turn: Mutex::default() }
    }

    /// Makes the Node and the CSINode what `change` has them be; it is called with both.
    async fn write(
        &self,
        change: &(dyn Fn(&Node, Option<&CSINode>) -> Change + Sync),
    ) -> Result<(), PublishError> {
        let _turn = self.turn.lock().await;
        let (mut pause, factor, tries) = RETRY;
        for _ in 1..tries {
            match self.once(change).await {
                Err(PublishError::Api(..) | PublishError::Late(_) | PublishError::Owner(_)) => {}
                done => return done,
            }
            tokio::time::sleep(pause).await;
            pause *= factor;
        }
        self.once(change).await
    }

    async fn once(
        &self,
        change: &(dyn Fn(&Node, Option<&CSINode>) -> Change + Sync),
    ) -> Result<(), PublishError> {
        let mut known = self.known.clone();
        // A node that has just begun is registered any moment.
        let registered = tokio::time::timeout(CALL, known.wait_for(|state| state.node.is_some()));
        drop(registered.await.map_err(|_| PublishError::Late("Node"))?);
        let nodes: Api<Node> = Api::all(self.client.clone());
        let sets: Api<CSINode> = Api::all(self.client.clone());
        let node = timed("Node", nodes.get(&self.name)).await?;
        let set = timed("CSINode", sets.get_opt(&self.name)).await?;
        if set.as_ref().is_some_and(|set| !owned(set, &node)) {
            timed("CSINode", sets.delete(&self.name, &DeleteParams::default())).await?;
            return Err(PublishError::Owner(self.name.clone()));
        }
        let Changes { patch, set: new } = change(&node, set.as_ref())?;
        if let Some(patch) = patch.map(Patch::Merge) {
            timed("Node", nodes.patch(&self.name, &PatchParams::default(), &patch)).await?;
        }
        match (set, new) {
            (_, None) => {}
            (None, Some(new)) => drop(timed("CSINode", sets.create(&PostParams::default(), &new)).await?),
            (Some(_), Some(new)) => {
                drop(timed("CSINode", sets.replace(&self.name, &PostParams::default(), &new)).await?);
            }
        }
        Ok(())
    }
}

async fn timed<T>(
    what: &'static str,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, PublishError> {
    match tokio::time::timeout(CALL, call).await {
        Ok(result) => result.map_err(|error| PublishError::Api(what, Box::new(error))),
        Err(_) => Err(PublishError::Late(what)),
    }
}

#[async_trait]
impl Publish for ApiNode {
    async fn install(&self, driver: &DriverName, info: &NodeInfo) -> Result<(), PublishError> {
        self.write(&|node, set| with(node, set, driver, info)).await
    }

    async fn keep(&self, drivers: &BTreeSet<DriverName>) -> Result<(), PublishError> {
        self.write(&|node, set| only(node, set, drivers)).await
    }
}

/// What is to be written.
#[derive(Debug, Default, PartialEq)]
struct Changes {
    /// A merge patch of the Node.
    patch: Option<Value>,
    /// The CSINode.
    set: Option<CSINode>,
}

type Change = Result<Changes, PublishError>;

fn owned(set: &CSINode, node: &Node) -> bool {
    let mut owners = set.metadata.owner_references.iter().flatten().filter(|o| o.kind == "Node");
    owners.any(|o| Some(&o.uid) == node.metadata.uid.as_ref() && Some(&o.name) == node.metadata.name.as_ref())
}

fn ids(node: &Node) -> Result<BTreeMap<String, String>, PublishError> {
    let said = node.metadata.annotations.as_ref().and_then(|all| all.get(NODE_ID)).filter(|t| !t.is_empty());
    let Some(said) = said else { return Ok(BTreeMap::new()) };
    serde_json::from_str(said).map_err(|error| PublishError::Annotation(said.clone(), error))
}

/// A patch of the Node that holds only while nobody else has written it.
fn patch(node: &Node, ids: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> Value {
    let ids = (!ids.is_empty()).then(|| json!(ids).to_string());
    let mut metadata = json!({
        "resourceVersion": node.metadata.resource_version,
        "annotations": {NODE_ID: ids},
    });
    if !labels.is_empty() {
        metadata["labels"] = json!(labels);
    }
    json!({"metadata": metadata})
}

/// With a driver.
fn with(node: &Node, set: Option<&CSINode>, driver: &DriverName, info: &NodeInfo) -> Change {
    if info.id.is_empty() {
        return Err(PublishError::NoId);
    }
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let other = |(key, value): (&String, &String)| {
        let label = labels.get(key).filter(|label| *label != value)?;
        Some(PublishError::Collision { key: key.clone(), value: value.clone(), label: label.clone() })
    };
    if let Some(collision) = info.topology.iter().find_map(other) {
        return Err(collision);
    }
    let before = ids(node)?;
    let mut after = before.clone();
    after.insert(driver.as_str().to_owned(), info.id.clone());
    let new: BTreeMap<_, _> = info
        .topology
        .iter()
        .filter(|(key, _)| !labels.contains_key(*key))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let patch = (before != after || !new.is_empty()).then(|| patch(node, &after, &new));

    let entry = CSINodeDriver {
        name: driver.as_str().to_owned(),
        node_id: info.id.clone(),
        topology_keys: Some(info.topology.keys().cloned().collect()),
        allocatable: info.limit.map(|count| VolumeNodeResources { count: Some(count) }),
    };
    let old = set.map(|set| set.spec.drivers.clone()).unwrap_or_default();
    let keys = |d: &CSINodeDriver| d.topology_keys.iter().flatten().cloned().collect::<BTreeSet<_>>();
    let same = |d: &CSINodeDriver| {
        d.name == entry.name
            && d.node_id == entry.node_id
            && keys(d) == keys(&entry)
            && d.allocatable == entry.allocatable
    };
    if old.iter().any(same) {
        return Ok(Changes { patch, set: None });
    }
    let mut drivers: Vec<_> = old.into_iter().filter(|d| d.name != entry.name).collect();
    drivers.push(entry);
    let spec = CSINodeSpec { drivers };
    let metadata = set.map_or_else(|| ours(node), |set| set.metadata.clone());
    Ok(Changes { patch, set: Some(CSINode { metadata, spec }) })
}

/// With none but these drivers. A CSINode that is left without any stays, as with a kubelet.
fn only(node: &Node, set: Option<&CSINode>, drivers: &BTreeSet<DriverName>) -> Change {
    let here = |name: &str| DriverName::parse(name).is_some_and(|name| drivers.contains(&name));
    let before = ids(node)?;
    let after: BTreeMap<_, _> =
        before.iter().filter(|(name, _)| here(name)).map(|(k, v)| (k.clone(), v.clone())).collect();
    let patch = (before != after).then(|| patch(node, &after, &BTreeMap::new()));
    let set = set.filter(|set| !set.spec.drivers.iter().all(|d| here(&d.name))).cloned().map(|mut set| {
        set.spec.drivers.retain(|d| here(&d.name));
        set
    });
    Ok(Changes { patch, set })
}

fn ours(node: &Node) -> ObjectMeta {
    let name = node.metadata.name.clone().unwrap_or_default();
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.clone(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        ..OwnerReference::default()
    };
    ObjectMeta { name: Some(name), owner_references: Some(vec![owner]), ..ObjectMeta::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(more: Value) -> Node {
        let mut metadata = json!({"name": "n", "uid": "u", "resourceVersion": "7"});
        metadata.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    fn info(limit: Option<i32>) -> NodeInfo {
        let topology = [("topology.example.com/rack".to_owned(), "r1".to_owned())].into();
        NodeInfo { id: "id-1".to_owned(), limit, topology }
    }

    fn name(of: &str) -> DriverName {
        DriverName::parse(of).unwrap()
    }

    #[test]
    fn a_driver_comes_is_known_and_goes() {
        let empty = node(json!({}));
        let made = with(&empty, None, &name("a.example.com"), &info(Some(3))).unwrap();
        let set = made.set.unwrap();
        assert!(owned(&set, &empty) && !owned(&set, &node(json!({"uid": "another"}))));
        assert_eq!(
            serde_json::to_value(&set.spec).unwrap(),
            json!({"drivers": [{"name": "a.example.com", "nodeID": "id-1",
                "topologyKeys": ["topology.example.com/rack"], "allocatable": {"count": 3}}]})
        );
        assert_eq!(
            made.patch.unwrap(),
            json!({"metadata": {"resourceVersion": "7",
                "annotations": {"csi.volume.kubernetes.io/nodeid": "{\"a.example.com\":\"id-1\"}"},
                "labels": {"topology.example.com/rack": "r1"}}})
        );
        let there = node(json!({"labels": {"topology.example.com/rack": "r1"},
            "annotations": {NODE_ID: "{\"a.example.com\":\"id-1\",\"b\":\"x\"}"}}));
        let again = with(&there, Some(&set), &name("a.example.com"), &info(Some(3))).unwrap();
        assert_eq!(again, Changes::default(), "what stands is not written");
        let other = with(&there, Some(&set), &name("a.example.com"), &info(None)).unwrap();
        let other = other.set.unwrap().spec.drivers;
        assert_eq!((other.len(), &other[0].allocatable), (1, &None), "another limit takes its place");
        let second = with(&there, Some(&set), &name("c"), &info(None)).unwrap().set.unwrap();
        assert_eq!(second.spec.drivers.len(), 2);

        let gone = only(&there, Some(&second), &[name("c")].into()).unwrap();
        let left: Vec<_> = gone.set.unwrap().spec.drivers.into_iter().map(|d| d.name).collect();
        assert_eq!(left, ["c"]);
        assert_eq!(gone.patch.unwrap()["metadata"]["annotations"][NODE_ID], Value::Null);
        assert_eq!(only(&empty, None, &BTreeSet::new()).unwrap(), Changes::default());
    }

    #[test]
    fn what_cannot_be_true_is_told_in_upstreams_words() {
        let told = |node: &Node, info: &NodeInfo| with(node, None, &name("a"), info).unwrap_err().to_string();
        let elsewhere = node(json!({"labels": {"topology.example.com/rack": "r2"}}));
        assert_eq!(
            told(&elsewhere, &info(None)),
            "detected topology value collision: driver reported \"topology.example.com/rack\":\"r1\" \
             but existing label is \"topology.example.com/rack\":\"r2\""
        );
        assert!(told(&node(json!({})), &NodeInfo::default()).ends_with("driverNodeID must not be empty"));
        let torn = node(json!({"annotations": {NODE_ID: "["}}));
        assert!(told(&torn, &info(None)).starts_with("failed to parse node's"));
    }
}
