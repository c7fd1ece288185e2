//! The containers and execs of the pod: what each message does and what each death means.
//!
//! runc runs as a child beside the loop (a job), never inside it. A container's init becomes our
//! child when `runc create` ends; if it dies before that is known, its status waits in `orphans`.
//! An exit is drained, logged, recorded durably, and only then told.

mod create;
mod exec;
mod io;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use podway_monitor::exit::ExitRecord;
use podway_monitor::protocol::{ErrorCode, Event, ListedContainer, MAX_CAPTURE, Reply, Request, State};

use super::{Asker, Wires, refused};
use crate::log::CriLog;
use crate::oom::Watch;
use crate::process::{Ended, Runc, kill};
use create::Output;
use exec::Exec;
use io::{Tap, Wanted};

/// A reply now, or none because a job will give it.
type Outcome = Option<(Reply, Vec<OwnedFd>)>;

struct Container {
    runc: Runc,
    pid: u32,
    state: State,
    log: CriLog,
    exit_file: PathBuf,
    /// Its memory cgroup, and whether that is a scope.
    memory_cgroup: Option<(PathBuf, bool)>,
    /// From its creation on.
    oom: Option<Watch>,
    /// The write end of its standard input, or its terminal's master.
    stdin: Option<OwnedFd>,
    terminal: bool,
    pipes: Vec<u64>,
    taps: Vec<Tap>,
    record: Option<ExitRecord>,
    /// Who waits for the exit (or for the end of `runc create`) to have it deleted.
    delete: Vec<Asker>,
    /// `runc start` runs.
    starting: bool,
    /// Who else asked for the create or start that runs.
    waiters: Vec<Asker>,
}

enum JobKind {
    Create { id: String, ours: Output, argv: Vec<String> },
    Start { id: String },
    Delete { id: String },
    Exec { exec_id: String },
}

struct Job {
    kind: JobKind,
    asker: Asker,
    since: Instant,
    runc: Runc,
    log_from: u64,
    pid_file: PathBuf,
}

/// The pod's containers, execs and running runcs.
pub(super) struct Pod {
    state_dir: PathBuf,
    containers: BTreeMap<String, Container>,
    execs: BTreeMap<String, Exec>,
    jobs: BTreeMap<u32, Job>,
    orphans: BTreeMap<u32, Ended>,
    reap_due: bool,
    counter: u64,
}

impl Pod {
    pub(super) fn new(state_dir: PathBuf) -> Pod {
        Pod {
            state_dir,
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            jobs: BTreeMap::new(),
            orphans: BTreeMap::new(),
            reap_due: false,
            counter: 0,
        }
    }

    /// Who keeps the monitor from ending.
    pub(super) fn busy(&self) -> Option<String> {
        if let Some((id, _)) = self.containers.iter().find(|(_, c)| c.state != State::Exited) {
            return Some(format!("container {id} lives"));
        }
        (!self.jobs.is_empty()).then(|| "runc runs".to_owned())
    }

    pub(super) fn take_reap_due(&mut self) -> bool {
        std::mem::take(&mut self.reap_due)
    }

