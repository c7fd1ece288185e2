//! The plugins' arguments (`pluginConfig`): upstream's kinds, defaults and rules
//! (`pkg/scheduler/apis/config/v1/defaults.go`, `validation/validation_pluginargs.go`). An unknown field is
//! an error. [`Args::narrow`] gives them as the plugins take them.

use super::profile::ProfileError;
use crate::model::{NodeTerm, PreferredTerm, SpreadConstraint};
use crate::plugins::{PluginArgs, args as plugins};
use crate::preemption::Candidates;
use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use podway_api::profile::PluginConfig;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::time::Duration;

/// The arguments of all plugins, defaults filled in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Args {
    /// NodeAffinity.
    pub node_affinity: NodeAffinityArgs,
    /// NodeResourcesFit.
    pub fit: FitArgs,
    /// NodeResourcesBalancedAllocation.
    pub balanced: BalancedArgs,
    /// InterPodAffinity.
    pub inter_pod_affinity: InterPodAffinityArgs,
    /// PodTopologySpread.
    pub spread: SpreadArgs,
    /// VolumeBinding.
    pub volume_binding: VolumeBindingArgs,
    /// DefaultPreemption.
    pub preemption: PreemptionArgs,
}

/// An affinity that all pods have beside their own.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeAffinityArgs {
    /// Required and preferred terms.
    #[serde(default)]
    pub added_affinity: Option<NodeAffinity>,
}

/// What fits, and what scores.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FitArgs {
    /// Extended resources that are not looked at.
    #[serde(default)]
    pub ignored_resources: Vec<String>,
    /// The part before the slash of such.
    #[serde(default)]
    pub ignored_resource_groups: Vec<String>,
    /// How the room that is left is scored.
    #[serde(default)]
    pub scoring_strategy: ScoringStrategy,
}

/// How room is scored.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScoringStrategy {
    /// Which way.
    #[serde(rename = "type", default)]
    pub kind: Strategy,
    /// Which resources count, and how much.
    #[serde(default = "cpu_and_memory")]
    pub resources: Vec<ResourceSpec>,
    /// Of RequestedToCapacityRatio alone.
    #[serde(default)]
    pub requested_to_capacity_ratio: Option<RatioParam>,
}

impl Default for ScoringStrategy {
    fn default() -> Self {
        ScoringStrategy {
            kind: Strategy::default(),
            resources: cpu_and_memory(),
            requested_to_capacity_ratio: None,
        }
    }
}

/// The strategies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Strategy {
    /// The emptier the better.
    #[default]
    LeastAllocated,
    /// The fuller the better.
    MostAllocated,
    /// By a curve.
    RequestedToCapacityRatio,
}

/// A resource and its weight.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourceSpec {
    /// Its name.
    pub name: String,
    /// Its weight; 0 is taken for 1.
    #[serde(default)]
    pub weight: i64,
}

fn cpu_and_memory() -> Vec<ResourceSpec> {
    ["cpu", "memory"].map(|name| ResourceSpec { name: name.to_owned(), weight: 1 }).to_vec()
}

/// The curve of RequestedToCapacityRatio.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RatioParam {
    /// Its points, by utilization.
    #[serde(default)]
    pub shape: Vec<ShapePoint>,
}

/// A point of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShapePoint {
    /// In percent.
    pub utilization: i32,
    /// 0 to 10.
    pub score: i32,
}

/// Which resources ought to be used alike.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BalancedArgs {
    /// Each of weight 1.
    #[serde(default = "cpu_and_memory")]
    pub resources: Vec<ResourceSpec>,
}

impl Default for BalancedArgs {
    fn default() -> Self {
        BalancedArgs { resources: cpu_and_memory() }
    }
}

/// Affinity between pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InterPodAffinityArgs {
    /// How much the required terms of others count as preferred ones of theirs.
    #[serde(default = "one")]
    pub hard_pod_affinity_weight: i32,
    /// Leaves out the preferred terms of existing pods where the new one has none.
    #[serde(default)]
    pub ignore_preferred_terms_of_existing_pods: bool,
}

impl Default for InterPodAffinityArgs {
    fn default() -> Self {
        InterPodAffinityArgs { hard_pod_affinity_weight: 1, ignore_preferred_terms_of_existing_pods: false }
    }
}

