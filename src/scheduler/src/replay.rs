//! A recorded run once more: the same changes into an empty cache, the same cycles on it, and each decision compared
//! with the recorded one, bit for bit. Nothing is asked of a cluster.

use crate::cache::Cache;
use crate::config::profiles::Profiles;
use crate::cycle::{CycleError, Nomination, Trace};
use crate::decide::{Decider, Refusal};
use crate::explain::TOP;
use crate::explain::ring::Outcome;
use crate::framework::Framework;
use crate::model::{ModelError, NodeInfo, PodInfo};
use crate::objects::{Kind, Lists, Step};
use crate::plugins::default_binder::NoBinder;
use crate::plugins::volume_binding::{Assumed, VolumePlan};
use crate::plugins::{PluginArgs, registry};
use crate::record::{Came, Decided, Entry, ObjectStep, VERSION};
use k8s_openapi::api::core::v1::Pod;
use podway_flow::Micros;
use serde_json::Value;
use std::collections::HashMap;
use std::io::BufRead;
use std::sync::Arc;

/// Why a file cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be read.
    #[error("line {line} cannot be read")]
    Read {
        /// Where.
        line: usize,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A line says nothing that is known.
    #[error("line {line} is not of a recorded run")]
    Line {
        /// Where.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// An object of it does not parse.
    #[error("the object of line {line} cannot be read")]
    Object {
        /// Where.
        line: usize,
        /// Why.
        #[source]
        source: ModelError,
    },
    /// Something stands where it cannot.
    #[error("line {line}: {what}")]
    Misplaced {
        /// Where.
        line: usize,
        /// What.
        what: String,
    },
}

/// A decision that came out otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The line of the file.
    pub line: usize,
    /// `namespace/name`.
    pub pod: String,
    /// As recorded.
    pub recorded: Value,
    /// As it came now.
    pub now: Value,
}

/// What came of a replay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// How many decisions were made again.
    pub decisions: usize,
    /// How many of them placed the pod.
    pub placed: usize,
    /// Those that came out otherwise.
    pub differences: Vec<Difference>,
    /// The last line breaks off, as it does when the recorder was killed.
    pub broken_off: bool,
}

fn all_plugins(args: &PluginArgs) -> Framework {
    Framework { bind: vec![Arc::new(NoBinder)], ..Framework::of(registry(args)) }
}

/// Replays a recorded run.
///
/// # Errors
/// [`ReplayError`] when the file is none. A decision that differs is in the report.
pub fn replay(recorded: impl BufRead) -> Result<Report, ReplayError> {
    let mut world = World::new();
    let mut lines = recorded.lines().enumerate().peekable();
    while let Some((at, text)) = lines.next() {
        let line = at + 1;
        let text = text.map_err(|source| ReplayError::Read { line, source })?;
        match serde_json::from_str(&text) {
            Ok(entry) => world.take(line, entry)?,
            Err(source) if source.is_eof() && line > 1 && lines.peek().is_none() => {
                world.report.broken_off = true
            }
            Err(source) => return Err(ReplayError::Line { line, source }),
        }
    }
    Ok(world.report)
}

struct World {
    begun: bool,
    profiles: Profiles,
    cache: Cache,
    lists: Lists,
    decider: Decider,
    assumed: HashMap<String, Assumed>,
    report: Report,
}

impl World {
    fn new() -> Self {
        World {
            begun: false,
            profiles: Profiles::none(Box::new(all_plugins)),
            cache: Cache::default(),
            lists: Lists::default(),
            decider: Decider::default(),
            assumed: HashMap::new(),
            report: Report::default(),
        }
    }

