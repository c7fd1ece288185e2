//! The stdio of a container: what it writes goes into its log and to every client that is attached.
//!
//! A client is the write end of a pipe (a tap) with a backlog for what the pipe does not take. The
//! container's output is not read while a client has a backlog, for a bounded time: one that takes
//! nothing for that long is dropped. Who has the container's standard input is its terminal and is
//! waited for like one ([`STALL`]), who only looks on hardly at all ([`GLANCE`]): the runtime reads at
//! once for those, and has room for what they do not take.
//! The end of a tap is all that its client hears: the container's exit, or that it was too slow.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use podway_monitor::protocol::{ErrorCode, Reply, State};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::{Container, Outcome, Pod, system};
use crate::log::Stream;
use crate::process::now_ns;
use crate::server::{Sink, Wires, refused};

/// What a client may leave unread beside what its pipe holds: room for a container's last words.
const BACKLOG: usize = 256 * 1024;
/// How long a client that has the standard input may take nothing.
const STALL: Duration = Duration::from_secs(30);
/// The same for one that has not.
const GLANCE: Duration = Duration::from_secs(3);
/// How long an ended container's terminal is read on for its clients, if others keep it open.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Clients of one container at a time.
const MAX_TAPS: usize = 16;

/// One output stream to one client; the descriptor is with the wires.
pub(super) struct Tap {
    token: u64,
    stream: Stream,
    patience: Duration,
    backlog: Vec<u8>,
    deadline: Option<Instant>,
}

/// Which streams a client wants.
pub(super) struct Wanted {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
}

impl Container {
    /// Whether somebody has to be waited for before more output is read.
    fn is_held(&self) -> bool {
        self.state != State::Exited && self.taps.iter().any(|tap| !tap.backlog.is_empty())
    }

    /// Reads on, or not, as its clients can take it.
    fn watch(&self, wires: &Wires) {
        // Its end would be told again and again while nobody reads: edge-triggered, it is told once.
        let wanted = if self.is_held() { EventFlags::ET } else { EventFlags::IN };
        for token in &self.pipes {
            wires.want(*token, wanted);
        }
    }

    /// Gives output to its clients; those that are gone or too slow are dropped.
    fn offer(&mut self, wires: &mut Wires, stream: Stream, bytes: &[u8]) {
        if self.taps.is_empty() {
            return;
        }
        let held = self.is_held();
        self.taps.retain_mut(|tap| tap.stream != stream || tap.take(wires, bytes));
        if held != self.is_held() {
            self.watch(wires);
        }
    }

    /// It has exited: its clients have had everything, or shall have it. A terminal's last words pass
    /// through a queue of the kernel; its end says that they are out.
    pub(super) fn end_of_taps(&mut self, wires: &mut Wires) {
        if self.terminal && self.pipes.iter().any(|token| wires.pipes.contains_key(token)) {
            let last = Instant::now().checked_add(LAST_WORDS);
            self.taps.iter_mut().for_each(|tap| tap.deadline = tap.deadline.or(last));
        } else {
            self.end_taps(wires, false);
        }
    }

    /// Ends the taps that have had everything, or all of them.
    pub(super) fn end_taps(&mut self, wires: &mut Wires, all: bool) {
        self.taps.retain(|tap| {
            let stays = !all && !tap.backlog.is_empty();
            if !stays {
                wires.close_pipes(&[tap.token]);
            }
            stays
        });
    }
}

impl Tap {
    /// Whether it goes on.
    fn take(&mut self, wires: &mut Wires, mut bytes: &[u8]) -> bool {
        if self.backlog.is_empty() && !self.write(wires, &mut bytes) {
            return false;
        }
        if self.backlog.len() + bytes.len() > BACKLOG {
            eprintln!("an attached client was dropped: it does not read");
            wires.close_pipes(&[self.token]);
            return false;
        }
        if !bytes.is_empty() {
            if self.backlog.is_empty() {
                self.deadline = Instant::now().checked_add(self.patience);
                wires.want(self.token, EventFlags::OUT);
            }
            self.backlog.extend_from_slice(bytes);
        }
        true
    }

    /// As much of the backlog as goes; whether the client is still there.
    fn flush(&mut self, wires: &mut Wires) -> bool {
        let backlog = std::mem::take(&mut self.backlog);
        let mut rest = backlog.as_slice();
        let there = self.write(wires, &mut rest);
        if rest.len() < backlog.len() {
            self.deadline = Instant::now().checked_add(self.patience);
        }
        self.backlog = rest.to_vec();
        if self.backlog.is_empty() {
            self.deadline = None;
            wires.want(self.token, EventFlags::empty());
        }
        there
    }

