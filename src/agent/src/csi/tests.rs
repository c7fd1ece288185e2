//! A driver that serves on a socket and says what it was asked, and a cluster that says what it was told.

use super::*;
use async_trait::async_trait;
use node::PublishError;
use podway_cri::csi as pb;
use podway_cri::csi::node_server::{Node, NodeServer};
use podway_cri::pluginregistration as reg;
use podway_cri::pluginregistration::registration_server::{Registration, RegistrationServer};
use std::collections::HashMap;
use tokio::task::AbortHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

pub(crate) const DRIVER: &str = "csi.example.com";
/// The end of each call to a driver here.
pub(crate) const LIMIT: Duration = Duration::from_millis(500);
/// Longer than anything here takes.
const WAIT: Duration = Duration::from_secs(30);

/// What the cluster was told.
#[derive(Default)]
pub(crate) struct Cluster {
    told: watch::Sender<Vec<String>>,
    /// That it cannot be told.
    pub(crate) away: Mutex<bool>,
}

impl Cluster {
    /// Waits until this is the last that it was told.
    pub(crate) async fn until(&self, last: &str) {
        let mut told = self.told.subscribe();
        let heard = told.wait_for(|all| all.last().is_some_and(|line| line == last));
        drop(tokio::time::timeout(WAIT, heard).await.expect(last));
    }
}

#[async_trait]
impl Publish for Cluster {
    async fn install(&self, driver: &DriverName, info: &driver::NodeInfo) -> Result<(), PublishError> {
        if *self.away.lock().unwrap() {
            return Err(PublishError::Late("CSINode"));
        }
        self.told.send_modify(|all| all.push(format!("install {driver} {}", info.id)));
        Ok(())
    }
    async fn keep(&self, drivers: &BTreeSet<DriverName>) -> Result<(), PublishError> {
        let names: Vec<_> = drivers.iter().map(DriverName::as_str).collect();
        self.told.send_modify(|all| all.push(format!("keep {}", names.join(" "))));
        Ok(())
    }
}

/// A driver, as far as what it does is scripted.
#[derive(Default)]
pub(crate) struct Fake {
    /// What it was asked.
    pub(crate) calls: Mutex<Vec<String>>,
    /// What it can.
    pub(crate) can: Mutex<Vec<pb::node_service_capability::rpc::Type>>,
    /// By call: why it refuses.
    pub(crate) refuses: Mutex<HashMap<&'static str, Status>>,
    /// By call: that it never answers.
    pub(crate) hangs: Mutex<BTreeSet<&'static str>>,
    /// That what it unpublishes stays.
    pub(crate) keeps: std::sync::atomic::AtomicBool,
    /// What it was given last.
    pub(crate) staged: Mutex<Option<pb::NodeStageVolumeRequest>>,
    pub(crate) published: Mutex<Option<pb::NodePublishVolumeRequest>>,
    /// What it says who it is.
    info: Mutex<reg::PluginInfo>,
    /// What it was told of its registration.
    statuses: watch::Sender<Vec<String>>,
}

impl Fake {
    /// One that serves at `csi.sock` of `dir`.
    pub(crate) fn serve(dir: &Path) -> (Arc<Self>, PathBuf, AbortHandle) {
        let (fake, endpoint) = (Arc::new(Fake::default()), dir.join("csi.sock"));
        let task = fake.clone().again(&endpoint);
        (fake, endpoint, task)
    }

    /// Serves at `endpoint`, in the place of whoever did before.
    pub(crate) fn again(self: Arc<Self>, endpoint: &Path) -> AbortHandle {
        let _before = std::fs::remove_file(endpoint);
        let listener = tokio::net::UnixListener::bind(endpoint).unwrap();
        let server = tonic::transport::Server::builder().add_service(NodeServer::from_arc(self));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener))).abort_handle()
    }

    /// Shows a socket in the registry that says this.
    pub(crate) fn show(self: &Arc<Self>, socket: &Path, info: reg::PluginInfo) -> AbortHandle {
        *self.info.lock().unwrap() = info;
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let service = RegistrationServer::from_arc(Arc::clone(self));
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener))).abort_handle()
    }

    /// What it says of itself.
    pub(crate) fn says(endpoint: &Path) -> reg::PluginInfo {
        reg::PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: DRIVER.to_owned(),
            endpoint: endpoint.display().to_string(),
            supported_versions: vec!["1.0.0".to_owned()],
        }
    }

    /// Waits until it was told something that has these words.
    pub(crate) async fn heard(&self, words: &str) -> String {
        let mut statuses = self.statuses.subscribe();
        let said = statuses.wait_for(|all| all.iter().any(|line| line.contains(words)));
        let said = tokio::time::timeout(WAIT, said).await.expect(words).unwrap();
        said.iter().find(|line| line.contains(words)).unwrap().clone()
    }

    pub(crate) fn called(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    async fn call(&self, name: &'static str, volume: &str) -> Result<(), Status> {
        self.calls.lock().unwrap().push(format!("{name} {volume}").trim_end().to_owned());
        if self.hangs.lock().unwrap().contains(name) {
            std::future::pending::<()>().await;
        }
        let refused = self.refuses.lock().unwrap().get(name).cloned();
        refused.map_or(Ok(()), Err)
    }
}

