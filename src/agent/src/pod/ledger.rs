//! What the pods of this node hold of it together: asked when one of them wants more, in place.

use crate::env::quantity;
use crate::pod::admission::Ask;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// Why a pod does not get what it wants now (pkg/kubelet/allocation/allocation_manager.go).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The node does not have as much at all.
    Infeasible(String),
    /// Others hold it.
    Deferred(String),
}

impl Denied {
    /// The condition's reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Denied::Infeasible(_) => "Infeasible",
            Denied::Deferred(_) => "Deferred",
        }
    }

    /// The condition's message.
    #[must_use]
    pub fn message(&self) -> &str {
        match self {
            Denied::Infeasible(text) | Denied::Deferred(text) => text,
        }
    }
}

/// What each pod holds.
#[derive(Debug)]
pub struct Ledger {
    held: Mutex<BTreeMap<String, Ask>>,
    allocatable: BTreeMap<String, Quantity>,
    freed: watch::Sender<()>,
}

/// A pod's entry; dropped with its worker.
#[derive(Debug)]
pub struct Held {
    ledger: Arc<Ledger>,
    uid: String,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.ledger.release(&self.uid);
    }
}

impl Ledger {
    /// Of a node that offers `allocatable`.
    #[must_use]
    pub fn new(allocatable: BTreeMap<String, Quantity>) -> Arc<Self> {
        Arc::new(Ledger { held: Mutex::default(), allocatable, freed: watch::channel(()).0 })
    }

    /// Notes what an admitted pod holds.
    #[must_use]
    pub fn hold(self: &Arc<Self>, uid: &str, ask: Ask) -> Held {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), ask);
        Held { ledger: Arc::clone(self), uid: uid.to_owned() }
    }

    /// A pod is over: it holds nothing any more.
    pub fn release(&self, uid: &str) {
        let gone = self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        if gone.is_some() {
            self.freed.send_replace(());
        }
    }

    /// Woken when something was given back.
    #[must_use]
    pub fn freed(&self) -> watch::Receiver<()> {
        self.freed.subscribe()
    }

    /// Gives a pod what it wants in the place of what it holds.
    ///
    /// # Errors
    /// [`Denied`]; it then holds what it held.
    pub fn change(&self, uid: &str, ask: Ask) -> Result<(), Denied> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let used = |of: fn(&Ask) -> i128| {
            held.iter().filter(|(other, _)| *other != uid).map(|(_, a)| of(a)).sum::<i128>()
        };
        let have = |name: &str, read: fn(&str) -> Option<i128>| {
            self.allocatable.get(name).and_then(|q| read(&q.0)).unwrap_or(i128::MAX)
        };
        let rows = [
            ("cpu", ask.cpu, used(|a| a.cpu), have("cpu", quantity::milli)),
            ("memory", ask.memory, used(|a| a.memory), have("memory", quantity::value)),
        ];
        for (name, requested, _, capacity) in rows {
            if requested > capacity {
                return Err(Denied::Infeasible(format!(
                    "Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}"
                )));
            }
        }
        let now = held.get(uid).cloned().unwrap_or_default();
        for (name, requested, used, capacity) in rows {
            let grows = if name == "cpu" { requested > now.cpu } else { requested > now.memory };
            if grows && requested.saturating_add(used) > capacity {
                return Err(Denied::Deferred(format!(
                    "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
                )));
            }
        }
        let shrinks = ask.cpu < now.cpu || ask.memory < now.memory;
        held.insert(uid.to_owned(), ask);
        drop(held);
        if shrinks {
            self.freed.send_replace(());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(cpu: i128, memory: i128) -> Ask {
        Ask { cpu, memory, ports: Vec::new() }
    }

    #[test]
    fn more_is_given_where_it_is_and_what_is_given_back_is_told() {
        let offer = [("cpu", "1"), ("memory", "1Ki")].map(|(k, v)| (k.to_owned(), Quantity(v.to_owned())));
        let ledger = Ledger::new(offer.into());
        let mut freed = ledger.freed();
        let (a, _b) = (ledger.hold("a", ask(500, 0)), ledger.hold("b", ask(400, 0)));
        assert!(matches!(ledger.change("b", ask(1001, 0)), Err(Denied::Infeasible(_))));
        let late = ledger.change("b", ask(501, 0)).unwrap_err();
        assert_eq!(
            (late.reason(), late.message()),
            ("Deferred", "Node didn't have enough resource: cpu, requested: 501, used: 500, capacity: 1000")
        );
        assert_eq!(ledger.change("b", ask(500, 1024)), Ok(()));
        assert!(!freed.has_changed().unwrap());
        drop(a);
        assert!(freed.has_changed().unwrap());
        freed.mark_unchanged();
        assert_eq!(ledger.change("b", ask(1000, 0)), Ok(()));
        assert!(freed.has_changed().unwrap(), "memory was given back");
    }
}
