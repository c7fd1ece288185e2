//! What a profile may tell its plugins: upstream's plugin args (`pkg/scheduler/apis/config/types_pluginargs.go`
//! of Kubernetes 1.36), parsed and valid.

use crate::model::{NodeTerm, PreferredTerm, SpreadConstraint};
use crate::preemption::Candidates;
use std::collections::BTreeSet;
use std::time::Duration;

/// The args of all plugins; the default is upstream's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PluginArgs {
    /// NodeResourcesFitArgs.
    pub fit: FitArgs,
    /// NodeResourcesBalancedAllocationArgs: the resources, each with weight 1.
    pub balanced: BalancedArgs,
    /// InterPodAffinityArgs.
    pub affinity: InterPodAffinityArgs,
    /// PodTopologySpreadArgs.
    pub spread: SpreadArgs,
    /// NodeAffinityArgs.
    pub node_affinity: AddedAffinity,
    /// DefaultPreemptionArgs.
    pub preemption: Candidates,
    /// VolumeBindingArgs.
    pub volumes: VolumeBindingArgs,
}

/// A resource and its weight in a node's score, 1 to 100.
pub type Weighted = (String, i64);

fn cpu_and_memory() -> Vec<Weighted> {
    ["cpu", "memory"].map(|r| (r.to_owned(), 1)).into()
}

/// How NodeResourcesFit scores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// The emptier the better.
    #[default]
    LeastAllocated,
    /// The fuller the better.
    MostAllocated,
    /// By a line through these points: utilisation in percent, and the score there, 0 to 100. They rise
    /// by utilisation, and there is at least one.
    RequestedToCapacityRatio(Vec<(i64, i64)>),
}

/// NodeResourcesFitArgs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FitArgs {
    /// Extended resources that are not looked at.
    pub ignored: BTreeSet<String>,
    /// Those of these groups (`example.com` of `example.com/gpu`) neither.
    pub ignored_groups: BTreeSet<String>,
    /// The scoring strategy.
    pub strategy: Strategy,
    /// What it goes by.
    pub resources: Vec<Weighted>,
}

impl Default for FitArgs {
    fn default() -> Self {
        FitArgs {
            ignored: BTreeSet::new(),
            ignored_groups: BTreeSet::new(),
            strategy: Strategy::default(),
            resources: cpu_and_memory(),
        }
    }
}

/// NodeResourcesBalancedAllocationArgs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalancedArgs {
    /// What is balanced; upstream allows no other weight than 1.
    pub resources: Vec<Weighted>,
}

impl Default for BalancedArgs {
    fn default() -> Self {
        BalancedArgs { resources: cpu_and_memory() }
    }
}

/// InterPodAffinityArgs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterPodAffinityArgs {
    /// What a required affinity term of a pod that is there weighs, 0 to 100.
    pub hard_weight: i64,
    /// A pod without preferred terms is not scored by those of others.
    pub ignore_preferred_of_existing: bool,
}

impl Default for InterPodAffinityArgs {
    fn default() -> Self {
        InterPodAffinityArgs { hard_weight: 1, ignore_preferred_of_existing: false }
    }
}

/// What spreads a pod that has no constraint of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SpreadArgs {
    /// Upstream's own defaults: rather not on one node or in one zone.
    #[default]
    System,
    /// These; their selectors are the controller's and the Services', as with the defaults.
    List(Vec<SpreadConstraint>),
}

/// NodeAffinityArgs' `addedAffinity`: of every pod of the profile, beside its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddedAffinity {
    /// Required; terms are ORed. `None` when there is none.
    pub required: Option<Vec<NodeTerm>>,
    /// Preferred.
    pub preferred: Vec<PreferredTerm>,
}

/// VolumeBindingArgs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeBindingArgs {
    /// How long a pod's volumes may take.
    pub timeout: Duration,
}

impl Default for VolumeBindingArgs {
    fn default() -> Self {
        VolumeBindingArgs { timeout: Duration::from_secs(600) }
    }
}
