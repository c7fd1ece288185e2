//! A driver, as the agent calls it: over a connection to its socket that is made with the first call, and again
//! whenever the driver came back. Each call has an end; what it came to is a gRPC status, of the connection's end too.

use crate::pod::actions::chain;
use crate::rpc;
use podway_cri::csi::node_client::NodeClient;
use podway_cri::csi::node_service_capability::rpc::Type;
use podway_cri::csi::node_service_capability::{Rpc, Type as Kind};
use podway_cri::csi::{
    NodeGetCapabilitiesRequest, NodeGetInfoRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
};
use std::collections::BTreeMap;
use std::error::Error as _;
use std::path::Path;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, TimeoutExpired};

/// How long a driver may take for a call (`csiTimeout`).
pub const CALL: Duration = Duration::from_secs(120);

/// A driver's answer that is none, or an error.
#[derive(Debug, thiserror::Error)]
#[error("{}", rpc::said(.0))]
pub struct CallError(pub Status);

impl CallError {
    /// Whether nothing of the call goes on or was done: the volume is as it was before it (`isFinalError`).
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(
            self.0.code(),
            Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Unavailable
                | Code::ResourceExhausted
                | Code::Aborted
        )
    }
}

/// What a driver says of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// What it calls the node.
    pub id: String,
    /// How many of its volumes the node takes; none where it does not say.
    pub limit: Option<i32>,
    /// From where its volumes are reached.
    pub topology: BTreeMap<String, String>,
}

/// What a driver can on a node, as far as it is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// `STAGE_UNSTAGE_VOLUME`.
    pub stage: bool,
    /// `SINGLE_NODE_MULTI_WRITER`.
    pub many_writers: bool,
    /// `VOLUME_MOUNT_GROUP`.
    pub group: bool,
}

/// A driver with a socket.
#[derive(Clone, Debug)]
pub struct Driver {
    client: NodeClient<Channel>,
    limit: Duration,
}

impl Driver {
    /// The driver that serves at `endpoint`, of which each call takes at most `limit`.
    #[must_use]
    pub fn new(endpoint: &Path, limit: Duration) -> Self {
        let channel = podway_cri::client::lazy(endpoint.to_owned());
        Driver { client: NodeClient::new(channel), limit }
    }

    /// `NodeGetInfo`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn info(&self) -> Result<NodeInfo, CallError> {
        let mut client = self.client.clone();
        let said =
            self.timed(NodeGetInfoRequest {}, |r| async move { client.node_get_info(r).await }).await?;
        // Zero is that it does not say, and less than that is nothing that it may say.
        let limit = Some(said.max_volumes_per_node).filter(|limit| *limit > 0);
        Ok(NodeInfo {
            id: said.node_id,
            limit: limit.map(|limit| i32::try_from(limit).unwrap_or(i32::MAX)),
            topology: said.accessible_topology.unwrap_or_default().segments.into_iter().collect(),
        })
    }

    /// `NodeGetCapabilities`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn abilities(&self) -> Result<Abilities, CallError> {
        let (mut client, asked) = (self.client.clone(), NodeGetCapabilitiesRequest {});
        let said = self.timed(asked, |r| async move { client.node_get_capabilities(r).await }).await?;
        let can = |what: Type| {
            let what = Kind::Rpc(Rpc { r#type: what.into() });
            said.capabilities.iter().any(|c| c.r#type.as_ref() == Some(&what))
        };
        Ok(Abilities {
            stage: can(Type::StageUnstageVolume),
            many_writers: can(Type::SingleNodeMultiWriter),
            group: can(Type::VolumeMountGroup),
        })
    }

    /// `NodeStageVolume`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn stage(&self, request: NodeStageVolumeRequest) -> Result<(), CallError> {
        let mut client = self.client.clone();
        self.timed(request, |r| async move { client.node_stage_volume(r).await }).await.map(drop)
    }

    /// `NodePublishVolume`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), CallError> {
        let mut client = self.client.clone();
        self.timed(request, |r| async move { client.node_publish_volume(r).await }).await.map(drop)
    }

    /// `NodeUnpublishVolume`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn unpublish(&self, request: NodeUnpublishVolumeRequest) -> Result<(), CallError> {
        let mut client = self.client.clone();
        self.timed(request, |r| async move { client.node_unpublish_volume(r).await }).await.map(drop)
    }

    /// `NodeUnstageVolume`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn unstage(&self, request: NodeUnstageVolumeRequest) -> Result<(), CallError> {
        let mut client = self.client.clone();
        self.timed(request, |r| async move { client.node_unstage_volume(r).await }).await.map(drop)
    }

    async fn timed<Q, A, F>(&self, request: Q, call: impl FnOnce(Request<Q>) -> F) -> Result<A, CallError>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut request = Request::new(request);
        // The driver is told of the end, too.
        request.set_timeout(self.limit);
        let answer = rpc::timed(self.limit, call(request)).await;
        answer.map_err(|status| CallError(of_connection(status)))
    }
}

/// A status that the driver did not give: the connection broke, or was never made. What the call did is not known.
fn of_connection(status: Status) -> Status {
    let Some(source) = status.source() else { return status };
    // Our own deadline, which the channel keeps as well.
    let mut cause = Some(source);
    while let Some(error) = cause.filter(|error| !error.is::<TimeoutExpired>()) {
        cause = error.source();
    }
    if cause.is_some() {
        return rpc::late();
    }
    Status::unavailable(format!("connection error: {}", chain(source)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_driver_that_is_not_there_is_unavailable_and_one_that_hangs_is_late() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("csi.sock");
        let driver = Driver::new(&socket, Duration::from_millis(300));
        let gone = driver.info().await.unwrap_err();
        assert_eq!(gone.0.code(), Code::Unavailable, "{gone}");
        // It takes connections and says nothing.
        let _hangs = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let late = driver.info().await.unwrap_err();
        assert_eq!(late.0.code(), Code::DeadlineExceeded, "{late}");
        assert!(!gone.is_final() && !late.is_final());
        assert!(CallError(Status::internal("it did not work")).is_final());
    }
}
