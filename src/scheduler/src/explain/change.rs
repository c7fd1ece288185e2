//! A change that a person could make so that a pod fits: said in words, and made in a copy.
//!
//! A change acts on a [`Trial`], a pod and a snapshot of one's own; the cluster is never touched.

use crate::cache::{NodeState, Snapshot};
use crate::model::node::{Effect, Taint};
use crate::model::{NodeInfo, PodInfo, Toleration};
use serde::Serialize;
use std::fmt;
use std::sync::Arc;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase", tag = "change")]
pub enum Change {
    /// `kubectl uncordon`.
    Uncordon {
        /// The node.
        node: String,
    },
    /// The pod tolerates a taint.
    Tolerate {
        /// The taint's key.
        key: String,
        /// Its value.
        value: String,
        /// Its effect.
        effect: &'static str,
    },
    /// `kubectl label node`.
    Label {
        /// The node.
        node: String,
        /// The label.
        key: String,
        /// Its value.
        value: String,
    },
    /// The pod no longer asks for a label of its node.
    DropSelector {
        /// The label.
        key: String,
    },
    /// The pod's required node affinity goes.
    DropNodeAffinity,
    /// Of a resource that a node has, more must be free.
    Room {
        /// The node.
        node: String,
        /// The resource.
        resource: String,
        /// How much is missing, in the resource's unit (thousandths of a core for CPU).
        missing: i64,
        /// What the pod asks for.
        asked: i64,
    },
    /// More is asked for than the node has in all.
    Bigger {
        /// The node.
        node: String,
        /// The resource.
        resource: String,
        /// What it has.
        has: i64,
        /// What the pod asks for.
        asked: i64,
    },
    /// The node takes no more pods.
    FewerPods {
        /// The node.
        node: String,
    },
    /// The pod gives up a port of the host.
    DropHostPort {
        /// The port.
        port: i32,
        /// Its protocol.
        protocol: String,
    },
    /// A spread constraint is relaxed.
    Skew {
        /// Its topology key.
        key: String,
        /// From this maxSkew.
        from: i64,
        /// To this one.
        to: i64,
    },
    /// The pod's required affinity to other pods goes.
    DropPodAffinity,
    /// The pod's required anti-affinity to other pods goes.
    DropPodAntiAffinity,
}

/// A pod and a cluster to try on.
#[derive(Clone)]
pub struct Trial {
    /// The pod.
    pub pod: PodInfo,
    /// The cluster.
    pub snapshot: Snapshot,
}

impl Trial {
    fn node(&mut self, name: &str, edit: impl FnOnce(&mut NodeState)) {
        self.snapshot.think(|nodes| nodes.iter_mut().find(|n| *n.info.name == *name).map(edit));
    }

    fn info(&mut self, name: &str, edit: impl FnOnce(&mut NodeInfo)) {
        self.node(name, |node| edit(Arc::make_mut(&mut node.info)));
    }
}

impl Change {
    /// How much it asks of people; the sum over a set is what makes it small. The order is a judgement:
    /// first what is undone by one command, last what gives up something that was wanted.
    #[must_use]
    pub fn cost(&self) -> u32 {
        match self {
            Change::Uncordon { .. } => 4,
            Change::Room { missing, asked, .. } => {
                // Less of what is asked for is less of a change.
                let share = missing.saturating_mul(4) / (*asked).max(1);
                6 + u32::try_from(share.clamp(0, 4)).unwrap_or(4)
            }
            Change::Tolerate { .. } | Change::Label { .. } => 8,
            Change::FewerPods { .. } | Change::DropHostPort { .. } => 10,
            Change::Skew { from, to, .. } => 8 + u32::try_from((to - from).clamp(0, 20)).unwrap_or(20),
            Change::DropSelector { .. } | Change::DropNodeAffinity => 14,
            Change::DropPodAffinity | Change::DropPodAntiAffinity => 16,
            Change::Bigger { .. } => 30,
        }
    }

