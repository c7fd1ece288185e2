//! Config maps and secrets that volumes show, each followed by one watch for all pods of the node that
//! show it: a change is on the disk as soon as the API server tells of it, and nothing is asked twice.
//!
//! A node may list and watch one object by its name (`metadata.name=…`), and only while a pod of its
//! own names it: the Node authorizer sees to that. The watch ends with the last pod that follows it,
//! and with the first answer for an object that is `immutable`, as upstream's
//! (pkg/kubelet/util/manager/watch_based_manager.go).

use super::api::allowed;
use crate::sync::lock;
use crate::watch::lean;
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Volume};
use k8s_openapi::{Metadata, NamespaceResourceScope};
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::core::Resource;
use std::any::Any;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// The first and the longest delay of a watch that cannot be had.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What is known of an object: that it is not there is knowledge too; `None` until the first answer.
type Known<K> = Option<Result<Option<Arc<K>>, Arc<kube::Error>>>;

/// A kind of object that can be followed.
pub trait Followed:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Metadata
    + Clone
    + Debug
    + serde::de::DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Whether it never changes again.
    fn immutable(&self) -> bool;
}

impl Followed for ConfigMap {
    fn immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

impl Followed for Secret {
    fn immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

/// What a pod follows; dropped with it.
#[derive(Default)]
pub struct Following(Vec<Arc<dyn Any + Send + Sync>>);

impl Debug for Following {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Following").field(&self.0.len()).finish()
    }
}

/// One object, and who wants to be told.
pub(super) struct Topic<K> {
    known: watch::Receiver<Known<K>>,
    told: Arc<Mutex<Vec<Weak<Notify>>>>,
    task: tokio::task::AbortHandle,
}

impl<K> Drop for Topic<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<K: Followed> Topic<K> {
    fn new(api: Api<K>, name: String) -> Self {
        let (sender, known) = watch::channel(None);
        let told: Arc<Mutex<Vec<Weak<Notify>>>> = Arc::default();
        let to = Teller { sender, told: Arc::clone(&told) };
        let task = tokio::spawn(async move { to.follow(api, &name).await }).abort_handle();
        Topic { known, told, task }
    }

    /// What is known, once something is.
    pub(super) async fn get(&self) -> Result<Option<Arc<K>>, Arc<kube::Error>> {
        let mut known = self.known.clone();
        // A teller that has ended has told before.
        match known.wait_for(Option::is_some).await {
            Ok(value) => value.clone().unwrap_or(Ok(None)),
            Err(_) => Ok(None),
        }
    }
}

/// The writing end of a topic.
struct Teller<K> {
    sender: watch::Sender<Known<K>>,
    told: Arc<Mutex<Vec<Weak<Notify>>>>,
}

impl<K: Followed> Teller<K> {
    fn tell(&self, value: Result<Option<K>, Arc<kube::Error>>) {
        let version = |v: &Known<K>| match v {
            Some(Ok(Some(object))) => object.meta().resource_version.clone(),
            _ => None,
        };
        let first = self.sender.borrow().is_none();
        if value.is_err() && matches!(*self.sender.borrow(), Some(Ok(_))) {
            // What was last known holds while the API server does not answer.
            return;
        }
        let kept = |mut object: K| {
            lean(&mut object);
            Arc::new(object)
        };
        let value = Some(value.map(|object| object.map(kept)));
        let same = matches!((&value, &*self.sender.borrow()), (Some(Ok(_)), Some(Ok(_))))
            && version(&value) == version(&self.sender.borrow());
        self.sender.send_replace(value);
        if first || same {
            return;
        }
        let mut told = lock(&self.told);
        told.retain(|one| one.upgrade().inspect(|n| n.notify_one()).is_some());
    }

    /// Lists, then watches; again from the list where the API server has forgotten the version.
    async fn follow(self, api: Api<K>, name: &str) {
        let field = format!("metadata.name={name}");
        let list = ListParams::default().fields(&field);
        let params = WatchParams::default().fields(&field);
        let mut delay = RETRY.0;
        loop {
            match allowed(|| api.list(&list)).await {
                Ok(mut found) => {
                    let object = found.items.pop();
                    let done = object.as_ref().is_some_and(|o| o.immutable());
                    self.tell(Ok(object));
                    if done {
                        return;
                    }
                    let version = found.metadata.resource_version.unwrap_or_default();
                    match self.watch(&api, &params, version).await {
                        Ok(true) => return,
                        Ok(false) => {
                            delay = RETRY.0;
                            continue;
                        }
                        Err(error) => tracing::debug!(name, %error, "the watch of an object broke off"),
                    }
                }
                Err(error) => self.tell(Err(Arc::new(error))),
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY.1);
        }
    }