    fn write(&self, wires: &mut Wires, bytes: &mut &[u8]) -> bool {
        let Some(pipe) = wires.pipes.get(&self.token) else { return false };
        while !bytes.is_empty() {
            match rustix::io::write(&pipe.fd, bytes) {
                Ok(n) => *bytes = &bytes[n..],
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                // It has left.
                Err(_) => {
                    wires.close_pipes(&[self.token]);
                    return false;
                }
            }
        }
        true
    }
}

impl Pod {
    pub(super) fn attach(
        &mut self,
        wires: &mut Wires,
        id: &str,
        wanted: &Wanted,
        fds: Vec<OwnedFd>,
    ) -> Result<Outcome, Reply> {
        let container = self.container(id)?;
        if !matches!(container.state, State::Created | State::Running) {
            return Err(refused(ErrorCode::NotRunning, "container does not run"));
        }
        let streams: Vec<Stream> = [(wanted.stdout, Stream::Stdout), (wanted.stderr, Stream::Stderr)]
            .into_iter()
            .filter_map(|(wanted, stream)| wanted.then_some(stream))
            .collect();
        if fds.len() != streams.len() {
            return Err(refused(ErrorCode::Invalid, "one descriptor must come along for each output"));
        }
        if container.taps.len() + streams.len() > MAX_TAPS {
            return Err(refused(ErrorCode::Busy, "too many clients are attached"));
        }
        let input = container.stdin.as_ref().filter(|_| wanted.stdin || container.terminal);
        let input = input.map(OwnedFd::try_clone).transpose();
        let input = input.map_err(|e| system("stdin could not be duplicated", &e))?;
        for (fd, stream) in fds.into_iter().zip(streams) {
            let token = wires
                .add_tap(fd, Sink::Tap(id.to_owned()))
                .map_err(|e| system("a client's pipe could not be watched", &e))?;
            let patience = if wanted.stdin { STALL } else { GLANCE };
            container.taps.push(Tap { token, stream, patience, backlog: vec![], deadline: None });
        }
        Ok(Some(match input {
            Some(fd) => (Reply::Fd, vec![fd]),
            None => (Reply::Ok, vec![]),
        }))
    }

    /// A client can take more, or has left.
    pub(in super::super) fn tap_ready(&mut self, wires: &mut Wires, id: &str, token: u64, flags: EventFlags) {
        let Some(container) = self.containers.get_mut(id) else { return wires.close_pipes(&[token]) };
        let left = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        container.taps.retain_mut(|tap| {
            let stays = tap.token != token || !left && tap.flush(wires);
            if !stays {
                wires.close_pipes(&[token]);
            }
            stays
        });
        if container.state == State::Exited {
            container.end_of_taps(wires);
        }
        container.watch(wires);
    }

    /// Drops the clients that held a container back for too long.
    pub(in super::super) fn expire_taps(&mut self, wires: &mut Wires, now: Instant) {
        for (id, container) in &mut self.containers {
            let late = |tap: &Tap| tap.deadline.is_some_and(|at| at <= now);
            if !container.taps.iter().any(late) {
                continue;
            }
            container.taps.retain(|tap| {
                if late(tap) {
                    if !tap.backlog.is_empty() {
                        eprintln!("container {id}: an attached client was dropped: it does not read");
                    }
                    wires.close_pipes(&[tap.token]);
                }
                !late(tap)
            });
            container.watch(wires);
        }
    }

    pub(in super::super) fn output(&mut self, wires: &mut Wires, sink: &Sink, bytes: &[u8]) {
        match sink {
            Sink::Container(id, stream) => {
                if let Some(container) = self.containers.get_mut(id) {
                    container.log.feed(*stream, bytes, now_ns());
                    container.offer(wires, *stream, bytes);
                }
            }
            Sink::Exec(exec_id, stream) => {
                if let Some(exec) = self.execs.get_mut(exec_id) {
                    exec.keep(*stream, bytes);
                }
            }
            Sink::Tap(_) => {}
        }
    }

    /// A pipe is at its end, and closed.
    pub(in super::super) fn output_ended(&mut self, wires: &mut Wires, sink: &Sink) {
        if let Sink::Container(id, stream) = sink
            && let Some(container) = self.containers.get_mut(id)
        {
            container.log.end(*stream, now_ns());
            if container.state == State::Exited && container.terminal {
                container.end_taps(wires, false);
            }
        }
    }

    /// Whether a pipe is to be left alone for now.
    pub(in super::super) fn is_held(&self, sink: &Sink) -> bool {
        matches!(sink, Sink::Container(id, _) if self.containers.get(id).is_some_and(Container::is_held))
    }

    pub(super) fn tap_deadline(&self) -> Option<Instant> {
        self.containers.values().flat_map(|c| &c.taps).filter_map(|tap| tap.deadline).min()
    }
}
