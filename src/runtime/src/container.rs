//! A container's life: journalled → root filesystem → config.json → `runc create` → `runc start` →
//! exited → removed. The monitor runs runc and makes the exit durable; this module asks it.

use crate::error::{Failure, OpError, blocking};
use crate::ids::Id;
use crate::journal::private_dir;
use crate::names::{Made, Name};
use crate::state::{Container, Life, ResolvedImage, Runtime, Sandbox, Stage};
use crate::{follow, orphan, rootfs, sandbox, spec, supervisor};
use podway_cri::Message as _;
use podway_cri::v1::{ContainerConfig, Mount, Signal};
use podway_flow::{Phase, Recorder, Span, Writer};
use podway_monitor::{ClientError, Create, ErrorCode, ExitRecord, Reply, Request};
use sha2::{Digest as _, Sha256};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

/// A container's configuration, read back from its entry.
///
/// # Errors
/// [`OpError::Precondition`] when the entry was damaged.
pub fn config_of(container: &Container) -> Result<ContainerConfig, OpError> {
    let bytes = hex::decode(&container.config).unwrap_or_default();
    ContainerConfig::decode(bytes.as_slice())
        .map_err(|e| OpError::Precondition(format!("the container's journal entry is damaged: {e}")))
}

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

fn stop_signal(config: &ContainerConfig, image: &str) -> u8 {
    let cri = Signal::try_from(config.stop_signal).unwrap_or(Signal::RuntimeDefault).as_str_name();
    let parse = |name: &str| {
        let name = name.to_ascii_uppercase();
        let full = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
        nix::sys::signal::Signal::from_str(&full).ok().and_then(|s| u8::try_from(s as i32).ok())
    };
    parse(cri)
        .or_else(|| image.parse().ok().filter(|n| (1..=64).contains(n)))
        .or_else(|| parse(image))
        .unwrap_or(15)
}

/// Makes a container up to `runc create`, or joins its making, or finds it made.
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

/// What `runc create` needs, all of it on disk.
struct Prepared {
    request: Create,
    cgroup: String,
}

async fn build(
    runtime: &Arc<Runtime>,
    sandbox_id: &Id,
    id: &Id,
    name: Name,
    config: ContainerConfig,
    recorder: &Recorder,
) -> Result<(), OpError> {
    let pod =
        runtime.sandbox(sandbox_id).ok_or_else(|| OpError::NotFound("sandbox", sandbox_id.to_string()))?;
    if pod.life != Life::Ready {
        return Err(OpError::Precondition(format!("sandbox {sandbox_id} is not ready")));
    }
    let meta = config.metadata.clone().unwrap_or_default();
    let (state, of, in_pod, record) = (Arc::clone(runtime), id.clone(), sandbox_id.clone(), recorder.clone());
    let prepared = blocking(move || prepare(&state, &in_pod, &pod, &of, name, &config, &record)).await?;
    let Prepared { request, cgroup } = prepared;

    let mut span = recorder.begin_for(Phase::ContainersCreated, &meta.name);
    span.attempt(meta.attempt.saturating_add(1));
    span.note("containerId", id).note("runcVersion", &runtime.runc_version);
    let asked = async {
        // A monitor that died since the last container is replaced before it is needed.
        follow::ensure(runtime, sandbox_id).await?;
        let socket = runtime.monitor_socket(sandbox_id);
        match supervisor::call(&socket, Request::Create(Box::new(request))).await? {
            Reply::Created { pid, micros, argv } => Ok((pid, micros, argv)),
            _ => Err(OpError::from(supervisor::SupervisorError::Unexpected)),
        }
    };
    let (pid, micros, argv) = match asked.await {
        Ok(created) => created,
        Err(error) => {
            span.fail("CreateContainerError", &error.chain());
            return Err(error);
        }
    };
    span.note("pid", pid).note("runcMicros", micros).note("argv", argv.join(" ")).note("cgroup", &cgroup);
    let (state, of, record) = (Arc::clone(runtime), id.clone(), recorder.clone());
    blocking(move || {
        for kind in ["net", "ipc", "uts", "mnt", "pid"] {
            if let Ok(link) = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")) {
                span.note(&format!("ns.{kind}"), link.display());
            }
        }
        for (file, value) in state.cgroups.limits(&cgroup) {
            span.note(file, value);
        }
        span.succeed("Created");
        state.update_container(&of, |c| {
            // It may have died before we heard that it was created.
            if c.stage == Stage::Creating {
                c.stage = Stage::Created;
            }
            c.records = record.snapshot();
        })?;
        Ok(())
    })
    .await
}

