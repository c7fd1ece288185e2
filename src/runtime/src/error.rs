//! What an operation on a sandbox or a container can fail with, and its gRPC status.

use crate::container::checkpoint::criu;
use crate::supervisor::SupervisorError;
use podway_flow::{Record, Recorder};
use podway_monitor::{ClientError, ErrorCode};
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
    /// It took longer than was given.
    #[error("{0}")]
    Deadline(String),
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
    /// runc refused, in its words.
    #[error("{0}")]
    Runc(String),
    /// There is no criu to make a checkpoint with.
    #[error("CRIU binary not found or too old (<{least}). Failed to checkpoint container {0:?}", least = criu::LEAST)]
    Criu(String, #[source] criu::CriuError),
    /// The monitors' cgroup.
    #[error(transparent)]
    Home(#[from] crate::cgroup::home::HomeError),
    /// systemd.
    #[error(transparent)]
    Systemd(#[from] podway_systemd::ManagerError),
    /// The monitor.
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
    /// A container whose monitor is gone.
    #[error(transparent)]
    Orphan(#[from] crate::orphan::OrphanError),
    /// The blocking thread ended early.
    #[error("a worker thread ended early")]
    Worker(#[source] tokio::task::JoinError),
}

impl OpError {
    /// Why the monitor did not have `runc <verb>` done: what runc said counts, not who passed it on.
    #[must_use]
    pub fn of_runc(verb: &str, error: SupervisorError) -> Self {
        match error {
            SupervisorError::Client(ClientError::Refused { code: ErrorCode::Runc, message }) => {
                OpError::Runc(format!("OCI runtime {verb} failed: {message}"))
            }
            other => other.into(),
        }
    }

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

    fn code(&self) -> tonic::Code {
        match self {
            OpError::Spec(crate::spec::SpecError::NotSupported(_)) => tonic::Code::Unimplemented,
            OpError::Invalid(_) | OpError::Spec(_) => tonic::Code::InvalidArgument,
            OpError::NotFound(..) => tonic::Code::NotFound,
            OpError::Precondition(_) => tonic::Code::FailedPrecondition,
            OpError::Deadline(_) => tonic::Code::DeadlineExceeded,
            _ => tonic::Code::Unknown,
        }
    }
}

impl From<OpError> for tonic::Status {
    fn from(error: OpError) -> Self {
        tonic::Status::new(error.code(), error.chain())
    }
}

/// A failed call as its callers get it: it may be told to several, with what was recorded.
#[derive(Clone, Debug)]
pub struct Failure {
    code: tonic::Code,
    message: String,
    /// What was recorded up to the failure, the failed phase included.
    pub records: Vec<Record>,
}

impl Failure {
    /// An error with what `recorder` holds.
    #[must_use]
    pub fn new(error: &OpError, recorder: &Recorder) -> Self {
        Failure { code: error.code(), message: error.chain(), records: recorder.take() }
    }

    /// The name is taken by something that cannot be returned.
    #[must_use]
    pub fn exists(message: String) -> Self {
        Failure { code: tonic::Code::AlreadyExists, message, records: Vec::new() }
    }

    /// A defect of ours.
    #[must_use]
    pub fn internal(message: &str) -> Self {
        Failure { code: tonic::Code::Internal, message: message.to_owned(), records: Vec::new() }
    }
}

impl From<Failure> for tonic::Status {
    fn from(failure: Failure) -> Self {
        let mut status = tonic::Status::new(failure.code, failure.message);
        podway_cri::metadata::attach_to_error(&mut status, &failure.records);
        status
    }
}

/// Runs what blocks (mounts, files, the journal) away from the async threads.
///
/// # Errors
/// What `work` fails with, or [`OpError::Worker`].
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, OpError> + Send + 'static,
) -> Result<T, OpError> {
    tokio::task::spawn_blocking(work).await.map_err(OpError::Worker)?
}
