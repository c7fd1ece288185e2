//! What goes wrong is told in upstream's words.

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use podway_tests::namespace::{Ns, STAY, phase, pod, status, waiting};
use serde_json::json;

pub async fn bad_image(ns: Ns) -> anyhow::Result<()> {
    let missing = "docker.io/library/there-is-none:v1";
    let _: Pod = ns.create(pod("missing", STAY, json!({"main": {"image": missing}}))).await?;
    let seen = ns.pod("missing", "ErrImagePull", |p| waiting(p, "main").0 == "ErrImagePull").await?;
    ensure!(
        waiting(&seen, "main").1.contains(missing),
        "the message names no image: {}",
        waiting(&seen, "main").1
    );
    let seen = ns.pod("missing", "ImagePullBackOff", |p| waiting(p, "main").0 == "ImagePullBackOff").await?;
    ensure!(
        waiting(&seen, "main").1.starts_with(&format!("Back-off pulling image \"{missing}\"")),
        "{}",
        waiting(&seen, "main").1
    );
    ensure!(phase(&seen) == "Pending");

    let _: Pod = ns.create(pod("invalid", STAY, json!({"main": {"image": "NOT/a:name:at all"}}))).await?;
    let seen = ns.pod("invalid", "InvalidImageName", |p| waiting(p, "main").0 == "InvalidImageName").await?;
    ensure!(waiting(&seen, "main").1.contains("NOT/a:name:at all"), "{}", waiting(&seen, "main").1);

    let never = json!({"main": {"image": missing, "imagePullPolicy": "Never"}});
    let _: Pod = ns.create(pod("never", STAY, never)).await?;
    let seen = ns.pod("never", "ErrImageNeverPull", |p| waiting(p, "main").0 == "ErrImageNeverPull").await?;
    ensure!(
        waiting(&seen, "main").1
            == format!("Container image \"{missing}\" is not present with pull policy of Never"),
        "{}",
        waiting(&seen, "main").1
    );
    Ok(())
}

pub async fn missing_config_map(ns: Ns) -> anyhow::Result<()> {
    let env = json!({"main": {"envFrom": [{"configMapRef": {"name": "later"}}]}});
    let _: Pod = ns.create(pod("waits", STAY, env)).await?;
    let seen = ns
        .pod("waits", "CreateContainerConfigError", |p| waiting(p, "main").0 == "CreateContainerConfigError")
        .await?;
    ensure!(waiting(&seen, "main").1 == "configmap \"later\" not found", "{}", waiting(&seen, "main").1);
    // It heals by itself once the map is there.
    let _: ConfigMap = ns.create(json!({"metadata": {"name": "later"}, "data": {"K": "v"}})).await?;
    ns.ready("waits").await?;
    ensure!(ns.kubectl(&["exec", "waits", "--", "sh", "-c", "echo $K"]).await? == "v\n");
    Ok(())
}

pub async fn crashing(ns: Ns) -> anyhow::Result<()> {
    let _: Pod = ns.create(pod("crashes", "echo so long; exit 3", json!({}))).await?;
    let seen = ns
        .pod("crashes", "CrashLoopBackOff after a restart", |p| {
            waiting(p, "main").0 == "CrashLoopBackOff"
                && status(p, "main").is_some_and(|s| s.restart_count >= 1)
        })
        .await?;
    let uid = seen.metadata.uid.clone().context("a uid")?;
    let expected = format!("back-off 20s restarting failed container=main pod=crashes_{}({uid})", ns.name);
    let message = waiting(&seen, "main").1;
    // Ours says more than upstream's words: when the next start is.
    let message = message.split(", next start at ").next().unwrap_or_default();
    ensure!(
        message == expected || message == expected.replace("20s", "10s"),
        "the message is {message:?}, not {expected:?}"
    );
    let last = status(&seen, "main")
        .and_then(|s| s.last_state.as_ref()?.terminated.as_ref())
        .context("lastState")?;
    ensure!((last.exit_code, last.reason.as_deref()) == (3, Some("Error")), "{last:?}");
    ensure!(ns.kubectl(&["logs", "crashes", "--previous"]).await? == "so long\n");

    let once = json!({"restartPolicy": "Never"});
    let _: Pod = ns.create(pod("ends", "exit 0", once)).await?;
    let seen = ns.ended("ends").await?;
    ensure!(phase(&seen) == "Succeeded");
    let ended =
        status(&seen, "main").and_then(|s| s.state.as_ref()?.terminated.as_ref()).context("terminated")?;
    ensure!((ended.exit_code, ended.reason.as_deref()) == (0, Some("Completed")), "{ended:?}");
    Ok(())
}

