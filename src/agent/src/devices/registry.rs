//! Where plugins register: a socket in their directory, called as a kubelet's. A plugin that sees it made anew
//! registers again, so that an agent that comes back finds its plugins.

use super::Devices;
use super::name::{REGISTRY, Resource, Socket};
use super::plugin::Plugin;
use crate::pod::actions::chain;
use crate::sync::lock;
use podway_cri::deviceplugin::registration_server::{Registration, RegistrationServer};
use podway_cri::deviceplugin::{Empty, RegisterRequest};
use podway_cri::server::{ServeError, listen};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// The only version there is.
const VERSION: &str = "v1beta1";
/// The most resources of a node: a label of metrics, and of the Node.
const MOST: usize = 64;

/// Why no plugin can register.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The directory cannot be made ready.
    #[error("cannot make the directory ready")]
    Dir(#[from] io::Error),
    /// Its plugins are somebody else's, a kubelet's for one.
    #[error("{} is served by another process", .0.display())]
    InUse(PathBuf),
    /// The socket.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The server ended.
    #[error("the gRPC server ended")]
    Transport(#[from] tonic::transport::Error),
}

impl Devices {
    /// Lets plugins register, until it is dropped. Where they cannot, the node goes on without.
    pub async fn serve(self: Arc<Self>) {
        let dir = self.dir.clone();
        let served = match self.bind().await {
            Ok(listener) => self.answer(listener).await,
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            let error = chain(&error);
            tracing::error!(error, dir = %dir.display(), "device plugins cannot register: give another --device-plugin-dir");
        }
        std::future::pending().await
    }

    /// Makes the socket, in a directory without those of plugins that were here before.
    pub(crate) async fn bind(&self) -> Result<UnixListener, RegistryError> {
        std::fs::DirBuilder::new().recursive(true).mode(0o750).create(&self.dir)?;
        let socket = self.dir.join(REGISTRY);
        if tokio::net::UnixStream::connect(&socket).await.is_ok() {
            return Err(RegistryError::InUse(socket));
        }
        clear(&self.dir)?;
        let listener = listen(&socket)?;
        tracing::info!(socket = %socket.display(), "device plugins may register");
        Ok(listener)
    }

    /// Answers those who register.
    pub(crate) async fn answer(self: Arc<Self>, listener: UnixListener) -> Result<(), RegistryError> {
        let server = tonic::transport::Server::builder().add_service(RegistrationServer::new(Registry(self)));
        Ok(server.serve_with_incoming(UnixListenerStream::new(listener)).await?)
    }
}

/// Removes the sockets of plugins that were here before (`CleanupPluginDirectory`), and nothing else.
fn clear(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_socket() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

struct Registry(Arc<Devices>);

#[tonic::async_trait]
impl Registration for Registry {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let RegisterRequest { version, endpoint, resource_name, .. } = request.into_inner();
        let shown = |text: &str| podway_flow::record::bounded(text, 253);
        let refused = |why: String| {
            tracing::warn!(resource = shown(&resource_name), why, "a device plugin is not taken");
            Status::unknown(why)
        };
        if version != VERSION {
            let version = shown(&version);
            return Err(refused(format!(
                "requested API version {version:?} is not supported by kubelet. Supported version is {VERSION:?}"
            )));
        }
        let resource = Resource::parse(&resource_name)
            .ok_or_else(|| refused(format!("the ResourceName {:?} is invalid", shown(&resource_name))))?;
        let socket = Socket::parse(&endpoint)
            .ok_or_else(|| refused(format!("the Endpoint {:?} is no name of a socket", shown(&endpoint))))?;
        let (known, plugins) = {
            let plugins = lock(&self.0.plugins);
            (plugins.contains_key(&resource), plugins.len())
        };
        if !known && plugins.max(lock(&self.0.pool).known()) >= MOST {
            return Err(refused(format!("the node has {MOST} resources of device plugins already")));
        }
        self.0.metrics.device_plugin_registered(resource.as_str());
        let plugin = Plugin::connect(&self.0.dir, &socket).await.map_err(|e| refused(chain(&e)))?;
        tracing::info!(%resource, socket = socket.as_str(), "a device plugin has registered");
        self.0.connected(resource, plugin);
        Ok(Response::new(Empty {}))
    }
}
