//! The agent and plugins, over the sockets that they have.

use super::*;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use podway_cri::deviceplugin as dp;
use podway_cri::deviceplugin::device_plugin_server::{DevicePlugin, DevicePluginServer};
use podway_cri::deviceplugin::registration_client::RegistrationClient;
use pool::Amount;
use serde_json::json;
use std::collections::HashMap;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::{Request, Response, Status};

const RESOURCE: &str = "example.com/device";
/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// A plugin of [`RESOURCE`].
pub(crate) struct Fake {
    /// What it tells of; taken when it leaves.
    lists: Mutex<Option<watch::Sender<Vec<dp::Device>>>>,
    options: dp::DevicePluginOptions,
    /// What it was asked.
    calls: Mutex<Vec<String>>,
    /// Why it gives nothing.
    refuses: Mutex<Option<Status>>,
    /// What it gives besides.
    also: Mutex<HashMap<String, String>>,
}

fn device(id: &str, works: bool) -> dp::Device {
    let health = if works { "Healthy" } else { "Unhealthy" };
    dp::Device { id: id.to_owned(), health: health.to_owned(), topology: None }
}

impl Fake {
    /// One that serves on `name` in `dir`, and has `devices`.
    pub(crate) fn start(dir: &Path, name: &str, devices: &[(&str, bool)], asks: bool) -> Arc<Self> {
        let devices = devices.iter().map(|(id, works)| device(id, *works)).collect();
        let fake = Arc::new(Fake {
            lists: Mutex::new(Some(watch::Sender::new(devices))),
            options: dp::DevicePluginOptions {
                pre_start_required: asks,
                get_preferred_allocation_available: asks,
            },
            calls: Mutex::default(),
            refuses: Mutex::default(),
            also: Mutex::default(),
        });
        let listener = tokio::net::UnixListener::bind(dir.join(name)).unwrap();
        let service = DevicePluginServer::from_arc(Arc::clone(&fake));
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        fake
    }

    fn tell(&self, devices: &[(&str, bool)]) {
        let devices = devices.iter().map(|(id, works)| device(id, *works)).collect();
        lock(&self.lists).as_ref().unwrap().send_replace(devices);
    }

    fn leave(&self) {
        drop(lock(&self.lists).take());
    }

    fn called(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.calls))
    }
}

#[tonic::async_trait]
impl DevicePlugin for Fake {
    async fn get_device_plugin_options(
        &self,
        _: Request<dp::Empty>,
    ) -> Result<Response<dp::DevicePluginOptions>, Status> {
        Ok(Response::new(self.options))
    }

    type ListAndWatchStream = BoxStream<'static, Result<dp::ListAndWatchResponse, Status>>;

    async fn list_and_watch(
        &self,
        _: Request<dp::Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let lists = lock(&self.lists).as_ref().map(watch::Sender::subscribe);
        let lists = lists.ok_or_else(|| Status::unavailable("it has left"))?;
        let each = WatchStream::new(lists).map(|devices| Ok(dp::ListAndWatchResponse { devices }));
        Ok(Response::new(each.boxed()))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<dp::PreferredAllocationRequest>,
    ) -> Result<Response<dp::PreferredAllocationResponse>, Status> {
        let asked = request.into_inner().container_requests.remove(0);
        let mut all = asked.available_device_i_ds;
        lock(&self.calls).push(format!("prefer {} of {}", asked.allocation_size, all.join(" ")));
        // The last ones, where the first would be taken otherwise.
        all.reverse();
        all.truncate(usize::try_from(asked.allocation_size).unwrap());
        let of = dp::ContainerPreferredAllocationResponse { device_i_ds: all };
        Ok(Response::new(dp::PreferredAllocationResponse { container_responses: vec![of] }))
    }

