//! `podway whatif`: where pods would go, with nodes drained or added; asked of the live cluster, to which
//! nothing is written.
//!
//! The API server fills a pod's defaults in by a dry run of its creation, as admission would (priority,
//! tolerations, limits), if the asker may create pods; else it is taken as it is in the file, and that is
//! told.

use super::why::Scores;
use super::{Hinted, Output};
use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt as _};
use podway_flow::waterfall::escaped;
use podway_scheduler::explain::world::{Placed, World};
use podway_scheduler::model::PodInfo;
use serde::{Deserialize as _, Serialize};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Say where pods would go, with nodes drained or added; nothing is written.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  podway whatif -f pod.yaml --replicas 5\n  podway whatif --drain node-1\n  podway whatif -f deployment.yaml --add-node node.yaml"
)]
pub(crate) struct Args {
    /// A Pod, or a Deployment, ReplicaSet, StatefulSet or Job with a template of one; - is standard input.
    #[arg(short, long, value_name = "FILE")]
    filename: Option<PathBuf>,
    /// How many of it; the file's replicas, or 1, if not given.
    #[arg(long, value_name = "N", requires = "filename")]
    replicas: Option<u32>,
    /// Cordon this node and place its pods again; may be given more than once.
    #[arg(long, value_name = "NODE")]
    drain: Vec<String>,
    /// Add the Node of a file; may be given more than once.
    #[arg(long, value_name = "FILE")]
    add_node: Vec<PathBuf>,
    /// The namespace of a pod that names none; the kubeconfig's if not given.
    #[arg(short, long)]
    namespace: Option<String>,
    /// The form.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
    /// The kubeconfig; as kubectl finds it if not given.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

/// The most replicas that are asked of.
const MOST: u32 = 10_000;

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// What was not taken into account.
    notes: Vec<String>,
    /// The pods, in the order in which they were placed.
    pods: Vec<Line>,
}

/// One pod.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    pod: String,
    /// The node that it leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scores: Option<Scores>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

