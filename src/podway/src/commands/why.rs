//! `podway why POD`: why a pod is on its node, or why it waits and the smallest change that would let it in.
//!
//! Of a pod that was placed the scheduler's own record tells, which came with the binding. Of one that waits
//! the cluster is read, with the asker's rights, and the scheduler's own cycle is run on it.

use super::{Hinted, Output};
use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _};
use podway_flow::waterfall::escaped;
use podway_flow::{Phase, Record, wire};
use podway_scheduler::cycle::{CycleError, Decision, PluginName};
use podway_scheduler::explain::search::{Remedy, decide, remedies};
use podway_scheduler::explain::world::World;
use podway_scheduler::model::PodInfo;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Say why a pod is on its node, or what keeps it waiting and the smallest change that would help.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  podway why pod/web-0\n  kubectl podway why web-0 -n shop -o json")]
pub(crate) struct Args {
    /// The pod: NAME or pod/NAME.
    #[arg(value_parser = super::pod_name)]
    pod: String,
    /// Its namespace; the kubeconfig's if not given.
    #[arg(short, long)]
    namespace: Option<String>,
    /// The form.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
    /// The kubeconfig; as kubectl finds it if not given.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

/// How many remedies are told.
const MOST: usize = 3;

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase", tag = "state")]
enum Answer {
    /// It has a node, and its scheduler left a record.
    Placed { pod: String, node: String, by: String, records: Vec<Record> },
    /// It has a node, and nobody left a record: what would be decided now.
    Unrecorded { pod: String, node: String, by: String, now: Option<Scores> },
    /// It waits for its gates.
    Gated { pod: String, gates: Vec<String> },
    /// It would be placed now.
    Fits { pod: String, by: String, now: Scores },
    /// No node takes it.
    Waits {
        pod: String,
        by: String,
        message: String,
        nodes: BTreeMap<String, Refusal>,
        remedies: Vec<Remedy>,
    },
    /// A plugin failed.
    Failed { pod: String, message: String },
}

/// Why one node does not take it.
#[derive(Debug, Serialize)]
struct Refusal {
    plugin: &'static str,
    reasons: Vec<String>,
}

/// Plugin, raw score, normalised score, weight.
type PluginScore = (PluginName, i64, i64, i64);

/// What a decision was made of.
#[derive(Debug, Serialize)]
pub(crate) struct Scores {
    /// The node.
    pub(crate) node: String,
    /// How many nodes were feasible, and how many there are.
    pub(crate) feasible: usize,
    nodes: usize,
    /// How far it is ahead; absent with one feasible node.
    pub(crate) margin: Option<i64>,
    /// Of the best nodes: total, and (plugin, raw, normalised, weight).
    best: Vec<(String, i64, Vec<PluginScore>)>,
}

/// How many nodes' scores are told.
const TOP: usize = 5;

impl Scores {
    pub(crate) fn of(decision: &Decision) -> Self {
        let best = decision.scores.iter().take(TOP);
        Scores {
            node: decision.node.clone(),
            feasible: decision.feasible,
            nodes: decision.nodes,
            margin: decision.margin,
            best: best.map(|s| (s.node.clone(), s.total, s.by_plugin.clone())).collect(),
        }
    }