    /// Watches from `version` on; true when there is nothing more to come, false when it must be
    /// listed again.
    async fn watch(
        &self,
        api: &Api<K>,
        params: &WatchParams,
        mut version: String,
    ) -> Result<bool, kube::Error> {
        loop {
            let mut stream = std::pin::pin!(api.watch(params, &version).await?);
            while let Some(event) = stream.try_next().await? {
                match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        version = object.meta().resource_version.clone().unwrap_or(version);
                        let done = object.immutable();
                        self.tell(Ok(Some(object)));
                        if done {
                            return Ok(true);
                        }
                    }
                    WatchEvent::Deleted(object) => {
                        version = object.meta().resource_version.clone().unwrap_or(version);
                        self.tell(Ok(None));
                    }
                    WatchEvent::Bookmark(mark) => version = mark.metadata.resource_version,
                    WatchEvent::Error(_) => return Ok(false),
                }
            }
        }
    }
}

/// The objects of one kind that are followed now.
pub(super) struct Table<K>(Mutex<HashMap<Name, Weak<Topic<K>>>>);

/// Namespace and name.
type Name = (String, String);

impl<K> Default for Table<K> {
    fn default() -> Self {
        Table(Mutex::default())
    }
}

impl<K: Followed> Table<K> {
    /// The topic of an object that a pod follows.
    pub(super) fn find(&self, namespace: &str, name: &str) -> Option<Arc<Topic<K>>> {
        let table = lock(&self.0);
        table.get(&(namespace.to_owned(), name.to_owned())).and_then(Weak::upgrade)
    }

    /// Follows an object, with whoever does so already.
    pub(super) fn follow(
        &self,
        client: &kube::Client,
        namespace: &str,
        name: &str,
        notify: &Arc<Notify>,
        into: &mut Following,
    ) {
        let mut table = lock(&self.0);
        let key = (namespace.to_owned(), name.to_owned());
        let topic = table.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| {
            table.retain(|_, topic| topic.strong_count() > 0);
            let made = Arc::new(Topic::new(Api::namespaced(client.clone(), namespace), name.to_owned()));
            table.insert(key, Arc::downgrade(&made));
            made
        });
        lock(&topic.told).push(Arc::downgrade(notify));
        into.0.push(topic);
    }
}

/// The config maps and the secrets that the volumes of a pod show.
#[must_use]
pub fn named(pod: &Pod) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    for volume in volumes {
        maps.extend(volume.config_map.iter().map(|s| s.name.clone()));
        secrets.extend(volume.secret.iter().filter_map(|s| s.secret_name.clone()));
        for part in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            maps.extend(part.config_map.iter().map(|s| s.name.clone()));
            secrets.extend(part.secret.iter().map(|s| s.name.clone()));
        }
    }
    maps.remove("");
    secrets.remove("");
    (maps, secrets)
}

/// Whether a volume shows fields of its pod, which may change.
#[must_use]
pub fn shows_fields(volume: &Volume) -> bool {
    let projected = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    volume.downward_api.is_some() || projected.into_iter().any(|part| part.downward_api.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_volumes_show_is_followed_once() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "volumes": [
            {"name": "a", "configMap": {"name": "m"}}, {"name": "b", "secret": {"secretName": "s"}},
            {"name": "c", "projected": {"sources": [{"configMap": {"name": "m"}}, {"secret": {"name": "t"}},
                {"downwardAPI": {"items": []}}]}}, {"name": "d", "emptyDir": {}}]}}))
        .unwrap();
        let (maps, secrets) = named(&pod);
        assert_eq!(maps.into_iter().collect::<Vec<_>>(), ["m"]);
        assert_eq!(secrets.into_iter().collect::<Vec<_>>(), ["s", "t"]);
        let volumes = pod.spec.unwrap().volumes.unwrap();
        let fields: Vec<bool> = volumes.iter().map(shows_fields).collect();
        assert_eq!(fields, [false, false, true, false]);
    }

    fn map(version: &str) -> Result<Option<ConfigMap>, Arc<kube::Error>> {
        let object = json!({"metadata": {"name": "m", "resourceVersion": version}});
        Ok(Some(serde_json::from_value(object).unwrap()))
    }

    #[tokio::test]
    async fn a_change_is_told_and_an_echo_or_a_failure_is_not() {
        let (sender, known) = watch::channel(None);
        let notify = Arc::new(Notify::new());
        let told = Arc::new(Mutex::new(vec![Arc::downgrade(&notify)]));
        let teller = Teller { sender, told };
        let pending = |n: Arc<Notify>| async move {
            tokio::time::timeout(Duration::from_millis(1), n.notified()).await.is_ok()
        };
        let down = || Err(Arc::new(kube::Error::LinesCodecMaxLineLengthExceeded));
        for (value, wakes) in
            [(map("1"), false), (map("1"), false), (map("2"), true), (down(), false), (Ok(None), true)]
        {
            teller.tell(value);
            assert_eq!(pending(Arc::clone(&notify)).await, wakes);
        }
        assert!(matches!(&*known.borrow(), Some(Ok(None))));
    }
}
