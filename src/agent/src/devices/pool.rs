//! Which devices there are, and which container has which. Pure: what a plugin says and what is given comes in, and
//! the rules are the kubelet's (pkg/kubelet/cm/devicemanager/manager.go).
//!
//! Invariants: a device is one pod's at most, and within it one container's, but for what an init container leaves to
//! those after it; what a container has it keeps, whatever becomes of the plugin, until its pod is over.

use super::answer::{Answer, Gear};
use super::name::Resource;
use crate::env::quantity;
use k8s_openapi::api::core::v1 as api;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Why a container does not get its devices; the words are upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It has others.
    #[error(
        "pod {uid:?} container {container:?} changed request for resource {:?} from {had} to {needed}",
        .resource.as_str()
    )]
    Changed {
        /// The pod's UID.
        uid: String,
        /// The container.
        container: String,
        /// Of what.
        resource: Resource,
        /// How many it has.
        had: usize,
        /// How many it wants.
        needed: usize,
    },
    /// Its plugin has not told of any yet.
    #[error("cannot allocate unregistered device {0}")]
    Unregistered(Resource),
    /// None works.
    #[error("no healthy devices present; cannot allocate unhealthy devices {0}")]
    NoneHealthy(Resource),
    /// Its own do not work.
    #[error("previously allocated devices are no longer healthy; cannot allocate unhealthy devices {0}")]
    Broken(Resource),
    /// Others have them.
    #[error(
        "requested number of devices unavailable for {resource}. Requested: {needed}, Available: {available}"
    )]
    Short {
        /// Of what.
        resource: Resource,
        /// How many more are needed.
        needed: usize,
        /// How many there are.
        available: usize,
    },
}

/// How many of a resource there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// All of them.
    pub capacity: usize,
    /// Those that work.
    pub allocatable: usize,
}

/// Amounts by the resource's name.
pub type Amounts = BTreeMap<String, Amount>;

/// What a container has of a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// By their ids.
    pub devices: BTreeSet<String>,
    /// What their plugin wants of the container.
    pub answer: Answer,
}

type OfContainer = BTreeMap<Resource, Held>;
type OfPod = BTreeMap<String, OfContainer>;

/// The format of [`Written`]; another one is not read.
const VERSION: u32 = 1;

/// What must not be forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    version: u32,
    /// Whose plugins have been here.
    resources: BTreeSet<Resource>,
    /// By UID and container.
    pods: BTreeMap<String, OfPod>,
}

/// Devices that the init containers before have left, by resource.
pub type Left = BTreeMap<Resource, BTreeSet<String>>;

/// Devices to choose from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Those that are its already.
    pub taken: BTreeSet<String>,
    /// How many more it needs.
    pub needed: usize,
    /// Those that are free.
    pub free: BTreeSet<String>,
}

impl Choice {
    /// All of them, those of `preferred` first.
    #[must_use]
    pub fn with(self, preferred: &BTreeSet<String>) -> BTreeSet<String> {
        let (first, rest): (Vec<_>, Vec<_>) = self.free.into_iter().partition(|id| preferred.contains(id));
        self.taken.into_iter().chain(first.into_iter().chain(rest).take(self.needed)).collect()
    }
}

/// What a plugin told of its resource.
#[derive(Debug, Default)]
struct Known {
    /// By their ids, and whether they work.
    devices: BTreeMap<String, bool>,
    /// Whether the plugin is here: of one that is not, nothing can be had.
    here: bool,
}

impl Known {
    fn works(&self) -> impl Iterator<Item = &String> {
        self.devices.iter().filter(|(_, works)| self.here && **works).map(|(id, _)| id)
    }
}

/// The devices of this node.
#[derive(Debug, Default)]
pub struct Pool {
    /// A resource that was known once stays: without devices when its plugin has gone for good.
    resources: BTreeMap<Resource, Known>,
    pods: BTreeMap<String, OfPod>,
}

impl Pool {
    /// As it was written; of another version, none.
    #[must_use]
    pub fn recall(written: Written) -> Option<Self> {
        let resources = written.resources.into_iter().map(|name| (name, Known::default())).collect();
        (written.version == VERSION).then_some(Pool { resources, pods: written.pods })
    }

    /// To be written.
    #[must_use]
    pub fn written(&self) -> Written {
        let resources = self.resources.keys().cloned().collect();
        Written { version: VERSION, resources, pods: self.pods.clone() }
    }

    /// How many resources are known.
    #[must_use]
    pub fn known(&self) -> usize {
        self.resources.len()
    }

    /// A plugin told of all its devices. True where it is the first to tell of this resource.
    pub fn listed(&mut self, resource: &Resource, devices: BTreeMap<String, bool>) -> bool {
        self.resources.insert(resource.clone(), Known { devices, here: true }).is_none()
    }

