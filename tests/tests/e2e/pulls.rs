//! An image pull that is shown while it goes, in `podway flow -w` and on the page: from a real registry, through a
//! relay that lets on only as much as has been seen.

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::ResourceExt as _;
use podway_cluster::images::{LayerBuilder, Run, image};
use podway_cluster::push::Registry;
use podway_tests::audit;
use podway_tests::cluster::built;
use podway_tests::gate::Gate;
use podway_tests::namespace::{LIMIT, Ns, condition, pod};
use podway_tests::page::Page;
use podway_tests::wait;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// The registry's name in the test: each node finds it behind the relay.
const HOST: &str = "gate.test";
const IMAGE: &str = "gate.test/slow:1";
const MIB: u64 = 1 << 20;
/// How much of its layer is noise.
const SIZE: u64 = 8 * MIB;

pub async fn shown_as_they_go(ns: Ns) -> anyhow::Result<()> {
    let registry = ns.cluster.registry()?;
    push(&registry.to_string()).await?;
    let gate = Gate::before(registry, registry.ip(), 3 * MIB).await?;
    let files = Hosts::write(&ns, &format!("server = \"http://{}\"\n", gate.address))?;

    let main = json!({"main": {"image": IMAGE, "command": ["/bin/sleep", "3600"]}});
    let _: Pod = ns.create(pod("slow", "", main)).await?;
    let (page, path) = (Page::open(&ns.cluster, &ns.name).await?, format!("/pod/{}/slow", ns.name));
    let (mut follower, mut lines) = follow(&ns)?;
    let first = percent(&mut lines, 30).await?;
    ensure!(first <= 37, "{first}% of it are shown, and at most 3 of more than 8 MiB have come");
    page.until(&path, "2.9 MiB of ").await?;

    // All that a start writes before its image is there, is written; then the pull goes on, and nothing more is.
    let sandbox = |p: &Pod| condition(p, "PodReadyToStartContainers") == Some("True");
    ns.pod("slow", "its sandbox", sandbox).await?;
    told(&ns, "Scheduled", |_| true).await?;
    let pulling = format!("Pulling image \"{IMAGE}\"");
    let pulling = told(&ns, "Pulling", move |said| said == pulling).await?;
    let log = ns.cluster.layout.audit_log();
    let mark = audit::mark(&log)?;
    gate.open(6 * MIB);
    let second = percent(&mut lines, 60).await?;
    ensure!(second <= 75, "{second}% of it are shown, and at most 6 of more than 8 MiB have come");
    page.until(&path, "5.9 MiB of ").await?;
    let mut written = audit::since(&log, mark, &ns.name)?;
    // The log has a request when it was answered, and a watch shows the object before that.
    written.retain(|r| r.is_write() && r.object_ref.name != pulling);
    ensure!(written.is_empty(), "to show a pull, there were {written:?}");

    gate.open(u64::MAX);
    let end = async {
        while lines.next_line().await?.is_some() {}
        follower.wait().await
    };
    let status = tokio::time::timeout(LIMIT, end).await.context("podway flow -w does not end")??;
    ensure!(status.success(), "podway flow -w: {status}");
    ns.ready("slow").await?;
    let pulled = format!("Successfully pulled image \"{IMAGE}\" in ");
    told(&ns, "Pulled", move |said| said.starts_with(&pulled) && said.ends_with(" bytes.")).await?;
    page.close().await?;
    drop(files);
    Ok(())
}

/// Waits for an event of the pod that says it so; its name.
async fn told(ns: &Ns, reason: &str, so: impl Fn(&str) -> bool) -> anyhow::Result<String> {
    let of = format!("involvedObject.name=slow,reason={reason}");
    let said = |event: &Event| event.message.as_deref().is_some_and(&so);
    Ok(wait::until(ns.api::<Event>(), &of, "its event", LIMIT, said).await?.name_any())
}

/// Pushes an image that no node has: a program, and bytes that do not compress.
async fn push(registry: &str) -> anyhow::Result<()> {
    let mut layer = LayerBuilder::new();
    layer.program(Path::new("/bin/sleep"), "/bin/sleep")?;
    layer.file("noise", 0o644, &noise(usize::try_from(SIZE)?))?;
    let image = image(IMAGE, &[layer.finish()?], &Run::default())?;
    Registry::new(registry).push(&image).await?;
    Ok(())
}

/// Marsaglia's xorshift64.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(size).collect()
}

/// The `hosts.toml` of [`HOST`] on every node, as long as it is held.
struct Hosts(Vec<PathBuf>);

impl Hosts {
    fn write(ns: &Ns, text: &str) -> anyhow::Result<Self> {
        let mut hosts = Hosts(Vec::new());
        for node in ns.cluster.nodes()? {
            let dir = ns.cluster.layout.node(&node).join("hosts").join(HOST);
            std::fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
            std::fs::write(dir.join("hosts.toml"), text)?;
            hosts.0.push(dir);
        }
        Ok(hosts)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for dir in &self.0 {
            if let Err(error) = std::fs::remove_dir_all(dir) {
                eprintln!("removing {}: {error}", dir.display());
            }
        }
    }
}

/// `podway flow -w`.
fn follow(ns: &Ns) -> anyhow::Result<(Child, Lines<BufReader<ChildStdout>>)> {
    let mut command = Command::new(built("podway")?);
    command
        .args(["flow", "slow", "-w", "-n", &ns.name])
        .env("KUBECONFIG", ns.cluster.layout.admin_kubeconfig());
    let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    Ok((child, lines))
}

/// Reads on until at least `wanted` hundredths of the image are shown, and gives what is.
async fn percent(lines: &mut Lines<BufReader<ChildStdout>>, wanted: u64) -> anyhow::Result<u64> {
    let read = async {
        while let Some(line) = lines.next_line().await? {
            let Some(rest) = line.strip_prefix(IMAGE) else { continue };
            let Some((shown, _)) = rest.split_once('%') else { continue };
            let shown: u64 = shown.trim().parse().with_context(|| line.clone())?;
            // The first that is told may be that nothing has come: "0 B of 9.6 MiB".
            ensure!([" of ", " MiB", "/s"].iter().all(|part| rest.contains(part)), "{line}");
            if shown >= wanted {
                return Ok(shown);
            }
        }
        bail!("podway flow -w ended before {wanted}% were shown")
    };
    tokio::time::timeout(LIMIT, read).await.with_context(|| format!("{wanted}% are never shown"))?
}
