//! podway-spdy: SPDY/3.1, as far as Kubernetes' streams use it (exec, attach, port-forward).
//!
//! [`codec`] turns bytes into [`frame::Frame`]s and back, [`session`] carries many streams over one
//! connection, either side of it. The peer that counts is `moby/spdystream`: it neither keeps nor
//! announces flow-control windows, so neither do we. What holds a fast writer back is the connection
//! itself: a stream has a bounded queue, and while that is full the connection is not read.
//!
//! Everything that comes from the peer is bounded before it is believed: a control frame by
//! [`codec::MAX_CONTROL`], a header block by what it inflates to, streams by number, and data frames
//! are never held whole.

pub mod codec;
mod dictionary;
pub mod frame;
pub mod headers;
pub mod session;
mod stream;

pub use frame::{Frame, SpdyError, Status};
pub use headers::Headers;
pub use session::{Incoming, Role, Session};
pub use stream::{Closed, Reader, Stream, Writer};
