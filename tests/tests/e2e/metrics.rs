//! A real Prometheus scrapes scheduler, agent and runtime, and its queries answer.

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use podway_tests::Ns;
use podway_tests::namespace::{STAY, node, pod};
use podway_tests::prometheus::{Prometheus, Target, Tls};
use serde_json::json;

/// Where `podway scheduler` serves unless it is told otherwise.
const SCHEDULER: &str = "127.0.0.1:10351";

pub async fn scraped_by_prometheus(ns: Ns) -> anyhow::Result<()> {
    let _: Pod = ns.create(pod("counted", STAY, json!({}))).await?;
    let ready = ns.ready("counted").await?;
    let name = node(&ready);
    let found = Api::<Node>::all(ns.cluster.client.clone()).get(name).await?;
    let addresses = found.status.and_then(|s| s.addresses).unwrap_or_default();
    let address =
        addresses.into_iter().find(|a| a.type_ == "InternalIP").context("the node has an address")?;
    let layout = &ns.cluster.layout;
    let tls = Tls { ca: Some(layout.cert("ca")), cert: layout.cert("admin"), key: layout.key("admin") };
    let agent = Target { job: "agent", address: format!("{}:10250", address.address), tls: Some(tls) };
    let runtime = std::fs::read_to_string(layout.node(name).join("runtime.toml")).context("runtime.toml")?;
    let runtime = listen(&runtime).context("runtime.toml has no listen under [metrics]")?;
    let prometheus = Prometheus::start(&[
        Target { job: "scheduler", address: scheduler(&ns)?, tls: None },
        agent,
        Target { job: "runtime", address: runtime, tls: None },
    ])
    .await?;
    for job in ["scheduler", "agent", "runtime"] {
        ensure!(prometheus.value(&format!("up{{job=\"{job}\"}} == 1")).await? == 1.0);
        let phases = format!("sum(podway_pod_phase_duration_seconds_count{{job=\"{job}\"}})");
        ensure!(prometheus.value(&phases).await? >= 1.0, "{job} has recorded no phase");
    }
    ensure!(prometheus.value("scheduler_schedule_attempts_total{result=\"scheduled\"}").await? >= 1.0);
    ensure!(prometheus.value("kubelet_running_pods").await? >= 1.0);
    Ok(())
}

/// The address on the scheduler's command line, else the default.
fn scheduler(ns: &Ns) -> anyhow::Result<String> {
    let (_, pid) = ns.cluster.daemons("scheduler")?.into_iter().next().context("a scheduler")?;
    let line = std::fs::read(format!("/proc/{pid}/cmdline"))?;
    let line = String::from_utf8_lossy(&line);
    let mut args = line.split('\0').skip_while(|a| *a != "--metrics-bind-address").skip(1);
    Ok(args.next().unwrap_or(SCHEDULER).to_owned())
}

/// `listen` of the section `[metrics]`.
fn listen(toml: &str) -> Option<String> {
    let section = toml.lines().skip_while(|l| l.trim() != "[metrics]").skip(1);
    let line = section.take_while(|l| !l.starts_with('[')).find_map(|l| l.trim().strip_prefix("listen"))?;
    Some(line.trim_matches([' ', '=', '"']).to_owned())
}
