//! A PodDisruptionBudget: how many of some pods may go.

use super::{LabelSelector, Meta, PodInfo};
use crate::objects::{Kept, Kind, Object};
use k8s_openapi::api::policy::v1;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A budget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DisruptionBudget {
    /// Namespace.
    pub namespace: String,
    /// The pods.
    pub selector: LabelSelector,
    /// `status.disruptionsAllowed`.
    pub allowed: i64,
    /// The pods by name whose going is counted already.
    pub disrupted: BTreeSet<String>,
}

impl DisruptionBudget {
    /// True for a pod whose going it counts. A selector without a requirement takes none, as upstream's
    /// `filterPodsWithPDBViolation`.
    #[must_use]
    pub fn counts(&self, pod: &PodInfo) -> bool {
        !pod.labels.is_empty()
            && self.namespace == pod.namespace
            && !self.selector.is_empty()
            && self.selector.matches(&pod.labels)
            && !self.disrupted.contains(&pod.name)
    }
}

impl Kept for DisruptionBudget {
    type Api = v1::PodDisruptionBudget;
    const KIND: Kind = Kind::DisruptionBudget;

    fn parse(meta: Meta, api: Self::Api) -> Option<Self> {
        let status = api.status.unwrap_or_default();
        Some(DisruptionBudget {
            namespace: meta.namespace,
            selector: LabelSelector::parse(api.spec.unwrap_or_default().selector.as_ref()),
            allowed: i64::from(status.disruptions_allowed.unwrap_or(0)),
            disrupted: status.disrupted_pods.unwrap_or_default().into_keys().collect(),
        })
    }

    fn wrap(object: Arc<Self>) -> Object {
        Object::DisruptionBudget(object)
    }
}
