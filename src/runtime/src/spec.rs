//! From a CRI container configuration and its image to `config.json`: a pure function, but for the
//! look-ups in the image's passwd and group, and of device nodes.

pub mod capabilities;
pub mod seccomp;
pub mod user;

use oci_spec::runtime::Spec;
use podway_cri::v1::{ContainerConfig, LinuxContainerResources, Mount, NamespaceMode, PodSandboxConfig};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// What an image says of the process.
#[derive(Clone, Debug, Default)]
pub struct ImageDefaults {
    /// ENTRYPOINT.
    pub entrypoint: Vec<String>,
    /// CMD.
    pub cmd: Vec<String>,
    /// ENV, `KEY=value`.
    pub env: Vec<String>,
    /// USER, `user[:group]`.
    pub user: String,
    /// WORKDIR.
    pub working_dir: String,
}

/// All that a spec is made from.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The container.
    pub container: &'a ContainerConfig,
    /// Its sandbox.
    pub sandbox: &'a PodSandboxConfig,
    /// Its image.
    pub image: &'a ImageDefaults,
    /// Its mounted root filesystem.
    pub rootfs: &'a Path,
    /// Where the sandbox' namespaces are pinned.
    pub namespaces: &'a Path,
    /// The sandbox' hostname.
    pub hostname: &'a str,
    /// The sandbox' shm, `None` for the host's.
    pub shm: Option<&'a Path>,
    /// Its cgroup.
    pub cgroup: &'a str,
    /// The capabilities that may be handed on.
    pub capabilities: u64,
    /// The lowest oom_score_adj that may be set.
    pub oom_floor: i64,
}

