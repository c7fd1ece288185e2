//! Port-forward: each connection of the client is a pair of streams, one for its bytes and one for an
//! error, and a connection to a port inside the pod's network namespace.
//!
//! The namespace is entered by a thread that makes a socket there and ends: a socket belongs to the
//! namespace that it was made in, and connects from anywhere. No process of the pod is needed.

use crate::error::OpError;
use crate::ids::Id;
use crate::state::{Life, Runtime};
use bytes::{Bytes, BytesMut};
use nix::sched::{CloneFlags, setns};
use podway_spdy::{Headers, Incoming, Session, Status, Stream};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// How long the second stream of a pair may take (`DefaultStreamCreationTimeout`).
const PAIRING: Duration = Duration::from_secs(30);
/// How long a connection to the pod may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the client may go on when the pod has ended its side.
const PARTING: Duration = Duration::from_secs(10);
const CHUNK: usize = 32 * 1024;

/// Connects to a port of a sandbox, as its own processes would by `localhost`: IPv4, then IPv6.
///
/// # Errors
/// [`OpError`].
pub async fn connect(runtime: &Runtime, sandbox: &Id, port: u16) -> Result<TcpStream, OpError> {
    let entry = runtime.known_sandbox(sandbox)?;
    if entry.life != Life::Ready {
        return Err(OpError::Precondition(format!("sandbox {sandbox} is not running")));
    }
    let netns = (!entry.host_network).then(|| runtime.namespaces(sandbox).join("net"));
    let dial = async {
        let mut first = None;
        for address in
            [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))]
        {
            let tried = match socket(netns.clone(), &address).await {
                Ok(socket) => socket.connect(address).await,
                Err(error) => Err(error),
            };
            match tried {
                Ok(stream) => return Ok(stream),
                Err(error) => drop(first.get_or_insert(error)),
            }
        }
        Err(first.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
    };
    let late = |_| OpError::Deadline(format!("connecting to localhost:{port} inside the pod takes too long"));
    let dialled = tokio::time::timeout(CONNECT, dial).await.map_err(late)?;
    dialled.map_err(|e| OpError::Io("connect to localhost inside the pod's network namespace", e))
}

async fn socket(netns: Option<PathBuf>, address: &SocketAddr) -> io::Result<TcpSocket> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = match netns {
        None => make(family)?,
        Some(path) => {
            let (send, receive) = oneshot::channel();
            // Never a thread of a pool: it stays in the namespace until it ends.
            std::thread::Builder::new().name("forward".to_owned()).stack_size(64 * 1024).spawn(
                move || {
                    // The caller is gone only if its client is.
                    drop(send.send(inside(&path, family)));
                },
            )?;
            receive.await.map_err(|_| io::Error::other("the namespace thread ended early"))??
        }
    };
    Ok(TcpSocket::from_std_stream(fd.into()))
}

fn inside(netns: &Path, family: AddressFamily) -> io::Result<OwnedFd> {
    setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
    make(family)
}

fn make(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}

/// What a stream of a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

/// A stream's kind, port and pair (`portforward/httpstream.go`, `httpStreamReceived`, `requestID`).
fn parse(id: u32, headers: &Headers) -> Option<(Kind, u16, String)> {
    let port = headers.get("port")?.parse().ok().filter(|port| *port > 0)?;
    let kind = match headers.get("streamtype")? {
        "data" => Kind::Data,
        "error" => Kind::Error,
        _ => return None,
    };
    let pair = match (headers.get("requestid"), kind) {
        (Some(given), _) if !given.is_empty() => given.to_owned(),
        // Old clients give none, and open the error stream first.
        (_, Kind::Error) => id.to_string(),
        (_, Kind::Data) => id.saturating_sub(2).to_string(),
    };
    Some((kind, port, pair))
}

/// Serves a client until it leaves; its connections end with it.
pub async fn serve(runtime: &Arc<Runtime>, sandbox: &Id, mut session: Session) {
    let mut tasks = JoinSet::new();
    let mut halves: HashMap<String, oneshot::Sender<(Kind, Stream)>> = HashMap::new();
    loop {
        let incoming = tokio::select! {
            incoming = session.accept() => incoming,
            Some(_) = tasks.join_next() => continue,
        };
        let Some(incoming) = incoming else { return };
        halves.retain(|_, half| !half.is_closed());
        let Some((kind, port, pair)) = parse(incoming.id(), incoming.headers()) else {
            incoming.refuse(Status::REFUSED_STREAM).await;
            continue;
        };
        let Ok(stream) = Incoming::accept(incoming).await else { return };
        match halves.remove(&pair) {
            // One that is late resets its stream by dropping it.
            Some(other) => drop(other.send((kind, stream))),
            None => {
                let (send, other) = oneshot::channel();
                halves.insert(pair, send);
                let (runtime, sandbox) = (Arc::clone(runtime), sandbox.clone());
                tasks.spawn(async move { paired(&runtime, &sandbox, port, (kind, stream), other).await });
            }
        }
    }
}

