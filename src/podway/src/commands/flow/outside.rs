//! `podway flow --watch-from-create`: pods measured from outside, at the client, whoever runs them. It watches before
//! they are there, and stamps each step when the pod's object, or an event about it, first tells of it.
//!
//! What a time is worth is its record's evidence: `seenAfterMicros`, how long before this sight the client had last
//! seen anything of the pod. The step was taken in between, less what the watch took to tell. [`Outside`] is pure.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;

use anyhow::Context as _;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use podway_api::stock;
use podway_flow::{Clock, Flow, Micros, Outcome, Phase, Record, Resolution, Writer, numbers};

use super::follow::{Verdict, verdict};
use super::{Args, render};
use crate::commands::up::progress;
use crate::commands::{Hinted, one_line, print};

/// Evidence: what the time is worth.
const WITHIN: &str = "seenAfterMicros";

/// What the watches tell.
enum Change {
    Pod(Box<watcher::Event<Pod>>),
    Event(Box<Event>),
    Broken(&'static str, watcher::Error),
}

/// Measures as many pods as `args` asks for, from their creation until they are Ready or at their end.
pub(super) async fn measure(client: Client, namespace: &str, args: &Args) -> anyhow::Result<()> {
    let (mut pods_of, mut events_of) = (watcher::Config::default(), "involvedObject.kind=Pod".to_owned());
    if let Some(name) = &args.pod {
        pods_of = pods_of.fields(&format!("metadata.name={name}"));
        events_of.push_str(&format!(",involvedObject.name={name}"));
    }
    if let Some(selector) = &args.selector {
        pods_of = pods_of.labels(selector);
    }
    let scope = if args.all_namespaces { None } else { Some(namespace) };
    let (pods, events): (Api<Pod>, Api<Event>) = match scope {
        Some(namespace) => (Api::namespaced(client.clone(), namespace), Api::namespaced(client, namespace)),
        None => (Api::all(client.clone()), Api::all(client)),
    };
    let pods = watcher(pods, pods_of).default_backoff().map(|change| match change {
        Ok(event) => Change::Pod(Box::new(event)),
        Err(error) => Change::Broken("pods", error),
    });
    let events = watcher(events, watcher::Config::default().fields(&events_of)).default_backoff();
    let events = events.applied_objects().map(|change| match change {
        Ok(event) => Change::Event(Box::new(event)),
        Err(error) => Change::Broken("events", error),
    });
    let mut changes = pin!(futures::stream::select(pods, events));
    let clock = Clock::new();
    let mut outside = Outside::default();
    let mut noted = String::new();
    while outside.settled.len() < args.count {
        let change = changes.next().await.context("the watch ended")?;
        let now = clock.now();
        let begun = outside.listed;
        match change {
            Change::Pod(event) => outside.pod(*event, now),
            Change::Event(event) => outside.event(*event, now),
            Change::Broken(what, error) => {
                let line = one_line(&format!("watching {what}: {error}; trying again"));
                match verdict(what, &error) {
                    Verdict::Refused(said) if what == "pods" => {
                        let hint = "kubectl auth can-i watch pods; -n NS or -A sets the namespace";
                        return Err(Hinted::new(one_line(&format!("watching pods: {said}")), hint).into());
                    }
                    Verdict::Routine => {}
                    // Without events there are still the pods.
                    _ if line != noted => {
                        progress(&line);
                        noted = line;
                    }
                    _ => {}
                }
            }
        }
        if outside.listed && !begun {
            let there = outside.before.len();
            if args.pod.is_some() && there > 0 {
                let hint = "delete it, or name one that is to come; -w follows one that is there";
                return Err(Hinted::new("the pod exists already: its creation was not seen", hint).into());
            }
            progress(&format!(
                "watching: create what is to be measured ({} there already)",
                pods_of_count(there)
            ));
        }
        for gone in std::mem::take(&mut outside.gone) {
            progress(&one_line(&format!("{gone} was deleted before it was Ready: it is not measured")));
        }
    }
    let out = match outside.settled.as_slice() {
        [(pod, flow)] if args.count == 1 => render(flow, pod, args)?,
        all => {
            let flows: Vec<Flow> = all.iter().map(|(_, flow)| flow.clone()).collect();
            super::numbers::formed(&numbers::stats(&flows), args.output, numbers::text::stats)?
        }
    };
    print(&out)?;
    progress(
        "every time is when this client saw it; the evidence says how long before it had last seen anything",
    );
    Ok(())
}

fn pods_of_count(count: usize) -> String {
    if count == 1 { "1 pod is".to_owned() } else { format!("{count} pods are") }
}

/// A step, told apart from others of the pod.
type Key = (Phase, Option<String>, u32, bool, String);

/// A pod on its way.
struct Seen {
    pod: Pod,
    records: Vec<Record>,
    keys: BTreeSet<Key>,
    /// When anything of it was seen last.
    last: Micros,
}

/// What was seen of the pods that were created since the watch began.
#[derive(Default)]
struct Outside {
    listed: bool,
    /// Pods that were there: nobody saw them come.
    before: BTreeSet<String>,
    on_the_way: BTreeMap<String, Seen>,
    /// By the pod's UID; an event may be told before the pod is.
    events: BTreeMap<String, Vec<Event>>,
    /// As they were when they had settled.
    settled: Vec<(Pod, Flow)>,
    /// What went before.
    gone: Vec<String>,
}

impl Outside {
    fn pod(&mut self, event: watcher::Event<Pod>, now: Micros) {
        match event {
            watcher::Event::Init => {}
            watcher::Event::InitDone => self.listed = true,
            watcher::Event::InitApply(pod) if !self.listed => {
                self.before.extend(pod.uid());
            }
            watcher::Event::InitApply(pod) | watcher::Event::Apply(pod) => self.told(pod, now),
            watcher::Event::Delete(pod) => {
                let uid = pod.uid().unwrap_or_default();
                self.events.remove(&uid);
                if let Some(seen) = self.on_the_way.remove(&uid) {
                    self.gone
                        .push(numbers::name(&Flow { pod: stock::reference(&seen.pod), records: Vec::new() }));
                }
            }
        }
    }