    /// Makes it in a trial.
    pub fn make(&self, trial: &mut Trial) {
        match self {
            Change::Uncordon { node } => trial.info(node, |n| {
                n.unschedulable = false;
                n.taints.retain(|t| t.key != UNSCHEDULABLE_TAINT);
            }),
            Change::Tolerate { key, value, effect } => trial.pod.tolerations.push(Toleration {
                key: key.clone(),
                exists: false,
                value: value.clone(),
                effect: Effect::parse(effect),
            }),
            Change::Label { node, key, value } => trial.info(node, |n| {
                n.labels.insert(key.clone(), value.clone());
            }),
            Change::DropSelector { key } => {
                trial.pod.node_selector.remove(key);
            }
            Change::DropNodeAffinity => trial.pod.required_terms = None,
            // To ask for that much less is the same to the filter, and may let the pod in elsewhere too.
            Change::Room { node, resource, missing, .. } => trial.node(node, |n| {
                let usage = Arc::make_mut(&mut n.usage);
                let taken = usage.requested.get(resource);
                usage.requested.set(resource, taken.saturating_sub(*missing));
            }),
            Change::Bigger { node, resource, has, asked } => trial.node(node, |n| {
                let taken = n.usage.requested.get(resource);
                let wanted = asked.saturating_add(taken).max(*has);
                Arc::make_mut(&mut n.info).allocatable.set(resource, wanted);
            }),
            Change::FewerPods { node } => trial.node(node, |n| {
                let pods = n.usage.pods;
                Arc::make_mut(&mut n.info).allocatable_pods = pods + 1;
            }),
            Change::DropHostPort { port, protocol } => {
                trial.pod.host_ports.retain(|p| (p.port, &p.protocol) != (*port, protocol));
            }
            Change::Skew { key, to, .. } => {
                for c in trial.pod.spread.iter_mut().filter(|c| c.hard && c.topology_key == *key) {
                    c.max_skew = *to;
                }
            }
            Change::DropPodAffinity => trial.pod.affinity.required.clear(),
            Change::DropPodAntiAffinity => trial.pod.affinity.anti_required.clear(),
        }
    }
}

/// The taint that a cordon brings with it.
pub(super) const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

/// The taint as a change of the pod.
pub(super) fn tolerate(taint: &Taint) -> Change {
    let effect = match taint.effect {
        Effect::NoSchedule => "NoSchedule",
        Effect::PreferNoSchedule => "PreferNoSchedule",
        Effect::NoExecute => "NoExecute",
    };
    Change::Tolerate { key: taint.key.clone(), value: taint.value.clone(), effect }
}

/// An amount as people write it.
#[must_use]
pub fn amount(resource: &str, n: i64) -> String {
    match resource {
        "cpu" if n % 1000 == 0 => (n / 1000).to_string(),
        "cpu" => format!("{n}m"),
        "memory" | "ephemeral-storage" => bytes(n),
        other if other.starts_with("hugepages-") => bytes(n),
        _ => n.to_string(),
    }
}

fn bytes(n: i64) -> String {
    for (unit, shift) in [("Gi", 30), ("Mi", 20), ("Ki", 10)] {
        let size = 1_i64 << shift;
        if n != 0 && n % size == 0 {
            return format!("{}{unit}", n / size);
        }
    }
    // Not whole: the next Mi above, so that the advice holds.
    if n > 1 << 30 { format!("{}Mi", (n >> 20) + 1) } else { n.to_string() }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Uncordon { node } => write!(f, "uncordon {node}"),
            Change::Tolerate { key, value, effect } if value.is_empty() => {
                write!(f, "let the pod tolerate {key}:{effect}")
            }
            Change::Tolerate { key, value, effect } => {
                write!(f, "let the pod tolerate {key}={value}:{effect}")
            }
            Change::Label { node, key, value } => write!(f, "label {node} {key}={value}"),
            Change::DropSelector { key } => write!(f, "drop {key} from the pod's nodeSelector"),
            Change::DropNodeAffinity => f.write_str("drop the pod's required node affinity"),
            Change::Room { node, resource, missing, asked } => {
                write!(f, "free {} of {resource} on {node}", amount(resource, *missing))?;
                if missing < asked {
                    write!(
                        f,
                        ", or ask for {} instead of {}",
                        amount(resource, asked - missing),
                        amount(resource, *asked)
                    )?;
                }
                Ok(())
            }
            Change::Bigger { node, resource, has, asked } => write!(
                f,
                "add a node like {node} with at least {} of {resource}: it has {}",
                amount(resource, *asked),
                amount(resource, *has)
            ),
            Change::FewerPods { node } => write!(f, "take a pod away from {node}: it is allowed no more"),
            Change::DropHostPort { port, protocol } => write!(f, "do without host port {port}/{protocol}"),
            Change::Skew { key, from, to } => write!(f, "raise maxSkew over {key} from {from} to {to}"),
            Change::DropPodAffinity => f.write_str("drop the pod's required pod affinity"),
            Change::DropPodAntiAffinity => f.write_str("drop the pod's required pod anti-affinity"),
        }
    }
}
