//! Many streams over one connection.
//!
//! A task of its own owns the connection until it ends: by the peer, by a broken frame, by nothing
//! having come or gone for the idle limit, or by the session being dropped. Then all streams end.
//! Both ways are bounded: a stream has a queue of [`QUEUE`] pieces and the connection is not read
//! while one is full; the frames that go out share one queue, in which who writes waits.

use crate::codec::{Decoder, Encoder};
use crate::frame::{Frame, SpdyError, Status};
use crate::headers::Headers;
use crate::stream::{Closed, Reader, Stream, Writer};
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::codec::{FramedRead, FramedWrite};
use tokio_util::sync::CancellationToken;

/// Streams at a time that a peer may have open; one more is refused.
pub const MAX_STREAMS: usize = 1024;
/// Pieces (of [`crate::codec::CHUNK`] bytes) that wait for the reader of a stream.
const QUEUE: usize = 4;
/// Frames that wait for the connection.
const OUT: usize = 16;
/// How long what is still to be sent may take when the session is dropped.
const FLUSH: Duration = Duration::from_secs(10);

/// Which side of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The one that was called.
    Server,
    /// The one that calls.
    Client,
}

#[derive(Debug)]
struct Entry {
    /// Where the peer's bytes go; `None` after its end.
    inbound: Option<mpsc::Sender<Bytes>>,
    over: CancellationToken,
    local_end: bool,
    reply: Option<oneshot::Sender<()>>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    role: Role,
    out: mpsc::Sender<Frame>,
    streams: Mutex<HashMap<u32, Entry>>,
    closed: CancellationToken,
    next: tokio::sync::Mutex<u32>,
    since: Instant,
    active_ms: AtomicU64,
}

impl Shared {
    fn streams(&self) -> MutexGuard<'_, HashMap<u32, Entry>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        let now = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.active_ms.store(now, Ordering::Relaxed);
    }

    pub(crate) async fn send(&self, frame: Frame) -> Result<(), Closed> {
        self.out.send(frame).await.map_err(|_| Closed)
    }

    /// For what may be lost: the peer learns by the end of the connection then.
    pub(crate) fn try_send(&self, frame: Frame) {
        drop(self.out.try_send(frame));
    }

    /// Whether the stream was still there.
    pub(crate) fn forget(&self, id: u32) -> bool {
        let entry = self.streams().remove(&id);
        if let Some(entry) = &entry {
            entry.over.cancel();
        }
        entry.is_some()
    }

    pub(crate) fn local_end(&self, id: u32) {
        let mut streams = self.streams();
        if let Some(entry) = streams.get_mut(&id) {
            entry.local_end = true;
            if entry.inbound.is_none() {
                streams.remove(&id);
            }
        }
    }

    fn remote_end(&self, id: u32) {
        let mut streams = self.streams();
        if let Some(entry) = streams.get_mut(&id) {
            entry.inbound = None;
            if entry.local_end {
                streams.remove(&id);
            }
        }
    }

    fn add(self: &Arc<Self>, id: u32, headers: Headers, reply: Option<oneshot::Sender<()>>) -> Stream {
        let (inbound, data) = mpsc::channel(QUEUE);
        let over = self.closed.child_token();
        let entry = Entry { inbound: Some(inbound), over: over.clone(), local_end: false, reply };
        self.streams().insert(id, entry);
        let reader = Reader { data, over: over.clone() };
        Stream { id, headers, reader, writer: Writer { id, shared: Arc::clone(self), over, ended: false } }
    }
}

/// A stream that the peer wants.
#[derive(Debug)]
pub struct Incoming(Stream);

impl Incoming {
    /// What it wants it for.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        &self.0.headers
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.0.id
    }

    /// Takes it.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn accept(self) -> Result<Stream, Closed> {
        let reply = Frame::SynReply { id: self.0.id, fin: false, headers: Headers::default() };
        self.0.writer.shared.send(reply).await?;
        Ok(self.0)
    }

    /// Does not.
    pub async fn refuse(mut self, status: Status) {
        self.0.writer.reset(status).await;
    }
}

