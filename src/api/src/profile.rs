//! `SchedulerProfile` (short name `sp`): how the scheduler decides for the pods of one `schedulerName`, as
//! an object that is live: a change takes hold at the next cycle, without a restart.
//!
//! The object's name is the scheduler's name, so that there is one profile for each. The fields are those
//! of a profile in upstream's `KubeSchedulerConfiguration` v1 (`staging/src/k8s.io/kube-scheduler/config/
//! v1/types.go`), and the same types read that file. What can be said of a profile without running it is
//! checked at admission, by the schema and its CEL rules; the rest by the scheduler, which keeps the last
//! profile that was good and says so in the status.

#![expect(clippy::duplicated_attributes, reason = "kube's printcolumn attributes repeat their keys")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the profile is.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "podway.dev",
    version = "v1alpha1",
    kind = "SchedulerProfile",
    plural = "schedulerprofiles",
    shortname = "sp",
    status = "SchedulerProfileStatus",
    derive = "PartialEq",
    doc = "How the scheduler decides for the pods whose spec.schedulerName is this object's name.",
    printcolumn(name = "LIVE", type_ = "integer", json_path = ".status.liveGeneration"),
    printcolumn(
        name = "ACCEPTED",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "MESSAGE",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].message"
    ),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProfileSpec {
    /// Of how many of the nodes, in percent, feasible ones are looked for before the search ends. All of
    /// them if absent; 0 is upstream's adaptive share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percentage_of_nodes_to_score: Option<i32>,
    /// Which plugins run where. What is not named is as in upstream's default profile.
    #[serde(default)]
    pub plugins: Plugins,
    /// The plugins' arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = MOST),
        extend(
            "x-kubernetes-list-type" = "map",
            "x-kubernetes-list-map-keys" = ["name"],
            "x-kubernetes-validations" = named(&WITH_ARGS, "a plugin that takes arguments")
        )
    )]
    pub plugin_config: Vec<PluginConfig>,
}

/// Which plugins run at which extension point.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Plugins {
    /// Before a pod comes into the active queue.
    #[serde(default, skip_serializing_if = "PluginSet::is_empty")]
    pub pre_enqueue: PluginSet,
    /// The order of the queue: one, the same for all profiles.
    #[serde(default, skip_serializing_if = "PluginSet::is_empty")]
    pub queue_sort: PluginSet,
    /// Once per cycle, before filtering.
    #[serde(default, skip_serializing_if = "PluginSet::is_empty")]
    pub pre_filter: PluginSet,
    /// Once per node.
    #[serde(default, skip_serializing_if = "PluginSet::is_empty")]
    pub filter: PluginSet,
    /// When no node fits.
    #[serde(default, skip_serializing_if = "PluginSet::is_empty")]
    pub post_filter: PluginSet,
    /// Once per cycle, over the feasible nodes.
    #[serde(default, skip_serializing_if = "PluginSet::is_empty")]
    pub pre_score: PluginSet,
    /// Once per feasible node; the only point with weights.
    #[serde(default, skip_serializing_if = "PluginSet::is_empty")]
    pub score: PluginSet,
    /// Booking in memory.
    #[serde(default, skip_serializing_if = "PluginSet::is_empty")]
    pub reserve: PluginSet,
    /// Holding or letting go.
    #[serde(default, skip_serializing_if = "PluginSet::is_empty")]
    pub permit: PluginSet,
    /// Before the binding.
    #[serde(default, skip_serializing_if = "PluginSet::is_empty")]
    pub pre_bind: PluginSet,
    /// The binding.
    #[serde(default, skip_serializing_if = "PluginSet::is_empty")]
    pub bind: PluginSet,
    /// After the binding.
    #[serde(default, skip_serializing_if = "PluginSet::is_empty")]
    pub post_bind: PluginSet,
    /// All points that a plugin has.
    #[serde(default, skip_serializing_if = "PluginSet::is_empty")]
    pub multi_point: PluginSet,
}

/// The most plugins that one set names.
const MOST: usize = 32;

/// The plugins of upstream's default profile, in run order, with the weights of their scores
/// (`pkg/scheduler/apis/config/v1/default_plugins.go` of 1.36).
pub const PLUGINS: [(&str, i32); 20] = [
    ("SchedulingGates", 0),
    ("PrioritySort", 0),
    ("NodeUnschedulable", 0),
    ("NodeName", 0),
    ("TaintToleration", 3),
    ("NodeAffinity", 2),
    ("NodePorts", 0),
    ("NodeResourcesFit", 1),
    ("VolumeRestrictions", 0),
    ("NodeVolumeLimits", 0),
    ("VolumeBinding", 0),
    ("VolumeZone", 0),
    ("PodTopologySpread", 2),
    ("InterPodAffinity", 2),
    ("DynamicResources", 0),
    ("DefaultPreemption", 0),
    ("NodeResourcesBalancedAllocation", 1),
    ("ImageLocality", 1),
    ("DefaultBinder", 0),
    ("NodeDeclaredFeatures", 0),
];

/// Those that take arguments.
pub const WITH_ARGS: [&str; 7] = [
    "NodeAffinity",
    "NodeResourcesFit",
    "NodeResourcesBalancedAllocation",
    "InterPodAffinity",
    "PodTopologySpread",
    "VolumeBinding",
    "DefaultPreemption",
];

/// The CEL rule that each element of a list is named as one of `names`.
fn named(names: &[&str], what: &str) -> serde_json::Value {
    let list: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
    serde_json::json!([{
        "rule": format!("self.all(p, p.name in [{}])", list.join(", ")),
        "message": format!("each name must be that of {what}"),
    }])
}

/// What is enabled beside, or instead of, the default, and what is disabled.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PluginSet {
    /// In this order, after those of the default profile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = MOST),
        extend(
            "x-kubernetes-list-type" = "map",
            "x-kubernetes-list-map-keys" = ["name"],
            "x-kubernetes-validations" = named(&PLUGINS.map(|(name, _)| name), "a plugin")
        )
    )]
    pub enabled: Vec<Plugin>,
    /// Not run; `*` is all of the default profile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = MOST),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub disabled: Vec<Plugin>,
}

impl PluginSet {
    /// True when it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.enabled.is_empty() && self.disabled.is_empty()
    }

    /// True when it disables a plugin, by its name or by `*`.
    #[must_use]
    pub fn disables(&self, name: &str) -> bool {
        self.disabled.iter().any(|p| p.name == name || p.name == "*")
    }
}

/// A plugin by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Plugin {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// How much its score counts; 1 if absent or 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: Option<i32>,
}

/// A plugin's arguments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PluginConfig {
    /// The plugin.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// An object of the kind that the plugin has, NodeResourcesFitArgs for example.
    #[serde(default)]
    #[schemars(schema_with = "any_object")]
    pub args: serde_json::Value,
}

fn any_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// What the scheduler says of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SchedulerProfileStatus {
    /// The generation that the conditions are of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The generation by which pods are placed: the last one that was good. Absent while none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_generation: Option<i64>,
    /// `Accepted`: whether the observed generation is good, and what is wrong with it if not.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
