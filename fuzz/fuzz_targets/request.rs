//! A CreateContainer request as it comes over the socket: a config.json or a refusal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podway_cri::Message as _;
use podway_cri::v1::CreateContainerRequest;
use podway_runtime::features::Features;
use podway_runtime::spec::{ImageDefaults, Input, generate};
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    let Ok(request) = CreateContainerRequest::decode(bytes) else { return };
    let container = request.config.unwrap_or_default();
    let sandbox = request.sandbox_config.unwrap_or_default();
    let image = ImageDefaults { cmd: vec!["true".to_owned()], ..ImageDefaults::default() };
    let all = Features {
        recursive_read_only: true,
        user_namespaces: true,
        apparmor: true,
        selinux: true,
        swap: true,
        huge_pages: true,
        cgroup_v2: true,
    };
    for features in [Features::default(), all] {
        let made = generate(&Input {
            container: &container,
            sandbox: &sandbox,
            image: &image,
            rootfs: Path::new("/nonexistent"),
            namespaces: Path::new("/run/none"),
            hostname: "pod",
            shm: None,
            cgroup: "/podway/x",
            capabilities: u64::MAX,
            oom_floor: -1000,
            features: &features,
            target: None,
        });
        if let Ok(spec) = made {
            serde_json::to_vec(&spec).expect("a spec is JSON");
        }
    }
});
