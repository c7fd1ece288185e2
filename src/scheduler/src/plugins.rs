//! The plugins, one per file, with the formulas and reasons of Kubernetes 1.36.

pub mod balanced_allocation;
pub mod default_binder;
pub mod default_preemption;
pub mod dynamic_resources;
pub mod image_locality;
pub mod inter_pod_affinity;
pub mod node_affinity;
pub mod node_declared_features;
pub mod node_name;
pub mod node_ports;
pub mod node_resources_fit;
pub mod node_unschedulable;
pub mod node_volume_limits;
pub mod pod_topology_spread;
pub mod taint_toleration;
pub mod volume_binding;
pub mod volume_restrictions;
pub mod volume_zone;
pub(crate) mod volumes;

use crate::framework::Framework;
use std::sync::Arc;

/// The default profile: upstream's run order and weights. Binding needs a client, so that its plugin
/// is added where one is.
#[must_use]
pub fn default_framework() -> Framework {
    let taints = Arc::new(taint_toleration::TaintToleration);
    let affinity = Arc::new(node_affinity::NodeAffinity);
    let ports = Arc::new(node_ports::NodePorts);
    let fit = Arc::new(node_resources_fit::NodeResourcesFit);
    let spread = Arc::new(pod_topology_spread::PodTopologySpread);
    let near = Arc::new(inter_pod_affinity::InterPodAffinity);
    let claims = Arc::new(dynamic_resources::DynamicResources);
    let restrictions = Arc::new(volume_restrictions::VolumeRestrictions);
    let limits = Arc::new(node_volume_limits::NodeVolumeLimits);
    let binding = Arc::new(volume_binding::VolumeBinding);
    let zone = Arc::new(volume_zone::VolumeZone);
    let features = Arc::new(node_declared_features::NodeDeclaredFeatures);
    let balanced = Arc::new(balanced_allocation::BalancedAllocation);
    Framework {
        pre_filter: vec![
            affinity.clone(),
            ports.clone(),
            restrictions.clone(),
            limits.clone(),
            binding.clone(),
            zone.clone(),
            spread.clone(),
            near.clone(),
            claims.clone(),
            features.clone(),
        ],
        filter: vec![
            Arc::new(node_unschedulable::NodeUnschedulable),
            Arc::new(node_name::NodeName),
            taints.clone(),
            affinity.clone(),
            ports,
            fit.clone(),
            restrictions,
            limits,
            binding,
            zone,
            spread.clone(),
            near.clone(),
            features,
        ],
        post_filter: vec![claims, Arc::new(default_preemption::DefaultPreemption::default())],
        pre_score: vec![affinity.clone(), spread.clone(), near.clone(), balanced.clone()],
        score: vec![
            (taints, 3),
            (affinity, 2),
            (fit, 1),
            (spread, 2),
            (near, 2),
            (balanced, 1),
            (Arc::new(image_locality::ImageLocality), 1),
        ],
        ..Framework::default()
    }
}