/// Why a spec could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Nothing to run.
    #[error("no command specified: set command in the pod, or an entrypoint in the image")]
    NoCommand,
    /// A feature that is not built.
    #[error("not supported: {0}")]
    NotSupported(String),
    /// The user.
    #[error("cannot resolve the user")]
    User(#[from] user::UserError),
    /// A capability.
    #[error(transparent)]
    Capability(#[from] capabilities::Unknown),
    /// A mount.
    #[error("mount {0:?} is not valid: {1}")]
    Mount(String, &'static str),
    /// A device.
    #[error("device {0:?} cannot be used: it is not a device node on this host")]
    Device(String),
    /// A seccomp profile.
    #[error("the seccomp profile {0:?} cannot be used: {1}")]
    Seccomp(String, String),
    /// The document is not a runtime spec.
    #[error("the generated config.json is not a valid runtime spec")]
    Shape(#[source] serde_json::Error),
}

const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Makes the spec.
///
/// # Errors
/// [`SpecError`].
pub fn generate(input: &Input<'_>) -> Result<Spec, SpecError> {
    let linux = input.container.linux.clone().unwrap_or_default();
    let context = linux.security_context.clone().unwrap_or_default();
    let resources = linux.resources.unwrap_or_default();
    refuse_unbuilt(input.container, &context)?;
    let user = user::resolve(input.rootfs, &context, &input.image.user)?;
    let caps = context.capabilities.clone().unwrap_or_default();
    let set = capabilities::set(
        context.privileged,
        &caps.add_capabilities,
        &caps.drop_capabilities,
        input.capabilities,
    )?;
    let ambient =
        capabilities::set(false, &caps.add_ambient_capabilities, &["ALL".to_owned()], input.capabilities)?;
    // A user that is not root starts without effective capabilities, as execve(2) would leave it.
    let effective = if user.uid == 0 { set.clone() } else { ambient.clone() };
    let cwd = [&input.container.working_dir, &input.image.working_dir]
        .into_iter()
        .find(|d| !d.is_empty())
        .map_or("/", String::as_str);
    let mut process = json!({
        "terminal": input.container.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "args": args(input.container, input.image)?,
        "env": env(input, &user.home),
        "cwd": cwd,
        "capabilities": {
            "bounding": set, "effective": effective, "permitted": effective,
            "inheritable": ambient, "ambient": ambient,
        },
        "noNewPrivileges": context.no_new_privs,
    });
    process["oomScoreAdj"] = json!(resources.oom_score_adj.max(input.oom_floor).clamp(-1000, 1000));
    let mut mounts = base_mounts(input, context.privileged);
    for mount in &input.container.mounts {
        let mapped = user_mount(mount)?;
        mounts.retain(|m| m["destination"] != mapped["destination"]);
        mounts.push(mapped);
    }
    let (nodes, rules) = devices(input.container, context.privileged)?;
    let mut res = resources_json(&resources);
    res.insert("devices".to_owned(), Value::Array(rules));
    let paths = |own: &[String], default: &[&str]| -> Value {
        if context.privileged {
            json!([])
        } else if own.is_empty() {
            json!(default)
        } else {
            json!(own)
        }
    };
    let propagation =
        if input.container.mounts.iter().any(|m| m.propagation == 2) { "rshared" } else { "rslave" };
    let filter = seccomp::filter(context.seccomp.as_ref(), context.privileged, &set)?;
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "process": process,
        "root": {"path": input.rootfs, "readonly": context.readonly_rootfs},
        "mounts": mounts,
        "annotations": annotations(input),
        "linux": {
            "resources": res,
            "cgroupsPath": input.cgroup,
            "namespaces": namespaces(input)?,
            "devices": nodes,
            "rootfsPropagation": propagation,
            "maskedPaths": paths(&context.masked_paths, &MASKED),
            "readonlyPaths": paths(&context.readonly_paths, &READONLY),
        },
    });
    if let Some(filter) = filter {
        spec["linux"]["seccomp"] = filter;
    }
    serde_json::from_value(spec).map_err(SpecError::Shape)
}

/// What is asked for and not built is an error: running without it would be a lie.
fn refuse_unbuilt(
    container: &ContainerConfig,
    context: &podway_cri::v1::LinuxContainerSecurityContext,
) -> Result<(), SpecError> {
    let no = |what: &str| Err(SpecError::NotSupported(what.to_owned()));
    if context.apparmor.as_ref().is_some_and(|p| p.profile_type == 2) {
        return no("AppArmor profiles");
    }
    if !container.cdi_devices.is_empty() {
        return no("CDI devices");
    }
    let namespaces = context.namespace_options.clone().unwrap_or_default();
    if namespaces.userns_options.is_some_and(|u| u.mode == NamespaceMode::Pod as i32 && !u.uids.is_empty()) {
        return no("user namespaces (set hostUsers: true)");
    }
    Ok(())
}

fn args(container: &ContainerConfig, image: &ImageDefaults) -> Result<Vec<String>, SpecError> {
    // A command replaces the entrypoint and the image's CMD; args alone replace only CMD.
    let mut all =
        if container.command.is_empty() { image.entrypoint.clone() } else { container.command.clone() };
    if container.command.is_empty() && container.args.is_empty() {
        all.extend(image.cmd.iter().cloned());
    } else {
        all.extend(container.args.iter().cloned());
    }
    if all.is_empty() { Err(SpecError::NoCommand) } else { Ok(all) }
}

fn env(input: &Input<'_>, home: &str) -> Vec<String> {
    let mut vars: Vec<(String, String)> = Vec::new();
    let mut set = |key: &str, value: String| match vars.iter_mut().find(|v| v.0 == key) {
        Some(old) => old.1 = value,
        None => vars.push((key.to_owned(), value)),
    };
    set("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    set("HOSTNAME", input.hostname.to_owned());
    set("HOME", home.to_owned());
    if input.container.tty {
        set("TERM", "xterm".to_owned());
    }
    for line in &input.image.env {
        if let Some((key, value)) = line.split_once('=') {
            set(key, value.to_owned());
        }
    }
    for pair in &input.container.envs {
        set(&pair.key, String::from_utf8_lossy(&pair.value).into_owned());
    }
    vars.into_iter().map(|(k, v)| format!("{k}={v}")).collect()
}

fn annotations(input: &Input<'_>) -> BTreeMap<String, String> {
    let meta = input.sandbox.metadata.clone().unwrap_or_default();
    BTreeMap::from([
        ("io.kubernetes.pod.name".to_owned(), meta.name),
        ("io.kubernetes.pod.namespace".to_owned(), meta.namespace),
        ("io.kubernetes.pod.uid".to_owned(), meta.uid),
        (
            "io.kubernetes.container.name".to_owned(),
            input.container.metadata.clone().unwrap_or_default().name,
        ),
    ])
}

fn base_mounts(input: &Input<'_>, privileged: bool) -> Vec<Value> {
    let sys = if privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", sys]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", sys]}),
    ];
    let shm = input.shm.unwrap_or(Path::new("/dev/shm"));
    mounts.push(json!({"destination": "/dev/shm", "type": "bind", "source": shm, "options": ["rbind", "nosuid", "noexec", "nodev", "rw"]}));
    mounts
}

