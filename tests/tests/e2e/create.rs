//! Pods by each way of creating one, and what they are given.

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use podway_tests::namespace::{BUSYBOX, Ns, STAY, condition, container, phase, pod, status};
use serde_json::json;
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What `kubectl get` and controllers go by.
fn looks_well(pod: &Pod) -> anyhow::Result<()> {
    ensure!(phase(pod) == "Running", "phase is {}", phase(pod));
    for kind in ["PodScheduled", "Initialized", "ContainersReady", "Ready", "PodReadyToStartContainers"] {
        ensure!(condition(pod, kind) == Some("True"), "{kind} is {:?}", condition(pod, kind));
    }
    let found = pod.status.as_ref().context("a status")?;
    ensure!(found.pod_ip.is_some() && found.host_ip.is_some(), "no addresses");
    ensure!(found.start_time.is_some(), "no start time");
    ensure!(found.observed_generation == pod.metadata.generation, "the generation is not the observed one");
    for container in found.container_statuses.iter().flatten() {
        let id = container.container_id.as_deref().unwrap_or_default();
        ensure!(id.contains("://"), "container id {id:?}");
        ensure!(container.image_id.contains("sha256:"), "image id {:?}", container.image_id);
        ensure!(container.ready && container.started == Some(true) && container.restart_count == 0);
    }
    Ok(())
}

pub async fn applied(ns: Ns) -> anyhow::Result<()> {
    let file = repository().join("manifests/examples/pod.yaml");
    ns.kubectl(&["apply", "-f", &file.display().to_string()]).await?;
    let pod = ns.ready("hello").await?;
    looks_well(&pod)?;
    ensure!(pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) == Some("Burstable"));
    ensure!(ns.kubectl(&["logs", "hello"]).await? == "hello from hello\n");
    Ok(())
}

pub async fn run_by_kubectl(ns: Ns) -> anyhow::Result<()> {
    let overrides =
        "--overrides={\"spec\":{\"schedulerName\":\"podway\",\"terminationGracePeriodSeconds\":1}}";
    let image = format!("--image={BUSYBOX}");
    ns.kubectl(&["run", "ran", &image, overrides, "--", "sleep", "3600"]).await?;
    looks_well(&ns.ready("ran").await?)?;
    let wait = ["wait", "--for=condition=podway.dev/NetworkConfigured", "pod/ran", "--timeout=20s"];
    ns.kubectl(&wait).await?;
    Ok(())
}

pub async fn through_the_raw_api(ns: Ns) -> anyhow::Result<()> {
    let body = serde_json::to_vec(&pod("raw", STAY, json!({})))?;
    let path = format!("/api/v1/namespaces/{}/pods", ns.name);
    let (created, code) = ns.cluster.post(&path, body).await?;
    ensure!(code == 201, "{code}: {created}");
    looks_well(&ns.ready("raw").await?)
}

pub async fn with_init_config_secret_and_a_shared_volume(ns: Ns) -> anyhow::Result<()> {
    let _: ConfigMap =
        ns.create(json!({"metadata": {"name": "config"}, "data": {"greeting": "good day", "file.txt": "from a map"}})).await?;
    let _: Secret =
        ns.create(json!({"metadata": {"name": "secret"}, "stringData": {"word": "hush"}})).await?;
    let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
    let mut writer = container(
        "writer",
        "cat /shared/init /config/file.txt /secret/word; echo; echo \"$SAYS\"; \
         echo from writer > /shared/writer.new; mv /shared/writer.new /shared/writer; \
         trap 'exit 0' TERM; sleep 3600 & wait $!",
    );
    writer["env"] = json!([
        {"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "config", "key": "greeting"}}},
        {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "word"}}},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "SAYS", "value": "$(POD): $(GREETING), $(WORD), $$(WORD)"}]);
    writer["volumeMounts"] =
        json!([mount("shared", "/shared"), mount("config", "/config"), mount("secret", "/secret")]);
    let mut reader = container(
        "reader",
        "until [ -e /shared/writer ]; do sleep 0.1; done; cat /shared/init /shared/writer; \
         trap 'exit 0' TERM; sleep 3600 & wait $!",
    );
    reader["volumeMounts"] = json!([mount("shared", "/shared")]);
    let mut first = container("first", "echo one > /shared/init");
    first["volumeMounts"] = json!([mount("shared", "/shared")]);
    let mut second = container("second", "grep -q one /shared/init && echo two >> /shared/init");
    second["volumeMounts"] = json!([mount("shared", "/shared")]);
    let spec = json!({
        "volumes": [
            {"name": "shared", "emptyDir": {}},
            {"name": "config", "configMap": {"name": "config"}},
            {"name": "secret", "secret": {"secretName": "secret", "defaultMode": 256}}],
        "initContainers": [first, second],
        "containers": [writer, reader]});
    let _: Pod = ns.create(pod("rich", "", spec)).await?;
    let ready = ns.ready("rich").await?;
    looks_well(&ready)?;
    for init in ["first", "second"] {
        let ended = status(&ready, init).and_then(|s| s.state.as_ref()?.terminated.as_ref());
        let ended = ended.with_context(|| format!("{init} has not ended"))?;
        ensure!((ended.exit_code, ended.reason.as_deref()) == (0, Some("Completed")), "{ended:?}");
    }
    // Logs may lag behind Ready by what the scripts take; follow ends with the line that is waited for.
    let wait = "until [ -e /shared/writer ]; do sleep 0.1; done";
    ns.kubectl(&["exec", "rich", "-c", "reader", "--", "sh", "-c", wait]).await?;
    let written = ns.kubectl(&["logs", "rich", "-c", "writer"]).await?;
    ensure!(
        written == "one\ntwo\nfrom a maphush\nrich: good day, hush, $(WORD)\n",
        "the writer wrote {written:?}"
    );
    ns.until_log("rich", "reader", "from writer").await?;
    let read = ns.kubectl(&["logs", "rich", "-c", "reader"]).await?;
    ensure!(read == "one\ntwo\nfrom writer\n", "the reader wrote {read:?}");
    let mode =
        ns.kubectl(&["exec", "rich", "-c", "writer", "--", "stat", "-Lc", "%a", "/secret/word"]).await?;
    ensure!(mode == "400\n", "the secret's mode is {mode:?}");
    Ok(())
}

