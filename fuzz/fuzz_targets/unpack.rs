//! A layer's blob: whatever it is, nothing appears outside of the layer's directory.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use podway_runtime::image::unpack::{Limits, unpack};

fuzz_target!(|blob: &[u8]| {
    let outer = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let root = outer.path().join("layer");
    std::fs::create_dir(&root).expect("an empty layer");
    let (sender, chunks) = tokio::sync::mpsc::channel(1);
    sender.try_send(Bytes::copy_from_slice(blob)).expect("room for one");
    drop(sender);
    let directory = std::fs::File::open(&root).expect("the layer").into();
    let limits = Limits { bytes: 1 << 20, entries: 1000, depth: 64 };
    if let Ok(done) = unpack(chunks, blob.len() as u64, directory, limits) {
        assert_eq!(done.compressed_bytes, blob.len() as u64);
        assert!(done.unpacked.bytes <= 1 << 20);
    }
    let beside = std::fs::read_dir(outer.path()).expect("the outer directory").count();
    assert_eq!(beside, 1, "something was made beside the layer");
});
