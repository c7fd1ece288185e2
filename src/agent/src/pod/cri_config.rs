//! A pod as CRI requests: the sandbox' and the containers' configurations. Pure; what is not known
//! from the pod (addresses, mounts, environment, image) comes in. As the kubelet's
//! `generatePodSandboxConfig` and `generateContainerConfig` have it.

use crate::devices::answer::Gear;
use crate::dns::PodDns;
use crate::hosts::Hostname;
use crate::pod::confinement::{self, Modules};
use crate::pod::model::{Container, Pod};
use crate::pod::{admission, observe, resources};
use k8s_openapi::api::core::v1 as api;
use podway_cri::v1;
use podway_cri::v1::security_profile::ProfileType;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Label: the pod's name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: its namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: its UID, by which an agent finds its pods again.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Annotation: where the container writes its last words.
pub const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation: what counts as its last words.
pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// The default of `terminationMessagePath`.
const DEFAULT_MESSAGE_PATH: &str = "/dev/termination-log";

/// What `procMount: Default` hides.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// What `procMount: Default` makes read-only.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A security context that cannot be had: the message of `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ContextError {
    /// `runAsNonRoot`, and the user is root by the pod.
    #[error("container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})")]
    UserIsRoot {
        /// `name_namespace(uid)`.
        pod: String,
        /// The container.
        container: String,
    },
    /// `runAsNonRoot`, and the user is root by the image.
    #[error("container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})")]
    ImageIsRoot {
        /// `name_namespace(uid)`.
        pod: String,
        /// The container.
        container: String,
    },
    /// `runAsNonRoot`, and the image names its user.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: \"{pod}\", container: {container})"
    )]
    ImageUserHasName {
        /// The image's user.
        user: String,
        /// `name_namespace(uid)`.
        pod: String,
        /// The container.
        container: String,
    },
    /// A field that this agent does not have.
    #[error("not supported: {0}")]
    Unsupported(String),
}

/// The directory of a pod's logs, `<root>/<ns>_<name>_<uid>`.
#[must_use]
pub fn log_directory(root: &Path, pod: &Pod) -> PathBuf {
    root.join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
}

/// A container's log below its pod's log directory.
#[must_use]
pub fn log_path(container: &str, restarts: u32) -> String {
    format!("{container}/{restarts}.log")
}

/// What the node adds to a sandbox.
#[derive(Clone, Debug)]
pub struct SandboxInput<'a> {
    /// The names that the pod is called by.
    pub hostname: &'a Hostname,
    /// Its resolver.
    pub dns: &'a PodDns,
    /// Its log directory.
    pub logs: &'a Path,
    /// Its cgroup.
    pub cgroup: &'a str,
    /// 0 for the pod's first sandbox.
    pub attempt: u32,
    /// What the kernel can confine with.
    pub modules: Modules,
}

fn spec(pod: &Pod) -> &api::PodSpec {
    static EMPTY: std::sync::LazyLock<api::PodSpec> = std::sync::LazyLock::new(api::PodSpec::default);
    // A pod is read only with a spec; the empty one stands in for the type's sake.
    pod.object.spec.as_ref().unwrap_or(&EMPTY)
}

fn pod_labels(pod: &Pod) -> HashMap<String, String> {
    HashMap::from([
        (POD_NAME.to_owned(), pod.name.clone()),
        (POD_NAMESPACE.to_owned(), pod.namespace.clone()),
        (POD_UID.to_owned(), pod.uid.clone()),
    ])
}

fn int(value: i64) -> v1::Int64Value {
    v1::Int64Value { value }
}

fn namespaces(pod: &Pod) -> v1::NamespaceOption {
    let spec = spec(pod);
    let node = |host: Option<bool>, own: v1::NamespaceMode| {
        if host == Some(true) { v1::NamespaceMode::Node } else { own }
    };
    let shared = spec.share_process_namespace == Some(true);
    let own_pid = if shared { v1::NamespaceMode::Pod } else { v1::NamespaceMode::Container };
    v1::NamespaceOption {
        network: node(spec.host_network, v1::NamespaceMode::Pod) as i32,
        ipc: node(spec.host_ipc, v1::NamespaceMode::Pod) as i32,
        pid: node(spec.host_pid, own_pid) as i32,
        ..Default::default()
    }
}

