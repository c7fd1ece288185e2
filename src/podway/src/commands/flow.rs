//! `podway flow POD`: the waterfall. From the pod's `PodFlow`; where there is none, from the pod and
//! its events, with times of a second marked as such.

mod follow;

use super::{Hinted, print};
use anyhow::Context as _;
use clap::ValueEnum;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use podway_api::{PodFlow, stock};
use podway_flow::audit::{self, Collector};
use podway_flow::waterfall::{Options, waterfall};
use podway_flow::{Clock, Flow, Outcome, Phase, html};
use std::fs::File;
use std::io::{BufReader, IsTerminal as _};
use std::path::{Path, PathBuf};

/// Show every step of a pod's creation as a waterfall.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  podway flow web-0 -n default\n  podway flow web-0 -w\n  podway flow web-0 -o html > web-0.html"
)]
pub(crate) struct Args {
    /// The pod.
    pod: String,
    /// Its namespace; the kubeconfig's if not given.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Follow until the pod is Ready, has Succeeded or Failed, or is deleted; Ctrl-C ends it.
    #[arg(short, long)]
    watch: bool,
    /// The form.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
    /// Draw in ASCII only.
    #[arg(long)]
    ascii: bool,
    /// The API server's audit log (JSON lines): who asked, and µs times for steps 1 to 3.
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,
    /// The kubeconfig; as kubectl finds it if not given.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
    Yaml,
    Html,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(show(args))
}

async fn show(args: Args) -> anyhow::Result<()> {
    let (client, default) = crate::kubernetes::client(args.kubeconfig.as_deref()).await?;
    let source = Source {
        namespace: args.namespace.clone().unwrap_or(default),
        name: args.pod.clone(),
        audit_log: args.audit_log.clone(),
        client,
    };
    if args.watch {
        return follow::follow(&source, &args).await;
    }
    print(&render(&source.flow().await?, &args)?)
}

fn render(flow: &Flow, args: &Args) -> anyhow::Result<String> {
    let now = Some(Clock::new().now());
    Ok(match args.output {
        Output::Text => text(flow, args.ascii),
        Output::Json => format!("{}\n", serde_json::to_string_pretty(flow)?),
        Output::Yaml => serde_yaml::to_string(flow)?,
        Output::Html => html::page(flow, now),
    })
}

/// The waterfall, as the terminal takes it.
fn text(flow: &Flow, ascii: bool) -> String {
    let terminal = std::io::stdout().is_terminal();
    let color = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    waterfall(flow, &Options { ascii, color, now: Some(Clock::new().now()), ..Options::default() })
}

/// Where a pod's flow is read from.
pub(crate) struct Source {
    client: Client,
    namespace: String,
    name: String,
    audit_log: Option<PathBuf>,
}

/// How long a `PodFlow` may come after what it tells of: it is written after the status.
const SETTLE: std::time::Duration = std::time::Duration::from_secs(2);

impl Source {
    /// The flow of a pod, with steps 1 to 3 from an audit log where there is one.
    pub(crate) fn new(client: Client, namespace: &str, name: &str, audit_log: Option<PathBuf>) -> Self {
        Source { client, namespace: namespace.to_owned(), name: name.to_owned(), audit_log }
    }

    /// The waterfall as it is once the pod's `PodFlow` is whole, or soon after.
    pub(crate) async fn picture(&self) -> anyhow::Result<String> {
        let flows: Api<PodFlow> = Api::namespaced(self.client.clone(), &self.namespace);
        let whole = |object: Option<&PodFlow>| {
            let flow = object.map(PodFlow::to_flow);
            flow.and_then(|f| Some(f.summary(Phase::Ready)?.outcome == Outcome::Succeeded)) == Some(true)
        };
        let wait = kube::runtime::wait::await_condition(flows, &self.name, whole);
        // Without it there is still the pod's own object to read.
        drop(tokio::time::timeout(SETTLE, wait).await);
        Ok(text(&self.flow().await?, false))
    }

    async fn flow(&self) -> anyhow::Result<Flow> {
        let name = &self.name;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let pod = pods.get_opt(name).await.with_context(|| {
            Hinted::new(
                format!("reading pod {}/{name}", self.namespace),
                "is the API server up, and may you read pods?",
            )
        })?;
        let pod = pod.ok_or_else(|| {
            let hint = "kubectl get pods -A shows where it is; -n NS sets the namespace";
            anyhow::Error::new(Hinted::new(format!("pod {}/{name} does not exist", self.namespace), hint))
        })?;
        self.flow_of(&pod).await
    }

    /// The flow of a pod whose object is at hand.
    async fn flow_of(&self, pod: &Pod) -> anyhow::Result<Flow> {
        let mut flow = match self.recorded(pod).await? {
            Some(flow) => flow,
            None => stock::flow(pod, &self.events(pod).await?),
        };
        if let Some(path) = &self.audit_log {
            self.add_audit(&mut flow, path)?;
        }
        Ok(flow)
    }

    /// The pod's `PodFlow`, if there is one of this very pod with something in it.
    async fn recorded(&self, pod: &Pod) -> anyhow::Result<Option<Flow>> {
        let flows: Api<PodFlow> = Api::namespaced(self.client.clone(), &self.namespace);
        // A cluster without the CRD answers 404 too: the pod is shown from its own object.
        let object = flows.get_opt(&self.name).await.with_context(|| {
            Hinted::new(
                format!("reading podflow {}/{}", self.namespace, self.name),
                "may you read podflows.podway.dev?",
            )
        })?;
        let flow = object.filter(|o| Some(&o.spec.pod_uid) == pod.uid().as_ref()).map(|o| o.to_flow());
        Ok(flow.filter(|f| !f.records.is_empty()))
    }

    async fn events(&self, pod: &Pod) -> anyhow::Result<Vec<Event>> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let of = format!("involvedObject.uid={}", pod.uid().unwrap_or_default());
        let list =
            events.list(&ListParams::default().fields(&of)).await.context("reading the pod's events")?;
        Ok(list.items)
    }

    fn add_audit(&self, flow: &mut Flow, path: &Path) -> anyhow::Result<()> {
        let hint = "podway up writes it to audit.log in its state directory";
        let file = File::open(path)
            .with_context(|| Hinted::new(format!("opening audit log {}", path.display()), hint))?;
        let mut collector = Collector::new(&self.namespace, &self.name);
        collector
            .log(BufReader::new(file))
            .with_context(|| format!("reading audit log {}", path.display()))?;
        audit::overlay(flow, collector.finish());
        Ok(())
    }
}
