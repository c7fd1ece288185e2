//! `podway flow`: one pod's waterfall, or numbers over many. From the pods' `PodFlow`s; where there is
//! none, from the pod and its events, with times of a second marked as such.

mod follow;
mod numbers;
mod outside;
mod pulling;
mod source;

pub(crate) use source::Source;

use super::{Hinted, print};
use clap::ValueEnum;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use podway_flow::otlp::TraceParent;
use podway_flow::waterfall::{Options, waterfall};
use podway_flow::{Clock, Flow, html, otlp, stuck};
use std::io::IsTerminal as _;
use std::path::PathBuf;

/// Show every step of a pod's creation as a waterfall, or numbers over many pods.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  podway flow web-0 -n default\n  podway flow web-0 -w\n  podway flow -l app=web --watch-from-create --count 3\n  podway flow web-0 -o html > web-0.html\n  podway flow -l app=web stats\n  podway flow -A blame\n  podway flow compare web-0 web-1"
)]
pub(crate) struct Args {
    /// The pod (pod/NAME if it is called like a command); without one, the command is about all that -l takes.
    #[arg(value_parser = super::pod_name)]
    pod: Option<String>,
    #[command(subcommand)]
    view: Option<numbers::View>,
    /// The namespace; the kubeconfig's if not given.
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    /// Pods of all namespaces.
    #[arg(short = 'A', long, global = true)]
    all_namespaces: bool,
    /// Pods with these labels, as kubectl takes them.
    #[arg(short = 'l', long, value_name = "SELECTOR", global = true)]
    selector: Option<String>,
    /// Follow until the pod is Ready, has Succeeded or Failed, or is deleted; Ctrl-C ends it.
    #[arg(short, long)]
    watch: bool,
    /// Measure pods from outside, from their creation: give a name or -l before they are there. Every time is when
    /// this client saw it; nothing of podway need be in the cluster.
    #[arg(long, conflicts_with_all = ["watch", "audit_log"])]
    watch_from_create: bool,
    /// How many pods --watch-from-create measures; of more than one, stats.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "watch_from_create")]
    count: usize,
    /// The form.
    #[arg(short, long, value_enum, default_value = "text", global = true)]
    output: Output,
    /// Draw in ASCII only.
    #[arg(long)]
    ascii: bool,
    /// The API server's audit log (JSON lines): who asked, and µs times for steps 1 to 3.
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,
    /// The kubeconfig; as kubectl finds it if not given.
    #[arg(long, value_name = "FILE", global = true)]
    kubeconfig: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
    Yaml,
    Html,
    /// One pod's start as a trace: the body of an OTLP request (JSON).
    Otlp,
    /// kube-burner's documents, of stats.
    KubeBurner,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    if args.pod.is_some() && (args.selector.is_some() || args.all_namespaces) {
        return Err(Hinted::new("a pod and -l or -A exclude each other", "name a pod, or select some").into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(show(args))
}

async fn show(args: Args) -> anyhow::Result<()> {
    let (client, default) = crate::kubernetes::client(args.kubeconfig.as_deref()).await?;
    let namespace = args.namespace.clone().unwrap_or(default);
    if args.watch_from_create {
        return outside::measure(client, &namespace, &args).await;
    }
    if let Some(view) = &args.view {
        return numbers::show(&client, &namespace, &args, view).await;
    }
    let Some(pod) = &args.pod else {
        let hint = "podway flow POD draws one; podway flow -l app=web stats (or blame, chain) tells of many";
        return Err(Hinted::new("no pod is named", hint).into());
    };
    let source = Source::new(client, &namespace, pod, args.audit_log.clone());
    if args.watch {
        return follow::follow(&source, &args).await;
    }
    let pod = source.pod().await?;
    print(&render(&source.flow_of(&pod).await?, &pod, &args)?)
}

fn render(flow: &Flow, pod: &Pod, args: &Args) -> anyhow::Result<String> {
    let now = Some(Clock::new().now());
    Ok(match args.output {
        Output::Text => text(flow, stuck(pod), args.ascii),
        Output::Json => format!("{}\n", serde_json::to_string_pretty(flow)?),
        Output::Yaml => serde_yaml::to_string(flow)?,
        Output::Html => html::page(flow, now),
        Output::Otlp => {
            let parent = pod.annotations().get(otlp::PARENT_ANNOTATION);
            let parent = parent.and_then(|text| TraceParent::parse(text));
            format!("{}\n", serde_json::to_string(&otlp::request(flow, parent.as_ref()))?)
        }
        Output::KubeBurner => {
            let hint = "it is a form of stats: podway flow -l app=web stats -o kube-burner";
            return Err(Hinted::new("not supported: -o kube-burner of a picture", hint).into());
        }
    })
}

/// What the pod says that it is stuck on.
fn stuck(pod: &Pod) -> Option<String> {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.find(|c| c.type_ == stuck::CONDITION && c.status == "True")?.message.clone()
}

/// The waterfall, as the terminal takes it.
fn text(flow: &Flow, stuck: Option<String>, ascii: bool) -> String {
    let terminal = std::io::stdout().is_terminal();
    let color = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    waterfall(flow, &Options { ascii, color, now: Some(Clock::new().now()), stuck, ..Options::default() })
}
