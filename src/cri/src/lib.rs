//! podway-cri: CRI v1, generated.

/// The generated CRI v1 messages, clients and servers (package `runtime.v1`).
#[allow(missing_docs, clippy::all, clippy::pedantic, rust_2018_idioms)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}
