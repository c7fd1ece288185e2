//! What breaks around a pod harms that pod alone, and what breaks around the agent harms none.

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podway_tests::namespace::{Ns, STAY, condition, phase, pod, status};
use serde_json::json;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Duration;

/// A file system that never answers: FUSE without anybody at the other end. Dropped, it is gone.
struct Hung(
    tempfile::TempDir,
    #[expect(dead_code, reason = "while it is open, whoever asks waits; closed, everybody gets an error")]
    std::fs::File,
);

impl Hung {
    fn new() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let fuse = std::fs::File::options().read(true).write(true).open("/dev/fuse").context("/dev/fuse")?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("hung"), dir.path(), Some("fuse"), flags, Some(options.as_str()))
            .context("mounting it")?;
        Ok(Hung(dir, fuse))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.0.path(), MntFlags::MNT_DETACH) {
            eprintln!("the hung file system stays: {error}");
        }
    }
}

pub async fn a_hung_volume_and_a_hung_probe(ns: Ns) -> anyhow::Result<()> {
    let hung = Hung::new()?;
    let volume = json!({
        "volumes": [{"name": "v", "hostPath": {"path": hung.path().join("d"), "type": "Directory"}}],
        "main": {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}});
    let _: Pod = ns.create(pod("waits", STAY, volume)).await?;
    let probe = json!({"main": {"readinessProbe": {"exec": {"command": ["sleep", "3600"]}, "timeoutSeconds": 3600,
        "periodSeconds": 1}}});
    let _: Pod = ns.create(pod("unready", STAY, probe)).await?;
    // Others start, are asked by their probes, and end as ever.
    let probe = json!({"main": {"readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1}}});
    for i in 0..5 {
        let _: Pod = ns.create(pod(&format!("fine-{i}"), STAY, probe.clone())).await?;
    }
    for i in 0..5 {
        let ready = ns.ready(&format!("fine-{i}")).await?;
        ns.kubectl(&["delete", "pod", &format!("fine-{i}"), "--wait=false"]).await?;
        ns.gone(&ready).await?;
    }
    let running = ns.pod("unready", "Running", |p| phase(p) == "Running").await?;
    ensure!(condition(&running, "Ready") == Some("False"), "a probe that never answers has not succeeded");
    // That pod alone waits, and says for what.
    let waits = ns
        .pod("waits", "its word", |p| condition(p, "podway.dev/VolumesMounted").is_some_and(|s| s != "True"))
        .await?;
    ensure!(phase(&waits) == "Pending");
    drop(hung);
    ns.kubectl(&["delete", "pod", "waits", "unready", "--wait=false", "--grace-period=1"]).await?;
    ns.gone(&waits).await?;
    ns.gone(&running).await
}

/// Stopped while it lives, so that whoever asks hears nothing; it goes on, whatever happens.
struct Stopped(Vec<Pid>);

impl Stopped {
    fn new(ns: &Ns, part: &str) -> anyhow::Result<Self> {
        let pids: Vec<Pid> =
            ns.cluster.daemons(part)?.into_iter().map(|(_, pid)| Pid::from_raw(pid)).collect();
        for pid in &pids {
            kill(*pid, Signal::SIGSTOP).with_context(|| format!("stopping {part}"))?;
        }
        Ok(Stopped(pids))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.0 {
            if let Err(error) = kill(*pid, Signal::SIGCONT) {
                eprintln!("{pid} does not go on: {error}");
            }
        }
    }
}

/// How long the API server is away: longer than a lease is renewed, shorter than a node is given up.
const AWAY: Duration = Duration::from_secs(30);

pub async fn the_api_server_is_gone_for_a_while(ns: Ns) -> anyhow::Result<()> {
    let _: Pod = ns.create(pod("stays", STAY, json!({}))).await?;
    let before = ns.ready("stays").await?;
    let restarts = json!({"restartPolicy": "Always"});
    let _: Pod = ns.create(pod("restarts", "sleep 4; exit 3", restarts)).await?;
    let ends = json!({"restartPolicy": "Never"});
    let _: Pod = ns.create(pod("ends", "sleep 8; exit 7", ends)).await?;
    ns.pod("ends", "Running", |p| phase(p) == "Running").await?;
    ns.pod("restarts", "Running", |p| phase(p) == "Running").await?;
    {
        let _gone = Stopped::new(&ns, "kube-apiserver")?;
        tokio::time::sleep(AWAY).await;
    }
    // What happened meanwhile is told, and what had no reason to end did not.
    let ended = ns.ended("ends").await?;
    let code = status(&ended, "main").and_then(|s| Some(s.state.as_ref()?.terminated.as_ref()?.exit_code));
    ensure!(code == Some(7), "it ended with {code:?}");
    ns.pod("restarts", "a restart", |p| status(p, "main").is_some_and(|s| s.restart_count >= 1)).await?;
    let now = ns.ready("stays").await?;
    let id = |p: &Pod| status(p, "main").map(|s| (s.container_id.clone(), s.restart_count));
    ensure!(id(&before) == id(&now), "it was {:?} and is {:?}", id(&before), id(&now));
    let _: Pod = ns.create(pod("after", STAY, json!({}))).await?;
    ns.ready("after").await?;
    Ok(())
}