#[tonic::async_trait]
impl Registration for Fake {
    async fn get_info(&self, _: Request<reg::InfoRequest>) -> Result<Response<reg::PluginInfo>, Status> {
        self.call("who", "").await?;
        Ok(Response::new(self.info.lock().unwrap().clone()))
    }
    async fn notify_registration_status(
        &self,
        request: Request<reg::RegistrationStatus>,
    ) -> Result<Response<reg::RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        let line = if status.plugin_registered { "taken".to_owned() } else { status.error };
        self.statuses.send_modify(|all| all.push(line));
        Ok(Response::new(reg::RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl Node for Fake {
    async fn node_stage_volume(
        &self,
        request: Request<pb::NodeStageVolumeRequest>,
    ) -> Result<Response<pb::NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        self.call("stage", &request.volume_id).await?;
        *self.staged.lock().unwrap() = Some(request);
        Ok(Response::new(pb::NodeStageVolumeResponse {}))
    }
    async fn node_unstage_volume(
        &self,
        request: Request<pb::NodeUnstageVolumeRequest>,
    ) -> Result<Response<pb::NodeUnstageVolumeResponse>, Status> {
        self.call("unstage", &request.into_inner().volume_id).await?;
        Ok(Response::new(pb::NodeUnstageVolumeResponse {}))
    }
    async fn node_publish_volume(
        &self,
        request: Request<pb::NodePublishVolumeRequest>,
    ) -> Result<Response<pb::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        self.call("publish", &request.volume_id).await?;
        // A directory in a mount's place.
        std::fs::create_dir_all(&request.target_path)?;
        *self.published.lock().unwrap() = Some(request);
        Ok(Response::new(pb::NodePublishVolumeResponse {}))
    }
    async fn node_unpublish_volume(
        &self,
        request: Request<pb::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<pb::NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        self.call("unpublish", &request.volume_id).await?;
        let keeps = self.keeps.load(std::sync::atomic::Ordering::Relaxed);
        if !keeps && Path::new(&request.target_path).exists() {
            std::fs::remove_dir_all(&request.target_path)?;
        }
        Ok(Response::new(pb::NodeUnpublishVolumeResponse {}))
    }
    async fn node_get_capabilities(
        &self,
        _: Request<pb::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<pb::NodeGetCapabilitiesResponse>, Status> {
        let of = |what: &pb::node_service_capability::rpc::Type| {
            let rpc = pb::node_service_capability::Rpc { r#type: (*what).into() };
            pb::NodeServiceCapability { r#type: Some(pb::node_service_capability::Type::Rpc(rpc)) }
        };
        let capabilities = self.can.lock().unwrap().iter().map(of).collect();
        Ok(Response::new(pb::NodeGetCapabilitiesResponse { capabilities }))
    }
    async fn node_get_info(
        &self,
        _: Request<pb::NodeGetInfoRequest>,
    ) -> Result<Response<pb::NodeGetInfoResponse>, Status> {
        self.call("info", "").await?;
        let answer = pb::NodeGetInfoResponse { node_id: "id-1".to_owned(), ..Default::default() };
        Ok(Response::new(answer))
    }
}

fn offer(socket: &str, endpoint: &Path, versions: &[&str]) -> Offer {
    Offer {
        socket: PathBuf::from(socket),
        name: DRIVER.to_owned(),
        endpoint: endpoint.to_owned(),
        versions: versions.iter().map(|v| (*v).to_owned()).collect(),
    }
}

#[tokio::test]
async fn of_one_name_one_driver_is_registered() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, endpoint, _task) = Fake::serve(dir.path());
    let cluster = Arc::new(Cluster::default());
    let drivers = Drivers::with_limit(cluster.clone(), LIMIT);
    let name = DriverName::parse(DRIVER).unwrap();
    let first = offer("/r/a", &endpoint, &["1.0.0"]);
    drivers.register(&first).await.unwrap();
    let second = offer("/r/b", &endpoint, &["1.0.0"]);
    let taken = drivers.register(&second).await.unwrap_err().to_string();
    assert!(taken.contains("Another driver with the same name is already registered"), "{taken}");
    // An update brings a higher version; the old one leaves after it, and takes nothing along.
    drivers.register(&offer("/r/b", &endpoint, &["1.1.0"])).await.unwrap();
    drivers.deregister(&first).await;
    assert!(drivers.find(&name).await.is_some());
    assert_eq!(fake.called(), ["info", "info"]);
    cluster.until("install csi.example.com id-1").await;
    drivers.deregister(&second).await;
    cluster.until("keep ").await;
    drivers.settle().await;
    assert!(drivers.find(&name).await.is_none());
}

#[tokio::test]
async fn a_driver_of_which_the_cluster_cannot_be_told_is_not_registered() {
    let dir = tempfile::tempdir().unwrap();
    let (_fake, endpoint, _task) = Fake::serve(dir.path());
    let cluster = Arc::new(Cluster::default());
    *cluster.away.lock().unwrap() = true;
    let drivers = Drivers::with_limit(cluster.clone(), LIMIT);
    drivers.settle().await;
    let error = drivers.register(&offer("/r/a", &endpoint, &["1.0.0"])).await.unwrap_err();
    assert!(matches!(error, OfferError::Publish(_)), "{error}");
    assert!(drivers.find(&DriverName::parse(DRIVER).unwrap()).await.is_none());
}
