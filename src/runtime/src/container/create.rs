//! Creation: journal entry, root filesystem, config.json. No process: `runc create` is the start's
//! (see [`super::start`]), as it is in containerd, so that what runc refuses is told where clients
//! look for it.

use super::life::remove_alone;
use super::{signals, volumes};
use crate::cgroup::driver;
use crate::error::{Failure, OpError, blocking};
use crate::ids::Id;
use crate::names::{Made, Name};
use crate::points::{self, Point};
use crate::rootfs::{Layer, Owner};
use crate::state::{Container, Life, ResolvedImage, Runtime, Sandbox, Stage};
use crate::status::{options, sandbox_config};
use crate::{orphan, rootfs, spec};
use podway_cri::Message as _;
use podway_cri::v1::{ContainerConfig, Mount, PodSandboxConfig, Signal};
use podway_flow::{Phase, Recorder, Span, Writer};
use sha2::{Digest as _, Sha256};
use std::path::{Component, Path};
use std::sync::Arc;

fn log_path(directory: &str, path: &str) -> Result<String, OpError> {
    if directory.is_empty() || path.is_empty() {
        return Ok(String::new());
    }
    let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if !plain || !directory.starts_with('/') {
        return Err(OpError::Invalid(format!("log_path {path:?} must be relative and below log_directory")));
    }
    Ok(Path::new(directory).join(path).display().to_string())
}

/// The pod's, else the image's, else SIGTERM.
fn stop_signal(config: &ContainerConfig, image: &str) -> u8 {
    let asked = Signal::try_from(config.stop_signal).ok().and_then(signals::number);
    asked.or_else(|| signals::parse(image)).unwrap_or(15)
}

/// Makes a container up to its config.json, or joins its making, or finds it made.
///
/// # Errors
/// [`Failure`]; everything that was made for it is undone.
pub async fn create(
    runtime: &Arc<Runtime>,
    sandbox_id: &Id,
    config: ContainerConfig,
) -> Result<Made, Failure> {
    let recorder = Recorder::new(Writer::Runtime, runtime.clock);
    let meta = config.metadata.clone().unwrap_or_default();
    if meta.name.is_empty() {
        return Err(Failure::new(&OpError::Invalid("metadata.name is empty".to_owned()), &recorder));
    }
    let name = Name::Container(sandbox_id.clone(), meta.name, meta.attempt);
    let existing = || {
        let (id, entry) = runtime.container_named(&name)?;
        Some(match entry.stage {
            Stage::Created => Ok(Made { id, records: entry.records }),
            other => Err(Failure::exists(format!(
                "container {id} has this name and attempt and is {other:?}: raise metadata.attempt"
            ))),
        })
    };
    let (task, sandbox_id) = (Arc::clone(runtime), sandbox_id.clone());
    let make = || make(task, sandbox_id, name.clone(), config, recorder);
    runtime.names.join(name.clone(), existing, make).await
}

async fn make(
    runtime: Arc<Runtime>,
    sandbox_id: Id,
    name: Name,
    config: ContainerConfig,
    recorder: Recorder,
) -> Result<Made, Failure> {
    let pod = runtime.locks.of(&sandbox_id);
    let _stands = pod.read().await;
    let id = Id::random().map_err(|e| Failure::new(&OpError::Io("draw an id", e), &recorder))?;
    let lock = runtime.locks.of(&id);
    let _alone = lock.write().await;
    let Err(error) = build(&runtime, &sandbox_id, &id, name, config, &recorder).await else {
        let records = recorder.take();
        runtime.metrics.observe(&records);
        return Ok(Made { id, records });
    };
    let failure = Failure::new(&error, &recorder);
    runtime.metrics.observe(&failure.records);
    let (state, kept) = (Arc::clone(&runtime), failure.records.clone());
    let keep = blocking(move || Ok(state.update_sandbox(&sandbox_id, |s| s.records.extend(kept))?));
    if let Err(error) = keep.await {
        tracing::error!(container = %id, error = error.chain(), "a failed attempt's records were not kept");
    }
    if let Err(undo) = remove_alone(&runtime, &id).await {
        tracing::error!(container = %id, error = undo.chain(), "a failed container was not wholly undone");
    }
    Err(failure)
}

async fn build(
    runtime: &Arc<Runtime>,
    sandbox_id: &Id,
    id: &Id,
    name: Name,
    config: ContainerConfig,
    recorder: &Recorder,
) -> Result<(), OpError> {
    let pod = runtime.known_sandbox(sandbox_id)?;
    if pod.life != Life::Ready {
        return Err(OpError::Precondition(format!("sandbox {sandbox_id} is not ready")));
    }
    let (state, of, in_pod, record) = (Arc::clone(runtime), id.clone(), sandbox_id.clone(), recorder.clone());
    blocking(move || {
        prepare(&state, &in_pod, &pod, &of, name, config, &record)?;
        state.update_container(&of, |c| {
            c.stage = Stage::Created;
            c.records = record.snapshot();
        })?;
        points::at(Point::ContainerCreated);
        Ok(())
    })
    .await
}

