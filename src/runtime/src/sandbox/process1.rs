//! The end of a pod's process 1, watched: with it went every process of the pod's PID namespace, and none can
//! be begun in there any more. So the sandbox is not ready from then on, as with containerd once its pause
//! container has ended: a kubelet that sees it makes another sandbox. What the sandbox holds (network, mounts)
//! stays until it is stopped.

use crate::error::blocking;
use crate::ids::Id;
use crate::state::{Life, Runtime};
use crate::{events, orphan, podns};
use podway_cri::v1::ContainerEventType::ContainerStoppedEvent;
use std::io;
use std::sync::{Arc, Weak};

/// Watches process 1 of a sandbox that has a PID namespace of its own; one that has ended already is told of
/// like one that ends.
///
/// # Errors
/// The kernel's.
pub fn watch(runtime: &Arc<Runtime>, id: &Id) -> io::Result<()> {
    let process = podns::process_1(&runtime.sandbox_dir(id))?;
    // Weak: a runtime that shuts down must not write its journal for what ends after it.
    let (state, of) = (Arc::downgrade(runtime), id.clone());
    tokio::spawn(async move {
        if let Some(process) = process {
            let end = async { orphan::watch(process)?.readable().await.map(drop) };
            if let Err(error) = end.await {
                tracing::error!(sandbox = %of, %error, "process 1 of the pod is not watched");
                return;
            }
        }
        ended(state, of).await;
    });
    Ok(())
}

/// Marks a sandbox that is ready as not ready. Whoever ends process 1 on purpose has marked it before.
async fn ended(runtime: Weak<Runtime>, id: Id) {
    let Some(runtime) = runtime.upgrade() else { return };
    let lock = runtime.locks.of(&id);
    let _alone = lock.write().await;
    if runtime.sandbox(&id).is_none_or(|entry| entry.life != Life::Ready) {
        return;
    }
    tracing::warn!(sandbox = %id, "process 1 of the pod has ended: the sandbox is not ready any more");
    let (state, of) = (Arc::clone(&runtime), id.clone());
    let noted = blocking(move || {
        state.note_sandbox(&of, |s| s.life = Life::Stopped);
        Ok(())
    });
    match noted.await {
        Ok(()) => events::publish_sandbox(&runtime, &id, ContainerStoppedEvent),
        Err(error) => {
            tracing::error!(sandbox = %id, error = error.chain(), "a sandbox shows as ready and is not")
        }
    }
}
