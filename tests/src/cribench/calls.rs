//! The calls of a pod's life, timed: a sandbox, one container of busybox that ends at SIGTERM, and back.

use super::figures::{Figures, Times};
use crate::cri::images::BUSYBOX;
use crate::cri::{Cri, Stage};
use anyhow::Context as _;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use podway_cri::v1;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Says that its trap stands, then goes on until it is told to end.
const STAY: &str = "trap 'exit 0' TERM; echo up; while :; do sleep 1 & wait; done";
/// How long a container may take until it is told that it ends.
const GRACE_SECONDS: i64 = 30;

/// The whole start, as a row is called.
const START: &str = "pod + container from nothing (Run, Create, Start)";
/// Each row with what is wanted of it.
const ROWS: [(&str, &str); 8] = [
    ("RunPodSandbox", ""),
    ("CreateContainer", ""),
    ("StartContainer", ""),
    (START, "≥ 2.5×"),
    ("StopContainer", "≥ 5×"),
    ("RemoveContainer", ""),
    ("StopPodSandbox", "≥ 5×"),
    ("RemovePodSandbox", ""),
];

/// Times by call.
#[derive(Default)]
pub struct Calls(BTreeMap<&'static str, Times>);

impl Calls {
    fn merge(&mut self, taken: Vec<(&'static str, Duration)>) {
        for (call, time) in taken {
            self.0.entry(call).or_default().add(time);
        }
    }

    /// The rows, in a life's order; `how` says how many at once.
    pub fn rows(&self, how: &str, figures: &mut Figures) {
        for (call, aim) in ROWS {
            if let Some(times) = self.0.get(call) {
                figures.times(&format!("{call}, {how}"), aim, times);
            }
        }
    }
}

/// Times what `of` does.
async fn timed<T>(
    call: &'static str,
    taken: &mut Vec<(&'static str, Duration)>,
    of: impl Future<Output = Result<T, tonic::Status>>,
) -> anyhow::Result<T> {
    let begun = Instant::now();
    let result = of.await.context(call)?;
    taken.push((call, begun.elapsed()));
    Ok(result)
}

/// A pod that stands.
#[derive(Debug)]
pub struct Pod {
    sandbox: String,
    container: String,
    log: PathBuf,
}

/// Starts a pod with its container.
async fn start(
    mut cri: Cri,
    stage: &Stage,
    name: String,
) -> anyhow::Result<(Pod, Vec<(&'static str, Duration)>)> {
    let logs = stage.at("logs").join(&name);
    std::fs::create_dir_all(&logs)?;
    let options = v1::NamespaceOption { pid: v1::NamespaceMode::Container as i32, ..Default::default() };
    let sandbox = v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            uid: format!("uid-{name}"),
            namespace: "bench".to_owned(),
            name,
            attempt: 0,
        }),
        hostname: "bench".to_owned(),
        log_directory: logs.display().to_string(),
        linux: Some(v1::LinuxPodSandboxConfig {
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(options.clone()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let container = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "app".to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() }),
        command: ["sh", "-c", STAY].map(str::to_owned).to_vec(),
        log_path: "app.log".to_owned(),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(v1::LinuxContainerResources {
                cpu_shares: 102,
                memory_limit_in_bytes: 64 << 20,
                ..Default::default()
            }),
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            }),
        }),
        ..Default::default()
    };
    let mut taken = Vec::new();
    let begun = Instant::now();
    let id = timed("RunPodSandbox", &mut taken, cri.run_pod(&sandbox)).await?;
    let app = timed("CreateContainer", &mut taken, cri.create(&id, &container, &sandbox)).await?;
    timed("StartContainer", &mut taken, cri.start(&app)).await?;
    taken.push((START, begun.elapsed()));
    Ok((Pod { sandbox: id, container: app, log: logs.join("app.log") }, taken))
}

/// Waits until the container has said that it takes the signal: else its end would be the grace time's.
async fn up(pod: &Pod) -> anyhow::Result<()> {
    let said = async {
        while !std::fs::read_to_string(&pod.log).is_ok_and(|text| text.contains(" up")) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, said).await.with_context(|| format!("{} says nothing", pod.container))
}

async fn end(mut cri: Cri, pod: Pod) -> anyhow::Result<Vec<(&'static str, Duration)>> {
    let mut taken = Vec::new();
    timed("StopContainer", &mut taken, cri.stop(&pod.container, GRACE_SECONDS)).await?;
    timed("RemoveContainer", &mut taken, cri.remove(&pod.container)).await?;
    timed("StopPodSandbox", &mut taken, cri.stop_pod(&pod.sandbox)).await?;
    timed("RemovePodSandbox", &mut taken, cri.remove_stopped_pod(&pod.sandbox)).await?;
    Ok(taken)
}

/// `count` pods, each to its end before the next one begins.
///
/// # Errors
/// The server's.
pub async fn one_by_one(cri: &Cri, stage: &Stage, count: usize) -> anyhow::Result<Calls> {
    let mut calls = Calls::default();
    for n in 0..count {
        let (pod, taken) = start(cri.clone(), stage, format!("one-{n}")).await?;
        calls.merge(taken);
        up(&pod).await?;
        calls.merge(end(cri.clone(), pod).await?);
    }
    Ok(calls)
}

/// Starts `count` pods, `together` at a time; they stand.
///
/// # Errors
/// The server's.
pub async fn start_all(
    cri: &Cri,
    stage: &Stage,
    count: usize,
    together: usize,
    calls: &mut Calls,
) -> anyhow::Result<Vec<Pod>> {
    let starts = (0..count).map(|n| start(cri.clone(), stage, format!("many-{n}")));
    let mut pods = Vec::with_capacity(count);
    for (pod, taken) in stream::iter(starts).buffer_unordered(together).try_collect::<Vec<_>>().await? {
        calls.merge(taken);
        pods.push(pod);
    }
    for pod in &pods {
        up(pod).await?;
    }
    Ok(pods)
}

/// Ends pods, `together` at a time.
///
/// # Errors
/// The server's.
pub async fn end_all(cri: &Cri, pods: Vec<Pod>, together: usize, calls: &mut Calls) -> anyhow::Result<()> {
    let ends = pods.into_iter().map(|pod| end(cri.clone(), pod));
    for taken in stream::iter(ends).buffer_unordered(together).try_collect::<Vec<_>>().await? {
        calls.merge(taken);
    }
    Ok(())
}
