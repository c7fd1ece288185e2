//! The pods that wait: ready (active), after a failure (backoff), or for an event (unschedulable).
//!
//! Pure: time comes in. The owner decides one pod at a time and feeds events between decisions, so
//! no event can fall into the time when a pod is being decided (upstream needs a replay list).
//! A gated pod is in no queue until its gates are gone. Keys are UIDs.
//!
//! A backoff spares others, not the pod: one that was woken is decided before its backoff is over if no other is ready
//! (upstream's `SchedulerPopFromBackoffQ`). Not so after an error, of which time alone is the cure.

use crate::cache::NodeState;
use crate::debug::Waiting;
use crate::framework::{ClusterEvent, Framework};
use crate::model::PodInfo;
use podway_flow::Micros;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The first backoff and the longest, in µs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub initial: i64,
    /// No longer than this.
    pub max: i64,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { initial: 1_000_000, max: 10_000_000 }
    }
}

impl Backoff {
    /// `initial << (failures − 1)`, at most `max`; 0 for no failure.
    #[must_use]
    pub fn after(&self, failures: u32) -> i64 {
        if failures == 0 {
            return 0;
        }
        let doubled = self.initial.saturating_mul(1_i64 << (failures - 1).min(40));
        doubled.min(self.max)
    }
}

/// A pod that waits.
#[derive(Clone, Debug)]
pub struct QueuedPod {
    /// The pod, as last seen.
    pub pod: Arc<PodInfo>,
    /// When it came first.
    pub added: Micros,
    /// When it came into its present queue; ages equals.
    pub since: Micros,
    /// How often it was decided or bound, the present time included once popped.
    pub attempts: u32,
    /// Consecutive failures, for the backoff.
    pub failures: u32,
    /// Who refused it last.
    pub rejecting: BTreeSet<&'static str>,
    /// The time it spent in backoff and unschedulable is not queue time of the active queue: µs ready.
    pub ready_since: Micros,
    /// While its victims are being evicted it is not decided again.
    pub hold: Hold,
    /// Since when it waits for a node: since it came, or since its gates were gone.
    pub waits_since: Micros,
    /// It was told of as one that waits too long.
    pub stuck: bool,
}

/// Whether events may wake a pod that waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// They may.
    #[default]
    No,
    /// They may not; none that helps has come yet.
    Held,
    /// They may not, and one that helps has come.
    Missed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Active,
    /// After an error: until then.
    Backoff(Micros),
    /// Woken: until then others that are ready go first.
    Woken(Micros),
    Unschedulable,
    Gated,
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Place::Active => "active",
            Place::Backoff(_) | Place::Woken(_) => "backoff",
            Place::Unschedulable => "unschedulable",
            Place::Gated => "gated",
        }
    }
}

/// How many wait where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lengths {
    /// Ready.
    pub active: usize,
    /// After a failure.
    pub backoff: usize,
    /// For an event.
    pub unschedulable: usize,
    /// For their gates.
    pub gated: usize,
}

/// The order of those that are ready: by priority descending, then time, then UID.
type Rank = (std::cmp::Reverse<i32>, Micros, String);

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    backoff: Backoff,
    pods: BTreeMap<String, (QueuedPod, Place)>,
    active: BTreeSet<Rank>,
    timers: BTreeSet<(Micros, String)>,
    /// Those of them that an event has woken: by the second in which the backoff ends, then as in `active`.
    woken: BTreeSet<(i64, Rank)>,
    /// Those that wait for an event, by the plugins that refused them; `ANY` for those that none did.
    refused: BTreeMap<&'static str, BTreeSet<String>>,
    /// Those that may become stuck, by how long they wait: all but gated ones and those that are.
    patient: BTreeSet<(Micros, String)>,
    /// How many came into which queue by which event, since [`Queue::take_incoming`].
    incoming: BTreeMap<(&'static str, &'static str), u64>,
}

/// Whom any event wakes.
const ANY: &str = "";

