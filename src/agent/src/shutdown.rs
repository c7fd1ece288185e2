//! Graceful shutdown of the node (KEP-2000): systemd-logind waits with the shutdown of the machine until the pods
//! have ended, those of low priority first, as the kubelet has it (`pkg/kubelet/nodeshutdown`).
//!
//! watch → (shutdown begins) → the Node is not ready, no pod is taken, pods end → the lock is let go, the machine
//! goes down; or the shutdown is called off, and a lock is taken again. While nobody watches (logind restarts), it is
//! tried again each second, as the watch is all that this is about.

pub mod periods;
pub mod times;

use crate::node::Handle;
use crate::node::events::{Happening, Writer};
use crate::pod::actions::chain;
use crate::pod::core::Ending;
use crate::pods::Pods;
use crate::source::{PodSource as _, PodView};
use futures::StreamExt as _;
use periods::{Period, Periods};
use podway_systemd::logind::{Logind, LogindError};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use times::Times;

/// `dbusReconnectPeriod`.
const AGAIN: Duration = Duration::from_secs(1);
/// What pods that are ended are told.
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

/// The node's shutdown.
pub struct Shutdown {
    /// The pods.
    pub pods: Arc<Pods>,
    /// The Node, which is not ready then.
    pub node: Handle,
    /// Tells people of the node.
    pub events: Writer,
    /// Who has how long.
    pub periods: Periods,
    /// When it was, for the metrics.
    pub times: Times,
}

impl std::fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shutdown").field("periods", &self.periods).finish_non_exhaustive()
    }
}

impl Shutdown {
    /// Watches until the future is dropped.
    pub async fn run(mut self) {
        let mut told = None;
        loop {
            if let Err(error) = self.watch().await {
                let error = chain(&error);
                if told.as_ref() != Some(&error) {
                    tracing::error!(error, "a shutdown of the machine will not wait for the pods");
                }
                told = Some(error);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Watches until logind's connection ends.
    async fn watch(&mut self) -> Result<(), LogindError> {
        const WHO: (&str, &str) = ("kubelet", "Kubelet needs time to handle node shutdown");
        let logind = Logind::connect().await?;
        logind.allow(self.periods.total(), Path::new("/")).await?;
        let mut lock = Some(logind.inhibit(WHO.0, WHO.1).await?);
        let mut shutdowns = std::pin::pin!(logind.shutdowns().await?);
        tracing::info!(time = ?self.periods.total(), "a shutdown of the machine waits for the pods");
        while let Some(begins) = shutdowns.next().await {
            let what = if begins { "shutdown event" } else { "shutdown cancellation" };
            let note = format!("Shutdown manager detected {what}");
            tracing::warn!("{note}");
            self.events.write(vec![Happening { reason: "NodeShutdown", note, warning: false }]);
            self.node.shutting_down(begins);
            if begins {
                // A disk that hangs keeps no pod from its end.
                tokio::join!(self.times.begin(), end_pods(&self.pods, &self.periods));
                self.times.end().await;
                drop(lock.take());
            } else {
                lock = Some(logind.inhibit(WHO.0, WHO.1).await?);
            }
        }
        Ok(())
    }
}

/// Ends the pods, group after group; none is waited for longer than its group has.
pub(crate) async fn end_pods(pods: &Pods, periods: &Periods) {
    let active = pods.pods().into_iter().filter(crate::eviction::active).collect();
    for (period, group) in periods.group(active) {
        end_group(pods, period, &group).await;
    }
}

async fn end_group(pods: &Pods, period: Period, group: &[PodView]) {
    let mut views = Vec::new();
    for pod in group {
        let uid = pod.object.metadata.uid.clone().unwrap_or_default();
        let own = pod.object.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
        let own = own.map(|s| Duration::from_secs(u64::try_from(s).unwrap_or_default()));
        let ending = Ending {
            reason: "Terminated".to_owned(),
            message: MESSAGE.to_owned(),
            grace: own.map_or(period.time, |own| own.min(period.time)),
            disruption: Some(MESSAGE.to_owned()),
        };
        views.extend(pods.view(&uid));
        pods.end(&uid, ending);
    }
    let ended = async {
        for view in &mut views {
            // A worker that is gone has ended its pod.
            let _ = view.wait_for(|v| v.containers.iter().all(|c| !c.running)).await;
        }
    };
    if tokio::time::timeout(period.time, ended).await.is_err() {
        tracing::warn!(priority = period.priority, "not all pods have ended in their time");
    }
}
