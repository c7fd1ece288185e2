//! Rules and dashboard: they parse, all that they ask for exists, the rules do what they say (promtool), and one fires in
//! a Prometheus that scrapes the agent's own registry.

use super::expression::names;
use super::{file, registry, text};
use anyhow::{Context as _, ensure};
use podway_flow::Phase;
use podway_tests::monitoring::{dashboard, each_rule, rules};
use podway_tests::prometheus::{Prometheus, Target};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// What Prometheus adds to every series, and a histogram's own.
const ADDED: [&str; 3] = ["job", "instance", "le"];

fn list<'a>(value: &'a Value, what: &str) -> anyhow::Result<&'a Vec<Value>> {
    value.as_array().with_context(|| format!("{what} is no list"))
}

/// That `expression` names nothing that is not there. `recorded` are rules' own.
fn check(
    expression: &str,
    known: &BTreeMap<String, BTreeSet<String>>,
    recorded: &BTreeSet<String>,
) -> anyhow::Result<()> {
    let (metrics, labels) = names(expression);
    ensure!(!metrics.is_empty(), "{expression} names no metric");
    let mut allowed: BTreeSet<&str> = ADDED.into();
    for metric in &metrics {
        match known.get(metric) {
            Some(labels) => allowed.extend(labels.iter().map(String::as_str)),
            None => {
                ensure!(metric == "up" || recorded.contains(metric), "{metric} is nobody's: {expression}")
            }
        }
    }
    let strange: Vec<_> = labels.iter().filter(|l| !allowed.contains(l.as_str())).collect();
    ensure!(strange.is_empty(), "labels that none of its metrics has, {strange:?}: {expression}");
    Ok(())
}

/// Samples by name, with their labels.
fn known() -> anyhow::Result<BTreeMap<String, BTreeSet<String>>> {
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for metric in registry::all()? {
        for sample in metric.samples() {
            known.entry(sample).or_default().extend(metric.labels.iter().cloned());
        }
    }
    Ok(known)
}

#[test]
fn the_rules_ask_for_what_there_is() -> anyhow::Result<()> {
    let (spec, known) = (rules()?, known()?);
    let recorded: BTreeSet<String> =
        each_rule(&spec).filter_map(|r| Some(r["record"].as_str()?.to_owned())).collect();
    ensure!(recorded.len() == 6 && each_rule(&spec).count() > 10, "{recorded:?}");
    for rule in each_rule(&spec) {
        check(rule["expr"].as_str().context("an expr")?, &known, &recorded)?;
    }
    for bad in ["podway_pod_stick", "sum by (pod) (podway_pod_stuck)"] {
        ensure!(check(bad, &known, &recorded).is_err(), "{bad} passes");
    }
    Ok(())
}

#[test]
fn the_dashboard_asks_for_what_there_is() -> anyhow::Result<()> {
    let (board, known) = (dashboard()?, known()?);
    let none = BTreeSet::new();
    let mut ids = BTreeSet::new();
    let panels = list(&board["panels"], "panels")?;
    ensure!(panels.len() >= 15, "{} panels", panels.len());
    for panel in panels {
        ensure!(ids.insert(panel["id"].as_u64().context("an id")?), "an id twice: {}", panel["id"]);
        ensure!(panel["title"].as_str().is_some_and(|t| !t.is_empty()), "{panel}");
        let grid = &panel["gridPos"];
        ensure!(grid["x"].as_u64().zip(grid["w"].as_u64()).is_some_and(|(x, w)| x + w <= 24), "{grid}");
        for target in list(&panel["targets"], "targets")? {
            check(target["expr"].as_str().context("an expr")?, &known, &none)?;
        }
    }
    for variable in list(&board["templating"]["list"], "variables")? {
        let Some(query) = variable["query"]["query"].as_str() else { continue };
        let metric =
            query.strip_prefix("label_values(").and_then(|q| q.split_once(',')).context("a metric")?.0;
        ensure!(known.contains_key(metric), "{metric}");
    }
    Ok(())
}

fn promtool(args: &[&str], dir: &std::path::Path) -> anyhow::Result<()> {
    let output = Command::new("promtool").current_dir(dir).args(args).output();
    let output = output.context("promtool; if it is missing: apt-get install prometheus")?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{args:?}: {}{}", said(&output.stdout), said(&output.stderr));
    Ok(())
}

