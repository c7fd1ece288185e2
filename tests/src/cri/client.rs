//! The CRI calls of a pod's life, as a kubelet makes them.

use anyhow::Context as _;
use podway_cri::v1;
use podway_cri::v1::image_service_client::ImageServiceClient;
use podway_cri::v1::runtime_service_client::RuntimeServiceClient;
use std::time::Duration;
use tonic::Status;
use tonic::transport::Channel;

/// Both services of one endpoint.
#[derive(Clone, Debug)]
pub struct Cri {
    /// RuntimeService.
    pub runtime: RuntimeServiceClient<Channel>,
    /// ImageService.
    pub image: ImageServiceClient<Channel>,
    /// The runtime handler that pods are run with; empty for the server's default.
    pub handler: String,
}

impl Cri {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(endpoint: &str) -> anyhow::Result<Self> {
        let channel = podway_cri::client::connect(endpoint).await?;
        Ok(Cri {
            runtime: podway_cri::client::runtime(channel.clone()),
            image: podway_cri::client::image(channel),
            handler: String::new(),
        })
    }

    /// Pulls an image; gives its reference.
    ///
    /// # Errors
    /// The server's.
    pub async fn pull(&mut self, image: &str) -> Result<String, Status> {
        let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
        let request = v1::PullImageRequest { image, ..Default::default() };
        Ok(self.image.pull_image(request).await?.into_inner().image_ref)
    }

    /// RemoveImage.
    ///
    /// # Errors
    /// The server's.
    pub async fn remove_image(&mut self, image: &str) -> Result<(), Status> {
        let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
        self.image.remove_image(v1::RemoveImageRequest { image }).await.map(drop)
    }

    /// RunPodSandbox.
    ///
    /// # Errors
    /// The server's.
    pub async fn run_pod(&mut self, config: &v1::PodSandboxConfig) -> Result<String, Status> {
        let request =
            v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: self.handler.clone() };
        Ok(self.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    /// CreateContainer.
    ///
    /// # Errors
    /// The server's.
    pub async fn create(
        &mut self,
        pod: &str,
        config: &v1::ContainerConfig,
        of: &v1::PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(of.clone()),
        };
        Ok(self.runtime.create_container(request).await?.into_inner().container_id)
    }

    /// StartContainer.
    ///
    /// # Errors
    /// The server's.
    pub async fn start(&mut self, id: &str) -> Result<(), Status> {
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        self.runtime.start_container(request).await.map(drop)
    }

    /// ContainerStatus.
    ///
    /// # Errors
    /// The server's.
    pub async fn status(&mut self, id: &str) -> Result<v1::ContainerStatus, Status> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.runtime.container_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::internal("the answer has no status"))
    }

    /// PodSandboxStatus.
    ///
    /// # Errors
    /// The server's.
    pub async fn pod_status(&mut self, id: &str) -> Result<v1::PodSandboxStatus, Status> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = self.runtime.pod_sandbox_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::internal("the answer has no status"))
    }

    /// Waits for a container's end; the containers of these tests end within seconds.
    ///
    /// # Errors
    /// When it does not.
    pub async fn exited(&mut self, id: &str) -> anyhow::Result<v1::ContainerStatus> {
        // Events are off by default in some servers: the state itself is asked for.
        let ended = async {
            loop {
                let status = self.status(id).await?;
                if status.state == v1::ContainerState::ContainerExited as i32 {
                    return Ok(status);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, ended).await.with_context(|| format!("container {id} does not end"))?
    }

    /// ExecSync: exit code, stdout and stderr together.
    ///
    /// # Errors
    /// The server's.
    pub async fn exec(&mut self, id: &str, script: &str) -> Result<(i32, String), Status> {
        let cmd = ["sh", "-c", script].map(str::to_owned).to_vec();
        let request = v1::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: 30 };
        let answer = self.runtime.exec_sync(request).await?.into_inner();
        let text = [answer.stdout, answer.stderr].concat();
        Ok((answer.exit_code, String::from_utf8_lossy(&text).into_owned()))
    }

    /// StopContainer.
    ///
    /// # Errors
    /// The server's.
    pub async fn stop(&mut self, id: &str, timeout: i64) -> Result<(), Status> {
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout };
        self.runtime.stop_container(request).await.map(drop)
    }

    /// RemoveContainer.
    ///
    /// # Errors
    /// The server's.
    pub async fn remove(&mut self, id: &str) -> Result<(), Status> {
        let request = v1::RemoveContainerRequest { container_id: id.to_owned() };
        self.runtime.remove_container(request).await.map(drop)
    }

    /// StopPodSandbox and RemovePodSandbox.
    ///
    /// # Errors
    /// The server's.
    pub async fn remove_pod(&mut self, id: &str) -> Result<(), Status> {
        self.stop_pod(id).await?;
        self.remove_stopped_pod(id).await
    }

    /// StopPodSandbox.
    ///
    /// # Errors
    /// The server's.
    pub async fn stop_pod(&mut self, id: &str) -> Result<(), Status> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.stop_pod_sandbox(request).await.map(drop)
    }

    /// RemovePodSandbox.
    ///
    /// # Errors
    /// The server's.
    pub async fn remove_stopped_pod(&mut self, id: &str) -> Result<(), Status> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.remove_pod_sandbox(request).await.map(drop)
    }

    /// The sandboxes.
    ///
    /// # Errors
    /// The server's.
    pub async fn pods(&mut self, filter: v1::PodSandboxFilter) -> Result<Vec<v1::PodSandbox>, Status> {
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        Ok(self.runtime.list_pod_sandbox(request).await?.into_inner().items)
    }

    /// The containers.
    ///
    /// # Errors
    /// The server's.
    pub async fn containers(&mut self, filter: v1::ContainerFilter) -> Result<Vec<v1::Container>, Status> {
        let request = v1::ListContainersRequest { filter: Some(filter) };
        Ok(self.runtime.list_containers(request).await?.into_inner().containers)
    }

    /// Removes every sandbox.
    ///
    /// # Errors
    /// The server's, the first one.
    pub async fn remove_all(&mut self) -> Result<(), Status> {
        for pod in self.pods(v1::PodSandboxFilter::default()).await? {
            self.remove_pod(&pod.id).await?;
        }
        Ok(())
    }
}