/// Waits for the other stream of a pair, then forwards.
async fn paired(
    runtime: &Runtime,
    sandbox: &Id,
    port: u16,
    (kind, mut stream): (Kind, Stream),
    other: oneshot::Receiver<(Kind, Stream)>,
) {
    match (kind, tokio::time::timeout(PAIRING, other).await) {
        (Kind::Data, Ok(Ok((Kind::Error, error)))) => forward(runtime, sandbox, port, stream, error).await,
        (Kind::Error, Ok(Ok((Kind::Data, data)))) => forward(runtime, sandbox, port, data, stream).await,
        (Kind::Error, outcome) => {
            let text = if outcome.is_err() {
                "timed out waiting for streams"
            } else {
                "error stream already assigned"
            };
            tell(stream, text).await;
        }
        (Kind::Data, _) => stream.writer.reset(Status::CANCEL).await,
    }
}

async fn tell(mut error: Stream, text: &str) {
    // A client that has left is not told.
    if error.writer.write(Bytes::copy_from_slice(text.as_bytes())).await.is_ok() {
        error.writer.finish().await.unwrap_or_default();
    }
}

async fn forward(runtime: &Runtime, sandbox: &Id, port: u16, mut data: Stream, mut error: Stream) {
    let outcome = match connect(runtime, sandbox, port).await {
        Ok(pod) => copy(pod, &mut data).await.map_err(|e| e.to_string()),
        Err(error) => Err(error.chain()),
    };
    match outcome {
        Ok(()) => error.writer.finish().await.unwrap_or_default(),
        Err(text) => {
            tell(error, &format!("error forwarding port {port} to pod {sandbox}, uid : {text}")).await;
            data.writer.reset(Status::CANCEL).await;
        }
    }
}

/// Both directions, each to its own end.
async fn copy(pod: TcpStream, data: &mut Stream) -> io::Result<()> {
    let (mut from_pod, mut to_pod) = pod.into_split();
    let Stream { reader, writer, .. } = data;
    let inward = async {
        while let Some(bytes) = reader.recv().await {
            to_pod.write_all(&bytes).await?;
        }
        // A reset is no end that the pod may take for one.
        if reader.is_broken() { Err(io::ErrorKind::ConnectionReset.into()) } else { to_pod.shutdown().await }
    };
    let outward = async {
        loop {
            let mut buffer = BytesMut::with_capacity(CHUNK);
            if from_pod.read_buf(&mut buffer).await? == 0 {
                break;
            }
            writer.write(buffer.freeze()).await.map_err(io::Error::other)?;
        }
        // The client has left: nobody waits for an end.
        writer.finish().await.unwrap_or_default();
        Ok(())
    };
    tokio::pin!(inward, outward);
    tokio::select! {
        outcome = &mut outward => {
            outcome?;
            match tokio::time::timeout(PARTING, inward).await {
                // The pod has closed: what the client still sends has nobody to go to.
                Ok(_) | Err(_) => Ok(()),
            }
        }
        outcome = &mut inward => match outcome {
            Ok(()) => outward.await,
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            // The pod reads no more; what it has written is still the client's.
            Err(_) => outward.await,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_paired_by_what_their_headers_say() {
        let parse = |id, pairs: &[(&str, &str)]| super::parse(id, &pairs.iter().copied().collect());
        let given = [("streamType", "data"), ("port", "80"), ("requestID", "7")];
        assert_eq!(parse(5, &given), Some((Kind::Data, 80, "7".to_owned())));
        assert_eq!(
            parse(5, &[("streamType", "error"), ("port", "80")]),
            Some((Kind::Error, 80, "5".to_owned()))
        );
        assert_eq!(
            parse(7, &[("streamType", "data"), ("port", "80")]),
            Some((Kind::Data, 80, "5".to_owned()))
        );
        for bad in [
            &[("streamType", "data")][..],
            &[("port", "80")],
            &[("streamType", "data"), ("port", "0")],
            &[("streamType", "data"), ("port", "65536")],
            &[("streamType", "stdin"), ("port", "80")],
        ] {
            assert_eq!(parse(1, bad), None, "{bad:?}");
        }
    }
}
