//! The CRI RuntimeService: requests parsed into ids, operations called, entries shown as CRI messages.

mod list;
mod verbose;

use crate::error::{OpError, blocking};
use crate::ids::Id;
use crate::names::Made;
use crate::state::{Container, Life, Runtime, Stage};
use crate::streaming::client::Streams;
use crate::streaming::{Purpose, Streaming, attach, ports, process};
use crate::{cni, container, events, sandbox, stats, status, supervisor};
use list::{Parts, parts};
use podway_cri::v1::ContainerEventType::{
    ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
};
use podway_cri::v1::runtime_service_server::RuntimeService;
use podway_cri::{metadata, v1};
use podway_systemd::Driver;
use std::pin::Pin;
use std::sync::Arc;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// The service over the runtime's state.
#[derive(Clone)]
pub struct Service {
    runtime: Arc<Runtime>,
    streaming: Arc<Streaming>,
    shutdown: CancellationToken,
}

fn not_built<T>(rpc: &str) -> Result<Response<T>, Status> {
    Err(Status::unimplemented(format!("not supported: {rpc}")))
}

/// An id of a request; one that is no id names nothing that exists.
fn id(kind: &'static str, text: String) -> Result<Id, OpError> {
    Id::try_from(text.clone()).map_err(|_| OpError::NotFound(kind, podway_flow::record::bounded(&text, 80)))
}

/// An answer with the records of what was done for it.
fn told<T>(answer: T, made: &Made) -> Response<T> {
    let mut response = Response::new(answer);
    metadata::attach(&mut response, &made.records);
    response
}

impl Service {
    /// A service whose URLs for streams come from `streaming`. Its event streams end at `shutdown`: the server
    /// waits for the calls in flight, and these have no end of their own.
    #[must_use]
    pub fn new(runtime: Arc<Runtime>, streaming: Arc<Streaming>, shutdown: CancellationToken) -> Self {
        Service { runtime, streaming, shutdown }
    }

    fn cid(&self, text: String) -> Result<(Id, Container), OpError> {
        let id = id("container", text)?;
        let entry = self.runtime.known_container(&id)?;
        Ok((id, entry))
    }

    fn running(&self, text: String) -> Result<(Id, Container), OpError> {
        let (id, entry) = self.cid(text)?;
        if entry.stage == Stage::Running {
            return Ok((id, entry));
        }
        Err(OpError::Precondition(format!("container {id} is not running")))
    }
}

