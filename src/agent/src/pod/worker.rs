//! The owner of one pod: a task per UID, the only one that acts for it. It observes the runtime, asks
//! the core what to do, does it (sandbox ‖ pull ‖ volumes, then containers side by side), and tells
//! the API server. It sleeps until something happens: there is no tick.
//!
//! Invariants: an action is never begun twice while it runs; nothing is taken down while something is
//! being made; the object is deleted only after what the agent and the runtime made is gone.

use crate::api::ApiError;
use crate::cri::{CallError, Told};
use crate::devices::DeviceError;
use crate::pod::actions::stop::{self, Took};
use crate::pod::actions::{self, Failed, Making, Outcomes, chain};
use crate::pod::context::Context;
use crate::pod::core::{
    self, Action, BACKOFF_FIRST, Ending, Failure, Instance, Journal, Observed, Sandbox, State, Terminal, add,
    failure_delay, note_exits,
};
use crate::pod::ledger::Held;
use crate::pod::model::{Deletion, Pod};
use crate::pod::resize::{self, Given};
use crate::pod::start::{Start, record};
use crate::pod::{admission, cri_config};
use crate::probe::schedule::Answer;
use crate::probe::spec::Kind;
use crate::source::PodView;
use crate::status::pace::Slot;
use crate::status::writer::Writer;
use crate::volumes::follow::Following;
use crate::volumes::{MountedVolume, VolumeError};
use k8s_openapi::api::core::v1 as api;
use podway_cri::v1;
use podway_flow::{Flow, Micros, Outcome, Phase, Record};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

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
    /// The node ends it.
    End(Box<Ending>),
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
    /// That the node takes it only now: what it wants of device plugins is still to be had.
    pub new: bool,
}

/// What runs for a pod; the key of an action that must not run twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Devices,
    Sandbox,
    Volumes,
    Image(String),
    Container(String),
    Stop(String),
    StopSandbox(String),
    Remove(String),
    Unmount,
    Resize,
    Probe(String, Kind),
    /// By instance.
    PostStart(String),
    /// Whether logs go as well.
    Clean(bool),
    Delete,
    Patch,
    Flow,
}

impl Key {
    /// Whether it makes something, so that taking down must wait for it.
    fn makes(&self) -> bool {
        matches!(self, Key::Devices | Key::Sandbox | Key::Volumes | Key::Image(_) | Key::Container(_))
    }

    /// Whether it is of the pod itself and not of what is written about it.
    fn acts(&self) -> bool {
        !matches!(self, Key::Patch | Key::Flow | Key::Probe(..))
    }
}

enum Done {
    Devices(Result<(), DeviceError>),
    Sandbox(Outcomes<Option<Sandbox>>),
    Volumes(Result<BTreeMap<String, MountedVolume>, VolumeError>, Vec<Record>),
    Image(String, Box<Outcomes<v1::Image>>),
    Container(String, Outcomes<Option<Instance>>),
    Took(Result<Took, CallError>),
    Unmounted(Result<(), VolumeError>),
    Resized(Given, Result<(), String>),
    Clean(bool, Result<(), String>),
    Probe { container: String, id: String, kind: Kind, answer: Answer },
    PostStart { container: String, id: String, result: Result<Option<String>, String> },
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
    /// That it is not admitted before it has its devices.
    wants_devices: bool,
    start: Start,
    writer: Writer,
    tasks: JoinSet<Done>,
    running: HashMap<Id, Running>,
    retries: HashMap<Key, Retry>,
    /// What the last failure of each said, until it succeeds.
    errors: HashMap<Key, String>,
    last_error: Option<String>,
    /// When it was taken on.
    born: Micros,
    /// Since when it goes.
    end_since: Option<Micros>,
    /// What is written down of it.
    memo: memo::Memo,
    images: HashMap<String, v1::Image>,
    volumes: BTreeMap<String, MountedVolume>,
    /// The object as the API server has it; `pod` has the resources that were given.
    wish: Arc<api::Pod>,
    given: Given,
    /// What the node's ledger has of it, while it is not over.
    held: Option<Held>,
    freed: watch::Receiver<()>,
    /// Woken when the health of its devices may have changed.
    health: watch::Receiver<()>,
    /// What the volumes show is followed, and this is woken when it changes.
    changes: Arc<Notify>,
    following: Option<Following>,
    /// That what a volume shows has changed.
    changed: bool,
    /// When the first token is to be renewed, or a driver asked again.
    refresh: Option<Micros>,
    /// That it goes: what would be waited for is not.
    ends: CancellationToken,
    /// Of which container, at which restart, people were warned.
    warned: HashSet<(String, u32)>,
    /// Instances whose `preStop` was begun.
    pre_stopped: HashSet<String>,
    /// Instances of which people were told that they are stopped.
    stopped: HashSet<String>,
    /// What was told of the start being stuck.
    stuck: stuck::Stuck,
    /// When the status first had the pod Ready.
    told_ready: Option<Micros>,
    /// When that was written first.
    ready_at: Option<Micros>,
    /// The flow behind the status that was written last: what people are told in the pod's conditions
    /// and in its `PodFlow` is one and the same.
    told: Option<Flow>,
    /// That the whole flow is written, or not to be written.
    flow_told: bool,
    flow_made: bool,
    flow_written: Option<Micros>,
    /// When an unfinished flow may go.
    flow_slot: Option<Slot>,
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
    let Beginning { pod, seen, refused, fresh, new } = beginning;
    let mut start = Start::new(&pod.object, seen);
    let spec = pod.object.spec.as_ref().filter(|_| new && refused.is_none());
    let wants_devices = spec.is_some_and(|spec| context.devices.wanted(spec));
    if !wants_devices {
        start.absorb([admitted(seen, context.clock.now(), refused.as_ref())]);
    }
    let base = pod.object.status.clone().unwrap_or_default();
    let journal = Journal { terminal: refused, ..Journal::recalled(&pod, seen) };
    let view =
        PodView { object: Arc::clone(&pod.object), containers: Vec::new(), flow: Arc::new(start.flow([])) };
    let (view, receiver) = watch::channel(Arc::new(view));
    let wish = Arc::clone(&pod.object);
    let given = resize::given(&wish);
    let over = journal.terminal.is_some() || pod.stored_over();
    let own = resize::with(&wish, &given);
    let held = own.spec.as_ref().filter(|_| !over).map(|s| context.ledger.hold(&pod.uid, admission::ask(s)));
    let (freed, health) = (context.ledger.freed(), context.devices.health());
    let pod = Pod { object: own, ..pod };
    let mut worker = Box::new(Worker {
        writer: Writer::new(&pod.uid, base, seen, context.pace.clone()),
        born: seen,
        end_since: None,
        memo: memo::Memo::default(),
        flow_slot: None,
        errors: HashMap::new(),
        last_error: None,
        context,
        pod,
        inputs,
        view,
        observed: Observed::default(),
        ended: HashMap::new(),
        journal,
        wants_devices,
        start,
        tasks: JoinSet::new(),
        running: HashMap::new(),
        retries: HashMap::new(),
        images: HashMap::new(),
        volumes: BTreeMap::new(),
        wish,
        given,
        held,
        freed,
        health,
        changes: Arc::new(Notify::new()),
        following: None,
        changed: false,
        refresh: None,
        ends: CancellationToken::new(),
        warned: HashSet::new(),
        pre_stopped: HashSet::new(),
        stopped: HashSet::new(),
        stuck: stuck::Stuck::default(),
        told_ready: None,
        ready_at: None,
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
    });
    if !fresh {
        worker.recall();
    }
    (Handle { inputs: sender, view: receiver }, tokio::spawn(async move { worker.run().await }))
}

