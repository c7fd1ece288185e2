//! One pod through the runtime, in process, on the real kernel: real runc, CNI plugins and monitor.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

#[path = "support/node.rs"]
mod node;

use node::{IMAGE, Node};
use podway_cri::v1;
use podway_cri::v1::image_service_client::ImageServiceClient;
use podway_cri::v1::runtime_service_client::RuntimeServiceClient;
use podway_flow::{Outcome, Phase, Record};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

struct Served {
    runtime: RuntimeServiceClient<Channel>,
    image: ImageServiceClient<Channel>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), podway_runtime::run::RunError>>,
}

async fn serve(node: &Node) -> Served {
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(podway_runtime::run::run(node.config.clone(), shutdown.clone()));
    let channel = loop {
        assert!(!task.is_finished(), "{:?}", task.await);
        match podway_cri::client::connect(&node.config.listen).await {
            Ok(channel) => break channel,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let (runtime, image) = (podway_cri::client::runtime(channel.clone()), podway_cri::client::image(channel));
    Served { runtime, image, shutdown, task }
}

impl Served {
    async fn end(self) {
        drop((self.runtime, self.image));
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    async fn run_sandbox(&mut self, config: v1::PodSandboxConfig) -> (String, Vec<Record>) {
        let request = v1::RunPodSandboxRequest { config: Some(config), ..Default::default() };
        let response = self.runtime.run_pod_sandbox(request).await.unwrap();
        let records = podway_cri::metadata::take(response.metadata());
        (response.into_inner().pod_sandbox_id, records)
    }

    async fn create(
        &mut self,
        sandbox: &str,
        config: v1::ContainerConfig,
        pod: v1::PodSandboxConfig,
    ) -> (String, Vec<Record>) {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(pod),
        };
        let response = self.runtime.create_container(request).await.unwrap();
        let records = podway_cri::metadata::take(response.metadata());
        (response.into_inner().container_id, records)
    }

    async fn start(&mut self, id: &str) -> Vec<Record> {
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        podway_cri::metadata::take(self.runtime.start_container(request).await.unwrap().metadata())
    }

    async fn status(&mut self, id: &str) -> v1::ContainerStatus {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.runtime.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    async fn exec(&mut self, id: &str, command: &[&str]) -> v1::ExecSyncResponse {
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|s| (*s).to_owned()).collect(),
            timeout: 10,
        };
        self.runtime.exec_sync(request).await.unwrap().into_inner()
    }

    async fn stop(&mut self, id: &str, timeout: i64) {
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout };
        self.runtime.stop_container(request).await.unwrap();
    }

    async fn remove_pod(&mut self, sandbox: &str) {
        let pod_sandbox_id = sandbox.to_owned();
        let stop = v1::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
        self.runtime.stop_pod_sandbox(stop.clone()).await.unwrap();
        self.runtime.stop_pod_sandbox(stop).await.unwrap();
        let remove = v1::RemovePodSandboxRequest { pod_sandbox_id };
        self.runtime.remove_pod_sandbox(remove.clone()).await.unwrap();
        self.runtime.remove_pod_sandbox(remove).await.unwrap();
    }
}