/// One connection, as long as this is held.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    incoming: mpsc::Receiver<Incoming>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), SpdyError>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Session {
    /// Takes over a connection on which both sides are about to speak SPDY/3.1. It ends after `idle`
    /// without a frame.
    pub fn start<IO>(io: IO, role: Role, idle: Duration) -> Session
    where
        IO: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (out, frames) = mpsc::channel(OUT);
        let (wanted, incoming) = mpsc::channel(QUEUE);
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            role,
            out,
            streams: Mutex::default(),
            closed: CancellationToken::new(),
            next: tokio::sync::Mutex::new(if role == Role::Client { 1 } else { 2 }),
            since: Instant::now(),
            active_ms: AtomicU64::new(0),
        });
        let (driven, end) = (Arc::clone(&shared), stop.clone());
        let task = tokio::spawn(async move {
            let (read, write) = tokio::io::split(io);
            let result = tokio::select! {
                result = receive(&driven, read, wanted) => result,
                result = transmit(&driven, write, frames, end) => result,
                () = idled(&driven, idle) => Ok(()),
            };
            driven.closed.cancel();
            driven.streams().clear();
            result
        });
        Session { shared, incoming, stop, task }
    }

    /// The next stream that the peer wants; `None` when the connection is over. May be cancelled.
    pub async fn accept(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }

    /// Opens a stream and waits until the peer has taken it.
    ///
    /// # Errors
    /// [`Closed`] if it does not.
    pub async fn open(&self, headers: Headers) -> Result<Stream, Closed> {
        let (reply, replied) = oneshot::channel();
        let stream = {
            // Numbers must rise in the order in which they are sent.
            let mut next = self.shared.next.lock().await;
            let id = *next;
            *next = id.checked_add(2).filter(|n| *n <= 0x7fff_ffff).ok_or(Closed)?;
            let stream = self.shared.add(id, headers.clone(), Some(reply));
            self.shared.send(Frame::SynStream { id, fin: false, headers }).await?;
            stream
        };
        tokio::select! {
            taken = replied => taken.map_err(|_| Closed)?,
            () = self.shared.closed.cancelled() => return Err(Closed),
        }
        Ok(stream)
    }

    /// Something to wait with for the end of the connection.
    #[must_use]
    pub fn closed(&self) -> CancellationToken {
        self.shared.closed.clone()
    }

    /// The good end of a server: lets the peer leave first, for at most `limit`, since a connection
    /// that is closed early may lose what was sent last; then says good-bye.
    ///
    /// # Errors
    /// What the connection ended by, if it was not the peer's wish.
    pub async fn finish(mut self, limit: Duration) -> Result<(), SpdyError> {
        if tokio::time::timeout(limit, self.shared.closed.cancelled()).await.is_err() {
            // The connection may end at this moment: then nobody is left to tell.
            self.shared.send(Frame::GoAway { last: 0, status: 0 }).await.unwrap_or_default();
            self.stop.cancel();
        }
        (&mut self.task).await.map_err(|e| SpdyError::Io(std::io::Error::other(e)))?
    }
}

/// Ends when nothing came or went for `limit`.
async fn idled(shared: &Shared, limit: Duration) {
    loop {
        let last = shared.since + Duration::from_millis(shared.active_ms.load(Ordering::Relaxed));
        let left = limit.saturating_sub(last.elapsed());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left).await;
    }
}

async fn transmit<IO: AsyncRead + AsyncWrite>(
    shared: &Shared,
    io: WriteHalf<IO>,
    mut frames: mpsc::Receiver<Frame>,
    stop: CancellationToken,
) -> Result<(), SpdyError> {
    let mut io = FramedWrite::new(io, Encoder::default());
    let mut stopping = false;
    while !stopping {
        let first = tokio::select! {
            biased;
            frame = frames.recv() => frame,
            () = stop.cancelled() => None,
        };
        stopping = first.is_none();
        let send = async {
            let mut next = first;
            while let Some(frame) = next.take().or_else(|| frames.try_recv().ok()) {
                io.feed(frame).await?;
            }
            io.flush().await
        };
        if stopping {
            tokio::time::timeout(FLUSH, send).await.unwrap_or(Err(SpdyError::Cut))?;
        } else {
            send.await?;
        }
        shared.touch();
    }
    tokio::time::timeout(FLUSH, io.close()).await.unwrap_or(Err(SpdyError::Cut))
}

async fn receive<IO: AsyncRead + AsyncWrite>(
    shared: &Arc<Shared>,
    io: ReadHalf<IO>,
    wanted: mpsc::Sender<Incoming>,
) -> Result<(), SpdyError> {
    let mut io = FramedRead::new(io, Decoder::default());
    let ours = u32::from(shared.role == Role::Client);
    let mut highest = 0;
    while let Some(frame) = io.next().await {
        shared.touch();
        match frame? {
            Frame::SynStream { id, fin, headers } => {
                let refusal = if id % 2 == ours || id <= highest {
                    Some(Status::PROTOCOL_ERROR)
                } else {
                    highest = id;
                    (shared.streams().len() >= MAX_STREAMS).then_some(Status::REFUSED_STREAM)
                };
                match refusal {
                    Some(status) => shared.send(Frame::Reset { id, status }).await.unwrap_or_default(),
                    None => {
                        let stream = shared.add(id, headers, None);
                        if fin {
                            shared.remote_end(id);
                        }
                        // Nobody takes streams any more: the drop of it resets it.
                        drop(wanted.send(Incoming(stream)).await);
                    }
                }
            }
            Frame::SynReply { id, fin, .. } => {
                let reply = shared.streams().get_mut(&id).and_then(|entry| entry.reply.take());
                if let Some(reply) = reply {
                    // Whoever opened it may have given up.
                    reply.send(()).unwrap_or_default();
                }
                if fin {
                    shared.remote_end(id);
                }
            }
            Frame::Data { id, fin, data } => {
                let inbound =
                    shared.streams().get(&id).and_then(|e| Some((e.inbound.clone()?, e.over.clone())));
                if let Some((inbound, over)) = inbound
                    && !data.is_empty()
                {
                    // A reader that is gone, or a stream that ends, takes no more: dropped, as by every peer.
                    tokio::select! {
                        sent = inbound.send(data) => drop(sent),
                        () = over.cancelled() => {}
                    }
                }
                if fin {
                    shared.remote_end(id);
                }
            }
            Frame::Headers { id, fin: true, .. } => shared.remote_end(id),
            Frame::Reset { id, .. } => {
                shared.forget(id);
            }
            Frame::Ping { id } if id % 2 != ours => {
                shared.send(Frame::Ping { id }).await.unwrap_or_default();
            }
            // No more streams come; those that are open go on until the connection ends.
            Frame::GoAway { .. } => {}
            Frame::Ping { .. } | Frame::Settings | Frame::WindowUpdate { .. } | Frame::Headers { .. } => {}
        }
    }
    Ok(())
}
