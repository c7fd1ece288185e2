//! The loop: one task owns cache and queue, fed by the watches and by ended bindings.
//!
//! It sleeps until something arrives or the next backoff ends; there is no tick. Nothing is
//! decided before both lists are complete, so that no node looks emptier than it is.

use crate::bind::{BindError, bind};
use crate::cache::Cache;
use crate::config::Config;
use crate::cycle::schedule_one;
use crate::explain::annotation;
use crate::framework::{ClusterEvent, Framework, Placement};
use crate::model::{NodeInfo, PodInfo};
use crate::plugins::default_framework;
use crate::queue::{Queue, QueuedPod};
use crate::status::{self, Notice};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use podway_flow::{Clock, Recorder, Writer};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// Why the scheduler ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A watch ended for good.
    #[error("the watch of {0} ended: start the scheduler again")]
    WatchEnded(&'static str),
}

enum Input {
    Node(Box<watcher::Event<Node>>),
    Pod(Box<watcher::Event<Pod>>),
    Bound(QueuedPod, String, Result<(), BindError>),
    Ended(&'static str),
}

struct Scheduler {
    config: Config,
    framework: Framework,
    cache: Cache,
    queue: Queue,
    clock: Clock,
    client: kube::Client,
    inputs: mpsc::UnboundedSender<Input>,
    notices: mpsc::UnboundedSender<Notice>,
    lanes: Arc<Semaphore>,
    listed_nodes: Option<HashSet<String>>,
    listed_pods: Option<HashSet<String>>,
    synced: (bool, bool),
}

/// Runs until `shutdown`.
///
/// # Errors
/// [`RunError`] when it cannot go on.
pub async fn run(client: kube::Client, config: Config, shutdown: CancellationToken) -> Result<(), RunError> {
    let (inputs, mut received) = mpsc::unbounded_channel();
    let (notices, noticed) = mpsc::unbounded_channel();
    let live = watcher::Config::default().fields("status.phase!=Succeeded,status.phase!=Failed");
    let tasks = [
        tokio::spawn(watch(
            Api::<Node>::all(client.clone()),
            watcher::Config::default(),
            "nodes",
            Input::Node,
            inputs.clone(),
        )),
        tokio::spawn(watch(Api::<Pod>::all(client.clone()), live, "pods", Input::Pod, inputs.clone())),
        tokio::spawn(status::lane(client.clone(), config.reporter().to_owned(), noticed)),
    ];
    let mut scheduler = Scheduler {
        queue: Queue::new(config.backoff),
        lanes: Arc::new(Semaphore::new(config.bind_lanes)),
        framework: default_framework(),
        cache: Cache::default(),
        clock: Clock::new(),
        config,
        client,
        inputs,
        notices,
        listed_nodes: None,
        listed_pods: None,
        synced: (false, false),
    };
    let result = scheduler.run(&mut received, &shutdown).await;
    for task in tasks {
        task.abort();
    }
    result
}

async fn watch<K>(
    api: Api<K>,
    config: watcher::Config,
    what: &'static str,
    wrap: fn(Box<watcher::Event<K>>) -> Input,
    out: mpsc::UnboundedSender<Input>,
) where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let mut stream = std::pin::pin!(watcher(api, config).default_backoff());
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                if out.send(wrap(Box::new(event))).is_err() {
                    return;
                }
            }
            Err(error) => tracing::warn!(%error, what, "the watch broke off and is begun again"),
        }
    }
    // The receiver gone means that the loop has ended; then nobody needs to know.
    let _ = out.send(Input::Ended(what));
}

