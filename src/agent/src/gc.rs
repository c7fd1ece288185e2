//! What is cleared away on a node beside its pods' ends: logs that grow, containers that are dead,
//! images that nobody uses. None of it is on a pod's way: each is a task of its own that looks now
//! and then, as often as the kubelet does.

pub mod collect;
pub mod logs;

pub use collect::Collector;

use crate::cri::Cri;
use crate::source::PodSource;
use std::sync::Arc;
use std::time::Duration;

/// How often logs are looked at (`containerLogMonitorInterval`).
const LOGS_EVERY: Duration = Duration::from_secs(10);

/// How often dead containers are looked for (`ContainerGCPeriod`).
const CONTAINERS_EVERY: Duration = Duration::from_secs(60);
/// How often images are (`ImageGCPeriod`).
const IMAGES_EVERY: Duration = Duration::from_secs(300);

/// Removes dead containers until the future is dropped.
pub async fn containers(collector: Arc<Collector>) {
    loop {
        tokio::time::sleep(CONTAINERS_EVERY).await;
        match collector.dead_containers(false).await {
            Ok(0) => {}
            Ok(n) => tracing::info!(n, "dead containers were removed"),
            Err(error) => tracing::warn!(%error, "dead containers cannot be looked for"),
        }
    }
}

/// Removes images until the future is dropped.
pub async fn images(collector: Arc<Collector>) {
    loop {
        if let Err(error) = collector.images().await {
            tracing::warn!(%error, "images cannot be cleared away");
        }
        tokio::time::sleep(IMAGES_EVERY).await;
    }
}

/// Rotates the logs of the running containers until the future is dropped.
pub async fn rotate_logs(cri: Cri, pods: Arc<dyn PodSource>, policy: logs::Policy) {
    loop {
        tokio::time::sleep(LOGS_EVERY).await;
        let running = pods.pods().into_iter().flat_map(|view| view.containers).filter(|c| c.running);
        for container in running {
            let reopen = async || cri.reopen_log(&container.id).await;
            let now = jiff::Zoned::now();
            match logs::rotate(&container.id, &container.log_path, policy, now, reopen).await {
                Ok(true) => {
                    tracing::info!(container = container.id, log = %container.log_path.display(), "a log was rotated")
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(container = container.id, %error, cause = ?std::error::Error::source(&error), "a log was not rotated")
                }
            }
        }
    }
}
