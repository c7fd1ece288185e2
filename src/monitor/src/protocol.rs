//! The monitor's wire protocol: hand-written binary messages on a unix SEQPACKET socket (0600).
//!
//! One packet is one message: `u32 length of the rest | u64 request id | u8 kind | fields`, all
//! little endian; text and bytes are `u32 length | bytes`. The length repeats what the socket
//! knows, so that a cut packet is refused and never half read. Descriptors travel by SCM_RIGHTS.
//!
//! A connection opens with [`Request::Hello`]; another version is answered with
//! [`ErrorCode::Version`] and nothing else is accepted. Events have request id 0.

mod codec;
mod wire;

use std::path::PathBuf;

pub use codec::{DecodeError, MAX_MESSAGE};

/// The version that both sides must speak; raised on every change of the wire.
pub const VERSION: u32 = 4;

/// The most bytes of output, both streams together, that an [`Request::Exec`] may ask to have
/// captured (CRI: 16 MiB).
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
    /// Keep a stdin pipe open (handed out by [`Request::Attach`]); otherwise stdin is /dev/null.
    pub stdin: bool,
    /// For a terminal: where the monitor makes the socket over which runc hands its master over; at
    /// most 107 bytes, in a private directory. The terminal is stdin, and its output is stdout.
    pub console_socket: Option<PathBuf>,
    /// The container's cgroup is a scope, which runc asks systemd for (`--systemd-cgroup`).
    pub systemd_cgroup: bool,
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
        /// Killed with its process group after this many milliseconds; 0 is no limit.
        timeout_ms: u64,
        /// Bytes kept of both streams together, at most [`MAX_CAPTURE`]; the rest is read and dropped.
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
    /// Sends the container's output from now on into the pipes whose write ends come along, in this
    /// order; they are closed when it ends, or when they are not read. Answered by [`Reply::Fd`] with a
    /// duplicate of the stdin pipe's write end, or of the terminal's master, which a client without
    /// `stdin` gets too, for the size; by [`Reply::Ok`] where there is none.
    Attach {
        /// The container.
        id: String,
        /// The client writes to stdin. It is waited for when it does not read, as a terminal is.
        stdin: bool,
        /// A pipe for stdout comes along.
        stdout: bool,
        /// A pipe for stderr comes along.
        stderr: bool,
    },
    /// Closes the monitor's end of stdin (CRI `stdin_once`); a terminal stays open.
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

#[cfg(test)]
mod tests;
