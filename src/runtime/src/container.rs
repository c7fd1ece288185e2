//! A container's life: journalled → root filesystem → config.json → `runc create` → `runc start` →
//! exited → removed. The monitor runs runc and makes the exit durable; this module asks it.

use crate::error::OpError;
use crate::ids::Id;
use crate::journal::private_dir;
use crate::state::{Container, Runtime, Stage};
use crate::{rootfs, sandbox, spec, supervisor};
use podway_cri::Message as _;
use podway_cri::v1::{ContainerConfig, Mount, Signal};
use podway_flow::{Phase, Recorder};
use podway_monitor::{ClientError, Create, ErrorCode, Event, ExitRecord, Reply, Request};
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

/// Makes a container up to `runc create`.
///
/// # Errors
/// [`OpError`]; everything that was made for it is undone.
pub async fn create(
    runtime: &Arc<Runtime>,
    sandbox_id: &Id,
    config: ContainerConfig,
    recorder: &Recorder,
) -> Result<Id, OpError> {
    let id = Id::random().map_err(|e| OpError::Io("draw an id", e))?;
    let result = build(runtime, sandbox_id, &id, config, recorder).await;
    if let Err(error) = result {
        if let Err(undo) = remove(runtime, &id).await {
            tracing::error!(container = %id, error = undo.chain(), "a failed container was not wholly undone");
        }
        return Err(error);
    }
    Ok(id)
}

async fn build(
    runtime: &Arc<Runtime>,
    sandbox_id: &Id,
    id: &Id,
    config: ContainerConfig,
    recorder: &Recorder,
) -> Result<(), OpError> {
    let pod =
        runtime.sandbox(sandbox_id).ok_or_else(|| OpError::NotFound("sandbox", sandbox_id.to_string()))?;
    if !pod.ready {
        return Err(OpError::Precondition(format!("sandbox {sandbox_id} is not ready")));
    }
    let pod_config = sandbox::config_of(&pod)?;
    let name = config.metadata.clone().unwrap_or_default().name;
    let reference = config.image.clone().unwrap_or_default().image;
    let image = runtime.images.resolve(&reference).ok_or(OpError::NotFound("image", reference))?;
    let log = log_path(&pod_config.log_directory, &config.log_path)?;
    let entry = Container {
        sandbox: sandbox_id.clone(),
        config: hex::encode(config.encode_to_vec()),
        stage: Stage::Creating,
        created_at: runtime.now_ns(),
        started_at: 0,
        finished_at: 0,
        exit_code: 0,
        oom_killed: false,
        image_id: image.id.clone(),
        stop_signal: stop_signal(&config, &image.stop_signal),
        log_path: log.clone(),
        records: Vec::new(),
    };
    runtime.put_container(id, entry)?;

    let bundle = runtime.bundle(id);
    let root = bundle.join("rootfs");
    let data = runtime.container_dir(id);
    let mut span = recorder.begin_for(Phase::RootfsPrepared, &name);
    span.note("layers", image.layers.len()).note("rootfs", root.display());
    if let Err(error) = rootfs::mount_overlay(&image.layers, &data, &root) {
        let error = OpError::from(error);
        span.fail("MountFailed", &error.chain());
        return Err(error);
    }
    span.succeed("Mounted");

    let mut span = recorder.begin_for(Phase::SpecGenerated, &name);
    let cgroup = format!("{}/{id}", pod.cgroup);
    let document =
        match document(runtime, sandbox_id, config.clone(), &pod_config, &image.defaults, &root, &cgroup) {
            Ok(document) => document,
            Err(error) => {
                span.fail("SpecFailed", &error.chain());
                return Err(error);
            }
        };
    std::fs::write(bundle.join("config.json"), &document).map_err(|e| OpError::Io("write config.json", e))?;
    span.note("sha256", hex::encode(Sha256::digest(&document)));
    span.note("path", bundle.join("config.json").display());
    span.succeed("Generated");

    let mut span = recorder.begin_for(Phase::ContainersCreated, &name);
    span.note("containerId", id).note("runcVersion", &runtime.runc_version);
    if let Some(dir) = Path::new(&log).parent().filter(|_| !log.is_empty()) {
        std::fs::create_dir_all(dir).map_err(|e| OpError::Io("make the log directory", e))?;
    }
    let memory = runtime.cgroups.dir("memory", &cgroup);
    let request = Request::Create(Box::new(Create {
        id: id.to_string(),
        runc: runtime.config.runc.path.clone(),
        runc_root: runtime.config.state.join("runc"),
        runc_log: bundle.join("runc.log"),
        bundle,
        log_path: (!log.is_empty()).then(|| PathBuf::from(&log)),
        exit_file: data.join("exit"),
        memory_cgroup: Some(memory),
        stdin: config.stdin,
        terminal: config.tty,
        extra_args: Vec::new(),
    }));
    let socket = runtime.monitor_socket(sandbox_id);
    let (pid, micros, argv) = match supervisor::call(&socket, request).await {
        Ok(Reply::Created { pid, micros, argv }) => (pid, micros, argv),
        other => {
            let error = OpError::from(other.err().unwrap_or(supervisor::SupervisorError::Unexpected));
            span.fail("CreateContainerError", &error.chain());
            return Err(error);
        }
    };
    span.note("pid", pid).note("runcMicros", micros).note("argv", argv.join(" ")).note("cgroup", &cgroup);
    for kind in ["net", "ipc", "uts", "mnt", "pid"] {
        if let Ok(link) = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")) {
            span.note(&format!("ns.{kind}"), link.display());
        }
    }
    for (file, value) in runtime.cgroups.limits(&cgroup) {
        span.note(file, value);
    }
    span.succeed("Created");
    runtime.update_container(id, |c| {
        c.stage = Stage::Created;
        c.records = recorder.snapshot();
    })?;
    Ok(())
}

