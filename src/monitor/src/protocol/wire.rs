//! The messages as packets: kinds and the order of their fields. A change raises [`super::VERSION`].

use super::codec::{Decode, DecodeError, Encode};
use super::{Create, ErrorCode, Event, ListedContainer, Message, Reply, Request, State};

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
                .optional_path(c.console_socket.as_deref())
                .flag(c.systemd_cgroup)
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
            Request::Attach { id, stdin, stdout, stderr } => {
                e.kind(10).text(id).flag(*stdin).flag(*stdout).flag(*stderr)
            }
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
                console_socket: d.optional_path()?,
                systemd_cgroup: d.flag()?,
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
            10 => Request::Attach { id: d.text()?, stdin: d.flag()?, stdout: d.flag()?, stderr: d.flag()? },
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
