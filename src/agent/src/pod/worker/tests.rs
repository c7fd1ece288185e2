//! The worker on a fake runtime, over real gRPC: what it calls, what it writes, in which order.

use super::*;
use crate::api::PodApi;
use crate::cgroups::Cgroups;
use crate::cgroups::layout::Layout;
use crate::cri::Cri;
use crate::dns::NodeDns;
use crate::env::tests::Fake;
use crate::metrics::Metrics;
use crate::pod::admission::Offer;
use crate::pod::status;
use crate::pods::Pods;
use crate::source::PodSource as _;
use crate::status::pace::Pace;
use crate::volumes::VolumeManager;
use async_trait::async_trait;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use podway_cri::v1::image_service_server::{ImageService, ImageServiceServer};
use podway_cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use podway_flow::{Clock, Flow};
use podway_systemd::Driver;
use serde_json::{Value, json};
use std::sync::Mutex;
use tonic::{Request, Response, Status};

#[derive(Default)]
struct State {
    calls: Vec<String>,
    sandboxes: Vec<(String, v1::PodSandboxConfig, bool)>,
    containers: Vec<(String, String, v1::ContainerConfig, v1::ContainerState, i32)>,
    /// Pulls fail while set.
    no_image: bool,
    /// Sandboxes fail while set.
    no_sandbox: bool,
    /// Containers do not stop while set.
    stuck: bool,
    /// A start is answered, with its record, once this is told.
    answer: Option<Arc<tokio::sync::Notify>>,
}

#[derive(Clone, Default)]
struct Runtime(Arc<Mutex<State>>);

impl Runtime {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
    fn called(&self, what: impl Into<String>) {
        self.lock().calls.push(what.into());
    }
}

fn selects(filter: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    filter.iter().all(|(k, v)| labels.get(k) == Some(v))
}