    async fn allocate(
        &self,
        request: Request<dp::AllocateRequest>,
    ) -> Result<Response<dp::AllocateResponse>, Status> {
        let ids = request.into_inner().container_requests.remove(0).devices_ids;
        lock(&self.calls).push(format!("allocate {}", ids.join(" ")));
        if let Some(status) = lock(&self.refuses).clone() {
            return Err(status);
        }
        let mut envs = lock(&self.also).clone();
        envs.insert("DEVICES".to_owned(), ids.join(","));
        let of = dp::ContainerAllocateResponse {
            envs,
            mounts: vec![dp::Mount {
                container_path: "/plugin".into(),
                host_path: "/tmp".into(),
                read_only: true,
            }],
            devices: vec![dp::DeviceSpec {
                container_path: "/dev/of-plugin".into(),
                host_path: "/dev/null".into(),
                permissions: "rw".into(),
            }],
            annotations: HashMap::from([("example.com/ids".to_owned(), ids.join(","))]),
            cdi_devices: Vec::new(),
        };
        Ok(Response::new(dp::AllocateResponse { container_responses: vec![of] }))
    }

    async fn pre_start_container(
        &self,
        request: Request<dp::PreStartContainerRequest>,
    ) -> Result<Response<dp::PreStartContainerResponse>, Status> {
        lock(&self.calls).push(format!("start with {}", request.into_inner().devices_ids.join(" ")));
        Ok(Response::new(dp::PreStartContainerResponse {}))
    }
}

/// Has plugins register at these devices' socket.
pub(crate) async fn open(devices: &Arc<Devices>) {
    let listener = devices.bind().await.unwrap();
    tokio::spawn(Arc::clone(devices).answer(listener));
}

pub(crate) async fn register(devices: &Devices, endpoint: &str) -> Result<(), Status> {
    register_as(devices, endpoint, RESOURCE, "v1beta1").await
}

async fn register_as(devices: &Devices, endpoint: &str, resource: &str, version: &str) -> Result<(), Status> {
    let socket = devices.dir.join(name::REGISTRY);
    let channel = podway_cri::client::connect(socket.to_str().unwrap()).await.unwrap();
    let request = dp::RegisterRequest {
        version: version.to_owned(),
        endpoint: endpoint.to_owned(),
        resource_name: resource.to_owned(),
        options: None,
    };
    RegistrationClient::new(channel).register(request).await.map(drop)
}

/// Waits until the node has so many of them, and so many that work.
pub(crate) async fn has(devices: &Devices, capacity: usize, allocatable: usize) {
    let mut amounts = devices.amounts();
    let wanted = Amount { capacity, allocatable };
    let seen = amounts.wait_for(|all| all.get(RESOURCE) == Some(&wanted));
    tokio::time::timeout(LIMIT, seen).await.unwrap_or_else(|_| panic!("never {wanted:?}")).unwrap();
}

struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Bench(tempfile::tempdir().unwrap())
    }

    fn dir(&self) -> PathBuf {
        self.0.path().join("plugins")
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("state/devices.json")
    }

    /// An agent's, with a socket.
    async fn devices(&self) -> Arc<Devices> {
        let metrics = Arc::new(Metrics::new("n"));
        // A plugin that left is not waited for here.
        let devices = Devices::with_patience(&self.dir(), &self.file(), metrics, Duration::ZERO);
        open(&devices).await;
        devices
    }
}

/// A pod with containers of these names that want so many each; `init` ones have it in their name.
fn spec(containers: &[(&str, usize)]) -> api::PodSpec {
    let made = |init: bool| -> Vec<serde_json::Value> {
        let of = containers.iter().filter(|(name, _)| name.starts_with("init") == init);
        of.map(|(name, count)| json!({"name": name, "resources": {"limits": {RESOURCE: count.to_string()}}}))
            .collect()
    };
    serde_json::from_value(json!({"initContainers": made(true), "containers": made(false)})).unwrap()
}

async fn devices_of(devices: &Arc<Devices>, uid: &str, spec: &api::PodSpec, at: usize) -> String {
    let gear = devices.gear(uid, &spec.containers[at]).await.unwrap();
    gear.env.iter().find(|(name, _)| name == "DEVICES").unwrap().1.clone()
}

