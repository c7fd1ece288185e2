//! What each fuzz target does with its bytes. Twice in use: by `fuzz_targets/` under cargo-fuzz, and by the
//! runtime's test `fuzz`, which goes over the corpus in CI.

use bytes::Bytes;
use podway_cri::Message as _;
use podway_cri::v1::{CreateContainerRequest, Int64Value, LinuxContainerSecurityContext};
use podway_monitor::ExitRecord;
use podway_runtime::cni::{Network, ips};
use podway_runtime::features::Features;
use podway_runtime::image::ImageRef;
use podway_runtime::image::hosts;
use podway_runtime::image::registry::{Manifest, Platform, parse_config, parse_manifest};
use podway_runtime::image::unpack::{self, Limits};
use podway_runtime::spec::user::decide;
use podway_runtime::spec::{ImageDefaults, Input, generate};
use podway_runtime::state::{Container, Sandbox};
use podway_runtime::status;
use std::path::Path;

/// A CNI configuration and what a plugin answers.
pub fn cni(bytes: &[u8]) {
    if let Ok(network) = Network::parse(bytes) {
        assert!(!network.name.is_empty());
    }
    if let Ok(result) = serde_json::from_slice(bytes) {
        for ip in ips(&result) {
            ip.parse::<std::net::IpAddr>().expect("an address");
        }
    }
}

/// hosts.toml.
pub fn hosts(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(endpoints) = hosts::parse(Path::new("/c/hosts.toml"), text, "registry.example") {
        assert!(!endpoints.is_empty(), "the registry itself is always there");
        for endpoint in endpoints {
            assert!(!endpoint.authority.is_empty() && !endpoint.authority.contains('@'));
        }
    }
}

/// Journal entries and exit records, as a crash or a stranger left them.
pub fn journal(bytes: &[u8]) {
    let id = podway_runtime::ids::Id::try_from("a".repeat(64)).expect("an id");
    if let Ok(entry) = serde_json::from_slice::<Sandbox>(bytes) {
        drop(status::sandbox_status(&id, &entry));
    }
    if let Ok(entry) = serde_json::from_slice::<Container>(bytes) {
        drop(status::container_status(&id, &entry));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        std::hint::black_box(ExitRecord::parse(text));
    }
}

/// A manifest, an index, a configuration, a name: read into narrow types or refused.
pub fn manifest(body: &[u8]) {
    for kind in [None, Some("application/vnd.oci.image.index.v1+json")] {
        if let Ok(Manifest::Image { layers, .. }) = parse_manifest(body, kind, &Platform::host()) {
            assert!(layers.len() <= 500);
        }
    }
    if let Ok((config, diff_ids)) = parse_config(body, 1) {
        assert_eq!(diff_ids.len(), 1);
        assert!(!config.working_dir.contains('\0') && !config.user.contains('\n'));
    }
    if let Ok(text) = std::str::from_utf8(body)
        && let Ok(reference) = ImageRef::parse(text)
    {
        let again = ImageRef::parse(&reference.to_string()).expect("what it shows can be read again");
        assert_eq!(again, reference);
    }
}

/// A CreateContainer request as it comes over the socket: a config.json or a refusal.
pub fn request(bytes: &[u8]) {
    let Ok(request) = CreateContainerRequest::decode(bytes) else { return };
    let container = request.config.unwrap_or_default();
    let sandbox = request.sandbox_config.unwrap_or_default();
    let image = ImageDefaults { cmd: vec!["true".to_owned()], ..ImageDefaults::default() };
    let all = Features {
        recursive_read_only: true,
        user_namespaces: true,
        apparmor: true,
        apparmor_default: true,
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
}

/// A layer's blob: whatever it is, nothing appears outside of the layer's directory.
pub fn unpack(blob: &[u8]) {
    let outer = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let root = outer.path().join("layer");
    std::fs::create_dir(&root).expect("an empty layer");
    let (sender, chunks) = tokio::sync::mpsc::channel(1);
    sender.try_send(Bytes::copy_from_slice(blob)).expect("room for one");
    drop(sender);
    let directory = std::fs::File::open(&root).expect("the layer").into();
    let limits = Limits { bytes: 1 << 20, entries: 1000, depth: 64 };
    if let Ok(done) = unpack::unpack(chunks, blob.len() as u64, directory, limits) {
        assert_eq!(done.compressed_bytes, blob.len() as u64);
        assert!(done.unpacked.bytes <= 1 << 20);
    }
    let beside = std::fs::read_dir(outer.path()).expect("the outer directory").count();
    assert_eq!(beside, 1, "something was made beside the layer");
}

/// The image's passwd, its group, USER and runAsUser, with a NUL between: a user that is asked for by number is
/// that number.
pub fn users(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut parts = text.split('\0');
    let mut part = || parts.next().unwrap_or_default();
    let (passwd, group, image_user, number) = (part(), part(), part(), part().parse().unwrap_or(1000));
    let plain = LinuxContainerSecurityContext::default();
    let asked = LinuxContainerSecurityContext {
        run_as_user: Some(Int64Value { value: number }),
        ..Default::default()
    };
    for context in [&plain, &asked] {
        let Ok(user) = decide(passwd, group, context, image_user) else { continue };
        assert!(user.uid != u32::MAX && user.gid != u32::MAX && !user.groups.contains(&user.gid));
        assert!(user.home.starts_with('/') && !user.home.contains('\n'));
        if context.run_as_user.is_some() {
            assert_eq!(i64::from(user.uid), number);
        }
    }
}
