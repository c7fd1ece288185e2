//! A checkpoint of a running container: its memory, what it changed of its image and what is known of it, in one
//! archive; the container goes on after it.
//!
//! journalled → frozen (`runc pause`) → memory written (`runc checkpoint`, by criu) and files archived → thawed →
//! archive written → archive named → forgotten. Frozen, because files and memory must be of one moment. What is
//! unfinished lies in the container's own directory and in one file beside the location; the journal names it, so
//! that a restart thaws the container and removes both. It holds the container's lock: a stop waits for it.

mod archive;
mod changes;
pub mod criu;
mod dumps;
mod location;
mod processes;

use super::oci;
use crate::error::{OpError, blocking};
use crate::ids::Id;
use crate::journal::private_dir;
use crate::points::{self, Point};
use crate::rootfs;
use crate::spec::{self, SpecError};
use crate::state::{Container, Runtime, Stage};
use crate::status::{container_status, options, sandbox_config};
use archive::Until;
use location::Location;
use podway_cri::v1::PodSandboxConfig;
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For a request that names no time: the kubelet's `runtimeRequestTimeout`.
const DEFAULT_TIMEOUT: u64 = 120;
/// The most that is waited for, whatever is asked.
const MOST: u64 = 24 * 60 * 60;

/// Writes a checkpoint of a container to `location` within `timeout` seconds (0: the default).
///
/// # Errors
/// [`OpError`]; nothing is left of it then, and the container goes on.
pub async fn checkpoint(
    runtime: &Arc<Runtime>,
    id: &Id,
    location: String,
    timeout: i64,
) -> Result<(), OpError> {
    let seconds = match u64::try_from(timeout) {
        Ok(0) => DEFAULT_TIMEOUT,
        Ok(seconds) => seconds.min(MOST),
        Err(_) => return Err(OpError::Invalid(format!("timeout {timeout} is negative"))),
    };
    let (runtime, id) = (Arc::clone(runtime), id.clone());
    // A task of its own: a client that hangs up does not leave the container frozen.
    let task = tokio::spawn(async move {
        let begun = Instant::now();
        let result = whole(&runtime, &id, location, begun + Duration::from_secs(seconds)).await;
        runtime.metrics.checkpoint(begun.elapsed(), result.is_ok());
        result.map_err(|error| match error {
            OpError::Io(_, e) if e.kind() == io::ErrorKind::TimedOut => {
                OpError::Deadline(format!("checkpointing container {id} took longer than {seconds} s"))
            }
            other => other,
        })
    });
    task.await.unwrap_or_else(|e| Err(OpError::Worker(e)))
}

async fn whole(runtime: &Arc<Runtime>, id: &Id, location: String, deadline: Instant) -> Result<(), OpError> {
    let lock = runtime.locks.of(id);
    let _alone = lock.write().await;
    let entry = runtime.known_container(id)?;
    let own = [runtime.config.root.clone(), runtime.config.state.clone()];
    let location = blocking(move || Location::parse(&location, &[&own[0], &own[1]])).await?;
    if entry.stage != Stage::Running {
        let state = container_status(id, &entry).state().as_str_name();
        return Err(OpError::Precondition(format!(
            "container {:?} is in {state} state. only CONTAINER_RUNNING containers can be checkpointed",
            id.as_str()
        )));
    }
    criu::look().await.map_err(|e| OpError::Criu(id.to_string(), e))?;
    if let Some(staged) = &entry.checkpoint {
        undo(runtime, id, staged).await?;
    }
    let staged = location.staged(id);
    let work = work(runtime, id);
    let (state, of, unfinished, at) = (Arc::clone(runtime), id.clone(), staged.clone(), work.clone());
    blocking(move || {
        state.update_container(&of, |c| c.checkpoint = Some(unfinished))?;
        points::at(Point::CheckpointIntent);
        private_dir(&at.join("checkpoint")).map_err(|e| OpError::Io("make the checkpoint's directory", e))
    })
    .await?;
    let made = async {
        take(runtime, id, &entry, &work, deadline).await?;
        let (log, of) = (PathBuf::from(&entry.log_path), staged.clone());
        let write = move || archive::write(&work, &log, &of, &location, deadline);
        blocking(move || write().map_err(|e| OpError::Io("write the checkpoint's archive", e))).await
    };
    match made.await {
        Ok(()) => forget(runtime, id, &staged).await,
        Err(error) => {
            if let Err(undo) = undo(runtime, id, &staged).await {
                tracing::error!(container = %id, error = undo.chain(), "a checkpoint was not wholly undone");
            }
            Err(error)
        }
    }
}

/// The directory of a checkpoint that is not archived yet.
fn work(runtime: &Runtime, id: &Id) -> PathBuf {
    runtime.container_dir(id).join("checkpoint")
}

