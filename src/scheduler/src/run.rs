//! The loop: one task owns cache and queue, fed by the watches and by ended bindings.
//!
//! It sleeps until something arrives or the next backoff ends; there is no tick. Nothing is
//! decided before both lists are complete, so that no node looks emptier than it is.

mod error;
mod listed;
mod listing;
mod objects;
mod place;
mod pods;
mod stuck;
mod watch;

use crate::audit::{self, Audits, Fault, Listed};
use crate::binding::{Binder, Recall, Unbound};
use crate::cache::Cache;
use crate::clients::Clients;
use crate::config::Config;
use crate::config::profiles::Profiles;
use crate::debug::{self, Question};
use crate::decide::Decider;
use crate::explain::ring::Ring;
use crate::extender::{self, ExtenderBinder};
use crate::framework::{ClusterEvent, Framework, Placement};
use crate::leader::term::Term;
use crate::metrics::{Health, Metrics};
use crate::model::{
    CsiDriver, CsiNode, DisruptionBudget, PersistentVolume, PersistentVolumeClaim, PodInfo, ReplicaSet,
    ReplicationController, Service, StatefulSet, StorageCapacity, StorageClass, VolumeAttachment,
};
use crate::objects::{Kind, Lists, Step};
use crate::plugins::volume_binding::{Assumed, VolumeBinder};
use crate::plugins::{PluginArgs, default_binder::DefaultBinder, registry};
use crate::queue::{Queue, QueuedPod};
use crate::record::Recorder;
use crate::server::{self, Probe};
use crate::shadow::Shadow;
use crate::status::{self, Notice};
pub use error::RunError;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::Api;
use kube::runtime::watcher;
use listed::audits;
use listing::Listing;
use podway_api::SchedulerProfile;
use podway_flow::{Clock, Micros};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use stuck::Patience;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use watch::{watch, watch_objects, watch_profiles};