#[tokio::test]
async fn a_pod_has_its_devices_until_it_is_over() {
    let bench = Bench::new();
    let devices = bench.devices().await;
    let two = spec(&[("init-1", 1), ("a", 1), ("b", 1)]);
    assert!(!devices.wanted(&two), "nobody has any");
    let fake = Fake::start(&bench.dir(), "p.sock", &[("1", true), ("2", true), ("3", false)], false);
    register(&devices, "p.sock").await.unwrap();
    has(&devices, 3, 2).await;
    assert!(devices.wanted(&two) && !devices.wanted(&api::PodSpec::default()));

    devices.allocate("u", &two).await.unwrap();
    assert_eq!(fake.called(), ["allocate 1", "allocate 1", "allocate 2"], "init's is used again");
    devices.allocate("u", &two).await.unwrap();
    assert_eq!(fake.called(), [""; 0], "what it has it keeps");
    let gear = devices.gear("u", &two.containers[0]).await.unwrap();
    assert_eq!(gear.env, [("DEVICES".to_owned(), "1".to_owned())]);
    assert_eq!(
        (gear.mounts[0].host_path.as_str(), gear.devices[0].host_path.as_str()),
        ("/tmp", "/dev/null")
    );
    assert_eq!(gear.annotations["example.com/ids"], "1");
    assert_eq!(devices_of(&devices, "u", &two, 1).await, "2");

    let one = spec(&[("a", 1)]);
    let short = devices.allocate("v", &one).await.unwrap_err();
    let says = "requested number of devices unavailable for example.com/device. Requested: 1, Available: 0";
    assert_eq!(short.to_string(), says);
    devices.release("u").await.unwrap();
    devices.allocate("v", &one).await.unwrap();
    assert_eq!((fake.called(), devices.uids()), (vec!["allocate 1".to_owned()], vec!["v".to_owned()]));

    // Health is shown, and changes are told.
    let status = || {
        let mut status: api::PodStatus = serde_json::from_value(json!({"containerStatuses": [{"name": "a",
            "image": "", "imageID": "", "ready": true, "restartCount": 0}]}))
        .unwrap();
        devices.show("v", &mut status);
        serde_json::to_value(&status).unwrap()["containerStatuses"][0]["allocatedResourcesStatus"].clone()
    };
    let shown = |health| json!([{"name": RESOURCE, "resources": [{"resourceID": "1", "health": health}]}]);
    assert_eq!(status(), shown("Healthy"));
    let mut health = devices.health();
    fake.tell(&[("1", false), ("2", true)]);
    health.changed().await.unwrap();
    assert_eq!(status(), shown("Unhealthy"));
}

#[tokio::test]
async fn who_has_which_outlives_the_agent() {
    let bench = Bench::new();
    let one = spec(&[("a", 1)]);
    let devices = bench.devices().await;
    let fake = Fake::start(&bench.dir(), "p.sock", &[("1", true), ("2", true)], false);
    register(&devices, "p.sock").await.unwrap();
    has(&devices, 2, 2).await;
    devices.allocate("u", &one).await.unwrap();
    assert_eq!(fake.called(), ["allocate 1"]);
    let refused = devices.bind().await.unwrap_err();
    assert!(matches!(refused, registry::RegistryError::InUse(_)), "its socket is not taken away: {refused}");

    // Another agent in its place, with a socket of its own; its plugins have not come back yet.
    let other = bench.0.path().join("again");
    let again = Devices::new(&other, &bench.file(), Arc::new(Metrics::new("n")));
    open(&again).await;
    has(&again, 0, 0).await;
    assert_eq!(
        (again.uids(), devices_of(&again, "u", &one, 0).await),
        (vec!["u".to_owned()], "1".to_owned())
    );
    let none = again.allocate("v", &one).await.unwrap_err().to_string();
    assert_eq!(none, "no healthy devices present; cannot allocate unhealthy devices example.com/device");
    let back = Fake::start(&other, "p.sock", &[("1", true), ("2", true)], false);
    register(&again, "p.sock").await.unwrap();
    has(&again, 2, 2).await;
    again.allocate("u", &one).await.unwrap();
    again.allocate("v", &one).await.unwrap();
    assert_eq!(back.called(), ["allocate 2"], "the one that is in use stays so");

    std::fs::write(bench.file(), "{").unwrap();
    let broken = Devices::new(&other, &bench.file(), Arc::new(Metrics::new("n")));
    assert!(broken.uids().is_empty() && broken.amounts().borrow().is_empty(), "what is broken is as none");
}

