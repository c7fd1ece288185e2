//! A real Prometheus scrapes scheduler, agent and runtime, and its queries answer; so do those of our dashboard and rules.

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use podway_tests::monitoring::{Query, queries, rules};
use podway_tests::namespace::{LIMIT, Ns, STAY, condition, node, phase, pod, waiting};
use podway_tests::prometheus::{Prometheus, Target, Tls};
use serde_json::json;
use std::time::Duration;

/// Where `podway scheduler` serves unless it is told otherwise.
const SCHEDULER: &str = "127.0.0.1:10351";

/// The jobs, as the monitors beside our rules name them.
const JOBS: [&str; 3] = ["podway-scheduler", "podway-system/podway-agent", "podway-runtime"];

pub async fn scraped_by_prometheus(ns: Ns) -> anyhow::Result<()> {
    let _: Pod = ns.create(pod("counted", STAY, json!({}))).await?;
    let ready = ns.ready("counted").await?;
    let prometheus = Prometheus::start(&targets(&ns, node(&ready)).await?).await?;
    for job in JOBS {
        ensure!(prometheus.value(&format!("up{{job=\"{job}\"}} == 1")).await? == 1.0);
        let phases = format!("sum(podway_pod_phase_duration_seconds_count{{job=\"{job}\"}})");
        ensure!(prometheus.value(&phases).await? >= 1.0, "{job} has recorded no phase");
    }
    ensure!(prometheus.value("scheduler_schedule_attempts_total{result=\"scheduled\"}").await? >= 1.0);
    ensure!(prometheus.value("kubelet_running_pods").await? >= 1.0);
    Ok(())
}

/// What no pod of [`what_dashboard_and_rules_ask_has_data`] brings about, and why.
const WITHOUT_DATA: [(&str, &str); 3] = [
    ("kubelet_evictions_total", "nothing is short on the node"),
    (
        "scheduler_schedule_attempts_total{result=\"error\"}",
        "no attempt ends in an error of the scheduler's own",
    ),
    (
        "leader_election_master_status",
        "the one scheduler of `up` elects nobody; `stock.rs` asks those that do",
    ),
];

/// Every query, of pods that start and of some that cannot.
pub async fn what_dashboard_and_rules_ask_has_data(ns: Ns) -> anyhow::Result<()> {
    // What they have counted in the cases before goes with them.
    for part in ["scheduler", "agent", "runtime"] {
        ns.cluster.kill(part)?;
    }
    ns.cluster.up_again().await?;
    let name = ns.cluster.nodes()?.into_iter().next().context("a node")?;
    let here = json!({"nodeSelector": {"kubernetes.io/hostname": name}});
    let _: Pod = ns.create(pod("first", STAY, here.clone())).await?;
    ns.whole_flow("first").await?;
    some_fail(&ns, &name).await?;

    let prometheus = Prometheus::with_rules(&targets(&ns, &name).await?, &rules()?).await?;
    for job in JOBS {
        prometheus.value(&format!("up{{job=\"{job}\"}} == 1")).await?;
    }
    // A rate is of what changes while Prometheus looks.
    let _: Pod = ns.create(pod("second", STAY, here)).await?;
    ns.whole_flow("second").await?;

    let excused = |query: &Query| WITHOUT_DATA.iter().any(|(metric, _)| query.expression.contains(metric));
    let all = queries()?;
    let (without, with): (Vec<Query>, Vec<Query>) = all.into_iter().partition(excused);
    ensure!(without.len() >= WITHOUT_DATA.len() && with.len() > 30, "{} and {}", without.len(), with.len());
    all_answer(&prometheus, &with).await?;
    for (metric, why) in WITHOUT_DATA {
        let named: Vec<&Query> = without.iter().filter(|q| q.expression.contains(metric)).collect();
        ensure!(!named.is_empty(), "nothing asks for {metric}: take it off the list");
        for query in named {
            let values = prometheus.values(&query.expression).await?;
            ensure!(values.is_empty(), "{metric} has data after all ({why}), {values:?}: {query:?}");
        }
    }
    Ok(())
}

/// A pod for which there is no image, one without a program, one that its node refuses, and one that gets no node.
async fn some_fail(ns: &Ns, node: &str) -> anyhow::Result<()> {
    let nowhere = json!({"podway.dev/nowhere": "true"});
    for (name, spec) in [
        ("no-image", json!({"main": {"image": "docker.io/library/there-is-none:v1"}})),
        ("no-program", json!({"restartPolicy": "Never", "main": {"command": ["/no/such/program"]}})),
        ("refused", json!({"nodeSelector": nowhere})),
    ] {
        let mut object = pod(name, STAY, spec);
        object["spec"]["nodeName"] = json!(node);
        let _: Pod = ns.create(object).await?;
    }
    let _: Pod = ns.create(pod("nowhere", STAY, json!({"nodeSelector": nowhere}))).await?;
    ns.pod("no-image", "a pull that failed", |p| waiting(p, "main").0 == "ErrImagePull").await?;
    ns.ended("no-program").await?;
    ns.pod("refused", "its refusal", |p| phase(p) == "Failed").await?;
    ns.pod("nowhere", "its refusal", |p| condition(p, "PodScheduled") == Some("False")).await?;
    Ok(())
}

/// Waits for each to have a number: Prometheus tells nobody when it has scraped what was counted last.
async fn all_answer(prometheus: &Prometheus, queries: &[Query]) -> anyhow::Result<()> {
    let mut silent: Vec<&Query> = queries.iter().collect();
    let all = async {
        while !silent.is_empty() {
            let mut still = Vec::new();
            for query in &silent {
                // Of nothing that happened there is a quantile, and it is not a number.
                if prometheus.values(&query.expression).await?.into_iter().all(f64::is_nan) {
                    still.push(*query);
                }
            }
            silent = still;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        anyhow::Ok(())
    };
    match tokio::time::timeout(LIMIT, all).await {
        Ok(result) => result,
        Err(_) => bail!("{} queries have no data: {silent:#?}", silent.len()),
    }
}

/// The scheduler, and agent and runtime of a node.
async fn targets(ns: &Ns, name: &str) -> anyhow::Result<Vec<Target>> {
    let found = Api::<Node>::all(ns.cluster.client.clone()).get(name).await?;
    let addresses = found.status.and_then(|s| s.addresses).unwrap_or_default();
    let address =
        addresses.into_iter().find(|a| a.type_ == "InternalIP").context("the node has an address")?;
    let layout = &ns.cluster.layout;
    let tls = Tls { ca: Some(layout.cert("ca")), cert: layout.cert("admin"), key: layout.key("admin") };
    let agent = format!("{}:10250", address.address);
    let runtime = std::fs::read_to_string(layout.node(name).join("runtime.toml")).context("runtime.toml")?;
    let runtime = listen(&runtime).context("runtime.toml has no listen under [metrics]")?;
    let all = [(scheduler_address(ns)?, None), (agent, Some(tls)), (runtime, None)];
    Ok(std::iter::zip(JOBS, all).map(|(job, (address, tls))| Target { job, address, tls }).collect())
}

/// The address on the scheduler's command line, else the default.
pub fn scheduler_address(ns: &Ns) -> anyhow::Result<String> {
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
