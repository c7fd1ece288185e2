//! The creation of a container: `runc create` with our end of its stdio, and what it has made of it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;

use podway_monitor::console::Console;
use podway_monitor::protocol::{Create, ErrorCode, Reply, State};
use rustix::pipe::{PipeFlags, pipe_with};

use super::{Container, JobKind, Outcome, Pod, good_name, null_stdio, system};
use crate::log::{CriLog, Stream};
use crate::oom::Watch;
use crate::process::Runc;
use crate::server::{Asker, Sink, Wires, refused};

/// Our end of a container's output, while runc makes the other.
pub(super) enum Output {
    Pipes([OwnedFd; 2]),
    Terminal(Console),
}

impl Pod {
    pub(super) fn create(&mut self, asker: Asker, create: Create) -> Result<Outcome, Reply> {
        if !good_name(&create.id) {
            return Err(refused(ErrorCode::Invalid, "id must be [A-Za-z0-9_.-], 1 to 128 bytes"));
        }
        // A runtime that died before it heard asks again: the container is created once.
        match self.containers.get_mut(&create.id) {
            None => {}
            Some(c) if c.state == State::Creating => {
                c.waiters.push(asker);
                return Ok(None);
            }
            Some(c) if c.state != State::Exited => {
                let created = Reply::Created { pid: c.pid, micros: 0, argv: vec![] };
                return Ok(Some((created, vec![])));
            }
            Some(_) => return Err(refused(ErrorCode::Exists, &format!("container {} exists", create.id))),
        }
        let log = CriLog::open(create.log_path).map_err(|e| system("log_path could not be opened", &e))?;
        let runc = Runc { binary: create.runc, root: create.runc_root, log: create.runc_log };
        let pid_file = self.pid_file();
        // An option of runc's own, before the verb. The container's state keeps it for what comes later.
        let mut rest: Vec<&OsStr> =
            create.systemd_cgroup.then_some("--systemd-cgroup".as_ref()).into_iter().collect();
        rest.extend::<[&OsStr; 5]>([
            "create".as_ref(),
            "--bundle".as_ref(),
            create.bundle.as_ref(),
            "--pid-file".as_ref(),
            pid_file.as_ref(),
        ]);
        if let Some(console) = &create.console_socket {
            rest.extend(["--console-socket".as_ref(), console.as_os_str()]);
        }
        rest.extend(create.extra_args.iter().map(OsStr::new));
        rest.push(create.id.as_ref());
        let arguments = runc.arguments(&rest);
        let mut argv = vec![runc.binary.display().to_string()];
        argv.extend(arguments.iter().map(|a| a.to_string_lossy().into_owned()));

        let (ours, stdin, stdio) = stdio(create.console_socket.as_ref(), create.stdin)?;
        let kind = JobKind::Create { id: create.id.clone(), ours, argv };
        self.job(asker, kind, runc.clone(), &arguments, stdio, pid_file)?;
        let container = Container {
            runc,
            pid: 0,
            state: State::Creating,
            log,
            exit_file: create.exit_file,
            memory_cgroup: create.memory_cgroup.map(|cgroup| (cgroup, create.systemd_cgroup)),
            oom: None,
            stdin,
            terminal: create.console_socket.is_some(),
            pipes: vec![],
            taps: vec![],
            record: None,
            delete: vec![],
            starting: false,
            waiters: vec![],
        };
        self.containers.insert(create.id, container);
        Ok(None)
    }

    /// runc has made it: from now on its output is read. A terminal's master is its input as well.
    pub(super) fn created(
        &mut self,
        wires: &mut Wires,
        id: &str,
        pid: u32,
        ours: Output,
    ) -> Result<(), Reply> {
        let container = self.container(id)?;
        container.pid = pid;
        container.state = State::Created;
        container.oom = container.memory_cgroup.take().map(|(cgroup, scope)| Watch::begin(cgroup, scope));
        let mut watch = |fd: OwnedFd, stream| -> io::Result<()> {
            container.pipes.push(wires.add_pipe(fd, Sink::Container(id.to_owned(), stream))?);
            Ok(())
        };
        match ours {
            Output::Pipes([out, err]) => watch(out, Stream::Stdout).and_then(|()| watch(err, Stream::Stderr)),
            Output::Terminal(console) => console.master().and_then(|master| {
                let input = master.try_clone()?;
                watch(master, Stream::Stdout)?;
                container.stdin = Some(input);
                Ok(())
            }),
        }
        .map_err(|e| system("output could not be watched", &e))
    }
}

/// Our ends, and what runc is started with.
fn stdio(console: Option<&PathBuf>, stdin: bool) -> Result<(Output, Option<OwnedFd>, [Stdio; 3]), Reply> {
    if let Some(path) = console {
        let console = Console::bind(path).map_err(|e| system("console_socket could not be made", &e))?;
        return Ok((Output::Terminal(console), None, null_stdio()));
    }
    let pipes = |e: rustix::io::Errno| system("pipe failed", &e.into());
    let (out, out_theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(pipes)?;
    let (err, err_theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(pipes)?;
    let (stdin_theirs, stdin) = match stdin {
        true => pipe_with(PipeFlags::CLOEXEC).map_err(pipes).map(|(r, w)| (r.into(), Some(w)))?,
        false => (Stdio::null(), None),
    };
    Ok((Output::Pipes([out, err]), stdin, [stdin_theirs, out_theirs.into(), err_theirs.into()]))
}
