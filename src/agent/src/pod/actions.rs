//! The effects of one pod: each a task that ends in data for its worker. Nothing here decides.

pub mod pull;
pub mod stop;

use crate::cri::Answer;
use crate::env::fields::Addresses;
use crate::env::{EnvContext, environment};
use crate::pod::context::Context;
use crate::pod::core::{Instance, Sandbox};
use crate::pod::cri_config::{self, ContainerInput, SandboxInput};
use crate::pod::model::{Container, Pod, PullPolicy};
use crate::pod::start::record;
use crate::volumes::{self, MountedVolume, VolumeError};
use crate::{cgroups, dns, hosts, userns};
use podway_cri::v1;
use podway_flow::{Micros, Outcome, Phase, Record, Recorder, Writer};
use std::collections::BTreeMap;
use std::error::Error;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// An error with its sources, on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text.push_str(": ");
        text.push_str(&e.to_string());
        source = e.source();
    }
    text
}

/// A step that failed, in the words of a container's waiting state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// E.g. `ErrImagePull`.
    pub reason: String,
    /// For people.
    pub message: String,
}

fn failed(reason: &str, message: impl Into<String>) -> Failed {
    Failed { reason: reason.to_owned(), message: message.into() }
}

/// What came of a step, and its part of the flow.
#[derive(Debug)]
pub struct Outcomes<T> {
    /// The result.
    pub result: Result<T, Failed>,
    /// Records of the runtime and of the agent.
    pub records: Vec<Record>,
}

/// The runtime's records, or where it gave none one of the agent's own.
fn recorded<T>(
    answer: &mut Answer<T>,
    phase: Phase,
    subject: Option<&str>,
    start: Micros,
    now: Micros,
    reasons: (&str, &str),
) -> Vec<Record> {
    if !answer.records.is_empty() {
        return std::mem::take(&mut answer.records);
    }
    let mut own = record(phase, subject, start, Some(now), reasons.0);
    if let Err(error) = &answer.result {
        own.outcome = Outcome::Failed;
        reasons.1.clone_into(&mut own.reason);
        own.message = podway_flow::record::bounded(&error.message, Record::MESSAGE_LIMIT);
    }
    vec![own]
}

/// Reasons and messages of events.
pub type Warnings = Vec<(&'static str, String)>;

/// The sandbox' configuration; its warnings are for the pod's events.
pub(crate) fn sandbox_config(
    context: &Context,
    pod: &Pod,
    attempt: u32,
    handler: &str,
) -> Result<(v1::PodSandboxConfig, Warnings), Failed> {
    let wrong = |e: &dyn Error| failed("FailedCreatePodSandBox", chain(e));
    let hostname = hosts::hostname(&pod.object, &context.dns.cluster_domain, &context.hostname)
        .map_err(|e| wrong(&e))?;
    let dns = dns::of_pod(&pod.object, &context.dns);
    let logs = cri_config::log_directory(&context.pod_logs_dir, pod);
    let cgroup = context.cgroups.pod_path(cri_config::qos(pod), &pod.uid).map_err(|e| wrong(&e))?;
    let input = SandboxInput {
        hostname: &hostname,
        dns: &dns,
        logs: &logs,
        cgroup: &cgroup,
        attempt,
        modules: context.modules,
    };
    let mut config = cri_config::sandbox(pod, &input).map_err(|e| wrong(&e))?;
    let userns = context.userns.of(&pod.uid, &pod.object, handler).map_err(|e| wrong(&e))?;
    let security = config.linux.as_mut().and_then(|l| l.security_context.as_mut());
    if let Some(options) = security.and_then(|s| s.namespace_options.as_mut()) {
        options.userns_options = userns;
    }
    Ok((config, dns.warnings))
}

fn make_dir(path: &Path, mode: u32) -> Result<(), VolumeError> {
    let at = |source| VolumeError::Io { verb: "make", path: path.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(at)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(at)
}

/// Makes the pod's cgroup and log directory, then the sandbox: as the runtime then reports it, or
/// `None` where it must be asked for again.
pub async fn create_sandbox(context: Context, pod: Pod, attempt: u32) -> Outcomes<Option<Sandbox>> {
    let bad = |e: Failed| Outcomes { result: Err(e), records: Vec::new() };
    let handler = match context.classes.handler(&pod.object).await {
        Ok(handler) => handler,
        Err(e) => return bad(failed("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {e}"))),
    };
    let (config, warnings) = match sandbox_config(&context, &pod, attempt, &handler) {
        Ok(made) => made,
        Err(e) => return bad(e),
    };
    // A node without cluster DNS says so once, when it starts, and not with every pod.
    for (reason, message) in warnings.into_iter().filter(|(reason, _)| *reason != "MissingClusterDNS") {
        context.tell(&pod, reason, &message);
    }
    let limits = pod.object.spec.as_ref().map(cgroups::limits).unwrap_or_default();
    // A handful of directories on local file systems: another thread would cost more than they do.
    if let Err(e) = make_dir(Path::new(&config.log_directory), 0o755) {
        return bad(failed("FailedCreatePodSandBox", chain(&e)));
    }
    if let Err(e) = context.cgroups.make(cri_config::qos(&pod), &pod.uid, limits).await {
        return bad(failed("FailedCreatePodContainer", chain(&e)));
    }
    let begun = context.clock.now();
    context.metrics.started_pods.inc();
    let mut answer = context.cri.run_sandbox(config, &handler).await;
    let now = context.clock.now();
    let records =
        recorded(&mut answer, Phase::SandboxCreated, None, begun, now, ("Created", "SandboxFailed"));
    let result = match answer.result {
        Ok(id) => Ok(context.cri.sandbox(&id).await.ok().flatten()),
        Err(e) => {
            context.metrics.started_pods_errors.inc();
            Err(failed("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {}", e.message)))
        }
    };
    Outcomes { result, records }
}

