//! A device plugin on a node: the Node offers its devices, a pod gets one, the next waits for it.

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::DeleteParams;
use podway_cri::deviceplugin as dp;
use podway_cri::deviceplugin::device_plugin_server::{DevicePlugin, DevicePluginServer};
use podway_cri::deviceplugin::registration_client::RegistrationClient;
use podway_tests::namespace::{LIMIT, Ns, STAY, condition, pod};
use podway_tests::wait;
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

const RESOURCE: &str = "example.com/device";

pub async fn of_a_plugin(ns: Ns) -> anyhow::Result<()> {
    let node = ns.cluster.nodes()?.into_iter().next().context("a node")?;
    let dir = ns.cluster.layout.node(&node).join("agent/device-plugins");
    let shared = tempfile::tempdir()?;
    std::fs::write(shared.path().join("hello"), "hello of the plugin\n")?;
    let (leave, left) = oneshot::channel();
    start(&dir, shared.path(), left).await?;
    offers(&ns, &node, "1").await?;

    let wants = json!({"main": {"resources": {"limits": {RESOURCE: "1"}}}});
    let script = format!("test -c /dev/of-plugin && echo $DEVICES && cat /plugin/hello; {STAY}");
    let first: Pod = ns.create(pod("first", &script, wants.clone())).await?;
    let ready = ns.ready("first").await?;
    ns.until_log("first", "main", "hello of the plugin").await?;
    let said = ns.kubectl(&["logs", "first"]).await?;
    ensure!(said.lines().next() == Some("d-1"), "{said}");
    ensure!(ready.spec.and_then(|s| s.node_name).as_deref() == Some(node.as_str()), "it is on another node");
    let statuses = ready.status.and_then(|s| s.container_statuses).unwrap_or_default();
    let devices = statuses.first().and_then(|c| c.allocated_resources_status.as_ref());
    ensure!(devices.is_some_and(|all| all[0].name == RESOURCE), "{devices:?}");

    let _: Pod = ns.create(pod("second", &script, wants)).await?;
    ns.pod("second", "to be told that there is none", |p| {
        let conditions = p.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let mut said = conditions.filter(|c| c.type_ == "PodScheduled").flat_map(|c| &c.message);
        said.any(|message| message.contains("Insufficient example.com/device"))
    })
    .await?;
    ns.api::<Pod>().delete("first", &DeleteParams::default()).await?;
    ns.gone(&first).await?;
    let second = ns.ready("second").await?;
    ensure!(condition(&second, "PodScheduled") == Some("True"));

    drop(leave);
    offers(&ns, &node, "0").await
}

/// Waits until the node offers so many of the plugin's devices.
async fn offers(ns: &Ns, node: &str, count: &str) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(ns.cluster.client.clone());
    let offered = |node: &Node| {
        let all = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
        all.and_then(|all| all.get(RESOURCE)).is_some_and(|quantity| quantity.0 == count)
    };
    let name = format!("metadata.name={node}");
    wait::until(nodes, &name, &format!("{count} devices"), LIMIT, offered).await?;
    Ok(())
}

/// Serves a plugin with one device in `dir` and registers it; it leaves when `left` is told, or dropped.
async fn start(dir: &Path, shared: &Path, left: oneshot::Receiver<()>) -> anyhow::Result<()> {
    const SOCKET: &str = "e2e.sock";
    let listener = tokio::net::UnixListener::bind(dir.join(SOCKET)).context("binding the plugin's socket")?;
    let plugin = Plugin { left: std::sync::Mutex::new(Some(left)), shared: shared.display().to_string() };
    let server = tonic::transport::Server::builder().add_service(DevicePluginServer::new(plugin));
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    let registry = dir.join("kubelet.sock").display().to_string();
    let channel = podway_cri::client::connect(&registry).await?;
    let request = dp::RegisterRequest {
        version: "v1beta1".to_owned(),
        endpoint: SOCKET.to_owned(),
        resource_name: RESOURCE.to_owned(),
        options: None,
    };
    RegistrationClient::new(channel).register(request).await.context("registering")?;
    Ok(())
}

struct Plugin {
    left: std::sync::Mutex<Option<oneshot::Receiver<()>>>,
    shared: String,
}

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    async fn get_device_plugin_options(
        &self,
        _: Request<dp::Empty>,
    ) -> Result<Response<dp::DevicePluginOptions>, Status> {
        Ok(Response::new(dp::DevicePluginOptions::default()))
    }

    type ListAndWatchStream = BoxStream<'static, Result<dp::ListAndWatchResponse, Status>>;

    async fn list_and_watch(
        &self,
        _: Request<dp::Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let device = dp::Device { id: "d-1".to_owned(), health: "Healthy".to_owned(), topology: None };
        let all = futures::stream::iter([Ok(dp::ListAndWatchResponse { devices: vec![device] })]);
        let left = self.left.lock().ok().and_then(|mut left| left.take());
        let left = left.ok_or_else(|| Status::unavailable("it has left"))?;
        // Ends when it leaves.
        let rest = futures::stream::once(left).filter_map(|_| std::future::ready(None));
        Ok(Response::new(all.chain(rest).boxed()))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<dp::PreferredAllocationRequest>,
    ) -> Result<Response<dp::PreferredAllocationResponse>, Status> {
        Err(Status::unimplemented("it has no preference"))
    }

    async fn allocate(
        &self,
        request: Request<dp::AllocateRequest>,
    ) -> Result<Response<dp::AllocateResponse>, Status> {
        let of = |asked: dp::ContainerAllocateRequest| dp::ContainerAllocateResponse {
            envs: HashMap::from([("DEVICES".to_owned(), asked.devices_ids.join(","))]),
            mounts: vec![dp::Mount {
                container_path: "/plugin".to_owned(),
                host_path: self.shared.clone(),
                read_only: true,
            }],
            devices: vec![dp::DeviceSpec {
                container_path: "/dev/of-plugin".to_owned(),
                host_path: "/dev/null".to_owned(),
                permissions: "rw".to_owned(),
            }],
            ..dp::ContainerAllocateResponse::default()
        };
        let container_responses = request.into_inner().container_requests.into_iter().map(of).collect();
        Ok(Response::new(dp::AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        _: Request<dp::PreStartContainerRequest>,
    ) -> Result<Response<dp::PreStartContainerResponse>, Status> {
        Err(Status::unimplemented("it does not want to be asked"))
    }
}
