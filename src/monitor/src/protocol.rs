//! The monitor's wire protocol: hand-written binary messages on a unix SEQPACKET socket (0600).
//!
//! One packet is one message: `u32 length of the rest | u64 request id | u8 kind | fields`, all
//! little endian; text and bytes are `u32 length | bytes`. The length repeats what the socket
//! knows, so that a cut packet is refused and never half read. Descriptors travel by SCM_RIGHTS.
//!
//! A connection opens with [`Request::Hello`]; another version is answered with
//! [`ErrorCode::Version`] and nothing else is accepted. Events have request id 0.

mod codec;

use std::path::PathBuf;

use codec::{Decode, Encode};
pub use codec::{DecodeError, MAX_MESSAGE};

/// The version that both sides must speak; raised on every change of the wire.
pub const VERSION: u32 = 2;

/// The most bytes of one output stream that an [`Request::Exec`] may ask to have captured (CRI: 16 MiB).
pub const MAX_CAPTURE: u32 = 16 * 1024 * 1024;

/// Output up to this many bytes (both streams together) comes inside the reply, more in memfds.
pub const INLINE_OUTPUT: usize = 32 * 1024;

/// What `runc create` needs, and where the monitor writes what it learns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Create {
    /// The container's id: `[A-Za-z0-9_.-]`, at most 128 bytes.
    pub id: String,
    /// The runc executable.
    pub runc: PathBuf,
    /// runc's `--root`, where it keeps its state.
    pub runc_root: PathBuf,
    /// runc's `--log`; its last line is the message of a failure.
    pub runc_log: PathBuf,
    /// The bundle directory, with `config.json`.
    pub bundle: PathBuf,
    /// The CRI log; without one the output is read and dropped.
    pub log_path: Option<PathBuf>,
    /// Where the exit record goes (see [`crate::exit`]).
    pub exit_file: PathBuf,
    /// The container's memory cgroup directory (v1 memory controller, or the v2 cgroup), read
    /// after the exit to tell whether the kernel killed for memory.
    pub memory_cgroup: Option<PathBuf>,
    /// Keep a stdin pipe open (handed out by [`Request::Stdin`]); otherwise stdin is /dev/null.
    pub stdin: bool,
    /// Ask for a terminal.
    pub terminal: bool,
    /// More arguments of `runc create`, before the id.
    pub extra_args: Vec<String>,
}

/// What a client asks. Every request gets exactly one reply with its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Opens a connection.
    Hello {
        /// The client's [`VERSION`].
        version: u32,
    },
    /// Runs `runc create`; answered by [`Reply::Created`].
    Create(Box<Create>),
    /// Runs `runc start`; answered by [`Reply::Started`], also if it is started already: whoever
    /// asks again after a crash gets the same answer and the container is started once.
    Start {
        /// The container.
        id: String,
    },
    /// Signals the container's init. It is safe from pid reuse: the monitor is the parent and
    /// knows whether it has reaped. An exited container is answered with [`ErrorCode::NotRunning`].
    Signal {
        /// The container.
        id: String,
        /// The signal's number, 1 to 64.
        signo: u8,
    },
    /// Kills what is left of the container, waits for its exit record, runs a plain `runc delete`,
    /// and forgets the container. The log is complete when it is answered.
    Delete {
        /// The container.
        id: String,
    },
    /// Runs a process to its end and captures its output; answered by [`Reply::ExecDone`].
    Exec {
        /// The container.
        id: String,
        /// A name for the process, unique in the monitor.
        exec_id: String,
        /// The OCI process object.
        process_json_path: PathBuf,
        /// Killed after this many milliseconds; 0 is no limit.
        timeout_ms: u64,
        /// Bytes kept per stream, at most [`MAX_CAPTURE`]; the rest is read and dropped.
        capture_limit: u32,
    },
    /// Starts a process on three descriptors sent along (stdin, stdout, stderr), or on a terminal;
    /// answered by [`Reply::ExecStarted`], then [`Event::ExecExited`].
    ExecIo {
        /// The container.
        id: String,
        /// A name for the process, unique in the monitor.
        exec_id: String,
        /// The OCI process object.
        process_json_path: PathBuf,
        /// For a terminal: the socket where runc hands its master over. No descriptors come along.
        console_socket: Option<PathBuf>,
    },
    /// Signals a process that [`Request::Exec`] or [`Request::ExecIo`] started.
    SignalExec {
        /// The process.
        exec_id: String,
        /// The signal's number, 1 to 64.
        signo: u8,
    },
    /// Opens the log path anew, after a rotation has renamed the old file.
    ReopenLog {
        /// The container.
        id: String,
    },
    /// Asks for a duplicate of the stdin pipe's write end; answered by [`Reply::Fd`].
    Stdin {
        /// The container.
        id: String,
    },
    /// Closes the monitor's end of stdin (CRI `stdin_once`).
    CloseStdin {
        /// The container.
        id: String,
    },
    /// Asks which containers the monitor knows; answered by [`Reply::List`].
    List,
    /// Ends the monitor. Refused with [`ErrorCode::Busy`] while a container lives or runc runs.
    Shutdown,
}