fn user_mount(mount: &Mount) -> Result<Value, SpecError> {
    let bad = |why| Err(SpecError::Mount(mount.container_path.clone(), why));
    if mount.image.is_some() {
        return Err(SpecError::NotSupported("image volumes".to_owned()));
    }
    if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        return Err(SpecError::NotSupported("id-mapped mounts".to_owned()));
    }
    if !mount.container_path.starts_with('/') || mount.container_path == "/" {
        return bad("container_path must be absolute and not /");
    }
    if !mount.host_path.starts_with('/') {
        return bad("host_path must be absolute");
    }
    if mount.recursive_read_only && (!mount.readonly || mount.propagation != 0) {
        return bad("recursive_read_only needs readonly and private propagation");
    }
    let propagation = match mount.propagation {
        1 => "rslave",
        2 => "rshared",
        _ => "rprivate",
    };
    let mode = match (mount.readonly, mount.recursive_read_only) {
        (_, true) => "rro",
        (true, false) => "ro",
        (false, false) => "rw",
    };
    Ok(json!({
        "destination": mount.container_path, "type": "bind", "source": mount.host_path,
        "options": ["rbind", propagation, mode],
    }))
}

fn namespaces(input: &Input<'_>) -> Result<Vec<Value>, SpecError> {
    let context = input.container.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let options = context.and_then(|c| c.namespace_options.clone()).unwrap_or_default();
    let mut list = vec![json!({"type": "mount"})];
    for (kind, name) in [("net", "network"), ("ipc", "ipc"), ("uts", "uts")] {
        // What the sandbox did not pin is the host's.
        let pin: PathBuf = input.namespaces.join(kind);
        if pin.exists() {
            list.push(json!({"type": name, "path": pin}));
        }
    }
    match NamespaceMode::try_from(options.pid) {
        Ok(NamespaceMode::Container) => list.push(json!({"type": "pid"})),
        Ok(NamespaceMode::Node) => {}
        Ok(NamespaceMode::Pod) => {
            return Err(SpecError::NotSupported("a shared PID namespace (shareProcessNamespace)".to_owned()));
        }
        _ => return Err(SpecError::NotSupported("joining another container's PID namespace".to_owned())),
    }
    Ok(list)
}

/// Device nodes and the device cgroup's rules.
fn devices(container: &ContainerConfig, privileged: bool) -> Result<(Vec<Value>, Vec<Value>), SpecError> {
    let mut nodes = Vec::new();
    let mut rules = vec![json!({"allow": privileged, "access": "rwm"})];
    for device in &container.devices {
        let meta = std::fs::metadata(&device.host_path).ok();
        let meta = meta.filter(|m| m.file_type().is_char_device() || m.file_type().is_block_device());
        let meta = meta.ok_or_else(|| SpecError::Device(device.host_path.clone()))?;
        let kind = if meta.file_type().is_block_device() { "b" } else { "c" };
        let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let access = if device.permissions.is_empty() { "rwm" } else { device.permissions.as_str() };
        nodes.push(json!({
            "path": device.container_path, "type": kind, "major": major, "minor": minor,
            "fileMode": meta.mode() & 0o777, "uid": meta.uid(), "gid": meta.gid(),
        }));
        rules.push(json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": access}));
    }
    Ok((nodes, rules))
}

fn resources_json(r: &LinuxContainerResources) -> Map<String, Value> {
    let (mut cpu, mut memory) = (Map::new(), Map::new());
    let put = |map: &mut Map<String, Value>, key: &str, value: i64| {
        if value != 0 {
            map.insert(key.to_owned(), json!(value));
        }
    };
    put(&mut cpu, "shares", r.cpu_shares);
    put(&mut cpu, "quota", r.cpu_quota);
    put(&mut cpu, "period", r.cpu_period);
    put(&mut memory, "limit", r.memory_limit_in_bytes);
    put(&mut memory, "swap", r.memory_swap_limit_in_bytes);
    for (key, value) in [("cpus", &r.cpuset_cpus), ("mems", &r.cpuset_mems)] {
        if !value.is_empty() {
            cpu.insert(key.to_owned(), json!(value));
        }
    }
    let mut all = Map::from_iter([("cpu".to_owned(), json!(cpu)), ("memory".to_owned(), json!(memory))]);
    if !r.hugepage_limits.is_empty() {
        let list = r.hugepage_limits.iter().map(|h| json!({"pageSize": h.page_size, "limit": h.limit}));
        all.insert("hugepageLimits".to_owned(), list.collect());
    }
    if !r.unified.is_empty() {
        all.insert("unified".to_owned(), json!(r.unified));
    }
    all
}

#[cfg(test)]
mod tests;
