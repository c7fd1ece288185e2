//! What the watches tell of nodes, namespaces and profiles.

use super::Scheduler;
use super::listing::{self, Told};
use crate::framework::ClusterEvent;
use crate::model::{NodeInfo, PodInfo};
use crate::record::Entry;
use crate::status::{Notice, Verdict};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::runtime::watcher;
use podway_api::SchedulerProfile;
use std::sync::Arc;

impl Scheduler {
    pub(super) fn on_node(&mut self, event: watcher::Event<Node>) {
        match self.listed_nodes.take(event, listing::name) {
            None => {}
            Some(Told::Set(node)) => self.set_node(&node),
            Some(Told::Gone(name)) => self.remove_node(&name),
            Some(Told::Listed(seen)) => {
                let gone: Vec<String> =
                    self.cache.node_names().filter(|n| !seen.contains(*n)).map(str::to_owned).collect();
                gone.iter().for_each(|name| self.remove_node(name));
                self.synced.nodes = true;
            }
        }
    }

    pub(super) fn remove_node(&mut self, name: &str) {
        if let Some(before) = self.cache.remove_node(name) {
            self.happened(&ClusterEvent::NodeDelete(before));
        }
    }

    pub(super) fn on_profile(&mut self, event: watcher::Event<SchedulerProfile>) {
        match self.listed_profiles.take(event, listing::name) {
            None => {}
            Some(Told::Set(profile)) => self.set_profile(&profile),
            Some(Told::Gone(name)) => self.unset_profile(&name),
            Some(Told::Listed(seen)) => {
                let gone: Vec<String> =
                    self.profiles.of_objects().filter(|n| !seen.contains(*n)).map(str::to_owned).collect();
                gone.iter().for_each(|name| self.unset_profile(name));
                self.synced.profiles = true;
            }
        }
    }

    /// The next cycle goes by it, and whoever waits under its name is tried again.
    pub(super) fn set_profile(&mut self, object: &SchedulerProfile) {
        let Some(name) = object.metadata.name.as_deref() else { return };
        let generation = object.metadata.generation.unwrap_or(1);
        if self.profiles.of(name).is_some_and(|live| live.generation == generation) {
            // A write of its status.
            return;
        }
        let (live, error) = self.profiles.set(name, &object.spec, generation);
        self.cache.note_entry(|| Entry::Profile {
            name: name.to_owned(),
            generation,
            spec: Some(Box::new(object.spec.clone())),
        });
        let fault = error.map(|e| e.to_string());
        tracing::info!(name, generation, live, fault, "a profile was read");
        self.notify(Notice::Profile(Box::new(Verdict::of(object, live, fault))));
        self.profile_changed(name);
    }

    pub(super) fn unset_profile(&mut self, name: &str) {
        self.profiles.unset(name);
        self.cache.note_entry(|| Entry::Profile { name: name.to_owned(), generation: 0, spec: None });
        tracing::info!(name, "a profile went");
        self.profile_changed(name);
    }

    pub(super) fn profile_changed(&mut self, name: &str) {
        self.decider.forget();
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

    /// Namespaces are known by their labels, which affinity terms may select by.
    pub(super) fn on_namespace(&mut self, event: watcher::Event<Namespace>) {
        match self.listed_namespaces.take(event, listing::name) {
            None => {}
            Some(Told::Set(namespace)) => self.set_namespace(namespace),
            Some(Told::Gone(name)) => self.cache.remove_namespace(&name),
            Some(Told::Listed(seen)) => {
                let gone: Vec<String> =
                    self.cache.namespace_names().filter(|n| !seen.contains(*n)).map(str::to_owned).collect();
                gone.iter().for_each(|name| self.cache.remove_namespace(name));
                self.synced.namespaces = true;
            }
        }
    }

    pub(super) fn set_namespace(&mut self, namespace: Namespace) {
        if let Some(name) = namespace.metadata.name {
            self.cache.set_namespace(&name, namespace.metadata.labels.unwrap_or_default());
        }
    }

    pub(super) fn set_node(&mut self, node: &Node) {
        let info = match NodeInfo::parse(node) {
            Ok(info) => Arc::new(if self.keeps_originals { info.keeping(node) } else { info }),
            Err(error) => {
                tracing::warn!(%error, node = node.metadata.name, "a node is left out");
                return self.remove_node(node.metadata.name.as_deref().unwrap_or_default());
            }
        };
        let event = match self.cache.set_node(info.clone()) {
            None => ClusterEvent::NodeAdd(info),
            Some(old) if old.schedules_like(&info) => return,
            Some(old) => ClusterEvent::NodeUpdate(old, info),
        };
        self.happened(&event);
    }
}