fn one() -> i32 {
    1
}

/// Spread of pods that do not say how.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SpreadArgs {
    /// For pods without constraints; of defaultingType List alone.
    #[serde(default)]
    pub default_constraints: Vec<TopologySpreadConstraint>,
    /// Whose defaults.
    #[serde(default)]
    pub defaulting_type: Defaulting,
}

/// Whose defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Defaulting {
    /// Over hosts (5) and zones (3), both only preferred.
    #[default]
    System,
    /// Those of the arguments.
    List,
}

/// Volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeBindingArgs {
    /// How long a volume is waited for.
    #[serde(default = "ten_minutes")]
    pub bind_timeout_seconds: i64,
}

impl Default for VolumeBindingArgs {
    fn default() -> Self {
        VolumeBindingArgs { bind_timeout_seconds: ten_minutes() }
    }
}

fn ten_minutes() -> i64 {
    600
}

/// How many nodes are tried for victims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PreemptionArgs {
    /// At least this part of all.
    #[serde(default = "ten")]
    pub min_candidate_nodes_percentage: i32,
    /// At least this many.
    #[serde(default = "hundred")]
    pub min_candidate_nodes_absolute: i32,
}

impl Default for PreemptionArgs {
    fn default() -> Self {
        PreemptionArgs { min_candidate_nodes_percentage: ten(), min_candidate_nodes_absolute: hundred() }
    }
}

fn ten() -> i32 {
    10
}

fn hundred() -> i32 {
    100
}

const GROUP: &str = "kubescheduler.config.k8s.io/v1";

/// Reads one plugin's arguments; they may say what they are.
fn parse<T: DeserializeOwned>(config: &PluginConfig) -> Result<T, ProfileError> {
    let wrong = |reason: String| ProfileError::Args { plugin: config.name.clone(), reason };
    let mut value = match &config.args {
        serde_json::Value::Null => serde_json::json!({}),
        value => value.clone(),
    };
    let Some(map) = value.as_object_mut() else { return Err(wrong("args is not an object".to_owned())) };
    for (key, wanted) in [("apiVersion", GROUP.to_owned()), ("kind", format!("{}Args", config.name))] {
        match map.remove(key) {
            Some(found) if found != wanted => {
                return Err(wrong(format!("{key} is {found}, not {wanted:?}")));
            }
            _ => {}
        }
    }
    serde_json::from_value(value).map_err(|error| wrong(error.to_string()))
}

impl Args {
    /// The arguments that a profile sets, over the defaults.
    ///
    /// # Errors
    /// The first that is not valid, of no plugin, or given twice.
    pub fn of(configs: &[PluginConfig]) -> Result<Self, ProfileError> {
        let mut args = Args::default();
        let mut seen = std::collections::BTreeSet::new();
        for config in configs {
            let wrong =
                |reason: &str| ProfileError::Args { plugin: config.name.clone(), reason: reason.to_owned() };
            if !seen.insert(&config.name) {
                return Err(wrong("pluginConfig has it twice"));
            }
            match config.name.as_str() {
                "NodeAffinity" => args.node_affinity = parse(config)?,
                "NodeResourcesFit" => args.fit = parse(config)?,
                "NodeResourcesBalancedAllocation" => args.balanced = parse(config)?,
                "InterPodAffinity" => args.inter_pod_affinity = parse(config)?,
                "PodTopologySpread" => args.spread = parse(config)?,
                "VolumeBinding" => args.volume_binding = parse(config)?,
                "DefaultPreemption" => args.preemption = parse(config)?,
                _ => return Err(wrong("it takes no arguments")),
            }
        }
        args.fill();
        args.check()?;
        Ok(args)
    }

    /// What is absent or 0 where that means the default.
    fn fill(&mut self) {
        for resources in [&mut self.fit.scoring_strategy.resources, &mut self.balanced.resources] {
            if resources.is_empty() {
                *resources = cpu_and_memory();
            }
            resources.iter_mut().filter(|r| r.weight == 0).for_each(|r| r.weight = 1);
        }
    }