macro_rules! absent {
    ($($name:ident($request:ident) -> $response:ident;)*) => {
        // As async_trait writes it, which does not look into a macro.
        $(fn $name<'life0, 'async_trait>(
            &'life0 self,
            _: Request<v1::$request>,
        ) -> std::pin::Pin<Box<dyn Future<Output = Result<Response<v1::$response>, Status>> + Send + 'async_trait>>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        })*
    };
}

type Never<T> = tokio_stream::Empty<Result<T, Status>>;

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Result<Response<v1::RunPodSandboxResponse>, Status> {
        let config = request.into_inner().config.unwrap();
        let id = format!("s{}", config.metadata.as_ref().unwrap().attempt);
        self.called(format!("run {id}"));
        if self.lock().no_sandbox {
            return Err(Status::unknown("no sandbox"));
        }
        self.lock().sandboxes.push((id.clone(), config, true));
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id: id }))
    }
    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Result<Response<v1::StopPodSandboxResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        self.called(format!("stop {id}"));
        self.lock().sandboxes.iter_mut().filter(|s| s.0 == id).for_each(|s| s.2 = false);
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }
    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Result<Response<v1::RemovePodSandboxResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        self.called(format!("remove {id}"));
        let mut state = self.lock();
        state.sandboxes.retain(|s| s.0 != id);
        state.containers.retain(|c| c.1 != id);
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }
    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Result<Response<v1::ListPodSandboxResponse>, Status> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let state = self.lock();
        let all = state.sandboxes.iter().filter(|s| selects(&filter.label_selector, &s.1.labels));
        let items =
            all.map(|s| v1::PodSandbox { id: s.0.clone(), labels: s.1.labels.clone(), ..Default::default() });
        Ok(Response::new(v1::ListPodSandboxResponse { items: items.collect() }))
    }
    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Result<Response<v1::PodSandboxStatusResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        let state = self.lock();
        let found = state.sandboxes.iter().find(|s| s.0 == id).ok_or_else(|| Status::not_found("sandbox"))?;
        let status = v1::PodSandboxStatus {
            id,
            metadata: found.1.metadata.clone(),
            state: i32::from(!found.2),
            network: Some(v1::PodSandboxNetworkStatus { ip: "10.0.0.9".into(), additional_ips: vec![] }),
            ..Default::default()
        };
        Ok(Response::new(v1::PodSandboxStatusResponse { status: Some(status), ..Default::default() }))
    }
    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Result<Response<v1::CreateContainerResponse>, Status> {
        let request = request.into_inner();
        let config = request.config.unwrap();
        let meta = config.metadata.clone().unwrap();
        let id = format!("{}-{}", meta.name, meta.attempt);
        self.called(format!("create {id}"));
        let made = (id.clone(), request.pod_sandbox_id, config, v1::ContainerState::ContainerCreated, 0);
        self.lock().containers.push(made);
        Ok(Response::new(v1::CreateContainerResponse { container_id: id }))
    }
    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Result<Response<v1::StartContainerResponse>, Status> {
        let id = request.into_inner().container_id;
        self.called(format!("start {id}"));
        for c in self.lock().containers.iter_mut().filter(|c| c.0 == id) {
            // Init containers of these tests end at once.
            let ends = c.0.starts_with("init");
            c.3 =
                if ends { v1::ContainerState::ContainerExited } else { v1::ContainerState::ContainerRunning };
        }
        let mut response = Response::new(v1::StartContainerResponse {});
        let answer = self.lock().answer.clone();
        if let Some(answer) = answer {
            answer.notified().await;
            let started = record(Phase::ContainersStarted, None, Micros(1), Some(Micros(2)), "Started");
            podway_cri::metadata::attach(&mut response, &[started]);
        }
        Ok(response)
    }
    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Result<Response<v1::StopContainerResponse>, Status> {
        let request = request.into_inner();
        self.called(format!("stop {} {}", request.container_id, request.timeout));
        if self.lock().stuck {
            return std::future::pending().await;
        }
        for c in self.lock().containers.iter_mut().filter(|c| c.0 == request.container_id) {
            (c.3, c.4) = (v1::ContainerState::ContainerExited, 143);
        }
        Ok(Response::new(v1::StopContainerResponse {}))
    }
    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Result<Response<v1::UpdateContainerResourcesResponse>, Status> {
        let request = request.into_inner();
        let linux = request.linux.unwrap();
        self.called(format!("update {} {} {}", request.container_id, linux.cpu_shares, linux.cpu_quota));
        Ok(Response::new(v1::UpdateContainerResourcesResponse {}))
    }
    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Result<Response<v1::RemoveContainerResponse>, Status> {
        let id = request.into_inner().container_id;
        self.lock().containers.retain(|c| c.0 != id);
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }
    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Result<Response<v1::ListContainersResponse>, Status> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let state = self.lock();
        let all = state.containers.iter().filter(|c| selects(&filter.label_selector, &c.2.labels));
        let containers = all.map(|c| v1::Container {
            id: c.0.clone(),
            pod_sandbox_id: c.1.clone(),
            labels: c.2.labels.clone(),
            ..Default::default()
        });
        Ok(Response::new(v1::ListContainersResponse { containers: containers.collect() }))
    }
    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Result<Response<v1::ContainerStatusResponse>, Status> {
        let id = request.into_inner().container_id;
        let state = self.lock();
        let c = state.containers.iter().find(|c| c.0 == id).ok_or_else(|| Status::not_found("container"))?;
        let status = v1::ContainerStatus {
            id,
            state: c.3 as i32,
            exit_code: c.4,
            started_at: 1_000_000_000,
            finished_at: 2_000_000_000,
            labels: c.2.labels.clone(),
            annotations: c.2.annotations.clone(),
            ..Default::default()
        };
        Ok(Response::new(v1::ContainerStatusResponse { status: Some(status), ..Default::default() }))
    }
    absent! {
        version(VersionRequest) -> VersionResponse;
        reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        exec_sync(ExecSyncRequest) -> ExecSyncResponse;
        exec(ExecRequest) -> ExecResponse;
        attach(AttachRequest) -> AttachResponse;
        port_forward(PortForwardRequest) -> PortForwardResponse;
        container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        status(StatusRequest) -> StatusResponse;
        checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
        list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
        list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
        runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
        update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
    }
    type GetContainerEventsStream = Never<v1::ContainerEventResponse>;
    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        Err(Status::unimplemented("get_container_events"))
    }
    type StreamPodSandboxesStream = Never<v1::StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        _: Request<v1::StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        Err(Status::unimplemented("stream_pod_sandboxes"))
    }
    type StreamContainersStream = Never<v1::StreamContainersResponse>;
    async fn stream_containers(
        &self,
        _: Request<v1::StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        Err(Status::unimplemented("stream_containers"))
    }
    type StreamContainerStatsStream = Never<v1::StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        _: Request<v1::StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        Err(Status::unimplemented("stream_container_stats"))
    }
    type StreamPodSandboxStatsStream = Never<v1::StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        _: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        Err(Status::unimplemented("stream_pod_sandbox_stats"))
    }
    type StreamPodSandboxMetricsStream = Never<v1::StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        Err(Status::unimplemented("stream_pod_sandbox_metrics"))
    }
}

#[tonic::async_trait]
impl ImageService for Runtime {
    type StreamImagesStream = Never<v1::StreamImagesResponse>;
    async fn stream_images(
        &self,
        _: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        Err(Status::unimplemented("stream_images"))
    }
    async fn image_status(
        &self,
        _: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        Ok(Response::new(v1::ImageStatusResponse::default()))
    }
    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        self.called(format!("pull {}", request.into_inner().image.unwrap().image));
        if self.lock().no_image {
            return Err(Status::not_found("no such image"));
        }
        Ok(Response::new(v1::PullImageResponse { image_ref: "sha256:1".into() }))
    }
    absent! {
        list_images(ListImagesRequest) -> ListImagesResponse;
        remove_image(RemoveImageRequest) -> RemoveImageResponse;
        image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
    }
}

/// An API server that keeps one pod and what was written of it.
#[derive(Clone)]
struct Server {
    pod: Arc<Mutex<Value>>,
    writes: Arc<Mutex<Vec<String>>>,
    notes: Arc<Mutex<Vec<String>>>,
    flow: Arc<Mutex<Option<Flow>>>,
    conditions: Arc<Mutex<Vec<Condition>>>,
    changed: Arc<tokio::sync::Notify>,
}

