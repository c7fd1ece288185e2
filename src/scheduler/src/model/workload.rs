//! Services and the controllers of pods: whose pods upstream's default constraints spread.

use super::{LabelSelector, Meta};
use crate::objects::{Kept, Kind, Object};
use k8s_openapi::api::{apps::v1 as apps, core::v1};
use std::collections::BTreeMap;
use std::sync::Arc;

fn equal(labels: BTreeMap<String, String>) -> LabelSelector {
    labels.iter().fold(LabelSelector::All(vec![]), |selector, (key, value)| selector.and(key, value))
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Its pods; Nothing for one without a selector.
    pub selector: LabelSelector,
}

impl Kept for Service {
    type Api = v1::Service;
    const KIND: Kind = Kind::Service;

    fn parse(meta: Meta, api: Self::Api) -> Option<Self> {
        let selector = api.spec.and_then(|s| s.selector);
        let selector = selector.map_or(LabelSelector::Nothing, equal);
        Some(Service { namespace: meta.namespace, selector })
    }

    fn wrap(object: Arc<Self>) -> Object {
        Object::Service(object)
    }
}

macro_rules! controllers {
    ($($(#[$doc:meta])* $kind:ident: $api:ty, |$spec:ident| $selector:expr;)+) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, Default, PartialEq, Eq)]
            pub struct $kind {
                /// Its pods.
                pub selector: LabelSelector,
            }

            impl Kept for $kind {
                type Api = $api;
                const KIND: Kind = Kind::$kind;

                fn parse(_: Meta, api: Self::Api) -> Option<Self> {
                    let $spec = api.spec?;
                    Some($kind { selector: $selector })
                }

                fn wrap(object: Arc<Self>) -> Object {
                    Object::$kind(object)
                }
            }
        )+
    };
}

controllers! {
    /// A ReplicationController.
    ReplicationController: v1::ReplicationController, |spec| equal(spec.selector.unwrap_or_default());
    /// A ReplicaSet.
    ReplicaSet: apps::ReplicaSet, |spec| LabelSelector::parse(Some(&spec.selector));
    /// A StatefulSet.
    StatefulSet: apps::StatefulSet, |spec| LabelSelector::parse(Some(&spec.selector));
}

/// The controller of a pod, as far as upstream's default constraints go by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// By name.
    ReplicationController(String),
    /// By name.
    ReplicaSet(String),
    /// By name.
    StatefulSet(String),
}

impl Owner {
    /// The controller of a pod, by kind and API version as `helper.DefaultSelector` takes them.
    #[must_use]
    pub fn of(pod: &v1::Pod) -> Option<Self> {
        let mut owners = pod.metadata.owner_references.iter().flatten();
        let controller = owners.find(|o| o.controller == Some(true))?;
        let name = controller.name.clone();
        match (controller.api_version.as_str(), controller.kind.as_str()) {
            ("v1", "ReplicationController") => Some(Owner::ReplicationController(name)),
            ("apps/v1", "ReplicaSet") => Some(Owner::ReplicaSet(name)),
            ("apps/v1", "StatefulSet") => Some(Owner::StatefulSet(name)),
            _ => None,
        }
    }
}
