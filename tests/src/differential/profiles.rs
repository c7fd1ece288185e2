//! The profiles that both schedulers have beside the default one, so that strategies, weights and arguments are
//! compared too.

use super::generate::GPU;
use super::ours::ignoring;
use anyhow::Context as _;
use podway_scheduler::config::profile::Profile;
use podway_scheduler::extender::Extender;
use podway_scheduler::framework::Framework;
use podway_scheduler::metrics::Metrics;
use podway_scheduler::plugins::default_binder::DefaultBinder;
use podway_scheduler::plugins::{PluginArgs, registry};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most pods are this one's.
pub const DEFAULT: &str = "default-scheduler";
/// The others: by fullness, by a curve, and with affinity and spread that the profile adds.
pub const OTHERS: [&str; 3] = ["packed", "curved", "added"];

/// A profile as `KubeSchedulerConfiguration` has it, less its name.
fn specification(name: &str) -> Value {
    const ZONE: &str = "topology.kubernetes.io/zone";
    let resources =
        json!([{"name": "cpu", "weight": 3}, {"name": "memory", "weight": 1}, {"name": GPU, "weight": 2}]);
    match name {
        "packed" => json!({
            "plugins": {"score": {"enabled": [{"name": "TaintToleration", "weight": 7}],
                "disabled": [{"name": "ImageLocality"}]}},
            "pluginConfig": [
                {"name": "NodeResourcesFit", "args":
                    {"scoringStrategy": {"type": "MostAllocated", "resources": resources}}},
                {"name": "NodeResourcesBalancedAllocation", "args": {"resources": [{"name": "cpu", "weight": 1},
                    {"name": "memory", "weight": 1}, {"name": GPU, "weight": 1}]}}]}),
        "curved" => json!({
            "plugins": {"multiPoint": {"enabled": [{"name": "NodeResourcesFit", "weight": 5}]}},
            "pluginConfig": [
                {"name": "NodeResourcesFit", "args": {"scoringStrategy": {"type": "RequestedToCapacityRatio",
                    "resources": resources, "requestedToCapacityRatio": {"shape": [{"utilization": 0, "score": 10},
                        {"utilization": 35, "score": 2}, {"utilization": 100, "score": 0}]}}}},
                {"name": "InterPodAffinity", "args":
                    {"hardPodAffinityWeight": 37, "ignorePreferredTermsOfExistingPods": true}}]}),
        "added" => json!({
            "pluginConfig": [
                {"name": "NodeAffinity", "args": {"addedAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions":
                        [{"key": "size", "operator": "In", "values": ["1", "2"]}]}]},
                    "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 20, "preference":
                        {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}}]}}},
                {"name": "PodTopologySpread", "args": {"defaultingType": "List", "defaultConstraints": [
                    {"maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule"},
                    {"maxSkew": 2, "topologyKey": "disk", "whenUnsatisfiable": "ScheduleAnyway"}]}}]}),
        _ => json!({}),
    }
}

fn all() -> impl Iterator<Item = &'static str> {
    std::iter::once(DEFAULT).chain(OTHERS)
}

/// All, as the stock scheduler is told of them.
#[must_use]
pub fn configuration() -> Value {
    let named = |name| {
        let mut profile = specification(name);
        profile["schedulerName"] = json!(name);
        profile
    };
    all().map(named).collect()
}

/// All, as ours has them, by name.
///
/// # Errors
/// When one is not valid.
pub fn frameworks(
    client: &kube::Client,
    extender: &Arc<dyn Extender>,
) -> anyhow::Result<BTreeMap<&'static str, Arc<Framework>>> {
    let binder = Arc::new(DefaultBinder::new(client.clone(), Arc::new(Metrics::new())));
    let complete = |args: &PluginArgs| Framework {
        extenders: vec![extender.clone()],
        bind: vec![binder.clone()],
        ..Framework::of(registry(&ignoring(args)))
    };
    let one = |name| {
        let spec = serde_json::from_value(specification(name)).with_context(|| format!("profile {name}"))?;
        let profile = Profile::of(name, &spec, 0, &complete).with_context(|| format!("profile {name}"))?;
        Ok((name, profile.framework))
    };
    all().map(one).collect()
}