impl Server {
    fn new(pod: Value) -> Self {
        Server {
            pod: Arc::new(Mutex::new(pod)),
            writes: Arc::default(),
            notes: Arc::default(),
            flow: Arc::default(),
            conditions: Arc::default(),
            changed: Arc::default(),
        }
    }
    fn wrote(&self, what: impl Into<String>) {
        self.writes.lock().unwrap().push(what.into());
        self.changed.notify_waiters();
    }
    fn object(&self) -> api::Pod {
        serde_json::from_value(self.pod.lock().unwrap().clone()).unwrap()
    }
    fn phase(&self) -> String {
        self.object().status.and_then(|s| s.phase).unwrap_or_default()
    }
    /// Waits for a write that makes `holds` true.
    async fn until(&self, holds: impl Fn(&Server) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if holds(self) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| {
            panic!("in vain: {:?} {}", self.writes.lock().unwrap(), self.pod.lock().unwrap())
        });
    }
    fn has(&self, what: &str) -> bool {
        self.writes.lock().unwrap().iter().any(|w| w == what)
    }
}

#[async_trait]
impl PodApi for Server {
    async fn patch_status(
        &self,
        _: &str,
        _: &str,
        patch: Value,
        _: &api::PodStatus,
    ) -> Result<api::Pod, ApiError> {
        let phase = {
            let mut pod = self.pod.lock().unwrap();
            assert_eq!(patch["metadata"]["uid"], pod["metadata"]["uid"], "the UID is in every patch");
            let status = pod["status"].as_object_mut().unwrap();
            for (key, value) in patch["status"].as_object().unwrap() {
                if key == "conditions" {
                    let list = status.entry("conditions").or_insert(json!([])).as_array_mut().unwrap();
                    for c in value.as_array().unwrap() {
                        list.retain(|o| o["type"] != c["type"]);
                        list.push(c.clone());
                    }
                } else {
                    status.insert(key.clone(), value.clone());
                }
            }
            let version: u64 = pod["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
            pod["metadata"]["resourceVersion"] = json!((version + 1).to_string());
            pod["status"]["phase"].as_str().unwrap_or_default().to_owned()
        };
        self.wrote(format!("status {phase}"));
        Ok(self.object())
    }
    async fn delete(&self, _: &str, _: &str, uid: &str) -> Result<(), ApiError> {
        self.wrote(format!("delete {uid}"));
        Ok(())
    }
    async fn write_flow(&self, flow: &Flow, told: &[Condition], create: bool) -> Result<(), ApiError> {
        *self.flow.lock().unwrap() = Some(flow.clone());
        let status = podway_api::podflow::PodFlowStatus::from_flow(flow, told, Some(1));
        *self.conditions.lock().unwrap() = status.conditions;
        self.wrote(format!("flow {create}"));
        Ok(())
    }
    async fn warn(&self, _: &api::Pod, reason: &str, message: &str) {
        self.wrote(format!("warn {reason}: {message}"));
    }
    async fn note(&self, _: &api::Pod, container: &str, reason: &str, message: &str) {
        // Not a write that a test counts: when it comes is nobody's business.
        self.notes.lock().unwrap().push(format!("{container} {reason}: {message}"));
    }
    async fn services(&self, _: &str) -> Vec<api::Service> {
        Vec::new()
    }
}

struct Bench {
    dir: tempfile::TempDir,
    runtime: Runtime,
    server: Server,
    context: Context,
    node: watch::Sender<crate::node::State>,
}

impl Bench {
    async fn new(spec: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Runtime::default();
        let socket = dir.path().join("cri.sock");
        let listener = podway_cri::server::listen(&socket).unwrap();
        let serve = tonic::transport::Server::builder()
            .add_service(RuntimeServiceServer::new(runtime.clone()))
            .add_service(ImageServiceServer::new(runtime.clone()))
            .serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(listener));
        tokio::spawn(serve);
        let server = Server::new(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u-1",
            "resourceVersion": "1", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": spec, "status": {"phase": "Pending", "qosClass": "BestEffort"}}));
        let metrics = Arc::new(Metrics::new("n1"));
        let (plugins, file) = (dir.path().join("plugins"), dir.path().join("devices.json"));
        let devices = crate::devices::Devices::new(&plugins, &file, Arc::clone(&metrics));
        let channel = podway_cri::client::connect(socket.to_str().unwrap()).await.unwrap();
        // A cgroup tree of files: what the kernel does is tested elsewhere.
        let tree = dir.path().join("cg");
        std::fs::create_dir_all(tree.join("memory")).unwrap();
        let context = Context {
            cri: Cri::new(channel, Arc::clone(&metrics)),
            api: Arc::new(server.clone()),
            objects: Arc::new(Fake),
            volumes: VolumeManager::new(
                crate::volumes::csi::tests::parts(&dir.path().join("root")),
                Arc::new(Fake),
                Arc::new(Fake),
                BTreeMap::new(),
            ),
            ledger: crate::pod::ledger::Ledger::new(BTreeMap::from([(
                "cpu".to_owned(),
                k8s_openapi::apimachinery::pkg::api::resource::Quantity("2".to_owned()),
            )])),
            devices,
            userns: Arc::new(crate::userns::UserNamespaces::new(
                &dir.path().join("root/pods"),
                tokio::sync::watch::channel(crate::node::State::default()).1,
            )),
            classes: crate::pod::classes::Classes::new(kube::runtime::reflector::store().0),
            modules: crate::pod::confinement::Modules::default(),
            seccomp_default: false,
            known: tokio::sync::watch::channel(crate::node::State::default()).1,
            cgroups: Arc::new(Cgroups::new(&tree, Layout::new(Driver::Cgroupfs, "/").unwrap())),
            metrics,
            pace: Pace::default(),
            clock: Clock::new(),
            audit: None,
            podflow: true,
            traces: None,
            node: status::Node { runtime: "fake".into(), ips: vec!["192.0.2.1".into()] },
            hostname: "n1".into(),
            dns: NodeDns::default(),
            pod_logs_dir: dir.path().join("logs"),
            allocatable: BTreeMap::new(),
            memory_capacity: 1 << 30,
        };
        Bench { dir, runtime, server, context, node: watch::Sender::default() }
    }