    /// Its plugin has left: none of its devices works.
    pub fn left(&mut self, resource: &Resource) {
        if let Some(known) = self.resources.get_mut(resource) {
            known.here = false;
        }
    }

    /// It does not come back.
    pub fn gone(&mut self, resource: &Resource) {
        if let Some(known) = self.resources.get_mut(resource) {
            *known = Known::default();
        }
    }

    /// What the Node is to say.
    #[must_use]
    pub fn amounts(&self) -> Amounts {
        let amount =
            |known: &Known| Amount { capacity: known.devices.len(), allocatable: known.works().count() };
        self.resources.iter().map(|(name, known)| (name.to_string(), amount(known))).collect()
    }

    /// The health of a device in the API's words: `Unknown` while its plugin is away, or does not name it.
    #[must_use]
    pub fn health(&self, resource: &Resource, device: &str) -> &'static str {
        let known = self.resources.get(resource).filter(|known| known.here);
        match known.and_then(|known| known.devices.get(device)) {
            Some(true) => "Healthy",
            Some(false) => "Unhealthy",
            None => "Unknown",
        }
    }

    /// What a container wants of plugins: limits, as an extended resource is never overcommitted.
    #[must_use]
    pub fn wants(&self, container: &api::Container) -> Vec<(Resource, usize)> {
        let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
        let each = limits.into_iter().flatten().filter_map(|(name, amount)| {
            let resource = Resource::parse(name).filter(|r| self.resources.contains_key(r))?;
            let count = usize::try_from(quantity::value(&amount.0)?).ok()?;
            (count > 0).then_some((resource, count))
        });
        each.collect()
    }

    /// What a container can have of a resource, `needed` in all; none where it has it already.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn choice(
        &self,
        uid: &str,
        container: &str,
        resource: &Resource,
        needed: usize,
        left: &Left,
    ) -> Result<Option<Choice>, Refused> {
        let held = self.held(uid, container, resource).map(|held| &held.devices);
        if let Some(had) = held.map(BTreeSet::len).filter(|had| *had != needed) {
            let (uid, container) = (uid.to_owned(), container.to_owned());
            return Err(Refused::Changed { uid, container, resource: resource.clone(), had, needed });
        }
        let known = self.resources.get(resource).ok_or_else(|| Refused::Unregistered(resource.clone()))?;
        let works: BTreeSet<&String> = known.works().collect();
        if works.is_empty() {
            return Err(Refused::NoneHealthy(resource.clone()));
        }
        if let Some(held) = held {
            let whole = held.iter().all(|id| works.contains(id));
            return if whole { Ok(None) } else { Err(Refused::Broken(resource.clone())) };
        }
        let taken: BTreeSet<String> =
            left.get(resource).into_iter().flatten().take(needed).cloned().collect();
        let needed = needed - taken.len();
        let used: BTreeSet<&String> = self
            .pods
            .values()
            .flat_map(BTreeMap::values)
            .filter_map(|of| of.get(resource))
            .flat_map(|held| &held.devices)
            .collect();
        let free: BTreeSet<String> = works.difference(&used).map(|id| (*id).clone()).collect();
        if free.len() < needed {
            let available = free.len();
            return Err(Refused::Short { resource: resource.clone(), needed, available });
        }
        Ok(Some(Choice { taken, needed, free }))
    }

    /// A container has these from now on.
    pub fn hold(&mut self, uid: &str, container: &str, resource: Resource, held: Held) {
        let pod = self.pods.entry(uid.to_owned()).or_default();
        pod.entry(container.to_owned()).or_default().insert(resource, held);
    }

    /// What a container leaves to those after it: `keeps`, if it goes on beside them, nothing.
    pub fn leave(&self, uid: &str, container: &str, keeps: bool, left: &mut Left) {
        for (resource, held) in self.of(uid, container) {
            let left = left.entry(resource.clone()).or_default();
            if keeps {
                left.retain(|id| !held.devices.contains(id));
            } else {
                left.extend(held.devices.iter().cloned());
            }
        }
    }

    /// What a container has of a resource.
    #[must_use]
    pub fn held(&self, uid: &str, container: &str, resource: &Resource) -> Option<&Held> {
        self.pods.get(uid)?.get(container)?.get(resource)
    }

    /// What a container has.
    pub fn of(&self, uid: &str, container: &str) -> impl Iterator<Item = (&Resource, &Held)> {
        self.pods.get(uid).and_then(|pod| pod.get(container)).into_iter().flatten()
    }

    /// The same, as its runtime is told.
    #[must_use]
    pub fn gear(&self, uid: &str, container: &str) -> Gear {
        Gear::of(self.of(uid, container).map(|(_, held)| &held.answer))
    }

    /// Whether a pod has something.
    #[must_use]
    pub fn has(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// A pod is over. True where it had something.
    pub fn release(&mut self, uid: &str) -> bool {
        self.pods.remove(uid).is_some()
    }

    /// Who has something.
    #[must_use]
    pub fn uids(&self) -> Vec<String> {
        self.pods.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn names(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    fn pool(devices: &[(&str, bool)]) -> (Pool, Resource) {
        let (mut pool, resource) = (Pool::default(), Resource::parse("a.b/c").unwrap());
        let devices = devices.iter().map(|(id, works)| ((*id).to_owned(), *works)).collect();
        assert!(pool.listed(&resource, devices));
        (pool, resource)
    }

    fn hold(pool: &mut Pool, uid: &str, container: &str, ids: &[&str]) {
        let held = Held { devices: names(ids), answer: Answer::default() };
        pool.hold(uid, container, Resource::parse("a.b/c").unwrap(), held);
    }

    #[test]
    fn what_works_and_nobody_has_is_free() {
        let (mut pool, r) = pool(&[("1", true), ("2", true), ("3", false), ("4", true)]);
        hold(&mut pool, "u", "c", &["2"]);
        let free = pool.choice("v", "c", &r, 2, &Left::new()).unwrap().unwrap();
        assert_eq!((&free.free, free.needed), (&names(&["1", "4"]), 2));
        assert_eq!(free.clone().with(&names(&["4", "3"])), names(&["1", "4"]), "never what is not free");
        let one = Choice { needed: 1, ..free };
        assert_eq!((one.clone().with(&names(&["4"])), one.with(&names(&[]))), (names(&["4"]), names(&["1"])));
        let says = |pool: &Pool, uid: &str, needed| {
            pool.choice(uid, "c", &r, needed, &Left::new()).unwrap_err().to_string()
        };
        assert_eq!(
            says(&pool, "v", 3),
            "requested number of devices unavailable for a.b/c. Requested: 3, Available: 2"
        );
        assert_eq!(
            says(&pool, "u", 2),
            "pod \"u\" container \"c\" changed request for resource \"a.b/c\" from 1 to 2"
        );
        assert_eq!(pool.choice("u", "c", &r, 1, &Left::new()), Ok(None), "it has it");
        pool.listed(&r, [("1".to_owned(), true)].into());
        assert!(says(&pool, "u", 1).starts_with("previously allocated devices are no longer healthy"));
        pool.left(&r);
        assert_eq!(
            says(&pool, "v", 1),
            "no healthy devices present; cannot allocate unhealthy devices a.b/c"
        );
        assert!(pool.release("u") && !pool.release("u"));
    }

    #[test]
    fn an_init_container_leaves_its_devices_to_those_after_it() {
        let (mut pool, r) = pool(&[("1", true), ("2", true)]);
        let mut left = Left::new();
        hold(&mut pool, "u", "init", &["1"]);
        pool.leave("u", "init", false, &mut left);
        let choice = pool.choice("u", "app", &r, 2, &left).unwrap().unwrap();
        assert_eq!((&choice.taken, choice.needed), (&names(&["1"]), 1));
        assert_eq!(choice.with(&names(&[])), names(&["1", "2"]));
        hold(&mut pool, "u", "app", &["1"]);
        pool.leave("u", "app", true, &mut left);
        let choice = pool.choice("u", "other", &r, 1, &left).unwrap().unwrap();
        assert_eq!((choice.taken, choice.free), (names(&[]), names(&["2"])), "one container's at a time");
    }

    #[test]
    fn what_the_node_says_and_what_is_remembered() {
        let (mut pool, r) = pool(&[("1", true), ("2", false)]);
        let amount = |pool: &Pool| pool.amounts()["a.b/c"];
        assert_eq!(amount(&pool), Amount { capacity: 2, allocatable: 1 });
        assert_eq!(["1", "2", "3"].map(|id| pool.health(&r, id)), ["Healthy", "Unhealthy", "Unknown"]);
        pool.left(&r);
        assert_eq!(amount(&pool), Amount { capacity: 2, allocatable: 0 });
        assert_eq!(pool.health(&r, "1"), "Unknown");
        pool.gone(&r);
        assert_eq!(amount(&pool), Amount::default(), "0, and not nothing");
        hold(&mut pool, "u", "c", &["1"]);
        let text = serde_json::to_string(&pool.written()).unwrap();
        let again = Pool::recall(serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!((again.written(), again.uids()), (pool.written(), vec!["u".to_owned()]));
        assert_eq!(Pool::recall(Written { version: 9, ..pool.written() }).map(|p| p.known()), None);
        let limits = json!({"a.b/c": "2", "a.b/d": "1", "cpu": "1"});
        let wants = json!({"name": "c", "resources": {"limits": limits}});
        assert_eq!(again.wants(&serde_json::from_value(wants).unwrap()), [(r, 2)]);
    }
}
