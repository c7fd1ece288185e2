//! The CRI calls of a pod's life, as an agent makes them.
#![allow(dead_code, reason = "each test crate uses its part")]

use podway_cri::v1;
use podway_cri::v1::image_service_client::ImageServiceClient;
use podway_cri::v1::runtime_service_client::RuntimeServiceClient;
use podway_flow::Record;
use std::time::Duration;
use tonic::Status;
use tonic::transport::Channel;

#[derive(Clone)]
pub struct Cri {
    pub runtime: RuntimeServiceClient<Channel>,
    pub image: ImageServiceClient<Channel>,
}

/// Connects as soon as somebody answers; `alive` says whether it is worth to wait on. That a connection is made is not
/// enough: a process that another test forks off holds the socket of a server that has ended until it is another
/// program.
pub async fn connect(endpoint: &str, mut alive: impl FnMut() -> bool) -> Cri {
    loop {
        match answered(endpoint).await {
            Ok(cri) => return cri,
            Err(error) => assert!(alive(), "the runtime has ended: {error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

async fn answered(endpoint: &str) -> Result<Cri, Box<dyn std::error::Error>> {
    let channel = podway_cri::client::connect(endpoint).await?;
    let mut runtime = podway_cri::client::runtime(channel.clone());
    runtime.version(v1::VersionRequest::default()).await?;
    Ok(Cri { runtime, image: podway_cri::client::image(channel) })
}

impl Cri {
    pub async fn run_sandbox(
        &mut self,
        config: v1::PodSandboxConfig,
    ) -> Result<(String, Vec<Record>), Status> {
        let request = v1::RunPodSandboxRequest { config: Some(config), ..Default::default() };
        let response = self.runtime.run_pod_sandbox(request).await?;
        let records = podway_cri::metadata::take(response.metadata());
        Ok((response.into_inner().pod_sandbox_id, records))
    }

    pub async fn create(
        &mut self,
        sandbox: &str,
        config: v1::ContainerConfig,
        pod: v1::PodSandboxConfig,
    ) -> Result<(String, Vec<Record>), Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(pod),
        };
        let response = self.runtime.create_container(request).await?;
        let records = podway_cri::metadata::take(response.metadata());
        Ok((response.into_inner().container_id, records))
    }

    pub async fn start(&mut self, id: &str) -> Result<Vec<Record>, Status> {
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        Ok(podway_cri::metadata::take(self.runtime.start_container(request).await?.metadata()))
    }

    pub async fn status(&mut self, id: &str) -> v1::ContainerStatus {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.runtime.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    /// Waits for the container's end without a fixed time.
    pub async fn exited(&mut self, id: &str) -> v1::ContainerStatus {
        let mut events =
            self.runtime.get_container_events(v1::GetEventsRequest::default()).await.unwrap().into_inner();
        loop {
            let status = self.status(id).await;
            if status.state == v1::ContainerState::ContainerExited as i32 {
                return status;
            }
            events.message().await.unwrap().unwrap();
        }
    }

    pub async fn exec(&mut self, id: &str, command: &[&str]) -> Result<v1::ExecSyncResponse, Status> {
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|s| (*s).to_owned()).collect(),
            timeout: 10,
        };
        Ok(self.runtime.exec_sync(request).await?.into_inner())
    }

    pub async fn limit_memory(&mut self, id: &str, bytes: i64) {
        let linux = v1::LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() };
        let container_id = id.to_owned();
        let update =
            v1::UpdateContainerResourcesRequest { container_id, linux: Some(linux), ..Default::default() };
        self.runtime.update_container_resources(update).await.unwrap();
    }

    pub async fn stop(&mut self, id: &str, timeout: i64) {
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout };
        self.runtime.stop_container(request).await.unwrap();
    }

    pub async fn remove(&mut self, id: &str) {
        let request = v1::RemoveContainerRequest { container_id: id.to_owned() };
        self.runtime.remove_container(request.clone()).await.unwrap();
        self.runtime.remove_container(request).await.unwrap();
    }

    pub async fn remove_pod(&mut self, sandbox: &str) {
        let pod_sandbox_id = sandbox.to_owned();
        let stop = v1::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
        self.runtime.stop_pod_sandbox(stop.clone()).await.unwrap();
        self.runtime.stop_pod_sandbox(stop).await.unwrap();
        let remove = v1::RemovePodSandboxRequest { pod_sandbox_id };
        self.runtime.remove_pod_sandbox(remove.clone()).await.unwrap();
        self.runtime.remove_pod_sandbox(remove).await.unwrap();
    }
}