    fn take(&mut self, line: usize, entry: Entry) -> Result<(), ReplayError> {
        let misplaced = |what: &str| ReplayError::Misplaced { line, what: what.to_owned() };
        let whole = |pod: &crate::model::Original<Pod>| {
            let pod = pod.get().ok_or_else(|| misplaced("the pod is missing"))?;
            let info = PodInfo::parse(pod).map_err(|source| ReplayError::Object { line, source })?;
            Ok::<_, ReplayError>(Arc::new(info.keeping(pod)))
        };
        if self.begun == matches!(entry, Entry::Began { .. }) {
            return Err(misplaced("the first line tells the form and the profiles, and no other does"));
        }
        match entry {
            Entry::Began { version, profiles } => {
                if version != VERSION {
                    return Err(misplaced(&format!("not supported: version {version} of a recorded run")));
                }
                self.profiles = Profiles::new(&profiles, Box::new(all_plugins))
                    .map_err(|(name, error)| misplaced(&format!("profile {name:?}: {error}")))?;
                self.begun = true;
            }
            Entry::Profile { name, generation, spec } => {
                match spec {
                    Some(spec) => drop(self.profiles.set(&name, &spec, generation)),
                    None => self.profiles.unset(&name),
                }
                self.decider.forget();
            }
            Entry::Node(node) => {
                let node = node.get().ok_or_else(|| misplaced("the node is missing"))?;
                let info = NodeInfo::parse(node).map_err(|source| ReplayError::Object { line, source })?;
                self.cache.set_node(Arc::new(info.keeping(node)));
            }
            Entry::NodeGone(name) => drop(self.cache.remove_node(&name)),
            Entry::Placed { pod, node, assumed: true } => self.cache.assume(whole(&pod)?, &node),
            Entry::Placed { pod, .. } => drop(self.cache.confirm(whole(&pod)?)),
            Entry::PodGone(uid) => drop(self.cache.remove_pod(&uid)),
            Entry::Nominated { pod, node } => self.cache.nominate(whole(&pod)?, &node),
            Entry::Unnominated(uid) => drop(self.cache.unnominate(&uid)),
            Entry::Namespace { name, labels: Some(labels) } => self.cache.set_namespace(&name, labels),
            Entry::Namespace { name, labels: None } => self.cache.remove_namespace(&name),
            Entry::Object { kind, step, key, object } => {
                let kind = Kind::ALL.iter().find(|k| k.name() == kind);
                let kind = *kind.ok_or_else(|| misplaced("there is no such kind"))?;
                let parsed = object.map(|o| kind.read(o)).transpose();
                let parsed = parsed.map_err(|source| ReplayError::Line { line, source })?.flatten();
                let step = match step {
                    ObjectStep::Begin => Step::Begin,
                    ObjectStep::Listed => Step::Listed(key, parsed),
                    ObjectStep::Done => Step::Done,
                    ObjectStep::Set => Step::Set(key, parsed),
                    ObjectStep::Gone => Step::Gone(key),
                };
                self.lists.take(self.cache.objects_mut(), kind, step);
            }
            Entry::VolumesReverted(uid) => {
                if let Some(assumed) = self.assumed.remove(&uid) {
                    assumed.revert(self.cache.objects_mut());
                }
            }
            Entry::Decided(decided) => {
                let Decided { pod, nominated, came } = *decided;
                let pod = whole(&pod)?;
                let pod = Arc::new(PodInfo { nominated, ..(*pod).clone() });
                let name = pod.scheduler_name.clone();
                let profile = self.profiles.of(&name).cloned();
                let profile = profile.ok_or_else(|| misplaced(&format!("there is no profile {name:?}")))?;
                let now = self.decide(&profile.framework, &pod);
                self.report.decisions += 1;
                if now != came {
                    let difference = Difference { line, pod: pod.key(), recorded: came, now };
                    self.report.differences.push(difference);
                }
            }
        }
        Ok(())
    }

    /// As the loop does it (`run/place.rs`): the refusal that is known already, or a cycle.
    fn decide(&mut self, framework: &Framework, pod: &Arc<PodInfo>) -> Value {
        let snapshot = self.cache.snapshot();
        if let Some(refusal) = self.decider.known(pod, &snapshot) {
            return known(snapshot.generation, &refusal);
        }
        let mut trace = Trace { rows: Some(TOP), ..Trace::default() };
        let found = self.decider.decide(framework, &snapshot, pod, &|| Micros(0), &mut trace);
        if let Ok(decision) = &found {
            self.report.placed += 1;
            let node = snapshot.node(&decision.node).filter(|_| !pod.volumes.is_empty());
            if let Some(plan) = node.and_then(|node| VolumePlan::of(pod, &node.info, &snapshot)) {
                let assumed = plan.assume(self.cache.objects_mut());
                self.assumed.insert(pod.uid.clone(), assumed);
            }
        }
        came(snapshot.generation, &found)
    }
}

/// What came of a cycle, as it is recorded.
pub(crate) fn came(generation: u64, found: &Result<crate::cycle::Decision, CycleError>) -> Value {
    let (outcome, preemption) = match found {
        Ok(decision) => (Outcome::placed(decision), None),
        Err(CycleError::Failed(failure)) => (Outcome::Failed { message: failure.to_string() }, None),
        Err(CycleError::Unfit(error)) => match &error.nomination {
            Nomination::Preempt(preemption) => (Outcome::unfit(error), Some(preemption)),
            Nomination::Keep | Nomination::Clear => (Outcome::unfit(error), None),
        },
    };
    let came = Came { generation, outcome: &outcome, evicts: Came::evicts(preemption) };
    serde_json::to_value(came).unwrap_or_default()
}

