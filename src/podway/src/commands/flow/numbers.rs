//! `podway flow … stats|blame|chain|compare`: numbers over the pods that a selector takes, or of one.

use super::source::{Source, many};
use super::{Args, Output};
use crate::commands::{Hinted, print};
use anyhow::Context as _;
use kube::Client;
use podway_flow::numbers::{self, kube_burner, text};
use podway_flow::{Clock, Flow};
use serde::Serialize;

/// What to tell of the pods.
#[derive(clap::Subcommand)]
pub(crate) enum View {
    /// p50, p95, p99 and maximum of each phase.
    Stats {
        /// `jobName` of the documents that -o kube-burner prints.
        #[arg(long, value_name = "NAME", default_value = "podway")]
        job_name: String,
    },
    /// Which phases the time went to, and the worst pod of each.
    Blame,
    /// The critical path: the phases that decided when a pod was Ready.
    Chain,
    /// Two pods, or two groups, phase by phase.
    Compare {
        /// A pod (NAME or NAMESPACE/NAME), or a label selector (with = or !).
        a: String,
        /// The other.
        b: String,
    },
}

/// Shows a view.
pub(super) async fn show(client: &Client, namespace: &str, args: &Args, view: &View) -> anyhow::Result<()> {
    let scope = if args.all_namespaces { None } else { Some(namespace) };
    let flows = || async {
        match &args.pod {
            Some(pod) => {
                let source = Source::new(client.clone(), namespace, pod, args.audit_log.clone());
                Ok(vec![source.flow().await?])
            }
            None => some(client, scope, args.selector.as_deref()).await,
        }
    };
    let out = match view {
        View::Stats { job_name } if args.output == Output::KubeBurner => {
            let run = kube_burner::Run { uuid: uuid()?, job_name: job_name.clone(), now: Clock::new().now() };
            let documents = kube_burner::documents(&flows().await?, &run);
            format!("{}\n", serde_json::to_string_pretty(&documents)?)
        }
        View::Stats { .. } => formed(&numbers::stats(&flows().await?), args.output, text::stats)?,
        View::Blame => formed(&numbers::blame(&flows().await?), args.output, text::blame)?,
        View::Chain => formed(&numbers::chains(&flows().await?), args.output, text::chains)?,
        View::Compare { a, b } => {
            let a_flows = group(client, namespace, scope, a).await?;
            let b_flows = group(client, namespace, scope, b).await?;
            let compared = numbers::compare((a, &a_flows), (b, &b_flows));
            formed(&compared, args.output, text::comparison)?
        }
    };
    print(&out)
}

pub(super) fn formed<T: Serialize>(
    data: &T,
    output: Output,
    text: fn(&T) -> String,
) -> anyhow::Result<String> {
    Ok(match output {
        Output::Text => text(data),
        Output::Json => format!("{}\n", serde_json::to_string_pretty(data)?),
        Output::Yaml => serde_yaml::to_string(data)?,
        Output::Html | Output::Otlp | Output::KubeBurner => {
            let hint = "html is a form of one pod's picture (podway ui has the numbers as a page), kube-burner one of stats";
            return Err(Hinted::new("not supported: this form of this view", hint).into());
        }
    })
}

/// What one side of a comparison names.
async fn group(
    client: &Client,
    namespace: &str,
    scope: Option<&str>,
    named: &str,
) -> anyhow::Result<Vec<Flow>> {
    if !named.contains(['=', '!', '(']) {
        let (namespace, name) = match named.split_once('/') {
            Some(("pod" | "pods", name)) => (namespace, name),
            Some((namespace, name)) => (namespace, name),
            None => (namespace, named),
        };
        return Ok(vec![Source::new(client.clone(), namespace, name, None).flow().await?]);
    }
    some(client, scope, Some(named)).await
}

/// The flows of the selected pods, of which there is one at least.
async fn some(client: &Client, scope: Option<&str>, selector: Option<&str>) -> anyhow::Result<Vec<Flow>> {
    let flows = many(client, scope, selector).await?;
    if flows.is_empty() {
        let of = selector.map_or_else(String::new, |selector| format!(" with {selector}"));
        let hint = "kubectl get pods --show-labels; -n NS or -A sets the namespace";
        return Err(Hinted::new(format!("no pod{of}"), hint).into());
    }
    Ok(flows)
}

/// kube-burner names each run by a random UUID.
fn uuid() -> anyhow::Result<String> {
    let path = "/proc/sys/kernel/random/uuid";
    let uuid = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    Ok(uuid.trim().to_owned())
}
