//! The runtime's process: directories, journal, recovery, then both services on one socket.

use crate::cgroup::Cgroups;
use crate::cgroup::driver::Units;
use crate::cgroup::home::{Home, HomeError};
use crate::config::Config;
use crate::features::Features;
use crate::handlers::{HandlerError, Handlers};
use crate::image::progress::service::PullsServer;
use crate::image::{Digest, ImageServer, ImageStore, Puller};
use crate::journal::private_dir;
use crate::metrics::Metrics;
use crate::rootfs::Layer;
use crate::service::Service;
use crate::state::{Images, Pin, ResolvedImage, Runtime};
use crate::stats::Collector;
use crate::streaming::{self, Streaming};
use crate::{apparmor, podns, recover, spec, telemetry};
use podway_cri::v1::image_service_server::ImageService;
use podway_systemd::Driver;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Why the runtime does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A directory cannot be made.
    #[error("cannot make {0}: run as root, or give another --root or --state")]
    Dir(PathBuf, #[source] io::Error),
    /// An OCI runtime.
    #[error(transparent)]
    Handler(#[from] HandlerError),
    /// The image store.
    #[error("cannot open the image store")]
    Store(#[from] crate::image::store::StoreError),
    /// The monitors' cgroup.
    #[error("no cgroup for the monitors")]
    Home(#[from] HomeError),
    /// systemd is configured and not there.
    #[error("cgroup_driver is \"systemd\"")]
    Systemd(#[source] podway_systemd::ManagerError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
    /// The endpoint.
    #[error(transparent)]
    Endpoint(#[from] podway_cri::client::ConnectError),
    /// An HTTP server.
    #[error("cannot serve [{0}] listen = \"{1}\": give another address")]
    Listen(&'static str, SocketAddr, #[source] io::Error),
    /// The server.
    #[error(transparent)]
    Serve(#[from] podway_cri::server::ServeError),
}

impl Images for ImageStore {
    fn resolve(&self, reference: &str) -> Option<ResolvedImage> {
        let image = ImageStore::resolve(self, reference)?;
        let config = &image.config;
        Some(ResolvedImage {
            id: image.id.to_string(),
            defaults: spec::ImageDefaults {
                entrypoint: config.entrypoint.clone(),
                cmd: config.cmd.clone(),
                env: config.env.clone(),
                user: config.user.clone(),
                working_dir: config.working_dir.clone(),
            },
            stop_signal: config.stop_signal.clone(),
            layers: image.stack.clone(),
        })
    }

    fn pin(&self, layers: &[Layer]) -> Option<Pin> {
        let hex = |l: &Layer| Digest::from_hex(l.dir.file_name()?.to_str()?);
        let digests: Vec<Digest> = layers.iter().map(hex).collect::<Option<_>>()?;
        let store = self.me()?;
        // Pinned first, asked after: what is there now stays.
        let pin = store.pin(&digests);
        digests.iter().all(|d| store.has_layer(*d)).then(|| -> Pin { Box::new(pin) })
    }

    fn collect(&self) -> Result<(), String> {
        ImageStore::collect(self).map_err(|e| crate::image::pull::chain(&e))
    }
}

/// Runs the runtime as configured until `shutdown`.
///
/// # Errors
/// [`RunError`].
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), RunError> {
    private_dir(&config.root).map_err(|e| RunError::Dir(config.root.clone(), e))?;
    let store = ImageStore::open(&config.root)?;
    let puller = Puller::new(Arc::clone(&store), &config.registry, &config.images);
    let pulls = PullsServer::new(Arc::clone(&puller.progress), shutdown.clone());
    let server = ImageServer::new(Arc::clone(&store), puller, podway_flow::Clock::new());
    let server = server.pinning(config.images.pinned.clone());
    let watchers = (Arc::new(Metrics::default()), Arc::new(Collector::new(config.root.clone())));
    let server = server.counted(Arc::clone(&watchers.0)).beside(Arc::clone(&watchers.1));
    serve(config, store, (server, pulls), watchers, shutdown).await
}

/// Serves until `shutdown`. Containers and their monitors live on after it.
///
/// # Errors
/// [`RunError`].
pub async fn serve(
    config: Config,
    images: Arc<dyn Images>,
    (image_service, pulls): (impl ImageService, PullsServer),
    watchers: (Arc<Metrics>, Arc<Collector>),
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let socket = podway_cri::client::socket_path(&config.listen)?;
    for dir in [config.root.clone(), config.state.clone(), config.state.join("m")] {
        private_dir(&dir).map_err(|e| RunError::Dir(dir, e))?;
    }
    let (handlers, user_namespaces, profile) =
        tokio::join!(Handlers::look(&config), podns::probe(&config.monitor.path, &config.root), async {
            if apparmor::enabled() { Some(apparmor::load().await) } else { None }
        });
    let handlers = handlers?;
    let cgroups = Cgroups::at(std::path::Path::new("/sys/fs/cgroup"));
    let units = Units::new(cgroups.version());
    let asked = config.monitor.cgroup.as_deref();
    let home = match config.cgroup_driver {
        Driver::Cgroupfs => Home::make(cgroups.clone(), asked)?,
        Driver::Systemd => {
            let version = units.version().await.map_err(RunError::Systemd)?;
            tracing::info!(version, "systemd makes the cgroups");
            Home::of_units(cgroups.clone(), units.clone(), asked)?
        }
    };
    let mut features =
        Features::look(&cgroups, handlers.get("").is_some_and(|runc| runc.recursive_read_only));
    match user_namespaces {
        Ok(()) => features.user_namespaces = true,
        Err(error) => tracing::info!(%error, "user namespaces are not supported here"),
    }
    match profile {
        Some(Ok(())) => features.apparmor_default = true,
        Some(Err(error)) => {
            tracing::warn!(%error, profile = apparmor::DEFAULT, "a container that names no AppArmor profile has none");
        }
        None => {}
    }
    let runtime =
        Arc::new(Runtime::open(config, images, (cgroups, home, units), (handlers, features), watchers)?);
    recover::recover(&runtime).await;
    let address = runtime.config.streaming.listen;
    let (streaming, streams) =
        Streaming::listen(address).await.map_err(|e| RunError::Listen("streaming", address, e))?;
    let http = streaming::serve(streams, Arc::clone(&runtime), Arc::clone(&streaming), shutdown.clone());
    let http = async { http.await.map_err(|e| RunError::Listen("streaming", address, e)) };
    let told = match runtime.config.metrics.listen {
        Some(at) => {
            let error = move |e| RunError::Listen("metrics", at, e);
            Some((tokio::net::TcpListener::bind(at).await.map_err(error)?, error))
        }
        None => None,
    };
    let (state, end) = (Arc::clone(&runtime), shutdown.clone());
    let told = async move {
        match told {
            Some((listener, error)) => telemetry::serve(listener, state, end).await.map_err(error),
            None => Ok(()),
        }
    };
    let listener = podway_cri::server::listen(&socket)?;
    let home = runtime.home.clone();
    let service = Service::new(runtime, streaming, shutdown.clone());
    let grpc = podway_cri::server::serve(listener, service, image_service, pulls, shutdown.cancelled_owned());
    let grpc = async { grpc.await.map_err(RunError::from) };
    tokio::try_join!(grpc, http, told)?;
    if let Err(error) = home.leave() {
        tracing::info!(%error, "the monitors' cgroup stays");
    }
    Ok(())
}
