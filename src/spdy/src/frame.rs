//! The frames of SPDY/3.1 and what may be wrong with one. Pure.

use crate::headers::Headers;
use bytes::Bytes;

/// Why a stream is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u32);

impl Status {
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: Status = Status(1);
    /// No such stream.
    pub const INVALID_STREAM: Status = Status(2);
    /// The stream is not taken, and nothing was done for it.
    pub const REFUSED_STREAM: Status = Status(3);
    /// Whoever asked for it wants it no more.
    pub const CANCEL: Status = Status(5);
    /// Something of ours failed.
    pub const INTERNAL_ERROR: Status = Status(6);
}

/// One frame. A data frame may come in several pieces of which the last has its `fin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The sender opens a stream.
    SynStream {
        /// The stream: odd from a client, even from a server.
        id: u32,
        /// The sender sends nothing on it.
        fin: bool,
        /// Who it is for.
        headers: Headers,
    },
    /// The stream is accepted.
    SynReply {
        /// The stream.
        id: u32,
        /// The sender sends nothing on it.
        fin: bool,
        /// Nothing, with Kubernetes.
        headers: Headers,
    },
    /// The stream is over, both ways.
    Reset {
        /// The stream.
        id: u32,
        /// Why.
        status: Status,
    },
    /// Settings: read, checked, and of no use to us.
    Settings,
    /// Asks for itself.
    Ping {
        /// Odd from a client, even from a server.
        id: u32,
    },
    /// The sender takes no more streams and is about to leave.
    GoAway {
        /// The last stream that it took.
        last: u32,
        /// 0 for a good end.
        status: u32,
    },
    /// More headers of a stream: nothing in Kubernetes' protocols.
    Headers {
        /// The stream.
        id: u32,
        /// The sender sends no more on it.
        fin: bool,
        /// What they are.
        headers: Headers,
    },
    /// A window, which nobody keeps here.
    WindowUpdate {
        /// The stream, or 0 for the connection.
        id: u32,
        /// By how much.
        delta: u32,
    },
    /// Bytes.
    Data {
        /// The stream.
        id: u32,
        /// The sender sends no more on it.
        fin: bool,
        /// They.
        data: Bytes,
    },
}

/// What came is not SPDY/3.1, or more than is taken. The connection cannot go on: header blocks are
/// one compressed stream, and what is skipped is missing from it.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    /// Another version in a control frame.
    #[error("a control frame has version {0}, not 3")]
    Version(u16),
    /// A control frame that does not exist.
    #[error("a control frame has the unknown type {0}")]
    Type(u16),
    /// A control frame over [`crate::codec::MAX_CONTROL`].
    #[error("a control frame of {0} bytes is too large")]
    TooLarge(usize),
    /// A control frame whose length is not that of its type, or with a field out of range.
    #[error("a control frame of type {0} is malformed")]
    Malformed(u16),
    /// A header block that cannot be inflated.
    #[error("a header block cannot be inflated")]
    Inflate,
    /// A header block that is too large or has too many headers.
    #[error("a header block is too large")]
    HeadersTooLarge,
    /// A header block that lies about its lengths, or has a bad name or value.
    #[error("a header block is malformed")]
    Headers,
    /// A frame that cannot be encoded.
    #[error("a header block cannot be deflated")]
    Deflate,
    /// The connection ended inside a frame.
    #[error("the connection ended inside a frame")]
    Cut,
    /// The connection.
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
}
