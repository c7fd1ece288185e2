//! `/podway/pulls`: how far the runtime's image pulls have got, a line of JSON (`podway_flow::pulls::Pulls`) whenever
//! something has changed, at most ten times a second, as long as somebody reads. With `once=true` one line; with
//! `image=REF` only that image's. It is passed on as the runtime tells it: nothing is kept, and nobody else asked.

use super::Shared;
use async_trait::async_trait;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use podway_cri::runtime_v1::WatchPullsRequest;
use podway_flow::pulls::Pulls;
use std::io;
use std::sync::Arc;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// What a runtime says of its pulls, as it goes.
pub type Told = BoxStream<'static, Result<Pulls, Status>>;

/// Who knows how far pulls have got.
#[async_trait]
pub trait Progress: Send + Sync {
    /// Begins to tell.
    ///
    /// # Errors
    /// The runtime's status: `Unimplemented` from one that is not podway's.
    async fn pulls(&self, request: WatchPullsRequest) -> Result<Told, Status>;
}

#[async_trait]
impl Progress for Channel {
    async fn pulls(&self, request: WatchPullsRequest) -> Result<Told, Status> {
        let told = podway_cri::client::pulls(self.clone()).watch_pulls(request).await?.into_inner();
        Ok(told.map_ok(Pulls::from).boxed())
    }
}

pub(super) async fn answer(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    let query = match super::pairs(query.as_deref()) {
        Ok(query) => query,
        Err(refusal) => return *refusal,
    };
    let value = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let request = WatchPullsRequest {
        image: value("image").unwrap_or_default().to_owned(),
        once: value("once") == Some("true"),
    };
    match shared.parts.pulls.pulls(request).await {
        Ok(told) => {
            let lines = told.map(|pulls| {
                let mut line = serde_json::to_vec(&pulls.map_err(io::Error::other)?)?;
                line.push(b'\n');
                Ok::<_, io::Error>(Bytes::from(line))
            });
            ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
        }
        Err(status) => refused(&status),
    }
}

fn refused(status: &Status) -> Response {
    match status.code() {
        Code::Unimplemented => (
            StatusCode::NOT_IMPLEMENTED,
            "not supported: the runtime of this node does not tell of its pulls",
        )
            .into_response(),
        Code::InvalidArgument => (StatusCode::BAD_REQUEST, status.message().to_owned()).into_response(),
        _ => super::proxy::refused(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_does_not_tell_is_told_from_one_that_fails() {
        for (status, code) in [
            (Status::unimplemented("unknown service podway.runtime.v1.Pulls"), 501),
            (Status::invalid_argument("the tag is not valid"), 400),
            (Status::unavailable("connection refused"), 500),
        ] {
            assert_eq!(refused(&status).status().as_u16(), code, "{status}");
        }
    }
}