/// Where a container stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// `runc create` runs.
    Creating,
    /// Created, not started.
    Created,
    /// Started.
    Running,
    /// Reaped, its exit record is durable.
    Exited,
}

/// One line of [`Reply::List`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedContainer {
    /// The container's id.
    pub id: String,
    /// Its init's pid; 0 while creating. After the exit it may belong to another process.
    pub pid: u32,
    /// Where it stands.
    pub state: State,
    /// The exit code (128 + signal), meaningful when exited.
    pub exit_code: i32,
    /// Whether the kernel killed for memory, meaningful when exited.
    pub oom_killed: bool,
    /// When it was reaped, nanoseconds since the epoch; 0 before.
    pub finished_at_ns: u64,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// The message could not be read, or a field is out of range.
    Invalid,
    /// The client speaks another version.
    Version,
    /// No container or process of that name.
    NotFound,
    /// The name is taken.
    Exists,
    /// The container is not in the state that the request needs.
    NotRunning,
    /// Something is still under way.
    Busy,
    /// runc failed; the message is runc's.
    Runc,
    /// A system call of the monitor failed.
    System,
    /// Not built.
    NotSupported,
}

/// What the monitor answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done.
    Ok,
    /// The connection is open.
    Hello {
        /// The monitor's [`VERSION`].
        version: u32,
        /// The monitor's pid.
        pid: u32,
    },
    /// `runc create` succeeded.
    Created {
        /// The container's init.
        pid: u32,
        /// From fork to reaping of runc, in microseconds.
        micros: u64,
        /// What was run.
        argv: Vec<String>,
    },
    /// `runc start` succeeded.
    Started {
        /// From fork to reaping of runc, in microseconds.
        micros: u64,
    },
    /// An exec ended.
    ExecDone {
        /// The exit code (128 + signal).
        exit_code: i32,
        /// It was killed because its time was up.
        timed_out: bool,
        /// Standard output, up to the limit.
        stdout: Vec<u8>,
        /// Standard error, up to the limit.
        stderr: Vec<u8>,
    },
    /// An exec runs on the client's descriptors.
    ExecStarted {
        /// Its pid.
        pid: u32,
    },
    /// The containers.
    List(Vec<ListedContainer>),
    /// A descriptor comes along.
    Fd,
    /// The request failed.
    Error {
        /// The kind.
        code: ErrorCode,
        /// One line, at most 4 KiB.
        message: String,
    },
    /// On the wire only: an [`Reply::ExecDone`] whose two outputs are memfds sent along. The
    /// client turns it into `ExecDone`.
    ExecDoneInFds {
        /// The exit code (128 + signal).
        exit_code: i32,
        /// It was killed because its time was up.
        timed_out: bool,
    },
}

/// What the monitor tells every connected client unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A container exited; its record is durable.
    Exited {
        /// The container.
        id: String,
        /// The exit code (128 + signal).
        exit_code: i32,
        /// Whether the kernel killed for memory.
        oom_killed: bool,
        /// When it was reaped, nanoseconds since the epoch.
        finished_at_ns: u64,
    },
    /// A process of [`Request::ExecIo`] exited.
    ExecExited {
        /// The process.
        exec_id: String,
        /// The exit code (128 + signal).
        exit_code: i32,
    },
}

