//! The owner of one pod: a task per UID, the only one that acts for it. It observes the runtime, asks
//! the core what to do, does it (sandbox ‖ pull ‖ volumes, then containers side by side), and tells
//! the API server. It sleeps until something happens: there is no tick.
//!
//! Invariants: an action is never begun twice while it runs; nothing is taken down while something is
//! being made; the object is deleted only after what the agent and the runtime made is gone.

use crate::api::ApiError;
use crate::cri::{CallError, Told};
use crate::pod::actions::{self, Failed, Making, Outcomes, Took, chain};
use crate::pod::context::Context;
use crate::pod::core::{
    self, Action, BACKOFF_FIRST, Failure, Instance, Journal, Observed, Sandbox, State, Terminal, add,
    failure_delay, note_exits,
};
use crate::pod::cri_config;
use crate::pod::model::{Deletion, Pod, Role};
use crate::pod::start::{Start, record};
use crate::source::PodView;
use crate::status::writer::Writer;
use crate::volumes::{MountedVolume, VolumeError};
use k8s_openapi::api::core::v1 as api;
use podway_cri::v1;
use podway_flow::{Flow, Micros, Outcome, Phase, Record};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

/// The first and the longest delay of a volume that cannot be set up (the kubelet's).
const MOUNT_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(122));
/// The first and the longest delay of any other effect that failed.
const EFFECT_RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// What a worker is told.
#[derive(Debug)]
pub enum Input {
    /// The object changed.
    Pod(Arc<api::Pod>),
    /// The object is gone from the API server.
    Gone,
    /// Something of it changed in the runtime, or may have: it is asked.
    Runtime,
    /// What the runtime told of it.
    Told(Box<Told>),
}

/// The way to a worker.
#[derive(Debug)]
pub struct Handle {
    /// What to tell it. When it is dropped the worker ends and leaves the pod as it is.
    pub inputs: mpsc::UnboundedSender<Input>,
    /// What it last saw.
    pub view: watch::Receiver<Arc<PodView>>,
}

/// How a worker begins.
#[derive(Debug)]
pub struct Beginning {
    /// The pod.
    pub pod: Pod,
    /// When the watch told of it.
    pub seen: Micros,
    /// Why the node does not take it, if so.
    pub refused: Option<Terminal>,
    /// That the runtime cannot hold anything of it yet: it need not be asked.
    pub fresh: bool,
}

/// What runs for a pod; the key of an action that must not run twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Sandbox,
    Volumes,
    Image(String),
    Container(String),
    Stop(String),
    StopSandbox(String),
    Remove(String),
    Unmount,
    /// Whether logs go as well.
    Clean(bool),
    Delete,
    Patch,
    Flow,
}

impl Key {
    /// Whether it makes something, so that taking down must wait for it.
    fn makes(&self) -> bool {
        matches!(self, Key::Sandbox | Key::Volumes | Key::Image(_) | Key::Container(_))
    }

    /// Whether it is of the pod itself and not of what is written about it.
    fn acts(&self) -> bool {
        !matches!(self, Key::Patch | Key::Flow)
    }
}

enum Done {
    Sandbox(Outcomes<Option<Sandbox>>),
    Volumes(Result<BTreeMap<String, MountedVolume>, VolumeError>, Vec<Record>),
    Image(String, Box<Outcomes<v1::Image>>),
    Container(String, Outcomes<Option<Instance>>),
    Took(Result<Took, CallError>),
    Unmounted(Result<(), VolumeError>),
    Clean(bool, Result<(), String>),
    Deleted(Result<(), ApiError>),
    Patched(Result<Box<api::Pod>, ApiError>),
    Flow { whole: bool, audit: Vec<Record>, result: Result<(), ApiError> },
}

struct Running {
    key: Key,
    /// What the picture shows while it runs.
    open: Vec<Record>,
    abort: AbortHandle,
    /// When a stop ends at the latest.
    deadline: Micros,
}

/// A delay that grows with each failure.
#[derive(Clone, Copy)]
struct Retry {
    at: Micros,
    delay: Duration,
}

