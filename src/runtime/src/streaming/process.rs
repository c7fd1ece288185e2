//! A process to stream to: started by the pod's monitor on our pipes or on a terminal, its exit heard.

use super::attach::Attached;
use super::output::Output;
use crate::container;
use crate::error::{OpError, blocking};
use crate::ids::Id;
use crate::state::Runtime;
use crate::supervisor::SupervisorError;
use podway_monitor::{Client, ClientError, Console, Event, Message, Reply, Request};
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::oneshot;

/// What to run.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The container.
    pub container: Id,
    /// The command.
    pub cmd: Vec<String>,
    /// Which streams the client has.
    pub streams: super::client::Streams,
}

/// What runs, and its stdio.
#[derive(Debug)]
pub struct Process {
    /// Its standard input, or the terminal's master.
    pub stdin: Option<Sender>,
    /// Its standard output, or the terminal's master.
    pub stdout: Option<Output>,
    /// Its standard error.
    pub stderr: Option<Output>,
    /// The terminal, to set its size.
    pub terminal: Option<OwnedFd>,
    /// What ends the session.
    pub end: End,
}

/// What ends a session.
#[derive(Debug)]
pub enum End {
    /// The process' exit code; an error if the monitor ended first.
    Exit(oneshot::Receiver<i32>),
    /// The end of a container that runs by itself.
    Container(Attached),
}

/// Starts it.
///
/// # Errors
/// [`OpError`].
pub async fn start(runtime: &Arc<Runtime>, wanted: Wanted) -> Result<Process, OpError> {
    let state = Arc::clone(runtime);
    // Pipes are registered with the reactor here, the rest blocks.
    let started = blocking(move || begin(&state, &wanted)).await?;
    let io = |e| OpError::Io("watch the process' pipes", e);
    let reading = |fd: Option<OwnedFd>| {
        fd.map(|fd| Receiver::from_file_unchecked(File::from(fd)).map(Output::Pipe)).transpose().map_err(io)
    };
    Ok(Process {
        stdin: started.stdin.map(|fd| Sender::from_file_unchecked(File::from(fd))).transpose().map_err(io)?,
        stdout: reading(started.stdout)?,
        stderr: reading(started.stderr)?,
        terminal: started.terminal,
        end: End::Exit(started.exit),
    })
}

struct Started {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    exit: oneshot::Receiver<i32>,
}

fn pipe_error(e: rustix::io::Errno) -> OpError {
    OpError::Io("make a pipe", e.into())
}

fn begin(runtime: &Runtime, wanted: &Wanted) -> Result<Started, OpError> {
    let file = container::exec_file(runtime, &wanted.container, &wanted.cmd, wanted.streams.tty)?;
    let entry = runtime.known_container(&wanted.container)?;
    let socket = runtime.monitor_socket(&entry.sandbox);
    let client = Client::connect(&socket).map_err(SupervisorError::from)?;
    let request = |console_socket| Request::ExecIo {
        id: wanted.container.to_string(),
        exec_id: file.exec_id.clone(),
        process_json_path: file.path.clone(),
        console_socket,
    };
    let streams = wanted.streams;
    if streams.tty {
        // A socket's path has at most 107 bytes: a short name in a short directory.
        let path = runtime.config.state.join("m").join(format!("{}.tty", &file.exec_id[..12]));
        let console = Console::bind(&path).map_err(|e| OpError::Io("make the console socket", e))?;
        let exit = ask(client, &request(Some(path)), &[], &file.exec_id)?;
        let master = console.master().map_err(|e| OpError::Io("receive the terminal", e))?;
        let copy = || master.try_clone().map_err(|e| OpError::Io("duplicate the terminal", e));
        return Ok(Started {
            stdin: Some(copy()?),
            stdout: Some(copy()?),
            stderr: None,
            terminal: Some(master),
            exit,
        });
    }
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = OwnedFd::from(null.map_err(|e| OpError::Io("open /dev/null", e))?);
    let theirs_or_null = |fd: Option<OwnedFd>| match fd {
        Some(fd) => Ok(fd),
        None => null.try_clone().map_err(|e| OpError::Io("open /dev/null", e)),
    };
    let pipe = |wanted: bool| -> Result<(Option<OwnedFd>, Option<OwnedFd>), OpError> {
        if !wanted {
            return Ok((None, None));
        }
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(pipe_error)?;
        Ok((Some(read), Some(write)))
    };
    let ((stdin_theirs, stdin), (stdout, stdout_theirs), (stderr, stderr_theirs)) =
        (pipe(streams.stdin)?, pipe(streams.stdout)?, pipe(streams.stderr)?);
    for ours in [&stdin, &stdout, &stderr].into_iter().flatten() {
        rustix::io::ioctl_fionbio(ours, true).map_err(pipe_error)?;
    }
    let theirs =
        [theirs_or_null(stdin_theirs)?, theirs_or_null(stdout_theirs)?, theirs_or_null(stderr_theirs)?];
    let exit = ask(client, &request(None), &theirs, &file.exec_id)?;
    Ok(Started { stdin, stdout, stderr, terminal: None, exit })
}

/// Has it started, then hears of its exit on a thread of its own.
fn ask(
    mut client: Client,
    request: &Request,
    fds: &[OwnedFd],
    exec_id: &str,
) -> Result<oneshot::Receiver<i32>, OpError> {
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    let answer = client.call_with_fds(request, &fds);
    let (reply, _) = answer.map_err(|e| OpError::of_runc("exec", e.into()))?;
    if !matches!(reply, Reply::ExecStarted { .. }) {
        return Err(SupervisorError::Unexpected.into());
    }
    let (sender, exit) = oneshot::channel();
    let exec_id = exec_id.to_owned();
    let wait = move || {
        let code = |event: Event| match event {
            Event::ExecExited { exec_id: of, exit_code } if of == exec_id => Some(exit_code),
            _ => None,
        };
        while let Some(event) = client.take_event() {
            if let Some(code) = code(event) {
                return tell(sender, code);
            }
        }
        // Without a sender left, the receiver knows that the monitor has ended.
        while let Ok(received) = client.recv() {
            if let Message::Event(event) = received.message
                && let Some(code) = code(event)
            {
                return tell(sender, code);
            }
        }
    };
    std::thread::Builder::new()
        .name("exec".to_owned())
        .stack_size(256 * 1024)
        .spawn(wait)
        .map_err(|e| SupervisorError::Client(ClientError::Socket(e)))?;
    Ok(exit)
}

fn tell(sender: oneshot::Sender<i32>, code: i32) {
    if sender.send(code).is_err() {
        tracing::debug!(code, "an exec ended after its client had left");
    }
}
