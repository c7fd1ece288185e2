//! Conditions: a flow as the list that `kubectl describe` and `kubectl wait` read.
//!
//! Rules (Kubernetes API conventions, "Typical status properties"): every phase is present, positive
//! polarity (True = done), a reason always, `lastTransitionTime` moves only when the status flips,
//! conditions of other writers are kept. Each decision is a function of its own; [`merge`] is the one
//! place where old and new meet.

use crate::{Flow, Micros, Outcome, Phase, PhaseSummary};
use serde::{Deserialize, Serialize};

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Status {
    /// It holds: the phase is done, or had nothing to do.
    True,
    /// It does not: the phase failed.
    False,
    /// Not known: the phase runs, has not begun, or was not recorded.
    Unknown,
}

impl Status {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Status::True => "True",
            Status::False => "False",
            Status::Unknown => "Unknown",
        }
    }
}

/// One condition, free of any API's types.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// The type: the key of the list.
    #[serde(rename = "type")]
    pub type_: String,
    /// Whether it holds.
    pub status: Status,
    /// A CamelCase word; never empty.
    pub reason: String,
    /// For people; may be empty.
    pub message: String,
    /// When `status` last flipped.
    pub last_transition: Micros,
}

/// The reason of a phase that waits for its turn.
pub const NOT_BEGUN: &str = "NotBegun";
/// The reason of a phase that must have happened, but of which nobody wrote a record.
pub const NOT_RECORDED: &str = "NotRecorded";
/// The reason of a phase that is done, whose writer gave none.
pub const DONE: &str = "Done";
/// The condition type that sums up the whole start in `PodFlow`.
pub const SUMMARY: &str = "Succeeded";

/// The conditions for the Pod: `podway.dev/<Phase>` for each phase but `Ready`, which is core's
/// and decided from containers and readiness gates, not from records.
#[must_use]
pub fn for_pod(flow: &Flow) -> Vec<Condition> {
    Phase::ALL
        .into_iter()
        .filter(|&phase| phase != Phase::Ready)
        .map(|phase| of_phase(flow, phase, phase.condition_type()))
        .collect()
}

/// The conditions for the `PodFlow` object: bare phase names, and `Succeeded` in front, which folds
/// in every one of them.
#[must_use]
pub fn for_podflow(flow: &Flow) -> Vec<Condition> {
    let mut all: Vec<Condition> =
        Phase::ALL.into_iter().map(|phase| of_phase(flow, phase, phase.name().to_owned())).collect();
    all.insert(0, summary(flow));
    all
}

/// New conditions laid over those that are there: a type that `new` has is replaced, and keeps its
/// transition time unless the status flips; every other one is kept as it stands.
#[must_use]
pub fn merge(old: &[Condition], new: &[Condition]) -> Vec<Condition> {
    let mut merged: Vec<Condition> = old
        .iter()
        .map(|before| match new.iter().find(|now| now.type_ == before.type_) {
            None => before.clone(),
            Some(now) if now.status == before.status => {
                Condition { last_transition: before.last_transition, ..now.clone() }
            }
            Some(now) => now.clone(),
        })
        .collect();
    merged.extend(new.iter().filter(|now| old.iter().all(|before| before.type_ != now.type_)).cloned());
    merged
}

/// The condition of one phase, under the name `type_`.
fn of_phase(flow: &Flow, phase: Phase, type_: String) -> Condition {
    match flow.summary(phase) {
        Some(summary) => of_summary(&summary, type_),
        None => unrecorded(flow, phase, type_),
    }
}

fn of_summary(summary: &PhaseSummary, type_: String) -> Condition {
    let status = status_of(summary.outcome);
    let reason = match (&summary.reason, status) {
        (reason, _) if !reason.is_empty() => reason.clone(),
        (_, Status::True) => DONE.to_owned(),
        (_, Status::False) => "Failed".to_owned(),
        (_, Status::Unknown) => "Running".to_owned(),
    };
    Condition {
        type_,
        status,
        reason,
        message: summary.message.clone(),
        last_transition: summary.end.unwrap_or(summary.start),
    }
}

/// A phase without a record: its turn has not come, or a later one shows that it passed unseen.
fn unrecorded(flow: &Flow, phase: Phase, type_: String) -> Condition {
    let passed = flow.records.iter().any(|r| r.phase > phase && r.phase != Phase::StatusReported);
    let first = flow.records.iter().map(|r| r.start).min().unwrap_or_default();
    let (reason, message) = if passed {
        (NOT_RECORDED, "no writer recorded this phase")
    } else {
        (NOT_BEGUN, "waits for the phases before it")
    };
    Condition {
        type_,
        status: Status::Unknown,
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition: first,
    }
}

/// What an outcome says about "is it done".
#[must_use]
pub const fn status_of(outcome: Outcome) -> Status {
    match outcome {
        Outcome::Succeeded | Outcome::Skipped => Status::True,
        Outcome::Failed => Status::False,
        Outcome::Running => Status::Unknown,
    }
}

