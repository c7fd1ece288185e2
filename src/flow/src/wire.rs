//! How records travel between processes: one JSON document, in an annotation or in gRPC metadata.

use crate::Record;

/// The annotation on the Binding (and so on the Pod) that carries the scheduler's records.
pub const SCHEDULING_ANNOTATION: &str = "podway.dev/scheduling";
/// The gRPC response metadata key that carries the runtime's records (binary: `-bin`).
pub const METADATA_KEY: &str = "podway-flow-bin";
/// The key in the `info` map of verbose CRI status calls.
pub const INFO_KEY: &str = "flow";
/// The longest document that is read from outside, in bytes.
pub const LIMIT: usize = 64 * 1024;

/// Why a document was not read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Longer than [`LIMIT`].
    #[error("the flow document has {0} bytes; at most {LIMIT} are read")]
    TooLong(usize),
    /// Not JSON, or not of this shape.
    #[error("the flow document is not valid")]
    Invalid(#[source] serde_json::Error),
}

/// Records as one JSON document.
#[must_use]
pub fn encode(records: &[Record]) -> Vec<u8> {
    serde_json::to_vec(records).expect("records are plain data: strings, numbers and maps with string keys")
}

/// Reads a document that another process wrote.
///
/// # Errors
/// [`WireError`] for one that is too long or not of this shape.
pub fn decode(document: &[u8]) -> Result<Vec<Record>, WireError> {
    if document.len() > LIMIT {
        return Err(WireError::TooLong(document.len()));
    }
    serde_json::from_slice(document).map_err(WireError::Invalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Clock, Phase, Recorder, Writer};

    #[test]
    fn records_survive_the_wire_and_garbage_is_refused() {
        let recorder = Recorder::new(Writer::Runtime, Clock::new());
        let mut span = recorder.begin(Phase::SandboxCreated);
        span.note("sandboxId", "abc").queued(7);
        span.succeed("Created");
        let records = recorder.take();
        assert_eq!(decode(&encode(&records)).unwrap(), records);
        assert!(matches!(decode(b"{"), Err(WireError::Invalid(_))));
        assert!(matches!(decode(&vec![b' '; LIMIT + 1]), Err(WireError::TooLong(_))));
    }
}