/// Sets up the pod's volumes; what may never come is waited for until `quit`.
pub async fn mount(
    context: Context,
    pod: Pod,
    quit: CancellationToken,
) -> (Result<BTreeMap<String, MountedVolume>, VolumeError>, Vec<Record>) {
    let recorder = Recorder::new(Writer::Agent, context.clock);
    let addresses = Addresses { host_ips: context.node.ips.clone(), pod_ips: Vec::new() };
    let (result, images) = tokio::join!(
        context.volumes.setup(&pod.object, &addresses, &recorder, &quit),
        image_volumes(&context, &pod, &recorder)
    );
    let both = result.and_then(|mut volumes| {
        volumes.extend(images?);
        Ok(volumes)
    });
    (both, recorder.take())
}

/// Makes the images of the pod's image volumes present.
async fn image_volumes(
    context: &Context,
    pod: &Pod,
    recorder: &Recorder,
) -> Result<BTreeMap<String, MountedVolume>, VolumeError> {
    let volumes = pod.object.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let each = volumes.filter_map(|v| Some((v, v.image.as_ref()?))).map(|(volume, source)| async move {
        let mut span = recorder.begin_for(Phase::VolumesMounted, &volume.name);
        let reference = source.reference.clone().unwrap_or_default();
        let policy = PullPolicy::of(source.pull_policy.as_deref(), &reference);
        let made = match policy {
            Ok(policy) => pull::pull(context.clone(), pod.clone(), "", &reference, policy).await.result,
            Err(e) => Err(failed("InvalidImagePullPolicy", e.to_string())),
        };
        match made {
            Ok(image) => {
                span.note("image", &image.id);
                let _ = span.succeed("Mounted");
                let spec = v1::ImageSpec {
                    image: image.id,
                    user_specified_image: reference,
                    ..v1::ImageSpec::default()
                };
                Ok((volume.name.clone(), MountedVolume::of_image(spec)))
            }
            Err(Failed { reason, message }) => {
                let error = VolumeError::Image { reason, message };
                let _ = span.fail("FailedMount", &error.to_string());
                Err(error)
            }
        }
    });
    futures::future::join_all(each).await.into_iter().collect()
}

/// What a container is made of.
#[derive(Clone, Debug)]
pub struct Making {
    /// Which.
    pub container: Container,
    /// Its sandbox.
    pub sandbox: String,
    /// The sandbox' attempt.
    pub attempt: u32,
    /// Its addresses.
    pub ips: Vec<String>,
    /// Its restart count.
    pub restarts: u32,
    /// How long its start was put off.
    pub waited: Option<std::time::Duration>,
    /// The pod's volumes.
    pub volumes: BTreeMap<String, MountedVolume>,
    /// Its image.
    pub image: v1::Image,
    /// Whose processes it sees: the container's name, and the id of the one that runs.
    pub target: Option<(String, Option<String>)>,
}

