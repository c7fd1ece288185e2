//! The OCI runtime called beside the monitor: what it does to a container that stays the monitor's child.

use crate::error::OpError;
use crate::ids::Id;
use crate::state::Runtime;
use std::process::Stdio;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// `runc <verb>` for containers of a sandbox; arguments and the container's id are the caller's to add.
///
/// # Errors
/// [`OpError::Precondition`] where the sandbox' OCI runtime is configured no more.
pub(super) fn command(runtime: &Runtime, sandbox: &Id, verb: &str) -> Result<Command, OpError> {
    let mut command = Command::new(&runtime.oci(sandbox)?.path);
    // A log apart, so that stderr has the error as it is and not as a line of a log.
    command.arg("--root").arg(runtime.config.state.join("runc")).args(["--log", "/dev/null", verb]);
    Ok(command)
}

/// Runs it to its end with `input`; gives its standard output.
///
/// # Errors
/// [`OpError::Runc`] with the last thing that it said.
pub(super) async fn run(verb: &'static str, mut command: Command, input: &[u8]) -> Result<Vec<u8>, OpError> {
    let io = |e| OpError::Io("run the OCI runtime", e);
    let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
    let mut child = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(io)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input).await.map_err(io)?;
    }
    let output = child.wait_with_output().await.map_err(io)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it said nothing");
    Err(OpError::Runc(format!("OCI runtime {verb} failed: {}", podway_flow::record::bounded(last, 500))))
}
