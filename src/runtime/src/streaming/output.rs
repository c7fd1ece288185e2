//! The output of a process, as it comes: straight from its pipe, where the client holds the process
//! back, or through a queue, where it must not.

use bytes::{Bytes, BytesMut};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::mpsc;

/// The most that is read at once.
const CHUNK: usize = 32 * 1024;
/// The most that waits for a slow client in a queue, in bytes.
const QUEUED: usize = 8 << 20;

/// Where it comes from.
#[derive(Debug)]
pub enum Output {
    /// A pipe, read as the client takes it.
    Pipe(Receiver),
    /// A pipe that is read at once; it ends early when the client takes too little.
    Queue(mpsc::UnboundedReceiver<Bytes>, Arc<AtomicUsize>),
}

impl Output {
    /// A pipe that is read at once, into a queue that is bounded in bytes.
    #[must_use]
    pub fn queue(pipe: Receiver) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let mut output = Output::Pipe(pipe);
        let waiting = Arc::clone(&queued);
        tokio::spawn(async move {
            while let Some(data) = output.read().await {
                let before = waiting.fetch_add(data.len(), Ordering::Relaxed);
                if before + data.len() > QUEUED || sender.send(data).is_err() {
                    return;
                }
            }
        });
        Output::Queue(receiver, queued)
    }

    /// The next bytes; `None` at the end. May be cancelled.
    pub async fn read(&mut self) -> Option<Bytes> {
        match self {
            Output::Pipe(pipe) => {
                let mut buffer = BytesMut::with_capacity(CHUNK);
                // A terminal that its last process has closed reads as EIO.
                let read = pipe.read_buf(&mut buffer).await.unwrap_or(0);
                (read > 0).then(|| buffer.freeze())
            }
            Output::Queue(queue, queued) => {
                let data = queue.recv().await?;
                queued.fetch_sub(data.len(), Ordering::Relaxed);
                Some(data)
            }
        }
    }

    /// What an ended process has left in its pipe, straight from the kernel: the reactor may not know
    /// yet that there is something. A child that keeps the pipe open is not waited for.
    pub fn rest(&self) -> Option<Bytes> {
        let Output::Pipe(pipe) = self else { return None };
        let mut buffer = vec![0; CHUNK];
        let read = loop {
            match rustix::io::read(pipe, &mut buffer).map_err(io::Error::from) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other.unwrap_or(0),
            }
        };
        buffer.truncate(read);
        (read > 0).then(|| buffer.into())
    }
}
