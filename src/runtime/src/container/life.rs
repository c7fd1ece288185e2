//! Stop and removal: up to nothing being left of a container.

use crate::error::{OpError, blocking};
use crate::ids::Id;
use crate::points::{self, Point};
use crate::state::{Container, Runtime, Stage};
use crate::{follow, orphan, rootfs, supervisor};
use podway_monitor::{ClientError, ErrorCode, Request};
use std::sync::Arc;
use std::time::Duration;

/// Waits for the end of what was killed.
pub(super) async fn ended(runtime: &Runtime, id: &Id) -> Result<(), OpError> {
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
    if entry.stage == Stage::Created {
        return discard(runtime, id).await;
    }
    if let Ok(grace @ 1..) = u64::try_from(grace) {
        signal(runtime, id, &entry, entry.stop_signal).await?;
        points::at(Point::StopSignalled);
        if tokio::time::timeout(Duration::from_secs(grace), runtime.exited(id)).await.is_ok() {
            return Ok(());
        }
    }
    signal(runtime, id, &entry, 9).await?;
    ended(runtime, id).await
}

/// Ends a container that was never started. A start that came first has it stopped as what runs.
async fn discard(runtime: &Arc<Runtime>, id: &Id) -> Result<(), OpError> {
    let lock = runtime.locks.of(id);
    let _alone = lock.write().await;
    let Some(entry) = runtime.container(id).filter(|c| c.stage != Stage::Exited) else { return Ok(()) };
    if entry.stage == Stage::Created {
        let (state, of) = (Arc::clone(runtime), id.clone());
        blocking(move || {
            let never = "the container was stopped before it was started";
            state.note_container(&of, |c| c.refusal = Some(never.to_owned()));
            Ok(())
        })
        .await?;
    }
    signal(runtime, id, &entry, 9).await?;
    ended(runtime, id).await
}

/// Through the monitor, which knows what it has reaped; without it, through the pidfd of what runc
/// recorded. Only a container that neither knows has ended.
pub(super) async fn signal(
    runtime: &Arc<Runtime>,
    id: &Id,
    entry: &Container,
    signo: u8,
) -> Result<(), OpError> {
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
        follow::settle(&state, &id, None);
        Ok(())
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
    if without_monitor {
        // `runc delete` does it where runc still knows the container.
        runtime.units.end(&entry.cgroup).await?;
    }
    let (state, id) = (Arc::clone(runtime), id.clone());
    blocking(move || {
        if without_monitor {
            let root = state.config.state.join("runc");
            let oci = &state.oci(&entry.sandbox)?.path;
            orphan::remove(oci, &root, &id, (&state.cgroups, &entry.cgroup))?;
        }
        points::at(Point::RuncDeleted);
        if let Some(staged) = &entry.checkpoint {
            rootfs::remove_file(staged).map_err(|e| OpError::Io("remove an unfinished checkpoint", e))?;
        }
        super::volumes::unmount(&state, &id)?;
        let bundle = state.bundle(&id);
        rootfs::unmount(&bundle.join("rootfs")).map_err(|e| OpError::Io("unmount the root filesystem", e))?;
        points::at(Point::RootfsUnmounted);
        for dir in [bundle, state.container_dir(&id)] {
            rootfs::remove_tree(&dir).map_err(|e| OpError::Io("remove the container's files", e))?;
        }
        points::at(Point::ContainerFilesGone);
        state.forget_container(&id)?;
        points::at(Point::ContainerForgotten);
        Ok(())
    })
    .await
}