/// Journal entry, root filesystem, config.json. Blocks.
fn prepare(
    runtime: &Runtime,
    sandbox_id: &Id,
    pod: &Sandbox,
    id: &Id,
    name: Name,
    config: &ContainerConfig,
    recorder: &Recorder,
) -> Result<Prepared, OpError> {
    let pod_config = sandbox::config_of(pod)?;
    let meta = config.metadata.clone().unwrap_or_default();
    let begin = |phase| -> Span {
        let mut span = recorder.begin_for(phase, &meta.name);
        span.attempt(meta.attempt.saturating_add(1));
        span
    };
    let reference = config.image.clone().unwrap_or_default().image;
    let missing = || OpError::NotFound("image", reference.clone());
    let image = runtime.images.resolve(&reference).ok_or_else(missing)?;
    let log = log_path(&pod_config.log_directory, &config.log_path)?;
    let cgroup = format!("{}/{id}", pod.cgroup);
    let entry = Container {
        name,
        sandbox: sandbox_id.clone(),
        cgroup: cgroup.clone(),
        layers: image.layers.clone(),
        config: hex::encode(config.encode_to_vec()),
        stage: Stage::Creating,
        created_at: runtime.now_ns(),
        started_at: 0,
        finished_at: 0,
        exit_code: 0,
        oom_killed: false,
        image_id: image.id.clone(),
        stop_signal: stop_signal(config, &image.stop_signal),
        log_path: log.clone(),
        records: Vec::new(),
    };
    runtime.put_container(id, entry)?;
    if !runtime.pin(id, &image.layers) {
        return Err(missing()); // removed a moment ago
    }

    let bundle = runtime.bundle(id);
    let root = bundle.join("rootfs");
    let data = runtime.container_dir(id);
    let mut span = begin(Phase::RootfsPrepared);
    span.note("layers", image.layers.len()).note("rootfs", root.display());
    if let Err(error) = rootfs::mount_overlay(&image.layers, &data, &root) {
        let error = OpError::from(error);
        span.fail("MountFailed", &error.chain());
        return Err(error);
    }
    span.succeed("Mounted");

    let mut span = begin(Phase::SpecGenerated);
    let made = document(runtime, sandbox_id, config.clone(), &pod_config, &image, &root, &cgroup).and_then(
        |document| {
            std::fs::write(bundle.join("config.json"), &document)
                .map_err(|e| OpError::Io("write config.json", e))?;
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
    span.succeed("Generated");

    if let Some(dir) = Path::new(&log).parent().filter(|_| !log.is_empty()) {
        std::fs::create_dir_all(dir).map_err(|e| OpError::Io("make the log directory", e))?;
    }
    let request = Create {
        id: id.to_string(),
        runc: runtime.config.runc.path.clone(),
        runc_root: runtime.config.state.join("runc"),
        runc_log: bundle.join("runc.log"),
        bundle,
        log_path: (!log.is_empty()).then(|| PathBuf::from(&log)),
        exit_file: data.join("exit"),
        memory_cgroup: Some(runtime.cgroups.dir("memory", &cgroup)),
        stdin: config.stdin,
        terminal: config.tty,
        extra_args: Vec::new(),
    };
    Ok(Prepared { request, cgroup })
}

/// config.json, with the sandbox' files bound in.
fn document(
    runtime: &Runtime,
    sandbox_id: &Id,
    mut config: ContainerConfig,
    pod: &podway_cri::v1::PodSandboxConfig,
    image: &ResolvedImage,
    root: &Path,
    cgroup: &str,
) -> Result<Vec<u8>, OpError> {
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
    })?;
    serde_json::to_vec(&spec).map_err(|e| spec::SpecError::Shape(e).into())
}

