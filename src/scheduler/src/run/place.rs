//! A pod's way through the loop: decided, assumed, bound; or refused, and what follows from that.

use super::{Bound, Input, Scheduler};
use crate::binding::{self, Binder, Recall, Unbound};
use crate::cache::Snapshot;
use crate::cycle::{CycleError, Decision, Nomination, Trace};
use crate::decide::Refusal;
use crate::evict::{Eviction, evict};
use crate::explain::ring::Outcome as Came;
use crate::explain::{TOP, Told, annotation_of, records};
use crate::extender;
use crate::framework::{Candidate, ClusterEvent, Failure, Framework, Placement, Point, Preemption, Status};
use crate::metrics::AttemptResult;
use crate::model::PodInfo;
use crate::plugins::volume_binding::VolumePlan;
use crate::queue::QueuedPod;
use crate::record::{Decided, Entry};
use crate::replay;
use crate::server::Probe;
use crate::status::Notice;
use podway_api::reasons::{SCHEDULER_ERROR, UNSCHEDULABLE};
use podway_flow::{Micros, Outcome, Recorder, Writer};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::mpsc;

impl Scheduler {
    pub(super) async fn schedule(&mut self, queued: QueuedPod, probed: &mut mpsc::Receiver<Probe>) {
        let Some(profile) = self.profiles.of(&queued.pod.scheduler_name).cloned() else {
            // Its profile went while its binding failed.
            self.strangers.insert(queued.pod.uid.clone(), queued.pod);
            return;
        };
        let (clock, metrics) = (self.binder.clock, self.binder.metrics.clone());
        let snapshot = self.cache.snapshot();
        let started = clock.now();
        let nominated = self.cache.nominated_to(&queued.pod.uid).filter(|n| *n != queued.pod.nominated);
        let decided = match nominated {
            None => queued.pod.clone(),
            // Decided here, and not back on the watch yet.
            Some(node) => Arc::new(PodInfo { nominated: node.to_owned(), ..(*queued.pod).clone() }),
        };
        let (result, trace) = if extender::asked(&profile.framework, &decided) {
            let cycle = (profile.framework.clone(), snapshot.clone(), decided);
            self.decide_apart(cycle, probed).await
        } else if let Some(refusal) = self.decider.known(&decided, &snapshot) {
            self.record(&decided, || replay::known(snapshot.generation, &refusal));
            return self.refuse(queued, refusal, started);
        } else {
            let mut trace = Trace { rows: Some(TOP), ..Trace::default() };
            let framework = &profile.framework;
            let result = self.decider.decide(framework, &snapshot, &decided, &|| clock.now(), &mut trace);
            self.record(&decided, || replay::came(snapshot.generation, &result));
            (result, trace)
        };
        metrics.trace(&trace, &queued.pod.scheduler_name);
        let generation = profile.generation;
        let came = match &result {
            Ok(decision) => Came::placed(decision),
            Err(CycleError::Unfit(error)) => Came::unfit(error),
            Err(CycleError::Failed(failure)) => Came::Failed { message: failure.to_string() },
        };
        self.ring.push(&queued, generation, started, Some(snapshot.generation), came);
        let decision = match result {
            Ok(decision) => decision,
            Err(CycleError::Unfit(error)) => {
                if !profile.framework.post_filter.is_empty() {
                    let found = match &error.nomination {
                        Nomination::Preempt(preemption) => Some(preemption.best.victims.len()),
                        Nomination::Keep | Nomination::Clear => None,
                    };
                    metrics.preempted(found);
                }
                return self.refuse(queued, Refusal::of(&error), started);
            }
            Err(CycleError::Failed(failure)) => return self.failed(queued, failure.to_string(), started),
        };
        let node = snapshot.node(&decision.node).filter(|_| !queued.pod.volumes.is_empty());
        let volumes = node.and_then(|node| VolumePlan::of(&queued.pod, &node.info, &snapshot)).map(Arc::new);
        if let Some(plan) = &volumes {
            let assumed = plan.assume(self.cache.objects_mut());
            self.assumed.insert(queued.pod.uid.clone(), assumed);
        }
        let node = decision.node.clone();
        let placement = Placement { pod: queued.pod.clone(), node, annotation: None, volumes };
        self.cache.assume(queued.pod.clone(), &decision.node);
        let binder = Binder { framework: profile.framework.clone(), ..self.binder.clone() };
        if let Err(unbound) = binding::reserve(&binder, &placement) {
            self.cache.remove_pod(&queued.pod.uid);
            self.revert_volumes(&queued.pod.uid);
            return self.unbound(queued, &unbound, started);
        }
        self.bind(binder, (queued, placement), decision, started);
    }