/// The profile that the pod names, else `unasked` (the kubelet's `getSeccompProfile`).
fn seccomp(
    profile: Option<&api::SeccompProfile>,
    unasked: ProfileType,
) -> Result<v1::SecurityProfile, ContextError> {
    let (kind, localhost_ref) = match profile.map(|p| (p.type_.as_str(), &p.localhost_profile)) {
        None => (unasked, String::new()),
        Some(("Unconfined", _)) => (ProfileType::Unconfined, String::new()),
        Some(("RuntimeDefault", _)) => (ProfileType::RuntimeDefault, String::new()),
        Some(("Localhost", Some(file))) => {
            let name = Path::new(file);
            let plain = name.components().all(|c| matches!(c, std::path::Component::Normal(_)));
            if file.is_empty() || !plain {
                return Err(ContextError::Unsupported(format!("seccomp localhostProfile {file:?}")));
            }
            (ProfileType::Localhost, format!("/var/lib/kubelet/seccomp/{file}"))
        }
        Some((other, _)) => return Err(ContextError::Unsupported(format!("seccompProfile type {other}"))),
    };
    Ok(v1::SecurityProfile { profile_type: kind as i32, localhost_ref })
}

fn supplemental(pod: &Pod) -> (Vec<i64>, v1::SupplementalGroupsPolicy) {
    let context = spec(pod).security_context.as_ref();
    let mut groups: Vec<i64> = context.and_then(|c| c.fs_group).into_iter().collect();
    groups.extend(context.and_then(|c| c.supplemental_groups.as_ref()).into_iter().flatten());
    let strict = context.and_then(|c| c.supplemental_groups_policy.as_deref()) == Some("Strict");
    let policy =
        if strict { v1::SupplementalGroupsPolicy::Strict } else { v1::SupplementalGroupsPolicy::Merge };
    (groups, policy)
}

/// The sandbox of `pod`.
///
/// # Errors
/// [`ContextError`] for a security context that cannot be had.
pub fn sandbox(pod: &Pod, input: &SandboxInput<'_>) -> Result<v1::PodSandboxConfig, ContextError> {
    let spec = spec(pod);
    let context = spec.security_context.as_ref();
    let privileged = spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(is_privileged);
    let (supplemental_groups, policy) = supplemental(pod);
    let host_network = pod.host_network;
    let mut labels = pod_labels(pod);
    labels.extend(pod.object.metadata.labels.clone().unwrap_or_default());
    let sysctls = context.and_then(|c| c.sysctls.as_ref()).into_iter().flatten();
    let label = context.and_then(|c| c.se_linux_options.as_ref()).filter(|_| input.modules.selinux);
    Ok(v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            attempt: input.attempt,
        }),
        hostname: if host_network { String::new() } else { input.hostname.hostname.clone() },
        log_directory: input.logs.display().to_string(),
        dns_config: Some(v1::DnsConfig {
            servers: input.dns.resolv.servers.clone(),
            searches: input.dns.resolv.searches.clone(),
            options: input.dns.resolv.options.clone(),
        }),
        port_mappings: if host_network { Vec::new() } else { ports(spec) },
        labels,
        annotations: pod.object.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: input.cgroup.to_owned(),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(pod)),
                run_as_user: context.and_then(|c| c.run_as_user).map(int),
                run_as_group: context.and_then(|c| c.run_as_group).map(int),
                supplemental_groups,
                supplemental_groups_policy: policy as i32,
                privileged,
                seccomp: Some(seccomp(
                    context.and_then(|c| c.seccomp_profile.as_ref()),
                    ProfileType::Unconfined,
                )?),
                selinux_options: label.map(confinement::selinux),
                ..Default::default()
            }),
            sysctls: sysctls.map(|s| (admission::sysctl_name(&s.name), s.value.clone())).collect(),
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn ports(spec: &api::PodSpec) -> Vec<v1::PortMapping> {
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let all = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    all.filter(|p| p.host_port.is_some_and(|h| h > 0))
        .map(|p| v1::PortMapping {
            protocol: match p.protocol.as_deref() {
                Some("UDP") => v1::Protocol::Udp,
                Some("SCTP") => v1::Protocol::Sctp,
                _ => v1::Protocol::Tcp,
            } as i32,
            container_port: p.container_port,
            host_port: p.host_port.unwrap_or(0),
            host_ip: p.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

fn is_privileged(container: &api::Container) -> bool {
    container.security_context.as_ref().and_then(|c| c.privileged) == Some(true)
}

/// What the node and the runtime add to a container.
#[derive(Clone, Debug)]
pub struct ContainerInput<'a> {
    /// Its restart count.
    pub restarts: u32,
    /// How long its start was put off.
    pub waited: Option<std::time::Duration>,
    /// Its command, variables put in.
    pub command: Vec<String>,
    /// Its arguments, variables put in.
    pub args: Vec<String>,
    /// Its environment.
    pub env: &'a [(String, String)],
    /// What it has of devices.
    pub gear: Gear,
    /// Its mounts.
    pub mounts: Vec<v1::Mount>,
    /// The image as the runtime has it.
    pub image: &'a v1::Image,
    /// The machine's memory in bytes.
    pub memory_capacity: i64,
    /// The container whose processes it sees, for an ephemeral one that asks for that.
    pub target: Option<&'a str>,
    /// What the kernel can confine with.
    pub modules: Modules,
    /// Whether the container gets the runtime's seccomp profile if it names none.
    pub seccomp_default: bool,
}

/// The API's container of a name.
#[must_use]
pub fn api_container<'a>(pod: &'a Pod, name: &str) -> Option<&'a api::Container> {
    let spec = pod.object.spec.as_ref()?;
    let debug = pod.debug.iter().map(|d| &d.given);
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).chain(debug).find(|c| c.name == name)
}

