//! Volumes of a CSI driver that mounts (`tests/go/csi`): shared by pods, a pod's own, and attached by somebody else;
//! while the agent is killed, and while the driver is away.

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, VolumeAttachment};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use podway_tests::namespace::{LIMIT, Ns, STAY, pod};
use podway_tests::{go, wait};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The volume that outlives pods.
const VOLUME: &str = "shared";

/// The driver's process, and where it is; dropped, it is gone.
struct Driver {
    name: String,
    program: PathBuf,
    node: String,
    /// The node's root directory.
    root: PathBuf,
    state: tempfile::TempDir,
    process: Option<Child>,
}

impl Driver {
    fn new(ns: &Ns) -> anyhow::Result<Self> {
        let node = ns.cluster.nodes()?.into_iter().next().context("a node")?;
        let root = ns.cluster.layout.node(&node).join("agent");
        let program = go::build("csi", Path::new(env!("CARGO_TARGET_TMPDIR")))?;
        let name = format!("{}.podway.dev", ns.name);
        std::fs::create_dir_all(root.join("plugins").join(&name))?;
        let state = tempfile::tempdir()?;
        std::fs::create_dir(state.path().join(VOLUME))?;
        Ok(Driver { name, program, node, root, state, process: None })
    }

    fn calls(&self) -> PathBuf {
        self.state.path().with_extension("calls")
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let calls = std::fs::File::options().create(true).append(true).open(self.calls())?;
        let flag = |name: &str, value: &Path| format!("--{name}={}", value.display());
        let process = Command::new(&self.program)
            .args([format!("--name={}", self.name), format!("--node=id-of-{}", self.node)])
            .arg(flag("state", self.state.path()))
            .arg(flag("endpoint", &self.root.join("plugins").join(&self.name).join("csi.sock")))
            .arg(flag("registry", &self.root.join("plugins_registry/e2e.sock")))
            .stdin(Stdio::null())
            .stdout(calls)
            .spawn()
            .context("starting the driver")?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it as a machine ends a daemon: its sockets go.
    fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            let pid = nix::unistd::Pid::from_raw(process.id().try_into()?);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
            process.wait()?;
        }
        Ok(())
    }

    /// What it was asked, in order.
    fn asked(&self) -> anyhow::Result<Vec<String>> {
        Ok(std::fs::read_to_string(self.calls())?.lines().map(str::to_owned).collect())
    }

    /// How often it was asked this.
    fn times(&self, call: &str) -> anyhow::Result<usize> {
        Ok(self.asked()?.iter().filter(|line| *line == call).count())
    }

    /// Waits until the cluster knows of it, or does not any more.
    async fn known(&self, ns: &Ns, is: bool) -> anyhow::Result<()> {
        let sets: Api<CSINode> = Api::all(ns.cluster.client.clone());
        let field = format!("metadata.name={}", self.node);
        let knows = |set: &CSINode| set.spec.drivers.iter().any(|d| d.name == self.name) == is;
        let what = if is { "the driver's registration" } else { "the driver's leave" };
        let set = wait::until(sets, &field, what, LIMIT, knows).await?;
        if let Some(driver) = set.spec.drivers.iter().find(|d| d.name == self.name) {
            let count = driver.allocatable.as_ref().and_then(|a| a.count);
            ensure!(
                (driver.node_id.as_str(), count) == (&*format!("id-of-{}", self.node), Some(7)),
                "{driver:?}"
            );
        }
        Ok(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("the driver stays: {error}");
        }
        let _gone = std::fs::remove_file(self.calls());
    }
}

/// Makes objects of no namespace; each is deleted when the case has ended well.
async fn make<K>(ns: &Ns, object: Value) -> anyhow::Result<()>
where
    K: kube::Resource<Scope = k8s_openapi::ClusterResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::all(ns.cluster.client.clone());
    api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    Ok(())
}

fn object_of(driver: &Driver, attach: bool) -> Value {
    json!({"metadata": {"name": driver.name}, "spec": {"attachRequired": attach, "podInfoOnMount": true,
        "volumeLifecycleModes": ["Persistent", "Ephemeral"], "fsGroupPolicy": "File"}})
}

