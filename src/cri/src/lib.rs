//! podway-cri: CRI v1, podway's own service beside it and the APIs of a kubelet's plugins, generated, and the few lines
//! that client and server share: a channel over a unix socket, a private listening socket, and flow records in metadata.

pub mod client;
mod deadline;
pub mod metadata;
mod pulls;
pub mod server;

pub use prost::Message;

/// The largest gRPC message that is sent or read, in bytes (the kubelet's own limit).
pub const MESSAGE_LIMIT: usize = 16 * 1024 * 1024;

/// The generated CRI v1 messages, clients and servers (package `runtime.v1`).
#[allow(missing_docs, clippy::all, clippy::pedantic, rust_2018_idioms)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// What podway's runtime tells besides CRI (package `podway.runtime.v1`): the progress of pulls.
#[allow(missing_docs, clippy::all, clippy::pedantic, rust_2018_idioms)]
pub mod runtime_v1 {
    tonic::include_proto!("podway.runtime.v1");
}

/// The API of device plugins (package `v1beta1` of `k8s.io/kubelet/pkg/apis/deviceplugin`).
#[allow(missing_docs, clippy::all, clippy::pedantic, rust_2018_idioms)]
pub mod deviceplugin {
    tonic::include_proto!("v1beta1");
}

/// How plugins tell of themselves (package `pluginregistration` of `k8s.io/kubelet/pkg/apis/pluginregistration/v1`).
#[allow(missing_docs, clippy::all, clippy::pedantic, rust_2018_idioms)]
pub mod pluginregistration {
    tonic::include_proto!("pluginregistration");
}

/// The node's part of the Container Storage Interface (package `csi.v1`).
#[allow(missing_docs, clippy::all, clippy::pedantic, rust_2018_idioms)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}
