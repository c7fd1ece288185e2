//! Taking parts of a pod down.

use crate::cri::{Answer, CallError, Cri};
use crate::pod::context::Context;
use crate::pod::core::Instance;
use crate::pod::model::Pod;
use crate::probe::run::{self, Target};
use crate::probe::spec::Handler;
use std::time::Duration;
use tonic::Code;

/// What taking a part of a pod down came to.
#[derive(Debug)]
pub enum Took {
    /// A container was stopped: as the runtime then reports it, or `None` where it must be asked.
    Stopped(Option<Instance>),
    /// A sandbox was stopped.
    SandboxStopped(String),
    /// A sandbox is gone, and what was in it.
    SandboxRemoved(String),
    /// A container is gone.
    Removed(String),
}

fn taken(answer: Answer<()>) -> Result<(), CallError> {
    match answer.result {
        // What is not there is taken down.
        Err(e) if e.code == Code::NotFound => Ok(()),
        other => other,
    }
}

/// How a container is stopped.
#[derive(Clone, Debug)]
pub struct Stop {
    /// The container.
    pub target: Target,
    /// Its sandbox.
    pub sandbox: String,
    /// What it has, its hook included.
    pub grace: Duration,
    /// Its `preStop`, if that is to be done.
    pub hook: Option<Result<Handler, String>>,
}

/// What is left to a container at the least after its `preStop`.
const AFTER_HOOK: Duration = Duration::from_secs(2);

/// Stops a container, after its `preStop` and all within its grace.
pub async fn stop_container(context: Context, pod: Pod, stop: Stop) -> Result<Took, CallError> {
    let Stop { target, sandbox, mut grace, hook } = stop;
    if let Some(hook) = hook {
        let begun = std::time::Instant::now();
        match tokio::time::timeout(grace, run::hook(&context.cri, &target, &hook)).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(word))) => context.tell(&pod, "LifecycleHTTPFallback", &word),
            Ok(Err(error)) => {
                tracing::warn!(pod = %pod.uid, container = target.name, error, "a preStop hook failed");
                context.tell(&pod, "FailedPreStopHook", "PreStopHook failed");
            }
            Err(_) => {
                tracing::warn!(pod = %pod.uid, container = target.name, "a preStop hook used the grace up")
            }
        }
        grace = grace.saturating_sub(begun.elapsed()).max(AFTER_HOOK);
    }
    taken(context.cri.stop_container(&target.id, grace).await)?;
    Ok(Took::Stopped(context.cri.instance(&target.id, &sandbox).await.ok().flatten()))
}

/// Stops a sandbox.
pub async fn stop_sandbox(cri: Cri, id: String) -> Result<Took, CallError> {
    taken(cri.stop_sandbox(&id).await).map(|()| Took::SandboxStopped(id))
}

/// Removes a sandbox.
pub async fn remove_sandbox(cri: Cri, id: String) -> Result<Took, CallError> {
    taken(cri.remove_sandbox(&id).await).map(|()| Took::SandboxRemoved(id))
}

/// Removes a container.
pub async fn remove_container(cri: Cri, id: String) -> Result<Took, CallError> {
    taken(cri.remove_container(&id).await).map(|()| Took::Removed(id))
}