/// A claim `c` of the driver's volume, on the driver's node.
async fn claim(ns: &Ns, driver: &Driver) -> anyhow::Result<()> {
    let label = format!("topology.{}/node", driver.name);
    let here = json!({"key": label, "operator": "In", "values": [format!("id-of-{}", driver.node)]});
    make::<PersistentVolume>(
        ns,
        json!({"metadata": {"name": ns.name}, "spec": {
            "capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain",
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
            "csi": {"driver": driver.name, "volumeHandle": VOLUME}}}),
    )
    .await?;
    let _: PersistentVolumeClaim = ns
        .create(json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "storageClassName": "", "volumeName": ns.name, "resources": {"requests": {"storage": "1Mi"}}}}))
        .await?;
    Ok(())
}

/// A pod with the claim at `/v`.
fn with_claim(name: &str, script: &str, read_only: bool) -> Value {
    let volume = json!({"name": "v", "persistentVolumeClaim": {"claimName": "c", "readOnly": read_only}});
    let mut mounts = vec![json!({"name": "v", "mountPath": "/v"})];
    if !read_only {
        mounts.push(json!({"name": "v", "mountPath": "/s", "subPath": "sub"}));
    }
    pod(
        name,
        script,
        json!({"volumes": [volume], "securityContext": {"fsGroup": 1234}, "main": {"volumeMounts": mounts}}),
    )
}

pub async fn of_a_csi_driver(ns: Ns) -> anyhow::Result<()> {
    let mut driver = Driver::new(&ns)?;
    driver.start()?;
    driver.known(&ns, true).await?;
    make::<CSIDriver>(&ns, object_of(&driver, false)).await?;
    claim(&ns, &driver).await?;

    // One writes, the other reads: a volume is staged once. A third has one of its own.
    let script = format!("echo hello > /v/file; echo below > /s/file; stat -c 'group %g' /v; {STAY}");
    let _: Pod = ns.create(with_claim("writer", &script, false)).await?;
    ns.ready("writer").await?;
    ns.until_log("writer", "main", "group 1234").await?;
    let script = format!("touch /v/x || echo read-only; cat /v/file /v/sub/file; {STAY}");
    let reader: Pod = ns.create(with_claim("reader", &script, true)).await?;
    ns.ready("reader").await?;
    ns.until_log("reader", "main", "below").await?;
    ensure!(ns.kubectl(&["logs", "reader"]).await?.contains("read-only\nhello\nbelow\n"));
    let _: Secret = ns.create(json!({"metadata": {"name": "s"}, "stringData": {"word": "sesame"}})).await?;
    let own = json!({"name": "o", "csi": {"driver": driver.name, "nodePublishSecretRef": {"name": "s"}}});
    let own = json!({"volumes": [own], "nodeName": driver.node,
        "main": {"volumeMounts": [{"name": "o", "mountPath": "/o"}]}});
    let _: Pod = ns.create(pod("owner", &format!("cat /o/pod; echo; {STAY}"), own)).await?;
    ns.ready("owner").await?;
    ns.until_log("owner", "main", "owner sesame").await?;
    let (staged, own) = (format!("stage {VOLUME}"), format!("publish {VOLUME}"));
    let times = (driver.times("registered true")?, driver.times(&staged)?, driver.times(&own)?);
    ensure!(times == (1, 1, 2), "{:?}", driver.asked()?);

    // They go while there is no agent: the next one knows what they had.
    let going = [ns.ready("writer").await?, ns.ready("owner").await?];
    ns.cluster.kill("agent")?;
    ns.kubectl(&["delete", "pod", "writer", "owner", "--wait=false"]).await?;
    ns.cluster.up_again().await?;
    for pod in &going {
        ns.gone(pod).await?;
    }
    ensure!(driver.times(&format!("unstage {VOLUME}"))? == 0, "the reader has it still");
    ensure!(ns.kubectl(&["exec", "reader", "--", "cat", "/v/file"]).await? == "hello\n");
    let left = std::fs::read_dir(driver.state.path())?.count();
    ensure!(left == 1, "the pod's own volume is still there");

    // Without its driver a pod does not go, says why, and is alone with it.
    driver.stop()?;
    driver.known(&ns, false).await?;
    ns.kubectl(&["delete", "pod", "reader", "--wait=false"]).await?;
    let words = format!("driver name {} not found in the list of registered CSI drivers", driver.name);
    ns.pod("reader", "to name its driver", |p| {
        let conditions = p.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let mut said = conditions.filter(|c| c.type_ == "podway.dev/Terminating").flat_map(|c| &c.message);
        said.any(|message| message.contains(&words))
    })
    .await?;
    let fine: Pod = ns.create(pod("fine", STAY, json!({"nodeName": driver.node}))).await?;
    ns.ready("fine").await?;
    ns.kubectl(&["delete", "pod", "fine", "--wait=false"]).await?;
    ns.gone(&fine).await?;
    driver.start()?;
    ns.gone(&reader).await?;
    nothing_is_left(&driver)?;

    attached_by_somebody_else(&ns, &driver).await?;
    nothing_is_left(&driver)?;
    driver.stop()?;
    driver.known(&ns, false).await?;
    let volumes: Api<PersistentVolume> = Api::all(ns.cluster.client.clone());
    volumes.delete(&ns.name, &DeleteParams::default()).await?;
    let drivers: Api<CSIDriver> = Api::all(ns.cluster.client.clone());
    drivers.delete(&driver.name, &DeleteParams::default()).await?;
    Ok(())
}