/// What happened, as far as it wakes pods.
#[derive(Clone, Copy)]
pub struct News<'a> {
    /// What.
    pub event: &'a ClusterEvent,
    /// The one node that it changed, as it is now.
    pub on: Option<&'a NodeState>,
    /// It concerns pods of at most this priority.
    pub priority: i32,
}

impl<'a> From<&'a ClusterEvent> for News<'a> {
    fn from(event: &'a ClusterEvent) -> Self {
        News { event, on: None, priority: i32::MAX }
    }
}

/// Upstream's event labels (`framework/events.go`).
mod came_by {
    pub(super) const ADD: &str = "UnschedulablePodAdd";
    pub(super) const UPDATE: &str = "UnschedulablePodUpdate";
    pub(super) const FAILURE: &str = "ScheduleAttemptFailure";
    pub(super) const BACKOFF: &str = "BackoffComplete";
    pub(super) const EARLY: &str = "PopFromBackoffQ";
}

impl Queue {
    /// An empty queue.
    #[must_use]
    pub fn new(backoff: Backoff) -> Self {
        Queue { backoff, ..Queue::default() }
    }

    /// A pending pod came or changed. A change of its spec may let it in; a status write may not.
    pub fn upsert(&mut self, pod: Arc<PodInfo>, now: Micros) {
        let Some((queued, place)) = self.pods.get_mut(&pod.uid) else {
            let place = if pod.gates.is_empty() { Place::Active } else { Place::Gated };
            let queued = QueuedPod {
                // It may have been told of before this process was here.
                stuck: pod.stuck,
                pod,
                added: now,
                since: now,
                attempts: 0,
                failures: 0,
                rejecting: BTreeSet::new(),
                ready_since: now,
                hold: Hold::No,
                waits_since: now,
            };
            self.insert(queued, place, came_by::ADD);
            return;
        };
        let same = queued.pod.decides_like(&pod);
        if same {
            queued.pod = pod;
            return;
        }
        let place = *place;
        let uid = pod.uid.clone();
        let Some(mut queued) = self.remove(&uid) else { return };
        queued.pod = pod;
        let gated = !queued.pod.gates.is_empty();
        let place = match place {
            _ if gated => Place::Gated,
            Place::Gated => {
                queued.waits_since = now;
                Place::Active
            }
            Place::Unschedulable => self.woken(&queued, now),
            other => other,
        };
        if place == Place::Active {
            queued.ready_since = now;
        }
        self.insert(queued, place, came_by::UPDATE);
    }

    /// The pod is gone or bound.
    pub fn remove(&mut self, uid: &str) -> Option<QueuedPod> {
        let (queued, place) = self.pods.remove(uid)?;
        self.patient.remove(&(queued.waits_since, uid.to_owned()));
        match place {
            Place::Active => {
                self.active.remove(&active_key(&queued));
            }
            Place::Backoff(until) => {
                self.timers.remove(&(until, uid.to_owned()));
            }
            Place::Woken(until) => {
                self.timers.remove(&(until, uid.to_owned()));
                self.woken.remove(&woken_key(until, &queued));
            }
            Place::Unschedulable => {
                for plugin in refusers(&queued) {
                    if let Some(waiting) = self.refused.get_mut(plugin) {
                        waiting.remove(uid);
                    }
                }
            }
            Place::Gated => {}
        }
        Some(queued)
    }

    /// The next pod to decide. It leaves the queue; give it back by [`Queue::unschedulable`] or
    /// [`Queue::failed`].
    pub fn pop(&mut self, now: Micros) -> Option<QueuedPod> {
        self.flush(now);
        let ready = self.active.first();
        let (.., uid) = ready.or_else(|| self.woken.first().map(|(_, key)| key))?.clone();
        let early = ready.is_none();
        let mut queued = self.remove(&uid)?;
        if early {
            *self.incoming.entry((Place::Active.name(), came_by::EARLY)).or_insert(0) += 1;
            queued.ready_since = now;
        }
        queued.attempts = queued.attempts.saturating_add(1);
        Some(queued)
    }

