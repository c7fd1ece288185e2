//! Start, stop and removal: a container that was created, up to nothing being left of it.

use crate::error::{Failure, OpError, blocking};
use crate::ids::Id;
use crate::names::Made;
use crate::state::{Container, Runtime, Stage};
use crate::status::container_config;
use crate::{follow, orphan, rootfs, supervisor};
use podway_flow::{Phase, Recorder, Writer};
use podway_monitor::{ClientError, ErrorCode, Reply, Request};
use std::sync::Arc;
use std::time::Duration;

pub(super) fn known(runtime: &Runtime, id: &Id) -> Result<Container, OpError> {
    runtime.container(id).ok_or_else(|| OpError::NotFound("container", id.to_string()))
}

/// Starts a created container. One that runs is started already: a retried call has one effect.
///
/// # Errors
/// [`Failure`].
pub async fn start(runtime: &Arc<Runtime>, id: &Id) -> Result<Made, Failure> {
    let recorder = Recorder::new(Writer::Runtime, runtime.clock);
    let (runtime, id) = (Arc::clone(runtime), id.clone());
    // A task of its own: a client that hangs up does not leave it half started.
    let task = tokio::spawn(async move {
        let lock = runtime.locks.of(&id);
        let _alone = lock.write().await;
        match start_alone(&runtime, &id, &recorder).await {
            Ok(()) => {
                let records = recorder.take();
                runtime.metrics.observe(&records);
                Ok(Made { id, records })
            }
            Err(error) => {
                let failure = Failure::new(&error, &recorder);
                runtime.metrics.observe(&failure.records);
                let kept = failure.records.clone();
                let keep = blocking(move || Ok(runtime.update_container(&id, |c| c.records.extend(kept))?));
                if let Err(error) = keep.await {
                    tracing::error!(error = error.chain(), "a failed start's records were not kept");
                }
                Err(failure)
            }
        }
    });
    task.await.unwrap_or_else(|e| Err(Failure::internal(&e.to_string())))
}

async fn start_alone(runtime: &Arc<Runtime>, id: &Id, recorder: &Recorder) -> Result<(), OpError> {
    let entry = known(runtime, id)?;
    match entry.stage {
        Stage::Running => return Ok(()),
        Stage::Created | Stage::Refused => {}
        Stage::Exited if entry.refusal.is_some() => {
            return Err(OpError::Runc(entry.refusal.unwrap_or_default()));
        }
        other => return Err(OpError::Precondition(format!("container {id} is {other:?}, not Created"))),
    }
    let meta = container_config(&entry)?.metadata.unwrap_or_default();
    let mut span = recorder.begin_for(Phase::ContainersStarted, &meta.name);
    span.attempt(meta.attempt.saturating_add(1)).note("containerId", id);
    let asked = match entry.refusal.clone() {
        Some(refusal) => Err(OpError::Runc(refusal)),
        None => ask(runtime, id, &entry).await,
    };
    match asked {
        Ok(micros) => span.note("runcMicros", micros),
        Err(error) => {
            span.fail("StartError", &error.chain());
            if let OpError::Runc(refusal) = &error {
                give_up(runtime, id, &entry, refusal.clone()).await?;
            }
            return Err(error);
        }
    };
    span.succeed("Started");
    let (state, of, record, now) = (Arc::clone(runtime), id.clone(), recorder.clone(), runtime.now_ns());
    blocking(move || {
        state.update_container(&of, |c| {
            // It may have exited before we heard that it started.
            if c.stage == Stage::Created {
                c.stage = Stage::Running;
            }
            c.started_at = now.min(if c.finished_at > 0 { c.finished_at } else { now });
            c.records.extend(record.snapshot());
        })?;
        Ok(())
    })
    .await
}

/// Has runc start it; gives the µs that runc took.
async fn ask(runtime: &Runtime, id: &Id, entry: &Container) -> Result<u64, OpError> {
    let socket = runtime.monitor_socket(&entry.sandbox);
    match supervisor::call(&socket, Request::Start { id: id.to_string() }).await {
        Ok(Reply::Started { micros }) => Ok(micros),
        Ok(_) => Err(OpError::from(supervisor::SupervisorError::Unexpected)),
        Err(error) if supervisor::knows_not(&error) => Err(OpError::Precondition(format!(
            "the monitor of container {id} has ended before the start: remove it and create it anew"
        ))),
        Err(error) => Err(OpError::of_runc("start", error)),
    }
}

