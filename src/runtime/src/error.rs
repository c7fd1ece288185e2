//! What an operation on a sandbox or a container can fail with, and its gRPC status.

use std::error::Error as _;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// Not a valid request.
    #[error("{0}")]
    Invalid(String),
    /// No such thing.
    #[error("{0} {1:?} not found")]
    NotFound(&'static str, String),
    /// It is not in the state that the call needs.
    #[error("{0}")]
    Precondition(String),
    /// The kernel refused.
    #[error("cannot {0}")]
    Io(&'static str, #[source] std::io::Error),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
    /// Namespaces.
    #[error(transparent)]
    Namespace(#[from] crate::netns::NamespaceError),
    /// The network.
    #[error(transparent)]
    Cni(#[from] crate::cni::CniError),
    /// The root filesystem.
    #[error(transparent)]
    Rootfs(#[from] crate::rootfs::RootfsError),
    /// config.json.
    #[error(transparent)]
    Spec(#[from] crate::spec::SpecError),
    /// The monitor, and runc behind it.
    #[error(transparent)]
    Supervisor(#[from] crate::supervisor::SupervisorError),
}

impl OpError {
    /// The error with its sources, on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}

impl From<OpError> for tonic::Status {
    fn from(error: OpError) -> Self {
        let message = error.chain();
        match error {
            OpError::Invalid(_) | OpError::Spec(_) => tonic::Status::invalid_argument(message),
            OpError::NotFound(..) => tonic::Status::not_found(message),
            OpError::Precondition(_) => tonic::Status::failed_precondition(message),
            _ => tonic::Status::unknown(message),
        }
    }
}
