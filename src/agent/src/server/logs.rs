//! `GET /containerLogs/{namespace}/{pod}/{container}`: what `kubectl logs` reads.
//!
//! The options, their checks and the answers to a container that has no log are the kubelet's.

pub mod decode;
pub mod read;

use crate::source::{PodSource, PodView};
use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use decode::{Filter, Streams};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use read::{Ended, LogStream};
use std::sync::Arc;

/// What a request asks for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Go on until the container ends.
    pub follow: bool,
    /// The instance before the current one.
    pub previous: bool,
    /// Only the last lines.
    pub tail: Option<u64>,
    /// What of a line.
    pub filter: Filter,
}

/// Why a query was not taken: the status and the kubelet's text.
pub type Refusal = (StatusCode, String);

const UNDECODABLE: (StatusCode, &str) =
    (StatusCode::BAD_REQUEST, "{\"message\": \"Unable to decode query.\"}");
const INVALID: (StatusCode, &str) = (StatusCode::UNPROCESSABLE_ENTITY, "{\"message\": \"Invalid request.\"}");

impl Options {
    /// Reads a query at `now`, with the checks of `ValidatePodLogOptions`.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn parse(query: &[(String, String)], now: Timestamp) -> Result<Self, Refusal> {
        let own = |(status, text): (StatusCode, &str)| (status, text.to_owned());
        let value = |name: &str| {
            query.iter().find(|(key, _)| key == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
        };
        // As apimachinery's conversion: what is there and not false is true.
        let flag = |name: &str| !matches!(value(name), None | Some("false" | "0"));
        let number = |name: &str, least: i64| match value(name).map(str::parse::<i64>) {
            None => Ok(None),
            Some(Err(_)) => Err(own(UNDECODABLE)),
            Some(Ok(n)) if n < least => Err(own(INVALID)),
            Some(Ok(n)) => Ok(Some(n.unsigned_abs())),
        };
        let tail = match value("tail") {
            Some("all") => None,
            Some(_) => number("tail", 0)?,
            None => number("tailLines", 0)?,
        };
        let seconds = number("sinceSeconds", 1)?;
        let time = value("sinceTime").map(str::parse::<Timestamp>).transpose();
        let time = time.map_err(|_| own(UNDECODABLE))?;
        let since = match (seconds, time) {
            (Some(_), Some(_)) => return Err(own(INVALID)),
            (Some(seconds), None) => {
                let back = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
                Some(now.checked_sub(back).unwrap_or(Timestamp::MIN))
            }
            (None, time) => time,
        };
        let streams = match value("stream") {
            None | Some("All") => Streams::All,
            Some("Stdout") => Streams::Stdout,
            Some("Stderr") => Streams::Stderr,
            Some(_) => return Err(own(INVALID)),
        };
        if streams != Streams::All && tail.is_some() {
            return Err(own(INVALID));
        }
        Ok(Options {
            follow: flag("follow"),
            previous: flag("previous"),
            tail,
            filter: Filter {
                since,
                timestamps: flag("timestamps"),
                limit: number("limitBytes", 1)?,
                lines: None,
                streams,
            },
        })
    }
}

/// Whether the pod's spec has a container of that name.
#[must_use]
pub fn has_container(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.containers.iter().any(|c| c.name == name)
        || spec.init_containers.iter().flatten().any(|c| c.name == name)
        || spec.ephemeral_containers.iter().flatten().any(|c| c.name == name)
}

