//! Table tests of the spec.

use super::*;
use podway_cri::v1::{
    KeyValue, LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, Mount,
    NamespaceMode, NamespaceOption, SecurityProfile,
};

pub(super) fn container(context: LinuxContainerSecurityContext) -> ContainerConfig {
    ContainerConfig {
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources {
                memory_limit_in_bytes: 64 << 20,
                cpu_shares: 512,
                oom_score_adj: -997,
                ..Default::default()
            }),
            security_context: Some(context),
        }),
        ..Default::default()
    }
}

pub(super) fn context() -> LinuxContainerSecurityContext {
    let pid = NamespaceMode::Container as i32;
    LinuxContainerSecurityContext {
        namespace_options: Some(NamespaceOption { pid, ..Default::default() }),
        ..Default::default()
    }
}

fn spec(config: &ContainerConfig) -> Result<Value, SpecError> {
    spec_on(config, &Features::default())
}

pub(super) fn spec_on(config: &ContainerConfig, features: &Features) -> Result<Value, SpecError> {
    let root = tempfile::tempdir().unwrap();
    let image = ImageDefaults {
        entrypoint: vec!["/e".to_owned()],
        cmd: vec!["c".to_owned()],
        env: vec!["A=1".to_owned()],
        ..Default::default()
    };
    let input = Input {
        container: config,
        sandbox: &PodSandboxConfig::default(),
        image: &image,
        rootfs: root.path(),
        namespaces: Path::new("/nonexistent"),
        hostname: "h",
        shm: None,
        cgroup: "/podway/x",
        capabilities: u64::MAX,
        oom_floor: 0,
        features,
        target: None,
    };
    generate(&input).map(|s| serde_json::to_value(s).unwrap())
}

#[test]
fn a_plain_container() {
    let mut config = container(context());
    config.envs.push(KeyValue { key: "A".to_owned(), value: b"2".to_vec() });
    let spec = spec(&config).unwrap();
    assert_eq!(spec["process"]["args"], json!(["/e", "c"]));
    assert!(spec["process"]["env"].as_array().unwrap().contains(&json!("A=2")));
    assert_eq!(spec["process"]["oomScoreAdj"], 0, "clamped to what may be set");
    assert_eq!(spec["linux"]["resources"]["memory"]["limit"], 64 << 20);
    assert_eq!(spec["linux"]["resources"]["devices"][0]["allow"], false);
    assert_eq!(spec["linux"]["maskedPaths"].as_array().unwrap().len(), 10);
}

#[test]
fn commands_and_args_replace_as_the_table_says() {
    let words = |v: &[&str]| v.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    for (command, arguments, expected) in [
        (&[][..], &[][..], &["/e", "c"][..]),
        (&["x"][..], &[][..], &["x"][..]),
        (&[][..], &["y"][..], &["/e", "y"][..]),
        (&["x"][..], &["y"][..], &["x", "y"][..]),
    ] {
        let config =
            ContainerConfig { command: words(command), args: words(arguments), ..container(context()) };
        assert_eq!(spec(&config).unwrap()["process"]["args"], json!(expected));
    }
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let apparmor = SecurityProfile { profile_type: 2, ..Default::default() };
    let confined = LinuxContainerSecurityContext { apparmor: Some(apparmor), ..context() };
    let error = spec(&container(confined)).unwrap_err().to_string();
    assert!(error.starts_with("not supported: apparmor"), "{error}");
    // The kernel has it, and our profile could not be loaded: nobody who asks for it runs without.
    let bare = Features { apparmor: true, ..Features::default() };
    let default = SecurityProfile::default();
    let asked = container(LinuxContainerSecurityContext { apparmor: Some(default), ..context() });
    let error = spec_on(&asked, &bare).unwrap_err().to_string();
    assert!(error.starts_with("not supported: apparmor: RuntimeDefault"), "{error}");
    let loaded = Features { apparmor_default: true, ..bare };
    assert_eq!(spec_on(&asked, &loaded).unwrap()["process"]["apparmorProfile"], "podway-default");
    assert_eq!(spec(&asked).unwrap()["process"].get("apparmorProfile"), None);
    let shared = LinuxContainerSecurityContext { namespace_options: None, ..context() };
    assert!(matches!(spec(&container(shared)), Err(SpecError::NoSharedPid)));
}

#[test]
fn mounts_are_checked_and_replace_the_default_of_their_path() {
    let mount = |container_path: &str| Mount {
        container_path: container_path.to_owned(),
        host_path: "/tmp".to_owned(),
        readonly: true,
        ..Default::default()
    };
    let config = ContainerConfig { mounts: vec![mount("/dev/shm")], ..container(context()) };
    let spec_json = spec(&config).unwrap();
    let shm: Vec<&Value> =
        spec_json["mounts"].as_array().unwrap().iter().filter(|m| m["destination"] == "/dev/shm").collect();
    assert_eq!((shm.len(), &shm[0]["source"]), (1, &json!("/tmp")));
    let bad = ContainerConfig { mounts: vec![mount("relative")], ..container(context()) };
    assert!(matches!(spec(&bad), Err(SpecError::Mount(..))));
}

#[test]
fn the_default_seccomp_filter_is_in_the_document() {
    let seccomp = LinuxContainerSecurityContext { seccomp: Some(SecurityProfile::default()), ..context() };
    let spec = spec(&container(seccomp)).unwrap();
    assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    let rules = spec["linux"]["seccomp"]["syscalls"].as_array().unwrap();
    assert!(rules.iter().any(|r| r["names"][0] == "clone3" && r["errnoRet"] == 38));
    assert!(rules.iter().any(|r| r["names"][0] == "clone" && r["args"][0]["valueTwo"] == 0));
}

#[test]
fn on_cgroup_v2_a_container_sees_its_own_cgroup_alone() {
    let sees = |privileged: bool, features: &Features| {
        let asked = container(LinuxContainerSecurityContext { privileged, ..context() });
        let spec = spec_on(&asked, features).unwrap();
        let own = |n: &Value| n["type"] == "cgroup";
        !spec["linux"]["namespaces"].as_array().unwrap().iter().any(own)
    };
    let v2 = Features { cgroup_v2: true, ..Features::default() };
    assert!(!sees(false, &v2));
    assert!(sees(true, &v2));
    assert!(sees(false, &Features::default()));
}
