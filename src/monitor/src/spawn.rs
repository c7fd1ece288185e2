//! Starting a monitor: the socket listens before the process exists, so nothing waits for it.
//!
//! The listening socket is the monitor's standard input; the monitor forks once, prints the pid
//! of the process that stays, and leaves its parent's session. Its own log is
//! `<state dir>/monitor.log`.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Starts the monitor `binary` listening at `socket` (at most 107 bytes, replaced if it is there;
/// its directory must exist) with its state in `state_dir` (made 0700). Gives its pid. A client may
/// connect at once. The monitor is nobody's child here: it need not be reaped.
pub fn spawn(binary: &Path, socket: &Path, state_dir: &Path) -> io::Result<u32> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&listener, &SocketAddrUnix::new(socket)?)?;
    // Nobody can connect before `listen`, so there is no moment with wider permissions.
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&listener, 16)?;
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(state_dir.join("monitor.log"))?;

    let mut child = Command::new(binary)
        .arg("--socket")
        .arg(socket)
        .arg("--state-dir")
        .arg(state_dir)
        .current_dir("/")
        .stdin(Stdio::from(listener))
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()?;
    let mut text = String::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_string(&mut text)?;
    }
    let status = child.wait()?;
    match text.trim().parse() {
        Ok(pid) if status.success() => Ok(pid),
        _ => Err(io::Error::other(format!(
            "monitor did not start ({status}): see {}",
            state_dir.join("monitor.log").display()
        ))),
    }
}
