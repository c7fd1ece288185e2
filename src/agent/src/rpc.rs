//! What a gRPC server of the node answered, in the words that people know of Go's client.

use std::time::Duration;
use tonic::{Code, Response, Status};

/// The most of a server's words that are repeated.
const WORDS: usize = 512;

/// `rpc error: code = Unknown desc = …`, as much of it as is repeated.
pub(crate) fn said(status: &Status) -> String {
    error(status.code(), &podway_flow::record::bounded(status.message(), WORDS))
}

/// The same of a code and words, all of them.
pub(crate) fn error(code: Code, words: &str) -> String {
    let code = match code {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        other => format!("{other:?}"),
    };
    format!("rpc error: code = {code} desc = {words}")
}

/// What Go's client says of a call whose time is over.
pub(crate) fn late() -> Status {
    Status::deadline_exceeded("context deadline exceeded")
}

/// The answer to a call, within `limit`.
pub(crate) async fn timed<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(late())).map(Response::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_as_go_tells_it() {
        assert_eq!(said(&Status::unknown("no")), "rpc error: code = Unknown desc = no");
        let long = said(&Status::cancelled("x".repeat(9999)));
        assert!(long.starts_with("rpc error: code = Canceled") && long.len() < 600, "{long}");
    }
}
