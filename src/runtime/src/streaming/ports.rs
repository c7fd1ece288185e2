//! Port-forward in the channels of a WebSocket, as clients without SPDY have it: channel 2i carries
//! the bytes of the i-th port of the request, channel 2i+1 its error; each begins with the port
//! (`portforward/websocket.go`). One connection a port, made at once.

use super::channel::Protocol;
use super::forward;
use super::tunnel::Socket;
use crate::ids::Id;
use crate::state::Runtime;
use bytes::{Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

/// The most ports: their channels have one byte, or in base64 one digit.
pub const MOST: usize = 5;
/// Messages that wait for a port, or for the client.
const QUEUE: usize = 8;
const CHUNK: usize = 32 * 1024;

/// Serves a client until it leaves or all ports are done.
pub async fn serve(
    runtime: &Arc<Runtime>,
    sandbox: &Id,
    ports: &[u16],
    protocol: Protocol,
    mut socket: Socket,
    idle: Duration,
) {
    let (out, mut outgoing) = mpsc::channel::<(u8, Bytes)>(QUEUE);
    let mut inputs = Vec::new();
    let mut tasks = JoinSet::new();
    for (port, data) in ports.iter().copied().zip((0u8..).step_by(2)) {
        let (input, incoming) = mpsc::channel(QUEUE);
        inputs.push(input);
        let (runtime, sandbox, out) = (Arc::clone(runtime), sandbox.clone(), out.clone());
        tasks.spawn(async move { one(&runtime, &sandbox, port, data, incoming, &out).await });
    }
    drop(out);
    let mut pending = None;
    loop {
        tokio::select! {
            // Beside the way out: a port that answers before it reads on must not stand in its own way.
            () = deliver(&mut pending), if pending.is_some() => {}
            // Without a sender left all ports are done.
            message = outgoing.recv() => {
                let Some((channel, data)) = message else { break };
                if socket.send(protocol.write(channel, &data)).await.is_err() {
                    return;
                }
            }
            message = tokio::time::timeout(idle, socket.next()), if pending.is_none() => {
                let data = match message {
                    Ok(Some(Ok(Message::Binary(data)))) => data,
                    Ok(Some(Ok(Message::Text(text)))) => text.into(),
                    Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) | Err(_) => return,
                    Ok(Some(Ok(_))) => continue,
                };
                let Some((channel, data)) = protocol.open(&data) else { continue };
                if channel % 2 == 0 && let Some(input) = inputs.get(usize::from(channel / 2)) {
                    pending = Some((input.clone(), data));
                }
            }
        }
    }
    // A client that has left is not told.
    socket.close(None).await.unwrap_or_default();
}

/// Hands a message to its port, when there is room; one that is done takes no more. May be cancelled.
async fn deliver(pending: &mut Option<(mpsc::Sender<Bytes>, Bytes)>) {
    let Some((input, _)) = pending else { return };
    let room = input.clone().reserve_owned().await;
    if let (Ok(room), Some((_, data))) = (room, pending.take()) {
        room.send(data);
    }
}

async fn one(
    runtime: &Runtime,
    sandbox: &Id,
    port: u16,
    channel: u8,
    mut incoming: mpsc::Receiver<Bytes>,
    out: &mpsc::Sender<(u8, Bytes)>,
) {
    let head = Bytes::copy_from_slice(&port.to_le_bytes());
    for number in [channel, channel + 1] {
        if out.send((number, head.clone())).await.is_err() {
            return;
        }
    }
    let outcome = async {
        let mut pod = forward::connect(runtime, sandbox, port).await.map_err(|e| e.chain())?;
        let (mut from_pod, mut to_pod) = pod.split();
        let inward = async {
            while let Some(data) = incoming.recv().await {
                to_pod.write_all(&data).await?;
            }
            to_pod.shutdown().await
        };
        let outward = async {
            loop {
                let mut buffer = BytesMut::with_capacity(CHUNK);
                let read = from_pod.read_buf(&mut buffer).await?;
                if read == 0 || out.send((channel, buffer.freeze())).await.is_err() {
                    return Ok(());
                }
            }
        };
        // These channels have no end: the pod's is the connection's.
        tokio::select! {
            outcome = outward => outcome,
            outcome = inward => outcome,
        }
        .map_err(|e: std::io::Error| e.to_string())
    };
    if let Err(text) = outcome.await {
        let text = format!("error forwarding port {port} to pod {sandbox}, uid : {text}");
        // Nor is one that has left told here.
        drop(out.send((channel + 1, text.into())).await);
    }
}