pub async fn limits_are_in_the_cgroup(ns: Ns) -> anyhow::Result<()> {
    let resources =
        json!({"requests": {"cpu": "50m", "memory": "16Mi"}, "limits": {"cpu": "200m", "memory": "32Mi"}});
    let _: Pod = ns.create(pod("limited", STAY, json!({"main": {"resources": resources}}))).await?;
    let ready = ns.ready("limited").await?;
    let id = status(&ready, "main").and_then(|s| s.container_id.as_deref()).context("a container id")?;
    let id = id.rsplit('/').next().unwrap_or_default();
    let read = |controller: &str, file: &str| {
        let dir = find(&Path::new("/sys/fs/cgroup").join(controller), id)
            .with_context(|| format!("no cgroup of {controller:?} has {id} in its name"))?;
        let text =
            std::fs::read_to_string(dir.join(file)).with_context(|| format!("{}/{file}", dir.display()))?;
        anyhow::Ok(text.trim().to_owned())
    };
    if Path::new("/sys/fs/cgroup/memory").is_dir() {
        ensure!(read("memory", "memory.limit_in_bytes")? == "33554432");
        ensure!(read("cpu", "cpu.cfs_quota_us")? == "20000");
        ensure!(read("cpu", "cpu.cfs_period_us")? == "100000");
        ensure!(read("cpu", "cpu.shares")? == "51");
    } else {
        ensure!(read("", "memory.max")? == "33554432");
        ensure!(read("", "cpu.max")? == "20000 100000");
    }
    Ok(())
}

/// The cgroup with `id` in its name.
fn find(dir: &Path, id: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    entries
        .map(|e| e.path())
        .find_map(|path| if path.file_name()?.to_str()?.contains(id) { Some(path) } else { find(&path, id) })
}

pub async fn examples_and_manifests(ns: Ns) -> anyhow::Result<()> {
    let manifests = repository().join("manifests").display().to_string();
    for more in [&["--dry-run=server"][..], &[]] {
        let mut args = vec!["apply", "-k", manifests.as_str()];
        args.extend(more);
        let answer = ns.cluster.kubectl(&args, "").await?;
        ensure!(answer.code == 0, "kubectl {args:?}: {}", answer.err);
    }
    let file = repository().join("manifests/examples/shared-volume.yaml").display().to_string();
    ns.kubectl(&["apply", "-f", &file]).await?;
    looks_well(&ns.ready("shared-volume").await?)?;
    ns.until_log("shared-volume", "reader", "prepared").await?;
    Ok(())
}

pub async fn with_ids_of_its_own(ns: Ns) -> anyhow::Result<()> {
    let _: ConfigMap = ns.create(json!({"metadata": {"name": "words"}, "data": {"word": "hush"}})).await?;
    let script = "cat /proc/self/uid_map; stat -c '%u:%g' /data /words/..data/word; id -u; \
                  echo mine > /data/file && stat -c '%u:%g' /data/file; \
                  trap 'exit 0' TERM; sleep 3600 & wait $!";
    let spec = |first: &str| {
        json!({
            "hostUsers": false,
            "securityContext": {"fsGroup": 2000},
            "volumes": [
                {"name": "data", "emptyDir": {}},
                {"name": "words", "configMap": {"name": "words"}}],
            "nodeName": first,
            "main": {"volumeMounts": [
                {"name": "data", "mountPath": "/data"}, {"name": "words", "mountPath": "/words"}]}})
    };
    let mut ranges = Vec::new();
    for name in ["one", "two"] {
        let _: Pod = ns.create(pod(name, script, spec("podway-0"))).await?;
        ns.ready(name).await?;
        ns.until_log(name, "main", "0:2000").await?;
        let log = ns.kubectl(&["logs", name]).await?;
        let lines: Vec<&str> = log.lines().map(str::trim).collect();
        let map: Vec<u64> =
            lines.first().into_iter().flat_map(|l| l.split_whitespace()).flat_map(str::parse).collect();
        let [0, host, 65536] = map.as_slice() else { anyhow::bail!("its ids are {log}") };
        // On the disk they are root's and the group's, and in the pod as well.
        ensure!(lines.get(1..) == Some(&["0:2000", "0:2000", "0", "0:2000"]), "{log}");
        ensure!(*host > 0 && host % 65536 == 0, "they begin at {host}");
        ranges.push(*host);
    }
    ensure!(ranges.first() != ranges.last(), "two pods have the same ids: {ranges:?}");
    Ok(())
}