pub async fn out_of_memory(ns: Ns) -> anyhow::Result<()> {
    let spec = json!({
        "restartPolicy": "Never",
        "main": {"command": ["tail", "/dev/zero"], "resources": {"limits": {"memory": "16Mi"}}}});
    let _: Pod = ns.create(pod("eats", "", spec)).await?;
    let seen = ns.ended("eats").await?;
    ensure!(phase(&seen) == "Failed");
    let ended =
        status(&seen, "main").and_then(|s| s.state.as_ref()?.terminated.as_ref()).context("terminated")?;
    ensure!((ended.exit_code, ended.reason.as_deref()) == (137, Some("OOMKilled")), "{ended:?}");
    Ok(())
}

pub async fn bad_command(ns: Ns) -> anyhow::Result<()> {
    let spec = json!({"restartPolicy": "Never", "main": {"command": ["/no/such/program"]}});
    let _: Pod = ns.create(pod("mistyped", "", spec)).await?;
    let seen = ns.ended("mistyped").await?;
    let ended =
        status(&seen, "main").and_then(|s| s.state.as_ref()?.terminated.as_ref()).context("terminated")?;
    ensure!((ended.exit_code, ended.reason.as_deref()) == (128, Some("StartError")), "{ended:?}");
    let message = ended.message.as_deref().unwrap_or_default();
    ensure!(
        message.contains("/no/such/program") && message.contains("no such file or directory"),
        "{message}"
    );
    Ok(())
}

pub async fn explained(ns: Ns) -> anyhow::Result<()> {
    let volume = json!({"volumes": [{"name": "v", "secret": {"secretName": "absent"}}],
        "main": {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}});
    let _: Pod = ns.create(pod("waits", STAY, volume)).await?;
    // It is told in a condition once it has lasted a second.
    ns.pod("waits", "VolumesMounted=False", |p| {
        podway_tests::namespace::condition(p, "podway.dev/VolumesMounted") == Some("False")
    })
    .await?;
    let explain = async |form: &str| {
        let answer = ns.cluster.podway(&["explain", "pod/waits", "-n", &ns.name, "-o", form]).await?;
        ensure!(answer.code == 0, "{answer:?}");
        anyhow::Ok(answer.out)
    };
    let text = explain("text").await?;
    ensure!(text.starts_with("pod waits is not Ready\n"), "{text}");
    ensure!(text.contains("secret absent, which volume v needs, is not there"), "{text}");
    let _: k8s_openapi::api::core::v1::Secret =
        ns.create(json!({"metadata": {"name": "absent"}, "stringData": {"k": "v"}})).await?;
    ns.ready("waits").await?;
    ns.whole_flow("waits").await?;
    let told: serde_json::Value = serde_json::from_str(&explain("json").await?)?;
    ensure!(told["settled"] == true && told["chain"][0] == "pod waits is Ready", "{told}");
    // One interval after the other, from the first to the last: the parts are the whole.
    let life = told["life"].as_array().context("a life")?;
    ensure!(life.windows(2).all(|pair| pair[0]["to"] == pair[1]["from"]), "{told}");
    let volumes = life.iter().filter(|i| i["cause"].as_str().is_some_and(|c| c.contains("VolumesMounted")));
    let micros =
        |i: &serde_json::Value| i["to"].as_i64().zip(i["from"].as_i64()).map_or(0, |(to, from)| to - from);
    let waited: i64 = volumes.map(micros).sum();
    ensure!(waited >= 500_000, "the wait for the secret is not told: {told}");
    Ok(())
}

pub async fn evicted_for_its_own_volume(ns: Ns) -> anyhow::Result<()> {
    let script = format!("head -c 3000000 /dev/zero > /v/f; {STAY}");
    let volume = json!({"volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}],
        "main": {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}});
    let _: Pod = ns.create(pod("greedy", &script, volume)).await?;
    let ended = ns.ended("greedy").await?;
    let status = ended.status.clone().unwrap_or_default();
    ensure!(phase(&ended) == "Failed" && status.reason.as_deref() == Some("Evicted"), "{status:?}");
    let message = "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ";
    ensure!(status.message.as_deref() == Some(message), "{:?}", status.message);
    Ok(())
}