/// What a client receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The answer to the request of that id.
    Reply {
        /// The request's id.
        id: u64,
        /// The answer.
        reply: Reply,
    },
    /// Something happened.
    Event(Event),
}

impl Request {
    /// The packet for this request; an error if it is over [`MAX_MESSAGE`].
    pub fn encode(&self, request_id: u64) -> Result<Vec<u8>, DecodeError> {
        let mut e = Encode::new(request_id);
        match self {
            Request::Hello { version } => e.kind(1).u32(*version),
            Request::Create(c) => e
                .kind(2)
                .text(&c.id)
                .path(&c.runc)
                .path(&c.runc_root)
                .path(&c.runc_log)
                .path(&c.bundle)
                .optional_path(c.log_path.as_deref())
                .path(&c.exit_file)
                .optional_path(c.memory_cgroup.as_deref())
                .flag(c.stdin)
                .flag(c.terminal)
                .texts(&c.extra_args),
            Request::Start { id } => e.kind(3).text(id),
            Request::Signal { id, signo } => e.kind(4).text(id).u8(*signo),
            Request::Delete { id } => e.kind(5).text(id),
            Request::Exec { id, exec_id, process_json_path, timeout_ms, capture_limit } => {
                e.kind(6).text(id).text(exec_id).path(process_json_path).u64(*timeout_ms).u32(*capture_limit)
            }
            Request::ExecIo { id, exec_id, process_json_path, console_socket } => e
                .kind(7)
                .text(id)
                .text(exec_id)
                .path(process_json_path)
                .optional_path(console_socket.as_deref()),
            Request::SignalExec { exec_id, signo } => e.kind(8).text(exec_id).u8(*signo),
            Request::ReopenLog { id } => e.kind(9).text(id),
            Request::Stdin { id } => e.kind(10).text(id),
            Request::CloseStdin { id } => e.kind(11).text(id),
            Request::List => e.kind(12),
            Request::Shutdown => e.kind(13),
        };
        e.finish()
    }

    /// Reads a packet: the request's id and the request.
    pub fn decode(packet: &[u8]) -> Result<(u64, Request), DecodeError> {
        let (request_id, kind, mut d) = Decode::open(packet)?;
        let request = match kind {
            1 => Request::Hello { version: d.u32()? },
            2 => Request::Create(Box::new(Create {
                id: d.text()?,
                runc: d.path()?,
                runc_root: d.path()?,
                runc_log: d.path()?,
                bundle: d.path()?,
                log_path: d.optional_path()?,
                exit_file: d.path()?,
                memory_cgroup: d.optional_path()?,
                stdin: d.flag()?,
                terminal: d.flag()?,
                extra_args: d.texts()?,
            })),
            3 => Request::Start { id: d.text()? },
            4 => Request::Signal { id: d.text()?, signo: d.u8()? },
            5 => Request::Delete { id: d.text()? },
            6 => Request::Exec {
                id: d.text()?,
                exec_id: d.text()?,
                process_json_path: d.path()?,
                timeout_ms: d.u64()?,
                capture_limit: d.u32()?,
            },
            7 => Request::ExecIo {
                id: d.text()?,
                exec_id: d.text()?,
                process_json_path: d.path()?,
                console_socket: d.optional_path()?,
            },
            8 => Request::SignalExec { exec_id: d.text()?, signo: d.u8()? },
            9 => Request::ReopenLog { id: d.text()? },
            10 => Request::Stdin { id: d.text()? },
            11 => Request::CloseStdin { id: d.text()? },
            12 => Request::List,
            13 => Request::Shutdown,
            other => return Err(DecodeError::Kind(other)),
        };
        d.end()?;
        Ok((request_id, request))
    }
}

