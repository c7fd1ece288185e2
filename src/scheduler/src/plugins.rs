//! The plugins, one per file, with the formulas and reasons of Kubernetes 1.36.
//!
//! [`registry`] has them in upstream's run order, which decides the reason that a node shows; a profile
//! is what is left of it, in its order, with its weights and args.

mod allocation;
pub mod args;
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

pub use args::PluginArgs;

use crate::framework::{Filter, Framework, Plugin, PostFilter, PreFilter, PreScore, Score};
use std::sync::Arc;

/// A plugin at the points that it has.
#[derive(Clone)]
pub struct Entry {
    /// Upstream's name.
    pub name: &'static str,
    /// Its weight, if it scores.
    pub weight: i64,
    pre_filter: Option<Arc<dyn PreFilter>>,
    filter: Option<Arc<dyn Filter>>,
    post_filter: Option<Arc<dyn PostFilter>>,
    pre_score: Option<Arc<dyn PreScore>>,
    score: Option<Arc<dyn Score>>,
}

macro_rules! entry {
    ($plugin:expr, $weight:expr; $($point:ident),*) => {{
        let plugin = Arc::new($plugin);
        let mut entry = Entry {
            name: plugin.name(),
            weight: $weight,
            pre_filter: None,
            filter: None,
            post_filter: None,
            pre_score: None,
            score: None,
        };
        $(entry.$point = Some(plugin.clone());)*
        entry
    }};
    ($plugin:expr; $($point:ident),*) => { entry!($plugin, 0; $($point),*) };
}

/// All deciding plugins in run order, with their default weights.
#[must_use]
pub fn registry(args: &PluginArgs) -> Vec<Entry> {
    let near = inter_pod_affinity::InterPodAffinity(args.affinity);
    let spread = pod_topology_spread::PodTopologySpread(args.spread.clone());
    let balanced = balanced_allocation::BalancedAllocation(args.balanced.clone());
    vec![
        entry!(node_unschedulable::NodeUnschedulable; filter),
        entry!(node_name::NodeName; filter),
        entry!(taint_toleration::TaintToleration, 3; filter, score),
        entry!(node_affinity::NodeAffinity(args.node_affinity.clone()), 2; pre_filter, filter, pre_score, score),
        entry!(node_ports::NodePorts; pre_filter, filter),
        entry!(node_resources_fit::NodeResourcesFit(args.fit.clone()), 1; filter, score),
        entry!(volume_restrictions::VolumeRestrictions; pre_filter, filter),
        entry!(node_volume_limits::NodeVolumeLimits; pre_filter, filter),
        entry!(volume_binding::VolumeBinding; pre_filter, filter),
        entry!(volume_zone::VolumeZone; pre_filter, filter),
        entry!(spread, 2; pre_filter, filter, pre_score, score),
        entry!(near, 2; pre_filter, filter, pre_score, score),
        entry!(dynamic_resources::DynamicResources; pre_filter, post_filter),
        entry!(default_preemption::DefaultPreemption(args.preemption); post_filter),
        entry!(balanced, 1; pre_score, score),
        entry!(image_locality::ImageLocality, 1; score),
        entry!(node_declared_features::NodeDeclaredFeatures; pre_filter, filter),
    ]
}

impl Framework {
    /// A profile's plugins, in this order. One that scores with weight 0 does not score.
    #[must_use]
    pub fn of(entries: impl IntoIterator<Item = Entry>) -> Self {
        let mut out = Framework::default();
        for entry in entries {
            out.pre_filter.extend(entry.pre_filter);
            out.filter.extend(entry.filter);
            out.post_filter.extend(entry.post_filter);
            if entry.weight != 0 {
                out.pre_score.extend(entry.pre_score);
                out.score.extend(entry.score.map(|plugin| (plugin, entry.weight)));
            }
        }
        out
    }
}

/// The default profile: upstream's run order, weights and args. Binding needs a client, so that its
/// plugins are added where one is.
#[must_use]
pub fn default_framework() -> Framework {
    Framework::of(registry(&PluginArgs::default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_the_registry_less_what_it_leaves_out() {
        let mut entries = registry(&PluginArgs::default());
        entries.retain(|e| e.name != "NodePorts");
        for entry in entries.iter_mut().filter(|e| e.name == "TaintToleration") {
            entry.weight = 0;
        }
        let framework = Framework::of(entries);
        let filters: Vec<&str> = framework.filter.iter().map(|p| p.name()).collect();
        assert!(filters.contains(&"TaintToleration") && !filters.contains(&"NodePorts"));
        let scores: Vec<&str> = framework.score.iter().map(|(p, _)| p.name()).collect();
        let want = [
            "NodeAffinity",
            "NodeResourcesFit",
            "PodTopologySpread",
            "InterPodAffinity",
            "NodeResourcesBalancedAllocation",
            "ImageLocality",
        ];
        assert_eq!(scores, want);
    }
}
