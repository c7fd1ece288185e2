//! A sandbox' monitor: started where there is none, followed while it lives, survived when it dies.
//!
//! The monitor's end says nothing of the containers. Each is looked up by what runc recorded: one
//! that lives is waited for by its pidfd, one that does not is settled by its exit record.

use crate::error::{OpError, blocking};
use crate::ids::Id;
use crate::points::{self, Point};
use crate::state::{Life, Runtime, Stage};
use crate::{events, orphan, status, supervisor};
use podway_cri::v1::{ContainerEventType, NamespaceMode};
use podway_monitor::protocol::State;
use podway_monitor::{Event, ExitRecord, ListedContainer, Reply, Request};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The exit code of a container that runc did not start, as containerd has it.
pub const START_ERROR: i32 = 128;

/// Sees to it that the sandbox has a monitor that is followed; gives what it knows. Serial per
/// sandbox.
///
/// # Errors
/// [`OpError`] when none can be started.
pub async fn ensure(runtime: &Arc<Runtime>, sandbox: &Id) -> Result<Vec<ListedContainer>, OpError> {
    let lock = runtime.monitors.of(sandbox);
    let _alone = lock.write().await;
    let socket = runtime.monitor_socket(sandbox);
    match supervisor::call(&socket, Request::List).await {
        Ok(Reply::List(all)) => return Ok(all),
        Ok(_) => return Err(supervisor::SupervisorError::Unexpected.into()),
        Err(error) if !supervisor::is_gone(&error) => return Err(error.into()),
        Err(_) => {}
    }
    let dir = runtime.sandbox_dir(sandbox).join("monitor");
    let pid = supervisor::start(runtime.config.monitor.path.clone(), socket, dir).await?;
    runtime.home.take_in(pid, &format!("podway-monitor-{sandbox}")).await?;
    points::at(Point::MonitorStarted);
    watch(runtime, sandbox).await?;
    Ok(Vec::new())
}

/// Whether runc was told of a container: `runc create` was at least begun.
#[must_use]
pub fn runc_knows(runtime: &Runtime, id: &Id) -> bool {
    runtime.config.state.join("runc").join(id.as_str()).exists()
}

/// Follows the monitor until it ends.
///
/// # Errors
/// [`OpError`] when it cannot be reached.
async fn watch(runtime: &Arc<Runtime>, sandbox: &Id) -> Result<(), OpError> {
    // Weak: the task outlives a runtime that shuts down, and must then not write its journal.
    let (state, id, handle) = (Arc::downgrade(runtime), sandbox.clone(), tokio::runtime::Handle::current());
    let ended = {
        let state = state.clone();
        move || {
            if let Some(state) = state.upgrade() {
                drop(handle.spawn(async move { lost(&state, &id).await }));
            }
        }
    };
    let turn = tokio::runtime::Handle::current();
    let told = move |event| {
        if let Event::Exited { id, exit_code, .. } = event
            && let (Ok(id), Some(state)) = (Id::try_from(id), state.upgrade())
        {
            told_in_turn(&state, id, exit_code, &turn);
        }
    };
    supervisor::watch(&runtime.monitor_socket(sandbox), told, ended).await?;
    Ok(())
}

/// An exit that its monitor told of. One that came while the start is not answered yet is published after it: who
/// listens hears of a beginning before the end.
fn told_in_turn(runtime: &Arc<Runtime>, id: Id, code: i32, tasks: &tokio::runtime::Handle) {
    let starting = runtime.container(&id).is_some_and(|c| c.stage == Stage::Created);
    if !starting {
        return settle(runtime, &id, Some(code));
    }
    if note_exit(runtime, &id, Some(code)) {
        let runtime = Arc::clone(runtime);
        drop(tasks.spawn(async move {
            let lock = runtime.locks.of(&id);
            // The start holds it until it has told of itself.
            drop(lock.read().await);
            events::publish(&runtime, &id, ContainerEventType::ContainerStoppedEvent);
        }));
    }
}

/// Takes the durable exit record over; without one the code that is known otherwise, else 255.
/// Only for a container that has ended. News is told to the listeners, even what could not be
/// journalled. Blocks.
pub fn settle(runtime: &Runtime, id: &Id, code: Option<i32>) {
    if note_exit(runtime, id, code) {
        events::publish(runtime, id, ContainerEventType::ContainerStoppedEvent);
    }
}

/// Whether it is news.
fn note_exit(runtime: &Runtime, id: &Id, code: Option<i32>) -> bool {
    let record = ExitRecord::read(&runtime.container_dir(id).join("exit")).ok();
    end_the_rest(runtime, id);
    let now = runtime.now_ns();
    let mut news = false;
    runtime.note_container(id, |c| {
        if c.stage != Stage::Exited {
            news = true;
            c.stage = Stage::Exited;
            let known = record.map(|r| r.exit_code).or(code).unwrap_or(255);
            c.exit_code = if c.refusal.is_some() { START_ERROR } else { known };
            c.oom_killed = record.map_or_else(|| runtime.cgroups.oom_killed(&c.cgroup), |r| r.oom_killed);
            c.finished_at = record.and_then(|r| i64::try_from(r.finished_at_ns).ok()).unwrap_or(now);
            // It may have ended before runc said that it had started it.
            c.started_at = c.started_at.min(c.finished_at);
        }
    });
    if news {
        points::at(Point::ExitJournalled);
    }
    news
}