/// Whether an image is one that CRI-O and containerd restore a container from: a checkpoint's archive as a layer.
fn is_checkpoint(layers: &[Layer]) -> bool {
    let has = |layer: &Layer, name: &str| layer.dir.join(name).symlink_metadata().is_ok();
    let parts = ["config.dump", "spec.dump", "checkpoint"];
    layers.iter().any(|layer| parts.iter().all(|name| has(layer, name)))
}

/// Journal entry, root filesystem, config.json. Blocks.
fn prepare(
    runtime: &Runtime,
    sandbox_id: &Id,
    pod: &Sandbox,
    id: &Id,
    name: Name,
    mut config: ContainerConfig,
    recorder: &Recorder,
) -> Result<(), OpError> {
    let pod_config = sandbox_config(pod)?;
    allowed_in(&pod_config, &config)?;
    let meta = config.metadata.clone().unwrap_or_default();
    let begin = |phase| -> Span {
        let mut span = recorder.begin_for(phase, &meta.name);
        span.attempt(meta.attempt.saturating_add(1));
        span
    };
    let reference = config.image.clone().unwrap_or_default().image;
    let missing = || OpError::NotFound("image", reference.clone());
    let image = runtime.images.resolve(&reference).ok_or_else(missing)?;
    if is_checkpoint(&image.layers) {
        return Err(spec::SpecError::NotSupported(format!(
            "a container from a checkpoint (image {reference:?})"
        ))
        .into());
    }
    let volumes = volumes::find(runtime, &mut config)?;
    let log = log_path(&pod_config.log_directory, &config.log_path)?;
    let cgroup = driver::container(&pod.cgroup, id);
    let entry = Container {
        name,
        sandbox: sandbox_id.clone(),
        cgroup: cgroup.clone(),
        layers: image.layers.clone(),
        volumes: volumes.concat(),
        config: hex::encode(config.encode_to_vec()),
        stage: Stage::Creating,
        created_at: runtime.now_ns(),
        started_at: 0,
        finished_at: 0,
        exit_code: 0,
        oom_killed: false,
        user: None,
        checkpoint: None,
        refusal: None,
        image_id: image.id.clone(),
        stop_signal: stop_signal(&config, &image.stop_signal),
        log_path: log.clone(),
        records: Vec::new(),
    };
    runtime.put_container(id, entry)?;
    points::at(Point::ContainerIntent);
    if !runtime.pin(id, &[image.layers.as_slice(), &volumes.concat()].concat()) {
        return Err(missing()); // removed a moment ago
    }

    let bundle = runtime.bundle(id);
    let root = bundle.join("rootfs");
    let data = runtime.container_dir(id);
    let mut span = begin(Phase::RootfsPrepared);
    span.note("layers", image.layers.len()).note("rootfs", root.display());
    let owner = owner(runtime, sandbox_id, &pod_config)?;
    if owner.is_some() {
        open_to_others(runtime, &bundle)?;
    }
    let mounted = rootfs::mount_overlay(&image.layers, &data, &root, owner.as_ref()).map_err(OpError::from);
    let mounted = mounted.and_then(|()| volumes::mount(runtime, id, &mut config, &volumes, owner.as_ref()));
    if let Err(error) = mounted {
        span.fail("MountFailed", &error.chain());
        return Err(error);
    }
    points::at(Point::RootfsMounted);
    span.succeed("Mounted");

    let mut span = begin(Phase::SpecGenerated);
    let made = document(runtime, sandbox_id, config, &pod_config, &image, &root, &cgroup).and_then(
        |(document, user)| {
            private_file(&bundle.join("config.json"), &document)
                .map_err(|e| OpError::Io("write config.json", e))?;
            runtime.update_container(id, |c| c.user = Some(user))?;
            Ok(document)
        },
    );
    let document = match made {
        Ok(document) => document,
        Err(error) => {
            span.fail("SpecFailed", &error.chain());
            return Err(error);
        }
    };
    span.note("sha256", hex::encode(Sha256::digest(&document)));
    span.note("path", bundle.join("config.json").display());
    points::at(Point::SpecWritten);
    span.succeed("Generated");

    if let Some(dir) = Path::new(&log).parent().filter(|_| !log.is_empty()) {
        std::fs::create_dir_all(dir).map_err(|e| OpError::Io("make the log directory", e))?;
    }
    Ok(())
}

