//! What plugins say that go by the node alone, kept from cycle to cycle.
//!
//! Some plugins look at nothing but the node as it is and at some parts of the pod ([`GoesBy::Node`]). What one of
//! them says of a node it says to every pod that has the same in these parts, until the node changes. So it is kept:
//! a column for a plugin and what it reads, with an entry for each node, which is asked for when the node is looked at
//! first, and again once it has changed. Pods that differ in labels, owner, volumes or priority share all columns;
//! those of Deployments with other requests and images still share the ones of taints and affinity.
//!
//! That nothing else has a say is not left to the plugin's word: it is asked about a pod that has these parts and
//! nothing else ([`PodInfo::only`]), with an empty [`CycleState`]. The tests in `kept.rs` compare with asking anew.
//!
//! Invariant: what an entry has is what the plugin says of the node as the snapshot of the column's generation has it.

use super::Cluster;
use crate::cache::{NodeState, Snapshot};
use crate::framework::{Code, CycleState, Filter, GoesBy, Plugin, Score, Status};
use crate::model::PodInfo;
use std::sync::Arc;

/// How many columns of a kind are kept, a few for each of some dozens of templates that come by turns; the one that
/// was not asked for the longest goes. More than there are plugins, so that a cycle does not lose its own.
const KEPT: usize = if cfg!(test) { 8 } else { 96 };

/// What is carried from one cycle to the next, for the plugins of one set of profiles.
#[derive(Default)]
pub struct Carried {
    /// Where a profile that looks at a share of the nodes begins.
    pub start: usize,
    columns: Columns,
}

/// All columns.
#[derive(Default)]
pub(super) struct Columns {
    filters: Kept<Verdict>,
    scores: Kept<i64>,
    /// When the snapshot's nodes were last others.
    nodes: u64,
}

/// What a Filter says.
type Verdict = Result<(), Arc<Status>>;

/// Columns of a kind.
struct Kept<T> {
    columns: Vec<Column<T>>,
    clock: u64,
}

/// What one plugin says of each node.
struct Column<T> {
    plugin: &'static str,
    /// The profile, which has the plugin's args.
    profile: String,
    /// What the plugin is asked about.
    asking: PodInfo,
    /// What it goes by of other nodes ([`Score::beside`]).
    beside: Vec<usize>,
    /// The snapshot's.
    generation: u64,
    used: u64,
    said: Vec<Option<T>>,
}

/// How a plugin's verdict on the nodes is come by.
pub(super) enum Say {
    /// It takes every node.
    Passes,
    /// Which column has it.
    Kept(usize),
    /// It is asked.
    Asked,
}

impl Carried {
    /// Where to begin, and the columns of the snapshot's nodes; none of nodes that are only thought.
    pub(super) fn of(&mut self, snapshot: &Snapshot) -> (&mut usize, Option<&mut Columns>) {
        let nodes = snapshot.nodes_generation();
        if self.columns.nodes != nodes {
            self.columns = Columns { nodes, ..Columns::default() };
        }
        (&mut self.start, (nodes != 0).then_some(&mut self.columns))
    }

    /// The profiles have changed.
    pub(crate) fn forget(&mut self) {
        self.columns = Columns::default();
    }
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Kept { columns: Vec::new(), clock: 0 }
    }
}

impl<T> Kept<T> {
    /// Where the column is of what the plugin reads of the pod; `None` if it goes by more than the node.
    fn find(&mut self, plugin: &dyn Plugin, cluster: &Cluster<'_>, beside: Vec<usize>) -> Option<usize> {
        let Cluster { pod, snapshot, .. } = *cluster;
        let GoesBy::Node(parts) = plugin.goes_by() else { return None };
        self.clock += 1;
        let known = self.columns.iter().position(|column| {
            column.plugin == plugin.name()
                && column.profile == pod.scheduler_name
                && column.asking.same_in(parts, pod)
        });
        let at = known.unwrap_or_else(|| {
            self.put(Column {
                plugin: plugin.name(),
                profile: pod.scheduler_name.clone(),
                asking: pod.only(parts),
                beside: Vec::new(),
                generation: snapshot.generation,
                used: 0,
                said: Vec::new(),
            })
        });
        let column = self.columns.get_mut(at)?;
        column.used = self.clock;
        let nodes = snapshot.nodes.len();
        // An earlier snapshot than the last one has other nodes, of which is not known what they were like.
        if column.beside != beside || column.generation > snapshot.generation || column.said.len() != nodes {
            column.beside = beside;
            column.said.clear();
            column.said.resize_with(nodes, || None);
        }
        Some(at)
    }