/// `Succeeded`: False with the first failed phase, True once Ready is done, else Unknown.
fn summary(flow: &Flow) -> Condition {
    let phases = flow.phases();
    let failed = phases.iter().find(|s| s.outcome == Outcome::Failed);
    let ready = phases.iter().find(|s| s.phase == Phase::Ready && s.outcome == Outcome::Succeeded);
    let (status, reason, message, at) = match (failed, ready) {
        (Some(f), _) => {
            (Status::False, format!("{}Failed", f.phase), f.message.clone(), f.end.unwrap_or(f.start))
        }
        (None, Some(r)) => (Status::True, "PodReady".to_owned(), String::new(), r.end.unwrap_or(r.start)),
        (None, None) => (
            Status::Unknown,
            "InProgress".to_owned(),
            String::new(),
            phases.iter().map(|s| s.start).min().unwrap_or_default(),
        ),
    };
    Condition { type_: SUMMARY.to_owned(), status, reason, message, last_transition: at }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Resolution, Writer};
    use std::collections::BTreeMap;

    fn record(phase: Phase, outcome: Outcome, reason: &str, start: i64, end: Option<i64>) -> crate::Record {
        crate::Record {
            phase,
            subject: None,
            writer: Writer::Agent,
            attempt: 1,
            start: Micros(start),
            end: end.map(Micros),
            queued_micros: 0,
            outcome,
            reason: reason.to_owned(),
            message: String::new(),
            resolution: Resolution::Micros,
            evidence: BTreeMap::new(),
        }
    }

    fn find<'a>(conditions: &'a [Condition], type_: &str) -> &'a Condition {
        conditions.iter().find(|c| c.type_ == type_).unwrap()
    }

    #[test]
    fn each_outcome_has_its_status_and_every_phase_is_present() {
        let flow = Flow {
            records: vec![
                record(Phase::Bound, Outcome::Succeeded, "Bound", 1, Some(5)),
                record(Phase::VolumesMounted, Outcome::Skipped, "NoVolumes", 6, Some(6)),
                record(Phase::NetworkConfigured, Outcome::Failed, "CniFailed", 7, Some(9)),
                record(Phase::ImagesPulled, Outcome::Running, "", 7, None),
            ],
            ..Flow::default()
        };
        let got = for_pod(&flow);
        assert_eq!(got.len(), 17);
        for (type_, status, reason, at) in [
            ("podway.dev/Bound", Status::True, "Bound", 5),
            ("podway.dev/VolumesMounted", Status::True, "NoVolumes", 6),
            ("podway.dev/NetworkConfigured", Status::False, "CniFailed", 9),
            ("podway.dev/ImagesPulled", Status::Unknown, "Running", 7),
            ("podway.dev/Requested", Status::Unknown, NOT_RECORDED, 1),
            ("podway.dev/ContainersStarted", Status::Unknown, NOT_BEGUN, 1),
        ] {
            let c = find(&got, type_);
            assert_eq!(
                (c.status, c.reason.as_str(), c.last_transition),
                (status, reason, Micros(at)),
                "{type_}"
            );
        }
        assert!(got.iter().all(|c| !c.reason.is_empty()));
        assert_eq!(for_podflow(&flow)[0].reason, "NetworkConfiguredFailed");
    }

    #[test]
    fn the_summary_follows_ready_and_any_failure() {
        let mut flow = Flow::default();
        assert_eq!(summary(&flow).status, Status::Unknown);
        flow.records.push(record(Phase::Ready, Outcome::Succeeded, "Ready", 3, Some(8)));
        assert_eq!((summary(&flow).status, summary(&flow).last_transition), (Status::True, Micros(8)));
        flow.records.push(record(Phase::StatusReported, Outcome::Failed, "Refused", 3, Some(9)));
        assert_eq!(summary(&flow).reason, "StatusReportedFailed");
    }

    #[test]
    fn a_transition_time_moves_only_when_the_status_flips_and_foreign_conditions_stay() {
        let c = |type_: &str, status, reason: &str, at| Condition {
            type_: type_.to_owned(),
            status,
            reason: reason.to_owned(),
            message: String::new(),
            last_transition: Micros(at),
        };
        let old = [
            c("a", Status::False, "Once", 1),
            c("foreign", Status::True, "X", 2),
            c("b", Status::Unknown, "Y", 3),
        ];
        let new =
            [c("b", Status::True, "Z", 9), c("a", Status::False, "Twice", 9), c("c", Status::True, "N", 9)];
        let expected = [
            c("a", Status::False, "Twice", 1),
            c("foreign", Status::True, "X", 2),
            c("b", Status::True, "Z", 9),
            c("c", Status::True, "N", 9),
        ];
        assert_eq!(merge(&old, &new), expected);
        assert_eq!(merge(&expected, &new), expected);
    }
}
