//! The loop: one task owns cache and queue, fed by the watches and by ended bindings.
//!
//! It sleeps until something arrives or the next backoff ends; there is no tick. Nothing is
//! decided before both lists are complete, so that no node looks emptier than it is.

use crate::binding::{self, Binder, Recall, Unbound};
use crate::cache::Cache;
use crate::clients::Clients;
use crate::config::Config;
use crate::config::profile::ProfileError;
use crate::config::profiles::Profiles;
use crate::cycle::{CycleError, Decision, Nomination, Trace, schedule_one};
use crate::debug::{self, Question, SocketError};
use crate::evict::{Eviction, evict};
use crate::explain::ring::{Outcome as Came, Ring};
use crate::explain::{annotation_of, records};
use crate::framework::{Candidate, ClusterEvent, Framework, Placement, Preemption};
use crate::leader::term::Term;
use crate::metrics::{AttemptResult, Health, Metrics};
use crate::model::{
    CsiDriver, CsiNode, DisruptionBudget, Meta, NodeInfo, PersistentVolume, PersistentVolumeClaim, PodInfo,
    ReplicaSet, ReplicationController, Service, StatefulSet, StorageCapacity, StorageClass, VolumeAttachment,
};
use crate::objects::{Kept, Kind, Lists, Step};
use crate::plugins::volume_binding::{Assumed, VolumeBinder, VolumePlan};
use crate::plugins::{PluginArgs, default_binder::DefaultBinder, registry};
use crate::queue::{News, Queue, QueuedPod};
use crate::server::{self, Probe, ServeError};
use crate::shadow::{Shadow, Verdict as Compared};
use crate::status::{self, Notice, Verdict};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::Api;
use kube::api::ListParams;
use kube::runtime::{WatchStreamExt, watcher};
use podway_api::SchedulerProfile;
use podway_api::reasons::{SCHEDULER_ERROR, UNSCHEDULABLE};
use podway_flow::{Clock, Micros, Outcome, Recorder, Writer};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Why the scheduler ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A watch ended for good.
    #[error("the watch of {0} ended: start the scheduler again")]
    WatchEnded(&'static str),
    /// Health and metrics cannot be served.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Nor the debug socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Another replica leads, or may: what this one knows is no longer to be acted on.
    #[error("the lease of the leader is lost: start the scheduler again")]
    LeaseLost,
    /// A profile of the configuration is not one.
    #[error("the profile {name:?} of the configuration is not valid")]
    Profile {
        /// Whose.
        name: String,
        /// What is wrong.
        #[source]
        source: ProfileError,
    },
    /// The kernel does not tell who we are.
    #[error("this candidate has no identity")]
    Identity(#[source] std::io::Error),
}

enum Input {
    Node(Box<watcher::Event<Node>>),
    Pod(Box<watcher::Event<Pod>>),
    Namespace(Box<watcher::Event<Namespace>>),
    Object(Kind, Step),
    Evicted(String, bool),
    Profile(Box<watcher::Event<SchedulerProfile>>),
    /// The cluster has no such objects.
    NoProfiles,
    Bound(Box<Bound>),
    Ended(&'static str),
}

/// Which lists are complete.
#[derive(Clone, Copy, Debug, Default)]
struct Synced {
    nodes: bool,
    pods: bool,
    namespaces: bool,
    profiles: bool,
}

impl Synced {
    fn all(self) -> bool {
        self.nodes && self.pods && self.namespaces && self.profiles
    }
}

/// A refusal that holds for every pod of a template, while the cluster is what it was.
struct Unfit {
    generation: u64,
    pod: Arc<PodInfo>,
    message: String,
    plugins: BTreeSet<&'static str>,
    nomination: Nomination,
}

impl Unfit {
    fn holds(&self, pod: &PodInfo, generation: u64) -> bool {
        self.generation == generation && pod.nominated.is_empty() && self.pod.same_template(pod)
    }
}

/// A binding cycle that has ended.
struct Bound {
    queued: QueuedPod,
    placement: Placement,
    /// The plugins that placed it.
    framework: Arc<Framework>,
    /// When the attempt began.
    started: Micros,
    result: Result<(), Unbound>,
}

struct Scheduler {
    term: Term,
    profiles: Profiles,
    ring: Ring,
    /// Set: nothing is bound nor written, only compared.
    shadow: Option<Shadow>,
    /// Pods without a node that are another scheduler's, until a profile of their name comes.
    strangers: HashMap<String, Arc<PodInfo>>,
    listed_profiles: Option<HashSet<String>>,
    cache: Cache,
    queue: Queue,
    binder: Binder,
    /// The pods whose binding is under way, as last seen on the watch.
    binding: HashMap<String, (Arc<PodInfo>, Arc<Recall>)>,
    /// What their claims are taken to have.
    assumed: HashMap<String, Assumed>,
    /// Where victims are evicted.
    evictor: kube::Client,
    lists: Lists,
    /// Why the last pod fits nowhere: another of its template does not either, as long as nothing changes.
    unfit: Option<Unfit>,
    cycles: JoinSet<()>,
    inputs: mpsc::UnboundedSender<Input>,
    notices: mpsc::UnboundedSender<Notice>,
    listed_nodes: Option<HashSet<String>>,
    listed_pods: Option<HashSet<String>>,
    listed_namespaces: Option<HashSet<String>>,
    synced: Synced,
}

/// Runs the profiles of the configuration until `shutdown`. Bindings that are under way then are written to
/// their end.
///
/// # Errors
/// [`RunError`] when it cannot go on.
pub async fn run(
    clients: impl Into<Clients>,
    config: Config,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    run_with(|args| Framework::of(registry(args)), clients, config, shutdown).await
}

/// Runs with plugins of the caller's: `all` gives them, in the default order. Those that are no plugin of
/// upstream's run in each profile. Without a Bind plugin among them there is the default one.
///
/// # Errors
/// [`RunError`] when it cannot go on.
pub async fn run_with(
    all: impl Fn(&PluginArgs) -> Framework + Send + Sync + 'static,
    clients: impl Into<Clients>,
    config: Config,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let clients = clients.into();
    let metrics = Arc::new(Metrics::new());
    let (bind, counts) = (clients.bind.clone(), metrics.clone());
    let complete = move |args: &PluginArgs| {
        let mut framework = all(args);
        if framework.pre_bind.is_empty() {
            let binder = VolumeBinder::new(bind.clone(), args.volumes.timeout);
            framework.pre_bind.push(Arc::new(binder));
        }
        if framework.bind.is_empty() {
            framework.bind.push(Arc::new(DefaultBinder::new(bind.clone(), counts.clone())));
        }
        framework
    };
    let profiles = Profiles::new(&config.profiles, Box::new(complete))
        .map_err(|(name, source)| RunError::Profile { name, source })?;
    let (inputs, mut received) = mpsc::unbounded_channel();
    let (notices, noticed) = mpsc::unbounded_channel();
    // One question at a time is enough for a health check and a scrape.
    let (probes, mut probed) = mpsc::channel(4);
    // What is spawned here ends with this function, also when that is dropped.
    let mut tasks = JoinSet::new();
    if let Some(address) = config.serve {
        let listener = server::listen(address).await?;
        tasks.spawn(server::serve(listener, metrics.clone(), probes.clone()));
    }
    if let Some(path) = &config.debug_socket {
        tasks.spawn(debug::serve(debug::listen(path)?, probes.clone()));
    }
    let term = match &config.leader_election {
        // A shadow does nothing that two could do twice.
        _ if config.shadow => Term::alone(),
        None => Term::alone(),
        Some(election) => {
            let whose = (election, config.reporter());
            let begun = Term::begin(clients.lease, whose, metrics.clone(), &mut probed, &shutdown).await;
            let Some(term) = begun.map_err(RunError::Identity)? else { return Ok(()) };
            term
        }
    };
    // The lists begin with the term, so that what a predecessor bound is on them.
    let live = watcher::Config::default().fields("status.phase!=Succeeded,status.phase!=Failed");
    tasks.spawn(watch(
        Api::<Node>::all(clients.watch.clone()),
        watcher::Config::default(),
        "nodes",
        Input::Node,
        inputs.clone(),
    ));
    tasks.spawn(watch(
        Api::<Namespace>::all(clients.watch.clone()),
        watcher::Config::default(),
        "namespaces",
        Input::Namespace,
        inputs.clone(),
    ));
    tasks.spawn(watch(Api::<Pod>::all(clients.watch.clone()), live, "pods", Input::Pod, inputs.clone()));
    macro_rules! kinds {
        ($($kind:ty),+) => { $(tasks.spawn(watch_objects::<$kind>(clients.watch.clone(), inputs.clone()));)+ };
    }
    kinds!(DisruptionBudget, PersistentVolume, PersistentVolumeClaim, StorageClass);
    kinds!(CsiNode, CsiDriver, StorageCapacity, VolumeAttachment);
    kinds!(Service, ReplicationController, ReplicaSet, StatefulSet);
    tasks.spawn(watch_profiles(clients.watch.clone(), inputs.clone()));
    let evictor = clients.status.clone();
    let lane = tokio::spawn(status::lane(clients.status, noticed));
    let binder = Binder {
        framework: Arc::default(),
        metrics,
        lanes: Arc::new(Semaphore::new(config.bind_lanes)),
        clock: Clock::new(),
        fence: term.fence.clone(),
    };
    let mut scheduler = Scheduler {
        queue: Queue::new(config.backoff),
        cache: Cache::default(),
        term,
        profiles,
        ring: Ring::default(),
        shadow: config.shadow.then(Shadow::default),
        strangers: HashMap::new(),
        listed_profiles: None,
        binder,
        binding: HashMap::new(),
        assumed: HashMap::new(),
        evictor,
        lists: Lists::default(),
        unfit: None,
        cycles: JoinSet::new(),
        inputs,
        notices,
        listed_nodes: None,
        listed_pods: None,
        listed_namespaces: None,
        synced: Synced::default(),
    };
    let result = scheduler.run(&mut received, &mut probed, &shutdown).await;
    if matches!(result, Err(RunError::LeaseLost)) {
        // What is under way must not be written any more.
        scheduler.cycles.abort_all();
    }
    scheduler.finish(&mut received).await;
    let term = std::mem::replace(&mut scheduler.term, Term::alone());
    drop(scheduler);
    term.end().await;
    // The last events are written; a server that does not answer is not waited for.
    if tokio::time::timeout(LAST_WRITES, lane).await.is_err() {
        tracing::warn!("some conditions and events were not written: the API server does not answer");
    }
    result
}

/// How long a shutdown waits for what is being written.
const LAST_WRITES: Duration = Duration::from_secs(5);

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

/// Follows a kind that is kept whole.
async fn watch_objects<T: Kept>(client: kube::Client, out: mpsc::UnboundedSender<Input>) {
    let what = T::KIND.name();
    let api: Api<T::Api> = Api::all(client);
    let mut stream = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    let read = |api: T::Api| {
        let meta = Meta::of(&api);
        let key = meta.key();
        let object = T::parse(meta, api);
        if object.is_none() {
            tracing::warn!(what, key, "an object is left out: it cannot be read");
        }
        (key, object.map(|o| T::wrap(Arc::new(o))))
    };
    while let Some(event) = stream.next().await {
        let step = match event {
            Ok(watcher::Event::Init) => Step::Begin,
            Ok(watcher::Event::InitApply(api)) => {
                let (key, object) = read(api);
                Step::Listed(key, object)
            }
            Ok(watcher::Event::InitDone) => Step::Done,
            Ok(watcher::Event::Apply(api)) => {
                let (key, object) = read(api);
                Step::Set(key, object)
            }
            Ok(watcher::Event::Delete(api)) => Step::Gone(Meta::of(&api).key()),
            Err(error) => {
                tracing::warn!(%error, what, "the watch broke off and is begun again");
                continue;
            }
        };
        if out.send(Input::Object(T::KIND, step)).is_err() {
            return;
        }
    }
    // The receiver gone means that the loop has ended; then nobody needs to know.
    let _ = out.send(Input::Ended(what));
}

/// Watches profiles if the cluster has such objects and we may see them; it is asked once.
async fn watch_profiles(client: kube::Client, out: mpsc::UnboundedSender<Input>) {
    let api = Api::<SchedulerProfile>::all(client);
    loop {
        match api.list(&ListParams::default().limit(1)).await {
            Ok(_) => break,
            Err(kube::Error::Api(status)) if [403, 404].contains(&status.code) => {
                tracing::info!(
                    reason = status.message,
                    "there are no live profiles: those of the configuration hold"
                );
                // The receiver gone means that the loop has ended.
                let _ = out.send(Input::NoProfiles);
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "the profiles were not listed; they are asked for again");
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }
    watch(api, watcher::Config::default(), "schedulerprofiles", Input::Profile, out).await;
}

/// How long it is until an API server that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Scheduler {
    /// Every list is complete: no node looks emptier than it is.
    fn synced(&self) -> bool {
        self.synced.all() && self.lists.complete()
    }

    async fn run(
        &mut self,
        received: &mut mpsc::UnboundedReceiver<Input>,
        probed: &mut mpsc::Receiver<Probe>,
        shutdown: &CancellationToken,
    ) -> Result<(), RunError> {
        loop {
            while let Ok(input) = received.try_recv() {
                self.take(input)?;
            }
            while let Ok(probe) = probed.try_recv() {
                self.answer(probe);
            }
            while self.cycles.try_join_next().is_some() {}
            if shutdown.is_cancelled() {
                return Ok(());
            }
            if !self.term.fence.holds() {
                return Err(RunError::LeaseLost);
            }
            let now = self.binder.clock.now();
            if self.synced()
                && let Some(queued) = self.queue.pop(now)
            {
                self.schedule(queued);
                tokio::task::yield_now().await;
                continue;
            }
            self.binder.metrics.incoming(self.queue.take_incoming());
            let until = self.queue.next_expiry().filter(|_| self.synced());
            let wait = until.map(|at| Duration::from_micros(at.since(now)));
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = self.term.lost.cancelled() => return Err(RunError::LeaseLost),
                Some(input) = received.recv() => self.take(input)?,
                Some(probe) = probed.recv() => self.answer(probe),
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
    }

    /// Lets bindings that are being written come to their end: what they did must be told.
    async fn finish(&mut self, received: &mut mpsc::UnboundedReceiver<Input>) {
        let all = async { while self.cycles.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_WRITES, all).await.is_err() {
            tracing::warn!("a binding was not answered before the end: it may stand or not");
        }
        while let Ok(input) = received.try_recv() {
            if let Input::Bound(bound) = input {
                self.on_bound(*bound);
            }
        }
    }

    fn answer(&mut self, probe: Probe) {
        let answer = match probe {
            Probe::Health(answer) => answer,
            Probe::Question(question) => return self.tell(question),
        };
        self.binder.metrics.incoming(self.queue.take_incoming());
        let health = Health {
            role: self.term.role(),
            leads: self.term.fence.holds(),
            nodes_synced: self.synced.nodes,
            pods_synced: self.synced.pods && self.synced.namespaces && self.lists.complete(),
            status_lane: !self.notices.is_closed(),
            lengths: self.queue.lengths(),
            sizes: self.cache.sizes(),
            refused: self.queue.refused(),
        };
        // Who asked may have gone.
        let _ = answer.send(health);
    }

    /// What only the debug socket asks. Who asked may have gone.
    fn tell(&mut self, question: Question) {
        match question {
            Question::Decisions(of, answer) => drop(answer.send(self.ring.of(of.as_deref()))),
            Question::Queue(answer) => drop(answer.send(self.queue.waiting())),
            Question::Snapshot(answer) => drop(answer.send(self.cache.snapshot())),
            Question::Shadow(answer) => {
                let all = self.shadow.as_ref().map(Shadow::disagreements).unwrap_or_default();
                drop(answer.send(all));
            }
        }
    }

    /// Another scheduler has bound a pod of a profile's: would this one have done the same?
    fn compare(&mut self, pod: &PodInfo) {
        let Some(shadow) = &mut self.shadow else { return };
        let Some(profile) = self.profiles.of(&pod.scheduler_name) else { return };
        let snapshot = self.cache.snapshot();
        let compared = shadow.compare(&profile.framework, &snapshot, pod, &pod.node_name);
        self.binder.metrics.shadowed(compared.label());
        if !matches!(compared, Compared::Same | Compared::Tied) {
            let result = compared.label();
            tracing::info!(
                pod = pod.key(),
                node = pod.node_name,
                result,
                ?compared,
                "the schedulers disagree"
            );
        }
    }

    fn take(&mut self, input: Input) -> Result<(), RunError> {
        match input {
            Input::Node(event) => self.on_node(*event),
            Input::Pod(event) => self.on_pod(*event),
            Input::Namespace(event) => self.on_namespace(*event),
            Input::Object(kind, step) => {
                let changes = self.lists.take(self.cache.objects_mut(), kind, step);
                changes.into_iter().for_each(|change| self.happened(&ClusterEvent::Object(change)));
            }
            Input::Evicted(uid, evicted) => self.queue.release(&uid, evicted, self.binder.clock.now()),
            Input::Profile(event) => self.on_profile(*event),
            Input::NoProfiles => self.synced.profiles = true,
            Input::Bound(bound) => self.on_bound(*bound),
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
                gone.iter().for_each(|name| self.remove_node(name));
                self.synced.nodes = true;
            }
            watcher::Event::Apply(node) => self.set_node(&node),
            watcher::Event::Delete(node) => {
                self.remove_node(node.metadata.name.as_deref().unwrap_or_default());
            }
        }
    }

    fn remove_node(&mut self, name: &str) {
        if let Some(before) = self.cache.remove_node(name) {
            self.happened(&ClusterEvent::NodeDelete(before));
        }
    }

    fn happened(&mut self, event: &ClusterEvent) {
        self.queue.event_by(self.profiles.frameworks(), event, self.binder.clock.now());
    }

    fn on_profile(&mut self, event: watcher::Event<SchedulerProfile>) {
        match event {
            watcher::Event::Init => self.listed_profiles = Some(HashSet::new()),
            watcher::Event::InitApply(profile) => {
                if let (Some(seen), Some(name)) = (&mut self.listed_profiles, &profile.metadata.name) {
                    seen.insert(name.clone());
                }
                self.set_profile(&profile);
            }
            watcher::Event::InitDone => {
                let seen = self.listed_profiles.take().unwrap_or_default();
                let gone: Vec<String> =
                    self.profiles.of_objects().filter(|n| !seen.contains(*n)).map(str::to_owned).collect();
                gone.iter().for_each(|name| self.unset_profile(name));
                self.synced.profiles = true;
            }
            watcher::Event::Apply(profile) => self.set_profile(&profile),
            watcher::Event::Delete(profile) => {
                self.unset_profile(profile.metadata.name.as_deref().unwrap_or_default());
            }
        }
    }

    /// The next cycle goes by it, and whoever waits under its name is tried again.
    fn set_profile(&mut self, object: &SchedulerProfile) {
        let Some(name) = object.metadata.name.as_deref() else { return };
        let generation = object.metadata.generation.unwrap_or(1);
        if self.profiles.of(name).is_some_and(|live| live.generation == generation) {
            // A write of its status.
            return;
        }
        let (live, error) = self.profiles.set(name, &object.spec, generation);
        let fault = error.map(|e| e.to_string());
        tracing::info!(name, generation, live, fault, "a profile was read");
        self.notify(Notice::Profile(Box::new(Verdict::of(object, live, fault))));
        self.profile_changed(name);
    }

    fn unset_profile(&mut self, name: &str) {
        self.profiles.unset(name);
        tracing::info!(name, "a profile went");
        self.profile_changed(name);
    }

    fn profile_changed(&mut self, name: &str) {
        self.unfit = None;
        let now = self.binder.clock.now();
        if self.profiles.of(name).is_some() {
            let ours: Vec<Arc<PodInfo>> =
                self.strangers.extract_if(|_, pod| pod.scheduler_name == name).map(|(_, pod)| pod).collect();
            ours.into_iter().for_each(|pod| self.queue.upsert(pod, now));
            self.queue.wake_all_of(name, now);
        } else {
            for pod in self.queue.take_of(name) {
                self.strangers.insert(pod.uid.clone(), pod);
            }
        }
    }

    /// A pod left a node: who waits for room is woken if it is enough.
    fn left(&mut self, pod: Arc<PodInfo>, node: Option<&str>) {
        let state = node.and_then(|n| self.cache.state_of(n));
        let event = ClusterEvent::AssignedPodDelete(pod);
        let news = News { on: state.as_ref(), ..News::from(&event) };
        self.queue.event_by(self.profiles.frameworks(), news, self.binder.clock.now());
    }

    /// Namespaces are known by their labels, which affinity terms may select by.
    fn on_namespace(&mut self, event: watcher::Event<Namespace>) {
        match event {
            watcher::Event::Init => self.listed_namespaces = Some(HashSet::new()),
            watcher::Event::InitApply(namespace) => {
                if let (Some(seen), Some(name)) = (&mut self.listed_namespaces, &namespace.metadata.name) {
                    seen.insert(name.clone());
                }
                self.set_namespace(namespace);
            }
            watcher::Event::InitDone => {
                let seen = self.listed_namespaces.take().unwrap_or_default();
                let gone: Vec<String> =
                    self.cache.namespace_names().filter(|n| !seen.contains(*n)).map(str::to_owned).collect();
                gone.iter().for_each(|name| self.cache.remove_namespace(name));
                self.synced.namespaces = true;
            }
            watcher::Event::Apply(namespace) => self.set_namespace(namespace),
            watcher::Event::Delete(namespace) => {
                self.cache.remove_namespace(namespace.metadata.name.as_deref().unwrap_or_default());
            }
        }
    }

    fn set_namespace(&mut self, namespace: Namespace) {
        if let Some(name) = namespace.metadata.name {
            self.cache.set_namespace(&name, namespace.metadata.labels.unwrap_or_default());
        }
    }

    fn set_node(&mut self, node: &Node) {
        let info = match NodeInfo::parse(node) {
            Ok(info) => Arc::new(info),
            Err(error) => {
                tracing::warn!(%error, node = node.metadata.name, "a node is left out");
                return self.remove_node(node.metadata.name.as_deref().unwrap_or_default());
            }
        };
        let event = match self.cache.set_node(info.clone()) {
            None => ClusterEvent::NodeAdd(info),
            Some(old) if old == info => return,
            Some(old) => ClusterEvent::NodeUpdate(old, info),
        };
        self.happened(&event);
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
                    .chain(self.strangers.keys().map(String::as_str))
                    .filter(|u| !seen.contains(*u))
                    .map(str::to_owned)
                    .collect();
                gone.iter().for_each(|uid| self.remove_pod(uid));
                self.synced.pods = true;
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
            self.cache.unnominate(&info.uid);
            self.strangers.remove(&info.uid);
            if self.shadow.is_some() && self.synced() && !self.cache.is_placed(&info.uid) {
                self.compare(&info);
            }
            let event = match self.cache.confirm(info.clone()) {
                None => ClusterEvent::AssignedPodAdd(info),
                Some(old) if (&old.labels, old.deleting) == (&info.labels, info.deleting) => return,
                Some(old) => ClusterEvent::AssignedPodUpdate(old, info),
            };
            self.happened(&event);
        } else if self.cache.is_placed(&info.uid) {
            // Assumed: its binding is under way and decides what comes next, on what is known then.
            if let Some((latest, _)) = self.binding.get_mut(&info.uid) {
                *latest = info;
            }
        } else if info.deleting {
            self.forget_waiting(&info.uid);
            self.strangers.remove(&info.uid);
        } else if self.shadow.is_some() {
            // It is the other scheduler's to place.
        } else if self.profiles.of(&info.scheduler_name).is_some() {
            self.renominate(&info);
            self.queue.upsert(info, self.binder.clock.now());
        } else {
            self.strangers.insert(info.uid.clone(), info);
        }
    }

    /// A waiting pod came or changed: what it says of its nomination counts, unless it never said
    /// anything. Then what was decided here and is not written yet stands.
    fn renominate(&mut self, info: &Arc<PodInfo>) {
        let before = self.queue.get(&info.uid).cloned();
        let said = before.as_ref().is_some_and(|b| !b.nominated.is_empty());
        if said || !info.nominated.is_empty() {
            self.cache.unnominate(&info.uid);
            if !info.nominated.is_empty() {
                self.cache.nominate(info.clone(), &info.nominated);
            }
        } else if let Some(node) = self.cache.unnominate(&info.uid) {
            self.cache.nominate(info.clone(), &node);
        }
        if let Some(before) = before.filter(|b| said && b.nominated != info.nominated) {
            self.gave_up(before);
        }
    }

    /// A pod that is no longer nominated leaves its room to pods of no higher priority.
    fn gave_up(&mut self, pod: Arc<PodInfo>) {
        let (priority, now) = (pod.priority, self.binder.clock.now());
        let event = ClusterEvent::AssignedPodDelete(pod);
        let news = News { priority, ..News::from(&event) };
        self.queue.event_by(self.profiles.frameworks(), news, now);
    }

    /// A pod that waits will not be decided any more.
    fn forget_waiting(&mut self, uid: &str) {
        let waited = self.queue.remove(uid);
        if self.cache.unnominate(uid).is_some()
            && let Some(queued) = waited
        {
            self.gave_up(queued.pod);
        }
    }

    fn remove_pod(&mut self, uid: &str) {
        self.forget_waiting(uid);
        if let Some((_, recall)) = self.binding.get(uid) {
            // What may still be held up need not be.
            recall.recall();
        }
        self.strangers.remove(uid);
        let node = self.cache.node_of(uid).map(str::to_owned);
        if let Some(pod) = self.cache.remove_pod(uid) {
            self.left(pod, node.as_deref());
        }
    }

    fn schedule(&mut self, queued: QueuedPod) {
        let Some(profile) = self.profiles.of(&queued.pod.scheduler_name).cloned() else {
            // Its profile went while its binding failed.
            self.strangers.insert(queued.pod.uid.clone(), queued.pod);
            return;
        };
        let (clock, metrics) = (self.binder.clock, self.binder.metrics.clone());
        let (snapshot, mut trace) = (self.cache.snapshot(), Trace::default());
        let started = clock.now();
        let nominated = self.cache.nominated_to(&queued.pod.uid).filter(|n| *n != queued.pod.nominated);
        let decided = match nominated {
            None => queued.pod.clone(),
            // Decided here, and not back on the watch yet.
            Some(node) => Arc::new(PodInfo { nominated: node.to_owned(), ..(*queued.pod).clone() }),
        };
        if let Some(known) = self.unfit.as_ref().filter(|u| u.holds(&decided, snapshot.generation)) {
            let (unfit, nomination) =
                ((known.message.clone(), known.plugins.clone()), known.nomination.clone());
            return self.refuse(queued, unfit, nomination, started);
        }
        let result = schedule_one(&profile.framework, &snapshot, &decided, &|| clock.now(), &mut trace);
        metrics.trace(&trace, &queued.pod.scheduler_name);
        let generation = profile.generation;
        let came = match &result {
            Ok(decision) => Came::placed(decision),
            Err(CycleError::Unfit(error)) => Came::unfit(error),
            Err(CycleError::Failed(failure)) => Came::Failed { message: failure.to_string() },
        };
        self.ring.push(&queued, generation, started, Some(snapshot.generation), came);
        let decision = match result {
            Ok(decision) => decision,
            Err(CycleError::Unfit(error)) => {
                let unfit = (error.message(), error.plugins());
                if !profile.framework.post_filter.is_empty() {
                    let found = match &error.nomination {
                        Nomination::Preempt(preemption) => Some(preemption.best.victims.len()),
                        Nomination::Keep | Nomination::Clear => None,
                    };
                    metrics.preempted(found);
                }
                // An eviction is for one pod; a refusal is for all that are like it.
                if decided.nominated.is_empty() && !matches!(error.nomination, Nomination::Preempt(_)) {
                    let (message, plugins) = unfit.clone();
                    let (generation, nomination) = (snapshot.generation, error.nomination.clone());
                    self.unfit = Some(Unfit { generation, pod: decided, message, plugins, nomination });
                }
                return self.refuse(queued, unfit, error.nomination, started);
            }
            Err(CycleError::Failed(failure)) => return self.failed(queued, failure.to_string(), started),
        };
        let node = snapshot.node(&decision.node).filter(|_| !queued.pod.volumes.is_empty());
        let volumes = node.and_then(|node| VolumePlan::of(&queued.pod, &node.info, &snapshot)).map(Arc::new);
        if let Some(plan) = &volumes {
            let assumed = plan.assume(self.cache.objects_mut());
            self.assumed.insert(queued.pod.uid.clone(), assumed);
        }
        let node = decision.node.clone();
        let placement = Placement { pod: queued.pod.clone(), node, annotation: None, volumes };
        self.cache.assume(queued.pod.clone(), &decision.node);
        let binder = Binder { framework: profile.framework.clone(), ..self.binder.clone() };
        if let Err(unbound) = binding::reserve(&binder, &placement) {
            self.cache.remove_pod(&queued.pod.uid);
            self.revert_volumes(&queued.pod.uid);
            return self.unbound(queued, &unbound, started);
        }
        self.bind(binder, (queued, placement), decision, started);
    }

    /// Starts the binding cycle; its end comes back as an input.
    fn bind(
        &mut self,
        binder: Binder,
        (queued, mut placement): (QueuedPod, Placement),
        decision: Decision,
        started: Micros,
    ) {
        let recall = Arc::new(Recall::default());
        self.binding.insert(queued.pod.uid.clone(), (queued.pod.clone(), recall.clone()));
        let inputs = self.inputs.clone();
        self.cycles.spawn(async move {
            binder.metrics.binding_tasks(1);
            let recorder = Recorder::new(Writer::Scheduler, binder.clock);
            let mut made = Vec::new();
            let result = binding::cycle(&binder, &mut placement, &recall, || {
                made = records(&recorder, &queued, &decision, binder.clock.now());
                annotation_of(&made)
            })
            .await;
            if let Some(bound) = made.last_mut() {
                bound.end = Some(binder.clock.now());
                bound.outcome = if result.is_ok() { Outcome::Succeeded } else { Outcome::Failed };
            }
            binder.metrics.records(&made);
            binder.metrics.binding_tasks(-1);
            // The receiver gone means that the loop has ended.
            let framework = binder.framework;
            let bound = Bound { queued, placement, framework, started, result };
            let _ = inputs.send(Input::Bound(Box::new(bound)));
        });
    }

    fn on_bound(&mut self, bound: Bound) {
        let Bound { mut queued, placement, framework, started, result } = bound;
        let latest = self.binding.remove(&queued.pod.uid);
        let Err(unbound) = result else {
            self.assumed.remove(&queued.pod.uid);
            let (now, metrics) = (self.binder.clock.now(), &self.binder.metrics);
            metrics.attempt(AttemptResult::Scheduled, &queued.pod.scheduler_name, now.since(started));
            metrics.scheduled(queued.attempts, now.since(queued.added));
            return self.notify(Notice::Scheduled(queued.pod, placement.node));
        };
        binding::unreserve(&Binder { framework, ..self.binder.clone() }, &placement);
        self.revert_volumes(&queued.pod.uid);
        if !self.cache.is_assumed(&queued.pod.uid) {
            // Deleted meanwhile, or bound by another and seen so on the watch.
            return;
        }
        self.remove_pod(&queued.pod.uid);
        if let Some((latest, _)) = latest {
            queued.pod = latest;
        }
        if !queued.pod.deleting {
            self.unbound(queued, &unbound, started);
        }
    }

    /// A pod's claims get nothing after all; other pods may.
    fn revert_volumes(&mut self, uid: &str) {
        if let Some(assumed) = self.assumed.remove(uid) {
            let freed = assumed.revert(self.cache.objects_mut());
            freed.into_iter().for_each(|change| self.happened(&ClusterEvent::Object(change)));
        }
    }

    fn unbound(&mut self, queued: QueuedPod, unbound: &Unbound, started: Micros) {
        match unbound {
            Unbound::Refused(status) => {
                let refused = (unbound.message(), BTreeSet::from([status.plugin]));
                self.refuse(queued, refused, Nomination::Clear, started);
            }
            Unbound::Failed(_) => self.failed(queued, unbound.message(), started),
        }
    }

    /// The pod waits for an event that may help, or for the victims that make room for it.
    fn refuse(
        &mut self,
        queued: QueuedPod,
        (message, plugins): (String, BTreeSet<&'static str>),
        nomination: Nomination,
        started: Micros,
    ) {
        let now = self.binder.clock.now();
        let pod = queued.pod.clone();
        self.binder.metrics.attempt(AttemptResult::Unschedulable, &pod.scheduler_name, now.since(started));
        let nominated = match &nomination {
            Nomination::Keep => None,
            Nomination::Clear => self.cleared(&pod),
            Nomination::Preempt(preemption) => Some(preemption.best.node.clone()),
        };
        self.notify(Notice::Failed(pod.clone(), UNSCHEDULABLE, message, nominated));
        self.queue.unschedulable(queued, plugins, now);
        match nomination {
            Nomination::Keep | Nomination::Clear => {}
            Nomination::Preempt(preemption) => self.preempt(&pod, preemption),
        }
    }

    /// What to write for a pod that is nominated nowhere: nothing, if nobody ever said it is.
    fn cleared(&mut self, pod: &PodInfo) -> Option<String> {
        let was = self.cache.unnominate(&pod.uid).is_some() || !pod.nominated.is_empty();
        was.then(String::new)
    }

    /// Nominates the pod and has its victims go, those that are only assumed in memory.
    fn preempt(&mut self, pod: &Arc<PodInfo>, preemption: Preemption) {
        let Candidate { node, victims, .. } = preemption.best;
        let demoted: Vec<Arc<PodInfo>> =
            self.cache.nominated(&node).into_iter().filter(|p| p.priority < pod.priority).collect();
        for other in &demoted {
            self.cache.unnominate(&other.uid);
        }
        self.cache.nominate(pod.clone(), &node);
        let leaving = victims.into_iter().filter(|v| !v.deleting);
        let victims: Vec<Arc<PodInfo>> =
            leaving.filter(|v| !self.binding.get(&v.uid).is_some_and(|(_, r)| r.recall())).collect();
        if victims.is_empty() {
            return;
        }
        self.queue.hold(&pod.uid);
        let eviction = Eviction { preemptor: pod.clone(), node, victims, demoted };
        let (client, reporter) = (self.evictor.clone(), eviction.preemptor.scheduler_name.clone());
        let (inputs, uid) = (self.inputs.clone(), pod.uid.clone());
        self.cycles.spawn(async move {
            let evicted = evict(client, reporter, eviction).await;
            // The receiver gone means that the loop has ended.
            let _ = inputs.send(Input::Evicted(uid, evicted));
        });
    }

    /// The pod waits for its backoff.
    fn failed(&mut self, queued: QueuedPod, message: String, started: Micros) {
        let now = self.binder.clock.now();
        let (scheduler, took) = (&queued.pod.scheduler_name, now.since(started));
        self.binder.metrics.attempt(AttemptResult::Error, scheduler, took);
        let nominated = self.cleared(&queued.pod.clone());
        self.notify(Notice::Failed(queued.pod.clone(), SCHEDULER_ERROR, message, nominated));
        self.queue.failed(queued, now);
    }

    fn notify(&self, notice: Notice) {
        if self.shadow.is_some() {
            return;
        }
        if self.notices.send(notice).is_err() {
            tracing::error!("the status lane has ended: conditions and events are no longer written");
        }
    }
}
