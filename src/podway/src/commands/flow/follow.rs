//! `podway flow -w`: the picture is drawn anew whenever the pod or its `PodFlow` changes, until the pod
//! has settled; below it stand the pulls of its images, as they go. What the watch tells is taken in by
//! [`Followed`], and [`standing`] says what it means; both are pure, as is [`verdict`] on a watch that broke.

use std::pin::pin;

use anyhow::Context as _;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::ResourceExt as _;
use kube::api::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use podway_api::PodFlow;
use podway_flow::{Flow, Outcome, Phase};
use podway_ui::pulls::Told;
use tokio::time::Instant;

use super::pulling::{Pulling, Screen};
use super::source::{SETTLE, Source};
use super::{Args, Output, render};
use crate::commands::up::progress;
use crate::commands::{Hinted, one_line};

/// What wakes the follower.
enum Change {
    Pod(Box<watcher::Event<Pod>>),
    Flow,
    Pulls(Told),
    Broken(&'static str, watcher::Error),
    /// [`SETTLE`] is over.
    Late,
}

/// Draws until the pod is Ready, is at its end, or is gone.
pub(super) async fn follow(source: &Source, args: &Args) -> anyhow::Result<()> {
    let only = watcher::Config::default().fields(&format!("metadata.name={}", source.name));
    let pods = watcher(Api::<Pod>::namespaced(source.client.clone(), &source.namespace), only.clone())
        .default_backoff()
        .map(|change| match change {
            Ok(event) => Change::Pod(Box::new(event)),
            Err(error) => Change::Broken("pods", error),
        });
    let flows = watcher(Api::<PodFlow>::namespaced(source.client.clone(), &source.namespace), only)
        .default_backoff()
        .touched_objects()
        .map(|change| change.map_or_else(|error| Change::Broken(FLOWS, error), |_| Change::Flow));
    let mut changes = pin!(futures::stream::select(pods, flows));
    let of = format!("pod {}/{}", source.namespace, source.name);
    let mut followed = Followed::default();
    let mut deadline: Option<Instant> = None;
    let mut screen = Screen::new(args);
    let mut pulling = Pulling::new(source.client.clone());
    let mut known = None;
    let mut noted = String::new();
    let mut note = |line: String| {
        if noted != line {
            progress(&line);
            noted = line;
        }
    };
    loop {
        let patience = deadline.map(tokio::time::sleep_until);
        let change = tokio::select! {
            change = changes.next() => change.context("the watch ended")?,
            told = pulling.next() => Change::Pulls(told),
            () = async { if let Some(end) = patience { end.await } }, if deadline.is_some() => Change::Late,
        };
        let (late, only_pulls) = (matches!(change, Change::Late), matches!(change, Change::Pulls(_)));
        match change {
            Change::Pod(event) => followed.take(*event),
            Change::Flow | Change::Late => {}
            Change::Pulls(Told::Pulls(pulls)) => pulling.take(pulls),
            Change::Pulls(Told::Refused(why)) => {
                let why = one_line(&format!("image pulls are not shown as they go: {why}"));
                if !screen.is_terminal() {
                    note(why);
                    continue;
                }
                pulling.refuse(why);
            }
            Change::Broken(what, error) => {
                match verdict(what, &error) {
                    Verdict::Routine => {}
                    Verdict::Again => note(one_line(&format!("watching {what}: {error}; trying again"))),
                    Verdict::Refused(said) => {
                        let hint = format!("kubectl auth can-i watch {what} -n {}", source.namespace);
                        let message = one_line(&format!("watching {what}: {said}"));
                        return Err(Hinted::new(message, hint).into());
                    }
                }
                continue;
            }
        }
        if followed.gone {
            let hint = format!("kubectl get events -n {} tells what happened to it", source.namespace);
            return Err(Hinted::new(format!("{of} was deleted"), hint).into());
        }
        let Some(pod) = &followed.pod else {
            if followed.listed {
                note(format!("{of} does not exist yet: waiting for it"));
            }
            continue;
        };
        // Pulls come often: nothing else is read for them, and where nothing is drawn anew the picture stays.
        let flow = match known.take().filter(|_| only_pulls) {
            Some(flow) => flow,
            None => source.flow_of(pod).await?,
        };
        let stays = only_pulls && !screen.is_terminal();
        let picture = if stays { screen.picture().to_owned() } else { render(&flow, pod, args)? };
        let standing = standing(pod, &flow);
        let lines = if standing == Standing::OnTheWay { pulling.lines(pod) } else { String::new() };
        screen.draw(picture, lines)?;
        known = Some(flow);
        match standing {
            Standing::OnTheWay => {
                deadline = None;
                if args.output == Output::Text {
                    pulling.ask(pod);
                }
            }
            Standing::Settled { ending, whole } if whole || late => return told(&of, ending, source),
            Standing::Settled { .. } => {
                deadline.get_or_insert_with(|| Instant::now() + SETTLE);
            }
        }
    }
}

/// The last line: how the pod has settled. A failed one is an error, so that `&&` stops.
fn told(of: &str, ending: Ending, source: &Source) -> anyhow::Result<()> {
    match ending {
        Ending::Ready => progress(&format!("{of} is Ready")),
        Ending::Succeeded => progress(&format!("{of} has Succeeded")),
        Ending::Failed(why) => {
            let hint = format!("kubectl describe pod {} -n {}", source.name, source.namespace);
            return Err(Hinted::new(one_line(&format!("{of} has Failed{why}")), hint).into());
        }
    }
    Ok(())
}

/// The pod, as its watch tells of it. The first one seen is followed, and no later one of its name.
#[derive(Default)]
struct Followed {
    pod: Option<Pod>,
    /// A listing was complete.
    listed: bool,
    /// The present listing had it.
    found: bool,
    gone: bool,
}

impl Followed {
    fn take(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Init => self.found = false,
            watcher::Event::InitApply(pod) | watcher::Event::Apply(pod) => {
                self.found = true;
                match &self.pod {
                    Some(old) if old.uid() != pod.uid() => self.gone = true,
                    _ => self.pod = Some(pod),
                }
            }
            watcher::Event::InitDone => {
                self.listed = true;
                self.gone |= self.pod.is_some() && !self.found;
            }
            watcher::Event::Delete(pod) => {
                self.gone |= self.pod.as_ref().is_some_and(|old| old.uid() == pod.uid());
            }
        }
    }
}

