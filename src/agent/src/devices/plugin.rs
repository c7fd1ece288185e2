//! A plugin, as the agent calls it: over one connection to its socket, which is never made again. A plugin that went
//! away registers anew.

use super::answer::{Answer, BadAnswer};
use super::name::Socket;
use super::pool::Choice;
use crate::rpc;
use hyper_util::rt::TokioIo;
use podway_cri::deviceplugin::device_plugin_client::DevicePluginClient;
use podway_cri::deviceplugin::{
    AllocateRequest, ContainerAllocateRequest, ContainerPreferredAllocationRequest, DevicePluginOptions,
    Empty, ListAndWatchResponse, PreStartContainerRequest, PreferredAllocationRequest,
};
use rustix::fs::{FileType, Mode, OFlags};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Status, Streaming};

/// How long a connection and the first question may take (`dial` of plugin/v1beta1/client.go).
const CONNECT: Duration = Duration::from_secs(10);
/// How long a choice or an allocation may take. A kubelet waits for ever; the pods after this one wait with it.
const ALLOCATE: Duration = Duration::from_secs(60);
/// `KubeletPreStartContainerRPCTimeoutInSecs`.
const PRE_START: Duration = Duration::from_secs(30);

/// Why a plugin is of no use.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// Its socket is none.
    #[error("failed to dial device plugin: {0:?} in the directory of the plugins is not to be connected to")]
    Socket(String, #[source] io::Error),
    /// Nobody speaks on it.
    #[error("failed to dial device plugin")]
    Transport(#[from] tonic::transport::Error),
    /// It refused.
    #[error("{0}{said}", said = rpc::said(.1))]
    Refused(&'static str, Status),
    /// It did not answer.
    #[error("{0}no answer in {limit} s", limit = .1.as_secs())]
    Late(&'static str, Duration),
    /// It answered nothing.
    #[error("no containers return in allocation response")]
    Nothing,
    /// It answered what cannot be.
    #[error(transparent)]
    Bad(#[from] BadAnswer),
}

/// A plugin that is connected.
#[derive(Clone, Debug)]
pub struct Plugin {
    client: DevicePluginClient<Channel>,
    options: DevicePluginOptions,
}

impl Plugin {
    /// Connects to `socket` in the directory `dir`, and asks what the plugin wants to be asked.
    ///
    /// # Errors
    /// [`PluginError`].
    pub async fn connect(dir: &Path, socket: &Socket) -> Result<Self, PluginError> {
        const WHAT: &str = "failed to get device plugin options: ";
        let connected = async {
            let at = |error| PluginError::Socket(socket.as_str().to_owned(), error);
            let mut stream = Some(open(&dir.join(socket.as_str())).await.map_err(at)?);
            let connector = tower::service_fn(move |_: Uri| {
                let stream = stream.take().map(TokioIo::new);
                let ended = || io::Error::new(io::ErrorKind::NotConnected, "the connection has ended");
                std::future::ready(stream.ok_or_else(ended))
            });
            // The URI only names the HTTP/2 authority.
            let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
            let mut client = DevicePluginClient::new(channel);
            let options = client.get_device_plugin_options(Empty {}).await;
            let options = options.map_err(|status| PluginError::Refused(WHAT, status))?.into_inner();
            Ok::<_, PluginError>(Plugin { client, options })
        };
        tokio::time::timeout(CONNECT, connected).await.unwrap_or(Err(PluginError::Late(WHAT, CONNECT)))
    }

    /// Its devices, now and whenever something of them changes.
    ///
    /// # Errors
    /// [`PluginError::Refused`].
    pub async fn list(&mut self) -> Result<Streaming<ListAndWatchResponse>, PluginError> {
        let stream = self.client.list_and_watch(Empty {}).await;
        Ok(stream.map_err(|status| PluginError::Refused("", status))?.into_inner())
    }

    /// Which of these it would take, if it wants to be asked.
    ///
    /// # Errors
    /// [`PluginError`].
    pub async fn preferred(&mut self, choice: &Choice) -> Result<BTreeSet<String>, PluginError> {
        const WHAT: &str = "device plugin GetPreferredAllocation rpc failed with err: ";
        if !self.options.get_preferred_allocation_available || choice.needed == 0 {
            return Ok(BTreeSet::new());
        }
        let size = choice.taken.len() + choice.needed;
        let asked = ContainerPreferredAllocationRequest {
            available_device_i_ds: choice.free.union(&choice.taken).cloned().collect(),
            must_include_device_i_ds: choice.taken.iter().cloned().collect(),
            allocation_size: i32::try_from(size).unwrap_or(i32::MAX),
        };
        let request = PreferredAllocationRequest { container_requests: vec![asked] };
        let answer = timed(WHAT, ALLOCATE, self.client.get_preferred_allocation(request)).await?;
        let first = answer.container_responses.into_iter().next();
        Ok(first.map(|of| of.device_i_ds.into_iter().collect()).unwrap_or_default())
    }

    /// Has the plugin make these devices ready for a container.
    ///
    /// # Errors
    /// [`PluginError`].
    pub async fn allocate(&mut self, devices: &BTreeSet<String>) -> Result<Answer, PluginError> {
        let devices_ids = devices.iter().cloned().collect();
        let request = AllocateRequest { container_requests: vec![ContainerAllocateRequest { devices_ids }] };
        let answer = timed("", ALLOCATE, self.client.allocate(request)).await?;
        let first = answer.container_responses.into_iter().next().ok_or(PluginError::Nothing)?;
        Ok(Answer::parse(first)?)
    }

    /// Tells it that a container with these devices is about to start, if it wants to know.
    ///
    /// # Errors
    /// [`PluginError`].
    pub async fn pre_start(&mut self, devices: &BTreeSet<String>) -> Result<(), PluginError> {
        const WHAT: &str = "device plugin PreStartContainer rpc failed with err: ";
        if self.options.pre_start_required {
            let request = PreStartContainerRequest { devices_ids: devices.iter().cloned().collect() };
            timed(WHAT, PRE_START, self.client.pre_start_container(request)).await?;
        }
        Ok(())
    }
}

async fn timed<T>(
    what: &'static str,
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, PluginError> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(PluginError::Refused(what, status)),
        Err(_) => Err(PluginError::Late(what, limit)),
    }
}

/// Connects to the socket itself: a link to somebody else's, the runtime's for one, is not followed.
async fn open(path: &Path) -> io::Result<UnixStream> {
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if !FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode).is_socket() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no socket"));
    }
    UnixStream::connect(format!("/proc/self/fd/{}", found.as_raw_fd())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_call() {
        const WHAT: &str = "device plugin PreStartContainer rpc failed with err: ";
        let refused = PluginError::Refused(WHAT, Status::unknown("no")).to_string();
        assert!(refused.ends_with("err: rpc error: code = Unknown desc = no"), "{refused}");
        let late = PluginError::Late(WHAT, PRE_START);
        assert!(late.to_string().ends_with("err: no answer in 30 s"), "{late}");
    }

    #[tokio::test]
    async fn only_a_socket_of_the_directory_is_connected_to() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let somebody = other.path().join("s.sock");
        let _listens = tokio::net::UnixListener::bind(&somebody).unwrap();
        std::os::unix::fs::symlink(&somebody, dir.path().join("link.sock")).unwrap();
        std::fs::write(dir.path().join("file.sock"), "").unwrap();
        for name in ["link.sock", "file.sock", "none.sock"] {
            let error = Plugin::connect(dir.path(), &Socket::parse(name).unwrap()).await.unwrap_err();
            assert!(matches!(&error, PluginError::Socket(which, _) if which == name), "{error}");
        }
    }
}