/// Freezes the container, fills `work` and lets it go on. After an error it is frozen still.
async fn take(
    runtime: &Arc<Runtime>,
    id: &Id,
    entry: &Container,
    work: &Path,
    deadline: Instant,
) -> Result<(), OpError> {
    call(runtime, id, entry, "pause").await?;
    points::at(Point::CheckpointFrozen);
    dump(runtime, id, entry, work, deadline).await?;
    points::at(Point::CheckpointDumped);
    let (state, of, entry, to) = (Arc::clone(runtime), id.clone(), entry.clone(), work.to_owned());
    let entry = blocking(move || {
        let pod = state.known_sandbox(&entry.sandbox)?;
        let asked = sandbox_config(&pod)?;
        let spec = dumps::write(&state, &of, &entry, (&pod, &asked), &to)?;
        files(&state, &of, &entry, &asked, &spec, &to, deadline)?;
        Ok(entry)
    })
    .await?;
    call(runtime, id, &entry, "resume").await?;
    points::at(Point::CheckpointTaken);
    Ok(())
}

/// A call of the OCI runtime that takes nothing but the container; gives what it says.
async fn call(runtime: &Runtime, id: &Id, entry: &Container, verb: &'static str) -> Result<Vec<u8>, OpError> {
    let mut command = oci::command(runtime, &entry.sandbox, verb)?;
    command.arg(id.as_str());
    oci::run(verb, command, &[]).await
}

/// The container's memory, by criu. A dump that takes too long is broken off: the OCI runtime is killed.
async fn dump(
    runtime: &Runtime,
    id: &Id,
    entry: &Container,
    work: &Path,
    deadline: Instant,
) -> Result<(), OpError> {
    let mut command = oci::command(runtime, &entry.sandbox, "checkpoint")?;
    command.args(["--leave-running", "--image-path"]).arg(work.join("checkpoint"));
    command.arg("--work-path").arg(work).arg(id.as_str()).kill_on_drop(true);
    match tokio::time::timeout_at(deadline.into(), oci::run("checkpoint", command, &[])).await {
        Err(_) => Err(OpError::Io("dump the container's memory", io::ErrorKind::TimedOut.into())),
        Ok(Err(OpError::Runc(said))) => {
            // The OCI runtime knows only that criu failed; criu's log says why.
            let log = tokio::fs::read(work.join("dump.log")).await.unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let why =
                criu::first_error(&log).map(|why| format!(": {}", podway_flow::record::bounded(why, 300)));
            Err(OpError::Runc(said + &why.unwrap_or_default()))
        }
        Ok(result) => result.map(drop),
    }
}

/// `rootfs-diff.tar` and `deleted.files`, where there is something to tell. Blocks.
fn files(
    runtime: &Runtime,
    id: &Id,
    entry: &Container,
    pod: &PodSandboxConfig,
    spec: &Value,
    work: &Path,
    deadline: Instant,
) -> Result<(), OpError> {
    let mounts = spec["mounts"].as_array().into_iter().flatten();
    let mounted = mounts.filter_map(|m| Some(PathBuf::from(m["destination"].as_str()?.strip_prefix('/')?)));
    let root = changes::Root {
        layers: entry.layers.clone(),
        upper: runtime.container_dir(id).join("upper"),
        merged: runtime.bundle(id).join("rootfs"),
        mounted: mounted.collect(),
        owner: spec::mapping(&options(pod))?,
    };
    let archived = || -> io::Result<Vec<String>> {
        let file = archive::private_file(&work.join("rootfs-diff.tar"))?;
        changes::write(&root, Until { inner: io::BufWriter::new(file), deadline })
    };
    let deleted = archived().map_err(|e| OpError::Io("archive the container's files", e))?;
    if !deleted.is_empty() {
        let list = serde_json::to_value(deleted).map_err(SpecError::Shape)?;
        dumps::put(work, "deleted.files", &list)?;
    }
    Ok(())
}

/// Undoes what was begun: who works on it ends, the container goes on, and no file is left. May be repeated.
///
/// # Errors
/// [`OpError`]; it stays journalled then, and the next checkpoint, the next start or the removal tries again.
pub async fn undo(runtime: &Arc<Runtime>, id: &Id, staged: &Path) -> Result<(), OpError> {
    let entry = runtime.known_container(id)?;
    if entry.stage == Stage::Running {
        let oci = &runtime.oci(&entry.sandbox)?.path;
        let ended = processes::ended(&work(runtime, id), oci).await;
        ended.map_err(|e| OpError::Io("end a dump that was broken off", e))?;
        let state = call(runtime, id, &entry, "state").await?;
        let state: Value = serde_json::from_slice(&state).map_err(SpecError::Shape)?;
        if state["status"] == "paused" {
            call(runtime, id, &entry, "resume").await?;
        }
    }
    forget(runtime, id, staged).await
}

/// Removes what is unfinished, and its mention in the journal.
async fn forget(runtime: &Arc<Runtime>, id: &Id, staged: &Path) -> Result<(), OpError> {
    let (state, of, staged) = (Arc::clone(runtime), id.clone(), staged.to_owned());
    blocking(move || {
        rootfs::remove_file(&staged).map_err(|e| OpError::Io("remove an unfinished checkpoint", e))?;
        let work = work(&state, &of);
        rootfs::remove_tree(&work).map_err(|e| OpError::Io("remove the checkpoint's directory", e))?;
        state.update_container(&of, |c| c.checkpoint = None)?;
        Ok(())
    })
    .await
}
