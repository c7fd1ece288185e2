//! A profile made of its specification: which plugins run where, in what order and with what weight.
//!
//! The rules are upstream's. A profile's sets are laid over the default profile, whose plugins are all in
//! `multiPoint` (`pkg/scheduler/apis/config/v1/default_plugins.go` mergePlugins), and `multiPoint` is then
//! spread over the points (`pkg/scheduler/framework/runtime/framework.go` expandMultiPointPlugins): first
//! the plugins that a point names and `multiPoint` too, then those of `multiPoint`, then the point's own.

use super::args::Args;
use crate::cycle::Sample;
use crate::framework::{Framework, Plugin as Runs};
use crate::plugins::PluginArgs;
use podway_api::profile::{PLUGINS, Plugin, PluginSet, Plugins, ProfileSpec};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The names of `multiPoint` plugins that the queue stands for itself: gates and priorities.
const OF_THE_QUEUE: [(&str, &str); 2] = [("preEnqueue", "SchedulingGates"), ("queueSort", "PrioritySort")];

/// A weight above this would let a sum overflow upstream's `MaxTotalScore`; ours is far from that.
const MAX_WEIGHT: i32 = 1_000_000;

/// Why a specification makes no profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// There is no plugin of that name.
    #[error("plugins.{point}: plugin {plugin:?} does not exist")]
    Unknown {
        /// The field.
        point: &'static str,
        /// The name.
        plugin: String,
    },
    /// It has nothing to do there.
    #[error(
        "plugins.{point}: plugin {plugin:?} does not extend this point, or not supported: it is not built"
    )]
    NotThere {
        /// The field.
        point: &'static str,
        /// The name.
        plugin: String,
    },
    /// It is named twice.
    #[error("plugins.{point}: plugin {plugin:?} already registered")]
    Twice {
        /// The field.
        point: &'static str,
        /// The name.
        plugin: String,
    },
    /// The weight is out of range.
    #[error("plugins.{point}: the weight of {plugin:?} is not in 0..={MAX_WEIGHT}")]
    Weight {
        /// The field.
        point: &'static str,
        /// The name.
        plugin: String,
    },
    /// Nobody would bind.
    #[error("at least one bind plugin is needed")]
    NoBinder,
    /// The queue would have no order.
    #[error("at least one queue sort plugin is needed, and there is one: PrioritySort")]
    NoQueueSort,
    /// Arguments are not valid.
    #[error("pluginConfig of {plugin}: {reason}")]
    Args {
        /// The plugin.
        plugin: String,
        /// Why.
        reason: String,
    },
    /// The share of nodes is out of range.
    #[error("percentageOfNodesToScore {0} is not in valid range [0-100]")]
    Percentage(i32),
}

/// How the pods of one `schedulerName` are placed.
#[derive(Clone)]
pub struct Profile {
    /// The scheduler's name.
    pub name: String,
    /// Its plugins.
    pub framework: Arc<Framework>,
    /// The generation of the object that it was made of; 0 for one of the configuration file.
    pub generation: i64,
}

impl std::fmt::Debug for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Profile").field("name", &self.name).field("generation", &self.generation).finish()
    }
}

impl Profile {
    /// Makes the profile `name`. `all` gives every plugin that there is, in the default order.
    ///
    /// # Errors
    /// The first rule that the specification breaks.
    pub fn of(
        name: &str,
        spec: &ProfileSpec,
        generation: i64,
        all: &dyn Fn(&PluginArgs) -> Framework,
    ) -> Result<Self, ProfileError> {
        // Upstream's default is 0: a share that falls with the number of nodes. Ours is all of them.
        let sample = match spec.percentage_of_nodes_to_score {
            None | Some(100) => Sample::All,
            Some(percent @ 0..100) => usize::try_from(percent).map_or(Sample::All, Sample::Percent),
            Some(other) => return Err(ProfileError::Percentage(other)),
        };
        let args = Args::of(&spec.plugin_config)?.narrow()?;
        let framework = Arc::new(Framework { sample, ..arranged(&spec.plugins, all(&args))? });
        Ok(Profile { name: name.to_owned(), framework, generation })
    }
}

/// `all` as the sets say.
fn arranged(sets: &Plugins, all: Framework) -> Result<Framework, ProfileError> {
    let plan = Plan::of(sets)?;
    queue(sets, &plan)?;
    let framework = Framework {
        pre_filter: plan.point("preFilter", &sets.pre_filter, all.pre_filter, |p| p.name())?,
        filter: plan.point("filter", &sets.filter, all.filter, |p| p.name())?,
        post_filter: plan.point("postFilter", &sets.post_filter, all.post_filter, |p| p.name())?,
        pre_score: plan.point("preScore", &sets.pre_score, all.pre_score, |p| p.name())?,
        score: plan.weighted(&sets.score, all.score)?,
        reserve: plan.point("reserve", &sets.reserve, all.reserve, |p| p.name())?,
        permit: plan.point("permit", &sets.permit, all.permit, |p| p.name())?,
        pre_bind: plan.point("preBind", &sets.pre_bind, all.pre_bind, |p| p.name())?,
        bind: plan.point("bind", &sets.bind, all.bind, |p| p.name())?,
        post_bind: plan.point("postBind", &sets.post_bind, all.post_bind, |p| p.name())?,
        sample: all.sample,
        extenders: all.extenders,
    };
    if framework.bind.is_empty() {
        return Err(ProfileError::NoBinder);
    }
    Ok(framework)
}

