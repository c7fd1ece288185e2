//! A term of office: from standing by to giving the lease back.

use super::elector::{Elector, identity};
use super::{Fence, LeaderElection, Role};
use crate::metrics::{Health, Metrics};
use crate::server::Probe;
use kube::Client;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// How long the end waits for the lease to be given back.
const RELEASE: Duration = Duration::from_secs(2);

/// The time in which this replica leads. Dropped without [`Term::end`], the lease runs out by itself.
pub struct Term {
    /// Asked before each decision and binding.
    pub fence: Fence,
    /// Cancelled once the lease is lost.
    pub lost: CancellationToken,
    office: Option<Office>,
}

struct Office {
    lease: String,
    metrics: Arc<Metrics>,
    /// Told to end the renewal.
    stop: CancellationToken,
    renewal: AbortOnDropHandle<Elector>,
}

impl Term {
    /// The term of a scheduler that is alone: without end.
    #[must_use]
    pub fn alone() -> Self {
        Term { fence: Fence::open(), lost: CancellationToken::new(), office: None }
    }

    /// Stands by until this one leads, answering probes meanwhile; `None` when told to end before.
    ///
    /// # Errors
    /// When the candidate has no identity.
    pub async fn begin(
        client: Client,
        (election, reporter): (&LeaderElection, &str),
        metrics: Arc<Metrics>,
        probed: &mut mpsc::Receiver<Probe>,
        shutdown: &CancellationToken,
    ) -> std::io::Result<Option<Self>> {
        let lease = election.resource_name.clone();
        let mut elector = Elector::new(client, election.clone(), identity()?, reporter);
        let fence = elector.fence();
        metrics.leads(&lease, false);
        let leader = Mutex::new(String::new());
        {
            let mut acquired = std::pin::pin!(elector.acquire(|who| {
                who.clone_into(&mut leader.lock().unwrap_or_else(PoisonError::into_inner));
            }));
            loop {
                tokio::select! {
                    () = &mut acquired => break,
                    () = shutdown.cancelled() => return Ok(None),
                    Some(probe) = probed.recv() => {
                        let who = leader.lock().unwrap_or_else(PoisonError::into_inner).clone();
                        // One that stands by knows nothing else; who asked may have gone.
                        let Probe::Health(answer) = probe else { continue };
                        let _ = answer.send(Health {
                            role: Role::Standby(who),
                            leads: true,
                            status_lane: true,
                            ..Health::default()
                        });
                    }
                }
            }
        }
        metrics.leads(&lease, true);
        let (lost, stop) = (CancellationToken::new(), CancellationToken::new());
        let (loses, stops) = (lost.clone(), stop.clone());
        let renewal = AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::select! {
                () = elector.renew() => loses.cancel(),
                () = stops.cancelled() => {}
            }
            elector
        }));
        Ok(Some(Term { fence, lost, office: Some(Office { lease, metrics, stop, renewal }) }))
    }

    /// What health says of it.
    #[must_use]
    pub fn role(&self) -> Role {
        if self.office.is_some() { Role::Leader } else { Role::Alone }
    }

    /// Gives the lease back. Nothing may be bound any more.
    pub async fn end(self) {
        let Some(Office { lease, metrics, stop, renewal }) = self.office else { return };
        metrics.leads(&lease, false);
        stop.cancel();
        let release = async {
            if let Ok(mut elector) = renewal.await {
                elector.release().await;
            }
        };
        if tokio::time::timeout(RELEASE, release).await.is_err() {
            tracing::warn!(lease, "the lease was not given back in time: it runs out by itself");
        }
    }
}
