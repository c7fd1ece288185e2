//! A node: its labels, taints, allocatable resources and images.

use super::{ModelError, Original, Resources, quantity};
use k8s_openapi::api::core::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A taint's effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// No new pod without a toleration.
    NoSchedule,
    /// Rather not.
    PreferNoSchedule,
    /// Nor may running ones stay.
    NoExecute,
}

impl Effect {
    /// Reads the API's word; `None` for another.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "NoSchedule" => Some(Effect::NoSchedule),
            "PreferNoSchedule" => Some(Effect::PreferNoSchedule),
            "NoExecute" => Some(Effect::NoExecute),
            _ => None,
        }
    }
}

/// A taint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value; may be empty.
    pub value: String,
    /// Effect.
    pub effect: Effect,
}

/// A node as the scheduler sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// Name.
    pub name: Arc<str>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `spec.unschedulable` (cordoned).
    pub unschedulable: bool,
    /// Taints; one with an unknown effect is left out, as upstream ignores it.
    pub taints: Vec<Taint>,
    /// `status.allocatable`.
    pub allocatable: Resources,
    /// `status.allocatable.pods`.
    pub allocatable_pods: i64,
    /// `status.declaredFeatures`.
    pub features: BTreeSet<String>,
    /// Image name to size in bytes; an image has several names.
    pub images: BTreeMap<String, i64>,
    /// The node itself, where extenders are to see it.
    pub original: Original<v1::Node>,
}

impl NodeInfo {
    /// Reads a node of the API.
    ///
    /// # Errors
    /// [`ModelError`] for a missing name or an amount that is not a quantity.
    pub fn parse(node: &v1::Node) -> Result<Self, ModelError> {
        let name = node.metadata.name.clone().ok_or(ModelError::Missing("metadata.name"))?;
        let spec = node.spec.clone().unwrap_or_default();
        let status = node.status.as_ref();
        let allocatable = status.and_then(|s| s.allocatable.clone()).unwrap_or_default();
        let allocatable_pods = match allocatable.get("pods") {
            Some(n) => quantity::value(&n.0).map_err(|source| ModelError::Quantity {
                field: "status.allocatable[\"pods\"]".into(),
                source,
            })?,
            None => 0,
        };
        let mut images = BTreeMap::new();
        for image in status.and_then(|s| s.images.as_ref()).into_iter().flatten() {
            for name in image.names.iter().flatten() {
                images.insert(name.clone(), image.size_bytes.unwrap_or(0));
            }
        }
        Ok(NodeInfo {
            name: name.into(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            unschedulable: spec.unschedulable.unwrap_or(false),
            taints: spec
                .taints
                .unwrap_or_default()
                .into_iter()
                .filter_map(|t| {
                    Some(Taint {
                        effect: Effect::parse(&t.effect)?,
                        key: t.key,
                        value: t.value.unwrap_or_default(),
                    })
                })
                .collect(),
            allocatable: Resources::parse(&allocatable, "status.allocatable")?,
            allocatable_pods,
            features: status.and_then(|s| s.declared_features.clone()).into_iter().flatten().collect(),
            images,
            original: Original::default(),
        })
    }
}