/// The points that the queue has by itself: its order is needed, and gates hold in any case, since the API
/// server binds no pod that has them.
fn queue(sets: &Plugins, plan: &Plan) -> Result<(), ProfileError> {
    for ((point, plugin), set) in OF_THE_QUEUE.into_iter().zip([&sets.pre_enqueue, &sets.queue_sort]) {
        check(point, set)?;
        if let Some(other) = set.enabled.iter().find(|p| p.name != plugin) {
            return Err(ProfileError::NotThere { point, plugin: other.name.clone() });
        }
        let named = set.enabled.iter().any(|p| p.name == plugin);
        let spread = !set.disables(plugin) && plan.multi.iter().any(|p| p.name == plugin);
        if point == "queueSort" && !named && !spread {
            return Err(ProfileError::NoQueueSort);
        }
    }
    Ok(())
}

fn check(point: &'static str, set: &PluginSet) -> Result<(), ProfileError> {
    let mut seen = BTreeSet::new();
    for p in &set.enabled {
        let plugin = p.name.clone();
        if !PLUGINS.iter().any(|(name, _)| *name == p.name) {
            return Err(ProfileError::Unknown { point, plugin });
        }
        if !seen.insert(&p.name) {
            return Err(ProfileError::Twice { point, plugin });
        }
        if !(0..=MAX_WEIGHT).contains(&p.weight.unwrap_or(0)) {
            return Err(ProfileError::Weight { point, plugin });
        }
    }
    Ok(())
}

/// `multiPoint` once the profile's own is laid over the default.
struct Plan {
    multi: Vec<Plugin>,
}

impl Plan {
    fn of(sets: &Plugins) -> Result<Self, ProfileError> {
        let own = &sets.multi_point;
        check("multiPoint", own)?;
        let mut multi: Vec<Plugin> = PLUGINS
            .iter()
            .filter(|(name, _)| !own.disables(name))
            .map(|(name, weight)| {
                // One that is enabled anew keeps its place and gets its new weight.
                let anew = own.enabled.iter().find(|p| p.name == *name).cloned();
                anew.unwrap_or_else(|| Plugin { name: (*name).to_owned(), weight: Some(*weight) })
            })
            .collect();
        let more: Vec<Plugin> =
            own.enabled.iter().filter(|p| !multi.iter().any(|m| m.name == p.name)).cloned().collect();
        multi.extend(more);
        Ok(Plan { multi })
    }

