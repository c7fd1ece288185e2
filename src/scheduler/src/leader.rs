//! Leader election by Lease: of several replicas one schedules, the others stand by.
//!
//! The rules are client-go's (`tools/leaderelection/leaderelection.go`): a lease that was not renewed for
//! its whole duration, by our own clock since we saw it last change, may be taken; the holder renews it
//! each retry period and gives up once it could not for the renew deadline. [`step`] decides, purely;
//! [`elector`] reads and writes; [`Fence`] is what a leader asks before it binds.
//!
//! A replica that stands by watches nothing but the lease. Whoever comes to lead lists nodes and pods
//! anew, from a quorum, and binds nothing before both lists are complete: what its predecessor bound is
//! on them.

pub mod elector;
pub mod term;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How the leader is elected; upstream's fields, names and defaults, but for the lease's own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderElection {
    /// The Lease's namespace.
    pub resource_namespace: String,
    /// The Lease's name.
    pub resource_name: String,
    /// How long others wait, since they last saw the lease renewed, before they take it.
    pub lease_duration: Duration,
    /// How long the leader tries to renew before it gives up.
    pub renew_deadline: Duration,
    /// How long it is from one try to the next.
    pub retry_period: Duration,
}

impl Default for LeaderElection {
    fn default() -> Self {
        LeaderElection {
            resource_namespace: "podway-system".to_owned(),
            resource_name: "podway-scheduler".to_owned(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// Times that cannot work (client-go's `NewLeaderElector` has the same rules).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElectionError {
    /// The leader would give up after others have taken over.
    #[error("leaseDuration must be greater than renewDeadline")]
    Lease,
    /// There would be no second try.
    #[error("renewDeadline must be greater than retryPeriod * 1.2")]
    Deadline,
    /// Nothing would be waited for.
    #[error("retryPeriod must be greater than zero")]
    Retry,
    /// A lease counts whole seconds.
    #[error("leaseDuration must be at least one second")]
    Short,
}

impl LeaderElection {
    /// Checks the times against each other.
    ///
    /// # Errors
    /// [`ElectionError`] says which rule is broken.
    pub fn check(&self) -> Result<(), ElectionError> {
        if self.lease_duration <= self.renew_deadline {
            return Err(ElectionError::Lease);
        }
        if self.retry_period.is_zero() {
            return Err(ElectionError::Retry);
        }
        if self.renew_deadline <= self.retry_period.mul_f64(JITTER) {
            return Err(ElectionError::Deadline);
        }
        if self.lease_duration < Duration::from_secs(1) {
            return Err(ElectionError::Short);
        }
        Ok(())
    }

    /// How long after the start of a renewal that went through the holder may still act: the next
    /// renewal begins a retry period later and is given up at the deadline. It is less than what others
    /// wait, who count from when they saw that renewal.
    fn held_for(&self) -> Duration {
        (self.retry_period + self.renew_deadline).min(self.lease_duration)
    }
}

/// Upstream's `JitterFactor`.
const JITTER: f64 = 1.2;

/// Whether a leader still leads. It asks before each decision and each binding, so that a process that
/// was stopped and comes back after its time does nothing more.
#[derive(Clone, Debug)]
pub struct Fence(Option<Arc<Held>>);

#[derive(Debug)]
struct Held {
    since: Instant,
    /// Milliseconds after `since`.
    until: AtomicU64,
}

impl Fence {
    /// For a scheduler that is alone: it always leads.
    #[must_use]
    pub fn open() -> Self {
        Fence(None)
    }

    /// One that holds nothing yet.
    fn shut() -> Self {
        Fence(Some(Arc::new(Held { since: Instant::now(), until: AtomicU64::new(0) })))
    }

    /// Leads until `end`.
    fn hold_until(&self, end: Instant) {
        if let Some(held) = &self.0 {
            let millis = end.saturating_duration_since(held.since).as_millis();
            held.until.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Release);
        }
    }

    /// Leads no more.
    fn drop_now(&self) {
        if let Some(held) = &self.0 {
            held.until.store(0, Ordering::Release);
        }
    }

    /// True while the lease is held.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.0.as_ref().is_none_or(|held| {
            held.since.elapsed().as_millis() < u128::from(held.until.load(Ordering::Acquire))
        })
    }
}

/// Who leads, as a replica sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// There is no election.
    #[default]
    Alone,
    /// This one.
    Leader,
    /// Another one, by its identity; empty while it is not known.
    Standby(String),
}

/// What a candidate is to do next.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// There is no lease: make it.
    Create(Box<Lease>),
    /// Take or renew it.
    Replace(Box<Lease>),
    /// Another one holds it.
    Wait,
}