/// Ends a container that runc did not create or did not start. The init of the second kind waits
/// for a start that will not come.
async fn give_up(runtime: &Arc<Runtime>, id: &Id, entry: &Container, refusal: String) -> Result<(), OpError> {
    let (state, of, refused) = (Arc::clone(runtime), id.clone(), entry.stage == Stage::Refused);
    blocking(move || {
        state.update_container(&of, |c| c.refusal = Some(refusal))?;
        if refused { follow::settle(&state, &of, None) } else { Ok(()) }
    })
    .await?;
    if refused {
        return Ok(());
    }
    signal(runtime, id, entry, 9).await?;
    ended(runtime, id).await
}

/// Waits for the end of what was killed.
async fn ended(runtime: &Runtime, id: &Id) -> Result<(), OpError> {
    tokio::time::timeout(Duration::from_secs(60), runtime.exited(id)).await.map_err(|_| {
        OpError::Deadline(format!(
            "container {id} does not end after SIGKILL: is it in uninterruptible sleep?"
        ))
    })
}

/// Stops a container: its signal, `grace` seconds, then SIGKILL. An unknown or ended one is stopped.
/// It holds no lock while it waits, so that a second call can shorten the first one's grace.
///
/// # Errors
/// [`OpError`].
pub async fn stop(runtime: &Arc<Runtime>, id: &Id, grace: i64) -> Result<(), OpError> {
    // A create or start under way ends first, or the signal would be too early.
    drop(runtime.locks.of(id).read().await);
    let Some(entry) = runtime.container(id) else { return Ok(()) };
    if matches!(entry.stage, Stage::Exited | Stage::Creating) {
        return Ok(());
    }
    if let (Stage::Refused, Some(refusal)) = (entry.stage, entry.refusal.clone()) {
        return give_up(runtime, id, &entry, refusal).await;
    }
    if let Ok(grace @ 1..) = u64::try_from(grace) {
        signal(runtime, id, &entry, entry.stop_signal).await?;
        if tokio::time::timeout(Duration::from_secs(grace), runtime.exited(id)).await.is_ok() {
            return Ok(());
        }
    }
    signal(runtime, id, &entry, 9).await?;
    ended(runtime, id).await
}

/// Through the monitor, which knows what it has reaped; without it, through the pidfd of what runc
/// recorded. Only a container that neither knows has ended.
async fn signal(runtime: &Arc<Runtime>, id: &Id, entry: &Container, signo: u8) -> Result<(), OpError> {
    let socket = runtime.monitor_socket(&entry.sandbox);
    let ended = |error: &supervisor::SupervisorError| {
        use supervisor::SupervisorError::Client;
        matches!(error, Client(ClientError::Refused { code: ErrorCode::NotRunning, .. }))
    };
    let without_monitor = match supervisor::call(&socket, Request::Signal { id: id.to_string(), signo }).await
    {
        Ok(_) => return Ok(()),
        Err(error) if supervisor::knows_not(&error) => true,
        Err(error) if ended(&error) => false,
        Err(error) => return Err(error.into()),
    };
    let (state, id) = (Arc::clone(runtime), id.clone());
    blocking(move || {
        if without_monitor && let Some(init) = orphan::init(&state.config.state.join("runc"), &id) {
            // Who waits for its end was set up when the monitor's was noticed.
            return Ok(init.signal(signo)?);
        }
        follow::settle(&state, &id, None)
    })
    .await
}

/// Removes a container, killing it if it lives. May be repeated.
///
/// # Errors
/// [`OpError`]; what is left stays journalled.
pub async fn remove(runtime: &Arc<Runtime>, id: &Id) -> Result<(), OpError> {
    let lock = runtime.locks.of(id);
    let _alone = lock.write().await;
    remove_alone(runtime, id).await
}

pub(super) async fn remove_alone(runtime: &Arc<Runtime>, id: &Id) -> Result<(), OpError> {
    let Some(entry) = runtime.container(id) else { return Ok(()) };
    let socket = runtime.monitor_socket(&entry.sandbox);
    let without_monitor = match supervisor::call(&socket, Request::Delete { id: id.to_string() }).await {
        Ok(_) => false,
        Err(error) if supervisor::knows_not(&error) => true,
        Err(error) => return Err(error.into()),
    };
    let (state, id) = (Arc::clone(runtime), id.clone());
    blocking(move || {
        if without_monitor {
            let root = state.config.state.join("runc");
            orphan::remove(&state.config.runc.path, &root, &id, (&state.cgroups, &entry.cgroup))?;
        }
        let bundle = state.bundle(&id);
        rootfs::unmount(&bundle.join("rootfs")).map_err(|e| OpError::Io("unmount the root filesystem", e))?;
        for dir in [bundle, state.container_dir(&id)] {
            rootfs::remove_tree(&dir).map_err(|e| OpError::Io("remove the container's files", e))?;
        }
        Ok(state.forget_container(&id)?)
    })
    .await
}