    fn told(&mut self, pod: Pod, now: Micros) {
        let Some(uid) = pod.uid().filter(|uid| !self.before.contains(uid)) else { return };
        let new = || Seen { pod: pod.clone(), records: Vec::new(), keys: BTreeSet::new(), last: now };
        let seen = self.on_the_way.entry(uid.clone()).or_insert_with(new);
        seen.pod = pod;
        seen.take(self.events.get(&uid).map_or(&[], Vec::as_slice), now);
        if seen.over()
            && let Some(Seen { pod, records, .. }) = self.on_the_way.remove(&uid)
        {
            self.settled.push((pod.clone(), Flow { pod: stock::reference(&pod), records }));
            self.events.remove(&uid);
            self.before.insert(uid);
        }
    }

    fn event(&mut self, event: Event, now: Micros) {
        let Some(uid) = event.involved_object.uid.clone().filter(|uid| !self.before.contains(uid)) else {
            return;
        };
        let events = self.events.entry(uid.clone()).or_default();
        events.push(event);
        if let Some(seen) = self.on_the_way.get_mut(&uid) {
            seen.take(events, now);
        }
    }
}

impl Seen {
    /// Stamps what object and events tell of and did not before.
    fn take(&mut self, events: &[Event], now: Micros) {
        let since = self.records.iter().filter_map(|r| r.end).max().unwrap_or(now);
        let worth = now.since(self.last).to_string();
        self.last = now;
        for told in stock::flow(&self.pod, events).records {
            // Our scheduler's own marks are its own times, not what can be seen from here.
            if told.writer == Writer::Scheduler && told.phase != Phase::Bound {
                continue;
            }
            let ended = told.end.is_some();
            let reason = if told.outcome == Outcome::Failed { told.reason.clone() } else { String::new() };
            if !self.keys.insert((told.phase, told.subject.clone(), told.attempt, ended, reason)) {
                continue;
            }
            let same = |r: &Record| r.phase == told.phase && r.subject == told.subject;
            let begun = self.records.iter().position(|r| same(r) && r.end.is_none());
            let begun = begun.map(|at| self.records.remove(at));
            let attempt = self.records.iter().filter(|r| same(r)).count() + 1;
            let start = if ended { begun.map_or(since, |r| r.start) } else { now };
            let mut record = Record {
                attempt: u32::try_from(attempt).unwrap_or(u32::MAX),
                start,
                end: ended.then_some(now),
                resolution: Resolution::Micros,
                ..told
            };
            record.evidence.insert(WITHIN.to_owned(), worth.clone());
            self.records.push(record);
        }
    }