fn later(before: Option<Retry>, now: Micros, limits: (Duration, Duration)) -> Retry {
    let delay = before.map_or(limits.0, |r| (r.delay * 2).min(limits.1));
    Retry { at: add(now, delay), delay }
}

struct Worker {
    context: Context,
    pod: Pod,
    inputs: mpsc::UnboundedReceiver<Input>,
    view: watch::Sender<Arc<PodView>>,
    observed: Observed,
    ended: HashMap<String, Instance>,
    journal: Journal,
    start: Start,
    writer: Writer,
    tasks: JoinSet<Done>,
    running: HashMap<Id, Running>,
    retries: HashMap<Key, Retry>,
    images: HashMap<String, v1::Image>,
    volumes: BTreeMap<String, MountedVolume>,
    warned: HashSet<(String, u32)>,
    /// When the status first had the pod Ready.
    told_ready: Option<Micros>,
    /// The flow behind the status that was written last: what people are told in the pod's conditions
    /// and in its `PodFlow` is one and the same.
    told: Option<Flow>,
    /// That the whole flow is written, or not to be written.
    flow_told: bool,
    flow_made: bool,
    flow_written: Option<Micros>,
    /// That the flow should be written, and whether it is the whole.
    flow_due: Option<bool>,
    flow_failures: u32,
    last_status: Option<api::PodStatus>,
    stale: bool,
    first: bool,
    gone: bool,
    cleaned: bool,
    removed: bool,
    unmounted: bool,
    settled: bool,
    finished: bool,
}

/// Starts the owner task of a pod; the second value completes when it ends, with true when nothing is
/// left of the pod.
#[must_use]
pub fn spawn(context: Context, beginning: Beginning) -> (Handle, tokio::task::JoinHandle<bool>) {
    let (sender, inputs) = mpsc::unbounded_channel();
    let Beginning { pod, seen, refused, fresh } = beginning;
    let mut start = Start::new(&pod.object, seen);
    let mut admitted = record(Phase::Admitted, None, seen, Some(context.clock.now()), "Admitted");
    if let Some(refusal) = &refused {
        admitted.outcome = Outcome::Failed;
        admitted.reason.clone_from(&refusal.reason);
        admitted.message = podway_flow::record::bounded(&refusal.message, Record::MESSAGE_LIMIT);
    }
    start.absorb([admitted]);
    let base = pod.object.status.clone().unwrap_or_default();
    let started = base.start_time.as_ref().map_or(seen, |t| Micros(t.0.as_microsecond()));
    let mut journal = Journal { started, terminal: refused, ..Journal::default() };
    for known in base.container_statuses.iter().chain(&base.init_container_statuses).flatten() {
        journal.of_mut(&known.name).restarts = u32::try_from(known.restart_count).unwrap_or(0);
    }
    let view =
        PodView { object: Arc::clone(&pod.object), containers: Vec::new(), flow: Arc::new(start.flow([])) };
    let (view, receiver) = watch::channel(Arc::new(view));
    let worker = Worker {
        writer: Writer::new(&pod.uid, base, seen),
        context,
        pod,
        inputs,
        view,
        observed: Observed::default(),
        ended: HashMap::new(),
        journal,
        start,
        tasks: JoinSet::new(),
        running: HashMap::new(),
        retries: HashMap::new(),
        images: HashMap::new(),
        volumes: BTreeMap::new(),
        warned: HashSet::new(),
        told_ready: None,
        told: None,
        flow_told: false,
        flow_made: false,
        flow_written: None,
        flow_due: None,
        flow_failures: 0,
        last_status: None,
        stale: !fresh,
        first: !fresh,
        gone: false,
        cleaned: false,
        removed: false,
        unmounted: false,
        settled: false,
        finished: false,
    };
    (Handle { inputs: sender, view: receiver }, tokio::spawn(worker.run()))
}