    fn put(&mut self, column: Column<T>) -> usize {
        let oldest = self.columns.iter().enumerate().min_by_key(|(_, c)| c.used).map(|(at, _)| at);
        match oldest.filter(|_| self.columns.len() >= KEPT) {
            // In its place, so that what was found in this cycle is where it was.
            Some(at) => {
                self.columns[at] = column;
                at
            }
            None => {
                self.columns.push(column);
                self.columns.len() - 1
            }
        }
    }
}

impl<T> Column<T> {
    /// Asks anew about the nodes that have changed since they were asked about; whether `all` holds of every node.
    fn refresh(
        &mut self,
        snapshot: &Snapshot,
        mut ask: impl FnMut(&PodInfo, &NodeState) -> Option<T>,
        all: impl Fn(&T) -> bool,
    ) -> bool {
        let mut every = true;
        for (node, said) in snapshot.nodes.iter().zip(&mut self.said) {
            if node.generation > self.generation && said.is_some() {
                *said = ask(&self.asking, node);
            }
            every = every && said.as_ref().is_some_and(&all);
        }
        self.generation = snapshot.generation;
        every
    }
}

/// A failure is no verdict.
fn lasting(verdict: &Result<(), Status>) -> bool {
    verdict.as_ref().err().is_none_or(|status| status.code != Code::Error)
}

impl Columns {
    /// How each plugin's verdict is come by, with the columns brought up to the snapshot.
    pub(super) fn filters(
        &mut self,
        plugins: &[&Arc<dyn Filter>],
        cluster: &Cluster<'_>,
        calls: &mut [u64],
    ) -> Vec<Say> {
        let none = CycleState::default();
        let one = |(plugin, calls): (&&Arc<dyn Filter>, &mut u64)| {
            let plugin: &dyn Filter = &***plugin;
            let Some(at) = self.filters.find(plugin, cluster, Vec::new()) else { return Say::Asked };
            let Some(column) = self.filters.columns.get_mut(at) else { return Say::Asked };
            let ask = |pod: &PodInfo, node: &NodeState| {
                *calls += 1;
                let verdict = plugin.filter(&none, pod, node);
                lasting(&verdict).then(|| verdict.map_err(Arc::new))
            };
            if column.refresh(cluster.snapshot, ask, Result::is_ok) { Say::Passes } else { Say::Kept(at) }
        };
        plugins.iter().zip(calls).map(one).collect()
    }

    /// What the plugin of a column says of a node.
    pub(super) fn filter(
        &mut self,
        column: usize,
        plugin: &dyn Filter,
        (node, none): (&NodeState, &CycleState),
        calls: &mut u64,
    ) -> Result<(), Status> {
        let column = &mut self.filters.columns[column];
        if let Some(Some(said)) = column.said.get(node.at) {
            return said.clone().map_err(|status| (*status).clone());
        }
        *calls += 1;
        let verdict = plugin.filter(none, &column.asking, node);
        if lasting(&verdict)
            && let Some(said) = column.said.get_mut(node.at)
        {
            *said = Some(verdict.clone().map_err(Arc::new));
        }
        verdict
    }

