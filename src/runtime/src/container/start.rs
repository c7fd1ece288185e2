//! The start: `runc create`, evidence of what it made, `runc start`.
//!
//! A start that broke off (a killed runtime) is taken up where the monitor knows it to be: it
//! answers a second create of what it has created with that one, and a second start likewise. What
//! runc refuses ends the container, as it does in containerd: EXITED, code 128, reason StartError.

use super::life::{ended, signal};
use crate::cgroup::driver;
use crate::error::{Failure, OpError, blocking};
use crate::ids::Id;
use crate::names::Made;
use crate::points::{self, Point};
use crate::state::{Container, Runtime, Stage};
use crate::status::container_config;
use crate::{events, follow, supervisor};
use podway_cri::v1::{ContainerConfig, ContainerEventType};
use podway_flow::{Phase, Recorder, Span, Writer};
use podway_monitor::{Create, Reply, Request};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
                // Nobody else tells of it meanwhile: its end, if that has come already, waits for this.
                events::publish(&runtime, &id, ContainerEventType::ContainerStartedEvent);
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
    let entry = runtime.known_container(id)?;
    match entry.stage {
        Stage::Running => return Ok(()),
        Stage::Created | Stage::Exited if entry.refusal.is_some() => {
            return Err(OpError::Runc(entry.refusal.unwrap_or_default()));
        }
        Stage::Created => {}
        other => return Err(OpError::Precondition(format!("container {id} is {other:?}, not Created"))),
    }
    let config = container_config(&entry)?;
    let begin = |phase| -> Span {
        let meta = config.metadata.clone().unwrap_or_default();
        let mut span = recorder.begin_for(phase, &meta.name);
        span.attempt(meta.attempt.saturating_add(1)).note("containerId", id);
        span
    };
    let span = begin(Phase::ContainersCreated);
    let pid = create(runtime, id, &entry, &config, span).await?;
    points::at(Point::RuncCreated);

    let mut span = begin(Phase::ContainersStarted);
    span.note("pid", pid);
    match run(runtime, id, &entry).await {
        Ok(micros) => span.note("runcMicros", micros),
        Err(error) => {
            span.fail("StartError", &error.chain());
            if let OpError::Runc(refusal) = &error {
                refused(runtime, id, refusal.clone()).await?;
                // Its init waits for a start that will not come.
                signal(runtime, id, &entry, 9).await?;
                ended(runtime, id).await?;
            }
            return Err(error);
        }
    };
    points::at(Point::RuncStarted);
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
        points::at(Point::ContainerRunning);
        Ok(())
    })
    .await
}

/// `runc create`, and what the kernel says of what it made: gives the pid of the container's init.
async fn create(
    runtime: &Arc<Runtime>,
    id: &Id,
    entry: &Container,
    config: &ContainerConfig,
    mut span: Span,
) -> Result<u32, OpError> {
    let oci = runtime.oci(&entry.sandbox)?;
    span.note("runcVersion", &oci.version);
    let asked = async {
        // A monitor that died since the last container is replaced before it is needed.
        let listed = follow::ensure(runtime, &entry.sandbox).await?;
        if !listed.iter().any(|c| c.id == id.as_str()) && follow::runc_knows(runtime, id) {
            return Err(orphaned(id));
        }
        let request = Request::Create(Box::new(request(runtime, &oci.path, id, entry, config)));
        match supervisor::call(&runtime.monitor_socket(&entry.sandbox), request).await {
            Ok(Reply::Created { pid, micros, argv }) => Ok((pid, micros, argv)),
            Err(error) => Err(OpError::of_runc("create", error)),
            Ok(_) => Err(OpError::from(supervisor::SupervisorError::Unexpected)),
        }
    };
    let (pid, micros, argv) = match asked.await {
        Ok(created) => created,
        Err(error) => {
            span.fail("StartError", &error.chain());
            if let OpError::Runc(refusal) = &error {
                refused(runtime, id, refusal.clone()).await?;
                let (state, of) = (Arc::clone(runtime), id.clone());
                blocking(move || {
                    follow::settle(&state, &of, None);
                    Ok(())
                })
                .await?;
            }
            return Err(error);
        }
    };
    span.note("pid", pid)
        .note("runcMicros", micros)
        .note("argv", argv.join(" "))
        .note("cgroup", &entry.cgroup);
    for kind in ["net", "ipc", "uts", "mnt", "pid"] {
        if let Ok(link) = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")) {
            span.note(&format!("ns.{kind}"), link.display());
        }
    }
    for (file, value) in runtime.cgroups.limits(&entry.cgroup) {
        span.note(file, value);
    }
    span.succeed("Created");
    Ok(pid)
}

fn request(runtime: &Runtime, oci: &Path, id: &Id, entry: &Container, config: &ContainerConfig) -> Create {
    let bundle = runtime.bundle(id);
    Create {
        id: id.to_string(),
        runc: oci.to_owned(),
        runc_root: runtime.config.state.join("runc"),
        runc_log: bundle.join("runc.log"),
        bundle,
        log_path: (!entry.log_path.is_empty()).then(|| PathBuf::from(&entry.log_path)),
        exit_file: runtime.container_dir(id).join("exit"),
        memory_cgroup: Some(runtime.cgroups.dir("memory", &entry.cgroup)),
        stdin: config.stdin,
        // A socket's path has at most 107 bytes: a short name in a short directory.
        console_socket: config
            .tty
            .then(|| runtime.config.state.join("m").join(format!("{}.tty", id.short()))),
        systemd_cgroup: driver::unit(&entry.cgroup).is_some(),
        extra_args: Vec::new(),
    }
}

/// `runc start`; gives the µs that it took.
async fn run(runtime: &Runtime, id: &Id, entry: &Container) -> Result<u64, OpError> {
    let socket = runtime.monitor_socket(&entry.sandbox);
    match supervisor::call(&socket, Request::Start { id: id.to_string() }).await {
        Ok(Reply::Started { micros }) => Ok(micros),
        Ok(_) => Err(OpError::from(supervisor::SupervisorError::Unexpected)),
        Err(error) if supervisor::knows_not(&error) => Err(orphaned(id)),
        Err(error) => Err(OpError::of_runc("start", error)),
    }
}

/// Its output goes to a monitor that is gone: nobody can start it.
fn orphaned(id: &Id) -> OpError {
    OpError::Precondition(format!(
        "the monitor of container {id} has ended before the start: remove it and create it anew"
    ))
}

/// Keeps why runc did not create or start it: the exit that follows is told with it.
async fn refused(runtime: &Arc<Runtime>, id: &Id, refusal: String) -> Result<(), OpError> {
    let (state, of) = (Arc::clone(runtime), id.clone());
    blocking(move || {
        state.update_container(&of, |c| c.refusal = Some(refusal))?;
        Ok(())
    })
    .await
}