    /// The names that run at a point, in order. `there` tells which plugins extend it.
    fn names<'a>(
        &'a self,
        point: &'static str,
        set: &'a PluginSet,
        there: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<&'a Plugin>, ProfileError> {
        check(point, set)?;
        if let Some(p) = set.enabled.iter().find(|p| !there(&p.name)) {
            return Err(ProfileError::NotThere { point, plugin: p.name.clone() });
        }
        let own = |name: &str| set.enabled.iter().any(|p| p.name == name);
        let spread: Vec<&Plugin> =
            self.multi.iter().filter(|p| there(&p.name) && !set.disables(&p.name)).collect();
        let both = |p: &&Plugin| spread.iter().any(|s| s.name == p.name);
        let first = set.enabled.iter().filter(both);
        let last = set.enabled.iter().filter(|p| !both(p));
        let middle = spread.iter().copied().filter(|p| !own(&p.name));
        Ok(first.chain(middle).chain(last).collect())
    }

    fn point<T: Clone>(
        &self,
        point: &'static str,
        set: &PluginSet,
        all: Vec<T>,
        name: impl Fn(&T) -> &'static str,
    ) -> Result<Vec<T>, ProfileError> {
        let there = |wanted: &str| all.iter().any(|p| name(p) == wanted);
        let names = self.names(point, set, &there)?;
        // What is no plugin of upstream's (a caller's own) cannot be named, and always runs.
        let ours = all.iter().filter(|p| !PLUGINS.iter().any(|(known, _)| *known == name(p)));
        let chosen = names.iter().filter_map(|wanted| all.iter().find(|p| name(p) == wanted.name));
        Ok(ours.chain(chosen).cloned().collect())
    }

    /// Score, with weights: the point's own go before those of `multiPoint`; 0 is 1.
    fn weighted<T: Runs + ?Sized>(
        &self,
        set: &PluginSet,
        all: Vec<(Arc<T>, i64)>,
    ) -> Result<Vec<(Arc<T>, i64)>, ProfileError> {
        let there = |wanted: &str| all.iter().any(|(p, _)| p.name() == wanted);
        let names = self.names("score", set, &there)?;
        let ours = all.iter().filter(|(p, _)| !PLUGINS.iter().any(|(known, _)| *known == p.name())).cloned();
        let chosen = names.iter().filter_map(|wanted| {
            let (plugin, _) = all.iter().find(|(p, _)| p.name() == wanted.name)?;
            Some((plugin.clone(), i64::from(wanted.weight.unwrap_or(0).max(1))))
        });
        Ok(ours.chain(chosen).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::default_binder::NoBinder;
    use crate::plugins::registry;

    fn all(args: &PluginArgs) -> Framework {
        let mut framework = Framework::of(registry(args));
        framework.bind.push(Arc::new(NoBinder));
        framework
    }

    fn made(yaml: &str) -> Result<Framework, ProfileError> {
        let spec: ProfileSpec = serde_yaml::from_str(yaml).unwrap();
        Profile::of("p", &spec, 1, &all).map(|p| (*p.framework).clone())
    }

    fn filters(framework: &Framework) -> Vec<&'static str> {
        framework.filter.iter().map(|p| p.name()).collect()
    }

    fn scores(framework: &Framework) -> Vec<(&'static str, i64)> {
        framework.score.iter().map(|(p, w)| (p.name(), *w)).collect()
    }

    #[test]
    fn an_empty_profile_is_the_default_one() {
        let (made, default) = (made("{}").unwrap(), all(&PluginArgs::default()));
        assert_eq!(filters(&made), filters(&default));
        assert_eq!(scores(&made), scores(&default));
        assert_eq!((made.pre_filter.len(), made.bind.len()), (default.pre_filter.len(), 1));
    }

    #[test]
    fn a_point_overrides_and_multi_point_is_spread_as_upstream_does_it() {
        let only = made(
            "{plugins: {multiPoint: {disabled: [{name: '*'}], enabled: [{name: PrioritySort}, {name: \
             DefaultBinder}, {name: NodeResourcesFit, weight: 7}]}}}",
        )
        .unwrap();
        assert_eq!(
            (filters(&only), scores(&only)),
            (vec!["NodeResourcesFit"], vec![("NodeResourcesFit", 7)])
        );

        let weights = made(
            "{plugins: {score: {disabled: [{name: ImageLocality}, {name: InterPodAffinity}], enabled: \
             [{name: NodeResourcesBalancedAllocation, weight: 5}, {name: ImageLocality}]}}}",
        )
        .unwrap();
        assert_eq!(
            scores(&weights),
            [
                // Named by the point and by multiPoint: first.
                ("NodeResourcesBalancedAllocation", 5),
                ("TaintToleration", 3),
                ("NodeAffinity", 2),
                ("NodeResourcesFit", 1),
                ("PodTopologySpread", 2),
                // Disabled and enabled anew: the point's own, last, of weight 1.
                ("ImageLocality", 1),
            ]
        );
        assert!(weights.filter.iter().any(|p| p.name() == "InterPodAffinity"), "its filter runs on");

        let none = made("{plugins: {score: {disabled: [{name: '*'}]}}}").unwrap();
        assert!(none.score.is_empty() && !none.filter.is_empty());
        let first = made("{plugins: {filter: {enabled: [{name: NodeName}]}}}").unwrap();
        assert_eq!(filters(&first)[0], "NodeName");
        assert_eq!(filters(&first).len(), filters(&all(&PluginArgs::default())).len());
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for (yaml, error) in [
            ("{plugins: {filter: {enabled: [{name: Nodename}]}}}", "plugin \"Nodename\" does not exist"),
            ("{plugins: {filter: {enabled: [{name: ImageLocality}]}}}", "does not extend"),
            (
                "{plugins: {multiPoint: {enabled: [{name: NodeName}, {name: NodeName}]}}}",
                "already registered",
            ),
            ("{plugins: {bind: {disabled: [{name: DefaultBinder}]}}}", "at least one bind plugin"),
            ("{plugins: {queueSort: {disabled: [{name: '*'}]}}}", "at least one queue sort plugin"),
            ("{plugins: {score: {enabled: [{name: NodeAffinity, weight: -1}]}}}", "weight"),
            ("{percentageOfNodesToScore: 101}", "valid range"),
            ("{pluginConfig: [{name: InterPodAffinity, args: {hardPodAffinityWeight: 500}}]}", "[0, 100]"),
        ] {
            let text = made(yaml).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(text.contains(error), "{yaml}: {text}");
        }
        assert!(made("{pluginConfig: [{name: InterPodAffinity, args: {hardPodAffinityWeight: 1}}]}").is_ok());
    }
}
