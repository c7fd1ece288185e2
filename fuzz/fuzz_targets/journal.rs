//! Journal entries, exit records and the monitor's messages, as a crash or a stranger left them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podway_monitor::ExitRecord;
use podway_runtime::state::{Container, Sandbox};
use podway_runtime::status;

fuzz_target!(|bytes: &[u8]| {
    let id = podway_runtime::ids::Id::try_from("a".repeat(64)).expect("an id");
    if let Ok(entry) = serde_json::from_slice::<Sandbox>(bytes) {
        drop(status::sandbox_status(&id, &entry));
    }
    if let Ok(entry) = serde_json::from_slice::<Container>(bytes) {
        drop(status::container_status(&id, &entry));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        drop(ExitRecord::parse(text));
    }
});