impl Scheduler {
    async fn run(
        &mut self,
        received: &mut mpsc::UnboundedReceiver<Input>,
        shutdown: &CancellationToken,
    ) -> Result<(), RunError> {
        loop {
            while let Ok(input) = received.try_recv() {
                self.take(input)?;
            }
            if shutdown.is_cancelled() {
                return Ok(());
            }
            let now = self.clock.now();
            if self.synced == (true, true)
                && let Some(queued) = self.queue.pop(now)
            {
                self.schedule(queued);
                tokio::task::yield_now().await;
                continue;
            }
            let until = self.queue.next_expiry().filter(|_| self.synced == (true, true));
            let wait = until.map(|at| Duration::from_micros(at.since(now)));
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                Some(input) = received.recv() => self.take(input)?,
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
    }

    fn take(&mut self, input: Input) -> Result<(), RunError> {
        match input {
            Input::Node(event) => self.on_node(*event),
            Input::Pod(event) => self.on_pod(*event),
            Input::Bound(queued, node, result) => self.on_bound(queued, node, result),
            Input::Ended(what) => return Err(RunError::WatchEnded(what)),
        }
        Ok(())
    }

    fn on_node(&mut self, event: watcher::Event<Node>) {
        match event {
            watcher::Event::Init => self.listed_nodes = Some(HashSet::new()),
            watcher::Event::InitApply(node) => {
                if let (Some(seen), Some(name)) = (&mut self.listed_nodes, &node.metadata.name) {
                    seen.insert(name.clone());
                }
                self.set_node(&node);
            }
            watcher::Event::InitDone => {
                let seen = self.listed_nodes.take().unwrap_or_default();
                let gone: Vec<String> =
                    self.cache.node_names().filter(|n| !seen.contains(*n)).map(str::to_owned).collect();
                gone.iter().for_each(|name| self.cache.remove_node(name));
                self.synced.0 = true;
            }
            watcher::Event::Apply(node) => self.set_node(&node),
            watcher::Event::Delete(node) => {
                self.cache.remove_node(node.metadata.name.as_deref().unwrap_or_default());
            }
        }
    }

    fn set_node(&mut self, node: &Node) {
        let info = match NodeInfo::parse(node) {
            Ok(info) => Arc::new(info),
            Err(error) => {
                tracing::warn!(%error, node = node.metadata.name, "a node is left out");
                return self.cache.remove_node(node.metadata.name.as_deref().unwrap_or_default());
            }
        };
        let event = match self.cache.set_node(info.clone()) {
            None => ClusterEvent::NodeAdd(info),
            Some(old) if old == info => return,
            Some(old) => ClusterEvent::NodeUpdate(old, info),
        };
        self.queue.event(&self.framework, &event, self.clock.now());
    }

    fn on_pod(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Init => self.listed_pods = Some(HashSet::new()),
            watcher::Event::InitApply(pod) => {
                if let (Some(seen), Some(uid)) = (&mut self.listed_pods, &pod.metadata.uid) {
                    seen.insert(uid.clone());
                }
                self.set_pod(&pod);
            }
            watcher::Event::InitDone => {
                let seen = self.listed_pods.take().unwrap_or_default();
                let gone: Vec<String> = self
                    .cache
                    .uids()
                    .chain(self.queue.uids())
                    .filter(|u| !seen.contains(*u))
                    .map(str::to_owned)
                    .collect();
                gone.iter().for_each(|uid| self.remove_pod(uid));
                self.synced.1 = true;
            }
            watcher::Event::Apply(pod) => self.set_pod(&pod),
            watcher::Event::Delete(pod) => self.remove_pod(pod.metadata.uid.as_deref().unwrap_or_default()),
        }
    }

    fn set_pod(&mut self, pod: &Pod) {
        let info = match PodInfo::parse(pod) {
            Ok(info) => Arc::new(info),
            Err(error) => {
                tracing::warn!(%error, pod = pod.metadata.name, "a pod is left out");
                return;
            }
        };
        if !info.node_name.is_empty() {
            self.queue.remove(&info.uid);
            self.cache.confirm(info);
        } else if self.cache.is_placed(&info.uid) {
            // Assumed: its binding is under way and decides what comes next.
        } else if info.deleting {
            self.queue.remove(&info.uid);
        } else if self.config.owns(&info.scheduler_name) {
            self.queue.upsert(info, self.clock.now());
        }
    }

    fn remove_pod(&mut self, uid: &str) {
        self.queue.remove(uid);
        if let Some(pod) = self.cache.remove_pod(uid) {
            let event = ClusterEvent::AssignedPodDelete(pod);
            self.queue.event(&self.framework, &event, self.clock.now());
        }
    }

    fn schedule(&mut self, queued: QueuedPod) {
        let snapshot = self.cache.snapshot();
        let clock = self.clock;
        let decision = match schedule_one(&self.framework, &snapshot, &queued.pod, &|| clock.now()) {
            Ok(decision) => decision,
            Err(error) => {
                self.notify(Notice::Failed(queued.pod.clone(), "Unschedulable", error.message()));
                self.queue.unschedulable(queued, error.plugins(), clock.now());
                return;
            }
        };
        self.cache.assume(queued.pod.clone(), &decision.node);
        let (client, lanes, inputs) = (self.client.clone(), self.lanes.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let _permit = lanes.acquire_owned().await;
            let recorder = Recorder::new(Writer::Scheduler, clock);
            let document = annotation(&recorder, &queued, &decision, clock.now());
            let placement = Placement {
                pod: queued.pod.clone(),
                node: decision.node.clone(),
                annotation: Some(document),
            };
            let result = bind(&client, &placement).await;
            // The receiver gone means that the loop has ended.
            let _ = inputs.send(Input::Bound(queued, decision.node, result));
        });
    }

    fn on_bound(&mut self, queued: QueuedPod, node: String, result: Result<(), BindError>) {
        let Err(error) = result else {
            return self.notify(Notice::Scheduled(queued.pod, node));
        };
        if !self.cache.is_assumed(&queued.pod.uid) {
            // Deleted meanwhile, or bound by another and seen so on the watch.
            return;
        }
        let detail = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        self.remove_pod(&queued.pod.uid);
        self.notify(Notice::Failed(queued.pod.clone(), "SchedulerError", format!("{error}: {detail}")));
        self.queue.failed(queued, self.clock.now());
    }

    fn notify(&self, notice: Notice) {
        if self.notices.send(notice).is_err() {
            tracing::error!("the status lane has ended: conditions and events are no longer written");
        }
    }
}
