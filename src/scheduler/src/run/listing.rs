//! What a watch tells, with the end of a listing made plain: what it did not name is gone.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::runtime::watcher;
use std::collections::HashSet;

/// What is told of a kind's objects.
pub(super) enum Told<K> {
    /// This is one as it is now.
    Set(K),
    /// That of this key is gone.
    Gone(String),
    /// A listing is over: no others are there.
    Listed(HashSet<String>),
}

/// The keys that a listing under way has named.
#[derive(Debug, Default)]
pub(super) struct Listing(HashSet<String>);

impl Listing {
    /// What `event` tells, if it does; `key` is what objects of the kind are known by.
    pub(super) fn take<K: Resource>(
        &mut self,
        event: watcher::Event<K>,
        key: fn(&ObjectMeta) -> Option<&String>,
    ) -> Option<Told<K>> {
        match event {
            watcher::Event::Init => {
                self.0.clear();
                None
            }
            watcher::Event::InitApply(object) => {
                self.0.extend(key(object.meta()).cloned());
                Some(Told::Set(object))
            }
            watcher::Event::InitDone => Some(Told::Listed(std::mem::take(&mut self.0))),
            watcher::Event::Apply(object) => Some(Told::Set(object)),
            watcher::Event::Delete(object) => {
                Some(Told::Gone(key(object.meta()).cloned().unwrap_or_default()))
            }
        }
    }
}

/// Objects that are known by their name.
pub(super) fn name(meta: &ObjectMeta) -> Option<&String> {
    meta.name.as_ref()
}

/// Objects that are known by their UID.
pub(super) fn uid(meta: &ObjectMeta) -> Option<&String> {
    meta.uid.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Node;

    #[test]
    fn a_listing_names_what_is_there() {
        let node = |name: &str| {
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            Node { metadata, ..Node::default() }
        };
        let mut listing = Listing::default();
        for _ in 0..2 {
            assert!(listing.take(watcher::Event::<Node>::Init, name).is_none());
            assert!(matches!(listing.take(watcher::Event::InitApply(node("a")), name), Some(Told::Set(_))));
            let done = listing.take(watcher::Event::<Node>::InitDone, name);
            assert!(matches!(done, Some(Told::Listed(all)) if all == HashSet::from(["a".to_owned()])));
            // What comes after it is in no listing.
            assert!(matches!(listing.take(watcher::Event::Apply(node("b")), name), Some(Told::Set(_))));
        }
        let gone = listing.take(watcher::Event::Delete(node("b")), name);
        assert!(matches!(gone, Some(Told::Gone(key)) if key == "b"));
    }
}
