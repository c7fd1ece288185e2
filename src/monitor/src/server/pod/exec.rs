//! Processes beside a container's init: run to their end with their output kept, or on a client's
//! descriptors.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use podway_monitor::protocol::{ErrorCode, Event, INLINE_OUTPUT, Reply, State};
use rustix::fs::MemfdFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use super::{JobKind, Outcome, Pod, system};
use crate::log::Stream;
use crate::process::{Ended, kill_group};
use crate::server::{Asker, Sink, Wires, refused};

pub(super) struct Exec {
    pub(super) asker: Asker,
    pub(super) container: String,
    pub(super) pid: u32,
    pub(super) streaming: bool,
    pub(super) outputs: [Vec<u8>; 2],
    pub(super) limit: usize,
    pub(super) pipes: Vec<u64>,
    pub(super) deadline: Option<Instant>,
    pub(super) timed_out: bool,
}

impl Exec {
    pub(super) fn new(asker: Asker, container: String, limit: usize, deadline: Option<Instant>) -> Exec {
        Exec {
            asker,
            container,
            pid: 0,
            streaming: false,
            outputs: [vec![], vec![]],
            limit,
            pipes: vec![],
            deadline,
            timed_out: false,
        }
    }

    /// Keeps output up to the limit; the rest is dropped.
    pub(super) fn keep(&mut self, stream: Stream, bytes: &[u8]) {
        let room = self.limit.saturating_sub(self.outputs.iter().map(Vec::len).sum());
        self.outputs[stream as usize].extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

impl Pod {
    pub(in super::super) fn next_deadline(&self) -> Option<Instant> {
        self.execs.values().filter_map(|e| e.deadline).chain(self.tap_deadline()).min()
    }

    /// Kills the execs whose time is up, each with its process group: runc makes it the leader of one.
    pub(in super::super) fn expire(&mut self, now: Instant) {
        for (exec_id, exec) in &mut self.execs {
            if exec.deadline.is_some_and(|at| at <= now) {
                exec.deadline = None;
                exec.timed_out = true;
                // Without a pid runc still prepares it: it is killed when runc is done.
                if exec.pid != 0
                    && let Err(e) = kill_group(exec.pid, 9)
                {
                    eprintln!("exec {exec_id}: kill failed: {e}");
                }
            }
        }
    }

    pub(super) fn exec(
        &mut self,
        wires: &mut Wires,
        exec_id: String,
        mut exec: Exec,
        process: &Path,
        given: Option<([Stdio; 3], Option<PathBuf>)>,
    ) -> Result<Outcome, Reply> {
        if self.execs.contains_key(&exec_id) {
            return Err(refused(ErrorCode::Exists, &format!("process {exec_id} exists")));
        }
        let container = self.container(&exec.container)?;
        if container.state != State::Running {
            return Err(refused(ErrorCode::NotRunning, "container does not run"));
        }
        let runc = container.runc.clone();
        let pid_file = self.pid_file();
        let mut rest: Vec<&OsStr> = vec!["exec".as_ref(), "--detach".as_ref()];
        rest.extend(["--process".as_ref(), process.as_os_str(), "--pid-file".as_ref(), pid_file.as_ref()]);
        if let Some((_, Some(console))) = &given {
            rest.extend([OsStr::new("--console-socket"), console.as_os_str()]);
        }
        rest.push(exec.container.as_ref());
        let arguments = runc.arguments(&rest);
        let stdio = match given {
            Some((stdio, _)) => stdio,
            None => {
                let mut theirs = [Stdio::null(), Stdio::null(), Stdio::null()];
                for (n, stream) in [(1, Stream::Stdout), (2, Stream::Stderr)] {
                    let (ours, their) =
                        pipe_with(PipeFlags::CLOEXEC).map_err(|e| system("pipe failed", &e.into()))?;
                    theirs[n] = their.into();
                    let sink = Sink::Exec(exec_id.clone(), stream);
                    let token = wires.add_pipe(ours, sink).map_err(|e| system("pipe failed", &e))?;
                    exec.pipes.push(token);
                }
                theirs
            }
        };
        let kind = JobKind::Exec { exec_id: exec_id.clone() };
        if let Err(refusal) = self.job(exec.asker, kind, runc, &arguments, stdio, pid_file) {
            wires.close_pipes(&exec.pipes);
            return Err(refusal);
        }
        self.execs.insert(exec_id, exec);
        Ok(None)
    }

    pub(super) fn exec_started(&mut self, wires: &mut Wires, asker: Asker, exec_id: &str, pid: u32) {
        let Some(exec) = self.execs.get_mut(exec_id) else { return };
        exec.pid = pid;
        if exec.streaming {
            wires.reply(asker, Reply::ExecStarted { pid }, vec![]);
        }
        if let Some(ended) = self.orphans.remove(&pid) {
            self.exec_exited(wires, exec_id, ended);
        } else if exec.timed_out
            && let Err(e) = kill_group(pid, 9)
        {
            eprintln!("exec {exec_id}: kill failed: {e}");
        }
    }

    pub(super) fn exec_exited(&mut self, wires: &mut Wires, exec_id: &str, ended: Ended) {
        let tokens = self.execs.get(exec_id).map(|e| e.pipes.clone()).unwrap_or_default();
        wires.drain(self, &tokens);
        wires.close_pipes(&tokens);
        let Some(exec) = self.execs.remove(exec_id) else { return };
        let exit_code = ended.exit_code;
        if exec.streaming {
            return wires.broadcast(Event::ExecExited { exec_id: exec_id.to_owned(), exit_code });
        }
        let timed_out = exec.timed_out;
        let [stdout, stderr] = exec.outputs;
        let (reply, fds) = if stdout.len() + stderr.len() <= INLINE_OUTPUT {
            (Reply::ExecDone { exit_code, timed_out, stdout, stderr }, vec![])
        } else {
            match memfd(&stdout).and_then(|out| Ok(vec![out, memfd(&stderr)?])) {
                Ok(fds) => (Reply::ExecDoneInFds { exit_code, timed_out }, fds),
                Err(e) => (system("output could not be passed on", &e), vec![]),
            }
        };
        wires.reply(exec.asker, reply, fds);
    }
}

fn memfd(bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("podway-exec", MemfdFlags::CLOEXEC)?;
    File::from(fd.as_fd().try_clone_to_owned()?).write_all(bytes)?;
    Ok(fd)
}