    pub(super) fn handle(
        &mut self,
        wires: &mut Wires,
        asker: Asker,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Outcome {
        let result = match request {
            Request::Create(create) => self.create(asker, *create),
            Request::Start { id } => self.start(asker, id),
            Request::Signal { id, signo } => self.signal(&id, signo),
            Request::Delete { id } => self.delete(asker, id),
            Request::Exec { id, exec_id, process_json_path, timeout_ms, capture_limit } => {
                let deadline =
                    (timeout_ms > 0).then(|| Instant::now().checked_add(Duration::from_millis(timeout_ms)));
                let limit = capture_limit.min(MAX_CAPTURE) as usize;
                let exec = Exec::new(asker, id, limit, deadline.flatten());
                self.exec(wires, exec_id, exec, &process_json_path, None)
            }
            Request::ExecIo { id, exec_id, process_json_path, console_socket } => {
                let stdio = match (&console_socket, <[OwnedFd; 3]>::try_from(fds)) {
                    (Some(_), _) => Ok(null_stdio()),
                    (None, Ok(stdio)) => Ok(stdio.map(Stdio::from)),
                    (None, Err(_)) => Err(refused(ErrorCode::Invalid, "three descriptors must come along")),
                };
                stdio.and_then(|stdio| {
                    let mut exec = Exec::new(asker, id, 0, None);
                    exec.streaming = true;
                    let given = Some((stdio, console_socket));
                    self.exec(wires, exec_id, exec, &process_json_path, given)
                })
            }
            Request::SignalExec { exec_id, signo } => match self.execs.get(&exec_id) {
                Some(exec) if exec.pid != 0 => send_signal(exec.pid, signo),
                Some(_) => Err(refused(ErrorCode::NotRunning, "the process has not started")),
                None => Err(refused(ErrorCode::NotFound, &format!("no process {exec_id}"))),
            },
            Request::ReopenLog { id } => self.container(&id).and_then(|c| {
                c.log.reopen().map_err(|e| system("log_path could not be opened", &e))?;
                Ok(Some((Reply::Ok, vec![])))
            }),
            Request::Attach { id, stdin, stdout, stderr } => {
                self.attach(wires, &id, &Wanted { stdin, stdout, stderr }, fds)
            }
            Request::CloseStdin { id } => self.container(&id).map(|c| {
                // A terminal has no half to close: its end of input is a character.
                if !c.terminal {
                    c.stdin = None;
                }
                Some((Reply::Ok, vec![]))
            }),
            Request::List => Ok(Some((Reply::List(self.list()), vec![]))),
            // The loop answers these two itself.
            Request::Hello { .. } | Request::Shutdown => Ok(None),
        };
        result.unwrap_or_else(|refusal| Some((refusal, vec![])))
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, Reply> {
        self.containers.get_mut(id).ok_or_else(|| refused(ErrorCode::NotFound, &format!("no container {id}")))
    }

    fn pid_file(&mut self) -> PathBuf {
        self.counter += 1;
        self.state_dir.join(format!("{}.pid", self.counter))
    }

    /// Runs runc as a child; what follows is in [`Pod::job_done`].
    fn job(
        &mut self,
        asker: Asker,
        kind: JobKind,
        runc: Runc,
        arguments: &[std::ffi::OsString],
        stdio: [Stdio; 3],
        pid_file: PathBuf,
    ) -> Result<(), Reply> {
        let (since, log_from) = (Instant::now(), runc.log_end());
        let spawned = runc.spawn(arguments, stdio);
        self.reap_due = true;
        let pid = spawned.map_err(|e| system("runc could not be run", &e))?;
        self.jobs.insert(pid, Job { kind, asker, since, runc, log_from, pid_file });
        Ok(())
    }

    fn start(&mut self, asker: Asker, id: String) -> Result<Outcome, Reply> {
        let container = self.container(&id)?;
        match container.state {
            // A runtime that died before it heard asks again: the container is started once.
            State::Created if container.starting => {
                container.waiters.push(asker);
                return Ok(None);
            }
            State::Created => container.starting = true,
            State::Running => return Ok(Some((Reply::Started { micros: 0 }, vec![]))),
            State::Creating | State::Exited => {
                return Err(refused(ErrorCode::NotRunning, "container is not in the state created"));
            }
        }
        let runc = container.runc.clone();
        let arguments = runc.arguments(&["start".as_ref(), id.as_ref()]);
        let kind = JobKind::Start { id: id.clone() };
        let run = self.job(asker, kind, runc, &arguments, null_stdio(), PathBuf::new());
        if run.is_err() {
            self.container(&id)?.starting = false;
        }
        run.map(|()| None)
    }

    fn signal(&mut self, id: &str, signo: u8) -> Result<Outcome, Reply> {
        let container = self.container(id)?;
        match container.state {
            State::Created | State::Running => send_signal(container.pid, signo),
            State::Creating | State::Exited => Err(refused(ErrorCode::NotRunning, "container does not run")),
        }
    }

    /// Whoever asks while a deletion is under way gets that one's answer.
    fn delete(&mut self, asker: Asker, id: String) -> Result<Outcome, Reply> {
        let container = self.container(&id)?;
        container.delete.push(asker);
        match container.state {
            _ if container.delete.len() > 1 => {}
            // It is killed as soon as its pid is known.
            State::Creating => {}
            State::Created | State::Running => {
                if let Err(refusal) = send_signal(container.pid, 9) {
                    container.delete.clear();
                    return Err(refusal);
                }
            }
            State::Exited => self.run_delete(id)?,
        }
        Ok(None)
    }

    fn run_delete(&mut self, id: String) -> Result<(), Reply> {
        let container = self.container(&id)?;
        let runc = container.runc.clone();
        let Some(asker) = container.delete.first().copied() else { return Ok(()) };
        let arguments = runc.arguments(&["delete".as_ref(), id.as_ref()]);
        let kind = JobKind::Delete { id: id.clone() };
        let run = self.job(asker, kind, runc, &arguments, null_stdio(), PathBuf::new());
        if run.is_err() {
            self.container(&id)?.delete.clear();
        }
        run
    }

    fn list(&self) -> Vec<ListedContainer> {
        let line = |(id, c): (&String, &Container)| ListedContainer {
            id: id.clone(),
            pid: c.pid,
            state: c.state,
            exit_code: c.record.map_or(0, |r| r.exit_code),
            oom_killed: c.record.is_some_and(|r| r.oom_killed),
            finished_at_ns: c.record.map_or(0, |r| r.finished_at_ns),
        };
        self.containers.iter().map(line).collect()
    }

    /// A child has ended: runc, an init, an exec, or one whose name is not known yet.
    pub(super) fn reaped(&mut self, wires: &mut Wires, pid: u32, ended: Ended) {
        if let Some(job) = self.jobs.remove(&pid) {
            self.job_done(wires, job, ended);
            if self.jobs.is_empty() {
                self.orphans.clear();
            }
            return;
        }
        let live = |c: &Container| c.pid == pid && c.state != State::Exited;
        if let Some(id) = self.containers.iter().find(|(_, c)| live(c)).map(|(id, _)| id.clone()) {
            self.exited(wires, id, ended);
        } else if let Some(id) = self.execs.iter().find(|(_, e)| e.pid == pid).map(|(id, _)| id.clone()) {
            self.exec_exited(wires, &id, ended);
        } else if !self.jobs.is_empty() {
            self.orphans.insert(pid, ended);
        }
    }

    fn job_done(&mut self, wires: &mut Wires, job: Job, ended: Ended) {
        let micros = u64::try_from(job.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let failure =
            (ended.exit_code != 0).then(|| refused(ErrorCode::Runc, &job.runc.reason(job.log_from, ended)));
        let reply = match job.kind {
            JobKind::Create { id, ours, argv } => {
                let result = match failure {
                    Some(failure) => Err(failure),
                    None => take_pid(&job.pid_file),
                };
                match result {
                    Ok(pid) => {
                        let attached = self.created(wires, &id, pid, ours);
                        let reply = attached.err().unwrap_or(Reply::Created { pid, micros, argv });
                        let waiters = self.containers.get_mut(&id).map(|c| std::mem::take(&mut c.waiters));
                        for asker in waiters.into_iter().flatten().chain([job.asker]) {
                            wires.reply(asker, reply.clone(), vec![]);
                        }
                        if let Some(ended) = self.orphans.remove(&pid) {
                            self.exited(wires, id, ended);
                        } else if self.containers.get(&id).is_some_and(|c| !c.delete.is_empty())
                            && let Err(e) = kill(pid, 9)
                        {
                            eprintln!("container {id}: kill failed: {e}");
                        }
                        return;
                    }
                    Err(failure) => {
                        let (waiters, delete) =
                            self.containers.remove(&id).map(|c| (c.waiters, c.delete)).unwrap_or_default();
                        for asker in waiters {
                            wires.reply(asker, failure.clone(), vec![]);
                        }
                        for asker in delete {
                            wires.reply(asker, Reply::Ok, vec![]);
                        }
                        failure
                    }
                }
            }
            JobKind::Start { id } => {
                let reply = failure.unwrap_or(Reply::Started { micros });
                if let Some(c) = self.containers.get_mut(&id) {
                    c.starting = false;
                    // A short container may have exited, and been reaped, before runc start was.
                    if matches!(reply, Reply::Started { .. }) && c.state == State::Created {
                        c.state = State::Running;
                    }
                    for waiter in std::mem::take(&mut c.waiters) {
                        wires.reply(waiter, reply.clone(), vec![]);
                    }
                }
                reply
            }
            JobKind::Delete { id } => {
                let (reply, waiting) = match failure {
                    // Deleted before, by a runtime that had lost its monitor.
                    Some(Reply::Error { message, code }) if !message.contains("does not exist") => {
                        let container = self.containers.get_mut(&id);
                        let waiting = container.map(|c| std::mem::take(&mut c.delete));
                        (Reply::Error { code, message }, waiting)
                    }
                    _ => {
                        let mut container = self.containers.remove(&id);
                        if let Some(c) = &mut container {
                            wires.close_pipes(&c.pipes);
                            c.end_taps(wires, true);
                        }
                        (Reply::Ok, container.map(|c| c.delete))
                    }
                };
                for asker in waiting.unwrap_or_default() {
                    wires.reply(asker, reply.clone(), vec![]);
                }
                return;
            }
            JobKind::Exec { exec_id } => {
                let result = match failure {
                    Some(failure) => Err(failure),
                    None => take_pid(&job.pid_file),
                };
                match result {
                    Ok(pid) => return self.exec_started(wires, job.asker, &exec_id, pid),
                    Err(failure) => {
                        if let Some(exec) = self.execs.remove(&exec_id) {
                            wires.close_pipes(&exec.pipes);
                        }
                        failure
                    }
                }
            }
        };
        wires.reply(job.asker, reply, vec![]);
    }

    /// Output first, then the durable record, then the news.
    fn exited(&mut self, wires: &mut Wires, id: String, ended: Ended) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        let tokens = container.pipes.clone();
        // At once: a cgroup may go when it is empty.
        let oom_killed = container.oom.take().is_some_and(|watch| watch.killed(ended.signal));
        // Nobody holds it back any more.
        container.state = State::Exited;
        wires.drain(self, &tokens);
        let Some(container) = self.containers.get_mut(&id) else { return };
        let record = ExitRecord {
            exit_code: ended.exit_code,
            signal: ended.signal,
            finished_at_ns: ended.at_ns,
            oom_killed,
        };
        if let Err(e) = record.write(&container.exit_file) {
            // Told all the same: a pod must not hang because a disk is full.
            eprintln!("container {id}: exit record {}: {e}", container.exit_file.display());
        }
        container.record = Some(record);
        container.stdin = None;
        let waiting = container.delete.clone();
        wires.broadcast(Event::Exited {
            id: id.clone(),
            exit_code: record.exit_code,
            oom_killed: record.oom_killed,
            finished_at_ns: record.finished_at_ns,
        });
        container.end_of_taps(wires);
        if !waiting.is_empty()
            && let Err(refusal) = self.run_delete(id)
        {
            for asker in waiting {
                wires.reply(asker, refusal.clone(), vec![]);
            }
        }
    }
}

fn null_stdio() -> [Stdio; 3] {
    [Stdio::null(), Stdio::null(), Stdio::null()]
}

fn system(what: &str, e: &std::io::Error) -> Reply {
    refused(ErrorCode::System, &format!("{what}: {e}"))
}

fn send_signal(pid: u32, signo: u8) -> Result<Outcome, Reply> {
    if !(1..=64).contains(&signo) {
        return Err(refused(ErrorCode::Invalid, "signo must be 1 to 64"));
    }
    kill(pid, signo).map_err(|e| system("kill failed", &e))?;
    Ok(Some((Reply::Ok, vec![])))
}

fn good_name(id: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    (1..=128).contains(&id.len()) && !id.starts_with(['-', '.']) && id.bytes().all(good)
}

/// The pid that runc wrote; the file is removed.
fn take_pid(path: &Path) -> Result<u32, Reply> {
    let text = std::fs::read_to_string(path).map_err(|e| system("pid file could not be read", &e))?;
    std::fs::remove_file(path).map_err(|e| system("pid file could not be removed", &e))?;
    text.trim().parse().map_err(|_| refused(ErrorCode::Runc, "runc wrote no pid"))
}