    /// The raw scores that a plugin gives these nodes; `None` if it goes by more than the node.
    pub(super) fn score(
        &mut self,
        plugin: &dyn Score,
        cluster: &Cluster<'_>,
        feasible: &[&NodeState],
    ) -> Option<Vec<i64>> {
        let (none, snapshot) = (CycleState::default(), cluster.snapshot);
        let at = self.scores.find(plugin, cluster, plugin.beside(cluster.pod, snapshot))?;
        let column = self.scores.columns.get_mut(at)?;
        column.refresh(snapshot, |pod, node| Some(plugin.score(&none, pod, node, snapshot)), |_| true);
        let (asking, said) = (&column.asking, &mut column.said);
        let one = |node: &&NodeState| match said.get_mut(node.at) {
            Some(said) => *said.get_or_insert_with(|| plugin.score(&none, asking, node, snapshot)),
            None => plugin.score(&none, asking, node, snapshot),
        };
        Some(feasible.iter().map(one).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::cycle::{CycleError, Trace, schedule_one};
    use crate::framework::{ClusterEvent, Framework};
    use crate::model::{NodeInfo, Part, Resources};
    use podway_flow::Micros;
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    /// Refuses pods that ask for more than a core, fails on those that ask for more than ten, and writes down of which
    /// node it was asked; each time about a pod that has nothing but its requests.
    #[derive(Default)]
    struct OneCore(Mutex<Vec<String>>);

    impl Plugin for OneCore {
        fn name(&self) -> &'static str {
            "OneCore"
        }
        fn may_help(&self, _: &PodInfo, _: &ClusterEvent) -> bool {
            false
        }
        fn goes_by(&self) -> GoesBy {
            GoesBy::Node(&[Part::Requests])
        }
    }

    impl Filter for OneCore {
        fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeState) -> Result<(), Status> {
            assert_eq!(*pod, pod.only(&[Part::Requests]));
            self.0.lock().unwrap().push(node.info.name.to_string());
            match pod.requests.milli_cpu {
                0..=1000 => Ok(()),
                1001..=10_000 => Err(Status::unschedulable("OneCore", "too much")),
                _ => Err(Status::error("OneCore", "far too much")),
            }
        }
    }

    #[test]
    fn a_node_is_asked_about_once_for_all_pods_that_are_alike_in_what_is_read_and_again_when_it_changed() {
        let plugin = Arc::new(OneCore::default());
        let framework = Framework { filter: vec![plugin.clone()], ..Framework::default() };
        let mut cache = Cache::default();
        let node =
            |name: &str, pods| NodeInfo { name: name.into(), allocatable_pods: pods, ..NodeInfo::default() };
        for name in ["a", "b", "c"] {
            cache.set_node(Arc::new(node(name, 1)));
        }
        let mut carried = Carried::default();
        let mut asked = |cache: &mut Cache, app: &str, milli_cpu: i64| {
            let pod = PodInfo {
                uid: app.into(),
                labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
                requests: Resources { milli_cpu, ..Resources::default() },
                ..PodInfo::default()
            };
            let snapshot = cache.snapshot();
            let trace = &mut Trace::default();
            let found = schedule_one(Some(&mut carried), &framework, &snapshot, &pod, &|| Micros(0), trace);
            let of = std::mem::take(&mut *plugin.0.lock().unwrap()).concat();
            (of, found.map(|d| d.feasible).map_err(|e| matches!(e, CycleError::Failed(_))))
        };
        assert_eq!(asked(&mut cache, "web", 500), ("abc".into(), Ok(3)));
        assert_eq!(asked(&mut cache, "db", 500), (String::new(), Ok(3)));
        assert_eq!(asked(&mut cache, "big", 2000), ("abc".into(), Err(false)));
        cache.set_node(Arc::new(node("b", 2)));
        cache.assume(Arc::new(PodInfo { uid: "x".into(), ..PodInfo::default() }), "c");
        assert_eq!(asked(&mut cache, "web", 500), ("bc".into(), Ok(3)));
        assert_eq!(asked(&mut cache, "bigger", 2000), ("bc".into(), Err(false)));
        // Other nodes are at other places.
        cache.remove_node("a");
        assert_eq!(asked(&mut cache, "web", 500), ("bc".into(), Ok(2)));
        // What fails says nothing of the next time.
        assert_eq!(asked(&mut cache, "huge", 20_000), ("b".into(), Err(true)));
        assert_eq!(asked(&mut cache, "huge", 20_000), ("b".into(), Err(true)));
    }
}