    fn check(&self) -> Result<(), ProfileError> {
        let wrong =
            |plugin: &str, reason: String| Err(ProfileError::Args { plugin: plugin.to_owned(), reason });
        let (fit, strategy) = ("NodeResourcesFit", &self.fit.scoring_strategy);
        if let Some(group) = self.fit.ignored_resource_groups.iter().find(|g| g.contains('/')) {
            return wrong(
                fit,
                format!("ignoredResourceGroups {group:?}: resource group name can't contain '/'"),
            );
        }
        if let Some(r) = strategy.resources.iter().find(|r| !(1..=100).contains(&r.weight)) {
            return wrong(fit, format!("resource weight of {} not in valid range (0, 100]", r.name));
        }
        match (&strategy.kind, &strategy.requested_to_capacity_ratio) {
            (Strategy::RequestedToCapacityRatio, None) => {
                let reason =
                    "requestedToCapacityRatio must be specified when type is RequestedToCapacityRatio";
                return wrong(fit, reason.to_owned());
            }
            (Strategy::RequestedToCapacityRatio, Some(ratio)) => {
                if let Err(reason) = shape(&ratio.shape) {
                    return wrong(fit, format!("requestedToCapacityRatio.shape: {reason}"));
                }
            }
            (_, Some(_)) => {
                let reason = "requestedToCapacityRatio must be nil when type is not RequestedToCapacityRatio";
                return wrong(fit, reason.to_owned());
            }
            (_, None) => {}
        }
        let balanced = &self.balanced.resources;
        if let Some(r) = balanced.iter().find(|r| r.weight != 1) {
            return wrong("NodeResourcesBalancedAllocation", format!("weight of {} must be 1", r.name));
        }
        if (1..balanced.len()).any(|i| balanced[..i].iter().any(|r| r.name == balanced[i].name)) {
            return wrong("NodeResourcesBalancedAllocation", "a resource is there twice".to_owned());
        }
        if !(0..=100).contains(&self.inter_pod_affinity.hard_pod_affinity_weight) {
            let reason = "hardPodAffinityWeight not in valid range [0, 100]";
            return wrong("InterPodAffinity", reason.to_owned());
        }
        self.check_spread()?;
        if self.volume_binding.bind_timeout_seconds < 0 {
            let reason = "invalid BindTimeoutSeconds, should not be a negative value";
            return wrong("VolumeBinding", reason.to_owned());
        }
        let PreemptionArgs { min_candidate_nodes_percentage: part, min_candidate_nodes_absolute: number } =
            self.preemption;
        if !(0..=100).contains(&part) || number < 0 || (part, number) == (0, 0) {
            let reason = "minCandidateNodesPercentage is 0 to 100, minCandidateNodesAbsolute is not negative, \
                          and they cannot be zero at the same time";
            return wrong("DefaultPreemption", reason.to_owned());
        }
        Ok(())
    }

    fn check_spread(&self) -> Result<(), ProfileError> {
        let wrong =
            |reason: String| Err(ProfileError::Args { plugin: "PodTopologySpread".to_owned(), reason });
        let all = &self.spread.default_constraints;
        if self.spread.defaulting_type == Defaulting::System && !all.is_empty() {
            return wrong("defaultingType System when .defaultConstraints are not empty".to_owned());
        }
        for (i, c) in all.iter().enumerate() {
            let same = |o: &TopologySpreadConstraint| {
                (&o.topology_key, &o.when_unsatisfiable) == (&c.topology_key, &c.when_unsatisfiable)
            };
            let reason = if c.max_skew <= 0 {
                "maxSkew not in valid range (0, inf)"
            } else if c.topology_key.is_empty() {
                "topologyKey can not be empty"
            } else if !["DoNotSchedule", "ScheduleAnyway"].contains(&c.when_unsatisfiable.as_str()) {
                "whenUnsatisfiable is neither DoNotSchedule nor ScheduleAnyway"
            } else if c.label_selector.is_some() {
                "constraint must not define a selector, as they deduced for each pod"
            } else if all[..i].iter().any(same) {
                "its topologyKey and whenUnsatisfiable are there twice"
            } else {
                continue;
            };
            return wrong(format!("defaultConstraints[{i}]: {reason}"));
        }
        Ok(())
    }

