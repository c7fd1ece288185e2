//! What wakes the workers: the API server's watch of this node's pods, and the runtime's stream of
//! container events. Both are begun again when they break, with a full listing first, so that nothing
//! that happened in between is missed. Nothing here polls a runtime that has events.

use crate::cri::{self, Cri};
use crate::pods::Pods;
use crate::statics::{self, mirror};
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
    let events = watcher(Api::<Pod>::all(client), config).default_backoff().modify(lean);
    let mut events = std::pin::pin!(events);
    let mut listed: Vec<Pod> = Vec::new();
    while let Some(event) = events.next().await {
        let seen = clock.now();
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(pod)) => listed.push(pod),
            Ok(watcher::Event::InitDone) => {
                let mut all = std::mem::take(&mut listed);
                let uids: HashSet<String> = all.iter().filter_map(|p| p.metadata.uid.clone()).collect();
                let shown = all.iter().filter(|p| mirror::shown(p).is_some());
                let mirrors: HashSet<statics::Name> = shown.map(statics::name).collect();
                all.sort_by_key(turn);
                all.into_iter().for_each(|pod| pods.apply(Arc::new(pod), seen, false));
                pods.listed(&uids, &mirrors).await;
            }
            Ok(watcher::Event::Apply(pod)) => pods.apply(Arc::new(pod), seen, true),
            Ok(watcher::Event::Delete(pod)) => pods.delete(&pod),
            Err(error) => {
                tracing::warn!(%error, "the watch of this node's pods broke off and is begun again")
            }
        }
    }
}

/// Without what says who wrote which field: nobody here reads it, and in memory it is larger than all the rest.
pub(crate) fn lean<K: kube::Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// In which order the pods of a listing are taken: those that run here have their room before one
/// that is new asks for it; else the oldest first.
fn turn(pod: &Pod) -> (bool, Option<jiff::Timestamp>) {
    let started = pod.status.as_ref().is_some_and(|s| s.start_time.is_some());
    (!started, pod.metadata.creation_timestamp.as_ref().map(|t| t.0))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_is_taken_before_who_is_new() {
        let pod = |name: &str, created: &str, started: Option<&str>| -> Pod {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": name, "creationTimestamp": created}, "status": {"startTime": started}}))
            .unwrap()
        };
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let mut all = [
            pod("new", early, None),
            pod("newer", late, None),
            pod("b", late, Some(late)),
            pod("a", early, Some(late)),
        ];
        all.sort_by_key(turn);
        let names: Vec<&str> = all.iter().filter_map(|p| p.metadata.name.as_deref()).collect();
        assert_eq!(names, ["a", "b", "new", "newer"]);
    }
}