/// The streams of a request, as the kubelet's streaming server checks them.
fn streams(stdin: bool, stdout: bool, stderr: bool, tty: bool) -> Result<Streams, OpError> {
    let wrong = |text: &str| Err(OpError::Invalid(text.to_owned()));
    if tty && stderr {
        return wrong("tty and stderr cannot both be true: a terminal is one stream");
    }
    if !(stdin || stdout || stderr) {
        return wrong("one of stdin, stdout, or stderr must be set");
    }
    Ok(Streams { stdin, stdout, stderr, tty })
}

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Result<Response<v1::VersionResponse>, Status> {
        Ok(Response::new(v1::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: "podway".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let network = cni::Network::load(&self.runtime.config.cni.conf_dir);
        let ready =
            v1::RuntimeCondition { r#type: "RuntimeReady".to_owned(), status: true, ..Default::default() };
        let (status, reason, message) = match network {
            Ok(_) => (true, String::new(), String::new()),
            Err(e) => (false, "NetworkPluginNotReady".to_owned(), OpError::from(e).chain()),
        };
        let network = v1::RuntimeCondition { r#type: "NetworkReady".to_owned(), status, reason, message };
        let info =
            if request.into_inner().verbose { verbose::runtime(&self.runtime) } else { Default::default() };
        Ok(Response::new(v1::StatusResponse {
            status: Some(v1::RuntimeStatus { conditions: vec![ready, network] }),
            info,
            runtime_handlers: verbose::handlers(&self.runtime),
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
            }),
        }))
    }

    async fn runtime_config(
        &self,
        _: Request<v1::RuntimeConfigRequest>,
    ) -> Result<Response<v1::RuntimeConfigResponse>, Status> {
        let driver = match self.runtime.config.cgroup_driver {
            Driver::Cgroupfs => v1::CgroupDriver::Cgroupfs,
            Driver::Systemd => v1::CgroupDriver::Systemd,
        };
        let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: driver as i32 };
        Ok(Response::new(v1::RuntimeConfigResponse { linux: Some(linux) }))
    }

    async fn update_runtime_config(
        &self,
        _: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Result<Response<v1::UpdateRuntimeConfigResponse>, Status> {
        // The CNI configuration on disk decides, as in CRI-O: there is nothing to take over.
        Ok(Response::new(v1::UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Result<Response<v1::RunPodSandboxResponse>, Status> {
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| Status::invalid_argument("config is missing"))?;
        let made = sandbox::run(&self.runtime, config, request.runtime_handler).await?;
        for kind in [ContainerCreatedEvent, ContainerStartedEvent] {
            events::publish_sandbox(&self.runtime, &made.id, kind);
        }
        Ok(told(v1::RunPodSandboxResponse { pod_sandbox_id: made.id.to_string() }, &made))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Result<Response<v1::StopPodSandboxResponse>, Status> {
        if let Ok(id) = Id::try_from(request.into_inner().pod_sandbox_id) {
            let stood = self.runtime.sandbox(&id).is_some_and(|s| s.life == Life::Ready);
            sandbox::stop(&self.runtime, &id).await?;
            if stood {
                events::publish_sandbox(&self.runtime, &id, ContainerStoppedEvent);
            }
        }
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Result<Response<v1::RemovePodSandboxResponse>, Status> {
        if let Ok(id) = Id::try_from(request.into_inner().pod_sandbox_id) {
            let known = self.runtime.sandbox(&id).is_some();
            sandbox::remove(&self.runtime, &id).await?;
            if known {
                events::publish_sandbox(&self.runtime, &id, ContainerDeletedEvent);
            }
        }
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Result<Response<v1::PodSandboxStatusResponse>, Status> {
        let request = request.into_inner();
        let id = id("sandbox", request.pod_sandbox_id)?;
        let entry = self.runtime.known_sandbox(&id)?;
        let info =
            if request.verbose { verbose::sandbox(&self.runtime, &id, &entry) } else { Default::default() };
        Ok(Response::new(v1::PodSandboxStatusResponse {
            status: Some(status::sandbox_status(&id, &entry)),
            info,
            containers_statuses: status::statuses_of(&self.runtime, &id),
            timestamp: self.runtime.now_ns(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Result<Response<v1::ListPodSandboxResponse>, Status> {
        let items = list::sandboxes(&self.runtime, request.into_inner().filter);
        Ok(Response::new(v1::ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Result<Response<v1::CreateContainerResponse>, Status> {
        let request = request.into_inner();
        let sandbox = id("sandbox", request.pod_sandbox_id)?;
        let config = request.config.ok_or_else(|| Status::invalid_argument("config is missing"))?;
        let made = container::create(&self.runtime, &sandbox, config).await?;
        events::publish(&self.runtime, &made.id, ContainerCreatedEvent);
        Ok(told(v1::CreateContainerResponse { container_id: made.id.to_string() }, &made))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Result<Response<v1::StartContainerResponse>, Status> {
        let (id, _) = self.cid(request.into_inner().container_id)?;
        let made = container::start(&self.runtime, &id).await?;
        Ok(told(v1::StartContainerResponse {}, &made))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Result<Response<v1::StopContainerResponse>, Status> {
        let request = request.into_inner();
        if let Ok(id) = Id::try_from(request.container_id) {
            container::stop(&self.runtime, &id, request.timeout).await?;
        }
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Result<Response<v1::RemoveContainerResponse>, Status> {
        if let Ok(id) = Id::try_from(request.into_inner().container_id) {
            let known = self.runtime.container(&id);
            container::remove(&self.runtime, &id).await?;
            if let Some(entry) = known {
                events::tell(&self.runtime, &id, Some(entry.sandbox), ContainerDeletedEvent);
            }
        }
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Result<Response<v1::ContainerStatusResponse>, Status> {
        let request = request.into_inner();
        let (id, entry) = self.cid(request.container_id)?;
        let status = Some(status::container_status(&id, &entry));
        let state = Arc::clone(&self.runtime);
        let info = match request.verbose {
            true => blocking(move || Ok(verbose::container(&state, &id, &entry))).await?,
            false => Default::default(),
        };
        Ok(Response::new(v1::ContainerStatusResponse { status, info }))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Result<Response<v1::ListContainersResponse>, Status> {
        let containers = list::containers(&self.runtime, request.into_inner().filter);
        Ok(Response::new(v1::ListContainersResponse { containers }))
    }

    async fn exec_sync(
        &self,
        request: Request<v1::ExecSyncRequest>,
    ) -> Result<Response<v1::ExecSyncResponse>, Status> {
        let request = request.into_inner();
        let (id, _) = self.cid(request.container_id)?;
        let (exit_code, stdout, stderr) =
            container::exec_sync(&self.runtime, &id, request.cmd, request.timeout).await?;
        Ok(Response::new(v1::ExecSyncResponse { stdout, stderr, exit_code }))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Result<Response<v1::ReopenContainerLogResponse>, Status> {
        let (id, entry) = self.running(request.into_inner().container_id)?;
        let socket = self.runtime.monitor_socket(&entry.sandbox);
        let ask = podway_monitor::Request::ReopenLog { id: id.to_string() };
        supervisor::call(&socket, ask).await.map_err(OpError::from)?;
        Ok(Response::new(v1::ReopenContainerLogResponse {}))
    }

    type GetContainerEventsStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<v1::ContainerEventResponse, Status>> + Send>>;
    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        let stream = tokio_stream::wrappers::BroadcastStream::new(self.runtime.events.subscribe());
        // A listener that lagged is told, so that it lists anew instead of trusting what it has.
        let stream =
            stream.map(|item| item.map_err(|lag| Status::data_loss(format!("events were lost: {lag}"))));
        let end = self.shutdown.clone().cancelled_owned();
        Ok(Response::new(Box::pin(futures::StreamExt::take_until(stream, end))))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Result<Response<v1::UpdateContainerResourcesResponse>, Status> {
        let request = request.into_inner();
        let (id, _) = self.cid(request.container_id)?;
        if request.windows.is_some() {
            return not_built("windows");
        }
        if !request.annotations.is_empty() {
            return not_built("annotations of UpdateContainerResources");
        }
        container::update(&self.runtime, &id, request.linux.unwrap_or_default()).await?;
        Ok(Response::new(v1::UpdateContainerResourcesResponse {}))
    }
    async fn exec(&self, request: Request<v1::ExecRequest>) -> Result<Response<v1::ExecResponse>, Status> {
        let request = request.into_inner();
        let (container, _) = self.running(request.container_id)?;
        let streams = streams(request.stdin, request.stdout, request.stderr, request.tty)?;
        let purpose = Purpose::Exec(process::Wanted { container, cmd: request.cmd, streams });
        Ok(Response::new(v1::ExecResponse { url: self.streaming.url(purpose)? }))
    }
    async fn attach(
        &self,
        request: Request<v1::AttachRequest>,
    ) -> Result<Response<v1::AttachResponse>, Status> {
        let request = request.into_inner();
        let (container, _) = self.running(request.container_id)?;
        let streams = streams(request.stdin, request.stdout, request.stderr, request.tty)?;
        let purpose = Purpose::Attach(attach::Wanted { container, streams });
        Ok(Response::new(v1::AttachResponse { url: self.streaming.url(purpose)? }))
    }
    async fn port_forward(
        &self,
        request: Request<v1::PortForwardRequest>,
    ) -> Result<Response<v1::PortForwardResponse>, Status> {
        let request = request.into_inner();
        let sandbox = id("sandbox", request.pod_sandbox_id)?;
        if self.runtime.known_sandbox(&sandbox)?.life != Life::Ready {
            return Err(Status::failed_precondition(format!("sandbox {sandbox} is not running")));
        }
        let port = |port: i32| u16::try_from(port).ok().filter(|port| *port > 0);
        let ports: Option<Vec<u16>> = request.port.into_iter().map(port).collect();
        let ports = ports.ok_or_else(|| Status::invalid_argument("port must be 1 to 65535"))?;
        if ports.len() > ports::MOST {
            let most = ports::MOST;
            return Err(Status::invalid_argument(format!(
                "not supported: more than {most} ports in one request"
            )));
        }
        let purpose = Purpose::PortForward(sandbox, ports);
        Ok(Response::new(v1::PortForwardResponse { url: self.streaming.url(purpose)? }))
    }
    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Result<Response<v1::ContainerStatsResponse>, Status> {
        let id = id("container", request.into_inner().container_id)?;
        let stats = Some(stats::container(&self.runtime, &id).await?);
        Ok(Response::new(v1::ContainerStatsResponse { stats }))
    }
    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Result<Response<v1::ListContainerStatsResponse>, Status> {
        let stats = stats::containers(&self.runtime, request.into_inner().filter).await;
        Ok(Response::new(v1::ListContainerStatsResponse { stats }))
    }
    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Result<Response<v1::PodSandboxStatsResponse>, Status> {
        let id = id("sandbox", request.into_inner().pod_sandbox_id)?;
        let stats = Some(stats::sandbox(&self.runtime, &id).await?);
        Ok(Response::new(v1::PodSandboxStatsResponse { stats }))
    }
    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Result<Response<v1::ListPodSandboxStatsResponse>, Status> {
        let stats = stats::sandboxes(&self.runtime, request.into_inner().filter).await;
        Ok(Response::new(v1::ListPodSandboxStatsResponse { stats }))
    }
    async fn checkpoint_container(
        &self,
        request: Request<v1::CheckpointContainerRequest>,
    ) -> Result<Response<v1::CheckpointContainerResponse>, Status> {
        let request = request.into_inner();
        let id = id("container", request.container_id)?;
        container::checkpoint(&self.runtime, &id, request.location, request.timeout).await?;
        Ok(Response::new(v1::CheckpointContainerResponse {}))
    }
    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Result<Response<v1::ListMetricDescriptorsResponse>, Status> {
        let descriptors = stats::metrics::descriptors();
        Ok(Response::new(v1::ListMetricDescriptorsResponse { descriptors }))
    }
    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Result<Response<v1::ListPodSandboxMetricsResponse>, Status> {
        let pod_metrics = stats::sandbox_metrics(&self.runtime).await;
        Ok(Response::new(v1::ListPodSandboxMetricsResponse { pod_metrics }))
    }
    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<v1::UpdatePodSandboxResourcesResponse>, Status> {
        let request = request.into_inner();
        let id = id("sandbox", request.pod_sandbox_id)?;
        sandbox::update(&self.runtime, &id, request.overhead, request.resources).await?;
        Ok(Response::new(v1::UpdatePodSandboxResourcesResponse {}))
    }
    type StreamPodSandboxesStream = Parts<v1::StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        let all = list::sandboxes(&self.runtime, request.into_inner().filter);
        Ok(parts(all, |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes }))
    }
    type StreamContainersStream = Parts<v1::StreamContainersResponse>;
    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        let all = list::containers(&self.runtime, request.into_inner().filter);
        Ok(parts(all, |containers| v1::StreamContainersResponse { containers }))
    }
    type StreamContainerStatsStream = Parts<v1::StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        let all = stats::containers(&self.runtime, request.into_inner().filter).await;
        Ok(parts(all, |container_stats| v1::StreamContainerStatsResponse { container_stats }))
    }
    type StreamPodSandboxStatsStream = Parts<v1::StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        let all = stats::sandboxes(&self.runtime, request.into_inner().filter).await;
        Ok(parts(all, |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }
    type StreamPodSandboxMetricsStream = Parts<v1::StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        let all = stats::sandbox_metrics(&self.runtime).await;
        Ok(parts(all, |pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
    }
}