impl Worker {
    /// True when nothing is left of the pod.
    async fn run(&mut self) -> bool {
        loop {
            while let Ok(input) = self.inputs.try_recv() {
                self.input(input);
            }
            if self.finished {
                return true;
            }
            let mut wake: Option<Micros> = None;
            if self.stale {
                // A pod is asked for now and then; what that takes need not lie in its task all the time.
                wake = Box::pin(self.observe()).await;
            }
            if !self.first {
                let now = self.now();
                note_exits(&self.pod, &self.observed, &mut self.journal);
                self.remember();
                wake = earlier(wake, self.advance(now));
                wake = earlier(wake, self.do_resize(now));
                if self.finished {
                    continue;
                }
                wake = earlier(wake, self.probe(now));
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
                () = self.changes.notified() => self.changed = true,
                Ok(()) = self.freed.changed(), if self.deferred() => self.rewish(),
                // What it shows of them is told anew.
                Ok(()) = self.health.changed(), if self.context.devices.has(&self.pod.uid) => {}
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
            Input::End(ending) => self.end_by_node(*ending),
            Input::Gone => {
                self.gone = true;
                self.journal.terminal_reported = true;
                let grace = self.pod.deletion.map_or(self.pod.grace, |d| d.grace);
                self.pod.deletion.get_or_insert(Deletion { at: self.now(), grace });
            }
            Input::Pod(object) => self.object(object, true),
        }
    }

    /// The node ends the pod: it fails with the reason, within the grace. An end that was decided
    /// stays as it is, but for a grace that is shorter.
    fn end_by_node(&mut self, ending: Ending) {
        let Ending { reason, message, grace, disruption } = ending;
        self.journal.grace = Some(self.journal.grace.map_or(grace, |g| g.min(grace)));
        if self.journal.terminal.is_some() || self.pod.deletion.is_some() {
            return;
        }
        self.warn(&reason, &message);
        self.journal.disruption = disruption;
        self.journal.terminal = Some(Terminal { failed: true, reason, message });
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
        self.wish = Arc::clone(&object);
        self.ask_for_more();
        match Pod::read(resize::with(&object, &self.given)) {
            Ok(pod) => {
                let deletion = pod.deletion.or(self.pod.deletion);
                self.fields_changed(&Arc::clone(&self.pod.object), &pod.object);
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
        self.journal.adopt(&self.observed);
        let conditions = self.pod.object.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let ready = conditions.clone().any(|c| c.type_ == "Ready" && c.status == "True");
        let terminal = self.pod.stored_over();
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
}

/// The record of the node's word on a pod.
fn admitted(seen: Micros, now: Micros, refused: Option<&Terminal>) -> Record {
    let mut admitted = record(Phase::Admitted, None, seen, Some(now), "Admitted");
    if let Some(refusal) = refused {
        admitted.outcome = Outcome::Failed;
        admitted.reason.clone_from(&refusal.reason);
        admitted.message = podway_flow::record::bounded(&refusal.message, Record::MESSAGE_LIMIT);
    }
    admitted
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

mod act;
mod care;
mod devices;
mod ending;
mod memo;
mod report;
mod resizing;
mod results;
mod stuck;
#[cfg(test)]
mod tests;
mod volumes;
