//! A command in a running container: its process object, and the one that is run to its end.

use crate::error::{OpError, blocking};
use crate::ids::Id;
use crate::journal::private_dir;
use crate::state::{Runtime, Stage};
use crate::{spec, supervisor};
use podway_monitor::{Reply, Request};
use std::path::PathBuf;
use std::sync::Arc;

/// A process to run in a container: its OCI process object on disk, deleted when this is dropped.
#[derive(Debug)]
pub struct ExecFile {
    /// A name for it, unique in the monitor.
    pub exec_id: String,
    /// Where it is.
    pub path: PathBuf,
}

impl Drop for ExecFile {
    fn drop(&mut self) {
        // One that stays is removed with the bundle.
        drop(std::fs::remove_file(&self.path));
    }
}

/// Writes the process object of an exec: the container's own with another command. Blocks.
///
/// # Errors
/// [`OpError`] for a container that does not run, or an empty command.
pub fn exec_file(runtime: &Runtime, id: &Id, cmd: &[String], tty: bool) -> Result<ExecFile, OpError> {
    if runtime.known_container(id)?.stage != Stage::Running {
        return Err(OpError::Precondition(format!("container {id} is not running")));
    }
    if cmd.is_empty() {
        return Err(OpError::Invalid("cmd is empty".to_owned()));
    }
    let bundle = runtime.bundle(id);
    let text = std::fs::read(bundle.join("config.json")).map_err(|e| OpError::Io("read config.json", e))?;
    let mut spec: serde_json::Value = serde_json::from_slice(&text).map_err(spec::SpecError::Shape)?;
    let mut process = spec["process"].take();
    process["args"] = serde_json::json!(cmd);
    process["terminal"] = serde_json::json!(tty);
    if tty && let Some(env) = process["env"].as_array_mut() {
        // Programs ask what kind of terminal theirs is; the container need not have one of its own.
        let is_set = env.iter().any(|v| v.as_str().is_some_and(|v| v.starts_with("TERM=")));
        if !is_set {
            env.push(serde_json::json!("TERM=xterm"));
        }
    }
    let exec_id = Id::random().map_err(|e| OpError::Io("draw an id", e))?.to_string();
    let dir = bundle.join("exec");
    private_dir(&dir).map_err(|e| OpError::Io("make the exec directory", e))?;
    let file = ExecFile { path: dir.join(&exec_id), exec_id };
    std::fs::write(&file.path, process.to_string()).map_err(|e| OpError::Io("write process.json", e))?;
    Ok(file)
}

/// The most output of a command, both streams together: what the CRI allows, less what is around it in
/// the answer, for clients take no message over 16 MiB.
const MAX_OUTPUT: u32 = podway_monitor::protocol::MAX_CAPTURE - 1024;

/// Runs a command in a container to its end: exit code, stdout, stderr (16 MiB together at most, the
/// rest is dropped). At `timeout` its process group is killed.
///
/// # Errors
/// [`OpError`]; a command that took longer than `timeout` seconds (0: none) is one.
pub async fn exec_sync(
    runtime: &Arc<Runtime>,
    id: &Id,
    cmd: Vec<String>,
    timeout: i64,
) -> Result<(i32, Vec<u8>, Vec<u8>), OpError> {
    let entry = runtime.known_container(id)?;
    let (state, of) = (Arc::clone(runtime), id.clone());
    let file = blocking(move || exec_file(&state, &of, &cmd, false)).await?;
    let request = Request::Exec {
        id: id.to_string(),
        exec_id: file.exec_id.clone(),
        process_json_path: file.path.clone(),
        timeout_ms: u64::try_from(timeout).unwrap_or(0).saturating_mul(1000),
        capture_limit: MAX_OUTPUT,
    };
    let answer = supervisor::call(&runtime.monitor_socket(&entry.sandbox), request).await;
    match answer.map_err(|e| OpError::of_runc("exec", e))? {
        Reply::ExecDone { timed_out: true, .. } => {
            Err(OpError::Deadline(format!("command timed out after {timeout} s")))
        }
        Reply::ExecDone { exit_code, stdout, stderr, .. } => Ok((exit_code, stdout, stderr)),
        _ => Err(supervisor::SupervisorError::Unexpected.into()),
    }
}