    /// The same as the plugins take them.
    ///
    /// # Errors
    /// When a node selector's term does not parse.
    pub fn narrow(&self) -> Result<PluginArgs, ProfileError> {
        let weighted = |resources: &[ResourceSpec]| -> Vec<(String, i64)> {
            resources.iter().map(|r| (r.name.clone(), r.weight)).collect()
        };
        let strategy = &self.fit.scoring_strategy;
        let points = strategy.requested_to_capacity_ratio.iter().flat_map(|r| &r.shape);
        let constraints = &self.spread.default_constraints;
        Ok(PluginArgs {
            fit: plugins::FitArgs {
                ignored: self.fit.ignored_resources.iter().cloned().collect(),
                ignored_groups: self.fit.ignored_resource_groups.iter().cloned().collect(),
                strategy: match strategy.kind {
                    Strategy::LeastAllocated => plugins::Strategy::LeastAllocated,
                    Strategy::MostAllocated => plugins::Strategy::MostAllocated,
                    // A file's scores go to 10, a node's to 100.
                    Strategy::RequestedToCapacityRatio => plugins::Strategy::RequestedToCapacityRatio(
                        points.map(|p| (i64::from(p.utilization), i64::from(p.score) * 10)).collect(),
                    ),
                },
                resources: weighted(&strategy.resources),
            },
            balanced: plugins::BalancedArgs { resources: weighted(&self.balanced.resources) },
            affinity: plugins::InterPodAffinityArgs {
                hard_weight: i64::from(self.inter_pod_affinity.hard_pod_affinity_weight),
                ignore_preferred_of_existing: self.inter_pod_affinity.ignore_preferred_terms_of_existing_pods,
            },
            spread: match self.spread.defaulting_type {
                Defaulting::System => plugins::SpreadArgs::System,
                Defaulting::List => {
                    let parse = |c| SpreadConstraint::parse(c, &BTreeMap::new());
                    plugins::SpreadArgs::List(constraints.iter().map(parse).collect())
                }
            },
            node_affinity: self.added_affinity()?,
            preemption: Candidates {
                percentage: usize::try_from(self.preemption.min_candidate_nodes_percentage).unwrap_or(0),
                absolute: usize::try_from(self.preemption.min_candidate_nodes_absolute).unwrap_or(0),
            },
            volumes: plugins::VolumeBindingArgs {
                timeout: Duration::from_secs(
                    u64::try_from(self.volume_binding.bind_timeout_seconds).unwrap_or(0),
                ),
            },
        })
    }

    fn added_affinity(&self) -> Result<plugins::AddedAffinity, ProfileError> {
        let Some(added) = &self.node_affinity.added_affinity else {
            return Ok(plugins::AddedAffinity::default());
        };
        let wrong = |error: crate::model::ModelError| ProfileError::Args {
            plugin: "NodeAffinity".to_owned(),
            reason: error.to_string(),
        };
        let required = added.required_during_scheduling_ignored_during_execution.as_ref();
        let required = required
            .map(|s| s.node_selector_terms.iter().map(NodeTerm::parse).collect::<Result<Vec<_>, _>>())
            .transpose()
            .map_err(wrong)?;
        let preferred = added.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        let preferred = preferred
            .map(|p| Ok(PreferredTerm { weight: i64::from(p.weight), term: NodeTerm::parse(&p.preference)? }))
            .collect::<Result<Vec<_>, _>>()
            .map_err(wrong)?;
        Ok(plugins::AddedAffinity { required, preferred })
    }
}

