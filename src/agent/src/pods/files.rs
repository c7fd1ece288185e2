//! The node's static pods among its pods: what the files want becomes workers, and what the watch tells of
//! mirror pods goes to the tasks that own those. A mirror pod of which no file knows is taken away.

use super::{Entry, Pods};
use crate::pod::worker::Input;
use crate::statics::{Do, Local, Name, Slots, deleted, mirror, name};
use k8s_openapi::api::core::v1 as api;
use kube::Client;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the node's pods know of files and mirrors.
pub(super) struct Files {
    client: Client,
    root: PathBuf,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    slots: Slots,
    mirrors: HashMap<Name, mirror::Handle>,
}

impl Files {
    pub(super) fn new(client: Client, root: PathBuf) -> Self {
        Files { client, root, table: Mutex::default() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pods {
    /// The files stand for these pods now.
    pub fn files(self: &Arc<Self>, pods: Vec<Arc<api::Pod>>) {
        let steps = self.files.table().slots.want(pods);
        steps.into_iter().for_each(|step| self.take(step));
    }

    fn take(self: &Arc<Self>, step: Do) {
        match step {
            Do::Begin(pod) => {
                let mirror = self.mirror(&name(&pod));
                let (api, root) = (Arc::clone(&self.context.api), &self.files.root);
                let local = Arc::new(Local::new(api, mirror, &pod, root));
                self.begin(self.table(), local.pod(), self.context.clock.now(), false, Some(local));
            }
            Do::End(pod) => {
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                let table = self.table();
                let Some(Entry { handle, file: Some(local), .. }) = table.pods.get(uid) else { return };
                let gone = deleted(&local.pod(), jiff::Timestamp::now());
                let _ = handle.inputs.send(Input::Pod(Arc::new(gone)));
            }
        }
    }

    fn mirror(&self, of: &Name) -> mirror::Handle {
        let mut table = self.files.table();
        let begin = || mirror::spawn(self.files.client.clone(), &of.0, &of.1, self.node.clone());
        table.mirrors.entry(of.clone()).or_insert_with(begin).clone()
    }

    /// Nothing is left of a static pod: the next one of its name may begin.
    pub(super) fn file_ended(self: &Arc<Self>, of: &Name, uid: &str) {
        let step = self.files.table().slots.ended(of, uid);
        if let Some(step) = step {
            self.take(step);
        }
    }

    /// The watch told of a mirror pod.
    pub(super) fn mirror_seen(&self, object: Arc<api::Pod>) {
        // One that no file knows has a task too: it takes it away.
        self.mirror(&name(&object)).see(Some(object));
    }

    /// The watch told that a mirror pod is gone.
    pub(super) fn mirror_gone(&self, of: &Name) {
        let mut table = self.files.table();
        if let Some(mirror) = table.mirrors.get(of) {
            mirror.see(None);
        }
        if !table.slots.has(of) {
            table.mirrors.remove(of);
        }
    }

    /// The watch listed every pod of the node, these mirrors among them.
    pub(super) fn mirrors_listed(&self, there: &HashSet<Name>) {
        let gone: Vec<Name> =
            self.files.table().mirrors.keys().filter(|n| !there.contains(n)).cloned().collect();
        gone.iter().for_each(|name| self.mirror_gone(name));
    }
}