    /// No node fits: the pod waits for an event that the refusing plugins say can help.
    pub fn unschedulable(&mut self, mut queued: QueuedPod, rejecting: BTreeSet<&'static str>, now: Micros) {
        queued.rejecting = rejecting;
        queued.failures = queued.failures.saturating_add(1);
        queued.since = now;
        self.insert(queued, Place::Unschedulable, came_by::FAILURE);
    }

    /// Something failed (a bind, a plugin): the pod waits for its backoff only.
    pub fn failed(&mut self, mut queued: QueuedPod, now: Micros) {
        queued.rejecting.clear();
        queued.failures = queued.failures.saturating_add(1);
        queued.since = now;
        let until = Micros(now.0.saturating_add(self.backoff.after(queued.failures)));
        self.insert(queued, Place::Backoff(until), came_by::FAILURE);
    }

    /// A pod's victims are being evicted: until [`Queue::release`] nothing wakes it.
    pub fn hold(&mut self, uid: &str) {
        if let Some((queued, _)) = self.pods.get_mut(uid) {
            queued.hold = Hold::Held;
        }
    }

    /// They are, or could not be. In that case it is tried again at once, since no event would come.
    pub fn release(&mut self, uid: &str, evicted: bool, now: Micros) {
        let Some((queued, place)) = self.pods.get_mut(uid) else { return };
        let (hold, place) = (std::mem::take(&mut queued.hold), *place);
        if place == Place::Unschedulable && (hold == Hold::Missed || !evicted) {
            self.wake(uid, "AssignedPodDelete", now);
        }
    }