/// Upstream's `validateFunctionShape`.
fn shape(points: &[ShapePoint]) -> Result<(), String> {
    if points.is_empty() {
        return Err("at least one point must be specified".to_owned());
    }
    if points.windows(2).any(|w| w[0].utilization >= w[1].utilization) {
        return Err("values must be sorted in increasing order".to_owned());
    }
    for p in points {
        if !(0..=100).contains(&p.utilization) {
            return Err(format!("utilization {} not in valid range [0, 100]", p.utilization));
        }
        if !(0..=10).contains(&p.score) {
            return Err(format!("score {} not in valid range [0, 10]", p.score));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(name: &str, args: serde_json::Value) -> Result<Args, ProfileError> {
        Args::of(&[PluginConfig { name: name.to_owned(), args }])
    }

    #[test]
    fn what_is_absent_is_upstreams_default() {
        assert_eq!(Args::of(&[]).unwrap(), Args::default());
        let args = of("NodeResourcesFit", json!({"scoringStrategy": {"type": "MostAllocated"}})).unwrap();
        assert_eq!(args.fit.scoring_strategy.resources, cpu_and_memory());
        assert_eq!(args.narrow().unwrap().fit.strategy, plugins::Strategy::MostAllocated);
        assert_eq!(Args::default().narrow().unwrap(), PluginArgs::default());
        let added = json!({"addedAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "k", "operator": "Exists"}]}]}}});
        let added = of("NodeAffinity", added).unwrap().narrow().unwrap().node_affinity;
        assert_eq!((added.required.unwrap().len(), added.preferred.len()), (1, 0));
        let line = json!({"scoringStrategy": {"type": "RequestedToCapacityRatio", "requestedToCapacityRatio":
            {"shape": [{"utilization": 0, "score": 0}, {"utilization": 100, "score": 10}]}}});
        let line = of("NodeResourcesFit", line).unwrap().narrow().unwrap().fit.strategy;
        assert_eq!(line, plugins::Strategy::RequestedToCapacityRatio(vec![(0, 0), (100, 100)]));
        let said = json!({"apiVersion": GROUP, "kind": "InterPodAffinityArgs", "hardPodAffinityWeight": 7});
        assert_eq!(of("InterPodAffinity", said).unwrap().inter_pod_affinity.hard_pod_affinity_weight, 7);
        let zero = json!({"scoringStrategy": {"resources": [{"name": "cpu"}, {"name": "x/y", "weight": 3}]}});
        let weights: Vec<i64> = of("NodeResourcesFit", zero)
            .unwrap()
            .fit
            .scoring_strategy
            .resources
            .iter()
            .map(|r| r.weight)
            .collect();
        assert_eq!(weights, [1, 3]);
    }

    #[test]
    fn what_upstream_refuses_is_refused_with_its_words() {
        let ratio = |shape| {
            json!({"scoringStrategy": {"type": "RequestedToCapacityRatio",
            "requestedToCapacityRatio": {"shape": shape}}})
        };
        for (name, args, part) in [
            ("NodeResourcesFit", json!({"ignoredResourceGroups": ["a/b"]}), "can't contain '/'"),
            ("NodeResourcesFit", json!({"scoringStrategy": {"type": "None"}}), "None"),
            (
                "NodeResourcesFit",
                json!({"scoringStrategy": {"type": "RequestedToCapacityRatio"}}),
                "must be specified",
            ),
            ("NodeResourcesFit", ratio(json!([])), "at least one point"),
            (
                "NodeResourcesFit",
                ratio(json!([{"utilization": 5, "score": 1}, {"utilization": 5, "score": 1}])),
                "increasing",
            ),
            ("NodeResourcesFit", ratio(json!([{"utilization": 5, "score": 11}])), "[0, 10]"),
            (
                "NodeResourcesBalancedAllocation",
                json!({"resources": [{"name": "cpu", "weight": 2}]}),
                "must be 1",
            ),
            ("InterPodAffinity", json!({"hardPodAffinityWeight": 101}), "[0, 100]"),
            (
                "PodTopologySpread",
                json!({"defaultConstraints": [{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}]}),
                "System",
            ),
            (
                "PodTopologySpread",
                json!({"defaultingType": "List", "defaultConstraints": [{"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}]}),
                "maxSkew",
            ),
            ("VolumeBinding", json!({"bindTimeoutSeconds": -1}), "negative"),
            (
                "DefaultPreemption",
                json!({"minCandidateNodesPercentage": 0, "minCandidateNodesAbsolute": 0}),
                "at the same time",
            ),
            ("DefaultPreemption", json!({"kind": "OtherArgs"}), "OtherArgs"),
            ("NodeName", json!({}), "takes no arguments"),
            ("NodeAffinity", json!({"added": {}}), "added"),
        ] {
            let error = of(name, args.clone()).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(name), "{args}: {error}");
        }
        let twice = [(); 2].map(|()| PluginConfig { name: "NodeAffinity".to_owned(), args: json!({}) });
        assert!(Args::of(&twice).unwrap_err().to_string().contains("twice"));
    }
}
