//! `/checkpoint` of a container (forensic checkpointing, KEP-2008): the runtime writes an archive of the running
//! container into the agent's directory, and the answer says where. Who may (`nodes/checkpoint`) may have all of the
//! container's memory on the node's disk; nobody but its root can read it there.

use super::Shared;
use super::logs::has_container;
use crate::cri::Cri;
use crate::rpc;
use crate::source::PodSource;
use async_trait::async_trait;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Json, Response};
use jiff::Timestamp;
use podway_cri::v1::CheckpointContainerRequest;
use std::collections::BTreeMap;
use std::path::{Path as File, PathBuf};
use std::sync::Arc;

/// The directory of checkpoints below the agent's own.
pub const DIRECTORY: &str = "checkpoints";

/// Who makes a checkpoint.
#[async_trait]
pub trait Checkpoints: Send + Sync {
    /// Makes it, in the time that the request says.
    ///
    /// # Errors
    /// Why not, as gRPC for Go has it in words.
    async fn checkpoint(&self, request: CheckpointContainerRequest) -> Result<(), String>;
}

#[async_trait]
impl Checkpoints for Cri {
    async fn checkpoint(&self, request: CheckpointContainerRequest) -> Result<(), String> {
        if request.timeout < 0 {
            return Err("CheckpointContainer requires the timeout value to be > 0".to_owned());
        }
        let made = Cri::checkpoint(self, request).await;
        made.map_err(|e| rpc::error(e.code, &e.message))
    }
}

/// A request that names a container to be checkpointed, with the texts of the kubelet's refusals.
struct Wanted {
    namespace: String,
    pod: String,
    container: String,
    request: CheckpointContainerRequest,
}

fn wanted(
    pods: &Arc<dyn PodSource>,
    names: &BTreeMap<String, String>,
    query: &[(String, String)],
    dir: &File,
    now: Timestamp,
) -> Result<Wanted, (StatusCode, String)> {
    let missing = |text: String| (StatusCode::NOT_FOUND, text);
    let [namespace, pod, container] =
        ["namespace", "pod", "container"].map(|key| names.get(key).cloned().unwrap_or_default());
    let view = pods.pod(&namespace, &pod).ok_or_else(|| missing("pod does not exist".to_owned()))?;
    if !has_container(&view.object, &container) {
        return Err(missing(format!("container {container} does not exist")));
    }
    // The last of several counts.
    let timeout = query.iter().rev().find(|(key, _)| key == "timeout").map(|(_, value)| value.parse());
    let timeout = timeout.transpose();
    let timeout = timeout.map_err(|_| missing("cannot parse value of timeout parameter".to_owned()))?;
    let id = view.container(&container, false).map(|c| c.id.clone()).unwrap_or_default();
    let stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ");
    let location = dir.join(format!("checkpoint-{pod}_{namespace}-{container}-{stamp}.tar"));
    let request = CheckpointContainerRequest {
        container_id: id,
        location: location.display().to_string(),
        timeout: timeout.unwrap_or(0),
    };
    Ok(Wanted { namespace, pod, container, request })
}

pub(super) async fn answer(
    State(shared): State<Arc<Shared>>,
    Path(names): Path<BTreeMap<String, String>>,
    RawQuery(query): RawQuery,
) -> Response {
    let query = match super::pairs(query.as_deref()) {
        Ok(query) => query,
        Err(refusal) => return *refusal,
    };
    let parts = &shared.parts;
    let wanted = match wanted(&parts.pods, &names, &query, &parts.checkpoints, Timestamp::now()) {
        Ok(wanted) => wanted,
        Err(refusal) => return refusal.into_response(),
    };
    let location = wanted.request.location.clone();
    let made = if wanted.request.container_id.is_empty() {
        Err(format!("container {} not found", wanted.container))
    } else {
        make(&parts.checkpoints, &parts.checkpointing, wanted.request).await
    };
    match made {
        Ok(()) => Json(serde_json::json!({"items": [location]})).into_response(),
        Err(error) => {
            let Wanted { namespace, pod, container, .. } = wanted;
            let text = format!("checkpointing of {namespace}/{pod}/{container} failed ({error})");
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

async fn make(
    dir: &PathBuf,
    by: &Arc<dyn Checkpoints>,
    request: CheckpointContainerRequest,
) -> Result<(), String> {
    let mut private = tokio::fs::DirBuilder::new();
    let made = private.recursive(true).mode(0o700).create(dir).await;
    made.map_err(|e| format!("error creating checkpoint directory {}: {e}", dir.display()))?;
    by.checkpoint(request).await
}