/// The id of the container whose log is meant, without the runtime's prefix
/// (`validateContainerLogStatus`).
///
/// # Errors
/// The kubelet's text for a container that has no log.
pub fn choose(pod: &str, status: &PodStatus, container: &str, previous: bool) -> Result<String, String> {
    let groups =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let found: Option<&ContainerStatus> =
        groups.into_iter().find_map(|group| group.iter().flatten().find(|c| c.name == container));
    let Some(found) = found else {
        return Err(format!("container {container:?} in pod {pod:?} is not available"));
    };
    let bare = |id: Option<&String>| {
        let id = id.filter(|id| !id.is_empty())?;
        Some(id.split_once("://").map_or(id.as_str(), |(_, id)| id).to_owned())
    };
    let last = found.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let last_id = last.and_then(|t| bare(t.container_id.as_ref()));
    if previous {
        return last_id
            .ok_or_else(|| format!("previous terminated container {container:?} in pod {pod:?} not found"));
    }
    let terminated = || format!("container {container:?} in pod {pod:?} is terminated");
    let state = found.state.as_ref();
    if state.is_some_and(|s| s.running.is_some()) {
        return bare(found.container_id.as_ref()).ok_or_else(terminated);
    }
    if let Some(now) = state.and_then(|s| s.terminated.as_ref()) {
        return bare(now.container_id.as_ref()).or(last_id).ok_or_else(terminated);
    }
    if last.is_some() {
        return last_id.ok_or_else(terminated);
    }
    let waiting = format!("container {container:?} in pod {pod:?} is waiting to start");
    match state.and_then(|s| s.waiting.as_ref()) {
        Some(why) => Err(match why.reason.as_deref().unwrap_or_default() {
            "ErrImagePull" => format!("{waiting}: image can't be pulled"),
            "ImagePullBackOff" => format!("{waiting}: trying and failing to pull image"),
            reason => format!("{waiting}: {reason}"),
        }),
        None => Err(format!("{waiting} - no logs yet")),
    }
}

/// Completes when the container with `id` no longer runs, or its pod is gone.
fn ended(source: &Arc<dyn PodSource>, namespace: &str, name: &str, id: &str) -> Ended {
    let Some(mut views) = source.follow(namespace, name) else { return Box::pin(std::future::ready(())) };
    let id = id.to_owned();
    let runs = move |view: &Arc<PodView>| view.containers.iter().any(|c| c.id == id && c.running);
    Box::pin(async move {
        // An error is a sender that is gone, and with it the pod.
        let _gone = views.wait_for(|view| !runs(view)).await;
    })
}

/// Answers a request for the log of a container.
pub async fn answer(
    source: Arc<dyn PodSource>,
    namespace: &str,
    name: &str,
    container: &str,
    query: &[(String, String)],
) -> Response {
    let options = match Options::parse(query, Timestamp::now()) {
        Ok(options) => options,
        Err(refusal) => return refusal.into_response(),
    };
    let Some(view) = source.pod(namespace, name) else {
        return (StatusCode::NOT_FOUND, format!("pod {name:?} does not exist")).into_response();
    };
    if !has_container(&view.object, container) {
        let text = format!("container {container:?} not found in pod {name:?}");
        return (StatusCode::NOT_FOUND, text).into_response();
    }
    let status = view.object.status.clone().unwrap_or_default();
    let id = match choose(name, &status, container, options.previous) {
        Ok(id) => id,
        Err(text) => return (StatusCode::BAD_REQUEST, text).into_response(),
    };
    let Some(instance) = view.containers.iter().find(|c| c.id == id) else {
        let text = format!("unable to retrieve container logs for {id}: the container was removed");
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    let end = options.follow.then(|| ended(&source, namespace, name, &id));
    let stream = LogStream::open(&instance.log_path, options.filter, options.tail, end).await;
    let stream = match stream {
        Ok(stream) => stream,
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            return (StatusCode::BAD_REQUEST, format!("{error}: {source}")).into_response();
        }
    };
    let parts = futures::stream::try_unfold(stream, |mut stream| async move {
        let part = stream.next().await?;
        Ok::<_, read::ReadError>(part.map(|part| (Bytes::from(part), stream)))
    });
    ([("content-type", "text/plain; charset=utf-8")], Body::from_stream(parts)).into_response()
}

#[cfg(test)]
mod tests;