/// Where a container writes its last words.
#[must_use]
pub fn message_path(container: &api::Container) -> &str {
    container.termination_message_path.as_deref().filter(|p| !p.is_empty()).unwrap_or(DEFAULT_MESSAGE_PATH)
}

/// The QoS class that the API server gave the pod.
#[must_use]
pub fn qos(pod: &Pod) -> &str {
    pod.object.status.as_ref().and_then(|s| s.qos_class.as_deref()).unwrap_or("BestEffort")
}

/// A container of `pod`.
///
/// # Errors
/// [`ContextError`] for a security context that cannot be had.
pub fn container(
    pod: &Pod,
    model: &Container,
    given: &api::Container,
    input: ContainerInput<'_>,
) -> Result<v1::ContainerConfig, ContextError> {
    let mut labels = pod_labels(pod);
    labels.insert(observe::CONTAINER_NAME.to_owned(), model.name.clone());
    let policy = given.termination_message_policy.clone().unwrap_or_else(|| "File".to_owned());
    let grace = pod.grace.as_secs().to_string();
    let security_context = Some(security(pod, given, &input)?);
    let mut annotations = HashMap::from([
        (observe::CONTAINER_HASH.to_owned(), format!("{:x}", model.hash)),
        (observe::RESTART_COUNT.to_owned(), input.restarts.to_string()),
        (MESSAGE_PATH.to_owned(), message_path(given).to_owned()),
        (MESSAGE_POLICY.to_owned(), policy),
        ("io.kubernetes.pod.terminationGracePeriod".to_owned(), grace),
    ]);
    for (name, value) in input.gear.annotations {
        annotations.entry(name).or_insert(value);
    }
    if let Some(waited) = input.waited {
        annotations.insert(observe::RESTART_DELAY.to_owned(), waited.as_millis().to_string());
    }
    let image = if input.image.id.is_empty() { model.image.clone() } else { input.image.id.clone() };
    let env = input.gear.env.iter().chain(input.env);
    Ok(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: model.name.clone(), attempt: input.restarts }),
        image: Some(v1::ImageSpec { image, user_specified_image: model.image.clone(), ..Default::default() }),
        command: input.command,
        args: input.args,
        working_dir: given.working_dir.clone().unwrap_or_default(),
        envs: env
            .map(|(key, value)| v1::KeyValue { key: key.clone(), value: value.clone().into_bytes() })
            .collect(),
        mounts: input.gear.mounts.into_iter().chain(input.mounts).collect(),
        devices: input.gear.devices,
        cdi_devices: input.gear.cdi,
        labels,
        annotations,
        log_path: log_path(&model.name, input.restarts),
        stdin: given.stdin == Some(true),
        stdin_once: given.stdin_once == Some(true),
        tty: given.tty == Some(true),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources::container(given, qos(pod), input.memory_capacity)),
            security_context,
        }),
        ..Default::default()
    })
}