/// Makes a container and starts it: between the two nothing is decided.
pub async fn create_container(context: Context, pod: Pod, making: Making) -> Outcomes<Option<Instance>> {
    let bad = |e: Failed| Outcomes { result: Err(e), records: Vec::new() };
    let (config, sandbox_config) = match container_config(&context, &pod, &making).await {
        Ok(made) => made,
        Err(e) => return bad(e),
    };
    let name = making.container.name.as_str();
    let begun = context.clock.now();
    let mut answer = context.cri.create_container(&making.sandbox, config, sandbox_config).await;
    let now = context.clock.now();
    let reasons = ("Created", "CreateContainerError");
    let mut records = recorded(&mut answer, Phase::ContainersCreated, Some(name), begun, now, reasons);
    match answer.result {
        Err(e) => Outcomes { result: Err(failed("CreateContainerError", e.message)), records },
        Ok(id) => {
            let started = start_container(context, name.to_owned(), id, making.sandbox.clone()).await;
            records.extend(started.records);
            Outcomes { result: started.result, records }
        }
    }
}

/// Starts a container of `sandbox` that was made: as the runtime then reports it, or `None` where it
/// must be asked for again.
pub async fn start_container(
    context: Context,
    name: String,
    id: String,
    sandbox: String,
) -> Outcomes<Option<Instance>> {
    let begun = context.clock.now();
    let mut answer = context.cri.start_container(&id).await;
    let now = context.clock.now();
    let reasons = ("Started", "RunContainerError");
    let records = recorded(&mut answer, Phase::ContainersStarted, Some(&name), begun, now, reasons);
    let result = match answer.result {
        Ok(()) => Ok(context.cri.instance(&id, &sandbox).await.ok().flatten()),
        Err(e) => Err(failed("RunContainerError", e.message)),
    };
    Outcomes { result, records }
}

async fn container_config(
    context: &Context,
    pod: &Pod,
    making: &Making,
) -> Result<(v1::ContainerConfig, v1::PodSandboxConfig), Failed> {
    let wrong = |e: &dyn Error| failed("CreateContainerConfigError", chain(e));
    let name = making.container.name.as_str();
    if let Some((target, None)) = &making.target {
        let text = format!("unable to find target container {target}");
        return Err(failed("CreateContainerConfigError", text));
    }
    let target = making.target.as_ref().and_then(|(_, id)| id.clone());
    let given = cri_config::api_container(pod, name)
        .ok_or_else(|| failed("CreateContainerConfigError", format!("container {name} is not in the pod")))?
        .clone();
    // The sandbox stands. A class that has gone since keeps no container of it from its start: as the kubelet has it
    // (`runtimeClassSupportsRecursiveReadOnlyMounts`), what the handler can do is then not known, and not used.
    let handler = context.classes.handler(&pod.object).await.ok();
    let (sandbox, _) = sandbox_config(context, pod, making.attempt, handler.as_deref().unwrap_or_default())?;
    let pod_ips = if pod.host_network { context.node.ips.clone() } else { making.ips.clone() };
    let addresses = Addresses { host_ips: context.node.ips.clone(), pod_ips };
    let services = context.api.services(&pod.namespace).await;
    let around = EnvContext {
        pod: &pod.object,
        addresses: &addresses,
        allocatable: &context.allocatable,
        services: &services,
    };
    let env = environment(&given, around, &*context.objects).await.map_err(|e| wrong(&e))?;
    if !env.invalid_names.is_empty() {
        let message =
            format!("Keys [{}] were skipped since they are no variable names", env.invalid_names.join(", "));
        context.tell(pod, "InvalidEnvironmentVariableNames", &message);
    }
    let dir = context.volumes.pod_dir(&pod.uid).map_err(|e| wrong(&e))?;
    let hostname = hosts::hostname(&pod.object, &context.dns.cluster_domain, &context.hostname)
        .map_err(|e| wrong(&e))?;
    let aliases = pod.object.spec.as_ref().and_then(|s| s.host_aliases.clone()).unwrap_or_default();
    let logs = cri_config::log_directory(&context.pod_logs_dir, pod).join(name);
    let words = |list: &Option<Vec<String>>| env.expand_all(list.as_deref().unwrap_or_default());
    let (command, args) = (words(&given.command), words(&given.args));
    let gear = context.devices.gear(&pod.uid, &given).await.map_err(|e| wrong(&e))?;
    let able =
        |handler: &String| context.known.borrow().features(handler).recursive_read_only_mounts == Some(true);
    let kernel = volumes::Kernel {
        recursive_read_only: handler.as_ref().is_some_and(able),
        selinux: context.modules.selinux,
    };
    let (host_network, made) = (pod.host_network, (given.clone(), env.clone(), making.clone()));
    let mounts = volumes::blocking("make the container's files", move || {
        let (given, env, making) = made;
        make_dir(&logs, 0o755)?;
        let expand = |text: &str| env.expand(text);
        let mut mounts = volumes::container_mounts(&given, &making.volumes, &dir, &expand, kernel)?;
        let has = |mounts: &[v1::Mount], path: &str| mounts.iter().any(|m| m.container_path == path);
        if !has(&mounts, "/etc/hosts") {
            let text = if host_network {
                let file = Path::new("/etc/hosts");
                let at = |source| VolumeError::Io { verb: "read", path: file.to_owned(), source };
                hosts::of_node(&std::fs::read_to_string(file).map_err(at)?, &aliases)
            } else {
                hosts::managed(&making.ips, &hostname, &aliases)
            };
            mounts.push(own_file(&dir.join("etc-hosts"), "/etc/hosts", text.as_bytes(), 0o644, kernel)?);
        }
        let message = cri_config::message_path(&given);
        if !has(&mounts, message) {
            let file = dir.join("containers").join(&given.name).join(making.restarts.to_string());
            mounts.push(own_file(&file, message, b"", 0o666, kernel)?);
        }
        Ok(mounts)
    })
    .await
    .map_err(|e| wrong(&e))?;
    let input = ContainerInput {
        restarts: making.restarts,
        waited: making.waited,
        command,
        args,
        env: &env.variables,
        gear,
        mounts,
        image: &making.image,
        memory_capacity: context.memory_capacity,
        target: target.as_deref(),
        modules: context.modules,
        seccomp_default: context.seccomp_default,
    };
    let mut config = cri_config::container(pod, &making.container, &given, input).map_err(|e| wrong(&e))?;
    userns::adopt(&mut config, &sandbox);
    Ok((config, sandbox))
}