    /// Writes what has changed since the last decision, and this one. A file that cannot be written ends the
    /// recording, not the scheduling: it says so, and what it has until then can be replayed.
    fn record(&mut self, decided: &PodInfo, came: impl FnOnce() -> serde_json::Value) {
        let Some(recorder) = &mut self.recorder else { return };
        let decided =
            Decided { pod: decided.original.clone(), nominated: decided.nominated.clone(), came: came() };
        let decided = Entry::Decided(Box::new(decided));
        let all = self.cache.recorded();
        let written = all.iter().chain([&decided]).try_for_each(|entry| recorder.write(entry));
        if let Err(error) = written.and_then(|()| recorder.flush()) {
            tracing::error!(%error, "the run is no longer recorded");
            self.recorder = None;
            self.cache.record_no_more();
        }
    }

    /// A cycle that asks extenders, on a thread that may wait for them. Whoever asks for our health is answered
    /// meanwhile; everything else waits, as the next cycle does.
    async fn decide_apart(
        &mut self,
        (framework, snapshot, pod): (Arc<Framework>, Snapshot, Arc<PodInfo>),
        probed: &mut mpsc::Receiver<Probe>,
    ) -> (Result<Decision, CycleError>, Trace) {
        let (mut decider, clock) = (std::mem::take(&mut self.decider), self.binder.clock);
        let mut apart = tokio::task::spawn_blocking(move || {
            let mut trace = Trace { rows: Some(TOP), ..Trace::default() };
            let result = decider.decide(&framework, &snapshot, &pod, &|| clock.now(), &mut trace);
            (decider, result, trace)
        });
        let ended = loop {
            tokio::select! {
                ended = &mut apart => break ended,
                Some(probe) = probed.recv() => self.answer(probe),
            }
        };
        match ended {
            Ok((decider, result, trace)) => {
                self.decider = decider;
                (result, trace)
            }
            Err(error) => {
                let status = Status::error(extender::NAME, error.to_string());
                let failure = Failure::of(Point::Filter, &status);
                (Err(CycleError::Failed(failure)), Trace::default())
            }
        }
    }

    /// Starts the binding cycle; its end comes back as an input.
    pub(super) fn bind(
        &mut self,
        binder: Binder,
        (queued, mut placement): (QueuedPod, Placement),
        decision: Decision,
        started: Micros,
    ) {
        let recall = Arc::new(Recall::default());
        self.binding.insert(queued.pod.uid.clone(), (queued.pod.clone(), recall.clone()));
        let inputs = self.inputs.clone();
        self.cycles.spawn(async move {
            binder.metrics.binding_tasks(1);
            let recorder = Recorder::new(Writer::Scheduler, binder.clock);
            let told = Told::from(decision);
            let mut made = Vec::new();
            let result = binding::cycle(&binder, &mut placement, &recall, || {
                made = records(&recorder, &queued, &told, binder.clock.now());
                annotation_of(&made)
            })
            .await;
            if let Some(bound) = made.last_mut() {
                bound.end = Some(binder.clock.now());
                bound.outcome = if result.is_ok() { Outcome::Succeeded } else { Outcome::Failed };
            }
            binder.metrics.records(&made);
            binder.metrics.binding_tasks(-1);
            // The receiver gone means that the loop has ended.
            let framework = binder.framework;
            let bound = Bound { queued, placement, framework, started, result };
            let _ = inputs.send(Input::Bound(Box::new(bound)));
        });
    }

    pub(super) fn on_bound(&mut self, bound: Bound) {
        let Bound { mut queued, placement, framework, started, result } = bound;
        let latest = self.binding.remove(&queued.pod.uid);
        let Err(unbound) = result else {
            self.assumed.remove(&queued.pod.uid);
            let (now, metrics) = (self.binder.clock.now(), &self.binder.metrics);
            metrics.attempt(AttemptResult::Scheduled, &queued.pod.scheduler_name, now.since(started));
            metrics.scheduled(queued.attempts, now.since(queued.added));
            self.patience.learn(started.since(queued.waits_since));
            if queued.stuck {
                self.notify(Notice::Stuck(queued.pod.clone(), None));
            }
            return self.notify(Notice::Scheduled(queued.pod, placement.node));
        };
        binding::unreserve(&Binder { framework, ..self.binder.clone() }, &placement);
        self.revert_volumes(&queued.pod.uid);
        if !self.cache.is_assumed(&queued.pod.uid) {
            // Deleted meanwhile, or bound by another and seen so on the watch.
            return;
        }
        self.remove_pod(&queued.pod.uid);
        if let Some((latest, _)) = latest {
            queued.pod = latest;
        }
        if !queued.pod.deleting {
            self.unbound(queued, &unbound, started);
        }
    }

