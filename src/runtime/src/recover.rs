//! What a restart finds: what lives is adopted, what was never finished is undone.
//!
//! The kernel, runc and the monitors are the truth; the journal says whom to ask. One sandbox that
//! cannot be recovered stays journalled and shows as not ready; it does not keep the others from
//! being served.

use crate::error::{OpError, blocking};
use crate::ids::Id;
use crate::state::{Life, Runtime, Sandbox, Stage};
use crate::{container, follow, sandbox, status};
use futures::stream::StreamExt as _;
use podway_cri::v1::NamespaceMode;
use std::sync::Arc;

/// Sandboxes at a time.
const PARALLEL: usize = 16;

/// Adopts what lives and undoes what was never finished, then lets the image store collect.
pub async fn recover(runtime: &Arc<Runtime>) {
    for (id, entry) in runtime.containers() {
        let layers = [entry.layers.as_slice(), &entry.volumes].concat();
        if !runtime.pin(&id, &layers) && entry.stage != Stage::Creating {
            tracing::error!(container = %id, "a layer of the container's image is gone");
        }
    }
    let all = futures::stream::iter(runtime.sandboxes());
    all.for_each_concurrent(PARALLEL, |(id, entry)| async move {
        if let Err(error) = one(runtime, &id, &entry).await {
            tracing::error!(sandbox = %id, error = error.chain(), "a sandbox was not recovered");
        }
    })
    .await;
    // Containers without a sandbox cannot be: their entries go first. One that a defect left is removed.
    for (id, entry) in runtime.containers() {
        if runtime.sandbox(&entry.sandbox).is_none()
            && let Err(error) = container::remove(runtime, &id).await
        {
            tracing::error!(container = %id, error = error.chain(), "a stray container was not removed");
        }
    }
    let images = Arc::clone(&runtime.images);
    match tokio::task::spawn_blocking(move || images.collect()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(error, "unused layers stay until the next start"),
        Err(error) => tracing::error!(%error, "unused layers stay until the next start"),
    }
}

async fn one(runtime: &Arc<Runtime>, id: &Id, entry: &Sandbox) -> Result<(), OpError> {
    if entry.life == Life::Creating {
        return sandbox::remove(runtime, id).await;
    }
    // After a reboot nothing of the state directory is left: no process, no namespace, no mount.
    let rebooted = !runtime.sandbox_dir(id).exists();
    if rebooted && entry.life == Life::Ready {
        let (state, of) = (Arc::clone(runtime), id.clone());
        blocking(move || Ok(state.update_sandbox(&of, |s| s.life = Life::Stopped)?)).await?;
    }
    for (cid, c) in runtime.containers_of(id) {
        if c.stage == Stage::Creating {
            container::remove(runtime, &cid).await?;
        }
    }
    follow::resume(runtime, id).await?;
    for (cid, c) in runtime.containers_of(id) {
        if let Some(staged) = &c.checkpoint
            && let Err(error) = container::checkpoint::undo(runtime, &cid, staged).await
        {
            tracing::error!(container = %cid, error = error.chain(), "a checkpoint was not wholly undone");
        }
    }
    let shared = status::options(&status::sandbox_config(entry)?).pid == NamespaceMode::Pod as i32;
    if shared && !rebooted && entry.life == Life::Ready {
        sandbox::process1::watch(runtime, id).map_err(|e| OpError::Io("watch process 1", e))?;
    }
    Ok(())
}
