//! What the node's tests share: a control plane, a node's identity, a runtime and pods that are fakes.
#![allow(dead_code, reason = "each test crate uses its part")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use podway_agent::config::Config;
use podway_agent::cri::CallError;
use podway_agent::node::runtime::{Observation, Probe};
use podway_agent::server::checkpoint::Checkpoints;
use podway_agent::server::exec::Streaming;
use podway_agent::server::pulls::{Progress, Told};
use podway_agent::source::{PodSource, PodView};
use podway_cluster::pki::{Authority, Identity};
use podway_cluster::{Cluster, UpOptions, connect, down, kubeconfig, up};
use podway_cri::runtime_v1::WatchPullsRequest;
use podway_cri::v1;
use podway_flow::pulls::Pulls;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

/// Has `test` look at a control plane of its own in a directory of its own, and takes it down whatever happens.
pub async fn on_control_plane(prefix: &str, test: impl AsyncFnOnce(&Cluster, &Path)) {
    let dir = tempfile::Builder::new().prefix(prefix).tempdir().unwrap();
    let state_dir = dir.path().join("state");
    let options =
        UpOptions { state_dir: state_dir.clone(), control_plane_only: true, ..UpOptions::default() };
    let cluster = up(options, |line| eprintln!("{line}")).await.unwrap();
    let result = AssertUnwindSafe(test(&cluster, dir.path())).catch_unwind().await;
    assert!(down(&state_dir, |line| eprintln!("{line}")).await.unwrap());
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Certificates of node `name` at `ip`, its client, and a configuration with both.
pub async fn node(cluster: &Cluster, name: &str, ip: IpAddr, root: &Path) -> (Client, Config) {
    let layout = &cluster.layout;
    let authority = Authority::open(layout).unwrap();
    authority.issue(&Identity::node(name)).unwrap();
    let serving = format!("{name}-serving");
    authority.issue(&Identity::server(&serving, &format!("system:node:{name}"), &[name], &[ip])).unwrap();
    let file = root.join("kubeconfig");
    kubeconfig::write(layout, &file, name, &cluster.server).unwrap();
    let config = Config {
        node_name: name.to_owned(),
        root_dir: root.to_owned(),
        node_ip: vec![ip],
        port: 0,
        client_ca_file: Some(layout.cert("ca")),
        tls_cert_file: Some(layout.cert(&serving)),
        tls_private_key_file: Some(layout.key(&serving)),
        node_labels: [("example.com/rack".to_owned(), "7".to_owned())].into(),
        ..Config::default()
    };
    (connect::client(&file).await.unwrap(), config)
}

/// A runtime that says what the test wants.
pub struct FakeRuntime(pub Mutex<Observation>);

pub fn observation(network: bool) -> Observation {
    let condition = |kind: &str, status: bool| v1::RuntimeCondition {
        r#type: kind.to_owned(),
        status,
        reason: if status { "" } else { "NetworkPluginNotReady" }.to_owned(),
        message: if status { "" } else { "no conflist" }.to_owned(),
    };
    Observation {
        version: "podway://1.2.3".to_owned(),
        conditions: vec![condition("RuntimeReady", true), condition("NetworkReady", network)],
        handlers: vec![v1::RuntimeHandler::default()],
        features: Some(v1::RuntimeFeatures { supplemental_groups_policy: true, ..Default::default() }),
        images: vec![v1::Image {
            id: "sha256:1".to_owned(),
            repo_tags: vec!["example.com/a:1".to_owned()],
            size: 4096,
            ..Default::default()
        }],
        image_dir: None,
    }
}

#[async_trait]
impl Probe for FakeRuntime {
    async fn observe(&self) -> Result<Observation, tonic::Status> {
        Ok(self.0.lock().unwrap().clone())
    }
}

type Views = BTreeMap<(String, String), watch::Sender<Arc<PodView>>>;

/// Pods that the test sets.
#[derive(Default)]
pub struct FakePods(Mutex<Views>);

impl FakePods {
    pub fn set(&self, view: PodView) {
        let key = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
            (meta.namespace.clone().unwrap(), meta.name.clone().unwrap())
        };
        let key = key(&view.object.metadata);
        let view = Arc::new(view);
        let mut all = self.0.lock().unwrap();
        let sender = all.entry(key).or_insert_with(|| watch::Sender::new(Arc::clone(&view)));
        sender.send_replace(view);
    }
}

impl PodSource for FakePods {
    fn pods(&self) -> Vec<PodView> {
        self.0.lock().unwrap().values().map(|sender| PodView::clone(&sender.borrow())).collect()
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<PodView> {
        self.follow(namespace, name).map(|view| PodView::clone(&view.borrow()))
    }

    fn follow(&self, namespace: &str, name: &str) -> Option<watch::Receiver<Arc<PodView>>> {
        let all = self.0.lock().unwrap();
        all.get(&(namespace.to_owned(), name.to_owned())).map(watch::Sender::subscribe)
    }

    fn probes(&self) -> String {
        "prober_probe_total 1\n".to_owned()
    }

    fn metrics(&self) -> String {
        "# TYPE things counter\nthings_total 3\n# EOF\n".to_owned()
    }
}

/// A runtime's streaming server: WebSocket v5 only, gives back in capitals what it reads.
pub struct FakeStreaming {
    url: String,
    pub asked: Mutex<Vec<v1::ExecRequest>>,
    /// What it tells of its pulls, as the test sends it.
    pub pulls: watch::Sender<Pulls>,
}

impl FakeStreaming {
    pub async fn start() -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/exec/token", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(stream_of(stream));
            }
        });
        Arc::new(FakeStreaming { url, asked: Mutex::default(), pulls: watch::Sender::default() })
    }
}

