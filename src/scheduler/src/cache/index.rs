//! What has been counted over the pods on the nodes, and how it is kept up to date.
//!
//! A plugin asks a [snapshot](super::Snapshot) for a [`Tally`]. The first time that is counted over all classes of pods.
//! From then on the cache notes down every pod that comes or goes, and the next snapshot's tally is the last
//! one's plus what is noted since: a decision costs what has changed, not what there is. The tallies are a memo
//! and no state: each is what counting anew would give, which a test compares.
//!
//! An index holds for one set of nodes, with their labels and taints, and one set of namespaces: when these
//! change, the cache begins a new one.

use super::node::NodeState;
use super::snapshot::Snapshot;
use super::tally::{Domains, Step, Tally};
use super::whereabouts::Whereabouts;
use std::any::{Any, TypeId};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many changes are remembered. What was not asked for so long is counted anew.
const REMEMBERED: usize = 1 << 14;
/// How many numbers the tallies of one type may keep: 8 MiB.
const KEPT: usize = 1 << 20;

/// The index.
#[derive(Default)]
pub(crate) struct Index {
    domains: Mutex<HashMap<String, Arc<Domains>>>,
    steps: Mutex<Steps>,
    /// With the generation of the snapshot that they hold for.
    whereabouts: Mutex<Option<(u64, Whereabouts)>>,
    tallies: Mutex<HashMap<TypeId, Box<dyn Any + Send>>>,
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").finish_non_exhaustive()
    }
}

/// What changed, with the generation that it made; the oldest first.
#[derive(Default)]
struct Steps {
    kept: VecDeque<(u64, Step)>,
    /// What came up to this generation is forgotten.
    forgotten: u64,
}

/// The tallies of a type.
struct Tallies<T: Tally> {
    by_question: HashMap<T::Of, Counted<T>>,
    size: usize,
    clock: u64,
}

struct Counted<T> {
    /// Of the snapshot that it holds for.
    generation: u64,
    used: u64,
    tally: Arc<T>,
}

/// Whatever panicked while it held the lock, memo and notes are replaced whole or not at all.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Index {
    pub(super) fn domains(&self, key: &str, nodes: &[NodeState]) -> Arc<Domains> {
        let mut known = lock(&self.domains);
        if let Some(domains) = known.get(key) {
            return domains.clone();
        }
        let domains = Arc::new(Domains::read(key, nodes));
        known.insert(key.to_owned(), domains.clone());
        domains
    }

    /// Notes down a change that made this generation of the cache.
    pub(super) fn note(&self, generation: u64, step: Step) {
        let mut steps = lock(&self.steps);
        if steps.kept.len() == REMEMBERED
            && let Some((forgotten, _)) = steps.kept.pop_front()
        {
            steps.forgotten = forgotten;
        }
        steps.kept.push_back((generation, step));
    }

    pub(super) fn tally<T: Tally>(&self, of: &T::Of, snapshot: &Snapshot) -> Arc<T> {
        let mut all = lock(&self.tallies);
        let none = || Box::new(Tallies::<T> { by_question: HashMap::new(), size: 0, clock: 0 });
        let tallies = all.entry(TypeId::of::<T>()).or_insert_with(|| none() as Box<dyn Any + Send>);
        let Some(tallies) = tallies.downcast_mut::<Tallies<T>>() else { return self.count(of, snapshot) };
        tallies.clock += 1;
        let now = tallies.clock;
        if let Some(counted) = tallies.by_question.get_mut(of) {
            if counted.generation > snapshot.generation {
                // Somebody still holds an earlier snapshot.
                return self.count(of, snapshot);
            }
            if self.catch_up(counted, of, snapshot) {
                counted.used = now;
                return counted.tally.clone();
            }
        }
        let tally: Arc<T> = self.count(of, snapshot);
        let counted = Counted { generation: snapshot.generation, used: now, tally: tally.clone() };
        tallies.put(of.clone(), counted);
        tally
    }

    /// Brings it to the snapshot's generation; false when what it takes is forgotten.
    fn catch_up<T: Tally>(&self, counted: &mut Counted<T>, of: &T::Of, snapshot: &Snapshot) -> bool {
        let known = self.since(counted.generation, snapshot, |step| {
            if T::counts(of, &step.class, snapshot) {
                Arc::make_mut(&mut counted.tally).step(step, snapshot);
            }
        });
        if known {
            counted.generation = snapshot.generation;
        }
        known
    }

    /// Each step from a generation to the snapshot's; false when they are forgotten.
    fn since(&self, generation: u64, snapshot: &Snapshot, take: impl FnMut(&Step)) -> bool {
        let steps = lock(&self.steps);
        if generation < steps.forgotten {
            return false;
        }
        let first = steps.kept.partition_point(|(made, _)| *made <= generation);
        let new = steps.kept.range(first..).take_while(|(made, _)| *made <= snapshot.generation);
        new.map(|(_, step)| step).for_each(take);
        true
    }

    /// Counts over all pods, class by class.
    fn count<T: Tally>(&self, of: &T::Of, snapshot: &Snapshot) -> Arc<T> {
        let mut known = lock(&self.whereabouts);
        if known.as_ref().is_some_and(|(generation, _)| *generation > snapshot.generation) {
            // Somebody still holds an earlier snapshot.
            return Arc::new(Whereabouts::read(&snapshot.nodes).count(of, snapshot));
        }
        // What panicked in the midst of the steps would leave it half done.
        let caught_up = known.take().and_then(|(generation, mut whereabouts)| {
            self.since(generation, snapshot, |step| whereabouts.step(step)).then_some(whereabouts)
        });
        let whereabouts = caught_up.unwrap_or_else(|| Whereabouts::read(&snapshot.nodes));
        let tally = Arc::new(whereabouts.count(of, snapshot));
        *known = Some((snapshot.generation, whereabouts));
        tally
    }
}

impl<T: Tally> Tallies<T> {
    /// Keeps one; those that were not asked for the longest go.
    fn put(&mut self, of: T::Of, counted: Counted<T>) {
        self.size += counted.tally.size();
        if let Some(before) = self.by_question.insert(of, counted) {
            self.size = self.size.saturating_sub(before.tally.size());
        }
        while self.size > KEPT && self.by_question.len() > 1 {
            let oldest = self.by_question.iter().min_by_key(|(_, c)| c.used).map(|(of, _)| of.clone());
            let Some(gone) = oldest.and_then(|of| self.by_question.remove(&of)) else { return };
            self.size = self.size.saturating_sub(gone.tally.size());
        }
    }
}
