//! Attaching to what runs: the pod's monitor sends a container's output into our pipes as well, and
//! hands out the other end of its standard input.

use super::output::Output;
use super::process::{End, Process};
use crate::error::{OpError, blocking};
use crate::ids::Id;
use crate::state::{Runtime, Stage};
use crate::status::container_config;
use crate::supervisor::{self, SupervisorError};
use podway_monitor::{Client, Request};
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::unix::pipe::{Receiver, Sender};

/// How much the pipe of a client that only looks on may hold, in bytes.
const PIPE: usize = 1 << 20;
/// How long after the end of its output a container's exit is waited for.
const NEWS: Duration = Duration::from_secs(5);

/// What to attach to.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The container.
    pub container: Id,
    /// Which streams.
    pub streams: super::client::Streams,
}

/// A session on a container that goes on without it.
pub struct Attached {
    runtime: Arc<Runtime>,
    container: Id,
    /// The client gets output: its end is the session's.
    pub(super) outputs: bool,
    /// The client's input is the container's.
    input: bool,
    /// The first end of a client's input is the end of the container's.
    once: bool,
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attached").field("container", &self.container).finish_non_exhaustive()
    }
}

impl Attached {
    /// The end of the output, or of the container where no output is wanted: a good end if the
    /// container has ended.
    pub(super) async fn ended(&self) -> Result<i32, String> {
        let exited = self.runtime.exited(&self.container);
        if !self.outputs {
            exited.await;
            return Ok(0);
        }
        let cut = "the output is cut off: the client reads too slowly, or the pod's monitor has ended";
        tokio::time::timeout(NEWS, exited).await.map(|()| 0).map_err(|_| cut.to_owned())
    }

    /// As containerd has it (`container_attach.go`): with stdinOnce the container's input ends and its
    /// output is waited for; without, the session ends and the container's input stays open.
    pub(super) async fn input_ended(&mut self) -> bool {
        if !self.input {
            return false;
        }
        self.input = false;
        if !self.once {
            return true;
        }
        let Some(entry) = self.runtime.container(&self.container) else { return false };
        let request = Request::CloseStdin { id: self.container.to_string() };
        if let Err(error) = supervisor::call(&self.runtime.monitor_socket(&entry.sandbox), request).await {
            tracing::debug!(container = %self.container, %error, "a standard input was not closed");
        }
        false
    }
}

/// Attaches.
///
/// # Errors
/// [`OpError`].
pub async fn start(runtime: &Arc<Runtime>, wanted: Wanted) -> Result<Process, OpError> {
    let state = Arc::clone(runtime);
    let Wanted { container, streams } = wanted;
    let of = container.clone();
    let begun = blocking(move || begin(&state, &of, streams)).await?;
    let io = |e| OpError::Io("watch the container's pipes", e);
    let output = |fd: Option<OwnedFd>| -> Result<Option<Output>, OpError> {
        let Some(fd) = fd else { return Ok(None) };
        let pipe = Receiver::from_file_unchecked(File::from(fd)).map_err(io)?;
        Ok(Some(if begun.input { Output::Pipe(pipe) } else { Output::queue(pipe) }))
    };
    let (stdout, stderr) = (output(begun.stdout)?, output(begun.stderr)?);
    let stdin = begun.stdin.map(|fd| Sender::from_file_unchecked(File::from(fd))).transpose().map_err(io)?;
    let end = End::Container(Attached {
        runtime: Arc::clone(runtime),
        container,
        outputs: stdout.is_some() || stderr.is_some(),
        input: begun.input,
        once: begun.once,
    });
    Ok(Process { stdin, stdout, stderr, terminal: begun.terminal, end })
}

struct Begun {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    input: bool,
    once: bool,
}

fn begin(runtime: &Runtime, id: &Id, streams: super::client::Streams) -> Result<Begun, OpError> {
    let entry = runtime.known_container(id)?;
    if entry.stage != Stage::Running {
        return Err(OpError::Precondition(format!("container {id} is not running")));
    }
    let config = container_config(&entry)?;
    // A container without an input has none to attach to, as in containerd.
    let input = streams.stdin && config.stdin;
    let pipe = |wanted: bool| -> Result<(Option<OwnedFd>, Option<OwnedFd>), OpError> {
        if !wanted {
            return Ok((None, None));
        }
        let error = |e: rustix::io::Errno| OpError::Io("make a pipe", e.into());
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(error)?;
        rustix::io::ioctl_fionbio(&read, true).map_err(error)?;
        if !input && let Err(error) = rustix::pipe::fcntl_setpipe_size(&write, PIPE) {
            // Over the user's limit: the queue behind it is read the sooner.
            tracing::debug!(%error, "a pipe keeps its size");
        }
        Ok((Some(read), Some(write)))
    };
    // A terminal has one output.
    let ((stdout, stdout_theirs), (stderr, stderr_theirs)) =
        (pipe(streams.stdout)?, pipe(streams.stderr && !config.tty)?);
    let request = Request::Attach {
        id: id.to_string(),
        stdin: input,
        stdout: stdout.is_some(),
        stderr: stderr.is_some(),
    };
    let mut client =
        Client::connect(&runtime.monitor_socket(&entry.sandbox)).map_err(SupervisorError::from)?;
    let theirs = [stdout_theirs, stderr_theirs];
    let fds: Vec<_> = theirs.iter().flatten().map(|fd| fd.as_fd()).collect();
    let (_, handed) = client.call_with_fds(&request, &fds).map_err(SupervisorError::from)?;
    let handed = handed.into_iter().next();
    let copy = |fd: &OwnedFd| fd.try_clone().map_err(|e| OpError::Io("duplicate the terminal", e));
    let (stdin, terminal) = match handed {
        Some(master) if config.tty => (input.then(|| copy(&master)).transpose()?, Some(master)),
        other => (other, None),
    };
    if let Some(stdin) = &stdin {
        rustix::io::ioctl_fionbio(stdin, true).map_err(|e| OpError::Io("set up the input", e.into()))?;
    }
    Ok(Begun { stdin, stdout, stderr, terminal, input, once: config.stdin_once && !config.tty })
}