/// In a PID namespace of its own whatever it had started has ended with it; in a shared one it has not,
/// and would go on in a container that is told to have ended.
fn end_the_rest(runtime: &Runtime, id: &Id) {
    let Some(entry) = runtime.container(id).filter(|c| c.stage != Stage::Exited) else { return };
    let config = status::container_config(&entry).unwrap_or_default();
    let context = config.linux.and_then(|l| l.security_context).unwrap_or_default();
    let pid = context.namespace_options.unwrap_or_default().pid;
    if pid != NamespaceMode::Container as i32
        && let Err(error) = orphan::kill_all(&runtime.cgroups, &entry.cgroup)
    {
        tracing::warn!(container = %id, %error, "processes of an ended container live on until its removal");
    }
}

/// The monitor has ended. After the sandbox' removal that is as it should be.
async fn lost(runtime: &Arc<Runtime>, sandbox: &Id) {
    let Some(entry) = runtime.sandbox(sandbox) else { return };
    let containers = runtime.containers_of(sandbox);
    if entry.life == Life::Ready || !containers.is_empty() {
        tracing::warn!(%sandbox, "the pod's monitor has ended; its containers are waited for by pidfd and their output is lost");
    }
    for (id, c) in containers {
        if lives(runtime, &id, c.stage) {
            adopt(runtime, &id);
        }
    }
}

/// Whether there may be a process of it. One in creation is seen to by the call that creates it; one
/// that was made has no process until its start had runc create it.
fn lives(runtime: &Runtime, id: &Id, stage: Stage) -> bool {
    match stage {
        Stage::Running => true,
        Stage::Created => runc_knows(runtime, id),
        Stage::Creating | Stage::Exited => false,
    }
}

/// Waits for a container that has no monitor, in a task of its own.
pub fn adopt(runtime: &Arc<Runtime>, id: &Id) {
    let (runtime, id) = (Arc::clone(runtime), id.clone());
    drop(tokio::spawn(async move {
        let root = runtime.config.state.join("runc");
        let (of, process) = (id.clone(), root);
        let process = blocking(move || Ok(orphan::init(&process, &of))).await.ok().flatten();
        let code = match process {
            None => None,
            Some(process) => match process.ended().await {
                Ok(code) => code,
                Err(error) => {
                    tracing::error!(container = %id, %error, "a container without a monitor cannot be waited for");
                    return;
                }
            },
        };
        let journal = blocking(move || {
            settle(&runtime, &id, code);
            Ok(())
        });
        if let Err(error) = journal.await {
            tracing::error!(error = error.chain(), "an exit was not journalled");
        }
    }));
}

/// Takes up a sandbox after a restart: follows its monitor and asks it what it knows, and looks
/// after the containers that it does not know.
///
/// # Errors
/// [`OpError`].
pub async fn resume(runtime: &Arc<Runtime>, sandbox: &Id) -> Result<(), OpError> {
    let mut listed: BTreeMap<String, ListedContainer> = BTreeMap::new();
    // Events first, the list after: an exit in between is told twice rather than not at all.
    match watch(runtime, sandbox).await {
        Ok(()) => {
            let socket = runtime.monitor_socket(sandbox);
            if let Reply::List(all) = supervisor::call(&socket, Request::List).await? {
                listed.extend(all.into_iter().map(|c| (c.id.clone(), c)));
            }
        }
        Err(OpError::Supervisor(error)) if supervisor::is_gone(&error) => {
            tracing::warn!(%sandbox, "the pod's monitor is gone; a new one is started when it is needed");
        }
        Err(error) => return Err(error),
    }
    for (id, c) in runtime.containers_of(sandbox) {
        if !lives(runtime, &id, c.stage) {
            continue;
        }
        match listed.get(id.as_str()).map(|l| (l.state, l.exit_code)) {
            Some((State::Exited, code)) => {
                let (state, of) = (Arc::clone(runtime), id);
                blocking(move || {
                    settle(&state, &of, Some(code));
                    Ok(())
                })
                .await?;
            }
            Some((State::Running, _)) if c.stage == Stage::Created => {
                // runc start had succeeded; the answer had not been heard.
                let (state, of, now) = (Arc::clone(runtime), id, runtime.now_ns());
                blocking(move || {
                    state.update_container(&of, |c| {
                        c.stage = Stage::Running;
                        c.started_at = now;
                    })?;
                    Ok(())
                })
                .await?;
            }
            Some(_) => {}
            None => adopt(runtime, &id),
        }
    }
    Ok(())
}