impl Worker {
    /// True when nothing is left of the pod.
    async fn run(mut self) -> bool {
        loop {
            while let Ok(input) = self.inputs.try_recv() {
                self.input(input);
            }
            if self.finished {
                return true;
            }
            let mut wake: Option<Micros> = None;
            if self.stale {
                wake = self.observe().await;
            }
            if !self.first {
                let now = self.now();
                note_exits(&self.pod, &self.observed, &mut self.journal);
                wake = earlier(wake, self.advance(now));
                if self.finished {
                    continue;
                }
                wake = earlier(wake, self.report(now));
                wake = earlier(wake, self.tell_flow(now));
                self.publish();
            }
            let sleep = wake.map(|at| Duration::from_micros(at.since(self.now())));
            tokio::select! {
                biased;
                input = self.inputs.recv() => match input {
                    Some(input) => self.input(input),
                    None => return false,
                },
                Some(done) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.done(done),
                () = tokio::time::sleep(sleep.unwrap_or_default()), if sleep.is_some() => {}
            }
        }
    }

    fn now(&self) -> Micros {
        self.context.clock.now()
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Runtime => self.stale = true,
            Input::Told(told) => self.told(*told),
            Input::Gone => {
                self.gone = true;
                self.journal.terminal_reported = true;
                let grace = self.pod.deletion.map_or(self.pod.grace, |d| d.grace);
                self.pod.deletion.get_or_insert(Deletion { at: self.now(), grace });
            }
            Input::Pod(object) => self.object(object, true),
        }
    }

    /// Takes in what the runtime told: without asking, unless it is of a sandbox that is not known.
    fn told(&mut self, told: Told) {
        if self.observed.sandboxes.iter().any(|s| s.id == told.sandbox.id) {
            self.observed.learn_sandbox(told.sandbox);
            told.containers.into_iter().for_each(|c| self.learn(c));
        } else if !self.runs(&Key::Sandbox) {
            self.stale = true;
        }
    }

    fn learn(&mut self, instance: Instance) {
        if matches!(instance.state, State::Exited { .. }) {
            self.ended.insert(instance.id.clone(), instance.clone());
        }
        self.observed.learn(instance);
    }

    /// Takes a newer object on; an older one (a watch event that our own write overtook) is left.
    fn object(&mut self, object: Arc<api::Pod>, watched: bool) {
        let version = |o: &api::Pod| o.metadata.resource_version.as_ref().and_then(|v| v.parse::<u64>().ok());
        if version(&object) < version(&self.pod.object) {
            return;
        }
        match Pod::read(Arc::clone(&object)) {
            Ok(pod) => {
                let deletion = pod.deletion.or(self.pod.deletion);
                self.pod = Pod { deletion, ..pod };
                if watched {
                    self.writer.seen(object.status.clone().unwrap_or_default());
                }
            }
            // It was valid when it was taken on: what it became is ignored, the old one holds.
            Err(error) => tracing::error!(pod = %self.pod.uid, %error, "a change of a pod is not taken"),
        }
    }

    /// Asks the runtime; when it does not answer, again in a second or when it is back.
    async fn observe(&mut self) -> Option<Micros> {
        match self.context.cri.observe(&self.pod.uid, &mut self.ended).await {
            Ok(observed) => {
                self.observed = observed;
                self.stale = false;
                if std::mem::take(&mut self.first) {
                    self.adopt().await;
                }
                None
            }
            Err(error) => {
                tracing::warn!(pod = %self.pod.uid, %error, "the runtime does not tell of a pod");
                Some(add(self.now(), Duration::from_secs(1)))
            }
        }
    }

    /// After a restart of the agent: what runs is taken over, and its start is told by the runtime.
    async fn adopt(&mut self) {
        let conditions = self.pod.object.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let ready = conditions.clone().any(|c| c.type_ == "Ready" && c.status == "True");
        let terminal = matches!(self.pod.stored_phase.as_str(), "Succeeded" | "Failed");
        let told = Phase::StatusReported.condition_type();
        if ready || terminal || conditions.clone().any(|c| c.type_ == told && c.status == "True") {
            self.start.close();
            self.flow_told = true;
            self.told_ready = Some(self.now());
        } else if !self.observed.sandboxes.is_empty() {
            match self.context.cri.records(&self.observed).await {
                Ok(records) => self.start.absorb(records),
                Err(error) => {
                    tracing::warn!(pod = %self.pod.uid, %error, "the runtime does not tell of a pod's start");
                }
            }
        }
    }

    fn runs(&self, key: &Key) -> bool {
        self.running.values().any(|r| r.key == *key)
    }

    /// When `key` may be tried again, if it failed before and that lies ahead.
    fn waits(&self, key: &Key, now: Micros) -> Option<Micros> {
        self.retries.get(key).map(|r| r.at).filter(|at| now < *at)
    }

    fn spawn(&mut self, key: Key, open: Vec<Record>, work: impl Future<Output = Done> + Send + 'static) {
        let abort = self.tasks.spawn(work);
        self.running.insert(abort.id(), Running { key, open, abort, deadline: Micros(i64::MAX) });
    }

    /// Begins what is to be done. Returns when to ask again if nothing happens.
    fn advance(&mut self, now: Micros) -> Option<Micros> {
        let mut wake = None;
        let plan = loop {
            let plan = core::next(&self.pod, &self.observed, &self.journal, now);
            let end = plan.iter().find_map(|a| match a {
                Action::ReportTerminal(terminal) => Some(terminal.clone()),
                _ => None,
            });
            match end {
                Some(terminal) => self.journal.terminal = Some(terminal),
                None => break plan,
            }
        };
        let ending = self.pod.deletion.is_some() || self.journal.terminal.is_some();
        if ending {
            for pull in self.running.values().filter(|r| matches!(r.key, Key::Image(_))) {
                pull.abort.abort();
            }
            if self.running.values().any(|r| r.key.makes()) {
                self.settled = false;
                return None;
            }
        } else {
            wake = earlier(wake, self.want_volumes(now));
        }
        let dead = self.observed.containers.iter().all(|c| matches!(c.state, State::Exited { .. }));
        if self.pod.deletion.is_some() && dead {
            wake = earlier(wake, self.unmount(now));
        }
        let idle = plan.is_empty();
        for action in plan {
            wake = earlier(wake, self.act(action, now));
        }
        if ending && idle && self.pod.deletion.is_none() && !self.cleaned && !self.observed.anything_live() {
            wake = earlier(wake, self.clean(now, false));
        }
        self.settled = self.running.values().all(|r| !r.key.acts());
        wake
    }

    fn want_volumes(&mut self, now: Micros) -> Option<Micros> {
        if self.journal.volumes_ready || self.runs(&Key::Volumes) {
            return None;
        }
        if let Some(at) = self.waits(&Key::Volumes, now) {
            return Some(at);
        }
        let open = vec![record(Phase::VolumesMounted, None, now, None, "Running")];
        let (context, pod) = (self.context.clone(), self.pod.clone());
        self.spawn(Key::Volumes, open, async move {
            let (result, records) = actions::mount(context, pod).await;
            Done::Volumes(result, records)
        });
        None
    }

    fn act(&mut self, action: Action, now: Micros) -> Option<Micros> {
        let cri = self.context.cri.clone();
        let (context, pod) = (self.context.clone(), self.pod.clone());
        let (key, open) = match &action {
            Action::WaitUntil(at) => return Some(*at),
            Action::ReportTerminal(_) => return None,
            Action::CreateSandbox { .. } => {
                (Key::Sandbox, vec![record(Phase::SandboxCreated, None, now, None, "Running")])
            }
            Action::PullImage { container } => {
                let image = self.pod.container(container).map_or("", |c| c.image.as_str());
                let open = record(Phase::ImagesPulled, Some(image), now, None, "Running");
                (Key::Image(container.clone()), vec![open])
            }
            Action::CreateContainer { container, .. } => {
                let open = record(Phase::ContainersCreated, Some(container), now, None, "Running");
                (Key::Container(container.clone()), vec![open])
            }
            Action::StartContainer { container, .. } => {
                let open = record(Phase::ContainersStarted, Some(container), now, None, "Running");
                (Key::Container(container.clone()), vec![open])
            }
            Action::StopContainer { id, .. } => (Key::Stop(id.clone()), Vec::new()),
            Action::StopSandbox { id } => (Key::StopSandbox(id.clone()), Vec::new()),
            Action::RemoveSandbox { id } | Action::RemoveContainer { id } => {
                (Key::Remove(id.clone()), Vec::new())
            }
            Action::DeleteFromApi => return self.end(now),
        };
        if let Some(at) = self.waits(&key, now) {
            return Some(at);
        }
        // A shorter grace goes beside the longer one that is running; anything else runs once.
        let deadline = match &action {
            Action::StopContainer { grace, .. } => add(now, *grace),
            _ => Micros(i64::MAX),
        };
        let shorter = |r: &Running| add(deadline, Duration::from_millis(500)) >= r.deadline;
        if self.running.values().any(|r| r.key == key && shorter(r)) {
            return None;
        }
        let begun = match action {
            Action::CreateSandbox { attempt } => self
                .tasks
                .spawn(async move { Done::Sandbox(actions::create_sandbox(context, pod, attempt).await) }),
            Action::PullImage { container } => {
                let model = pod.container(&container).cloned()?;
                self.tasks.spawn(async move {
                    Done::Image(container, Box::new(actions::pull(context, model).await))
                })
            }
            Action::CreateContainer { container, sandbox, restarts } => {
                let making = self.making(&container, sandbox, restarts)?;
                self.tasks.spawn(async move {
                    Done::Container(container, actions::create_container(context, pod, making).await)
                })
            }
            Action::StartContainer { container, id } => {
                let sandbox = self.sandbox_of(&id);
                self.tasks.spawn(async move {
                    let started = actions::start_container(context, container.clone(), id, sandbox).await;
                    Done::Container(container, started)
                })
            }
            Action::StopContainer { id, grace } => {
                self.journal.stopping_since.get_or_insert(now);
                let sandbox = self.sandbox_of(&id);
                self.tasks
                    .spawn(async move { Done::Took(actions::stop_container(cri, id, sandbox, grace).await) })
            }
            Action::StopSandbox { id } => {
                self.tasks.spawn(async move { Done::Took(actions::stop_sandbox(cri, id).await) })
            }
            Action::RemoveSandbox { id } => {
                self.tasks.spawn(async move { Done::Took(actions::remove_sandbox(cri, id).await) })
            }
            Action::RemoveContainer { id } => {
                self.tasks.spawn(async move { Done::Took(actions::remove_container(cri, id).await) })
            }
            Action::WaitUntil(_) | Action::ReportTerminal(_) | Action::DeleteFromApi => return None,
        };
        self.running.insert(begun.id(), Running { key, open, abort: begun, deadline });
        None
    }

    fn sandbox_of(&self, id: &str) -> String {
        let found = self.observed.containers.iter().find(|c| c.id == id);
        found.map(|c| c.sandbox.clone()).unwrap_or_default()
    }

    fn making(&self, container: &str, sandbox: String, restarts: u32) -> Option<Making> {
        let placed = self.observed.sandboxes.iter().find(|s| s.id == sandbox)?;
        Some(Making {
            container: self.pod.container(container)?.clone(),
            attempt: placed.attempt,
            ips: placed.ips.clone(),
            sandbox,
            restarts,
            volumes: self.volumes.clone(),
            image: self.images.get(container).cloned().unwrap_or_default(),
        })
    }

    /// Nothing of the pod runs: what was made for it goes, then the object.
    fn end(&mut self, now: Micros) -> Option<Micros> {
        if !self.removed {
            return self.clean(now, true);
        }
        // Our own deletion is let end, also when the watch was faster than its answer.
        if self.gone && !self.runs(&Key::Delete) {
            self.finished = true;
            return None;
        }
        // The status of the end is on its way: the object is not taken from under it.
        if self.runs(&Key::Delete) || self.runs(&Key::Patch) {
            return None;
        }
        if let Some(at) = self.waits(&Key::Delete, now) {
            return Some(at);
        }
        let context = self.context.clone();
        let (namespace, name, uid) =
            (self.pod.namespace.clone(), self.pod.name.clone(), self.pod.uid.clone());
        self.spawn(Key::Delete, Vec::new(), async move {
            Done::Deleted(context.api.delete(&namespace, &name, &uid).await)
        });
        None
    }

    /// Takes the volumes of a pod that is going down, beside what else goes down.
    fn unmount(&mut self, now: Micros) -> Option<Micros> {
        if self.unmounted || self.runs(&Key::Unmount) {
            return None;
        }
        if let Some(at) = self.waits(&Key::Unmount, now) {
            return Some(at);
        }
        let (context, uid) = (self.context.clone(), self.pod.uid.clone());
        self.spawn(
            Key::Unmount,
            Vec::new(),
            async move { Done::Unmounted(context.volumes.teardown(&uid).await) },
        );
        None
    }

    fn clean(&mut self, now: Micros, logs: bool) -> Option<Micros> {
        if [Key::Clean(true), Key::Clean(false), Key::Unmount].iter().any(|key| self.runs(key)) {
            return None;
        }
        let key = Key::Clean(logs);
        if let Some(at) = self.waits(&key, now) {
            return Some(at);
        }
        let path = logs.then(|| cri_config::log_directory(&self.context.pod_logs_dir, &self.pod));
        let (context, uid) = (self.context.clone(), self.pod.uid.clone());
        self.spawn(
            key,
            Vec::new(),
            async move { Done::Clean(logs, actions::clean(context, uid, path).await) },
        );
        None
    }

    fn done(&mut self, done: Result<(Id, Done), JoinError>) {
        let now = self.now();
        let (id, done) = match done {
            Ok((id, done)) => (id, Some(done)),
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(pod = %self.pod.uid, %error, "a step of a pod broke: a defect of the agent");
                }
                (error.id(), None)
            }
        };
        let Some(Running { key, .. }) = self.running.remove(&id) else { return };
        let ok = match done {
            // What it came to is not known.
            None => {
                self.stale |= key.acts();
                false
            }
            Some(done) => self.result(done, now),
        };
        if ok {
            self.retries.remove(&key);
        } else {
            let limits = if key == Key::Volumes { MOUNT_RETRY } else { EFFECT_RETRY };
            let retry = later(self.retries.get(&key).copied(), now, limits);
            // Failures of these have their own delays, kept in the journal for people to see.
            if !matches!(key, Key::Sandbox | Key::Image(_) | Key::Container(_) | Key::Patch) {
                self.retries.insert(key, retry);
            }
        }
    }

    /// Takes a result over; false when it is to be tried again.
    fn result(&mut self, done: Done, now: Micros) -> bool {
        match done {
            Done::Sandbox(Outcomes { result, records }) => {
                self.start.absorb(records);
                match result {
                    Ok(made) => {
                        self.journal.sandbox_failure = None;
                        self.stale |= made.is_none();
                        made.into_iter().for_each(|s| self.observed.learn_sandbox(s));
                    }
                    Err(e) => {
                        self.stale = true;
                        self.warn(&e.reason, &e.message);
                        self.journal.sandbox_failure = Some(later_failure(e, BACKOFF_FIRST, now));
                    }
                }
                true
            }
            Done::Volumes(result, records) => {
                self.start.absorb(records);
                match result {
                    Ok(volumes) => {
                        self.volumes = volumes;
                        self.journal.volumes_ready = true;
                        true
                    }
                    Err(error) => {
                        let text = format!("MountVolume.SetUp failed: {}", chain(&error));
                        self.warn("FailedMount", &text);
                        false
                    }
                }
            }
            Done::Image(container, outcomes) => {
                let Outcomes { result, records } = *outcomes;
                self.start.absorb(records);
                let memory = self.journal.of_mut(&container);
                match result {
                    Ok(image) => {
                        (memory.image_ready, memory.image_failure) = (true, None);
                        self.images.insert(container, image);
                    }
                    Err(e) => {
                        let delay = failure_delay(memory.image_failure.as_ref());
                        memory.image_failure = Some(later_failure(e.clone(), delay, now));
                        let image = self.pod.container(&container).map_or("", |c| c.image.as_str());
                        let failed = format!("Failed to pull image \"{image}\": {}", e.message);
                        match e.reason.as_str() {
                            "InvalidImageName" => self.warn("InspectFailed", &e.message),
                            "ErrImageNeverPull" => self.warn("ErrImageNeverPull", &e.message),
                            _ => self.warn("Failed", &failed),
                        }
                    }
                }
                true
            }
            Done::Container(container, Outcomes { result, records }) => {
                self.start.absorb(records);
                let init = self.pod.container(&container).is_some_and(|c| c.role != Role::App);
                self.context.metrics.container(init, result.as_ref().err().map(|e| e.reason.as_str()));
                let memory = self.journal.of_mut(&container);
                match result {
                    Ok(started) => {
                        memory.start_failure = None;
                        self.stale |= started.is_none();
                        started.into_iter().for_each(|i| self.learn(i));
                    }
                    Err(e) => {
                        self.stale = true;
                        memory.start_failure = Some(later_failure(e.clone(), BACKOFF_FIRST, now));
                        self.warn("Failed", &format!("Error: {}", e.message));
                    }
                }
                true
            }
            Done::Took(result) => {
                match &result {
                    Err(_) | Ok(Took::Stopped(None)) => self.stale = true,
                    Ok(Took::Stopped(Some(instance))) => self.learn(instance.clone()),
                    Ok(Took::SandboxStopped(id)) => {
                        self.observed
                            .sandboxes
                            .iter_mut()
                            .filter(|s| s.id == *id)
                            .for_each(|s| s.ready = false);
                        // What ran in it was stopped with it.
                        self.stale |= self
                            .observed
                            .containers
                            .iter()
                            .any(|c| c.sandbox == *id && !matches!(c.state, State::Exited { .. }));
                    }
                    Ok(Took::SandboxRemoved(id)) => {
                        self.observed.sandboxes.retain(|s| s.id != *id);
                        self.observed.containers.retain(|c| c.sandbox != *id);
                    }
                    Ok(Took::Removed(id)) => self.observed.containers.retain(|c| c.id != *id),
                }
                self.logged(result.map(drop).map_err(|e| e.message), "take a part of it down")
            }
            Done::Unmounted(result) => {
                self.unmounted = result.is_ok();
                self.logged(result.map_err(|e| chain(&e)), "unmount its volumes")
            }
            Done::Clean(logs, result) => {
                let ok = self.logged(result, "remove what was made for it");
                self.cleaned |= ok;
                self.removed |= ok && logs;
                ok
            }
            Done::Deleted(result) => {
                self.finished = result.is_ok();
                let ok = self.logged(result.map_err(|e| chain(&e)), "delete it from the API server");
                self.gone |= ok;
                ok
            }
            Done::Patched(result) => self.patched(result, now),
            Done::Flow { whole, audit, result } => {
                self.flow_made |= result.is_ok();
                if result.is_err() {
                    self.flow_failures += 1;
                    self.flow_due = Some(whole || self.flow_due == Some(true));
                }
                if whole && result.is_ok() {
                    self.start.audit(audit);
                    self.context.metrics.flow(&self.start.flow([]));
                    self.flow_told = true;
                }
                self.logged(result.map_err(|e| chain(&e)), "write its flow")
            }
        }
    }

    fn logged(&self, result: Result<(), String>, what: &str) -> bool {
        if let Err(error) = &result {
            tracing::warn!(pod = %self.pod.uid, namespace = %self.pod.namespace, name = %self.pod.name, error, "cannot {what}");
        }
        result.is_ok()
    }
}

fn later_failure(e: Failed, delay: Duration, now: Micros) -> Failure {
    Failure { reason: e.reason, message: e.message, retry: add(now, delay), delay }
}

fn is_ready(status: Option<&api::PodStatus>) -> bool {
    let mut all = status.into_iter().flat_map(|s| s.conditions.iter().flatten());
    all.any(|c| c.type_ == "Ready" && c.status == "True")
}

fn earlier(a: Option<Micros>, b: Option<Micros>) -> Option<Micros> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

mod report;
#[cfg(test)]
mod tests;