    /// The pod as last seen.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.pods.get(uid).map(|(queued, _)| &queued.pod)
    }

    /// Something happened in the cluster: wakes those whom it can help, as one profile's plugins say of all
    /// pods. Returns how many.
    pub fn event<'a>(&mut self, framework: &Framework, news: impl Into<News<'a>>, now: Micros) -> usize {
        self.event_by([(None, framework)], news, now)
    }

    /// The same, where each profile's plugins are asked for the pods of its scheduler name; `None` is all.
    ///
    /// Only the pods of a plugin that hears such an event are asked.
    pub fn event_by<'a, 'f>(
        &mut self,
        profiles: impl IntoIterator<Item = (Option<&'f str>, &'f Framework)>,
        news: impl Into<News<'a>>,
        now: Micros,
    ) -> usize {
        let News { event, on, priority } = news.into();
        let mut woken = self.refused.get(ANY).cloned().unwrap_or_default();
        for (scheduler, framework) in profiles {
            for (name, plugin) in framework.refusing() {
                let Some(waiting) = self.refused.get(name).filter(|_| plugin.hears(event)) else { continue };
                let helped = waiting.iter().filter(|uid| {
                    let waits = self.pods.get(*uid).map(|(queued, _)| &queued.pod);
                    waits.filter(|pod| scheduler.is_none_or(|s| s == pod.scheduler_name)).is_some_and(|pod| {
                        match on {
                            Some(node) => plugin.may_help_on(pod, event, node),
                            None => plugin.may_help(pod, event),
                        }
                    })
                });
                woken.extend(helped.cloned());
            }
        }
        woken.retain(|uid| self.pods.get(uid).is_some_and(|(q, _)| q.pod.priority <= priority));
        for uid in &woken {
            self.wake(uid, event.label(), now);
        }
        woken.len()
    }

    /// The profile of a scheduler name has changed: what it refused before says nothing any more.
    pub fn wake_all_of(&mut self, scheduler_name: &str, now: Micros) {
        let of = |(q, place): &&(QueuedPod, Place)| {
            *place == Place::Unschedulable && q.pod.scheduler_name == scheduler_name
        };
        let uids: Vec<String> = self.pods.values().filter(of).map(|(q, _)| q.pod.uid.clone()).collect();
        uids.iter().for_each(|uid| self.wake(uid, came_by::UPDATE, now));
    }

    /// Takes out the pods of a scheduler name.
    pub fn take_of(&mut self, scheduler_name: &str) -> Vec<Arc<PodInfo>> {
        let of = |(q, _): &&(QueuedPod, Place)| q.pod.scheduler_name == scheduler_name;
        let uids: Vec<String> = self.pods.values().filter(of).map(|(q, _)| q.pod.uid.clone()).collect();
        uids.iter().filter_map(|uid| self.remove(uid)).map(|q| q.pod).collect()
    }

    fn wake(&mut self, uid: &str, by: &'static str, now: Micros) {
        if let Some((queued, _)) = self.pods.get_mut(uid)
            && queued.hold != Hold::No
        {
            queued.hold = Hold::Missed;
            return;
        }
        if let Some(mut queued) = self.remove(uid) {
            let place = self.woken(&queued, now);
            if place == Place::Active {
                queued.ready_since = now;
            }
            self.insert(queued, place, by);
        }
    }

    /// When the next backoff ends; the only timer there is.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Micros> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Since when the one waits that waits longest of those that were not told of as stuck.
    #[must_use]
    pub fn longest(&self) -> Option<Micros> {
        self.patient.first().map(|(since, _)| *since)
    }

    /// Those that have waited since before `since`, each once.
    pub fn take_stuck(&mut self, since: Micros) -> Vec<QueuedPod> {
        let mut out = Vec::new();
        while let Some((_, uid)) = self.patient.first().filter(|(at, _)| *at < since).cloned() {
            self.patient.pop_first();
            if let Some((queued, _)) = self.pods.get_mut(&uid) {
                queued.stuck = true;
                out.push(queued.clone());
            }
        }
        out
    }

    /// How many that wait here were told of as stuck.
    #[must_use]
    pub fn stuck(&self) -> usize {
        self.pods.values().filter(|(queued, _)| queued.stuck).count()
    }

    /// True when a pod is ready now.
    #[must_use]
    pub fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    /// True when the pod waits here.
    #[must_use]
    pub fn contains(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// The UIDs of all that wait.
    pub fn uids(&self) -> impl Iterator<Item = &str> {
        self.pods.keys().map(String::as_str)
    }

    /// How many wait where.
    #[must_use]
    pub fn lengths(&self) -> Lengths {
        let mut out = Lengths::default();
        for (_, place) in self.pods.values() {
            match place {
                Place::Active => out.active += 1,
                Place::Backoff(_) | Place::Woken(_) => out.backoff += 1,
                Place::Unschedulable => out.unschedulable += 1,
                Place::Gated => out.gated += 1,
            }
        }
        out
    }

    /// Who waits, and where.
    #[must_use]
    pub fn waiting(&self) -> Vec<Waiting> {
        let one = |(q, place): &(QueuedPod, Place)| Waiting {
            pod: q.pod.key(),
            profile: q.pod.scheduler_name.clone(),
            queue: place.name(),
            priority: q.pod.priority,
            attempts: q.attempts,
            added: q.added.0,
            until: match place {
                Place::Backoff(until) | Place::Woken(until) => Some(until.0),
                _ => None,
            },
            refused_by: q.rejecting.iter().copied().collect(),
        };
        self.pods.values().map(one).collect()
    }

    /// How many came into (queue, by event) since the last call.
    pub fn take_incoming(&mut self) -> BTreeMap<(&'static str, &'static str), u64> {
        std::mem::take(&mut self.incoming)
    }

    /// How many wait for an event, by the plugins that refused them and their scheduler name.
    #[must_use]
    pub fn refused(&self) -> BTreeMap<(&'static str, String), usize> {
        let mut out = BTreeMap::new();
        for (queued, _) in self.pods.values() {
            for plugin in &queued.rejecting {
                *out.entry((*plugin, queued.pod.scheduler_name.clone())).or_insert(0) += 1;
            }
        }
        out
    }

    /// A woken pod still owes the others what is left of its backoff.
    fn woken(&self, queued: &QueuedPod, now: Micros) -> Place {
        let until = Micros(queued.since.0.saturating_add(self.backoff.after(queued.failures)));
        if until <= now { Place::Active } else { Place::Woken(until) }
    }

    fn flush(&mut self, now: Micros) {
        while let Some((at, uid)) = self.timers.first().cloned().filter(|(at, _)| *at <= now) {
            if let Some(mut queued) = self.remove(&uid) {
                queued.since = at;
                queued.ready_since = at;
                self.insert(queued, Place::Active, came_by::BACKOFF);
            } else {
                self.timers.remove(&(at, uid));
            }
        }
    }

    fn insert(&mut self, queued: QueuedPod, place: Place, event: &'static str) {
        let uid = queued.pod.uid.clone();
        *self.incoming.entry((place.name(), event)).or_insert(0) += 1;
        match place {
            Place::Active => {
                self.active.insert(active_key(&queued));
            }
            Place::Backoff(until) => {
                self.timers.insert((until, uid.clone()));
            }
            Place::Woken(until) => {
                self.timers.insert((until, uid.clone()));
                self.woken.insert(woken_key(until, &queued));
            }
            Place::Unschedulable => {
                for plugin in refusers(&queued) {
                    self.refused.entry(plugin).or_default().insert(uid.clone());
                }
            }
            Place::Gated => {}
        }
        if place != Place::Gated && !queued.stuck {
            self.patient.insert((queued.waits_since, uid.clone()));
        }
        self.pods.insert(uid, (queued, place));
    }
}