/// client-go's `tryAcquireOrRenew` without its reading and writing. `expired`: the lease did not change
/// for as long as it says, by our clock.
fn step(seen: Option<&Lease>, expired: bool, me: &str, election: &LeaderElection, now: Timestamp) -> Step {
    let seconds = i32::try_from(election.lease_duration.as_secs()).unwrap_or(i32::MAX);
    let mut spec = LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: Some(seconds),
        acquire_time: Some(MicroTime(now)),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(0),
        ..LeaseSpec::default()
    };
    let Some(lease) = seen else {
        let metadata = ObjectMeta {
            name: Some(election.resource_name.clone()),
            namespace: Some(election.resource_namespace.clone()),
            ..ObjectMeta::default()
        };
        return Step::Create(Box::new(Lease { metadata, spec: Some(spec) }));
    };
    let holder = holder(lease);
    if !holder.is_empty() && holder != me && !expired {
        return Step::Wait;
    }
    let before = lease.spec.clone().unwrap_or_default();
    let transitions = before.lease_transitions.unwrap_or(0);
    if holder == me {
        spec.acquire_time = before.acquire_time;
        spec.lease_transitions = Some(transitions);
    } else {
        spec.lease_transitions = Some(transitions.saturating_add(1));
    }
    Step::Replace(Box::new(Lease { metadata: lease.metadata.clone(), spec: Some(spec) }))
}

/// The lease given back: nobody holds it, and nobody waits for it (client-go's `release`).
fn released(lease: &Lease, now: Timestamp) -> Lease {
    let transitions = lease.spec.as_ref().and_then(|s| s.lease_transitions);
    let spec = LeaseSpec {
        holder_identity: Some(String::new()),
        lease_duration_seconds: Some(1),
        acquire_time: Some(MicroTime(now)),
        renew_time: Some(MicroTime(now)),
        lease_transitions: transitions,
        ..LeaseSpec::default()
    };
    Lease { metadata: lease.metadata.clone(), spec: Some(spec) }
}

/// The holder's identity; empty for nobody.
fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn replaced(step: Step) -> LeaseSpec {
        match step {
            Step::Replace(lease) => lease.spec.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_lease_goes_from_hand_to_hand_as_client_go_does_it() {
        let election = LeaderElection::default();
        let Step::Create(made) = step(None, false, "a", &election, at(10)) else { panic!("no lease") };
        let spec = made.spec.clone().unwrap();
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_duration_seconds), (Some("a"), Some(15)));
        assert_eq!(
            (made.metadata.name.as_deref(), spec.lease_transitions),
            (Some("podway-scheduler"), Some(0))
        );

        let renewed = replaced(step(Some(&made), false, "a", &election, at(12)));
        assert_eq!(
            (renewed.acquire_time, renewed.renew_time),
            (Some(MicroTime(at(10))), Some(MicroTime(at(12))))
        );

        assert_eq!(step(Some(&made), false, "b", &election, at(20)), Step::Wait);
        let taken = replaced(step(Some(&made), true, "b", &election, at(26)));
        assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("b"), Some(1)));
        assert_eq!(taken.acquire_time, Some(MicroTime(at(26))));

        let free = released(&Lease { spec: Some(taken), ..*made }, at(30));
        assert_eq!((holder(&free), free.spec.as_ref().unwrap().lease_duration_seconds), ("", Some(1)));
        // Nobody waits for one that was given back.
        let next = replaced(step(Some(&free), false, "c", &election, at(30)));
        assert_eq!((next.holder_identity.as_deref(), next.lease_transitions), (Some("c"), Some(2)));
    }

    #[test]
    fn times_that_cannot_work_are_refused() {
        let with = |lease, renew, retry| LeaderElection {
            lease_duration: Duration::from_secs(lease),
            renew_deadline: Duration::from_secs(renew),
            retry_period: Duration::from_secs(retry),
            ..LeaderElection::default()
        };
        assert_eq!(LeaderElection::default().check(), Ok(()));
        assert_eq!(with(10, 10, 2).check(), Err(ElectionError::Lease));
        assert_eq!(with(15, 10, 9).check(), Err(ElectionError::Deadline));
        assert_eq!(with(15, 10, 0).check(), Err(ElectionError::Retry));
        // Others wait longer than the holder acts.
        assert!(LeaderElection::default().held_for() < LeaderElection::default().lease_duration);
    }

    #[test]
    fn a_fence_holds_as_long_as_it_was_told() {
        assert!(Fence::open().holds());
        let fence = Fence::shut();
        assert!(!fence.holds());
        fence.hold_until(Instant::now() + Duration::from_secs(3600));
        assert!(fence.clone().holds());
        fence.drop_now();
        assert!(!fence.holds());
        // As after a process was stopped for longer than its lease.
        fence.hold_until(Instant::now());
        assert!(!fence.holds());
    }
}