/// The same, of a refusal that needed no cycle.
pub(crate) fn known(generation: u64, refusal: &Refusal) -> Value {
    serde_json::json!({"generation": generation, "known": refusal.message})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Original;
    use k8s_openapi::api::core::v1::Node;
    use serde::de::DeserializeOwned;
    use serde_json::json;

    fn original<T: DeserializeOwned>(value: Value) -> Original<T> {
        serde_json::from_value(value).unwrap()
    }

    fn node(name: &str, cpu: &str) -> Entry {
        Entry::Node(original::<Node>(json!({"metadata": {"name": name},
            "status": {"allocatable": {"cpu": cpu, "memory": "1Gi", "pods": "9"}}})))
    }

    fn pod(name: &str, cpu: &str) -> Original<Pod> {
        original(json!({"metadata": {"name": name, "namespace": "d", "uid": name},
            "spec": {"schedulerName": "p", "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}))
    }

    fn began() -> Entry {
        Entry::Began { version: VERSION, profiles: vec![("p".to_owned(), Default::default())] }
    }

    fn decided(pod: Original<Pod>, came: Value) -> Entry {
        Entry::Decided(Box::new(Decided { pod, nominated: String::new(), came }))
    }

    fn text(entries: &[Entry]) -> String {
        entries.iter().map(|e| format!("{}\n", serde_json::to_string(e).unwrap())).collect()
    }

    #[test]
    fn what_was_recorded_comes_again_and_what_was_not_is_told() {
        let assumed = Entry::Placed { pod: pod("x", "3"), node: "a".to_owned(), assumed: true };
        let mut run =
            vec![began(), node("a", "4"), node("b", "4"), assumed, decided(pod("y", "2"), json!(null))];
        let report = replay(text(&run).as_bytes()).unwrap();
        assert_eq!((report.decisions, report.placed, report.differences.len()), (1, 1, 1));
        let now = report.differences[0].now.clone();
        assert_eq!((now["node"].as_str(), now["generation"].as_u64()), (Some("b"), Some(3)));
        assert_eq!((report.differences[0].line, report.differences[0].pod.as_str()), (5, "d/y"));

        run.pop();
        run.push(decided(pod("y", "2"), now.clone()));
        // Two of a template that fits nowhere: a search, and what it left.
        let refused = "0/2 nodes are available: 2 Insufficient cpu.";
        run.push(decided(pod("big", "9"), json!(null)));
        run.push(decided(pod("big2", "9"), json!({"generation": 3, "known": "0"})));
        let report = replay(text(&run).as_bytes()).unwrap();
        let [first, second] = &*report.differences else { panic!("{report:?}") };
        assert!(first.now["message"].as_str().unwrap().starts_with(refused), "{first:?}");
        assert!(second.now["known"].as_str().unwrap().starts_with(refused), "{second:?}");

        // Another cluster, another decision.
        run.truncate(5);
        run[1] = node("a", "8");
        let report = replay(text(&run).as_bytes()).unwrap();
        assert_eq!(report.differences[0].recorded, now);
    }

    #[test]
    fn a_file_that_breaks_off_is_replayed_as_far_as_it_goes_and_one_that_is_none_is_refused() {
        let whole = text(&[began(), node("a", "4")]);
        let broken = format!("{whole}{{\"decided\":{{\"po");
        assert!(replay(broken.as_bytes()).unwrap().broken_off);
        let error = |text: &str| replay(text.as_bytes()).unwrap_err();
        assert!(matches!(error("{\n"), ReplayError::Line { line: 1, .. }));
        assert!(matches!(error(&format!("{whole}{{}}\n{whole}")), ReplayError::Line { line: 3, .. }));
        for (file, part) in [
            (text(&[node("a", "4")]), "the first line"),
            (text(&[began(), began()]), "the first line"),
            (text(&[Entry::Began { version: 9, profiles: vec![] }]), "not supported: version 9"),
            (text(&[began(), decided(original(json!(null)), json!(null))]), "the pod is missing"),
        ] {
            let text = error(&file).to_string();
            assert!(text.contains(part), "{text}");
        }
    }
}
