//! Limits.

use crate::pod::{Pod, STAY, T};
use anyhow::{Context as _, ensure};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use podway_cri::v1::{self, LinuxContainerResources};
use podway_tests::cri::Kind;
use std::path::Path;

fn limited(t: &T, name: &str, script: &str, resources: LinuxContainerResources) -> v1::ContainerConfig {
    let mut config = t.container(name, script);
    config.linux.get_or_insert_default().resources = Some(resources);
    config
}

/// What a container sees of its own cgroup, on v1 or v2.
const LIMITS: &str = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us \
                      /sys/fs/cgroup/cpuset/cpuset.cpus 2>/dev/null || \
                      cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpuset.cpus";

fn some() -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_quota: 20_000,
        cpu_period: 100_000,
        cpu_shares: 512,
        cpuset_cpus: "0".to_owned(),
        ..Default::default()
    }
}

fn words(text: &str) -> Vec<&str> {
    // v2 has the period beside the quota.
    text.split_whitespace().filter(|w| *w != "100000").collect()
}

pub async fn limits_are_in_the_cgroup(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.start(&pod, &limited(&t, "c", STAY, some())).await?;
    let (_, text) = t.cri.exec(&id, LIMITS).await?;
    ensure!(words(&text) == ["67108864", "20000", "0"], "{text}");
    let told = t.cri.status(&id).await?.resources.and_then(|r| r.linux).unwrap_or_default();
    ensure!(told.memory_limit_in_bytes == 64 << 20 && told.cpu_quota == 20_000, "{told:?}");
    Ok(())
}

pub async fn limits_change_while_it_runs(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let config = limited(&t, "c", STAY, some());
    let created = t.create(&pod, &config).await?;
    let update = |id: &str, linux| v1::UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..Default::default()
    };
    // Before the start.
    let linux = LinuxContainerResources { memory_limit_in_bytes: 48 << 20, ..Default::default() };
    t.cri.runtime.update_container_resources(update(&created, linux)).await?;
    t.cri.start(&created).await?;
    let (_, text) = t.cri.exec(&created, LIMITS).await?;
    ensure!(words(&text) == ["50331648", "20000", "0"], "{text}");
    // And after: up, and down again.
    for (bytes, quota) in [(96, 30_000), (32, 10_000)] {
        let linux = LinuxContainerResources {
            memory_limit_in_bytes: bytes << 20,
            cpu_quota: quota,
            ..Default::default()
        };
        t.cri.runtime.update_container_resources(update(&created, linux)).await?;
        let (_, text) = t.cri.exec(&created, LIMITS).await?;
        ensure!(words(&text) == [(bytes << 20).to_string(), quota.to_string(), "0".to_owned()], "{text}");
        let told = t.cri.status(&created).await?.resources.and_then(|r| r.linux).unwrap_or_default();
        ensure!(told.memory_limit_in_bytes == bytes << 20 && told.cpu_quota == quota, "{told:?}");
    }
    t.cri.stop(&created, 0).await?;
    t.cri.exited(&created).await?;
    let late = t.cri.runtime.update_container_resources(update(&created, some())).await;
    // containerd keeps them for a life that does not come.
    ensure!(late.is_err() || t.kind == Kind::Containerd, "of one that has ended");
    let none = t.cri.runtime.update_container_resources(update(&"0".repeat(64), some())).await;
    ensure!(none.is_err_and(|e| e.code() == tonic::Code::NotFound));
    Ok(())
}

pub async fn a_refused_limit_changes_nothing(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.start(&pod, &limited(&t, "c", STAY, some())).await?;
    let linux = Some(LinuxContainerResources { cpuset_cpus: "4000".to_owned(), ..Default::default() });
    let request =
        v1::UpdateContainerResourcesRequest { container_id: id.clone(), linux, ..Default::default() };
    ensure!(
        t.cri.runtime.update_container_resources(request).await.is_err(),
        "a processor that is not there"
    );
    let (_, text) = t.cri.exec(&id, LIMITS).await?;
    ensure!(words(&text) == ["67108864", "20000", "0"], "{text}");
    let told = t.cri.status(&id).await?.resources.and_then(|r| r.linux).unwrap_or_default();
    ensure!(told.cpuset_cpus == "0", "{told:?}");
    Ok(())
}

/// Every time, and not only where the kernel's word comes before the end of the process: a hundred times of ours.
pub async fn killed_for_want_of_memory(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let runs = if t.kind == Kind::Podway { 100 } else { 1 };
    let all = (0..runs).map(|run| want_of_memory(t.clone(), pod.clone(), run));
    futures::stream::iter(all).buffer_unordered(4).try_collect().await
}

async fn want_of_memory(mut t: T, pod: Pod, run: usize) -> anyhow::Result<()> {
    let resources = LinuxContainerResources {
        memory_limit_in_bytes: 15 << 20,
        memory_swap_limit_in_bytes: 15 << 20,
        ..Default::default()
    };
    let config = limited(&t, &format!("c{run}"), "dd if=/dev/zero of=/dev/null bs=20M", resources);
    let id = t.start(&pod, &config).await?;
    let status = t.cri.exited(&id).await?;
    ensure!(status.exit_code == 137 && status.reason == "OOMKilled", "run {run}: {status:?}");
    ensure!(Path::new(&status.log_path).exists(), "run {run}: {}", status.log_path);
    t.cri.remove(&id).await.context("RemoveContainer")
}
