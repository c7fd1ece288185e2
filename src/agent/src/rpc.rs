//! What a gRPC server of the node answered, in the words that people know of Go's client.

use tonic::{Code, Status};

/// The most of a server's words that are repeated.
const WORDS: usize = 512;

/// `rpc error: code = Unknown desc = …`.
#[must_use]
pub fn said(status: &Status) -> String {
    let code = match status.code() {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        other => format!("{other:?}"),
    };
    let words = podway_flow::record::bounded(status.message(), WORDS);
    format!("rpc error: code = {code} desc = {words}")
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