/// A file of the agent's below the pod's directory, as a mount. Written in place: a container that has
/// it mounted sees the new text.
fn own_file(
    path: &Path,
    container_path: &str,
    text: &[u8],
    mode: u32,
    kernel: volumes::Kernel,
) -> Result<v1::Mount, VolumeError> {
    let at = |source| VolumeError::Io { verb: "write", path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o750).create(parent).map_err(at)?;
    }
    std::fs::write(path, text).map_err(at)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(at)?;
    Ok(v1::Mount {
        container_path: container_path.to_owned(),
        host_path: path.display().to_string(),
        selinux_relabel: kernel.selinux,
        ..Default::default()
    })
}

/// Gives running containers what their pod was given, the pod's cgroup around them.
pub async fn resize(
    context: Context,
    pod: Pod,
    running: Vec<(String, v1::LinuxContainerResources)>,
) -> Result<(), String> {
    let limits = pod.object.spec.as_ref().map(cgroups::limits).unwrap_or_default();
    let qos = cri_config::qos(&pod);
    context.cgroups.widen(qos, &pod.uid, limits).await.map_err(|e| chain(&e))?;
    for (id, resources) in running {
        context.cri.update_resources(&id, resources).await.map_err(|e| e.message)?;
    }
    context.cgroups.resize(qos, &pod.uid, limits).await.map_err(|e| chain(&e))
}

/// Removes what the agent made for a pod: volumes, cgroup, and with `logs` its logs. May be repeated.
pub async fn clean(context: Context, uid: String, logs: Option<PathBuf>) -> Result<(), String> {
    context.volumes.teardown(&uid).await.map_err(|e| chain(&e))?;
    context.userns.release(&uid);
    context.devices.release(&uid).await.map_err(|e| chain(&e))?;
    if let Some(logs) = logs {
        let removed = volumes::blocking("clean up", move || match std::fs::remove_dir_all(&logs) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(VolumeError::Io { verb: "remove", path: logs, source: e })
            }
            _ => Ok(()),
        });
        removed.await.map_err(|e| chain(&e))?;
    }
    context.cgroups.remove(&uid).await.map_err(|e| chain(&e))
}