/// Without CAP_SYS_RESOURCE (bit 24) the kernel refuses to go below what this process has itself.
fn oom_floor() -> i64 {
    if spec::capabilities::available() >> 24 & 1 == 1 {
        return -1000;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    own.trim().parse().unwrap_or(0)
}

fn known(runtime: &Runtime, id: &Id) -> Result<Container, OpError> {
    runtime.container(id).ok_or_else(|| OpError::NotFound("container", id.to_string()))
}

/// Starts a created container. One that runs is started already: a retried call has one effect.
///
/// # Errors
/// [`Failure`].
pub async fn start(runtime: &Arc<Runtime>, id: &Id) -> Result<Made, Failure> {
    let recorder = Recorder::new(Writer::Runtime, runtime.clock);
    let (runtime, id) = (Arc::clone(runtime), id.clone());
    // A task of its own: a client that hangs up does not leave it half started.
    let task = tokio::spawn(async move {
        let lock = runtime.locks.of(&id);
        let _alone = lock.write().await;
        match start_alone(&runtime, &id, &recorder).await {
            Ok(()) => {
                let records = recorder.take();
                runtime.metrics.observe(&records);
                Ok(Made { id, records })
            }
            Err(error) => {
                let failure = Failure::new(&error, &recorder);
                runtime.metrics.observe(&failure.records);
                let kept = failure.records.clone();
                let keep = blocking(move || Ok(runtime.update_container(&id, |c| c.records.extend(kept))?));
                if let Err(error) = keep.await {
                    tracing::error!(error = error.chain(), "a failed start's records were not kept");
                }
                Err(failure)
            }
        }
    });
    task.await.unwrap_or_else(|e| Err(Failure::internal(&e.to_string())))
}

async fn start_alone(runtime: &Arc<Runtime>, id: &Id, recorder: &Recorder) -> Result<(), OpError> {
    let entry = known(runtime, id)?;
    match entry.stage {
        Stage::Running => return Ok(()),
        Stage::Created => {}
        other => return Err(OpError::Precondition(format!("container {id} is {other:?}, not Created"))),
    }
    let meta = config_of(&entry)?.metadata.unwrap_or_default();
    let mut span = recorder.begin_for(Phase::ContainersStarted, &meta.name);
    span.attempt(meta.attempt.saturating_add(1)).note("containerId", id);
    let socket = runtime.monitor_socket(&entry.sandbox);
    let asked = match supervisor::call(&socket, Request::Start { id: id.to_string() }).await {
        Ok(Reply::Started { micros }) => Ok(micros),
        Ok(_) => Err(OpError::from(supervisor::SupervisorError::Unexpected)),
        Err(error) if supervisor::knows_not(&error) => Err(OpError::Precondition(format!(
            "the monitor of container {id} has ended before the start: remove it and create it anew"
        ))),
        Err(error) => Err(error.into()),
    };
    match asked {
        Ok(micros) => span.note("runcMicros", micros),
        Err(error) => {
            span.fail("StartError", &error.chain());
            return Err(error);
        }
    };
    span.succeed("Started");
    let (state, of, record, now) = (Arc::clone(runtime), id.clone(), recorder.clone(), runtime.now_ns());
    blocking(move || {
        state.update_container(&of, |c| {
            // It may have exited before we heard that it started.
            if c.stage == Stage::Created {
                c.stage = Stage::Running;
            }
            c.started_at = now.min(if c.finished_at > 0 { c.finished_at } else { now });
            c.records.extend(record.snapshot());
        })?;
        Ok(())
    })
    .await
}

/// Stops a container: its signal, `grace` seconds, then SIGKILL. An unknown or ended one is stopped.
/// It holds no lock while it waits, so that a second call can shorten the first one's grace.
///
/// # Errors
/// [`OpError`].
pub async fn stop(runtime: &Arc<Runtime>, id: &Id, grace: i64) -> Result<(), OpError> {
    // A create or start under way ends first, or the signal would be too early.
    drop(runtime.locks.of(id).read().await);
    let Some(entry) = runtime.container(id) else { return Ok(()) };
    if matches!(entry.stage, Stage::Exited | Stage::Creating) {
        return Ok(());
    }
    if let Ok(grace @ 1..) = u64::try_from(grace) {
        signal(runtime, id, &entry, entry.stop_signal).await?;
        if tokio::time::timeout(Duration::from_secs(grace), runtime.exited(id)).await.is_ok() {
            return Ok(());
        }
    }
    signal(runtime, id, &entry, 9).await?;
    tokio::time::timeout(Duration::from_secs(60), runtime.exited(id)).await.map_err(|_| {
        OpError::Deadline(format!(
            "container {id} does not end after SIGKILL: is it in uninterruptible sleep?"
        ))
    })
}

/// Through the monitor, which knows what it has reaped; without it, through the pidfd of what runc
/// recorded. Only a container that neither knows has ended.
async fn signal(runtime: &Arc<Runtime>, id: &Id, entry: &Container, signo: u8) -> Result<(), OpError> {
    let socket = runtime.monitor_socket(&entry.sandbox);
    let ended = |error: &supervisor::SupervisorError| {
        use supervisor::SupervisorError::Client;
        matches!(error, Client(ClientError::Refused { code: ErrorCode::NotRunning, .. }))
    };
    let without_monitor = match supervisor::call(&socket, Request::Signal { id: id.to_string(), signo }).await
    {
        Ok(_) => return Ok(()),
        Err(error) if supervisor::knows_not(&error) => true,
        Err(error) if ended(&error) => false,
        Err(error) => return Err(error.into()),
    };
    let (state, id) = (Arc::clone(runtime), id.clone());
    blocking(move || {
        if without_monitor && let Some(init) = orphan::init(&state.config.state.join("runc"), &id) {
            // Who waits for its end was set up when the monitor's was noticed.
            return Ok(init.signal(signo)?);
        }
        settle(&state, &id, None)?;
        Ok(())
    })
    .await
}

/// Takes the durable exit record over; without one the code that is known otherwise, else 255.
/// Only for a container that has ended. Blocks; gives whether that was news.
///
/// # Errors
/// [`OpError::Journal`].
pub fn settle(runtime: &Runtime, id: &Id, code: Option<i32>) -> Result<bool, OpError> {
    let record = ExitRecord::read(&runtime.container_dir(id).join("exit")).ok();
    let now = runtime.now_ns();
    let mut news = false;
    runtime.note_container(id, |c| {
        if c.stage != Stage::Exited {
            news = true;
            c.stage = Stage::Exited;
            c.exit_code = record.map(|r| r.exit_code).or(code).unwrap_or(255);
            c.oom_killed = record.map_or_else(|| runtime.cgroups.oom_killed(&c.cgroup), |r| r.oom_killed);
            c.finished_at = record.and_then(|r| i64::try_from(r.finished_at_ns).ok()).unwrap_or(now);
        }
    })?;
    Ok(news)
}

/// Removes a container, killing it if it lives. May be repeated.
///
/// # Errors
/// [`OpError`]; what is left stays journalled.
pub async fn remove(runtime: &Arc<Runtime>, id: &Id) -> Result<(), OpError> {
    let lock = runtime.locks.of(id);
    let _alone = lock.write().await;
    remove_alone(runtime, id).await
}

async fn remove_alone(runtime: &Arc<Runtime>, id: &Id) -> Result<(), OpError> {
    let Some(entry) = runtime.container(id) else { return Ok(()) };
    let socket = runtime.monitor_socket(&entry.sandbox);
    let without_monitor = match supervisor::call(&socket, Request::Delete { id: id.to_string() }).await {
        Ok(_) => false,
        Err(error) if supervisor::knows_not(&error) => true,
        Err(error) => return Err(error.into()),
    };
    let (state, id) = (Arc::clone(runtime), id.clone());
    blocking(move || {
        if without_monitor {
            orphan::remove(&state, &id, &entry.cgroup)?;
        }
        let bundle = state.bundle(&id);
        rootfs::unmount(&bundle.join("rootfs")).map_err(|e| OpError::Io("unmount the root filesystem", e))?;
        for dir in [bundle, state.container_dir(&id)] {
            rootfs::remove_tree(&dir).map_err(|e| OpError::Io("remove the container's files", e))?;
        }
        Ok(state.forget_container(&id)?)
    })
    .await
}

/// A process to run in a container: its OCI process object on disk, deleted when this is dropped.
#[derive(Debug)]
pub struct ExecFile {
    /// A name for it, unique in the monitor.
    pub exec_id: String,
    /// Where it is.
    pub path: PathBuf,
}

impl Drop for ExecFile {
    fn drop(&mut self) {
        // One that stays is removed with the bundle.
        drop(std::fs::remove_file(&self.path));
    }
}

/// Writes the process object of an exec: the container's own with another command. Blocks.
///
/// # Errors
/// [`OpError`] for a container that does not run, or an empty command.
pub fn exec_file(runtime: &Runtime, id: &Id, cmd: &[String], tty: bool) -> Result<ExecFile, OpError> {
    if known(runtime, id)?.stage != Stage::Running {
        return Err(OpError::Precondition(format!("container {id} is not running")));
    }
    if cmd.is_empty() {
        return Err(OpError::Invalid("cmd is empty".to_owned()));
    }
    let bundle = runtime.bundle(id);
    let text = std::fs::read(bundle.join("config.json")).map_err(|e| OpError::Io("read config.json", e))?;
    let mut spec: serde_json::Value = serde_json::from_slice(&text).map_err(spec::SpecError::Shape)?;
    let mut process = spec["process"].take();
    process["args"] = serde_json::json!(cmd);
    process["terminal"] = serde_json::json!(tty);
    let exec_id = Id::random().map_err(|e| OpError::Io("draw an id", e))?.to_string();
    let dir = bundle.join("exec");
    private_dir(&dir).map_err(|e| OpError::Io("make the exec directory", e))?;
    let file = ExecFile { path: dir.join(&exec_id), exec_id };
    std::fs::write(&file.path, process.to_string()).map_err(|e| OpError::Io("write process.json", e))?;
    Ok(file)
}

/// Runs a command in a container to its end: exit code, stdout, stderr (16 MiB each at most).
///
/// # Errors
/// [`OpError`]; a command that took longer than `timeout` seconds (0: none) is one.
pub async fn exec_sync(
    runtime: &Arc<Runtime>,
    id: &Id,
    cmd: Vec<String>,
    timeout: i64,
) -> Result<(i32, Vec<u8>, Vec<u8>), OpError> {
    let entry = known(runtime, id)?;
    let (state, of) = (Arc::clone(runtime), id.clone());
    let file = blocking(move || exec_file(&state, &of, &cmd, false)).await?;
    let request = Request::Exec {
        id: id.to_string(),
        exec_id: file.exec_id.clone(),
        process_json_path: file.path.clone(),
        timeout_ms: u64::try_from(timeout).unwrap_or(0).saturating_mul(1000),
        capture_limit: podway_monitor::protocol::MAX_CAPTURE,
    };
    match supervisor::call(&runtime.monitor_socket(&entry.sandbox), request).await? {
        Reply::ExecDone { timed_out: true, .. } => {
            Err(OpError::Deadline(format!("command timed out after {timeout} s")))
        }
        Reply::ExecDone { exit_code, stdout, stderr, .. } => Ok((exit_code, stdout, stderr)),
        _ => Err(supervisor::SupervisorError::Unexpected.into()),
    }
}