enum Input {
    Node(Box<watcher::Event<Node>>),
    Pod(Box<watcher::Event<Pod>>),
    Namespace(Box<watcher::Event<Namespace>>),
    /// A step of a kind's watch, with the object where the run is recorded.
    Object(Kind, Step, Option<Box<serde_json::Value>>),
    Evicted(String, bool),
    /// What the API server says, for the self-audit.
    Audit(Box<Listed>),
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
    /// There are extenders, to which whole pods and nodes are sent.
    keeps_originals: bool,
    /// Where the run is recorded.
    recorder: Option<Recorder>,
    /// Pods without a node that are another scheduler's, until a profile of their name comes.
    strangers: HashMap<String, Arc<PodInfo>>,
    listed_profiles: Listing,
    cache: Cache,
    queue: Queue,
    binder: Binder,
    /// The pods whose binding is under way, as last seen on the watch.
    binding: HashMap<String, (Arc<PodInfo>, Arc<Recall>)>,
    /// What their claims are taken to have.
    assumed: HashMap<String, Assumed>,
    /// Where victims are evicted.
    evictor: kube::Client,
    /// How long a pod may wait.
    patience: Patience,
    lists: Lists,
    decider: Decider,
    audits: Audits,
    cycles: JoinSet<()>,
    inputs: mpsc::UnboundedSender<Input>,
    notices: mpsc::UnboundedSender<Notice>,
    listed_nodes: Listing,
    listed_pods: Listing,
    listed_namespaces: Listing,
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
    let made = extender::made(&config.extenders);
    let (extenders, ignored) = made.map_err(|(url, source)| RunError::Extender { url, source })?;
    let keeps_originals = !extenders.is_empty() || config.record.is_some();
    let recorder = match &config.record {
        None => None,
        // What an extender answers is not on the record.
        Some(_) if !extenders.is_empty() => return Err(RunError::RecordWithExtenders),
        Some(path) => Some(Recorder::begin(path, &config.profiles).map_err(RunError::Record)?),
    };
    let complete = move |args: &PluginArgs| {
        let mut args = args.clone();
        if !ignored.is_empty() {
            // As upstream: what extenders manage takes the place of what the profile ignores.
            args.fit.ignored.clone_from(&ignored);
        }
        let args = &args;
        let mut framework = all(args);
        framework.extenders.clone_from(&extenders);
        if framework.pre_bind.is_empty() {
            let binder = VolumeBinder::new(bind.clone(), args.volumes.timeout);
            framework.pre_bind.push(Arc::new(binder));
        }
        if framework.bind.is_empty() {
            framework.bind.push(Arc::new(DefaultBinder::new(bind.clone(), counts.clone())));
        }
        if extenders.iter().any(|e| e.binds()) {
            framework.bind.insert(0, Arc::new(ExtenderBinder(extenders.clone())));
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
    let records = recorder.is_some();
    macro_rules! kinds {
        ($($kind:ty),+) => { $(tasks.spawn(watch_objects::<$kind>(clients.watch.clone(), records, inputs.clone()));)+ };
    }
    kinds!(DisruptionBudget, PersistentVolume, PersistentVolumeClaim, StorageClass);
    kinds!(CsiNode, CsiDriver, StorageCapacity, VolumeAttachment);
    kinds!(Service, ReplicationController, ReplicaSet, StatefulSet);
    tasks.spawn(watch_profiles(clients.watch.clone(), inputs.clone()));
    tasks.spawn(audits(clients.watch.clone(), config.audit, inputs.clone()));
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
        keeps_originals,
        recorder,
        strangers: HashMap::new(),
        listed_profiles: Listing::default(),
        binder,
        binding: HashMap::new(),
        assumed: HashMap::new(),
        evictor,
        patience: Patience::default(),
        lists: Lists::default(),
        decider: Decider::default(),
        audits: Audits::default(),
        cycles: JoinSet::new(),
        inputs,
        notices,
        listed_nodes: Listing::default(),
        listed_pods: Listing::default(),
        listed_namespaces: Listing::default(),
        synced: Synced::default(),
    };
    if records {
        scheduler.cache.record();
    }
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
            self.tell_stuck(now);
            if self.synced()
                && let Some(queued) = self.queue.pop(now)
            {
                self.schedule(queued, probed).await;
                tokio::task::yield_now().await;
                continue;
            }
            self.binder.metrics.incoming(self.queue.take_incoming());
            let until = [self.queue.next_expiry(), self.next_stuck()].into_iter().flatten().min();
            let until = until.filter(|_| self.synced());
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
            profiles_synced: self.synced.profiles,
            status_lane: !self.notices.is_closed(),
            lengths: self.queue.lengths(),
            sizes: self.cache.sizes(),
            refused: self.queue.refused(),
            stuck: self.queue.stuck(),
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

    fn take(&mut self, input: Input) -> Result<(), RunError> {
        match input {
            Input::Node(event) => self.on_node(*event),
            Input::Pod(event) => self.on_pod(*event),
            Input::Namespace(event) => self.on_namespace(*event),
            Input::Object(kind, step, raw) => {
                self.cache.note_entry(|| step.entry(kind, raw));
                let changes = self.lists.take(self.cache.objects_mut(), kind, step);
                changes.into_iter().for_each(|change| self.happened(&ClusterEvent::Object(change)));
            }
            Input::Audit(listed) => self.audit(&listed),
            Input::Evicted(uid, evicted) => self.queue.release(&uid, evicted, self.binder.clock.now()),
            Input::Profile(event) => self.on_profile(*event),
            Input::NoProfiles => self.synced.profiles = true,
            Input::Bound(bound) => self.on_bound(*bound),
            Input::Ended(what) => return Err(RunError::WatchEnded(what)),
        }
        Ok(())
    }

    /// Compares the cache with what was listed. What the last audit found as well is no lag of the watch.
    fn audit(&mut self, listed: &Listed) {
        if !self.synced() {
            return;
        }
        let faults = self.audits.confirm(audit::compare(&mut self.cache, listed));
        faults.iter().for_each(|fault| tracing::error!(%fault, "the cache is not what the API server says"));
        self.binder.metrics.audited(faults.iter().map(Fault::kind));
    }

    fn happened(&mut self, event: &ClusterEvent) {
        self.queue.event_by(self.profiles.frameworks(), event, self.binder.clock.now());
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
