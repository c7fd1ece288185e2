//! The candidate: acquires the lease, renews it, gives it back.

use super::{Fence, JITTER, LeaderElection, Step, holder, released, step};
use futures::StreamExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, Resource as _};
use std::time::{Duration, Instant};

/// One candidate.
pub struct Elector {
    api: Api<Lease>,
    recorder: Recorder,
    election: LeaderElection,
    identity: String,
    /// The lease as last seen, and when it was first seen like that.
    seen: Option<(Lease, Instant)>,
    fence: Fence,
}

/// A candidate's identity: the machine's name and a number of its own, so that a second process there is
/// another one (upstream's `hostname_uuid`).
///
/// # Errors
/// When the kernel does not tell one of them.
pub fn identity() -> std::io::Result<String> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    let number = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(format!("{}_{}", host.trim(), number.trim()))
}

impl Elector {
    /// A candidate that holds nothing.
    #[must_use]
    pub fn new(client: Client, election: LeaderElection, identity: String, reporter: &str) -> Self {
        let reporter = Reporter { controller: reporter.to_owned(), instance: Some(identity.clone()) };
        Elector {
            api: Api::namespaced(client.clone(), &election.resource_namespace),
            recorder: Recorder::new(client, reporter),
            election,
            identity,
            seen: None,
            fence: Fence::shut(),
        }
    }

    /// What tells whether this one leads.
    #[must_use]
    pub fn fence(&self) -> Fence {
        self.fence.clone()
    }

    /// Waits until this one leads. Who does meanwhile is told to `leader`. A lease that is given back
    /// is seen by a watch; one that runs out, by trying each retry period.
    pub async fn acquire(&mut self, leader: impl Fn(&str)) {
        let only = format!("metadata.name={}", self.election.resource_name);
        let config = watcher::Config::default().fields(&only);
        let mut changes =
            std::pin::pin!(watcher(self.api.clone(), config).default_backoff().applied_objects());
        loop {
            match self.try_once().await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => tracing::warn!(
                    %error, lease = self.election.resource_name, namespace = self.election.resource_namespace,
                    "the lease was neither acquired nor seen held by another"
                ),
            }
            leader(self.seen.as_ref().map_or("", |(lease, _)| holder(lease)));
            let next = tokio::time::sleep(self.pause());
            let freed = async {
                while let Some(change) = changes.next().await {
                    if change.is_ok_and(|lease| holder(&lease).is_empty()) {
                        return;
                    }
                }
                // A watch that has ended leaves the tries.
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = next => {}
                () = freed => {}
            }
        }
        self.tell("became leader").await;
    }

    /// Renews until that fails for the renew deadline; it returns when the lease is lost.
    pub async fn renew(&mut self) {
        loop {
            tokio::time::sleep(self.election.retry_period).await;
            let deadline = tokio::time::sleep(self.election.renew_deadline);
            let renewed = async {
                loop {
                    match self.try_once().await {
                        Ok(true) => return true,
                        // Another one has it: there is nothing to try again.
                        Ok(false) => return false,
                        Err(error) => tracing::warn!(%error, "the lease was not renewed"),
                    }
                    tokio::time::sleep(self.election.retry_period).await;
                }
            };
            let held = tokio::select! {
                held = renewed => held,
                () = deadline => false,
            };
            if !held {
                self.fence.drop_now();
                return;
            }
        }
    }

    /// Gives the lease back, so that another need not wait for its end.
    pub async fn release(&mut self) {
        self.fence.drop_now();
        let Some((lease, _)) = self.seen.take().filter(|(lease, _)| holder(lease) == self.identity) else {
            return;
        };
        let free = released(&lease, Timestamp::now());
        match self.api.replace(&self.election.resource_name, &PostParams::default(), &free).await {
            Ok(_) => self.tell("stopped leading").await,
            Err(error) => tracing::warn!(%error, "the lease was not given back: it runs out by itself"),
        }
    }

    /// One try; true when the lease is ours now.
    async fn try_once(&mut self) -> Result<bool, kube::Error> {
        let name = self.election.resource_name.clone();
        let started = Instant::now();
        // As client-go does, a leader first writes on what it wrote last, and reads only if that fails.
        let known = self.seen.as_ref().map(|(lease, _)| lease.clone());
        if self.fence.holds()
            && let Some(lease) = known.filter(|lease| holder(lease) == self.identity)
            && let Step::Replace(next) = self.next(Some(&lease), false)
            && let Ok(written) = self.api.replace(&name, &PostParams::default(), &next).await
        {
            self.holds(written, started);
            return Ok(true);
        }
        let found = self.api.get_opt(&name).await?;
        let expired = found.as_ref().is_some_and(|lease| self.expired(lease));
        let written = match self.next(found.as_ref(), expired) {
            Step::Wait => return Ok(false),
            Step::Create(lease) => self.api.create(&PostParams::default(), &lease).await,
            Step::Replace(lease) => self.api.replace(&name, &PostParams::default(), &lease).await,
        };
        match written {
            Ok(lease) => {
                self.holds(lease, started);
                Ok(true)
            }
            // Another one was first; for a leader the next try finds out who.
            Err(kube::Error::Api(status)) if status.code == 409 && !self.fence.holds() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn next(&self, lease: Option<&Lease>, expired: bool) -> Step {
        step(lease, expired, &self.identity, &self.election, Timestamp::now())
    }

    fn holds(&mut self, lease: Lease, started: Instant) {
        self.seen = Some((lease, Instant::now()));
        self.fence.hold_until(started + self.election.held_for());
    }

    /// Takes note of the lease; true when it has not changed for its whole duration. What it says of the
    /// time is not believed: clocks differ.
    fn expired(&mut self, lease: &Lease) -> bool {
        match &self.seen {
            Some((before, since)) if before.spec == lease.spec => {
                let seconds = lease.spec.as_ref().and_then(|s| s.lease_duration_seconds).unwrap_or(0);
                since.elapsed() >= Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
            }
            _ => {
                self.seen = Some((lease.clone(), Instant::now()));
                false
            }
        }
    }

    /// The retry period and up to 1.2 times as much again, as upstream's `Jitter`, so that candidates do not try in step. The random part
    /// comes from the identity and the clock; nothing hangs on its quality.
    fn pause(&self) -> Duration {
        use std::hash::{BuildHasher as _, RandomState};
        let share = RandomState::new().hash_one(&self.identity) % 1000;
        let part = f64::from(u32::try_from(share).unwrap_or(0)) / 1000.0;
        self.election.retry_period.mul_f64(1.0 + part * JITTER)
    }

    /// Upstream's event on the lease.
    async fn tell(&self, what: &str) {
        let identity = &self.identity;
        tracing::info!(identity, lease = self.election.resource_name, "{what}");
        let Some((lease, _)) = &self.seen else { return };
        let event = Event {
            type_: EventType::Normal,
            reason: "LeaderElection".to_owned(),
            note: Some(format!("{identity} {what}")),
            action: "LeaderElection".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &lease.object_ref(&())).await {
            tracing::warn!(%error, "the event of the election was not written");
        }
    }
}
