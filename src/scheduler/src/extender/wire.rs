//! What is said between scheduler and extender (`k8s.io/kube-scheduler/extender/v1` types.go): Go's own JSON, with
//! the fields' names as they stand there. Go reads names in any case, and extenders rely on it, so do we.

use super::{ExtenderError, Filtered, MetaVictims};
use crate::framework::{Candidate, Placement};
use crate::model::PodInfo;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// `ExtenderArgs`: one of the two lists.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Args<'a> {
    pub(super) pod: &'a Pod,
    pub(super) nodes: Option<NodeList<'a>>,
    pub(super) node_names: Option<Vec<&'a str>>,
}

/// `v1.NodeList`.
#[derive(Serialize)]
pub(super) struct NodeList<'a> {
    pub(super) metadata: Empty,
    pub(super) items: Vec<&'a Node>,
}

/// `{}`.
#[derive(Serialize)]
pub(super) struct Empty {}

/// `ExtenderPreemptionArgs`: one of the two maps.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PreemptionArgs<'a> {
    pod: &'a Pod,
    node_name_to_victims: Option<BTreeMap<&'a str, Victims<&'a Pod>>>,
    node_name_to_meta_victims: Option<BTreeMap<&'a str, Victims<MetaPod<'a>>>>,
}

/// `Victims` and `MetaVictims`.
#[derive(Serialize)]
struct Victims<P> {
    #[serde(rename = "Pods")]
    pods: Vec<P>,
    #[serde(rename = "NumPDBViolations")]
    violations: usize,
}

#[derive(Serialize)]
struct MetaPod<'a> {
    #[serde(rename = "UID")]
    uid: &'a str,
}

/// `ExtenderBindingArgs`.
#[derive(Serialize)]
pub(super) struct BindingArgs<'a> {
    #[serde(rename = "PodName")]
    name: &'a str,
    #[serde(rename = "PodNamespace")]
    namespace: &'a str,
    #[serde(rename = "PodUID")]
    uid: &'a str,
    #[serde(rename = "Node")]
    node: &'a str,
}

impl<'a> BindingArgs<'a> {
    pub(super) fn of(placement: &'a Placement) -> Self {
        let PodInfo { name, namespace, uid, .. } = &*placement.pod;
        BindingArgs { name, namespace, uid, node: &placement.node }
    }
}

impl<'a> PreemptionArgs<'a> {
    pub(super) fn of(
        pod: &'a PodInfo,
        candidates: &'a [Candidate],
        knows_nodes: bool,
    ) -> Result<Self, ExtenderError> {
        let victims = |c: &'a Candidate| {
            let pods = c.victims.iter().map(|v| whole(v)).collect::<Result<_, _>>()?;
            Ok((c.node.as_str(), Victims { pods, violations: c.violations }))
        };
        let meta = |c: &'a Candidate| {
            let pods = c.victims.iter().map(|v| MetaPod { uid: &v.uid }).collect();
            (c.node.as_str(), Victims { pods, violations: c.violations })
        };
        let (mut whole_ones, mut metas) = (None, None);
        if knows_nodes {
            metas = Some(candidates.iter().map(meta).collect());
        } else {
            whole_ones = Some(candidates.iter().map(victims).collect::<Result<_, _>>()?);
        }
        Ok(PreemptionArgs {
            pod: whole(pod)?,
            node_name_to_victims: whole_ones,
            node_name_to_meta_victims: metas,
        })
    }
}

/// The pod as the API server has it.
pub(super) fn whole(pod: &PodInfo) -> Result<&Pod, ExtenderError> {
    pod.original.get().ok_or_else(|| ExtenderError::NotKept(format!("pod {}", pod.key())))
}

/// An object's fields by their names in lower case.
fn fields(value: Value) -> Result<Map<String, Value>, String> {
    match value {
        Value::Object(map) => Ok(map.into_iter().map(|(k, v)| (k.to_ascii_lowercase(), v)).collect()),
        other => Err(format!("{} in the place of an object", kind(&other))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a bool",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn read<T: serde::de::DeserializeOwned + Default>(
    map: &mut Map<String, Value>,
    name: &str,
) -> Result<T, String> {
    match map.remove(name) {
        None | Some(Value::Null) => Ok(T::default()),
        Some(value) => serde_json::from_value(value).map_err(|error| format!("{name}: {error}")),
    }
}

fn said(map: &mut Map<String, Value>) -> Result<(), Answer> {
    let error: String = read(map, "error").map_err(Answer::Unread)?;
    if error.is_empty() { Ok(()) } else { Err(Answer::Said(error)) }
}

/// What an answer is when it is none.
pub(super) enum Answer {
    /// It says that it failed.
    Said(String),
    /// It is not what it should be.
    Unread(String),
}

impl From<String> for Answer {
    fn from(reason: String) -> Self {
        Answer::Unread(reason)
    }
}

/// `ExtenderFilterResult`. Of nodes that are sent back whole, the name counts.
pub(super) fn filtered(value: Value, knows_nodes: bool) -> Result<Filtered, Answer> {
    let mut map = fields(value)?;
    said(&mut map)?;
    let names: Option<Vec<String>> = read(&mut map, "nodenames")?;
    let nodes: Option<Value> = read(&mut map, "nodes")?;
    let passed = match (names.filter(|_| knows_nodes), nodes) {
        (Some(names), _) => names,
        (None, Some(list)) => {
            let items: Option<Vec<Value>> = read(&mut fields(list)?, "items")?;
            let name = |node: Value| {
                let meta: Value = read(&mut fields(node)?, "metadata")?;
                let name: String = read(&mut fields(meta)?, "name")?;
                Ok::<_, String>(name)
            };
            items.unwrap_or_default().into_iter().map(name).collect::<Result<_, _>>()?
        }
        (None, None) => vec![],
    };
    let failed = read(&mut map, "failednodes")?;
    Ok(Filtered { passed, failed, unresolvable: read(&mut map, "failedandunresolvablenodes")? })
}

/// `HostPriorityList`.
pub(super) fn prioritized(value: Value) -> Result<Vec<(String, i64)>, Answer> {
    let list: Vec<Value> = match value {
        Value::Null => vec![],
        Value::Array(list) => list,
        other => return Err(format!("{} in the place of an array", kind(&other)).into()),
    };
    let one = |value: Value| {
        let mut map = fields(value)?;
        Ok((read(&mut map, "host")?, read(&mut map, "score")?))
    };
    Ok(list.into_iter().map(one).collect::<Result<_, String>>()?)
}

/// `ExtenderPreemptionResult`.
pub(super) fn preempted(value: Value) -> Result<BTreeMap<String, MetaVictims>, Answer> {
    let all: BTreeMap<String, Value> = read(&mut fields(value)?, "nodenametometavictims")?;
    let uid = |pod: Value| read::<String>(&mut fields(pod)?, "uid");
    let one = |(node, value): (String, Value)| {
        if value.is_null() {
            return Ok((node, MetaVictims::default()));
        }
        let mut map = fields(value)?;
        let pods: Vec<Value> = read(&mut map, "pods")?;
        let uids = pods.into_iter().map(uid).collect::<Result<_, _>>()?;
        Ok((node, MetaVictims { uids, violations: read(&mut map, "numpdbviolations")? }))
    };
    Ok(all.into_iter().map(one).collect::<Result<_, String>>()?)
}

/// `ExtenderBindingResult`.
pub(super) fn bound(value: Value) -> Result<(), Answer> {
    said(&mut fields(value)?)
}