impl Line {
    fn of(placed: &Placed, from: Option<&str>) -> Self {
        let (scores, message) = match &placed.result {
            Ok(decision) => (Some(Scores::of(decision)), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Line { pod: placed.pod.key(), from: from.map(str::to_owned), scores, message }
    }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(answer(&args))?;
    args.output.print(&answer, text)
}

async fn answer(args: &Args) -> anyhow::Result<Answer> {
    if args.filename.is_none() && args.drain.is_empty() {
        let hint = "give -f FILE for pods that would come, or --drain NODE for pods that would move";
        return Err(Hinted::new("there is nothing to ask", hint).into());
    }
    let (client, default) = crate::kubernetes::client(args.kubeconfig.as_deref()).await?;
    let hint = "it needs to list nodes, pods and namespaces of the whole cluster";
    let mut world = World::read(&client).await.with_context(|| Hinted::new("reading the cluster", hint))?;
    let mut notes: Vec<String> = world.left_out.iter().map(|left| format!("left out: {left}")).collect();
    for path in &args.add_node {
        let mut node: Node = serde_json::from_value(read(path)?)
            .with_context(|| Hinted::new(format!("{} is not a Node", path.display()), "give a v1 Node"))?;
        // As the agent or kubelet of the node would say it.
        if let Some(status) = &mut node.status
            && status.allocatable.is_none()
        {
            status.allocatable.clone_from(&status.capacity);
        }
        anyhow::ensure!(!world.has_node(&node.name_any()), "there is a node {} already", node.name_any());
        world.add_node(&node).with_context(|| format!("the node of {}", path.display()))?;
    }
    let mut lines = Vec::new();
    let mut moved = Vec::new();
    for name in &args.drain {
        let hint = "kubectl get nodes shows their names";
        anyhow::ensure!(
            world.has_node(name),
            anyhow::Error::new(Hinted::new(format!("there is no node {name}"), hint))
        );
        moved.extend(world.drain(name).into_iter().map(|pod| (name, pod)));
    }
    for (from, pod) in moved {
        lines.push(Line::of(&world.place(pod), Some(from)));
    }
    if let Some(path) = &args.filename {
        let hint = "give a Pod or a Deployment";
        let template = template(read(path)?)
            .with_context(|| Hinted::new(format!("{} has no pod", path.display()), hint))?;
        let replicas = args.replicas.or(template.replicas).unwrap_or(1);
        anyhow::ensure!(replicas <= MOST, "{replicas} replicas: at most {MOST} are asked of");
        let namespace = args.namespace.clone().unwrap_or(default);
        let mut pod = complete(&client, template.pod, &namespace, &mut notes).await?;
        // The pods of one set are spread by default.
        if template.spread {
            world.own(&mut pod);
        }
        for i in 1..=replicas {
            let name = if replicas == 1 { pod.name.clone() } else { format!("{}-{i}", pod.name) };
            let info = PodInfo { uid: format!("whatif-{i}"), name, ..pod.clone() };
            lines.push(Line::of(&world.place(Arc::new(info)), None));
        }
    }
    Ok(Answer { notes, pods: lines })
}

/// One YAML or JSON document.
fn read(path: &Path) -> anyhow::Result<Value> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    let name = path.display();
    let text = text.with_context(|| Hinted::new(format!("reading {name}"), "give a file of one object"))?;
    let mut documents = serde_yaml::Deserializer::from_str(&text);
    let first = documents.next().with_context(|| format!("{name} is empty"))?;
    let value = Value::deserialize(first).with_context(|| format!("{name} is not YAML or JSON"))?;
    anyhow::ensure!(!value.is_null(), "{name} is empty");
    anyhow::ensure!(documents.next().is_none(), "{name} has several documents: give one object");
    Ok(value)
}

/// The pod that an object makes.
struct Template {
    pod: Value,
    replicas: Option<u32>,
    /// What makes it is one of those whose pods upstream spreads by default.
    spread: bool,
}

fn template(object: Value) -> anyhow::Result<Template> {
    let kind = object["kind"].as_str().unwrap_or_default();
    if kind == "Pod" {
        return Ok(Template { pod: object, replicas: None, spread: false });
    }
    anyhow::ensure!(
        ["Deployment", "ReplicaSet", "StatefulSet", "Job"].contains(&kind),
        "it is a {kind:?}: not supported"
    );
    let count = object["spec"]["replicas"].as_u64().or(object["spec"]["parallelism"].as_u64());
    let replicas = count.map(u32::try_from).transpose().context("its replicas")?;
    let mut metadata = object["spec"]["template"]["metadata"].clone();
    for key in ["name", "namespace"] {
        metadata[key] = object["metadata"][key].clone();
    }
    let spec = object["spec"]["template"]["spec"].clone();
    anyhow::ensure!(spec.is_object(), "it has no spec.template.spec");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
    Ok(Template { pod, replicas, spread: kind != "Job" })
}

/// The pod as it would be once created.
async fn complete(
    client: &Client,
    object: Value,
    default: &str,
    notes: &mut Vec<String>,
) -> anyhow::Result<PodInfo> {
    let mut pod: Pod = serde_json::from_value(object).context("the pod is not valid")?;
    let namespace = pod.metadata.namespace.get_or_insert_with(|| default.to_owned()).clone();
    if let Some(spec) = &mut pod.spec {
        spec.node_name = None;
    }
    if pod.metadata.name.is_none() {
        pod.metadata.name = Some(pod.metadata.generate_name.take().unwrap_or_default() + "whatif");
    }
    let name = pod.name_any();
    let mut asked = pod.clone();
    // A pod of this name may be there.
    asked.metadata.generate_name = Some(format!("{name}-"));
    asked.metadata.name = None;
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let mut complete = match api.create(&dry, &asked).await {
        Ok(complete) => complete,
        Err(kube::Error::Api(status)) if [403, 404].contains(&status.code) => {
            notes.push(format!("the pod is taken as it is in the file: {}", status.message));
            pod
        }
        Err(error) => return Err(error).context("the API server would refuse the pod"),
    };
    complete.metadata.name = Some(name);
    complete.metadata.uid.get_or_insert_with(|| "whatif".to_owned());
    Ok(PodInfo::parse(&complete)?)
}

fn text(answer: &Answer) -> String {
    let say = |text: &str| escaped(text, false);
    let mut out = String::new();
    for note in &answer.notes {
        let _ = writeln!(out, "note: {}", say(note));
    }
    let width = answer.pods.iter().map(|l| l.pod.len()).max().unwrap_or(0);
    let mut placed = 0;
    for line in &answer.pods {
        let from = line.from.as_ref().map(|from| format!("{} -> ", say(from))).unwrap_or_default();
        let to = match (&line.scores, &line.message) {
            (Some(scores), _) => {
                placed += 1;
                let margin = match scores.margin {
                    None => String::from("  (the only one that takes it)"),
                    Some(0) => format!("  (one of equals, {} take it)", scores.feasible),
                    Some(margin) => format!("  (by {margin}, {} take it)", scores.feasible),
                };
                format!("{}{margin}", say(&scores.node))
            }
            (None, message) => format!("nowhere: {}", say(message.as_deref().unwrap_or_default())),
        };
        let _ = writeln!(out, "{:width$}  {from}{to}", say(&line.pod));
    }
    let _ = writeln!(out, "{placed} of {} placed; nothing was written", answer.pods.len());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_of_what_makes_pods() {
        let deployment = json!({"kind": "Deployment", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"replicas": 3, "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}}});
        let Template { pod, replicas, spread } = template(deployment).unwrap();
        assert_eq!((pod["metadata"]["name"].as_str(), replicas, spread), (Some("web"), Some(3), true));
        assert_eq!(
            (pod["kind"].as_str(), pod["metadata"]["labels"]["app"].as_str()),
            (Some("Pod"), Some("web"))
        );
        assert_eq!(template(json!({"kind": "Pod"})).unwrap().replicas, None);
        for object in [json!({"kind": "DaemonSet"}), json!({"kind": "Job", "spec": {}}), json!([])] {
            assert!(template(object).is_err());
        }
    }

    #[test]
    fn several_documents_are_refused_and_lines_tell_where_from() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "kind: Pod\n---\nkind: Pod\n").unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("several"));
        std::fs::write(&file, "").unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("is empty"));
        let line =
            Line { pod: "d/p".into(), from: Some("a".into()), scores: None, message: Some("0/1".into()) };
        let answer = Answer { notes: vec!["n".into()], pods: vec![line] };
        assert_eq!(text(&answer), "note: n\nd/p  a -> nowhere: 0/1\n0 of 1 placed; nothing was written\n");
    }
}