/// Who must be asked whether an event helps.
fn refusers(queued: &QueuedPod) -> Vec<&'static str> {
    if queued.rejecting.is_empty() { vec![ANY] } else { queued.rejecting.iter().copied().collect() }
}

fn active_key(queued: &QueuedPod) -> Rank {
    (std::cmp::Reverse(queued.pod.priority), queued.since, queued.pod.uid.clone())
}

/// Upstream's backoffQOrderingWindowDuration.
const WINDOW: i64 = 1_000_000;

fn woken_key(until: Micros, queued: &QueuedPod) -> (i64, Rank) {
    (until.0.div_euclid(WINDOW), active_key(queued))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NodeInfo;
    use crate::plugins::default_framework;

    const S: i64 = 1_000_000;

    fn pod(uid: &str, priority: i32) -> Arc<PodInfo> {
        Arc::new(PodInfo { uid: uid.into(), priority, ..PodInfo::default() })
    }

    fn uncordon() -> ClusterEvent {
        let open = NodeInfo { allocatable_pods: 1, ..NodeInfo::default() };
        let closed = NodeInfo { unschedulable: true, ..open.clone() };
        ClusterEvent::NodeUpdate(Arc::new(closed), Arc::new(open))
    }

    #[test]
    fn by_priority_then_by_time() {
        let mut q = Queue::default();
        q.upsert(pod("late", 0), Micros(3));
        q.upsert(pod("early", 0), Micros(1));
        q.upsert(pod("high", 9), Micros(5));
        let order: Vec<String> = std::iter::from_fn(|| q.pop(Micros(9)).map(|p| p.pod.uid.clone())).collect();
        assert_eq!(order, ["high", "early", "late"]);
    }

    #[test]
    fn backoff_doubles_from_1_to_10_seconds() {
        let seconds: Vec<i64> = (0..7).map(|n| Backoff::default().after(n) / S).collect();
        assert_eq!(seconds, [0, 1, 2, 4, 8, 10, 10]);
        assert_eq!(Backoff::default().after(u32::MAX), 10 * S);
    }

    #[test]
    fn an_event_wakes_only_whom_it_can_help_and_a_backoff_lets_others_go_first() {
        let (mut q, framework) = (Queue::default(), default_framework());
        q.upsert(pod("a", 0), Micros(0));
        q.upsert(pod("b", 0), Micros(0));
        let (a, b) = (q.pop(Micros(0)).unwrap(), q.pop(Micros(0)).unwrap());
        q.unschedulable(a, BTreeSet::from(["NodeUnschedulable"]), Micros(0));
        q.unschedulable(b, BTreeSet::from(["NodeResourcesFit"]), Micros(0));
        assert_eq!(q.event(&framework, &uncordon(), Micros(S / 2)), 1);
        assert_eq!(q.lengths(), Lengths { backoff: 1, unschedulable: 1, ..Lengths::default() });
        assert_eq!(q.next_expiry(), Some(Micros(S)));
        // One that is ready goes first; when none is, it is not waited for the backoff.
        q.upsert(pod("new", -7), Micros(S / 2));
        assert_eq!(q.pop(Micros(S / 2)).unwrap().pod.uid, "new");
        let again = q.pop(Micros(S / 2)).unwrap();
        assert_eq!((again.pod.uid.as_str(), again.attempts, again.ready_since), ("a", 2, Micros(S / 2)));
        assert_eq!(q.take_incoming()[&("active", "PopFromBackoffQ")], 1);
        assert!(q.pop(Micros(S / 2)).is_none() && q.next_expiry().is_none());
        // Once the backoff has passed while it waited, an event makes it ready at once.
        assert_eq!(q.event(&framework, &ClusterEvent::AssignedPodDelete(pod("x", 0)), Micros(5 * S)), 1);
        assert!(q.has_active());
        assert_eq!(q.pop(Micros(5 * S)).unwrap().pod.uid, "b");
    }

    #[test]
    fn of_those_in_backoff_the_first_second_then_the_highest_priority_goes_first() {
        let (mut q, framework) = (Queue::default(), default_framework());
        for (uid, priority, refused_at) in [("low", 0, S / 4), ("late", 9, 3 * S / 2), ("high", 5, S / 2)] {
            q.upsert(pod(uid, priority), Micros(0));
            let popped = q.pop(Micros(0)).unwrap();
            q.unschedulable(popped, BTreeSet::from(["NodeUnschedulable"]), Micros(refused_at));
        }
        assert_eq!(q.event(&framework, &uncordon(), Micros(S)), 3);
        assert_eq!(q.lengths().backoff, 3);
        let order: Vec<String> = std::iter::from_fn(|| q.pop(Micros(S)).map(|p| p.pod.uid.clone())).collect();
        assert_eq!(order, ["high", "low", "late"]);
        assert!(q.next_expiry().is_none());
    }

    #[test]
    fn a_gated_pod_waits_for_its_gates_and_a_status_write_wakes_nobody() {
        let mut q = Queue::default();
        let gated = Arc::new(PodInfo { gates: vec!["g".into()], ..(*pod("a", 0)).clone() });
        q.upsert(gated, Micros(0));
        assert!(q.pop(Micros(1)).is_none());
        q.upsert(pod("a", 0), Micros(2));
        let a = q.pop(Micros(2)).unwrap();
        q.unschedulable(a, BTreeSet::from(["NodeAffinity"]), Micros(2));
        let written = Arc::new(PodInfo { condition: Some(Default::default()), ..(*pod("a", 0)).clone() });
        q.upsert(written, Micros(3 * S));
        assert_eq!(q.lengths().unschedulable, 1);
        q.upsert(pod("a", 7), Micros(3 * S));
        assert!(q.has_active());
        let incoming = q.take_incoming();
        assert_eq!(incoming[&("gated", "UnschedulablePodAdd")], 1);
        assert_eq!(incoming[&("unschedulable", "ScheduleAttemptFailure")], 1);
        assert_eq!(incoming[&("active", "UnschedulablePodUpdate")], 2);
        assert!(q.take_incoming().is_empty());
    }

    #[test]
    fn room_wakes_only_whom_it_is_enough_for_and_nobody_is_asked_in_vain() {
        use crate::cache::NodeState;
        use crate::model::Resources;
        let (mut q, framework) = (Queue::default(), default_framework());
        for (uid, milli_cpu) in [("small", 100), ("big", 5000)] {
            let requests = Resources { milli_cpu, ..Resources::default() };
            q.upsert(Arc::new(PodInfo { requests, ..(*pod(uid, 0)).clone() }), Micros(0));
            let popped = q.pop(Micros(0)).unwrap();
            q.unschedulable(popped, BTreeSet::from(["NodeResourcesFit"]), Micros(0));
        }
        let allocatable = Resources { milli_cpu: 1000, ..Resources::default() };
        let node = NodeState::of(NodeInfo { allocatable, allocatable_pods: 9, ..NodeInfo::default() });
        let gone = ClusterEvent::AssignedPodDelete(pod("x", 0));
        let news = News { event: &gone, on: Some(&node), priority: i32::MAX };
        assert_eq!(q.event(&framework, news, Micros(9 * S)), 1);
        assert_eq!(q.pop(Micros(9 * S)).unwrap().pod.uid, "small");
        assert_eq!(q.event(&framework, &ClusterEvent::AssignedPodAdd(pod("x", 0)), Micros(9 * S)), 0);
        assert_eq!(q.event(&framework, &gone, Micros(9 * S)), 1, "on whatever node");
    }

    #[test]
    fn who_waits_too_long_is_told_once_and_a_gated_pod_never() {
        let mut q = Queue::default();
        let gated = Arc::new(PodInfo { gates: vec!["g".into()], ..(*pod("gated", 0)).clone() });
        q.upsert(gated, Micros(0));
        assert_eq!(q.longest(), None);
        q.upsert(pod("a", 0), Micros(1));
        q.upsert(pod("b", 0), Micros(2));
        // One that is being decided or bound is in another phase; it comes back with its age.
        let a = q.pop(Micros(3)).unwrap();
        assert_eq!(q.longest(), Some(Micros(2)));
        q.unschedulable(a, BTreeSet::from(["NodeAffinity"]), Micros(4));
        assert_eq!((q.longest(), q.take_stuck(Micros(1)).len()), (Some(Micros(1)), 0));
        let stuck = q.take_stuck(Micros(2));
        assert_eq!(stuck.iter().map(|p| p.pod.uid.as_str()).collect::<Vec<_>>(), ["a"]);
        assert_eq!((q.longest(), q.stuck(), q.take_stuck(Micros(2)).len()), (Some(Micros(2)), 1, 0));
        q.wake_all_of("", Micros(5 * S));
        assert_eq!((q.longest(), q.stuck()), (Some(Micros(2)), 1), "it stays so, wherever it waits");
        q.upsert(pod("gated", 0), Micros(6 * S));
        q.remove("b");
        assert_eq!(q.longest(), Some(Micros(6 * S)), "since its gates are gone");
        q.upsert(Arc::new(PodInfo { stuck: true, ..(*pod("told", 0)).clone() }), Micros(7 * S));
        assert_eq!((q.longest(), q.stuck()), (Some(Micros(6 * S)), 2), "by the scheduler before this one");
        let all: Vec<bool> = std::iter::from_fn(|| q.pop(Micros(9 * S)).map(|p| p.stuck)).collect();
        assert_eq!((all.iter().filter(|stuck| **stuck).count(), all.len(), q.stuck()), (2, 3, 0));
    }

    #[test]
    fn a_failed_bind_waits_for_time_only() {
        let mut q = Queue::default();
        q.upsert(pod("a", 0), Micros(0));
        let a = QueuedPod { rejecting: BTreeSet::from(["NodeAffinity"]), ..q.pop(Micros(0)).unwrap() };
        q.failed(a, Micros(0));
        assert!(q.pop(Micros(S - 1)).is_none());
        assert!(q.pop(Micros(S)).is_some());
    }
}