    /// A pod's claims get nothing after all; other pods may.
    pub(super) fn revert_volumes(&mut self, uid: &str) {
        if let Some(assumed) = self.assumed.remove(uid) {
            self.cache.note_entry(|| Entry::VolumesReverted(uid.to_owned()));
            let freed = assumed.revert(self.cache.objects_mut());
            freed.into_iter().for_each(|change| self.happened(&ClusterEvent::Object(change)));
        }
    }

    pub(super) fn unbound(&mut self, queued: QueuedPod, unbound: &Unbound, started: Micros) {
        match unbound {
            Unbound::Refused(status) => {
                let plugins = BTreeSet::from([status.plugin]);
                let refusal = Refusal { message: unbound.message(), plugins, nomination: Nomination::Clear };
                self.refuse(queued, refusal, started);
            }
            Unbound::Failed(_) => self.failed(queued, unbound.message(), started),
        }
    }

    /// The pod waits for an event that may help, or for the victims that make room for it.
    pub(super) fn refuse(
        &mut self,
        queued: QueuedPod,
        Refusal { message, plugins, nomination }: Refusal,
        started: Micros,
    ) {
        let now = self.binder.clock.now();
        let pod = queued.pod.clone();
        self.binder.metrics.attempt(AttemptResult::Unschedulable, &pod.scheduler_name, now.since(started));
        let nominated = match &nomination {
            Nomination::Keep => None,
            Nomination::Clear => self.cleared(&pod),
            Nomination::Preempt(preemption) => Some(preemption.best.node.clone()),
        };
        self.notify(Notice::Failed(pod.clone(), UNSCHEDULABLE, message, nominated));
        self.queue.unschedulable(queued, plugins, now);
        match nomination {
            Nomination::Keep | Nomination::Clear => {}
            Nomination::Preempt(preemption) => self.preempt(&pod, preemption),
        }
    }

    /// What to write for a pod that is nominated nowhere: nothing, if nobody ever said it is.
    pub(super) fn cleared(&mut self, pod: &PodInfo) -> Option<String> {
        let was = self.cache.unnominate(&pod.uid).is_some() || !pod.nominated.is_empty();
        was.then(String::new)
    }

    /// Nominates the pod and has its victims go, those that are only assumed in memory.
    pub(super) fn preempt(&mut self, pod: &Arc<PodInfo>, preemption: Preemption) {
        let Candidate { node, victims, .. } = preemption.best;
        let demoted: Vec<Arc<PodInfo>> =
            self.cache.nominated(&node).into_iter().filter(|p| p.priority < pod.priority).collect();
        for other in &demoted {
            self.cache.unnominate(&other.uid);
        }
        self.cache.nominate(pod.clone(), &node);
        let leaving = victims.into_iter().filter(|v| !v.deleting);
        let victims: Vec<Arc<PodInfo>> =
            leaving.filter(|v| !self.binding.get(&v.uid).is_some_and(|(_, r)| r.recall())).collect();
        if victims.is_empty() {
            return;
        }
        self.queue.hold(&pod.uid);
        let eviction = Eviction { preemptor: pod.clone(), node, victims, demoted };
        let (client, reporter) = (self.evictor.clone(), eviction.preemptor.scheduler_name.clone());
        let (inputs, uid) = (self.inputs.clone(), pod.uid.clone());
        self.cycles.spawn(async move {
            let evicted = evict(client, reporter, eviction).await;
            // The receiver gone means that the loop has ended.
            let _ = inputs.send(Input::Evicted(uid, evicted));
        });
    }

    /// The pod waits for its backoff.
    pub(super) fn failed(&mut self, queued: QueuedPod, message: String, started: Micros) {
        let now = self.binder.clock.now();
        let (scheduler, took) = (&queued.pod.scheduler_name, now.since(started));
        self.binder.metrics.attempt(AttemptResult::Error, scheduler, took);
        let nominated = self.cleared(&queued.pod.clone());
        self.notify(Notice::Failed(queued.pod.clone(), SCHEDULER_ERROR, message, nominated));
        self.queue.failed(queued, now);
    }
}