/// The container's security context over the pod's, field by field.
fn security(
    pod: &Pod,
    given: &api::Container,
    input: &ContainerInput<'_>,
) -> Result<v1::LinuxContainerSecurityContext, ContextError> {
    let (image, target, modules) = (input.image, input.target, input.modules);
    let mut namespaces = namespaces(pod);
    if let Some(id) = target {
        namespaces.pid = v1::NamespaceMode::Target as i32;
        id.clone_into(&mut namespaces.target_id);
    }
    let pod_context = spec(pod).security_context.clone().unwrap_or_default();
    let own = given.security_context.clone().unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let user = own.run_as_user.or(pod_context.run_as_user);
    if own.run_as_non_root.or(pod_context.run_as_non_root) == Some(true) {
        non_root(pod, &given.name, user, image)?;
    }
    let by_image = image.uid.as_ref().map(|u| u.value);
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked") || privileged;
    let (supplemental_groups, policy) = supplemental(pod);
    let words = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let paths = |list: &[&str]| -> Vec<String> {
        if unmasked { Vec::new() } else { list.iter().map(|p| (*p).to_owned()).collect() }
    };
    let profile = own.seccomp_profile.as_ref().or(pod_context.seccomp_profile.as_ref());
    let unasked = match input.seccomp_default && !privileged {
        true => ProfileType::RuntimeDefault,
        false => ProfileType::Unconfined,
    };
    let apparmor = own.app_armor_profile.as_ref().or(pod_context.app_armor_profile.as_ref());
    let label = own.se_linux_options.as_ref().or(pod_context.se_linux_options.as_ref());
    Ok(v1::LinuxContainerSecurityContext {
        capabilities: own.capabilities.as_ref().map(|c| v1::Capability {
            add_capabilities: words(&c.add),
            drop_capabilities: words(&c.drop),
            ..Default::default()
        }),
        privileged,
        namespace_options: Some(namespaces),
        run_as_user: user.or(by_image).map(int),
        run_as_username: if user.is_none() && by_image.is_none() {
            image.username.clone()
        } else {
            String::new()
        },
        run_as_group: own.run_as_group.or(pod_context.run_as_group).map(int),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups,
        supplemental_groups_policy: policy as i32,
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        // A privileged container is never confined.
        seccomp: Some(seccomp(profile.filter(|_| !privileged), unasked)?),
        apparmor: apparmor.map(confinement::apparmor).transpose().map_err(ContextError::Unsupported)?,
        selinux_options: label.filter(|_| modules.selinux).map(confinement::selinux),
        ..Default::default()
    })
}

