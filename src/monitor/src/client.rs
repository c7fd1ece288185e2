//! A blocking client. From an async program use it in `spawn_blocking`, or wait for
//! [`Client::as_fd`](std::os::fd::AsFd::as_fd) to be readable and call [`Client::try_recv`].
//!
//! `send` and `recv` take `&self`: one thread may send while another receives.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Seek as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::protocol::{
    DecodeError, ErrorCode, Event, MAX_CAPTURE, MAX_MESSAGE, Message, Reply, Request, VERSION,
};

/// Why the monitor could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket failed.
    #[error("monitor socket failed")]
    Socket(#[source] io::Error),
    /// The monitor has closed the connection: it has ended.
    #[error("monitor closed the connection")]
    Closed,
    /// What came is not of this protocol.
    #[error("monitor message could not be read")]
    Decode(#[source] DecodeError),
    /// The monitor refused the request, or could not do it.
    #[error("monitor answered {code:?}: {message}")]
    Refused {
        /// The kind.
        code: ErrorCode,
        /// The monitor's line.
        message: String,
    },
}

/// A message and the descriptors that came with it.
#[derive(Debug)]
pub struct Received {
    /// The message.
    pub message: Message,
    /// The descriptors ([`Reply::Fd`] has one).
    pub fds: Vec<OwnedFd>,
}

/// A connection to one pod's monitor.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    next: AtomicU64,
    events: VecDeque<Event>,
    monitor_pid: u32,
}

impl Client {
    /// Connects and says hello. A socket that nobody listens on is `ConnectionRefused`.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(sys)?;
        let address = SocketAddrUnix::new(path).map_err(sys)?;
        rustix::net::connect(&socket, &address).map_err(sys)?;
        let mut client = Client { socket, next: AtomicU64::new(1), events: VecDeque::new(), monitor_pid: 0 };
        if let Reply::Hello { pid, .. } = client.call(&Request::Hello { version: VERSION })? {
            client.monitor_pid = pid;
        }
        Ok(client)
    }

    /// The monitor's pid, as it told in its hello.
    pub fn monitor_pid(&self) -> u32 {
        self.monitor_pid
    }

    /// Sends a request; gives the id that its reply will have.
    pub fn send(&self, request: &Request) -> Result<u64, ClientError> {
        self.send_with_fds(request, &[])
    }

    /// Sends a request with descriptors ([`Request::ExecIo`]: stdin, stdout, stderr).
    pub fn send_with_fds(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<u64, ClientError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let packet = request.encode(id).map_err(ClientError::Decode)?;
        send_packet(self.socket.as_fd(), &packet, fds, SendFlags::NOSIGNAL).map_err(sys)?;
        Ok(id)
    }

    /// Waits for the next message.
    pub fn recv(&self) -> Result<Received, ClientError> {
        match self.receive(RecvFlags::empty())? {
            Some(received) => Ok(received),
            None => Err(ClientError::Socket(io::ErrorKind::WouldBlock.into())),
        }
    }

    /// The next message if one is there.
    pub fn try_recv(&self) -> Result<Option<Received>, ClientError> {
        self.receive(RecvFlags::DONTWAIT)
    }

    /// Sends a request and waits for its reply; events that come first are kept for
    /// [`Client::take_event`]. [`Reply::Error`] becomes [`ClientError::Refused`].
    pub fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.call_with_fds(request, &[]).map(|(reply, _)| reply)
    }

    /// As [`Client::call`], with descriptors both ways.
    pub fn call_with_fds(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        let wanted = self.send_with_fds(request, fds)?;
        loop {
            let received = self.recv()?;
            match received.message {
                Message::Reply { id, reply: Reply::Error { code, message } } if id == wanted => {
                    return Err(ClientError::Refused { code, message });
                }
                Message::Reply { id, reply } if id == wanted => return Ok((reply, received.fds)),
                // A reply to a request that was sent without `call` and not waited for.
                Message::Reply { .. } => {}
                Message::Event(event) => self.events.push_back(event),
            }
        }
    }

    /// The oldest event that came while a call waited.
    pub fn take_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn receive(&self, flags: RecvFlags) -> Result<Option<Received>, ClientError> {
        let mut buffer = vec![0; MAX_MESSAGE];
        let (length, mut fds) = match recv_packet(self.socket.as_fd(), &mut buffer, flags) {
            Ok(got) => got,
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(rustix::io::Errno::CONNRESET) => return Err(ClientError::Closed),
            Err(errno) => return Err(sys(errno)),
        };
        if length == 0 {
            return Err(ClientError::Closed);
        }
        let mut message = Message::decode(&buffer[..length]).map_err(ClientError::Decode)?;
        if let Message::Reply { reply, .. } = &mut message
            && let Reply::ExecDoneInFds { exit_code, timed_out } = *reply
        {
            let mut outputs = fds.drain(..).map(read_output);
            let stdout = outputs.next().transpose().map_err(ClientError::Socket)?;
            let stderr = outputs.next().transpose().map_err(ClientError::Socket)?;
            *reply = Reply::ExecDone {
                exit_code,
                timed_out,
                stdout: stdout.unwrap_or_default(),
                stderr: stderr.unwrap_or_default(),
            };
        }
        Ok(Some(Received { message, fds }))
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn sys(errno: rustix::io::Errno) -> ClientError {
    ClientError::Socket(errno.into())
}

fn read_output(fd: OwnedFd) -> io::Result<Vec<u8>> {
    let mut file = File::from(fd);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(u64::from(MAX_CAPTURE)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Sends one packet with at most three descriptors.
pub fn send_packet(
    socket: BorrowedFd<'_>,
    packet: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(rustix::io::Errno::INVAL);
    }
    rustix::io::retry_on_intr(|| rustix::net::sendmsg(socket, &[IoSlice::new(packet)], &mut control, flags))?;
    Ok(())
}

/// Receives one packet and its descriptors (close-on-exec); length 0 is the end.
pub fn recv_packet(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> rustix::io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            flags | RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            fds.extend(sent);
        }
    }
    Ok((got.bytes, fds))
}