    fn spawn(&self) -> (Handle, tokio::task::JoinHandle<bool>) {
        let pod = Pod::read(Arc::new(self.server.object())).unwrap();
        spawn(
            self.context.clone(),
            Beginning { pod, seen: self.context.clock.now(), refused: None, fresh: false, new: true },
        )
    }

    /// The pods of a node whose API server never answers a mirror.
    fn pods(&self) -> Arc<Pods> {
        // A second install (by another test) is refused, and the first one serves.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = kube::Client::try_from(nowhere).unwrap();
        let (node, allocatable, labels) = ("n1".to_owned(), BTreeMap::new(), BTreeMap::new());
        let offer = Offer { node, allocatable, labels, max_pods: 10, modules: Default::default() };
        Pods::new(self.context.clone(), offer, self.node.subscribe(), client, self.dir.path().join("root"))
    }

    fn delete(&self, handle: &Handle) {
        {
            let mut pod = self.server.pod.lock().unwrap();
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:05Z");
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(5);
            pod["metadata"]["resourceVersion"] = json!("1000");
        }
        handle.inputs.send(Input::Pod(Arc::new(self.server.object()))).unwrap();
    }
}

fn spec() -> Value {
    json!({"initContainers": [{"name": "init", "image": "i:1"}],
        "containers": [{"name": "c", "image": "i:1", "volumeMounts": [{"name": "e", "mountPath": "/e"}]},
            {"name": "d", "image": "i:1"}],
        "volumes": [{"name": "e", "emptyDir": {}}]})
}

#[tokio::test]
async fn a_pod_goes_from_nothing_to_ready_in_three_writes_and_leaves_nothing() {
    let bench = Bench::new(spec()).await;
    let (handle, ended) = bench.spawn();
    bench.server.until(|s| s.has("flow true")).await;
    let object = bench.server.object();
    assert!(is_ready(object.status.as_ref()));
    assert_eq!(object.status.as_ref().unwrap().pod_ip.as_deref(), Some("10.0.0.9"));
    let conditions = object.status.unwrap().conditions.unwrap();
    let reported = conditions.iter().find(|c| c.type_ == "podway.dev/StatusReported").unwrap();
    assert_eq!(reported.status, "True", "whoever reads that it was reported reads it in the report");
    let flow = bench.server.flow.lock().unwrap().clone().unwrap();
    for phase in [
        Phase::Admitted,
        Phase::VolumesMounted,
        Phase::SandboxCreated,
        Phase::ImagesPulled,
        Phase::ContainersCreated,
        Phase::ContainersStarted,
        Phase::StatusReported,
        Phase::Ready,
    ] {
        assert_eq!(flow.summary(phase).unwrap().outcome, Outcome::Succeeded, "{phase}");
    }
    // A settled pod costs nothing, whatever the runtime says of it.
    let before = bench.server.writes.lock().unwrap().len();
    assert_eq!(before, 2, "one status, one flow: {:?}", bench.server.writes.lock().unwrap());
    for _ in 0..3 {
        handle.inputs.send(Input::Runtime).unwrap();
        handle.inputs.send(Input::Pod(Arc::new(bench.server.object()))).unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert_eq!(bench.server.writes.lock().unwrap().len(), before);

    let calls = bench.runtime.lock().calls.clone();
    let at = |what: &str| calls.iter().position(|c| c == what).unwrap_or_else(|| panic!("{what}: {calls:?}"));
    assert!(at("run s0") < at("create init-0") && at("start init-0") < at("create c-0"));
    assert!(at("start init-0") < at("create d-0"));

    bench.delete(&handle);
    assert!(ended.await.unwrap(), "nothing is left of the pod");
    let calls = bench.runtime.lock().calls.clone();
    let at = |what: &str| calls.iter().position(|c| c == what).unwrap_or_else(|| panic!("{what}: {calls:?}"));
    assert!(at("stop c-0 5") < at("stop s0") && at("stop s0") < at("remove s0"));
    let writes = bench.server.writes.lock().unwrap().clone();
    let terminal = writes.iter().position(|w| w == "status Failed").unwrap();
    assert!(terminal < writes.iter().position(|w| w == "delete u-1").unwrap(), "{writes:?}");
    let state = bench.runtime.lock();
    assert!(state.sandboxes.is_empty() && state.containers.is_empty());
    for left in ["root/pods/u-1", "logs/n_p_u-1", "cg/memory/kubepods/besteffort/podu-1"] {
        assert!(!bench.dir.path().join(left).exists(), "{left}");
    }
}

#[tokio::test]
async fn a_restarted_agent_adopts_what_runs_and_starts_nothing_twice() {
    let bench = Bench::new(spec()).await;
    let (handle, ended) = bench.spawn();
    bench.server.until(|s| s.has("flow true")).await;
    ended.abort();
    drop(handle);
    let (calls, writes) = (bench.runtime.lock().calls.len(), bench.server.writes.lock().unwrap().len());
    let (mut handle, _ended) = bench.spawn();
    while handle.view.borrow().containers.len() < 3 {
        handle.view.changed().await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let now = bench.runtime.lock().calls.clone();
    assert_eq!(now.len(), calls, "{now:?}");
    let now = bench.server.writes.lock().unwrap().clone();
    assert_eq!(now.len(), writes, "{now:?}");
    // A lost sandbox is replaced, and init runs again in the new one.
    {
        let mut state = bench.runtime.lock();
        state.sandboxes[0].2 = false;
        for c in &mut state.containers {
            c.3 = v1::ContainerState::ContainerExited;
        }
    }
    handle.inputs.send(Input::Runtime).unwrap();
    while !bench.runtime.lock().calls.contains(&"start c-1".to_owned()) {
        tokio::time::timeout(Duration::from_secs(10), handle.view.changed()).await.unwrap().unwrap();
    }
    let calls = bench.runtime.lock().calls.clone();
    let at = |what: &str| calls.iter().position(|c| c == what).unwrap_or_else(|| panic!("{what}: {calls:?}"));
    assert!(at("run s1") < at("create init-1") && at("start init-1") < at("create c-1"));
}

#[tokio::test]
async fn a_class_that_has_gone_keeps_no_container_from_its_restart() {
    use kube::runtime::watcher::Event;
    let pod = json!({"runtimeClassName": "fast", "containers": [{"name": "c", "image": "i:1"}]});
    let mut bench = Bench::new(pod).await;
    let (store, mut classes) = kube::runtime::reflector::store();
    bench.context.classes = crate::pod::classes::Classes::new(store);
    let fast: k8s_openapi::api::node::v1::RuntimeClass =
        serde_json::from_value(json!({"metadata": {"name": "fast"}, "handler": "runc"})).unwrap();
    for event in [Event::Init, Event::InitApply(fast.clone()), Event::InitDone] {
        classes.apply_watcher_event(&event);
    }
    let (mut handle, _ended) = bench.spawn();
    bench.server.until(|s| s.phase() == "Running").await;
    classes.apply_watcher_event(&Event::Delete(fast));
    for c in &mut bench.runtime.lock().containers {
        (c.3, c.4) = (v1::ContainerState::ContainerExited, 1);
    }
    handle.inputs.send(Input::Runtime).unwrap();
    while !bench.runtime.lock().calls.contains(&"start c-1".to_owned()) {
        tokio::time::timeout(Duration::from_secs(20), handle.view.changed()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_bad_image_says_so_at_once_and_turns_to_waiting_after_a_second() {
    let bench = Bench::new(json!({"containers": [{"name": "c", "image": "i:1"}]})).await;
    bench.runtime.lock().no_image = true;
    // Before the worker begins: its own times are counted from there.
    let begun = std::time::Instant::now();
    let (handle, ended) = bench.spawn();
    let reason = |s: &Server| {
        let status = s.object().status.unwrap();
        let waiting = status.container_statuses.and_then(|l| l[0].state.clone()).and_then(|s| s.waiting);
        waiting.and_then(|w| w.reason).unwrap_or_default()
    };
    bench.server.until(|s| reason(s) == "ErrImagePull").await;
    assert!(begun.elapsed() < Duration::from_millis(900), "a failure is told at once");
    bench.server.until(|s| reason(s) == "ImagePullBackOff").await;
    assert!(bench.server.has("warn Failed: Failed to pull image \"i:1\": no such image"));
    bench.server.until(|s| s.has("flow true")).await;
    assert!(begun.elapsed() >= Duration::from_secs(3), "an unfinished flow is in no hurry");
    let flow = bench.server.flow.lock().unwrap().clone().unwrap();
    assert_eq!(
        flow.summary(Phase::ImagesPulled).unwrap().outcome,
        Outcome::Failed,
        "a stuck pod has a flow too"
    );
    assert_eq!(bench.server.phase(), "Pending");
    bench.delete(&handle);
    assert!(ended.await.unwrap());
    assert!(bench.runtime.lock().sandboxes.is_empty() && bench.server.has("delete u-1"));
}

#[tokio::test]
async fn a_refused_pod_fails_with_its_reason_and_runs_nothing() {
    let bench = Bench::new(spec()).await;
    let refused = Terminal { failed: true, reason: "OutOfcpu".into(), message: "Pod was rejected: x".into() };
    let pod = Pod::read(Arc::new(bench.server.object())).unwrap();
    let beginning =
        Beginning { pod, seen: bench.context.clock.now(), refused: Some(refused), fresh: true, new: true };
    let (_handle, _ended) = spawn(bench.context.clone(), beginning);
    bench.server.until(|s| s.phase() == "Failed").await;
    let status = bench.server.object().status.unwrap();
    assert_eq!((status.reason.as_deref(), status.container_statuses), (Some("OutOfcpu"), None));
    assert!(bench.runtime.lock().calls.is_empty());
}

#[tokio::test]
async fn what_no_object_stands_for_is_taken_down_without_a_word() {
    let bench = Bench::new(spec()).await;
    let (handle, ended) = bench.spawn();
    bench.server.until(|s| s.has("flow true")).await;
    let writes = bench.server.writes.lock().unwrap().len();
    handle.inputs.send(Input::Gone).unwrap();
    assert!(ended.await.unwrap());
    assert!(bench.runtime.lock().sandboxes.is_empty());
    assert_eq!(bench.server.writes.lock().unwrap().len(), writes, "nobody is there to be told");
}

#[tokio::test]
async fn a_pod_that_does_not_go_names_what_it_waits_for() {
    let bench = Bench::new(json!({"containers": [{"name": "c", "image": "i:1"}]})).await;
    let (handle, _ended) = bench.spawn();
    bench.server.until(|s| s.has("flow true")).await;
    bench.runtime.lock().stuck = true;
    bench.delete(&handle);
    let told = |s: &Server| {
        let conditions = s.object().status.and_then(|s| s.conditions).unwrap_or_default();
        conditions.into_iter().find(|c| c.type_ == "podway.dev/Terminating")
    };
    bench.server.until(|s| told(s).is_some()).await;
    let condition = told(&bench.server).unwrap();
    assert_eq!(
        (condition.status.as_str(), condition.reason.as_deref()),
        ("True", Some("ContainersStopping"))
    );
    let message = condition.message.unwrap();
    assert!(message.starts_with("waiting for the exit of container c (until 20"), "{message}");
}

#[tokio::test]
async fn what_was_deleted_is_not_begun_again_by_late_news() {
    let bench = Bench::new(json!({"containers": [{"name": "c", "image": "i:1"}]})).await;
    let pods = bench.pods();
    {
        let mut pod = bench.server.pod.lock().unwrap();
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:05Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(0);
    }
    let object = Arc::new(bench.server.object());
    pods.apply(Arc::clone(&object), bench.context.clock.now(), true);
    bench.server.until(|s| s.has("delete u-1")).await;
    while !pods.pods().is_empty() {
        tokio::task::yield_now().await;
    }
    pods.apply(Arc::clone(&object), bench.context.clock.now(), true);
    assert!(pods.pods().is_empty(), "a finalizer's news, or news that were on their way");
    pods.listed(&HashSet::from(["u-1".to_owned()]), &HashSet::new()).await;
    pods.apply(Arc::clone(&object), bench.context.clock.now(), false);
    assert!(pods.pods().is_empty(), "the same after a listing that still has it");
    pods.delete(&object);
    pods.apply(object, bench.context.clock.now(), true);
    assert_eq!(pods.pods().len(), 1, "nothing is kept once its end was told");
}

#[tokio::test]
async fn a_shutdown_of_the_node_ends_its_pods_and_it_takes_no_more() {
    let seconds = Duration::from_secs;
    let bench = Bench::new(json!({"containers": [{"name": "c", "image": "i:1"}]})).await;
    let pods = bench.pods();
    pods.apply(Arc::new(bench.server.object()), bench.context.clock.now(), true);
    bench.server.until(|s| s.has("flow true")).await;
    crate::shutdown::end_pods(&pods, &crate::shutdown::periods::Periods::of(seconds(40), seconds(20))).await;
    assert!(pods.pods().iter().all(|p| p.containers.iter().all(|c| !c.running)), "they were waited for");
    bench.server.until(|s| s.phase() == "Failed").await;
    let status = bench.server.object().status.unwrap();
    assert_eq!(
        (status.reason.as_deref(), status.message.as_deref()),
        (Some("Terminated"), Some("Pod was terminated in response to imminent node shutdown."))
    );
    let target = status.conditions.unwrap().into_iter().find(|c| c.type_ == "DisruptionTarget").unwrap();
    assert_eq!((target.status.as_str(), target.reason.as_deref()), ("True", Some("TerminationByKubelet")));

    bench.node.borrow().leaving.set(true);
    let mut next = serde_json::to_value(bench.server.object()).unwrap();
    next["metadata"]["uid"] = json!("u-2");
    next["status"] = json!({"phase": "Pending"});
    pods.apply(Arc::new(serde_json::from_value(next).unwrap()), bench.context.clock.now(), true);
    bench.server.until(|s| s.has("warn NodeShutdown: Pod was rejected as the node is shutting down.")).await;
}

#[tokio::test]
async fn a_static_pod_runs_without_an_api_server_and_the_next_waits_for_its_end() {
    let bench = Bench::new(spec()).await;
    let pods = bench.pods();
    let file = |image: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: s}}\nspec: {{containers: [{{name: c, image: '{image}'}}]}}\n"
        );
        Arc::new(crate::statics::file::decode(text.as_bytes(), std::path::Path::new("/m/s"), "n1").unwrap())
    };
    let (one, two) = (file("i:1"), file("i:2"));
    let of = |pod: &api::Pod| pod.metadata.uid.clone().unwrap();
    let until = async |uid: String| {
        let ready = async {
            loop {
                let view = pods.view(&uid);
                if view.is_some_and(|v| is_ready(v.borrow().object.status.as_ref())) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ready).await.unwrap();
    };
    pods.files(vec![Arc::clone(&one)]);
    until(of(&one)).await;
    assert_eq!(pods.pod("default", "s-n1").unwrap().containers.len(), 1);
    // A listing of the API server knows nothing of it, and takes nothing down.
    pods.listed(&HashSet::new(), &HashSet::new()).await;
    let kept = bench.dir.path().join("root/static").join(format!("{}.json", of(&one)));
    assert!(std::fs::read_to_string(&kept).unwrap().contains("\"Running\""));
    pods.files(vec![Arc::clone(&two)]);
    until(of(&two)).await;
    assert!(pods.view(&of(&one)).is_none(), "of a name one runs at a time");
    assert!(!kept.exists());
    let uids: Vec<String> = bench
        .runtime
        .lock()
        .sandboxes
        .iter()
        .filter_map(|s| Some(s.1.metadata.as_ref()?.uid.clone()))
        .collect();
    assert_eq!(uids, [of(&two)]);
    pods.files(Vec::new());
    while !pods.pods().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(bench.runtime.lock().sandboxes.is_empty());
    assert!(
        bench.server.writes.lock().unwrap().iter().all(|w| w.starts_with("warn")),
        "nothing was asked of it"
    );
}

/// A config map that changes, and a token that must be renewed: what volumes show.
#[tokio::test]
async fn what_a_volume_shows_is_brought_up_to_date_and_costs_no_write() {
    let bench = Bench::new(json!({"containers": [{"name": "c", "image": "i:1"}],
        "volumes": [{"name": "labels", "downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}))
    .await;
    let (handle, _ended) = bench.spawn();
    bench.server.until(|s| s.has("flow true")).await;
    let before = bench.server.writes.lock().unwrap().len();
    let file = bench.dir.path().join("root/pods/u-1/volumes/kubernetes.io~downward-api/labels/labels");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "");
    {
        let mut pod = bench.server.pod.lock().unwrap();
        pod["metadata"]["labels"] = json!({"a": "b"});
        pod["metadata"]["resourceVersion"] = json!("500");
    }
    handle.inputs.send(Input::Pod(Arc::new(bench.server.object()))).unwrap();
    let shown = async {
        while std::fs::read_to_string(&file).unwrap() != "a=\"b\"" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), shown).await.expect("the volume shows the new labels");
    assert_eq!(bench.server.writes.lock().unwrap().len(), before);
}

#[tokio::test]
async fn an_ephemeral_container_is_started_once_beside_the_others_and_ends_with_its_pod() {
    let bench = Bench::new(json!({"containers": [{"name": "c", "image": "i:1"}]})).await;
    let (handle, ended) = bench.spawn();
    bench.server.until(|s| s.has("flow true")).await;
    {
        let mut pod = bench.server.pod.lock().unwrap();
        pod["spec"]["ephemeralContainers"] =
            json!([{"name": "d", "image": "i:1", "targetContainerName": "c"}]);
        pod["metadata"]["resourceVersion"] = json!("500");
    }
    handle.inputs.send(Input::Pod(Arc::new(bench.server.object()))).unwrap();
    let runs = |s: &Server| {
        let all = s.object().status.and_then(|s| s.ephemeral_container_statuses).unwrap_or_default();
        all.iter().any(|c| c.name == "d" && c.state.as_ref().is_some_and(|s| s.running.is_some()))
    };
    bench.server.until(runs).await;
    let options = {
        let state = bench.runtime.lock();
        let made = state.containers.iter().find(|c| c.2.metadata.as_ref().unwrap().name == "d").unwrap();
        made.2.linux.clone().unwrap().security_context.unwrap().namespace_options.unwrap()
    };
    assert_eq!((options.pid, options.target_id.as_str()), (v1::NamespaceMode::Target as i32, "c-0"));
    // It ends, and is not begun again.
    {
        let mut state = bench.runtime.lock();
        for c in state.containers.iter_mut().filter(|c| c.2.metadata.as_ref().unwrap().name == "d") {
            c.3 = v1::ContainerState::ContainerExited;
        }
    }
    handle.inputs.send(Input::Runtime).unwrap();
    let over = |s: &Server| {
        let all = s.object().status.and_then(|s| s.ephemeral_container_statuses).unwrap_or_default();
        all.iter().any(|c| c.state.as_ref().is_some_and(|s| s.terminated.is_some()))
    };
    bench.server.until(over).await;
    bench.delete(&handle);
    assert!(ended.await.unwrap());
    let calls = bench.runtime.lock().calls.clone();
    assert_eq!(calls.iter().filter(|c| c.starts_with("start d-")).count(), 1, "{calls:?}");
    let notes = bench.server.notes.lock().unwrap().clone();
    assert!(notes.contains(&"c Killing: Stopping container c".to_owned()), "{notes:?}");
    assert!(notes.iter().any(|note| note.starts_with("d Pulling: Pulling image \"")), "{notes:?}");
    assert!(notes.iter().any(|note| note.starts_with("d Pulled: ")), "{notes:?}");
}

#[tokio::test]
async fn what_a_late_answer_tells_of_a_start_is_told() {
    let bench = Bench::new(json!({"containers": [{"name": "c", "image": "i:1"}]})).await;
    let answer = Arc::new(tokio::sync::Notify::new());
    bench.runtime.lock().answer = Some(Arc::clone(&answer));
    let (handle, _ended) = bench.spawn();
    while !bench.runtime.lock().calls.iter().any(|c| c.starts_with("start ")) {
        tokio::task::yield_now().await;
    }
    // Its process is seen before the call that started it is answered.
    handle.inputs.send(Input::Runtime).unwrap();
    bench.server.until(|s| is_ready(s.object().status.as_ref())).await;
    answer.notify_one();
    let whole = |s: &Server| {
        let flow = s.flow.lock().unwrap();
        let done = |phase| flow.as_ref()?.summary(phase).map(|s| s.outcome);
        [Phase::ContainersStarted, Phase::Ready].into_iter().all(|p| done(p) == Some(Outcome::Succeeded))
    };
    bench.server.until(whole).await;
}

#[tokio::test]
async fn a_resize_is_given_done_and_told() {
    let spec = json!({"containers": [{"name": "c", "image": "i:1",
        "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "200m"}}}]});
    let bench = Bench::new(spec).await;
    let (handle, _ended) = bench.spawn();
    bench.server.until(|s| s.has("flow true")).await;
    let wish = |cpu: &str, version: &str| {
        {
            let mut pod = bench.server.pod.lock().unwrap();
            pod["spec"]["containers"][0]["resources"] =
                json!({"requests": {"cpu": cpu}, "limits": {"cpu": cpu}});
            pod["metadata"]["generation"] = json!(version.parse::<i64>().unwrap());
            pod["metadata"]["resourceVersion"] = json!(version);
        }
        handle.inputs.send(Input::Pod(Arc::new(bench.server.object()))).unwrap();
    };
    wish("300m", "500");
    let cpu = |s: &Server| {
        let status = s.object().status.unwrap();
        let one = status.container_statuses.unwrap_or_default().remove(0);
        let of = |list: Option<BTreeMap<String, _>>| -> Option<String> {
            list.and_then(|mut l| l.remove("cpu"))
                .map(|q: k8s_openapi::apimachinery::pkg::api::resource::Quantity| q.0)
        };
        (of(one.allocated_resources), of(one.resources.and_then(|r| r.limits)))
    };
    let now = (Some("300m".to_owned()), Some("300m".to_owned()));
    let condition = |s: &Server, kind: &str| {
        s.object().status.unwrap().conditions.unwrap().into_iter().find(|c| c.type_ == kind)
    };
    bench.server.until(|s| cpu(s) == now).await;
    let calls = bench.runtime.lock().calls.clone();
    assert!(calls.contains(&"update c-0 307 30000".to_owned()), "{calls:?}");
    assert_eq!(calls.iter().filter(|c| c.starts_with("start ")).count(), 1, "nothing is restarted");
    // More than the node has: said, and nothing done.
    wish("100", "600");
    bench.server.until(|s| condition(s, "PodResizePending").is_some()).await;
    let pending = condition(&bench.server, "PodResizePending").unwrap();
    assert_eq!((pending.reason.as_deref(), cpu(&bench.server)), (Some("Infeasible"), now));
}

#[tokio::test]
async fn a_start_that_is_stuck_is_told_within_a_second_of_its_limit_and_taken_back() {
    let bench = Bench::new(json!({"containers": [{"name": "c", "image": "i:1"}]})).await;
    // What is usual is learned: 20 pods whose sandboxes took 1 ms.
    let at = |micros| Micros(micros);
    let quick = Flow {
        pod: podway_flow::PodRef::default(),
        records: vec![
            record(Phase::SandboxCreated, None, at(0), Some(at(1_000)), "Created"),
            record(Phase::Ready, None, at(1_000), Some(at(1_000)), "Ready"),
        ],
    };
    (0..20).for_each(|_| bench.context.metrics.flow(&quick));
    bench.runtime.lock().no_sandbox = true;
    let condition = |s: &Server| {
        let conditions = s.object().status.and_then(|s| s.conditions).unwrap_or_default();
        conditions.into_iter().find(|c| c.type_ == "podway.dev/Stuck")
    };
    let (_handle, _ended) = bench.spawn();
    bench.server.until(|s| condition(s).is_some()).await;
    let told = condition(&bench.server).unwrap();
    let (is, reason) = (told.status.as_str(), told.reason.as_deref());
    assert_eq!((is, reason), ("True", Some("SandboxCreated")));
    let line = told.message.clone().unwrap();
    assert!(line.starts_with("SandboxCreated for ") && line.contains("limit 1.0 s"), "{line}");
    let events = |s: &Server| {
        let writes = s.writes.lock().unwrap();
        writes.iter().filter(|w| w.starts_with("warn PodStuck: SandboxCreated for ")).count()
    };
    bench.server.until(|s| events(s) == 1).await;
    let gauge = |n: u8| format!("podway_pod_stuck{{phase=\"SandboxCreated\"}} {n}\n");
    assert!(bench.context.metrics.text().contains(&gauge(1)));

    bench.runtime.lock().no_sandbox = false;
    bench.server.until(|s| is_ready(s.object().status.as_ref())).await;
    let told = condition(&bench.server).unwrap();
    assert_eq!((told.status.as_str(), told.reason.as_deref(), told.message), ("False", Some("GotOn"), None));
    assert_eq!(events(&bench.server), 1, "it is told once");
    assert!(bench.context.metrics.text().contains(&gauge(0)));
}

mod devices;
