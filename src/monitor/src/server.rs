//! The loop: one epoll over the listener, the clients, SIGCHLD and the output pipes.
//!
//! It sleeps without a timeout unless an exec has a deadline. What the messages do is in [`pod`].

mod pod;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signalfd::{SfdFlags, SignalFd};
use podway_monitor::client::{recv_packet, send_packet};
use podway_monitor::protocol::{ErrorCode, Event, MAX_MESSAGE, Message, Reply, Request, VERSION};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use rustix::process::{WaitOptions, wait};

use crate::log::Stream;
use crate::process::{Ended, child_mask, now_ns};
use pod::Pod;

const LISTENER: u64 = 0;
const SIGNALS: u64 = 1;
/// Connections at a time; the runtime needs one.
const MAX_CLIENTS: usize = 32;
/// Messages waiting for one client; a client that reads no more is disconnected.
const MAX_QUEUE: usize = 1024;

/// Who asked, and under which id.
#[derive(Clone, Copy, Debug)]
struct Asker {
    client: u64,
    request: u64,
}

struct Connection {
    socket: OwnedFd,
    greeted: bool,
    queue: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

/// Whose output a pipe carries.
#[derive(Clone)]
enum Sink {
    Container(String, Stream),
    Exec(String, Stream),
    /// To a client that is attached to this container.
    Tap(String),
}

struct Pipe {
    fd: OwnedFd,
    sink: Sink,
}

/// The kernel's side of the loop, apart from the pod so that both can be borrowed.
struct Wires {
    epoll: OwnedFd,
    next: u64,
    clients: BTreeMap<u64, Connection>,
    pipes: BTreeMap<u64, Pipe>,
}

/// The monitor's whole state.
pub(crate) struct Monitor {
    wires: Wires,
    listener: OwnedFd,
    signals: SignalFd,
    socket_path: PathBuf,
    pod: Pod,
    quit: bool,
}

impl Monitor {
    pub(crate) fn new(listener: OwnedFd, socket_path: PathBuf, state_dir: PathBuf) -> io::Result<Monitor> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let signals = SignalFd::with_flags(&child_mask(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        rustix::io::ioctl_fionbio(&listener, true)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        epoll::add(&epoll, &signals, EventData::new_u64(SIGNALS), EventFlags::IN)?;
        let wires = Wires { epoll, next: 2, clients: BTreeMap::new(), pipes: BTreeMap::new() };
        Ok(Monitor { wires, listener, signals, socket_path, pod: Pod::new(state_dir), quit: false })
    }

    /// Runs until a Shutdown is granted.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(32);
        while !self.quit {
            let timeout = self.pod.next_deadline().map(|at| {
                let left = at.saturating_duration_since(Instant::now());
                (left + Duration::from_millis(1)).try_into().unwrap_or_default()
            });
            events.clear();
            match epoll::wait(
                &self.wires.epoll,
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            for event in &events {
                let flags = event.flags;
                self.ready(event.data.u64(), flags)?;
            }
            let now = Instant::now();
            self.pod.expire(now);
            self.pod.expire_taps(&mut self.wires, now);
            while self.pod.take_reap_due() {
                self.reap()?;
            }
        }
        // The socket's name goes first: who finds it must be answered.
        match std::fs::remove_file(&self.socket_path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn ready(&mut self, token: u64, flags: EventFlags) -> io::Result<()> {
        match token {
            LISTENER => self.accept(),
            SIGNALS => {
                while self.signals.read_signal()?.is_some() {}
                self.reap()
            }
            token if self.wires.pipes.contains_key(&token) => {
                match self.wires.pipes.get(&token).map(|pipe| pipe.sink.clone()) {
                    Some(Sink::Tap(id)) => self.pod.tap_ready(&mut self.wires, &id, token, flags),
                    Some(sink) if self.pod.is_held(&sink) => {}
                    _ => self.wires.read_pipe(&mut self.pod, token, 4),
                }
                Ok(())
            }
            token => {
                if flags.contains(EventFlags::OUT) {
                    self.wires.flush(token);
                }
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    self.receive(token);
                }
                Ok(())
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(&self.listener, flags) {
            Ok(socket) if self.wires.clients.len() < MAX_CLIENTS => {
                let token = self.wires.watch(&socket)?;
                let connection = Connection { socket, greeted: false, queue: VecDeque::new() };
                self.wires.clients.insert(token, connection);
            }
            Ok(_) => eprintln!("connection refused: {MAX_CLIENTS} clients are connected"),
            // The client went away, or descriptors ran out: the others must go on.
            Err(rustix::io::Errno::AGAIN) => {}
            Err(e) => eprintln!("accept failed: {e}"),
        }
        Ok(())
    }

    fn receive(&mut self, token: u64) {
        let mut buffer = vec![0; MAX_MESSAGE];
        while let Some(connection) = self.wires.clients.get_mut(&token) {
            let socket = connection.socket.as_fd();
            let (length, fds) = match recv_packet(socket, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return self.wires.hang_up(token),
                Ok(got) => got,
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => return self.wires.hang_up(token),
            };
            let (id, request) = match Request::decode(&buffer[..length]) {
                Ok(decoded) => decoded,
                Err(e) => {
                    let reply = refused(ErrorCode::Invalid, &e.to_string());
                    self.wires.reply(Asker { client: token, request: 0 }, reply, vec![]);
                    return self.wires.hang_up(token);
                }
            };
            let asker = Asker { client: token, request: id };
            match request {
                Request::Hello { version: VERSION } => {
                    connection.greeted = true;
                    let hello = Reply::Hello { version: VERSION, pid: std::process::id() };
                    self.wires.reply(asker, hello, vec![]);
                }
                _ if !connection.greeted => {
                    let text = format!("monitor speaks version {VERSION} and wants a hello first");
                    self.wires.reply(asker, refused(ErrorCode::Version, &text), vec![]);
                }
                Request::Hello { version } => {
                    let text = format!("monitor speaks version {VERSION}, not {version}");
                    self.wires.reply(asker, refused(ErrorCode::Version, &text), vec![]);
                }
                Request::Shutdown => {
                    let reply = match self.pod.busy() {
                        None => {
                            self.quit = true;
                            Reply::Ok
                        }
                        Some(who) => refused(ErrorCode::Busy, &who),
                    };
                    self.wires.reply(asker, reply, vec![]);
                }
                other => {
                    if let Some((reply, fds)) = self.pod.handle(&mut self.wires, asker, other, fds) {
                        self.wires.reply(asker, reply, fds);
                    }
                }
            }
        }
    }

    /// Reaps all that have ended: runc, inits, execs, and orphans that became our children.
    fn reap(&mut self) -> io::Result<()> {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let signal = status.terminating_signal().unwrap_or(0);
                    let exit_code = status.exit_status().unwrap_or(128 + signal);
                    let ended = Ended { exit_code, signal, at_ns: now_ns() };
                    let pid = pid.as_raw_nonzero().get().unsigned_abs();
                    self.pod.reaped(&mut self.wires, pid, ended);
                }
                Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn refused(code: ErrorCode, message: &str) -> Reply {
    Reply::Error { code, message: message.chars().take(1024).collect() }
}

impl Wires {
    fn watch(&mut self, fd: &OwnedFd) -> io::Result<u64> {
        let token = self.next;
        self.next += 1;
        epoll::add(&self.epoll, fd, EventData::new_u64(token), EventFlags::IN)?;
        Ok(token)
    }

    fn add_pipe(&mut self, fd: OwnedFd, sink: Sink) -> io::Result<u64> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let token = self.watch(&fd)?;
        self.pipes.insert(token, Pipe { fd, sink });
        Ok(token)
    }

    /// The write end of a client's pipe: watched for its reader's leaving only, until it is full.
    fn add_tap(&mut self, fd: OwnedFd, sink: Sink) -> io::Result<u64> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let token = self.next;
        self.next += 1;
        epoll::add(&self.epoll, &fd, EventData::new_u64(token), EventFlags::empty())?;
        self.pipes.insert(token, Pipe { fd, sink });
        Ok(token)
    }

    /// Changes what a pipe is watched for; its end is always told.
    fn want(&self, token: u64, wanted: EventFlags) {
        let Some(pipe) = self.pipes.get(&token) else { return };
        if let Err(e) = epoll::modify(&self.epoll, &pipe.fd, EventData::new_u64(token), wanted) {
            eprintln!("a pipe could not be watched: {e}");
        }
    }

    /// Reads at most `rounds` buffers, so that one loud container does not keep the others waiting.
    fn read_pipe(&mut self, pod: &mut Pod, token: u64, rounds: usize) {
        let mut buffer = [0; 16 * 1024];
        for _ in 0..rounds {
            let Some(pipe) = self.pipes.get(&token) else { return };
            let (read, sink) = (rustix::io::read(&pipe.fd, &mut buffer), pipe.sink.clone());
            match read {
                Ok(0) | Err(rustix::io::Errno::IO) => {
                    self.pipes.remove(&token);
                    pod.output_ended(self, &sink);
                }
                Ok(n) => {
                    pod.output(self, &sink, &buffer[..n]);
                    if pod.is_held(&sink) {
                        return;
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Reads what is in the pipes of an ended process: all of it was written before its death.
    /// Bounded by twice a pipe's largest default size, since others may still write.
    fn drain(&mut self, pod: &mut Pod, tokens: &[u64]) {
        for token in tokens {
            self.read_pipe(pod, *token, 128);
        }
    }

    fn close_pipes(&mut self, tokens: &[u64]) {
        for token in tokens {
            self.pipes.remove(token);
        }
    }

    fn reply(&mut self, asker: Asker, reply: Reply, fds: Vec<OwnedFd>) {
        let message = Message::Reply { id: asker.request, reply };
        let packet = message.encode().or_else(|e| {
            let reply = refused(ErrorCode::System, &e.to_string());
            Message::Reply { id: asker.request, reply }.encode()
        });
        if let Ok(packet) = packet {
            self.queue(asker.client, packet, fds);
        }
    }

    fn broadcast(&mut self, event: Event) {
        let Ok(packet) = Message::Event(event).encode() else { return };
        let greeted: Vec<u64> =
            self.clients.iter().filter(|(_, c)| c.greeted).map(|(token, _)| *token).collect();
        for token in greeted {
            self.queue(token, packet.clone(), vec![]);
        }
    }

    fn queue(&mut self, token: u64, packet: Vec<u8>, fds: Vec<OwnedFd>) {
        // The asker may have gone: its request was done all the same.
        let Some(connection) = self.clients.get_mut(&token) else { return };
        if connection.queue.len() >= MAX_QUEUE {
            eprintln!("client disconnected: it does not read");
            return self.hang_up(token);
        }
        connection.queue.push_back((packet, fds));
        self.flush(token);
    }

    fn flush(&mut self, token: u64) {
        let Some(connection) = self.clients.get_mut(&token) else { return };
        while let Some((packet, fds)) = connection.queue.front() {
            let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match send_packet(connection.socket.as_fd(), packet, &fds, flags) {
                Ok(()) => drop(connection.queue.pop_front()),
                Err(rustix::io::Errno::AGAIN) => break,
                Err(_) => return self.hang_up(token),
            }
        }
        let wanted = match connection.queue.is_empty() {
            true => EventFlags::IN,
            false => EventFlags::IN | EventFlags::OUT,
        };
        let data = EventData::new_u64(token);
        if epoll::modify(&self.epoll, &connection.socket, data, wanted).is_err() {
            self.hang_up(token);
        }
    }

    fn hang_up(&mut self, token: u64) {
        self.clients.remove(&token);
    }
}