fn evidence<'a>(records: &'a [Record], phase: Phase, key: &str) -> &'a str {
    let record = records.iter().find(|r| r.phase == phase).unwrap_or_else(|| panic!("{phase} is missing"));
    assert_ne!(record.outcome, Outcome::Failed, "{record:?}");
    record.evidence.get(key).unwrap_or_else(|| panic!("{phase} has no {key}: {record:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_is_asked_stops_and_leaves_nothing() {
    let Some(node) = node::node() else { return };
    let mut cri = serve(&node).await;
    let status = cri.runtime.status(v1::StatusRequest::default()).await.unwrap().into_inner();
    assert!(status.status.unwrap().conditions.iter().all(|c| c.status), "ready");

    let pod = node.sandbox("web", 0);
    let (sandbox, mut flow) = cri.run_sandbox(pod.clone()).await;
    let spec = v1::ImageSpec { image: IMAGE.to_owned(), ..Default::default() };
    let image = v1::ImageStatusRequest { image: Some(spec), verbose: false };
    assert!(cri.image.image_status(image).await.unwrap().into_inner().image.is_some());

    let script =
        "echo out $COLOUR; echo err >&2; trap 'echo bye; exit 7' TERM; while :; do sleep 1 & wait $!; done";
    let (id, records) = cri.create(&sandbox, node.container("app", script), pod.clone()).await;
    flow.extend(records);
    assert_eq!(cri.status(&id).await.state, v1::ContainerState::ContainerCreated as i32);
    flow.extend(cri.start(&id).await);
    assert_eq!(cri.status(&id).await.state, v1::ContainerState::ContainerRunning as i32);

    // Every step of the runtime is on record, with evidence that the kernel agrees with.
    for phase in [
        Phase::SandboxCreated,
        Phase::NetworkConfigured,
        Phase::RootfsPrepared,
        Phase::SpecGenerated,
        Phase::ContainersCreated,
        Phase::ContainersStarted,
    ] {
        let record = flow.iter().find(|r| r.phase == phase).unwrap_or_else(|| panic!("no {phase}"));
        assert_eq!(record.outcome, Outcome::Succeeded, "{record:?}");
        assert!(record.end.unwrap() >= record.start);
    }
    let pid: u32 = evidence(&flow, Phase::ContainersCreated, "pid").parse().unwrap();
    let net = std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(evidence(&flow, Phase::ContainersCreated, "ns.net"), net.display().to_string());
    let inode = evidence(&flow, Phase::SandboxCreated, "netNamespace");
    assert_eq!(net.display().to_string(), format!("net:[{inode}]"));
    let limit = flow.iter().find(|r| r.phase == Phase::ContainersCreated).unwrap();
    let limit = limit.evidence.get("memory.limit_in_bytes").or(limit.evidence.get("memory.max")).unwrap();
    assert_eq!(limit, &(64 << 20).to_string());
    let path = evidence(&flow, Phase::SpecGenerated, "path");
    use sha2::Digest as _;
    let sum = hex::encode(sha2::Sha256::digest(std::fs::read(path).unwrap()));
    assert_eq!(evidence(&flow, Phase::SpecGenerated, "sha256"), sum);

    // Status and exec agree with the namespaces.
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: true };
    let status = cri.runtime.pod_sandbox_status(request).await.unwrap().into_inner();
    let ip = status.status.unwrap().network.unwrap().ip;
    assert_eq!(evidence(&flow, Phase::NetworkConfigured, "ips"), ip);
    assert!(status.info["flow"].contains("SandboxCreated"));
    let addresses = cri.exec(&id, &["ip", "addr", "show", "eth0"]).await;
    assert!(String::from_utf8_lossy(&addresses.stdout).contains(&ip), "{addresses:?}");
    let out =
        cri.exec(&id, &["sh", "-c", "hostname; cat /etc/resolv.conf; id -u; echo $COLOUR; exit 3"]).await;
    assert_eq!(out.exit_code, 3);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "web\nnameserver 10.0.0.53\n0\ngreen\n");

    cri.stop(&id, 10).await;
    let status = cri.status(&id).await;
    assert_eq!((status.state, status.exit_code), (v1::ContainerState::ContainerExited as i32, 7));
    assert_eq!(status.reason, "Error");
    assert!(status.finished_at >= status.started_at && status.started_at >= status.created_at);
    let log = std::fs::read_to_string(&status.log_path).unwrap();
    for tail in [" stdout F out green", " stderr F err", " stdout F bye"] {
        assert!(log.lines().any(|l| l.ends_with(tail)), "{tail} is not in {log}");
    }
    let remove = v1::RemoveContainerRequest { container_id: id };
    cri.runtime.remove_container(remove.clone()).await.unwrap();
    cri.runtime.remove_container(remove).await.unwrap();
    cri.remove_pod(&sandbox).await;
    cri.end().await;
    assert_eq!(node.leftovers(), Vec::<String>::new());
}