/// config.json, with the sandbox' files bound in.
fn document(
    runtime: &Runtime,
    sandbox_id: &Id,
    mut config: ContainerConfig,
    pod: &podway_cri::v1::PodSandboxConfig,
    image: &spec::ImageDefaults,
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
        image,
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

/// Starts a created container.
///
/// # Errors
/// [`OpError`].
pub async fn start(runtime: &Arc<Runtime>, id: &Id, recorder: &Recorder) -> Result<(), OpError> {
    let entry = known(runtime, id)?;
    if entry.stage != Stage::Created {
        return Err(OpError::Precondition(format!("container {id} is {:?}, not Created", entry.stage)));
    }
    let name = config_of(&entry)?.metadata.unwrap_or_default().name;
    let mut span = recorder.begin_for(Phase::ContainersStarted, &name);
    span.note("containerId", id);
    let socket = runtime.monitor_socket(&entry.sandbox);
    match supervisor::call(&socket, Request::Start { id: id.to_string() }).await {
        Ok(Reply::Started { micros }) => span.note("runcMicros", micros),
        other => {
            let error = OpError::from(other.err().unwrap_or(supervisor::SupervisorError::Unexpected));
            span.fail("StartError", &error.chain());
            return Err(error);
        }
    };
    span.succeed("Started");
    let now = runtime.now_ns();
    runtime.update_container(id, |c| {
        // It may have exited before we heard that it started.
        if c.stage == Stage::Created {
            c.stage = Stage::Running;
        }
        c.started_at = now;
        c.records.extend(recorder.snapshot());
    })?;
    Ok(())
}

/// Stops a container: its signal, `grace` seconds, then SIGKILL. An unknown or ended one is stopped.
///
/// # Errors
/// [`OpError`].
pub async fn stop(runtime: &Arc<Runtime>, id: &Id, grace: i64) -> Result<(), OpError> {
    let Some(entry) = runtime.container(id) else { return Ok(()) };
    if matches!(entry.stage, Stage::Exited | Stage::Creating) {
        return Ok(());
    }
    let socket = runtime.monitor_socket(&entry.sandbox);
    if let Ok(grace @ 1..) = u64::try_from(grace) {
        signal(runtime, id, &socket, entry.stop_signal).await?;
        if tokio::time::timeout(Duration::from_secs(grace), runtime.exited(id)).await.is_ok() {
            return Ok(());
        }
    }
    signal(runtime, id, &socket, 9).await?;
    tokio::time::timeout(Duration::from_secs(60), runtime.exited(id)).await.map_err(|_| {
        OpError::Precondition(format!(
            "container {id} does not end after SIGKILL: is it in uninterruptible sleep?"
        ))
    })
}

async fn signal(runtime: &Runtime, id: &Id, socket: &Path, signo: u8) -> Result<(), OpError> {
    use supervisor::SupervisorError::Client;
    match supervisor::call(socket, Request::Signal { id: id.to_string(), signo }).await {
        Ok(_) => Ok(()),
        Err(Client(ClientError::Refused { code: ErrorCode::NotRunning | ErrorCode::NotFound, .. })) => {
            settle(runtime, id)
        }
        Err(error) => Err(error.into()),
    }
}

/// Takes the durable exit record over; without one the end is unknown, which is code 255.
///
/// # Errors
/// [`OpError::Journal`].
pub fn settle(runtime: &Runtime, id: &Id) -> Result<(), OpError> {
    let record = ExitRecord::read(&runtime.container_dir(id).join("exit")).ok();
    let now = runtime.now_ns();
    runtime.update_container(id, |c| {
        if c.stage != Stage::Exited {
            c.stage = Stage::Exited;
            c.exit_code = record.map_or(255, |r| r.exit_code);
            c.oom_killed = record.is_some_and(|r| r.oom_killed);
            c.finished_at = record.and_then(|r| i64::try_from(r.finished_at_ns).ok()).unwrap_or(now);
        }
    })?;
    Ok(())
}

/// What a monitor's event means.
pub fn on_event(runtime: &Runtime, event: Event) {
    if let Event::Exited { id, .. } = event
        && let Ok(id) = Id::try_from(id)
    {
        if let Err(error) = settle(runtime, &id) {
            tracing::error!(container = %id, error = error.chain(), "an exit was not journalled");
        }
        crate::events::publish(runtime, &id, podway_cri::v1::ContainerEventType::ContainerStoppedEvent);
    }
}

/// Removes a container, killing it if it lives. May be repeated.
///
/// # Errors
/// [`OpError`]; what is left stays journalled.
pub async fn remove(runtime: &Arc<Runtime>, id: &Id) -> Result<(), OpError> {
    let Some(entry) = runtime.container(id) else { return Ok(()) };
    use supervisor::SupervisorError::Client;
    match supervisor::call(&runtime.monitor_socket(&entry.sandbox), Request::Delete { id: id.to_string() })
        .await
    {
        Ok(_) | Err(Client(ClientError::Refused { code: ErrorCode::NotFound, .. })) => {}
        Err(error) if supervisor::is_gone(&error) => {}
        Err(error) => return Err(error.into()),
    }
    let bundle = runtime.bundle(id);
    rootfs::unmount(&bundle.join("rootfs")).map_err(|e| OpError::Io("unmount the root filesystem", e))?;
    for dir in [bundle, runtime.container_dir(id)] {
        rootfs::remove_tree(&dir).map_err(|e| OpError::Io("remove the container's files", e))?;
    }
    runtime.forget_container(id)?;
    Ok(())
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
    if entry.stage != Stage::Running {
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
    process["terminal"] = serde_json::json!(false);
    let exec_id = Id::random().map_err(|e| OpError::Io("draw an id", e))?.to_string();
    let dir = bundle.join("exec");
    private_dir(&dir).map_err(|e| OpError::Io("make the exec directory", e))?;
    let path = dir.join(&exec_id);
    std::fs::write(&path, process.to_string()).map_err(|e| OpError::Io("write process.json", e))?;
    let request = Request::Exec {
        id: id.to_string(),
        exec_id,
        process_json_path: path.clone(),
        timeout_ms: u64::try_from(timeout).unwrap_or(0).saturating_mul(1000),
        capture_limit: podway_monitor::protocol::MAX_CAPTURE,
    };
    let reply = supervisor::call(&runtime.monitor_socket(&entry.sandbox), request).await;
    std::fs::remove_file(&path).map_err(|e| OpError::Io("remove process.json", e))?;
    match reply? {
        Reply::ExecDone { timed_out: true, .. } => {
            Err(OpError::Precondition(format!("command timed out after {timeout} s")))
        }
        Reply::ExecDone { exit_code, stdout, stderr, .. } => Ok((exit_code, stdout, stderr)),
        _ => Err(supervisor::SupervisorError::Unexpected.into()),
    }
}
