//! Our decision on what the API server says now.

use super::generate::JUDGED;
use super::judge;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{Api, Client};
use podway_flow::Micros;
use podway_scheduler::cache::Cache;
use podway_scheduler::cycle::{CycleError, Nomination, Trace, schedule_one};
use podway_scheduler::framework::{Candidate, Framework};
use podway_scheduler::model::{Meta, NodeInfo, PodInfo};
use podway_scheduler::objects::{
    CsiDriver, CsiNode, DisruptionBudget, Kept, Object, PersistentVolume, PersistentVolumeClaim, ReplicaSet,
    ReplicationController, Service, StatefulSet, StorageCapacity, StorageClass, VolumeAttachment,
};
use podway_scheduler::plugins::PluginArgs;
use podway_scheduler::plugins::args::FitArgs;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Weighted scores by node and plugin.
pub type Scores = BTreeMap<String, BTreeMap<String, i64>>;

/// What we would do.
pub enum Verdict {
    /// One of these nodes, which are the best by these scores; no scores with one feasible node.
    Place {
        /// The best.
        best: BTreeSet<String>,
        /// All scores.
        scores: Scores,
    },
    /// Nothing fits, or a plugin failed.
    Refuse {
        /// Unschedulable, not SchedulerError.
        unfit: bool,
        /// The condition's message.
        message: String,
        /// The nodes that are as good as any for an eviction, and the pods that would go.
        evict: BTreeMap<String, BTreeSet<String>>,
    },
}

/// A verdict, and the plugins that had a say in it: `refused` or `scored`, by name.
pub struct Decided {
    /// The verdict.
    pub verdict: Verdict,
    /// For the table of coverage.
    pub by: BTreeSet<(String, &'static str)>,
}

async fn all<T>(client: &Client) -> anyhow::Result<Vec<T>>
where
    T: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    Ok(Api::<T>::all(client.clone()).list(&Default::default()).await?.items)
}

async fn kept<T: Kept>(client: &Client) -> anyhow::Result<Vec<(String, Object)>> {
    let read = |object: T::Api| {
        let meta = Meta::of(&object);
        let key = meta.key();
        Some((key, T::wrap(Arc::new(T::parse(meta, object)?))))
    };
    Ok(all::<T::Api>(client).await?.into_iter().filter_map(read).collect())
}

/// What the cluster looks like now.
///
/// # Errors
/// When the API server does not answer, or an object does not parse.
pub async fn cluster(client: &Client) -> anyhow::Result<Cache> {
    let mut cache = Cache::default();
    let (nodes, namespaces, pods) =
        tokio::try_join!(all::<Node>(client), all::<Namespace>(client), all::<Pod>(client))?;
    for node in nodes {
        cache.set_node(Arc::new(NodeInfo::parse(&node)?.keeping(&node)));
    }
    for namespace in namespaces {
        let name = namespace.metadata.name.unwrap_or_default();
        cache.set_namespace(&name, namespace.metadata.labels.unwrap_or_default());
    }
    for pod in pods {
        let info = Arc::new(PodInfo::parse(&pod)?.keeping(&pod));
        if !info.node_name.is_empty() {
            cache.confirm(info);
        }
    }
    let objects = tokio::try_join!(
        kept::<DisruptionBudget>(client),
        kept::<PersistentVolume>(client),
        kept::<PersistentVolumeClaim>(client),
        kept::<StorageClass>(client),
        kept::<CsiNode>(client),
        kept::<CsiDriver>(client),
        kept::<StorageCapacity>(client),
        kept::<VolumeAttachment>(client),
        kept::<Service>(client),
        kept::<ReplicationController>(client),
        kept::<ReplicaSet>(client),
        kept::<StatefulSet>(client),
    )?;
    let (a, b, c, d, e, f, g, h, i, j, k, l) = objects;
    for (key, object) in [a, b, c, d, e, f, g, h, i, j, k, l].into_iter().flatten() {
        cache.objects_mut().put(key, object);
    }
    Ok(cache)
}

fn names(candidate: &Candidate) -> BTreeSet<String> {
    candidate.victims.iter().map(|v| v.key()).collect()
}

/// As both schedulers have it: what the extender alone manages is none of Fit's.
#[must_use]
pub fn ignoring(args: &PluginArgs) -> PluginArgs {
    let fit = FitArgs { ignored: [JUDGED.to_owned()].into(), ..args.fit.clone() };
    PluginArgs { fit, ..args.clone() }
}

/// Decides. May wait for the extender, so not on a thread of the runtime's own.
#[must_use]
pub fn decide(cache: &mut Cache, pod: &PodInfo, framework: &Framework) -> Decided {
    let found = schedule_one(None, framework, &cache.snapshot(), pod, &|| Micros(0), &mut Trace::default());
    let mut by = BTreeSet::new();
    let verdict = match found {
        Ok(decision) => {
            by.extend(decision.rejected.values().map(|s| (s.plugin.to_owned(), "refused")));
            let top = decision.scores.first().map_or(0, |s| s.total);
            let mut best: BTreeSet<String> =
                decision.scores.iter().filter(|s| s.total == top).map(|s| s.node.clone()).collect();
            if best.is_empty() {
                best.insert(decision.node.clone());
            }
            let mut scores = Scores::new();
            for score in &decision.scores {
                let row = scores.entry(score.node.clone()).or_default();
                for (plugin, _, normal, weight) in &score.by_plugin {
                    // The URL's port is another one each time.
                    let plugin = if plugin.contains("://") { judge::NAME } else { plugin };
                    row.insert(plugin.to_owned(), normal * weight);
                    by.insert((plugin.to_owned(), "scored"));
                }
            }
            Verdict::Place { best, scores }
        }
        Err(CycleError::Failed(failure)) => {
            Verdict::Refuse { unfit: false, message: failure.to_string(), evict: BTreeMap::new() }
        }
        Err(CycleError::Unfit(error)) => {
            by.extend(error.plugins().into_iter().map(|p| (p.to_owned(), "refused")));
            let mut evict = BTreeMap::new();
            if let Nomination::Preempt(preemption) = &error.nomination {
                by.insert(("DefaultPreemption".to_owned(), "evicted"));
                let rank = preemption.best.rank();
                let equals = preemption.others.iter().filter(|c| c.rank() == rank);
                let all = std::iter::once(&preemption.best).chain(equals);
                evict = all.map(|c| (c.node.clone(), names(c))).collect();
            }
            Verdict::Refuse { unfit: true, message: error.message(), evict }
        }
    };
    Decided { verdict, by }
}