#[expect(clippy::result_large_err, reason = "the type is tungstenite's")]
async fn stream_of(stream: tokio::net::TcpStream) {
    let choose = |request: &Request, mut response: Response| {
        assert_eq!(request.uri().path(), "/exec/token");
        assert!(request.headers().get("authorization").is_none());
        let offered = request.headers()["sec-websocket-protocol"].to_str().unwrap().to_owned();
        assert!(offered.contains("v5.channel.k8s.io"), "{offered}");
        response.headers_mut().insert("sec-websocket-protocol", "v5.channel.k8s.io".parse().unwrap());
        Ok(response)
    };
    let mut socket = tokio_tungstenite::accept_hdr_async(stream, choose).await.unwrap();
    let channel = |n: u8, bytes: &[u8]| Message::binary([&[n], bytes].concat());
    let mut input = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        match &message.into_data()[..] {
            [0, text @ ..] => input.extend_from_slice(text),
            [255, 0] => break,
            _ => {}
        }
    }
    socket.send(channel(1, &input.to_ascii_uppercase())).await.unwrap();
    socket.send(channel(2, b"a warning\n")).await.unwrap();
    let exit = r#"{"metadata":{},"status":"Failure","message":"exit 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;
    socket.send(channel(3, exit.as_bytes())).await.unwrap();
    let code = tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode::Normal;
    socket.close(Some(CloseFrame { code, reason: "".into() })).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
}

#[async_trait]
impl Streaming for FakeStreaming {
    async fn exec(&self, request: v1::ExecRequest) -> Result<String, tonic::Status> {
        self.asked.lock().unwrap().push(request);
        Ok(self.url.clone())
    }

    async fn attach(&self, _: v1::AttachRequest) -> Result<String, tonic::Status> {
        Err(tonic::Status::failed_precondition("container is not running"))
    }

    async fn port_forward(&self, uid: &str, _: Vec<i32>) -> Result<String, tonic::Status> {
        Err(tonic::Status::not_found(format!("no sandbox of {uid}")))
    }

    async fn run(&self, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse, tonic::Status> {
        let exit_code = i32::from(request.cmd == ["false"]);
        let stdout = format!("{:?}", request.cmd).into_bytes();
        Ok(v1::ExecSyncResponse { stdout, stderr: b" err".to_vec(), exit_code })
    }
}

/// What it cannot do in a second it refuses.
#[async_trait]
impl Checkpoints for FakeStreaming {
    async fn checkpoint(&self, request: v1::CheckpointContainerRequest) -> Result<(), String> {
        if request.timeout == 1 {
            return Err("rpc error: code = Unknown desc = CRIU binary not found".to_owned());
        }
        std::fs::write(&request.location, request.container_id).unwrap();
        Ok(())
    }
}

/// It knows no image `old`, as a runtime that is not podway's knows none.
#[async_trait]
impl Progress for FakeStreaming {
    async fn pulls(&self, request: WatchPullsRequest) -> Result<Told, tonic::Status> {
        if request.image == "old" {
            return Err(tonic::Status::unimplemented("unknown service"));
        }
        let told = tokio_stream::wrappers::WatchStream::new(self.pulls.subscribe());
        Ok(told.take(if request.once { 1 } else { usize::MAX }).map(Ok).boxed())
    }
}

pub fn pod(value: serde_json::Value) -> Pod {
    serde_json::from_value(value).unwrap()
}

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("not in 60 s: {what}"))
}

/// A runtime with one pod, of this UID, and no metrics of its own.
#[derive(Default)]
pub struct FakeUsage(pub Mutex<String>);

#[async_trait::async_trait]
impl podway_agent::stats::look::Source for FakeUsage {
    async fn sandbox_stats(&self) -> Result<Vec<v1::PodSandboxStats>, CallError> {
        let value = |value| Some(v1::UInt64Value { value });
        let now = jiff::Timestamp::now().as_nanosecond() as i64;
        let cpu = Some(v1::CpuUsage {
            timestamp: now,
            usage_core_nano_seconds: value(1_500_000_000),
            ..Default::default()
        });
        let memory =
            Some(v1::MemoryUsage { timestamp: now, working_set_bytes: value(4096), ..Default::default() });
        let container = v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                id: "c-id".into(),
                metadata: Some(v1::ContainerMetadata { name: "c".into(), attempt: 0 }),
                ..Default::default()
            }),
            cpu,
            memory,
            ..Default::default()
        };
        let metadata = v1::PodSandboxMetadata {
            name: "p".into(),
            namespace: "default".into(),
            uid: self.0.lock().unwrap().clone(),
            attempt: 0,
        };
        Ok(vec![v1::PodSandboxStats {
            attributes: Some(v1::PodSandboxAttributes {
                id: "s-id".into(),
                metadata: Some(metadata),
                ..Default::default()
            }),
            linux: Some(v1::LinuxPodSandboxStats {
                cpu,
                memory,
                containers: vec![container],
                ..Default::default()
            }),
            windows: None,
        }])
    }
    async fn sandbox_metrics(
        &self,
    ) -> Result<(Vec<v1::MetricDescriptor>, Vec<v1::PodSandboxMetrics>), CallError> {
        Err(CallError { code: tonic::Code::Unimplemented, message: "not supported".into() })
    }
    async fn image_fs(&self) -> Result<v1::ImageFsInfoResponse, CallError> {
        Ok(v1::ImageFsInfoResponse::default())
    }
    async fn holding(&self) -> Result<(Vec<v1::PodSandbox>, Vec<v1::Container>), CallError> {
        Ok((Vec::new(), Vec::new()))
    }
}
