//! Reasons: the closed set of CamelCase words that stand in conditions, events and container states.
//!
//! Those of upstream are kept to the letter: tools match on them (kstatus, Argo CD).

/// `PodScheduled=False`: no node fits. kstatus knows exactly this word.
pub const UNSCHEDULABLE: &str = "Unschedulable";
/// `PodScheduled=False`: an error in the scheduler.
pub const SCHEDULER_ERROR: &str = "SchedulerError";
/// `PodScheduled=False`: `spec.schedulingGates` is not empty.
pub const SCHEDULING_GATED: &str = "SchedulingGated";
/// Event: the pod was bound.
pub const SCHEDULED: &str = "Scheduled";
/// Event: the pod was not bound.
pub const FAILED_SCHEDULING: &str = "FailedScheduling";

/// `Ready=False`, `ContainersReady=False`: some container is not ready.
pub const CONTAINERS_NOT_READY: &str = "ContainersNotReady";
/// `Initialized=False`: some init container has not completed.
pub const CONTAINERS_NOT_INITIALIZED: &str = "ContainersNotInitialized";
/// `Ready=False`: the pod has run to its end.
pub const POD_COMPLETED: &str = "PodCompleted";
/// `Ready=False`: the pod failed.
pub const POD_FAILED: &str = "PodFailed";
/// `Ready=False`: a readiness gate is not True.
pub const READINESS_GATES_NOT_READY: &str = "ReadinessGatesNotReady";

/// Waiting: the container is being made.
pub const CONTAINER_CREATING: &str = "ContainerCreating";
/// Waiting: init containers come first.
pub const POD_INITIALIZING: &str = "PodInitializing";
/// Waiting: the pull failed.
pub const ERR_IMAGE_PULL: &str = "ErrImagePull";
/// Waiting: the pull failed and is tried again later.
pub const IMAGE_PULL_BACK_OFF: &str = "ImagePullBackOff";
/// Waiting: the image reference is not one.
pub const INVALID_IMAGE_NAME: &str = "InvalidImageName";
/// Waiting: `imagePullPolicy: Never` and the image is not there.
pub const ERR_IMAGE_NEVER_PULL: &str = "ErrImageNeverPull";
/// Waiting: the container's configuration could not be made (a missing `ConfigMap` or Secret).
pub const CREATE_CONTAINER_CONFIG_ERROR: &str = "CreateContainerConfigError";
/// Waiting: the runtime did not create it.
pub const CREATE_CONTAINER_ERROR: &str = "CreateContainerError";
/// Waiting: the runtime did not start it.
pub const RUN_CONTAINER_ERROR: &str = "RunContainerError";
/// Waiting: it ended and is started again later.
pub const CRASH_LOOP_BACK_OFF: &str = "CrashLoopBackOff";

/// Terminated with exit code 0.
pub const COMPLETED: &str = "Completed";
/// Terminated with another exit code.
pub const ERROR: &str = "Error";
/// Terminated by the kernel for want of memory.
pub const OOM_KILLED: &str = "OOMKilled";
/// Terminated: its state was lost.
pub const CONTAINER_STATUS_UNKNOWN: &str = "ContainerStatusUnknown";
/// Terminated: the runtime could not run the command.
pub const START_ERROR: &str = "StartError";
/// Terminated: the runtime could not run the command at all.
pub const CONTAINER_CANNOT_RUN: &str = "ContainerCannotRun";