fn non_root(pod: &Pod, container: &str, user: Option<i64>, image: &v1::Image) -> Result<(), ContextError> {
    let who = format!("{}_{}({})", pod.name, pod.namespace, pod.uid);
    let container = container.to_owned();
    match (user, image.uid.as_ref().map(|u| u.value), image.username.as_str()) {
        (Some(0), ..) => Err(ContextError::UserIsRoot { pod: who, container }),
        (Some(_), ..) => Ok(()),
        (None, Some(0), _) | (None, None, "") => Err(ContextError::ImageIsRoot { pod: who, container }),
        (None, Some(_), _) => Ok(()),
        (None, None, user) => {
            Err(ContextError::ImageUserHasName { user: user.to_owned(), pod: who, container })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::model::tests::pod;
    use serde_json::json;

    fn made(spec: serde_json::Value, image: &v1::Image) -> Result<v1::ContainerConfig, ContextError> {
        made_with(spec, image, false)
    }

    fn made_with(
        spec: serde_json::Value,
        image: &v1::Image,
        seccomp_default: bool,
    ) -> Result<v1::ContainerConfig, ContextError> {
        let p = pod(spec);
        let given = api_container(&p, "c").unwrap().clone();
        let input = ContainerInput {
            restarts: 2,
            waited: Some(std::time::Duration::from_secs(10)),
            command: vec!["x".into()],
            args: vec![],
            env: &[("A".into(), "1".into())],
            gear: Gear::default(),
            mounts: vec![],
            image,
            memory_capacity: 1 << 30,
            target: None,
            modules: Modules { apparmor: true, selinux: true },
            seccomp_default,
        };
        container(&p, &p.apps[0], &given, input)
    }

    #[test]
    fn a_container_carries_what_a_restarted_agent_must_know() {
        let config =
            made(json!({"containers": [{"name": "c", "image": "i:1"}]}), &v1::Image::default()).unwrap();
        let p = pod(json!({"containers": [{"name": "c", "image": "i:1"}]}));
        let status = v1::ContainerStatus {
            id: "x".into(),
            state: 1,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            ..Default::default()
        };
        let back = observe::instance(&status, "s").unwrap();
        assert_eq!((back.name.as_str(), back.restarts, back.hash), ("c", 2, p.apps[0].hash));
        assert_eq!(back.waited, Some(std::time::Duration::from_secs(10)));
        assert_eq!((config.labels[POD_UID].as_str(), config.log_path.as_str()), ("u-1", "c/2.log"));
        let context = config.linux.unwrap().security_context.unwrap();
        let options = context.namespace_options.unwrap();
        assert_eq!((options.pid, options.network), (v1::NamespaceMode::Container as i32, 0));
        assert_eq!(context.seccomp.unwrap().profile_type, 1, "nobody is confined unasked");
        assert!(context.masked_paths.contains(&"/proc/kcore".to_owned()));
    }

    #[test]
    fn the_containers_context_goes_before_the_pods() {
        let config = made(
            json!({"securityContext": {"runAsUser": 5, "fsGroup": 7, "seccompProfile": {"type": "RuntimeDefault"},
                    "seLinuxOptions": {"type": "pod_t", "level": "s0"},
                    "appArmorProfile": {"type": "Localhost", "localhostProfile": "of-pod"}},
                "containers": [{"name": "c", "image": "i:1", "securityContext": {"runAsUser": 6,
                    "allowPrivilegeEscalation": false, "seLinuxOptions": {"type": "own_t"}, "capabilities": {"drop": ["ALL"]}}}]}),
            &v1::Image::default(),
        );
        let context = config.unwrap().linux.unwrap().security_context.unwrap();
        assert_eq!(context.run_as_user.unwrap().value, 6);
        assert_eq!(context.supplemental_groups, [7]);
        assert_eq!(context.capabilities.unwrap().drop_capabilities, ["ALL"]);
        assert!(context.no_new_privs);
        assert_eq!(context.selinux_options.unwrap().r#type, "own_t");
        assert_eq!(context.apparmor.unwrap().localhost_ref, "of-pod");
        assert_eq!(context.seccomp.unwrap().profile_type, 0);
    }

    #[test]
    fn who_names_no_seccomp_profile_gets_the_nodes_default() {
        let unconfined = json!({"seccompProfile": {"type": "Unconfined"}});
        for (own, default, wanted) in [
            (json!({}), false, ProfileType::Unconfined),
            (json!({}), true, ProfileType::RuntimeDefault),
            (unconfined, true, ProfileType::Unconfined),
            (json!({"privileged": true}), true, ProfileType::Unconfined),
        ] {
            let spec = json!({"containers": [{"name": "c", "image": "i:1", "securityContext": own.clone()}]});
            let made = made_with(spec, &v1::Image::default(), default).unwrap();
            let context = made.linux.unwrap().security_context.unwrap();
            assert_eq!(context.seccomp.unwrap().profile_type(), wanted, "{own} {default}");
        }
    }

    #[test]
    fn run_as_non_root_asks_the_image() {
        let spec =
            json!({"securityContext": {"runAsNonRoot": true}, "containers": [{"name": "c", "image": "i:1"}]});
        let root = v1::Image::default();
        let named = v1::Image { username: "app".into(), ..Default::default() };
        let numbered = v1::Image { uid: Some(int(9)), ..Default::default() };
        assert!(matches!(made(spec.clone(), &root), Err(ContextError::ImageIsRoot { .. })));
        assert!(matches!(made(spec.clone(), &named), Err(ContextError::ImageUserHasName { .. })));
        let context = made(spec, &numbered).unwrap().linux.unwrap().security_context.unwrap();
        assert_eq!(context.run_as_user.unwrap().value, 9);
    }

    #[test]
    fn a_sandbox_has_its_ports_and_its_place() {
        let p = pod(json!({"containers": [{"name": "c", "image": "i:1",
            "ports": [{"containerPort": 80, "hostPort": 8080, "protocol": "UDP"}, {"containerPort": 81}]}]}));
        let hostname = Hostname { hostname: "p".into(), domain: String::new(), short: "p".into() };
        let logs = log_directory(Path::new("/var/log/pods"), &p);
        let dns = PodDns::default();
        let input = SandboxInput {
            hostname: &hostname,
            dns: &dns,
            logs: &logs,
            cgroup: "/kubepods/podu",
            attempt: 1,
            modules: Modules::default(),
        };
        let config = sandbox(&p, &input).unwrap();
        assert_eq!(config.log_directory, "/var/log/pods/ns_p_u-1");
        assert_eq!(config.port_mappings.len(), 1);
        assert_eq!((config.port_mappings[0].host_port, config.port_mappings[0].protocol), (8080, 1));
        assert_eq!(config.linux.unwrap().cgroup_parent, "/kubepods/podu");
    }
}
