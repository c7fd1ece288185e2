//! Node objects: ours are deleted with their nodes, another's are not taken over.

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, DeleteParams};

use crate::layout::Layout;

/// Why a Node object is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum RegisteredError {
    /// The existing cluster has a node of that name.
    #[error("the cluster has a node {node} already, which is not of this state directory; delete it first")]
    Exists {
        /// The node.
        node: String,
    },
    /// The API server does not say or do it.
    #[error("cannot {what} the node {node}")]
    Api {
        /// What was tried.
        what: &'static str,
        /// The node.
        node: String,
        /// The cause.
        #[source]
        source: kube::Error,
    },
}

/// Whether a node is of this state directory: one that it has no identity for is somebody else's.
/// Identities are made after [`absent`] has found the name free, and before an agent registers it.
pub(crate) fn ours(layout: &Layout, name: &str) -> bool {
    layout.cert(name).exists()
}

/// Deletes a Node object, whether or not it is there.
pub(crate) async fn delete(client: &Client, name: &str) -> Result<(), RegisteredError> {
    let api: Api<Node> = Api::all(client.clone());
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(source) => Err(RegisteredError::Api { what: "delete", node: name.to_owned(), source }),
    }
}

/// Fails where there is a Node of that name.
pub(crate) async fn absent(client: &Client, name: &str) -> Result<(), RegisteredError> {
    let api: Api<Node> = Api::all(client.clone());
    match api.get_metadata_opt(name).await {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(RegisteredError::Exists { node: name.to_owned() }),
        Err(source) => Err(RegisteredError::Api { what: "look up", node: name.to_owned(), source }),
    }
}
