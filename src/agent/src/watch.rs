//! What wakes the workers: the API server's watch of this node's pods, and the runtime's stream of
//! container events. Both are begun again when they break, with a full listing first, so that nothing
//! that happened in between is missed. Nothing here polls a runtime that has events.

use crate::cri::{self, Cri};
use crate::pods::Pods;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use podway_flow::Clock;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;

/// The delay before a broken event stream is opened again: first and longest.
const REOPEN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How often a runtime without an event stream is asked (the kubelet's relist period).
const RELIST: Duration = Duration::from_secs(1);

/// Watches the pods bound to `node` until the future is dropped.
pub async fn pods(client: Client, node: &str, pods: Arc<Pods>, clock: Clock) {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let mut events = std::pin::pin!(watcher(Api::<Pod>::all(client), config).default_backoff());
    let mut listed: HashSet<String> = HashSet::new();
    while let Some(event) = events.next().await {
        let seen = clock.now();
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(pod)) => {
                listed.extend(pod.metadata.uid.clone());
                pods.apply(Arc::new(pod), seen, false);
            }
            Ok(watcher::Event::InitDone) => pods.listed(&listed).await,
            Ok(watcher::Event::Apply(pod)) => pods.apply(Arc::new(pod), seen, true),
            Ok(watcher::Event::Delete(pod)) => pods.delete(pod.metadata.uid.as_deref().unwrap_or_default()),
            Err(error) => {
                tracing::warn!(%error, "the watch of this node's pods broke off and is begun again")
            }
        }
    }
}

/// Follows the runtime's events until the future is dropped.
pub async fn runtime(cri: Cri, pods: Arc<Pods>) {
    let mut delay = REOPEN.0;
    loop {
        match cri.events().await {
            Ok(mut stream) => {
                // What happened before the stream stood is listed.
                pods.resync();
                loop {
                    match stream.message().await {
                        Ok(Some(event)) => {
                            delay = REOPEN.0;
                            let meta = event.pod_sandbox_status.as_ref().and_then(|s| s.metadata.as_ref());
                            match (cri::event(&event), meta) {
                                (Some(told), _) => pods.told(told),
                                (None, Some(meta)) => pods.changed(&meta.uid),
                                (None, None) => pods.resync(),
                            }
                        }
                        Ok(None) => break,
                        Err(status) => {
                            tracing::warn!(%status, "the runtime's event stream broke off and is opened again");
                            break;
                        }
                    }
                }
            }
            Err(error) if error.code == Code::Unimplemented => {
                tracing::warn!("the runtime has no event stream: it is asked every second instead");
                loop {
                    tokio::time::sleep(RELIST).await;
                    pods.resync();
                }
            }
            Err(error) => tracing::warn!(%error, "the runtime's event stream does not open"),
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(REOPEN.1);
    }
}