/// What the agent knows of the volume is gone, after what the driver was asked last.
fn nothing_is_left(driver: &Driver) -> anyhow::Result<()> {
    let asked = driver.asked()?;
    let last = asked.iter().rfind(|line| !line.starts_with("registered"));
    ensure!(last == Some(&format!("unstage {VOLUME}")), "{asked:?}");
    let stages = driver.root.join("plugins/kubernetes.io/csi").join(&driver.name);
    let left: Vec<_> = std::fs::read_dir(&stages)?.collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// A driver whose volumes are attached before they are mounted: the controller wants it, the test does it in an
/// external-attacher's place, and the node says that it is in use.
async fn attached_by_somebody_else(ns: &Ns, driver: &Driver) -> anyhow::Result<()> {
    let client = &ns.cluster.client;
    let drivers: Api<CSIDriver> = Api::all(client.clone());
    drivers.delete(&driver.name, &DeleteParams::default()).await?;
    make::<CSIDriver>(ns, object_of(driver, true)).await?;
    let waits: Pod = ns.create(with_claim("waits", STAY, false)).await?;
    let attachments: Api<VolumeAttachment> = Api::all(client.clone());
    let ours = |a: &VolumeAttachment| a.spec.attacher == driver.name;
    let wanted = wait::until(attachments.clone(), "", "the attachment", LIMIT, ours).await?;
    let name = wanted.metadata.name.context("a name")?;
    let staged = driver.times(&format!("stage {VOLUME}"))?;
    let attached = json!({"status": {"attached": true}});
    attachments.patch_status(&name, &PatchParams::default(), &Patch::Merge(attached)).await?;
    ns.ready("waits").await?;
    ensure!(driver.times(&format!("stage {VOLUME}"))? == staged + 1, "{:?}", driver.asked()?);
    let nodes: Api<Node> = Api::all(client.clone());
    let in_use =
        |node: &Node| node.status.as_ref().and_then(|s| s.volumes_in_use.clone()).unwrap_or_default();
    let volume = format!("kubernetes.io/csi/{}^{VOLUME}", driver.name);
    let node = nodes.get(&driver.node).await?;
    ensure!(in_use(&node) == [volume], "{:?}", node.status);
    ns.kubectl(&["delete", "pod", "waits", "--wait=false"]).await?;
    ns.gone(&waits).await?;
    let field = format!("metadata.name={}", driver.node);
    wait::until(nodes, &field, "the volume to be out of use", LIMIT, |node| in_use(node).is_empty()).await?;
    wait::until_gone(attachments, &name, None, LIMIT).await
}