#[test]
fn the_rules_do_what_they_say() -> anyhow::Result<()> {
    let (dir, spec) = (tempfile::tempdir()?, rules()?);
    // JSON is YAML.
    std::fs::write(dir.path().join("rules.yaml"), spec.to_string())?;
    let tests = file("manifests/monitoring/rules_test.yaml");
    std::fs::copy(&tests, dir.path().join("rules_test.yaml"))?;
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", "rules.yaml"], dir.path())?;
    promtool(&["test", "rules", "rules_test.yaml"], dir.path())?;
    // Each alert is seen to fire.
    let tests: Value = serde_yaml::from_str(&std::fs::read_to_string(tests)?)?;
    let fired: BTreeSet<&str> = list(&tests["tests"], "tests")?
        .iter()
        .flat_map(|t| t["alert_rule_test"].as_array().into_iter().flatten())
        .filter(|t| t["exp_alerts"].as_array().is_some_and(|a| !a.is_empty()))
        .filter_map(|t| t["alertname"].as_str())
        .collect();
    for alert in each_rule(&spec).filter_map(|r| r["alert"].as_str()) {
        ensure!(fired.contains(alert), "no unit test has {alert} fire");
    }
    Ok(())
}

#[tokio::test]
async fn an_alert_fires_in_a_prometheus_that_scrapes_the_agents_registry() -> anyhow::Result<()> {
    let metrics = Arc::new(registry::agent());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let served = Arc::clone(&metrics);
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let text = served.text();
            let mut asked = [0; 2048];
            // What is asked does not matter: there is one page. Who hangs up is not answered.
            if stream.read(&mut asked).await.is_ok() {
                let head =
                    "HTTP/1.0 200 OK\r\nContent-Type: application/openmetrics-text; version=1.0.0\r\n\r\n";
                let _ = stream.write_all(format!("{head}{text}").as_bytes()).await;
            }
        }
    });
    let mut spec = rules()?;
    // As the file has it, but at once: a rule waits a minute.
    for group in spec["groups"].as_array_mut().context("groups")? {
        for rule in group["rules"].as_array_mut().context("rules")? {
            if rule["for"].is_string() {
                rule["for"] = json!("0s");
            }
        }
    }
    let target = Target { job: "podway-agent", address, tls: None };
    let prometheus = Prometheus::with_rules(&[target], &spec).await?;
    let firing = |name: &str| format!("count(ALERTS{{alertname=\"{name}\",alertstate=\"firing\"}})");
    let stuck = metrics.stuck(Phase::ImagesPulled);
    ensure!(prometheus.value(&firing("PodwayPodStuck")).await? == 1.0);
    ensure!(prometheus.value("ALERTS{alertname=\"PodwayPodStuck\",phase=\"ImagesPulled\"}").await? == 1.0);
    drop(stuck);
    let over = format!("({} or vector(0)) == 0", firing("PodwayPodStuck"));
    ensure!(prometheus.value(&over).await? == 0.0);
    server.abort();
    ensure!(prometheus.value(&firing("PodwayTargetDown")).await? == 1.0);
    Ok(())
}

#[test]
fn kube_state_metrics_is_told_of_fields_that_there_are() -> anyhow::Result<()> {
    let config: Value = serde_yaml::from_str(&text("manifests/monitoring/kube-state-metrics.yaml")?)?;
    let crd: Value = serde_yaml::from_str(&text("crds/podflows.yaml")?)?;
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let resource = &config["spec"]["resources"][0];
    let kind = &resource["groupVersionKind"];
    ensure!(kind["group"] == crd["spec"]["group"] && kind["kind"] == crd["spec"]["names"]["kind"], "{kind}");
    ensure!(kind["version"] == crd["spec"]["versions"][0]["name"], "{kind}");
    let mut paths = 0;
    let mut each = |from: &[String], path: &Value| -> anyhow::Result<Vec<String>> {
        let more = list(path, "a path")?.iter().filter_map(|p| Some(p.as_str()?.to_owned()));
        let whole: Vec<String> = from.iter().cloned().chain(more).collect();
        let mut at = schema;
        for field in whole.iter().filter(|f| *f != "namespace" && *f != "metadata") {
            at = if at["items"].is_object() { &at["items"] } else { at };
            at = &at["properties"][field.as_str()];
        }
        ensure!(at.is_object(), "no {whole:?} in the definition");
        paths += 1;
        Ok(whole)
    };
    for path in resource["labelsFromPath"].as_object().context("labels")?.values() {
        each(&[], path)?;
    }
    for metric in list(&resource["metrics"], "metrics")? {
        for body in ["gauge", "info"].into_iter().map(|k| &metric["each"][k]).filter(|b| b.is_object()) {
            let base = if body["path"].is_null() { vec![] } else { each(&[], &body["path"])? };
            if body["valueFrom"].is_array() {
                each(&base, &body["valueFrom"])?;
            }
            for path in body["labelsFromPath"].as_object().into_iter().flat_map(|l| l.values()) {
                each(&base, path)?;
            }
        }
    }
    ensure!(paths == 12, "{paths} paths");
    Ok(())
}
