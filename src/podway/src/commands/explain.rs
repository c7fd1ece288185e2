//! `podway explain pod/NAME`: why a pod is not Ready, or not gone yet, and what each moment of its
//! life was spent on. The answer is `podway_api::explain`'s; here it is asked for and printed.

use super::flow::Source;
use super::{Output, one_line};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::Api;
use kube::{Client, ResourceExt as _};
use podway_api::explain::{Explanation, explain};
use podway_flow::Clock;
use podway_flow::picture::ms;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Say why a pod is not Ready, or not gone yet.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  podway explain pod/web-0 -n default\n  kubectl podway explain pod/web-0 -o json"
)]
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
    /// The API server's audit log (JSON lines): µs times for steps 1 to 3.
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,
    /// The kubeconfig; as kubectl finds it if not given.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(show(args))
}

async fn show(args: Args) -> anyhow::Result<()> {
    let name = args.pod;
    let (client, default) = crate::kubernetes::client(args.kubeconfig.as_deref()).await?;
    let namespace = args.namespace.unwrap_or(default);
    let source = Source::new(client.clone(), &namespace, &name, args.audit_log);
    let pod = source.pod().await?;
    let flow = source.flow_of(&pod).await?;
    let mut explained = explain(&pod, &flow, Clock::new().now());
    if !explained.settled {
        explained.chain.extend(missing(&client, &namespace, &pod).await);
    }
    args.output.print(&explained, text)
}

/// What the pod refers to and that is not there. What may not be read is not told of.
async fn missing(client: &Client, namespace: &str, pod: &Pod) -> Vec<String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let mut told = Vec::new();
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let created = pod.creation_timestamp().map(|t| t.0.to_string()).unwrap_or_default();
    for (kind, name, by) in references(pod) {
        let there = match kind {
            "secret" => secrets.get_metadata_opt(&name).await.map(|o| o.is_some()),
            _ => maps.get_metadata_opt(&name).await.map(|o| o.is_some()),
        };
        if matches!(there, Ok(false)) {
            told.push(format!(
                "{kind} {name}, which {by} needs, is not there (the pod was made at {created})"
            ));
        }
    }
    told
}

/// The secrets and config maps without which the pod does not start, and what needs them.
fn references(pod: &Pod) -> Vec<(&'static str, String, String)> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut all = Vec::new();
    let mut add = |kind, name: Option<&str>, optional: Option<bool>, by: String| {
        if let Some(name) = name.filter(|n| !n.is_empty() && optional != Some(true)) {
            all.push((kind, name.to_owned(), by));
        }
    };
    for volume in spec.volumes.iter().flatten() {
        let by = || format!("volume {}", volume.name);
        if let Some(s) = &volume.secret {
            add("secret", s.secret_name.as_deref(), s.optional, by());
        }
        if let Some(c) = &volume.config_map {
            add("configmap", Some(&c.name), c.optional, by());
        }
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            if let Some(s) = &source.secret {
                add("secret", Some(&s.name), s.optional, by());
            }
            if let Some(c) = &source.config_map {
                add("configmap", Some(&c.name), c.optional, by());
            }
        }
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let by = || format!("container {}", container.name);
        for from in container.env_from.iter().flatten() {
            if let Some(s) = &from.secret_ref {
                add("secret", Some(&s.name), s.optional, by());
            }
            if let Some(c) = &from.config_map_ref {
                add("configmap", Some(&c.name), c.optional, by());
            }
        }
        for from in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            if let Some(s) = &from.secret_key_ref {
                add("secret", Some(&s.name), s.optional, by());
            }
            if let Some(c) = &from.config_map_key_ref {
                add("configmap", Some(&c.name), c.optional, by());
            }
        }
    }
    all.sort();
    all.dedup_by(|a, b| (a.0, &a.1) == (b.0, &b.1));
    all
}

fn text(explained: &Explanation) -> String {
    let mut out = String::new();
    for (depth, link) in explained.chain.iter().enumerate() {
        let arrow = if depth == 0 { "" } else { "<= " };
        let _ = writeln!(out, "{:indent$}{arrow}{}", "", one_line(link), indent = depth * 2);
    }
    let total: u64 = explained.life.iter().map(podway_api::explain::Interval::micros).sum();
    let _ = writeln!(out, "\n{:>14}  {:>6}  WHO         WAITED FOR", "MS", "%");
    for part in &explained.life {
        let took = part.micros();
        // In tenths, so that it stays in whole numbers.
        let tenths = u128::from(took) * 1000 / u128::from(total.max(1));
        let _ = writeln!(
            out,
            "{:>14}  {:>4}.{}  {:<10}  {}",
            ms(took),
            tenths / 10,
            tenths % 10,
            part.who,
            one_line(&part.cause)
        );
    }
    let _ = writeln!(out, "{:>14}   100.0  all of it", ms(total));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use podway_api::explain::Interval;
    use podway_flow::Micros;
    use serde_json::json;

    #[test]
    fn what_is_optional_is_not_needed() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "volumes": [{"name": "v", "secret": {"secretName": "s"}},
                {"name": "o", "configMap": {"name": "o", "optional": true}},
                {"name": "p", "projected": {"sources": [{"configMap": {"name": "m"}}]}}],
            "containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "s"}}],
                "env": [{"name": "E", "valueFrom": {"configMapKeyRef": {"name": "e", "key": "k"}}}]}]}}))
        .unwrap();
        let names: Vec<_> =
            references(&pod).into_iter().map(|(kind, name, _)| format!("{kind} {name}")).collect();
        assert_eq!(names, ["configmap e", "configmap m", "secret s"]);
    }

    #[test]
    fn the_table_adds_up_and_the_name_is_read() {
        let part = |from, to, cause: &str| Interval {
            from: Micros(from),
            to: Micros(to),
            who: "agent",
            cause: cause.to_owned(),
        };
        let explained = Explanation {
            settled: false,
            chain: vec!["pod p is not Ready".into(), "secret s\u{1b} is not there".into()],
            life: vec![part(0, 1500, "A"), part(1500, 4500, "B")],
        };
        let text = text(&explained);
        assert!(text.starts_with("pod p is not Ready\n  <= secret s"), "{text}");
        assert!(!text.contains('\u{1b}'), "nothing of a pod reaches the terminal as it is");
        assert!(text.contains("33.3  agent       A") && text.contains("66.6  agent       B"), "{text}");
    }
}