/// How a pod has settled.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    Ready,
    Succeeded,
    /// With what the status says of it, each part after `: `.
    Failed(String),
}

/// Where a pod stands.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    OnTheWay,
    /// `whole`: the flow tells of it too.
    Settled {
        ending: Ending,
        whole: bool,
    },
}

/// Where `pod` stands, and whether `flow` knows it. One that is being deleted is followed to its end.
fn standing(pod: &Pod, flow: &Flow) -> Standing {
    let Some(status) = &pod.status else { return Standing::OnTheWay };
    let summary = |phase| flow.summary(phase).map(|s| s.outcome);
    let over = summary(Phase::StatusReported).is_some_and(|outcome| outcome != Outcome::Running);
    match status.phase.as_deref() {
        Some("Succeeded") => Standing::Settled { ending: Ending::Succeeded, whole: over },
        Some("Failed") => Standing::Settled { ending: Ending::Failed(why(status)), whole: over },
        _ => {
            let conditions = status.conditions.iter().flatten();
            let ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
            if !ready || pod.metadata.deletion_timestamp.is_some() {
                return Standing::OnTheWay;
            }
            let whole = summary(Phase::Ready) == Some(Outcome::Succeeded);
            Standing::Settled { ending: Ending::Ready, whole }
        }
    }
}

/// What a failed pod's status says of it: its own reason, else how its containers ended.
fn why(status: &PodStatus) -> String {
    let own = [&status.reason, &status.message].into_iter().flatten().filter(|s| !s.is_empty());
    let own: String = own.map(|s| format!(": {s}")).collect();
    if !own.is_empty() {
        return own;
    }
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let ended = all.filter_map(|c| {
        let end = c.state.as_ref()?.terminated.as_ref().filter(|end| end.exit_code != 0)?;
        let reason = end.reason.as_deref().unwrap_or("Error");
        Some(format!(": container {} ended with {} ({reason})", c.name, end.exit_code))
    });
    ended.collect()
}

const FLOWS: &str = "podflows.podway.dev";

/// What a broken watch means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is begun again, as it is meant to be.
    Routine,
    /// It is begun again by the watcher, and the user is told.
    Again,
    /// The API server said no, and why: trying again is of no use.
    Refused(String),
}

