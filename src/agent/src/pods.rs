//! The pods of this node: which worker owns which UID, what they take of the node together, and the
//! view that the kubelet API has of them. It owns no pod's state: that is its worker's alone.

mod files;

use crate::cri::Told;
use crate::eviction;
use crate::node;
use crate::pod::admission::{self, Ask, Offer, Refusal};
use crate::pod::context::Context;
use crate::pod::core::{Ending, Terminal};
use crate::pod::model::Pod;
use crate::pod::worker::{self, Beginning, Handle, Input};
use crate::source::{PodSource, PodView};
use crate::statics::{Local, Name, mirror, name};
use crate::sync::lock;
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use podway_flow::Micros;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

/// How long what no API object stands for is given to end, in seconds.
const ORPHAN_GRACE: i64 = 30;

/// How long a pod whose worker broke waits for another.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

struct Entry {
    handle: Handle,
    namespace: String,
    name: String,
    /// What it takes of the node; nothing once it is at its end.
    ask: Ask,
    /// That the watch told of its end.
    left: bool,
    /// What stands in the API server's place, of a static pod.
    file: Option<Arc<Local>>,
}

#[derive(Default)]
struct Table {
    pods: HashMap<String, Entry>,
    /// What we deleted and of which the watch still has to tell the end: news of it that are on their
    /// way, or a finalizer's, are no reason to begin it again.
    deleted: HashSet<String>,
    /// What runs here and that no API object stands for, until it is gone.
    orphans: HashMap<String, Handle>,
    /// What the runtime held when the agent began: it was taken before, and is not refused now.
    held: HashSet<String>,
    /// Whether the runtime has told of all that it holds: what is bound to the node later is new to it.
    swept: bool,
}

/// The pods of this node.
pub struct Pods {
    context: Context,
    offer: Offer,
    node: watch::Receiver<node::State>,
    table: Mutex<Table>,
    files: files::Files,
}

