//! Why the scheduler ended.

use crate::config::profile::ProfileError;
use crate::debug::SocketError;
use crate::extender::http::SpecError;
use crate::server::ServeError;

/// Why the scheduler ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A watch ended for good.
    #[error("the watch of {0} ended: start the scheduler again")]
    WatchEnded(&'static str),
    /// Health and metrics cannot be served.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Nor the debug socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Another replica leads, or may: what this one knows is no longer to be acted on.
    #[error("the lease of the leader is lost: start the scheduler again")]
    LeaseLost,
    /// A profile of the configuration is not one.
    #[error("the profile {name:?} of the configuration is not valid")]
    Profile {
        /// Whose.
        name: String,
        /// What is wrong.
        #[source]
        source: ProfileError,
    },
    /// An extender of the configuration is not one.
    #[error("the extender {url:?} of the configuration is not valid")]
    Extender {
        /// Where it is.
        url: String,
        /// What is wrong.
        #[source]
        source: SpecError,
    },
    /// The file that the run is recorded to is none.
    #[error("the run cannot be recorded")]
    Record(#[source] std::io::Error),
    /// An extender's answers are not recorded.
    #[error("not supported: a recorded run beside extenders")]
    RecordWithExtenders,
    /// The kernel does not tell who we are.
    #[error("this candidate has no identity")]
    Identity(#[source] std::io::Error),
}