impl Message {
    /// The packet for this message; an error if it is over [`MAX_MESSAGE`].
    pub fn encode(&self) -> Result<Vec<u8>, DecodeError> {
        let (request_id, reply) = match self {
            Message::Reply { id, reply } => (*id, reply),
            Message::Event(event) => return event.encode(),
        };
        let mut e = Encode::new(request_id);
        match reply {
            Reply::Ok => e.kind(64),
            Reply::Hello { version, pid } => e.kind(65).u32(*version).u32(*pid),
            Reply::Created { pid, micros, argv } => e.kind(66).u32(*pid).u64(*micros).texts(argv),
            Reply::Started { micros } => e.kind(67).u64(*micros),
            Reply::ExecDone { exit_code, timed_out, stdout, stderr } => {
                e.kind(68).i32(*exit_code).flag(*timed_out).bytes(stdout).bytes(stderr)
            }
            Reply::ExecStarted { pid } => e.kind(69).u32(*pid),
            Reply::List(all) => {
                e.kind(70).u32(all.len() as u32);
                for c in all {
                    e.text(&c.id)
                        .u32(c.pid)
                        .u8(c.state as u8)
                        .i32(c.exit_code)
                        .flag(c.oom_killed)
                        .u64(c.finished_at_ns);
                }
                &mut e
            }
            Reply::Fd => e.kind(71),
            Reply::Error { code, message } => e.kind(72).u8(*code as u8).text(message),
            Reply::ExecDoneInFds { exit_code, timed_out } => e.kind(73).i32(*exit_code).flag(*timed_out),
        };
        e.finish()
    }

    /// Reads a packet.
    pub fn decode(packet: &[u8]) -> Result<Message, DecodeError> {
        let (id, kind, mut d) = Decode::open(packet)?;
        let reply = match kind {
            64 => Reply::Ok,
            65 => Reply::Hello { version: d.u32()?, pid: d.u32()? },
            66 => Reply::Created { pid: d.u32()?, micros: d.u64()?, argv: d.texts()? },
            67 => Reply::Started { micros: d.u64()? },
            68 => Reply::ExecDone {
                exit_code: d.i32()?,
                timed_out: d.flag()?,
                stdout: d.bytes()?.to_vec(),
                stderr: d.bytes()?.to_vec(),
            },
            69 => Reply::ExecStarted { pid: d.u32()? },
            70 => {
                let mut all = Vec::new();
                for _ in 0..d.u32()? {
                    all.push(ListedContainer {
                        id: d.text()?,
                        pid: d.u32()?,
                        state: State::from_wire(d.u8()?)?,
                        exit_code: d.i32()?,
                        oom_killed: d.flag()?,
                        finished_at_ns: d.u64()?,
                    });
                }
                Reply::List(all)
            }
            71 => Reply::Fd,
            72 => Reply::Error { code: ErrorCode::from_wire(d.u8()?)?, message: d.text()? },
            73 => Reply::ExecDoneInFds { exit_code: d.i32()?, timed_out: d.flag()? },
            96 => {
                let event = Event::Exited {
                    id: d.text()?,
                    exit_code: d.i32()?,
                    oom_killed: d.flag()?,
                    finished_at_ns: d.u64()?,
                };
                d.end()?;
                return Ok(Message::Event(event));
            }
            97 => {
                let event = Event::ExecExited { exec_id: d.text()?, exit_code: d.i32()? };
                d.end()?;
                return Ok(Message::Event(event));
            }
            other => return Err(DecodeError::Kind(other)),
        };
        d.end()?;
        Ok(Message::Reply { id, reply })
    }
}

impl Event {
    fn encode(&self) -> Result<Vec<u8>, DecodeError> {
        let mut e = Encode::new(0);
        match self {
            Event::Exited { id, exit_code, oom_killed, finished_at_ns } => {
                e.kind(96).text(id).i32(*exit_code).flag(*oom_killed).u64(*finished_at_ns)
            }
            Event::ExecExited { exec_id, exit_code } => e.kind(97).text(exec_id).i32(*exit_code),
        };
        e.finish()
    }
}

impl State {
    fn from_wire(byte: u8) -> Result<State, DecodeError> {
        [State::Creating, State::Created, State::Running, State::Exited]
            .into_iter()
            .find(|s| *s as u8 == byte)
            .ok_or(DecodeError::Kind(byte))
    }
}

impl ErrorCode {
    fn from_wire(byte: u8) -> Result<ErrorCode, DecodeError> {
        use ErrorCode::*;
        [Invalid, Version, NotFound, Exists, NotRunning, Busy, Runc, System, NotSupported]
            .into_iter()
            .find(|c| *c as u8 == byte)
            .ok_or(DecodeError::Kind(byte))
    }
}

#[cfg(test)]
mod tests;