fn terminal(pod: &api::Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether the node has yet to take the pod: one that it had taken before a restart is not asked again, nor one at
/// its end.
fn is_new(table: &Table, object: &api::Pod) -> bool {
    let started = object.status.as_ref().is_some_and(|s| s.start_time.is_some());
    let held = object.metadata.uid.as_ref().is_some_and(|uid| table.held.contains(uid));
    !(started || held || terminal(object) || object.metadata.deletion_timestamp.is_some())
}

impl Pods {
    /// None yet, on a node that offers `offer` and stands as `node` tells. Mirror pods are written through
    /// `client`; what static pods leave lies below `root`.
    #[must_use]
    pub fn new(
        context: Context,
        offer: Offer,
        node: watch::Receiver<node::State>,
        client: kube::Client,
        root: std::path::PathBuf,
    ) -> Arc<Self> {
        let files = files::Files::new(client, root);
        Arc::new(Pods { context, offer, node, table: Mutex::default(), files })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// The watch told of a pod; `changed` when it is news, and not part of a listing.
    pub fn apply(self: &Arc<Self>, object: Arc<api::Pod>, seen: Micros, changed: bool) {
        if mirror::shown(&object).is_some() {
            return self.mirror_seen(object);
        }
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let mut table = self.table();
        if let Some(entry) = table.pods.get_mut(&uid) {
            if terminal(&object) {
                entry.ask = Ask::default();
            }
            // A worker that has just ended needs no news: its end removes the entry.
            let _ = entry.handle.inputs.send(Input::Pod(object));
            return;
        }
        if table.deleted.contains(&uid) {
            return;
        }
        self.begin(table, object, seen, changed, None);
    }

    /// A pod that is not known gets a worker; `file`: what a static pod writes to.
    fn begin(
        self: &Arc<Self>,
        mut table: MutexGuard<'_, Table>,
        object: Arc<api::Pod>,
        seen: Micros,
        changed: bool,
        file: Option<Arc<Local>>,
    ) {
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let pod = match Pod::read(Arc::clone(&object)) {
            Ok(pod) => pod,
            Err(error) => {
                tracing::error!(uid, %error, "a pod is not taken");
                return;
            }
        };
        let new = is_new(&table, &object);
        let refused = if new { self.admit(&table, &object) } else { None };
        let spec = object.spec.as_ref().filter(|_| refused.is_none() && !terminal(&object));
        let ask = spec.map(admission::ask).unwrap_or_default();
        let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
        let started = object.status.as_ref().is_some_and(|s| s.start_time.is_some());
        let fresh = changed && table.swept && !started && !table.orphans.contains_key(&uid);
        let mut context = self.context.clone();
        if let Some(local) = &file {
            context.api = Arc::clone(local) as _;
        }
        let beginning = Beginning { pod, seen, refused, fresh, new };
        let (handle, ended) = worker::spawn(context, beginning);
        table.pods.insert(uid.clone(), Entry { handle, namespace, name, ask, left: false, file });
        self.count(&table);
        drop(table);
        let pods = Arc::clone(self);
        tokio::spawn(async move {
            let gone = ended.await.unwrap_or_else(|error| {
                tracing::error!(uid, %error, "a pod's worker broke: a defect of the agent; it is begun again");
                false
            });
            pods.ended(&uid, seen, gone).await;
        });
    }

    /// Whether the node takes a new pod.
    fn admit(&self, table: &Table, object: &api::Pod) -> Option<Terminal> {
        let live = table.pods.values().filter(|e| !terminal(&e.handle.view.borrow().object));
        let others: Vec<&Ask> = live.map(|e| &e.ask).collect();
        let (pressures, leaving, offer) = {
            let node = self.node.borrow();
            (node.pressures, node.leaving.is_set(), self.offered(node.node.as_deref()))
        };
        let leaving = leaving.then(|| Refusal {
            reason: "NodeShutdown".to_owned(),
            message: "Pod was rejected as the node is shutting down.".to_owned(),
        });
        let refusal = leaving
            .or_else(|| eviction::refuses(object, pressures))
            .or_else(|| admission::admit(object.spec.as_ref()?, &others, &offer).err())?;
        self.context.metrics.refused(&refusal.reason);
        let (api, pod, refused) = (Arc::clone(&self.context.api), object.clone(), refusal.clone());
        tokio::spawn(async move { api.warn(&pod, &refused.reason, &refused.message).await });
        Some(Terminal { failed: true, reason: refusal.reason, message: refusal.message })
    }

    /// What the node offers, with what others have written to the Node since.
    fn offered(&self, node: Option<&api::Node>) -> Offer {
        let mut offer = self.offer.clone();
        if let Some(node) = node {
            offer.labels = node.metadata.labels.clone().unwrap_or_default();
        }
        offer
    }

    async fn ended(self: &Arc<Self>, uid: &str, seen: Micros, gone: bool) {
        if !gone {
            // Not at once: what broke it may break it again.
            tokio::time::sleep(AGAIN).await;
        }
        let entry = {
            let mut table = self.table();
            let entry = table.pods.remove(uid);
            self.context.metrics.probes.forget(uid);
            if gone && entry.as_ref().is_some_and(|e| !e.left && e.file.is_none()) {
                table.deleted.insert(uid.to_owned());
            }
            self.count(&table);
            entry
        };
        let Some(entry) = entry else { return };
        let object = entry.handle.view.borrow().object.clone();
        match (gone, entry.file) {
            (true, Some(_)) => self.file_ended(&name(&object), uid),
            (true, None) => {}
            (false, Some(file)) => self.begin(self.table(), object, seen, false, Some(file)),
            (false, None) => self.apply(object, seen, false),
        }
    }

    fn count(&self, table: &Table) {
        let desired = table.pods.values().filter(|e| !terminal(&e.handle.view.borrow().object)).count();
        self.context.metrics.desired_pods.set(i64::try_from(desired).unwrap_or(i64::MAX));
        let running =
            table.pods.values().filter(|e| e.handle.view.borrow().containers.iter().any(|c| c.running));
        self.context.metrics.running_pods.set(i64::try_from(running.count()).unwrap_or(i64::MAX));
    }

    /// The watch told that a pod is gone.
    pub fn delete(&self, object: &api::Pod) {
        if mirror::shown(object).is_some() {
            return self.mirror_gone(&name(object));
        }
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        let mut table = self.table();
        table.deleted.remove(uid);
        if let Some(entry) = table.pods.get_mut(uid) {
            entry.left = true;
            let _ = entry.handle.inputs.send(Input::Gone);
        }
    }

    /// The watch listed every pod of the node: those that it did not name are gone, and what is here
    /// without an object or a file is taken down.
    pub async fn listed(self: &Arc<Self>, uids: &HashSet<String>, mirrors: &HashSet<Name>) {
        self.mirrors_listed(mirrors);
        {
            let mut table = self.table();
            table.deleted.retain(|uid| uids.contains(uid));
            let told = |uid: &String, entry: &Entry| uids.contains(uid) || entry.file.is_some();
            for (_, entry) in table.pods.iter_mut().filter(|(uid, entry)| !told(uid, entry)) {
                entry.left = true;
                let _ = entry.handle.inputs.send(Input::Gone);
            }
        }
        self.sweep().await;
    }

    /// Asks the runtime what it holds, before the first pod is listed: that a pod was taken is written
    /// in its sandbox, also when its status never got to the API server.
    pub async fn recall(&self) {
        match self.context.cri.pods().await {
            Ok(pods) => self.table().held = pods.into_iter().map(|p| p.uid).collect(),
            Err(error) => tracing::warn!(%error, "what was taken before is not known"),
        }
    }

    /// Takes down what the runtime, the volumes' directory or the cgroups have of pods that nobody
    /// knows: what a crash or a deletion behind our back left.
    pub async fn sweep(self: &Arc<Self>) {
        let mut found: HashMap<String, (String, String)> = HashMap::new();
        match self.context.cri.pods().await {
            Ok(pods) => {
                found.extend(pods.into_iter().map(|p| (p.uid, (p.namespace, p.name))));
                self.table().swept = true;
            }
            Err(error) => {
                // Without the runtime nothing is known to be dead: directories stay as well.
                tracing::warn!(%error, "orphans cannot be looked for");
                return;
            }
        }
        match self.context.volumes.uids() {
            Ok(uids) => uids.into_iter().for_each(|uid| {
                found.entry(uid).or_default();
            }),
            Err(error) => tracing::warn!(%error, "the pods' directories cannot be listed"),
        }
        for uid in self.context.cgroups.uids().into_iter().chain(self.context.devices.uids()) {
            found.entry(uid).or_default();
        }
        for (uid, (namespace, name)) in found {
            self.orphan(uid, namespace, name);
        }
    }

    fn orphan(self: &Arc<Self>, uid: String, mut namespace: String, mut name: String) {
        let mut table = self.table();
        if table.pods.contains_key(&uid) || table.orphans.contains_key(&uid) {
            return;
        }
        if namespace.is_empty() {
            (namespace, name) = self.logs_of(&uid).unwrap_or_else(|| ("unknown".into(), "unknown".into()));
        }
        let mut object = api::Pod::default();
        object.metadata.uid = Some(uid.clone());
        object.metadata.namespace = Some(namespace);
        object.metadata.name = Some(name);
        object.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::now()));
        object.metadata.deletion_grace_period_seconds = Some(ORPHAN_GRACE);
        let container = api::Container { name: "orphan".to_owned(), ..api::Container::default() };
        object.spec = Some(api::PodSpec { containers: vec![container], ..api::PodSpec::default() });
        let pod = match Pod::read(Arc::new(object)) {
            Ok(pod) => pod,
            Err(error) => {
                tracing::error!(uid, %error, "an orphan is left alone: its name is none of ours");
                return;
            }
        };
        tracing::info!(uid, pod.namespace, pod.name, "taking down what no pod stands for");
        self.context.metrics.orphans.inc();
        let beginning =
            Beginning { pod, seen: self.context.clock.now(), refused: None, fresh: false, new: false };
        let (handle, ended) = worker::spawn(self.context.clone(), beginning);
        // Told before it looks at anything: it never writes of a pod that is not there.
        let _ = handle.inputs.send(Input::Gone);
        table.orphans.insert(uid.clone(), handle);
        drop(table);
        let pods = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = ended.await {
                tracing::error!(uid, %error, "an orphan's worker broke: a defect of the agent");
            }
            pods.table().orphans.remove(&uid);
        });
    }

    /// Namespace and name from the name of a log directory that ends in the UID.
    fn logs_of(&self, uid: &str) -> Option<(String, String)> {
        let list = std::fs::read_dir(&self.context.pod_logs_dir).ok()?;
        list.filter_map(|e| e.ok()?.file_name().into_string().ok()).find_map(|dir| {
            let (namespace, rest) = dir.split_once('_')?;
            let (name, of) = rest.rsplit_once('_')?;
            (of == uid).then(|| (namespace.to_owned(), name.to_owned()))
        })
    }

    /// Ends a pod for the node's sake.
    pub fn end(&self, uid: &str, ending: Ending) {
        if let Some(entry) = self.table().pods.get(uid) {
            let _ = entry.handle.inputs.send(Input::End(Box::new(ending)));
        }
    }

    /// What the worker of `uid` sees, now and on.
    #[must_use]
    pub fn view(&self, uid: &str) -> Option<watch::Receiver<Arc<PodView>>> {
        self.table().pods.get(uid).map(|e| e.handle.view.clone())
    }

    /// The runtime told what became of a pod.
    pub fn told(&self, told: Told) {
        let table = self.table();
        let entry = table.pods.get(&told.uid).map(|e| &e.handle);
        if let Some(handle) = entry.or_else(|| table.orphans.get(&told.uid)) {
            let _ = handle.inputs.send(Input::Told(Box::new(told)));
        }
        self.count(&table);
    }

    /// The runtime told of a change of a pod.
    pub fn changed(&self, uid: &str) {
        let table = self.table();
        let entry = table.pods.get(uid).map(|e| &e.handle);
        if let Some(handle) = entry.or_else(|| table.orphans.get(uid)) {
            let _ = handle.inputs.send(Input::Runtime);
        }
        self.count(&table);
    }

    /// What the runtime told may be incomplete: every worker asks anew.
    pub fn resync(&self) {
        let table = self.table();
        for handle in table.pods.values().map(|e| &e.handle).chain(table.orphans.values()) {
            let _ = handle.inputs.send(Input::Runtime);
        }
    }
}

impl PodSource for Pods {
    fn pods(&self) -> Vec<PodView> {
        self.table().pods.values().map(|e| (**e.handle.view.borrow()).clone()).collect()
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<PodView> {
        self.follow(namespace, name).map(|view| (**view.borrow()).clone())
    }

    fn follow(&self, namespace: &str, name: &str) -> Option<watch::Receiver<Arc<PodView>>> {
        let table = self.table();
        let named = table.pods.values().filter(|e| e.namespace == namespace && e.name == name);
        // While an old pod of the name goes, the new one is meant.
        let newest =
            named.max_by_key(|e| e.handle.view.borrow().object.metadata.deletion_timestamp.is_none())?;
        Some(newest.handle.view.clone())
    }

    fn probes(&self) -> String {
        self.context.metrics.probes.text()
    }

    fn metrics(&self) -> String {
        self.count(&self.table());
        self.context.metrics.text()
    }
}