    /// Ready, or at its end.
    fn over(&self) -> bool {
        let phase = self.pod.status.as_ref().and_then(|s| s.phase.as_deref());
        let ready = self.records.iter().any(|r| r.phase == Phase::Ready);
        ready || matches!(phase, Some("Succeeded" | "Failed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};

    fn pod(uid: &str, spec: Value, status: Value) -> Pod {
        let metadata =
            json!({"name": "a", "namespace": "n", "uid": uid, "creationTimestamp": "2026-11-24T05:31:12Z"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap()
    }

    fn event(uid: &str, reason: &str) -> Event {
        let of = json!({"kind": "Pod", "uid": uid, "fieldPath": "spec.containers{c}"});
        let at = "2026-11-24T05:31:13Z";
        serde_json::from_value(
            json!({"metadata": {}, "reason": reason, "involvedObject": of, "firstTimestamp": at}),
        )
        .unwrap()
    }

    /// What a kubelet's pod tells, step by step.
    fn states() -> [Pod; 4] {
        let second = "2026-11-24T05:31:13Z";
        let condition = |of: &[&str]| -> Vec<Value> {
            of.iter().map(|t| json!({"type": t, "status": "True", "lastTransitionTime": second})).collect()
        };
        let spec = json!({"nodeName": "w", "containers": []});
        let running = json!([{"name": "c", "image": "i", "imageID": "i@sha256:0", "ready": true, "restartCount": 0,
            "containerID": "cri://1", "state": {"running": {"startedAt": second}}}]);
        let bound = condition(&["PodScheduled"]);
        let network = condition(&["PodScheduled", "PodReadyToStartContainers"]);
        let ready = condition(&["PodScheduled", "PodReadyToStartContainers", "Ready"]);
        [
            pod("u", json!({"containers": []}), json!({"phase": "Pending"})),
            pod("u", spec.clone(), json!({"phase": "Pending", "conditions": bound})),
            pod("u", spec.clone(), json!({"phase": "Pending", "startTime": second, "conditions": network})),
            pod(
                "u",
                spec,
                json!({"phase": "Running", "startTime": second, "conditions": ready, "containerStatuses": running}),
            ),
        ]
    }

    fn times(flow: &Flow, phase: Phase) -> Vec<(i64, i64, String)> {
        let of = |r: &&Record| (r.start.0, r.end.unwrap().0, r.evidence[WITHIN].clone());
        flow.records_of(phase).iter().map(of).collect()
    }

    #[test]
    fn each_step_has_the_time_at_which_it_was_seen_first() {
        let [made, bound, network, ready] = states();
        let mut outside = Outside::default();
        [Init, InitApply(pod("old", json!({"containers": []}), json!({}))), InitDone]
            .into_iter()
            .for_each(|event| outside.pod(event, Micros(1)));
        outside.event(event("old", "Pulled"), Micros(2));
        outside.pod(Apply(made), Micros(100));
        outside.pod(Apply(bound.clone()), Micros(250));
        // What is told again is not news.
        outside.pod(Apply(bound), Micros(260));
        outside.event(event("u", "Pulling"), Micros(300));
        outside.pod(Apply(network), Micros(400));
        outside.event(event("u", "Pulled"), Micros(700));
        assert!(outside.settled.is_empty());
        outside.pod(Apply(ready.clone()), Micros(900));
        let (_, flow) = &outside.settled[0];
        let of = |from, to, worth: &str| vec![(from, to, worth.to_owned())];
        assert_eq!(times(flow, Phase::Persisted), of(100, 100, "0"));
        assert_eq!(times(flow, Phase::Bound), of(100, 250, "150"));
        assert_eq!(times(flow, Phase::NetworkConfigured), of(250, 400, "100"));
        assert_eq!(times(flow, Phase::ImagesPulled), of(300, 700, "300"));
        assert_eq!(times(flow, Phase::ContainersStarted), of(700, 900, "200"));
        assert_eq!(times(flow, Phase::Ready), of(700, 900, "200"));
        assert_eq!(flow.total(), Some(800));
        assert!(flow.records.iter().all(|r| r.resolution == Resolution::Micros));
        // Later news of it is no second pod; the one that was there is none.
        outside.pod(Apply(ready), Micros(950));
        outside.pod(Apply(pod("old", json!({"containers": []}), json!({"phase": "Failed"}))), Micros(960));
        assert_eq!((outside.settled.len(), outside.on_the_way.len(), outside.events.len()), (1, 0, 0));
    }

    #[test]
    fn a_pod_that_fails_or_goes_and_one_that_is_told_late() {
        let [made, _, _, ready] = states();
        let mut outside = Outside { listed: true, ..Outside::default() };
        outside.pod(Apply(made.clone()), Micros(1));
        outside.pod(Delete(made), Micros(2));
        assert_eq!(outside.gone, ["n/a"]);
        // An event may come before its pod, and a listing after a break has what came meanwhile.
        outside.event(event("u", "Pulled"), Micros(3));
        [Init, InitApply(ready), InitDone].into_iter().for_each(|event| outside.pod(event, Micros(9)));
        assert_eq!(times(&outside.settled[0].1, Phase::ImagesPulled), [(9, 9, "0".to_owned())]);
        let unplaced = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
            "reason": "Unschedulable", "lastTransitionTime": "2026-11-24T05:31:13Z"}]});
        outside.pod(Apply(pod("v", json!({"containers": []}), unplaced)), Micros(10));
        outside.pod(Apply(pod("v", json!({"containers": []}), json!({"phase": "Failed"}))), Micros(20));
        let flow = &outside.settled[1].1;
        assert_eq!(flow.summary(Phase::Bound).unwrap().outcome, Outcome::Failed);
    }
}
