//! From a CRI container configuration and its image to `config.json`: a pure function, but for the
//! look-ups in the image's passwd and group, and of device nodes.

pub mod capabilities;
mod cdi;
mod devices;
mod mounts;
mod namespaces;
mod profiles;
mod refused;
mod resources;
pub mod seccomp;
pub mod user;

use crate::apparmor;
use crate::cgroup::driver;
use crate::features::Features;
use oci_spec::runtime::Spec;
use podway_cri::v1::{ContainerConfig, PodSandboxConfig};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

pub use namespaces::{Mapping, mapping};
pub use refused::sandbox as refuse_in_sandbox;
pub(crate) use resources::resources_json;

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
    /// What the machine can do.
    pub features: &'a Features,
    /// The first process of the container whose PID namespace is joined.
    pub target: Option<u32>,
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
    /// A CDI device.
    #[error("CDI: {0}")]
    Cdi(String),
    /// A device's permissions.
    #[error("device permissions {0:?} are not valid: give any of r, w and m")]
    Permissions(String),
    /// A user namespace that cannot be made.
    #[error("userns_options: {0}")]
    UserNamespace(&'static str),
    /// A container of a sandbox without a shared PID namespace asks for it.
    #[error("pid: the sandbox was run with another mode than POD, so that it has no shared PID namespace")]
    NoSharedPid,
    /// Whose PID namespace is to be joined does not run.
    #[error("target_id: container {0:?} does not run in this sandbox")]
    Target(String),
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
    let context = profiles::settled(linux.security_context.clone().unwrap_or_default())?;
    let resources = linux.resources.unwrap_or_default();
    refused::container(input.container, &context, input.features)?;
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
    let mut mounts = mounts::base(input, context.privileged);
    for mount in &input.container.mounts {
        let mapped = mounts::asked(mount)?;
        mounts.retain(|m| m["destination"] != mapped["destination"]);
        mounts.push(mapped);
    }
    let (nodes, rules) = devices::devices(input.container, context.privileged)?;
    let mut res = resources_json(&resources, input.features)?;
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
        "ociVersion": version(&mounts),
        "process": process,
        "root": {"path": input.rootfs, "readonly": context.readonly_rootfs},
        "mounts": mounts,
        "annotations": annotations(input),
        "linux": {
            "resources": res,
            "cgroupsPath": driver::oci(input.cgroup),
            "namespaces": namespaces::namespaces(input)?,
            "devices": nodes,
            "rootfsPropagation": propagation,
            "maskedPaths": paths(&context.masked_paths, &MASKED),
            "readonlyPaths": paths(&context.readonly_paths, &READONLY),
        },
    });
    if let Some(filter) = filter {
        spec["linux"]["seccomp"] = filter;
    }
    if let Some(profile) = apparmor::of(&context, input.features) {
        spec["process"]["apparmorProfile"] = json!(profile);
    }
    if let Some(mapping) = mapping(&crate::status::options(input.sandbox))? {
        spec["linux"]["uidMappings"] = mapping.oci();
        spec["linux"]["gidMappings"] = mapping.oci();
    }
    let named = input.container.cdi_devices.iter().map(|d| d.name.clone()).collect::<Vec<_>>();
    cdi::inject(&mut spec, &named, &cdi::DIRS.map(Path::new))?;
    serde_json::from_value(spec).map_err(SpecError::Shape)
}

/// The version of the OCI runtime specification that has all of what is asked for: older OCI runtimes, which do
/// not know a newer one, take what they can do.
fn version(mounts: &[Value]) -> &'static str {
    let mapped = mounts.iter().any(|m| m.get("uidMappings").is_some());
    let in_depth = |m: &Value| m["options"].as_array().into_iter().flatten().any(|o| o == "rro");
    match (mapped, mounts.iter().any(in_depth)) {
        (true, _) => "1.2.0",
        (false, true) => "1.1.0",
        (false, false) => "1.0.2",
    }
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

#[cfg(test)]
mod fields;
#[cfg(test)]
mod tests;