pub(super) fn verdict(what: &str, error: &watcher::Error) -> Verdict {
    use kube::Error::Api;
    let status = match error {
        watcher::Error::InitialListFailed(Api(status))
        | watcher::Error::WatchStartFailed(Api(status))
        | watcher::Error::WatchFailed(Api(status))
        | watcher::Error::WatchError(status) => status,
        _ => return Verdict::Again,
    };
    match status.code {
        // The history that was asked for is gone: listed anew.
        410 => Verdict::Routine,
        // A cluster without the CRD still has the pod's own watch.
        404 if what == FLOWS => Verdict::Routine,
        400..=404 => Verdict::Refused(status.message.clone()),
        _ => Verdict::Again,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;
    use podway_flow::{Micros, PodRef, Recorder, Writer};
    use serde_json::{Value, json};
    use watcher::Event;

    fn pod(uid: &str, status: Value) -> Pod {
        let metadata = json!({"name": "a", "namespace": "n", "uid": uid});
        serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
    }

    fn flow(done: &[Phase]) -> Flow {
        let recorder = Recorder::new(Writer::Agent, podway_flow::Clock::new());
        for phase in done {
            recorder.begin_at(*phase, None, Micros(1)).succeed("Done");
        }
        Flow { pod: PodRef::default(), records: recorder.take() }
    }

    #[test]
    fn a_pod_settles_when_it_is_ready_or_at_its_end() {
        let ready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        let not = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]});
        let evicted = json!({"phase": "Failed", "reason": "Evicted", "message": "no memory"});
        let crashed = json!({"phase": "Failed", "containerStatuses": [
            {"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
            {"name": "b", "state": {"terminated": {"exitCode": 3, "reason": "Error"}}},
        ]});
        let settled = |ending, whole| Standing::Settled { ending, whole };
        let failed = |why: &str| Ending::Failed(why.to_owned());
        let told: &[Phase] = &[Phase::StatusReported, Phase::Ready];
        let over: &[Phase] = &[Phase::StatusReported];
        for (status, done, wanted) in [
            (json!({"phase": "Pending"}), &[][..], Standing::OnTheWay),
            (not.clone(), &[], Standing::OnTheWay),
            // It was Ready once, and is not now.
            (not, told, Standing::OnTheWay),
            (ready.clone(), &[], settled(Ending::Ready, false)),
            (ready.clone(), told, settled(Ending::Ready, true)),
            (json!({"phase": "Succeeded"}), &[], settled(Ending::Succeeded, false)),
            (json!({"phase": "Succeeded"}), over, settled(Ending::Succeeded, true)),
            (json!({"phase": "Failed"}), over, settled(failed(""), true)),
            (crashed, over, settled(failed(": container b ended with 3 (Error)"), true)),
            (evicted, &[], settled(failed(": Evicted: no memory"), false)),
        ] {
            assert_eq!(standing(&pod("u", status.clone()), &flow(done)), wanted, "{status} {done:?}");
        }
        let mut going = pod("u", ready);
        going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert_eq!(standing(&going, &flow(told)), Standing::OnTheWay);
        assert_eq!(standing(&Pod::default(), &flow(&[])), Standing::OnTheWay);
    }

    #[test]
    fn a_pod_is_gone_when_it_is_deleted_replaced_or_no_longer_listed() {
        let one = || pod("1", json!({}));
        let two = || pod("2", json!({}));
        let listing = |pods: Vec<Pod>| {
            let inner = pods.into_iter().map(Event::InitApply);
            [Event::Init].into_iter().chain(inner).chain([Event::InitDone]).collect::<Vec<_>>()
        };
        for (what, events, gone) in [
            ("deleted", vec![Event::Apply(one()), Event::Delete(one())], true),
            ("replaced", vec![Event::Apply(one()), Event::Apply(two())], true),
            ("an older one is deleted", vec![Event::Apply(two()), Event::Delete(one())], false),
            ("not there yet", listing(vec![]), false),
            ("listed again", [listing(vec![one()]), listing(vec![one()])].concat(), false),
            ("no longer listed", [listing(vec![one()]), listing(vec![])].concat(), true),
            ("another is listed", [listing(vec![one()]), listing(vec![two()])].concat(), true),
            ("made after the listing", [listing(vec![]), vec![Event::Apply(one())]].concat(), false),
        ] {
            let mut followed = Followed::default();
            events.into_iter().for_each(|event| followed.take(event));
            assert_eq!(followed.gone, gone, "{what}");
        }
    }

    #[test]
    fn a_refusal_ends_the_watch_and_all_else_is_told() {
        let said = |code| {
            let status = Status { code, message: "no".to_owned(), ..Status::default() };
            watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))
        };
        let refused = || Verdict::Refused("no".to_owned());
        for (what, code, wanted) in [
            ("pods", 401, refused()),
            ("pods", 403, refused()),
            ("pods", 404, refused()),
            (FLOWS, 403, refused()),
            (FLOWS, 404, Verdict::Routine),
            ("pods", 410, Verdict::Routine),
            ("pods", 429, Verdict::Again),
            ("pods", 500, Verdict::Again),
        ] {
            assert_eq!(verdict(what, &said(code)), wanted, "{what} {code}");
        }
        assert_eq!(verdict("pods", &watcher::Error::NoResourceVersion), Verdict::Again);
    }
}
