//! Flow records in gRPC response metadata: how the runtime's part of a pod's flow reaches the agent
//! without a call of its own. A stock kubelet ignores the key.

use podway_flow::{Record, wire};
use tonic::metadata::{MetadataMap, MetadataValue};

/// The longest document attached, in bytes: HTTP/2 peers refuse larger header lists (16 KiB in
/// Go's and hyper's defaults), so what does not fit is left to the verbose status call.
pub const ATTACH_LIMIT: usize = 8 * 1024;

/// Puts `records` on a response. Records that would make the metadata too long are left out,
/// latest first: they stay readable through `info["flow"]` of the verbose status call.
pub fn attach<T>(response: &mut tonic::Response<T>, records: &[Record]) {
    put(response.metadata_mut(), records);
}

/// Puts `records` on an error, with the limit of [`attach`]: what a failed call did is told as well.
pub fn attach_to_error(status: &mut tonic::Status, records: &[Record]) {
    // A failed phase is the last record: it must be among those that are kept.
    let from = (0..records.len())
        .find(|&from| wire::encode(&records[from..]).len() <= ATTACH_LIMIT)
        .unwrap_or(records.len());
    put(status.metadata_mut(), &records[from..]);
}

fn put(metadata: &mut MetadataMap, records: &[Record]) {
    let mut kept = records;
    while !kept.is_empty() {
        let document = wire::encode(kept);
        if document.len() <= ATTACH_LIMIT {
            metadata.insert_bin(wire::METADATA_KEY, MetadataValue::from_bytes(&document));
            return;
        }
        kept = &kept[..kept.len() - 1];
    }
}

/// Reads the records from a response's metadata; empty where there are none or where the peer wrote
/// something else under the key (a call that succeeded must not fail for its telemetry).
#[must_use]
pub fn take(metadata: &MetadataMap) -> Vec<Record> {
    metadata
        .get_bin(wire::METADATA_KEY)
        .and_then(|value| value.to_bytes().ok())
        .and_then(|bytes| wire::decode(&bytes).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use podway_flow::{Clock, Phase, Recorder, Writer};

    #[test]
    fn records_ride_on_a_response_and_never_exceed_the_limit() {
        let recorder = Recorder::new(Writer::Runtime, Clock::new());
        for _ in 0..100 {
            let mut span = recorder.begin(Phase::SandboxCreated);
            span.note("sandboxId", "x".repeat(64));
            span.succeed("Created");
        }
        let records = recorder.take();
        let mut response = tonic::Response::new(());
        attach(&mut response, &records[..2]);
        assert_eq!(take(response.metadata()), records[..2]);
        attach(&mut response, &records);
        let kept = take(response.metadata());
        assert!(!kept.is_empty() && kept.len() < 100);
        let mut status = tonic::Status::unknown("no");
        attach_to_error(&mut status, &records);
        assert_eq!(take(status.metadata()).last(), records.last());
    }

    #[test]
    fn garbage_is_no_records() {
        let mut response = tonic::Response::new(());
        response.metadata_mut().insert_bin(wire::METADATA_KEY, MetadataValue::from_bytes(b"{"));
        assert!(take(response.metadata()).is_empty());
    }
}
