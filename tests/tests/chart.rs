//! The chart, by the real helm: what it renders is what `kubectl apply -k manifests` would apply, object by
//! object; a value goes where it says, and one that cannot be is refused by its name.

use anyhow::{Context as _, ensure};
use podway_cluster::Program;
use podway_tests::cluster::{Answer, run};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;

/// An object's kind, namespace and name.
type Key = (String, String, String);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

async fn command(program: Program, args: &[&str]) -> anyhow::Result<Answer> {
    let path = program.locate(&|line| eprintln!("{line}")).await?;
    run(Command::new(path).current_dir(root()).args(args), "", Duration::from_secs(60)).await
}

async fn helm(args: &[&str]) -> anyhow::Result<String> {
    let answer = command(Program::Helm, args).await?;
    ensure!(answer.code == 0, "helm {args:?}: {}{}", answer.out, answer.err);
    Ok(answer.out)
}

async fn rendered(more: &[&str]) -> anyhow::Result<BTreeMap<Key, Value>> {
    let args = ["template", "podway", "charts/podway", "--namespace", "podway-system", "--include-crds"];
    objects(&helm(&[&args, more].concat()).await?)
}

/// The objects of a stream of documents.
fn objects(yaml: &str) -> anyhow::Result<BTreeMap<Key, Value>> {
    let mut all = BTreeMap::new();
    for document in serde_yaml::Deserializer::from_str(yaml) {
        let mut object = <Value as serde::Deserialize>::deserialize(document)?;
        if object.is_null() {
            continue;
        }
        whole(&mut object);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &object["metadata"];
        let key = (text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]));
        ensure!(!key.0.is_empty() && !key.2.is_empty(), "no object: {object}");
        ensure!(all.insert(key.clone(), object).is_none(), "twice: {key:?}");
    }
    Ok(all)
}

/// Helm writes the whole numbers of a definition as 0.0, kustomize as 0.
fn whole(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            if let Ok(whole) = number.to_string().trim_end_matches(".0").parse::<i64>() {
                *value = json!(whole);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole),
        Value::Object(fields) => fields.values_mut().for_each(whole),
        _ => {}
    }
}

#[tokio::test]
async fn it_is_the_manifests_without_their_namespace() -> anyhow::Result<()> {
    helm(&["lint", "--strict", "charts/podway"]).await?;
    let chart = rendered(&[]).await?;
    let kustomized = command(Program::Kubectl, &["kustomize", "manifests"]).await?;
    ensure!(kustomized.code == 0, "{}", kustomized.err);
    let mut manifests = objects(&kustomized.out)?;
    let namespace = ("Namespace".to_owned(), String::new(), "podway-system".to_owned());
    manifests.remove(&namespace).context("the manifests have a namespace")?;
    ensure!(chart.keys().eq(manifests.keys()), "{:?}\n{:?}", chart.keys(), manifests.keys());
    for (key, object) in &manifests {
        ensure!(chart[key] == *object, "{key:?} is\n{}\nand not\n{object}", chart[key]);
    }
    let version = helm(&["show", "chart", "charts/podway"]).await?;
    ensure!(version.contains(&format!("appVersion: {}\n", env!("CARGO_PKG_VERSION"))), "{version}");
    Ok(())
}

#[tokio::test]
async fn values_go_where_they_say() -> anyhow::Result<()> {
    let values = json!({
        "image": {"repository": "registry.example/podway", "tag": "v9", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "pull"}],
        "scheduler": {"replicas": 3, "nodeSelector": {"a": "b"},
            "resources": {"scheduler": {"requests": {"cpu": "1"}}}},
        "agent": {"tolerations": [{"operator": "Exists"}], "resources": {"runtime": {"limits": {"memory": "2Gi"}}}},
    });
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), values.to_string())?;
    let path = file.path().display().to_string();
    let all = rendered(&["--values", &path, "--namespace", "elsewhere"]).await?;
    let of = |kind: &str, name: &str| {
        all.get(&(kind.to_owned(), "elsewhere".to_owned(), name.to_owned())).context("an object")
    };
    let scheduler = &of("Deployment", "podway-scheduler")?["spec"];
    let pod = &scheduler["template"]["spec"];
    ensure!(scheduler["replicas"] == 3 && pod["nodeSelector"] == json!({"a": "b"}), "{scheduler}");
    ensure!(pod["imagePullSecrets"] == json!([{"name": "pull"}]), "{pod}");
    ensure!(pod["containers"][0]["image"] == "registry.example/podway:v9", "{pod}");
    ensure!(pod["containers"][0]["imagePullPolicy"] == "Always", "{pod}");
    ensure!(pod["containers"][0]["resources"] == json!({"requests": {"cpu": "1"}}), "{pod}");
    let agent = &of("DaemonSet", "podway-agent")?["spec"]["template"]["spec"];
    ensure!(agent["tolerations"] == json!([{"operator": "Exists"}]), "{agent}");
    ensure!(agent["nodeSelector"] == json!({"podway.dev/agent": "true"}), "{agent}");
    let resources = |i: usize| &agent["containers"][i]["resources"]["limits"]["memory"];
    ensure!(resources(0) == "2Gi" && resources(1) == "512Mi", "{agent}");
    // The policy knows the agent by its namespace.
    let policy = all.iter().find(|(key, _)| key.0 == "ValidatingAdmissionPolicy").context("a policy")?.1;
    ensure!(policy.to_string().contains("system:serviceaccount:elsewhere:podway-agent"), "{policy}");
    ensure!(!all.values().any(|o| o.to_string().contains("podway-system")), "podway-system is named");

    let without = rendered(&["--set", "scheduler.enabled=false,agent.enabled=false"]).await?;
    ensure!(!without.keys().any(|k| ["Deployment", "DaemonSet", "ConfigMap"].contains(&k.0.as_str())));
    Ok(())
}

#[tokio::test]
async fn a_bad_value_is_named() -> anyhow::Result<()> {
    for (value, named) in [
        ("scheduler.replicas=0", "/scheduler/replicas"),
        ("scheduler.replica=2", "'replica'"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("image.tag=a b", "/image/tag"),
        ("agent.resources.runtim.limits.memory=1Gi", "'runtim'"),
        ("agent.nodeSelector=x", "/agent/nodeSelector"),
    ] {
        let answer = command(Program::Helm, &["template", "podway", "charts/podway", "--set", value]).await?;
        ensure!(answer.code != 0 && answer.err.contains(named), "{value}: {}{}", answer.out, answer.err);
    }
    Ok(())
}
