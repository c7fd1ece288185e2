//! Every field of what a pod and a container are asked for with: each is honoured or refused by its name,
//! none is ignored. The list of fields is the protocol's own, so that a new one fails here.

use super::tests::{container, context, spec_on};
use super::{SpecError, refused};
use crate::features::Features;
use podway_cri::v1::security_profile::ProfileType;
use podway_cri::v1::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const PROTO: &str = include_str!("../../../cri/proto/api.proto");

/// `Message.field` of the messages that make up a configuration.
fn fields(messages: &[&str]) -> Vec<String> {
    let mut all = Vec::new();
    for message in messages {
        let body = PROTO.split(&format!("\nmessage {message} {{\n")).nth(1).unwrap();
        for line in body.split("\n}").next().unwrap().lines().map(str::trim) {
            let Some((before, number)) = line.split_once(" = ") else { continue };
            let number = number.trim_end_matches(';').split([' ', ';', '[']).next().unwrap();
            let words: Vec<&str> = before.split_whitespace().collect();
            // Not a comment, not a value of an enum within.
            if !line.starts_with("//") && words.len() >= 2 && number.parse::<u32>().is_ok() {
                all.push(format!("{message}.{}", words.last().unwrap()));
            }
        }
    }
    all
}

enum Case {
    /// What it sets in config.json: a pointer, and the value there.
    Sets(fn(&mut ContainerConfig), &'static str, Value),
    /// What the refusal names.
    Refused(fn(&mut ContainerConfig), &'static str),
    /// Not of config.json: who honours it, and the test that shows it.
    By(&'static str),
}
use Case::{By, Refused, Sets};

fn sc(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

fn res(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    config.linux.as_mut().unwrap().resources.as_mut().unwrap()
}

fn caps(config: &mut ContainerConfig) -> &mut Capability {
    sc(config).capabilities.get_or_insert_default()
}

fn mount(config: &mut ContainerConfig) -> &mut Mount {
    let path = |p: &str| p.to_owned();
    config.mounts.push(Mount { container_path: path("/m"), host_path: path("/tmp"), ..Default::default() });
    config.mounts.last_mut().unwrap()
}

fn profile(kind: ProfileType, path: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind as i32, localhost_ref: path.to_owned() })
}

fn text(value: &str) -> String {
    value.to_owned()
}

fn of_containers() -> BTreeMap<&'static str, Case> {
    let life = "container/create.rs: tests/cri.rs, metadata_labels_and_annotations_come_back";
    let image = "container/create.rs: tests/cri.rs, an_image_that_is_not_there_is_not_found";
    let io = "monitor and streaming: src/runtime/tests/exec.rs";
    BTreeMap::from([
        ("ContainerConfig.metadata", By(life)),
        ("ContainerConfig.labels", By(life)),
        ("ContainerConfig.annotations", By(life)),
        ("ContainerConfig.image", By(image)),
        ("ContainerConfig.command", Sets(|c| c.command = vec![text("x")], "/process/args/0", json!("x"))),
        ("ContainerConfig.args", Sets(|c| c.args = vec![text("y")], "/process/args/1", json!("y"))),
        ("ContainerConfig.working_dir", Sets(|c| c.working_dir = text("/w"), "/process/cwd", json!("/w"))),
        (
            "ContainerConfig.envs",
            Sets(
                |c| c.envs = vec![KeyValue { key: text("A"), value: b"2".to_vec() }],
                "/process/env/3",
                json!("A=2"),
            ),
        ),
        ("ContainerConfig.mounts", Sets(|c| mount(c).readonly = false, "/mounts/7/source", json!("/tmp"))),
        (
            "ContainerConfig.devices",
            Sets(
                |c| {
                    let path = text("/dev/null");
                    c.devices = vec![Device {
                        container_path: path.clone(),
                        host_path: path,
                        permissions: text("r"),
                    }];
                },
                "/linux/resources/devices/1/access",
                json!("r"),
            ),
        ),
        ("ContainerConfig.log_path", By("monitor/log.rs: tests/cri.rs, output_goes_to_the_log")),
        ("ContainerConfig.stdin", By(io)),
        ("ContainerConfig.stdin_once", By(io)),
        ("ContainerConfig.tty", Sets(|c| c.tty = true, "/process/terminal", json!(true))),
        ("ContainerConfig.linux", By("its own fields, below")),
        (
            "ContainerConfig.windows",
            Refused(|c| c.windows = Some(WindowsContainerConfig::default()), "windows"),
        ),
        (
            "ContainerConfig.CDI_devices",
            Refused(|c| c.cdi_devices = vec![CdiDevice { name: text("v/c=d") }], "CDI"),
        ),
        ("ContainerConfig.stop_signal", By("container/signals.rs: tests/cri.rs, the_stop_signal_is_sent")),
        ("LinuxContainerConfig.resources", By("its own fields, below")),
        ("LinuxContainerConfig.security_context", By("its own fields, below")),
        (
            "LinuxContainerResources.cpu_period",
            Sets(|c| res(c).cpu_period = 7, "/linux/resources/cpu/period", json!(7)),
        ),
        (
            "LinuxContainerResources.cpu_quota",
            Sets(|c| res(c).cpu_quota = 7, "/linux/resources/cpu/quota", json!(7)),
        ),
        (
            "LinuxContainerResources.cpu_shares",
            Sets(|c| res(c).cpu_shares = 7, "/linux/resources/cpu/shares", json!(7)),
        ),
        (
            "LinuxContainerResources.memory_limit_in_bytes",
            Sets(|c| res(c).memory_limit_in_bytes = 7, "/linux/resources/memory/limit", json!(7)),
        ),
        (
            "LinuxContainerResources.memory_swap_limit_in_bytes",
            Sets(|c| res(c).memory_swap_limit_in_bytes = 9, "/linux/resources/memory/swap", json!(9)),
        ),
        (
            "LinuxContainerResources.oom_score_adj",
            Sets(|c| res(c).oom_score_adj = 500, "/process/oomScoreAdj", json!(500)),
        ),
        (
            "LinuxContainerResources.cpuset_cpus",
            Sets(|c| res(c).cpuset_cpus = text("0"), "/linux/resources/cpu/cpus", json!("0")),
        ),
        (
            "LinuxContainerResources.cpuset_mems",
            Sets(|c| res(c).cpuset_mems = text("0"), "/linux/resources/cpu/mems", json!("0")),
        ),
        (
            "LinuxContainerResources.hugepage_limits",
            Sets(
                |c| res(c).hugepage_limits = vec![HugepageLimit { page_size: text("2MB"), limit: 7 }],
                "/linux/resources/hugepageLimits/0/limit",
                json!(7),
            ),
        ),
        (
            "LinuxContainerResources.unified",
            Sets(
                |c| res(c).unified = [(text("memory.high"), text("7"))].into(),
                "/linux/resources/unified/memory.high",
                json!("7"),
            ),
        ),
        (
            "LinuxContainerSecurityContext.capabilities",
            Sets(
                |c| caps(c).drop_capabilities = vec![text("ALL")],
                "/process/capabilities/bounding",
                json!([]),
            ),
        ),
        (
            "LinuxContainerSecurityContext.privileged",
            Sets(|c| sc(c).privileged = true, "/linux/resources/devices/0/allow", json!(true)),
        ),
        ("LinuxContainerSecurityContext.namespace_options", By("its own fields, below")),
        (
            "LinuxContainerSecurityContext.selinux_options",
            By("nothing to label without SELinux, and refused with it: spec/refused.rs"),
        ),
        (
            "LinuxContainerSecurityContext.run_as_user",
            Sets(|c| sc(c).run_as_user = Some(Int64Value { value: 7 }), "/process/user/uid", json!(7)),
        ),
        (
            "LinuxContainerSecurityContext.run_as_group",
            Sets(
                |c| {
                    sc(c).run_as_user = Some(Int64Value { value: 7 });
                    sc(c).run_as_group = Some(Int64Value { value: 8 });
                },
                "/process/user/gid",
                json!(8),
            ),
        ),
        (
            "LinuxContainerSecurityContext.run_as_username",
            Refused(|c| sc(c).run_as_username = text("nobody-there"), "user"),
        ),
        (
            "LinuxContainerSecurityContext.readonly_rootfs",
            Sets(|c| sc(c).readonly_rootfs = true, "/root/readonly", json!(true)),
        ),
        (
            "LinuxContainerSecurityContext.supplemental_groups",
            Sets(|c| sc(c).supplemental_groups = vec![9], "/process/user/additionalGids/0", json!(9)),
        ),
        (
            "LinuxContainerSecurityContext.supplemental_groups_policy",
            Refused(|c| sc(c).supplemental_groups_policy = 7, "supplemental_groups_policy"),
        ),
        (
            "LinuxContainerSecurityContext.no_new_privs",
            Sets(|c| sc(c).no_new_privs = true, "/process/noNewPrivileges", json!(true)),
        ),
        (
            "LinuxContainerSecurityContext.masked_paths",
            Sets(|c| sc(c).masked_paths = vec![text("/x")], "/linux/maskedPaths", json!(["/x"])),
        ),
        (
            "LinuxContainerSecurityContext.readonly_paths",
            Sets(|c| sc(c).readonly_paths = vec![text("/x")], "/linux/readonlyPaths", json!(["/x"])),
        ),
        (
            "LinuxContainerSecurityContext.seccomp",
            Sets(
                |c| sc(c).seccomp = profile(ProfileType::RuntimeDefault, ""),
                "/linux/seccomp/defaultAction",
                json!("SCMP_ACT_ERRNO"),
            ),
        ),
        (
            "LinuxContainerSecurityContext.apparmor",
            Refused(|c| sc(c).apparmor = profile(ProfileType::Localhost, "p"), "apparmor"),
        ),
        (
            "LinuxContainerSecurityContext.apparmor_profile",
            #[expect(deprecated, reason = "it is a field still")]
            Refused(|c| sc(c).apparmor_profile = text("localhost/p"), "apparmor"),
        ),
        (
            "LinuxContainerSecurityContext.seccomp_profile_path",
            #[expect(deprecated, reason = "it is a field still")]
            Sets(
                |c| sc(c).seccomp_profile_path = text("runtime/default"),
                "/linux/seccomp/defaultAction",
                json!("SCMP_ACT_ERRNO"),
            ),
        ),
        (
            "Capability.add_capabilities",
            Sets(
                |c| {
                    caps(c).drop_capabilities = vec![text("ALL")];
                    caps(c).add_capabilities = vec![text("NET_ADMIN")];
                },
                "/process/capabilities/effective",
                json!(["CAP_NET_ADMIN"]),
            ),
        ),
        (
            "Capability.drop_capabilities",
            Sets(
                |c| caps(c).drop_capabilities = vec![text("ALL")],
                "/process/capabilities/permitted",
                json!([]),
            ),
        ),
        (
            "Capability.add_ambient_capabilities",
            Sets(
                |c| caps(c).add_ambient_capabilities = vec![text("CHOWN")],
                "/process/capabilities/ambient",
                json!(["CAP_CHOWN"]),
            ),
        ),
        ("NamespaceOption.network", By("the sandbox': tests/cri.rs, the_hosts_network_is_the_hosts")),
        ("NamespaceOption.ipc", By("the sandbox': tests/cri.rs, the_hosts_ipc_is_the_hosts")),
        (
            "NamespaceOption.pid",
            Refused(|c| sc(c).namespace_options.as_mut().unwrap().pid = NamespaceMode::Pod as i32, "pid"),
        ),
        (
            "NamespaceOption.target_id",
            Refused(
                |c| sc(c).namespace_options.as_mut().unwrap().pid = NamespaceMode::Target as i32,
                "target_id",
            ),
        ),
        (
            "NamespaceOption.userns_options",
            By("the sandbox': spec/namespaces.rs, one_range_that_begins_with_root"),
        ),
        ("UserNamespace.mode", By("spec/namespaces.rs, one_range_that_begins_with_root")),
        ("UserNamespace.uids", By("spec/namespaces.rs, one_range_that_begins_with_root")),
        ("UserNamespace.gids", By("spec/namespaces.rs, one_range_that_begins_with_root")),
        ("SecurityProfile.profile_type", By("spec/seccomp.rs, a_profile_is_chosen_by_type")),
        ("SecurityProfile.localhost_ref", By("spec/seccomp.rs, a_profile_is_chosen_by_type")),
        (
            "Mount.container_path",
            Sets(|c| mount(c).container_path = text("/n"), "/mounts/7/destination", json!("/n")),
        ),
        ("Mount.host_path", Sets(|c| mount(c).host_path = text("/etc"), "/mounts/7/source", json!("/etc"))),
        ("Mount.readonly", Sets(|c| mount(c).readonly = true, "/mounts/7/options/2", json!("ro"))),
        // Without SELinux there is no label to give.
        ("Mount.selinux_relabel", By("nothing to do without SELinux, and refused with it: spec/refused.rs")),
        ("Mount.propagation", Sets(|c| mount(c).propagation = 2, "/mounts/7/options/1", json!("rshared"))),
        (
            "Mount.uidMappings",
            Refused(
                |c| mount(c).uid_mappings = vec![IdMapping { host_id: 1, container_id: 0, length: 1 }],
                "uidMappings",
            ),
        ),
        (
            "Mount.gidMappings",
            Sets(
                |c| {
                    let map = vec![IdMapping { host_id: 1, container_id: 0, length: 1 }];
                    let mount = mount(c);
                    (mount.uid_mappings, mount.gid_mappings) = (map.clone(), map);
                },
                "/mounts/7/gidMappings/0/hostID",
                json!(1),
            ),
        ),
        (
            "Mount.recursive_read_only",
            Sets(
                |c| {
                    let mount = mount(c);
                    (mount.readonly, mount.recursive_read_only) = (true, true);
                },
                "/mounts/7/options/2",
                json!("rro"),
            ),
        ),
        ("Mount.image", By("container/volumes.rs: tests/cri.rs, an_image_is_a_volume")),
        ("Mount.image_sub_path", By("container/volumes.rs, a_sub_path_stays_inside")),
        ("ImageSpec.image", By(image)),
        ("ImageSpec.annotations", By("told back in the status; an image has no options that they could set")),
        ("ImageSpec.user_specified_image", By("told back in the status")),
        (
            "ImageSpec.runtime_handler",
            Refused(
                |c| c.image = Some(ImageSpec { runtime_handler: text("kata"), ..Default::default() }),
                "runtime_handler",
            ),
        ),
        ("ImageSpec.image_ref", By("an answer's: container/volumes.rs sets it")),
    ])
}

#[test]
fn every_field_of_a_container_is_honoured_or_refused_by_name() {
    let cases = of_containers();
    let mut fields = fields(&[
        "ContainerConfig",
        "LinuxContainerConfig",
        "LinuxContainerResources",
        "LinuxContainerSecurityContext",
        "Capability",
        "NamespaceOption",
        "UserNamespace",
        "SecurityProfile",
        "Mount",
        "ImageSpec",
    ]);
    fields.sort();
    let listed: Vec<String> = cases.keys().map(|k| (*k).to_owned()).collect();
    assert_eq!(listed, fields, "the protocol's fields and those of the table differ");
    let machine = Features { swap: true, huge_pages: true, cgroup_v2: true, ..Default::default() };
    for (name, case) in cases {
        let mut config = container(context());
        match case {
            Sets(set, pointer, value) => {
                let before = spec_on(&config, &machine).unwrap();
                set(&mut config);
                let after = spec_on(&config, &machine).unwrap_or_else(|e| unreachable!("{name}: {e}"));
                assert_eq!(after.pointer(pointer), Some(&value), "{name}");
                assert_ne!(before.pointer(pointer), Some(&value), "{name} changes nothing");
            }
            Refused(set, word) => {
                set(&mut config);
                let error = spec_on(&config, &machine).unwrap_err();
                let mut said = error.to_string();
                if let SpecError::User(source) = &error {
                    said.push_str(&source.to_string());
                }
                assert!(said.contains(word), "{name}: {said}");
            }
            By(who) => assert!(!who.is_empty(), "{name}"),
        }
    }
}

#[test]
fn every_field_of_a_sandbox_has_who_honours_it() {
    let own = "of a process of the sandbox, which it has none of: nothing of it runs with more";
    let cases = BTreeMap::from([
        ("PodSandboxConfig.metadata", "sandbox.rs, name_of"),
        ("PodSandboxConfig.hostname", "netns.rs: tests/cri.rs, the_hostname_and_dns_are_the_pods"),
        ("PodSandboxConfig.log_directory", "container/create.rs, log_path"),
        ("PodSandboxConfig.dns_config", "sandbox.rs, files: tests/cri.rs, the_hostname_and_dns_are_the_pods"),
        ("PodSandboxConfig.port_mappings", "cni.rs: src/runtime/tests/pod.rs"),
        ("PodSandboxConfig.labels", "status.rs: tests/cri.rs, metadata_labels_and_annotations_come_back"),
        (
            "PodSandboxConfig.annotations",
            "status.rs: tests/cri.rs, metadata_labels_and_annotations_come_back",
        ),
        ("PodSandboxConfig.linux", "its own fields, below"),
        ("PodSandboxConfig.windows", "refused"),
        (
            "LinuxPodSandboxConfig.cgroup_parent",
            "cgroup/driver.rs, a_parent_of_cgroupfs_is_an_absolute_plain_path",
        ),
        ("LinuxPodSandboxConfig.security_context", "its own fields, below"),
        ("LinuxPodSandboxConfig.sysctls", "netns.rs, a_sysctl_must_be_the_pods_own"),
        ("LinuxPodSandboxConfig.overhead", "kept: it is the agent's to apply to the parent"),
        ("LinuxPodSandboxConfig.resources", "kept: it is the agent's to apply to the parent"),
        ("LinuxSandboxSecurityContext.namespace_options", "sandbox.rs, pin"),
        ("LinuxSandboxSecurityContext.selinux_options", "refused where the kernel has SELinux"),
        ("LinuxSandboxSecurityContext.run_as_user", own),
        ("LinuxSandboxSecurityContext.run_as_group", own),
        ("LinuxSandboxSecurityContext.readonly_rootfs", own),
        ("LinuxSandboxSecurityContext.supplemental_groups", own),
        ("LinuxSandboxSecurityContext.supplemental_groups_policy", own),
        ("LinuxSandboxSecurityContext.privileged", "container/create.rs, allowed_in"),
        ("LinuxSandboxSecurityContext.seccomp", own),
        ("LinuxSandboxSecurityContext.apparmor", "refused where it cannot be had"),
        ("LinuxSandboxSecurityContext.seccomp_profile_path", own),
    ]);
    let mut fields = fields(&["PodSandboxConfig", "LinuxPodSandboxConfig", "LinuxSandboxSecurityContext"]);
    fields.sort();
    assert_eq!(cases.keys().map(|k| (*k).to_owned()).collect::<Vec<_>>(), fields);
    let refuse = |context: LinuxSandboxSecurityContext, features: &Features| {
        let linux = Some(LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() });
        let config = PodSandboxConfig { linux, ..Default::default() };
        refused::sandbox(&config, features).map_err(|e| e.to_string())
    };
    let selinux = Some(SeLinuxOption { level: text("s0"), ..Default::default() });
    let labelled = LinuxSandboxSecurityContext { selinux_options: selinux, ..Default::default() };
    // As containerd and CRI-O have it: where there are no labels, one has no meaning.
    assert_eq!(refuse(labelled.clone(), &Features { selinux: false, ..Default::default() }), Ok(()));
    let said = refuse(labelled, &Features { selinux: true, ..Default::default() }).unwrap_err();
    assert!(said.contains("selinux_options"), "{said}");
    let apparmor = profile(ProfileType::Localhost, "p");
    let said = refuse(LinuxSandboxSecurityContext { apparmor, ..Default::default() }, &Features::default());
    let said = said.unwrap_err();
    assert!(said.contains("apparmor"), "{said}");
    let windows = PodSandboxConfig { windows: Some(Default::default()), ..Default::default() };
    let said = refused::sandbox(&windows, &Features::default()).unwrap_err().to_string();
    assert!(said.contains("windows"), "{said}");
}
