//! One stream of a session: its bytes in, its bytes out, each with an end of its own.

use crate::frame::{Frame, Status};
use crate::headers::Headers;
use crate::session::Shared;
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The stream was reset, or the connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream is closed")]
pub struct Closed;

/// A stream that both sides agreed on.
#[derive(Debug)]
pub struct Stream {
    /// Its number.
    pub id: u32,
    /// What it was opened with.
    pub headers: Headers,
    /// What the peer sends.
    pub reader: Reader,
    /// What we send.
    pub writer: Writer,
}

/// The bytes that the peer sends on a stream.
#[derive(Debug)]
pub struct Reader {
    pub(crate) data: mpsc::Receiver<Bytes>,
    pub(crate) over: CancellationToken,
}

impl Reader {
    /// The next bytes; `None` when the peer has ended the stream, reset it, or is gone. May be
    /// cancelled: nothing is lost.
    pub async fn recv(&mut self) -> Option<Bytes> {
        self.data.recv().await
    }

    /// Whether it ended otherwise than by the peer's end of it.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.over.is_cancelled()
    }
}

/// The bytes that we send on a stream. One that is dropped before its end resets the stream.
#[derive(Debug)]
pub struct Writer {
    pub(crate) id: u32,
    pub(crate) shared: Arc<Shared>,
    pub(crate) over: CancellationToken,
    pub(crate) ended: bool,
}

impl Writer {
    /// Sends bytes, waiting while the connection takes no more.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn write(&self, data: Bytes) -> Result<(), Closed> {
        if self.ended || self.over.is_cancelled() {
            return Err(Closed);
        }
        // Not cut off by a reset while it waits: the frame would be the only one that is lost.
        self.shared.send(Frame::Data { id: self.id, fin: false, data }).await
    }

    /// Ends our side; what was written comes before it.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn finish(&mut self) -> Result<(), Closed> {
        if self.over.is_cancelled() || std::mem::replace(&mut self.ended, true) {
            return Err(Closed);
        }
        let sent = self.shared.send(Frame::Data { id: self.id, fin: true, data: Bytes::new() }).await;
        self.shared.local_end(self.id);
        sent
    }

    /// Ends both sides at once.
    pub async fn reset(&mut self, status: Status) {
        if !self.over.is_cancelled() && self.shared.forget(self.id) {
            self.ended = true;
            // The connection may be over meanwhile: that ends the stream as well.
            self.shared.send(Frame::Reset { id: self.id, status }).await.unwrap_or_default();
        }
    }

    /// Resolves when the stream was reset, by either side, or the connection is over.
    pub async fn closed(&self) {
        self.over.cancelled().await;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.ended && self.shared.forget(self.id) {
            self.shared.try_send(Frame::Reset { id: self.id, status: Status::CANCEL });
        }
    }
}