#[tokio::test]
async fn a_plugin_that_leaves_takes_its_devices_along_and_brings_them_back() {
    let bench = Bench::new();
    let devices = bench.devices().await;
    let fake = Fake::start(&bench.dir(), "p.sock", &[("1", true)], false);
    register(&devices, "p.sock").await.unwrap();
    has(&devices, 1, 1).await;
    let one = spec(&[("a", 1)]);
    devices.allocate("u", &one).await.unwrap();
    fake.leave();
    has(&devices, 0, 0).await;
    assert_eq!(devices_of(&devices, "u", &one, 0).await, "1", "a container starts again with what it has");

    // It comes back, and again in the place of itself; the last one counts.
    let second = Fake::start(&bench.dir(), "q.sock", &[("1", true), ("2", true)], false);
    register(&devices, "q.sock").await.unwrap();
    has(&devices, 2, 2).await;
    let third = Fake::start(&bench.dir(), "r.sock", &[("1", true), ("2", true), ("3", true)], false);
    register(&devices, "r.sock").await.unwrap();
    has(&devices, 3, 3).await;
    second.leave();
    devices.allocate("v", &one).await.unwrap();
    assert_eq!((second.called(), third.called()), (vec![], vec!["allocate 2".to_owned()]));
    has(&devices, 3, 3).await;
}

#[tokio::test]
async fn a_plugin_that_wants_to_be_asked_is() {
    let bench = Bench::new();
    let devices = bench.devices().await;
    let fake = Fake::start(&bench.dir(), "p.sock", &[("1", true), ("2", true), ("3", true)], true);
    register(&devices, "p.sock").await.unwrap();
    has(&devices, 3, 3).await;
    let one = spec(&[("init-1", 1), ("a", 2)]);
    devices.allocate("u", &one).await.unwrap();
    assert_eq!(devices_of(&devices, "u", &one, 0).await, "2,3");
    let wanted = ["prefer 1 of 1 2 3", "allocate 3", "prefer 2 of 1 2 3", "allocate 2 3", "start with 2 3"];
    assert_eq!(fake.called(), wanted);
}

#[tokio::test]
async fn what_a_plugin_says_is_not_taken_on_trust() {
    let bench = Bench::new();
    let devices = bench.devices().await;
    let fake = Fake::start(&bench.dir(), "p.sock", &[("1", true)], false);
    for (endpoint, resource, version, says) in [
        (
            "p.sock",
            RESOURCE,
            "v1",
            "requested API version \"v1\" is not supported by kubelet. Supported version is",
        ),
        ("p.sock", "cpu", "v1beta1", "the ResourceName \"cpu\" is invalid"),
        ("p.sock", "x.kubernetes.io/y", "v1beta1", "the ResourceName \"x.kubernetes.io/y\" is invalid"),
        ("../p.sock", RESOURCE, "v1beta1", "the Endpoint \"../p.sock\" is no name of a socket"),
        ("none.sock", RESOURCE, "v1beta1", "failed to dial device plugin"),
    ] {
        let status = register_as(&devices, endpoint, resource, version).await.unwrap_err();
        assert!(status.message().starts_with(says), "{status}");
    }
    assert!(devices.amounts().borrow().is_empty());

    register(&devices, "p.sock").await.unwrap();
    has(&devices, 1, 1).await;
    let one = spec(&[("a", 1)]);
    *lock(&fake.refuses) = Some(Status::unknown("it is warm"));
    let refused = devices.allocate("u", &one).await.unwrap_err();
    assert_eq!(chain(&refused), "rpc error: code = Unknown desc = it is warm");
    *lock(&fake.refuses) = None;
    lock(&fake.also).insert("A=B".to_owned(), String::new());
    let bad = devices.allocate("u", &one).await.unwrap_err();
    assert_eq!(bad.to_string(), "its answer has a variable called \"A=B\"");
    lock(&fake.also).clear();
    assert!(devices.uids().is_empty(), "what was refused is free");
    devices.allocate("v", &one).await.unwrap();
}