/// config.json, with the sandbox' files bound in.
fn document(
    runtime: &Runtime,
    sandbox_id: &Id,
    mut config: ContainerConfig,
    pod: &PodSandboxConfig,
    image: &ResolvedImage,
    root: &Path,
    cgroup: &str,
) -> Result<(Vec<u8>, spec::user::User), OpError> {
    let dir = runtime.sandbox_dir(sandbox_id);
    for file in ["resolv.conf", "hostname"] {
        let container_path = format!("/etc/{file}");
        if dir.join(file).exists() && !config.mounts.iter().any(|m| m.container_path == container_path) {
            let host_path = dir.join(file).display().to_string();
            config.mounts.push(Mount { container_path, host_path, ..Default::default() });
        }
    }
    let hostname = std::fs::read_to_string(dir.join("hostname")).unwrap_or_default();
    let shm = Some(dir.join("shm")).filter(|p| p.exists());
    let spec = spec::generate(&spec::Input {
        container: &config,
        sandbox: pod,
        image: &image.defaults,
        rootfs: root,
        namespaces: &runtime.namespaces(sandbox_id),
        hostname: hostname.trim(),
        shm: shm.as_deref(),
        cgroup,
        capabilities: spec::capabilities::available(),
        oom_floor: oom_floor(),
        features: &runtime.features,
        target: target(runtime, sandbox_id, &config),
    })?;
    let process = spec.process().as_ref().map(|p| p.user().clone()).unwrap_or_default();
    let user = spec::user::User {
        uid: process.uid(),
        gid: process.gid(),
        groups: process.additional_gids().clone().unwrap_or_default(),
        home: String::new(),
    };
    Ok((serde_json::to_vec(&spec).map_err(spec::SpecError::Shape)?, user))
}

/// A file that holds what the pod's environment holds: nobody else's.
fn private_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file?.write_all(bytes)
}

/// A privileged container is in a sandbox that was asked for as one for it.
fn allowed_in(pod: &PodSandboxConfig, config: &ContainerConfig) -> Result<(), OpError> {
    let of_pod = pod.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let own = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let privileged = own.is_some_and(|c| c.privileged);
    if privileged && !of_pod.is_some_and(|c| c.privileged) {
        return Err(OpError::Invalid("no privileged container allowed in sandbox".to_owned()));
    }
    if privileged && spec::mapping(&options(pod))?.is_some() {
        return Err(spec::SpecError::NotSupported("privileged in a user namespace".to_owned()).into());
    }
    Ok(())
}

/// The user namespace of the pod.
fn owner(runtime: &Runtime, sandbox: &Id, pod: &PodSandboxConfig) -> Result<Option<Owner>, OpError> {
    let mapping = spec::mapping(&options(pod))?;
    Ok(mapping.map(|mapping| Owner { mapping, pin: runtime.namespaces(sandbox).join("user") }))
}

/// The root of a user namespace is nobody on the way to its root file system: it may pass, and read nothing.
fn open_to_others(runtime: &Runtime, bundle: &Path) -> Result<(), OpError> {
    use std::os::unix::fs::PermissionsExt as _;
    let bundles = runtime.config.state.join("bundles");
    crate::journal::private_dir(bundle).map_err(|e| OpError::Io("make the bundle", e))?;
    for dir in [runtime.config.state.as_path(), &bundles, bundle] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711))
            .map_err(|e| OpError::Io("let the pod's root pass to its root filesystem", e))?;
    }
    Ok(())
}

/// The first process of the container whose PID namespace is to be joined, if it runs in this sandbox.
fn target(runtime: &Runtime, sandbox: &Id, config: &ContainerConfig) -> Option<u32> {
    let context = config.linux.as_ref()?.security_context.as_ref()?;
    let id = Id::try_from(context.namespace_options.as_ref()?.target_id.clone()).ok()?;
    let entry = runtime.container(&id).filter(|c| c.sandbox == *sandbox && c.stage == Stage::Running)?;
    drop(entry);
    Some(orphan::init(&runtime.config.state.join("runc"), &id)?.pid)
}

/// Without CAP_SYS_RESOURCE (bit 24) the kernel refuses to go below what this process has itself.
fn oom_floor() -> i64 {
    if spec::capabilities::available() >> 24 & 1 == 1 {
        return -1000;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    own.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_a_checkpoint_is_known_by_its_layer() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |name: &str| Layer { dir: dir.path().join(name), implicit: Vec::new() };
        for path in ["a/config.dump", "a/spec.dump", "a/checkpoint", "b/config.dump"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        assert!(is_checkpoint(&[layer("b"), layer("a")]));
        assert!(!is_checkpoint(&[layer("b")]) && !is_checkpoint(&[]));
    }
}