    fn text(&self, out: &mut String) {
        let _ = writeln!(out, "  {} of {} nodes take it", self.feasible, self.nodes);
        for (node, total, plugins) in &self.best {
            let parts: Vec<String> = plugins.iter().map(|(p, _, n, w)| format!("{p}={n}x{w}")).collect();
            let _ = writeln!(out, "  {total:>5}  {}  {}", escaped(node, false), parts.join(" "));
        }
        if let Some(margin) = self.margin {
            let tie = if margin == 0 { ": equals, of which the pod's UID chooses one" } else { "" };
            let _ = writeln!(out, "  margin {margin}{tie}");
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(answer(&args))?;
    args.output.print(&answer, text)
}

async fn answer(args: &Args) -> anyhow::Result<Answer> {
    let (client, default) = crate::kubernetes::client(args.kubeconfig.as_deref()).await?;
    let namespace = args.namespace.clone().unwrap_or(default);
    let name = args.pod.as_str();
    let key = format!("{namespace}/{name}");
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let pod = pods
        .get_opt(name)
        .await
        .with_context(|| {
            Hinted::new(format!("reading pod {key}"), "is the API server up, and may you read pods?")
        })?
        .ok_or_else(|| {
            let hint = "kubectl get pods -A shows where it is; -n NS sets the namespace";
            anyhow::Error::new(Hinted::new(format!("pod {key} does not exist"), hint))
        })?;
    let by = pod.spec.as_ref().and_then(|s| s.scheduler_name.clone()).unwrap_or_default();
    let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
    let info = PodInfo::parse(&pod).with_context(|| format!("pod {key} cannot be read"))?;
    if !info.gates.is_empty() {
        return Ok(Answer::Gated { pod: key, gates: info.gates });
    }
    if !node.is_empty()
        && let Some(document) = pod.annotations().get(wire::SCHEDULING_ANNOTATION)
    {
        let records = wire::decode(document.as_bytes())
            .with_context(|| format!("the annotation {} of {key}", wire::SCHEDULING_ANNOTATION))?;
        return Ok(Answer::Placed { pod: key, node, by, records });
    }
    let hint = "it needs to list nodes, pods and namespaces of the whole cluster";
    let mut world = World::read(&client).await.with_context(|| Hinted::new("reading the cluster", hint))?;
    for left in &world.left_out {
        tracing::warn!("left out: {left}");
    }
    world.remove(&info);
    let info = PodInfo { node_name: String::new(), ..info };
    let (framework, snapshot) = (world.framework(&info.scheduler_name), world.snapshot());
    let result = decide(&framework, &snapshot, &info);
    if !node.is_empty() {
        let now = result.ok().map(|decision| Scores::of(&decision));
        return Ok(Answer::Unrecorded { pod: key, node, by, now });
    }
    Ok(match result {
        Ok(decision) => Answer::Fits { pod: key, by, now: Scores::of(&decision) },
        Err(CycleError::Failed(failure)) => Answer::Failed { pod: key, message: failure.to_string() },
        Err(CycleError::Unfit(error)) => {
            let nodes = error.rejected.iter().map(|(node, status)| {
                (
                    node.to_owned(),
                    Refusal {
                        plugin: status.plugin,
                        reasons: status.reasons.iter().map(ToString::to_string).collect(),
                    },
                )
            });
            Answer::Waits {
                pod: key,
                by,
                message: error.message(),
                nodes: nodes.collect(),
                remedies: remedies(&framework, &snapshot, &info, &error, MOST),
            }
        }
    })
}

/// How many refusing nodes are told one by one.
const NODES: usize = 20;

fn text(answer: &Answer) -> String {
    let mut out = String::new();
    let say = |text: &str| escaped(text, false);
    let _ = match answer {
        Answer::Placed { pod, node, by, records } => {
            let _ = writeln!(out, "{} is on {}: {} chose it", say(pod), say(node), say(by));
            recorded(records, &mut out);
            Ok(())
        }
        Answer::Unrecorded { pod, node, by, now } => {
            let _ = writeln!(out, "{} is on {}; {} left no record of why", say(pod), say(node), say(by));
            match now {
                None => writeln!(out, "now podway would find no node for it"),
                Some(scores) => {
                    let _ = writeln!(out, "now podway would choose {}:", say(&scores.node));
                    scores.text(&mut out);
                    Ok(())
                }
            }
        }
        Answer::Gated { pod, gates } => {
            writeln!(out, "{} waits for scheduling gates: [{}]", say(pod), say(&gates.join(" ")))
        }
        Answer::Fits { pod, by, now } => {
            let _ = writeln!(
                out,
                "{} fits on {} as things are; is a scheduler running for {}?",
                say(pod),
                say(&now.node),
                say(by)
            );
            now.text(&mut out);
            Ok(())
        }
        Answer::Failed { pod, message } => writeln!(out, "{} cannot be decided: {}", say(pod), say(message)),
        Answer::Waits { pod, message, nodes, remedies, .. } => {
            let _ = writeln!(out, "{} waits: {}", say(pod), say(message));
            for (node, refusal) in nodes.iter().take(NODES) {
                let reasons = refusal.reasons.join(", ");
                let _ = writeln!(out, "  {}  {}: {}", say(node), refusal.plugin, say(&reasons));
            }
            if nodes.len() > NODES {
                let _ = writeln!(out, "  and {} more: -o json has all", nodes.len() - NODES);
            }
            if remedies.is_empty() {
                let _ = writeln!(out, "no change was found that would let it in");
            } else {
                let _ = writeln!(out, "it would fit, as the same filters say, after one of:");
            }
            for (i, remedy) in remedies.iter().enumerate() {
                let all: Vec<String> = remedy.changes.iter().map(|c| say(&c.to_string())).collect();
                let _ = writeln!(out, "  {}. {} (then on {})", i + 1, all.join("; and "), say(&remedy.node));
            }
            Ok(())
        }
    };
    out
}

/// The scheduler's own record of a decision.
fn recorded(records: &[Record], out: &mut String) {
    for record in records {
        let evidence = |key: &str| record.evidence.get(key).map(|v| escaped(v, false));
        match record.phase {
            Phase::NodesFiltered => {
                let (feasible, nodes) = (evidence("feasible"), evidence("nodes"));
                let _ = writeln!(
                    out,
                    "  {} of {} nodes took it",
                    feasible.unwrap_or_default(),
                    nodes.unwrap_or_default()
                );
                for (key, reason) in &record.evidence {
                    if let Some(node) = key.strip_prefix("node/") {
                        let _ = writeln!(out, "  {}  {}", escaped(node, false), escaped(reason, false));
                    }
                }
            }
            Phase::NodesScored => {
                let mut scores: Vec<(&str, &str)> = record
                    .evidence
                    .iter()
                    .filter_map(|(key, value)| Some((key.strip_prefix("score/")?, value.as_str())))
                    .collect();
                let total = |text: &str| text.split(' ').next().and_then(|n| n.parse::<i64>().ok());
                scores.sort_by_key(|(node, text)| (std::cmp::Reverse(total(text)), *node));
                for (node, text) in scores {
                    let _ = writeln!(out, "  {}  {}", escaped(node, false), escaped(text, false));
                }
                match evidence("margin") {
                    Some(margin) => drop(writeln!(out, "  margin {margin}")),
                    None => drop(writeln!(out, "  it was the only one: nothing was scored")),
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podway_scheduler::explain::change::Change;

    #[test]
    fn a_pod_that_waits_is_told_what_to_do() {
        let refusal =
            Refusal { plugin: "NodeUnschedulable", reasons: vec!["node(s) were unschedulable".into()] };
        let answer = Answer::Waits {
            pod: "d/p".into(),
            by: "podway".into(),
            message: "0/1 nodes are available: 1 node(s) were unschedulable.".into(),
            nodes: BTreeMap::from([("n1".to_owned(), refusal)]),
            remedies: vec![Remedy {
                changes: vec![Change::Uncordon { node: "n1".into() }],
                node: "n1".into(),
            }],
        };
        assert_eq!(
            text(&answer),
            "d/p waits: 0/1 nodes are available: 1 node(s) were unschedulable.\n  \
             n1  NodeUnschedulable: node(s) were unschedulable\n\
             it would fit, as the same filters say, after one of:\n  1. uncordon n1 (then on n1)\n"
        );
        let json = serde_json::to_value(&answer).unwrap();
        assert_eq!(json["state"], "waits");
        assert_eq!(
            json["remedies"][0]["changes"][0],
            serde_json::json!({"change": "uncordon", "node": "n1"})
        );
    }
}
