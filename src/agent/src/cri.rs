//! The runtime as the agent calls it: CRI v1 with the kubelet's deadlines, each call counted, and the
//! flow records that came back with it, of failed calls too.

use crate::metrics::Metrics;
use crate::pod::core::{Instance, Observed, Sandbox, State};
use crate::pod::{cri_config, observe};
use podway_cri::v1::image_service_client::ImageServiceClient;
use podway_cri::v1::runtime_service_client::RuntimeServiceClient;
use podway_cri::{client, metadata, v1};
use podway_flow::{Record, wire};
use podway_systemd::Driver;
use std::collections::{BTreeSet, HashMap};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// The kubelet's `runtimeRequestTimeout`.
const TIMEOUT: Duration = Duration::from_secs(120);
/// `RunPodSandbox` may take longer: CNI has its own deadline.
const SANDBOX_TIMEOUT: Duration = Duration::from_secs(240);
/// The longest termination message, in bytes.
const MESSAGE_LIMIT: u64 = 4096;
/// The most of a log that stands in for a termination message, in bytes.
const LOG_TAIL: u64 = 2048;

/// A CRI call failed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{message}")]
pub struct CallError {
    /// The gRPC code.
    pub code: Code,
    /// The runtime's message.
    pub message: String,
}

/// What a call came to, and the records that it brought.
#[derive(Debug)]
pub struct Answer<T> {
    /// The answer.
    pub result: Result<T, CallError>,
    /// The runtime's part of the flow.
    pub records: Vec<Record>,
}

/// The runtime.
#[derive(Clone, Debug)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    image: ImageServiceClient<Channel>,
    metrics: Arc<Metrics>,
}

fn timed<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

/// What a node's runtime holds of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The pod's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Cri {
    /// The runtime behind `channel`.
    #[must_use]
    pub fn new(channel: Channel, metrics: Arc<Metrics>) -> Self {
        Cri { runtime: client::runtime(channel.clone()), image: client::image(channel), metrics }
    }

    fn answer<T, U>(
        &self,
        name: &str,
        begun: Instant,
        result: Result<Response<T>, Status>,
        take: impl FnOnce(T) -> U,
    ) -> Answer<U> {
        self.metrics.operation(name, begun.elapsed(), result.is_err());
        match result {
            Ok(response) => {
                let records = metadata::take(response.metadata());
                Answer { result: Ok(take(response.into_inner())), records }
            }
            Err(status) => Answer {
                records: metadata::take(status.metadata()),
                result: Err(CallError { code: status.code(), message: status.message().to_owned() }),
            },
        }
    }

    /// The runtime's name and version.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn version(&self) -> Result<(String, String), CallError> {
        let begun = Instant::now();
        let request = timed(v1::VersionRequest { version: "v1".to_owned() }, TIMEOUT);
        let result = self.runtime.clone().version(request).await;
        self.answer("version", begun, result, |v| (v.runtime_name, v.runtime_version)).result
    }

    /// Who manages the runtime's cgroups; `None` where it does not say (`RuntimeConfig` came with CRI 0.28).
    pub async fn cgroup_driver(&self) -> Result<Option<Driver>, CallError> {
        let begun = Instant::now();
        let request = timed(v1::RuntimeConfigRequest {}, TIMEOUT);
        let result = self.runtime.clone().runtime_config(request).await;
        let linux = self.answer("runtime_config", begun, result, |r| r.linux).result;
        match linux {
            Ok(linux) => Ok(linux.map(|linux| match linux.cgroup_driver() {
                v1::CgroupDriver::Systemd => Driver::Systemd,
                v1::CgroupDriver::Cgroupfs => Driver::Cgroupfs,
            })),
            Err(e) if e.code == Code::Unimplemented => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes a sandbox; its id.
    pub async fn run_sandbox(&self, config: v1::PodSandboxConfig, handler: &str) -> Answer<String> {
        let begun = Instant::now();
        let message = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
        let result = self.runtime.clone().run_pod_sandbox(timed(message, SANDBOX_TIMEOUT)).await;
        self.answer("run_podsandbox", begun, result, |r| r.pod_sandbox_id)
    }

    /// Stops a sandbox.
    pub async fn stop_sandbox(&self, id: &str) -> Answer<()> {
        let begun = Instant::now();
        let message = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let result = self.runtime.clone().stop_pod_sandbox(timed(message, TIMEOUT)).await;
        self.answer("stop_podsandbox", begun, result, |_| ())
    }

    /// Removes a sandbox and what is in it.
    pub async fn remove_sandbox(&self, id: &str) -> Answer<()> {
        let begun = Instant::now();
        let message = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let result = self.runtime.clone().remove_pod_sandbox(timed(message, TIMEOUT)).await;
        self.answer("remove_podsandbox", begun, result, |_| ())
    }

    /// Makes a container; its id.
    pub async fn create_container(
        &self,
        sandbox: &str,
        config: v1::ContainerConfig,
        sandbox_config: v1::PodSandboxConfig,
    ) -> Answer<String> {
        let begun = Instant::now();
        let message = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let result = self.runtime.clone().create_container(timed(message, TIMEOUT)).await;
        self.answer("create_container", begun, result, |r| r.container_id)
    }

    /// Starts a container.
    pub async fn start_container(&self, id: &str) -> Answer<()> {
        let begun = Instant::now();
        let message = v1::StartContainerRequest { container_id: id.to_owned() };
        let result = self.runtime.clone().start_container(timed(message, TIMEOUT)).await;
        self.answer("start_container", begun, result, |_| ())
    }

    /// Stops a container: SIGTERM, and SIGKILL after `grace`.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Answer<()> {
        let begun = Instant::now();
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let timeout = i64::try_from(seconds).unwrap_or(i64::MAX);
        let message = v1::StopContainerRequest { container_id: id.to_owned(), timeout };
        let result = self.runtime.clone().stop_container(timed(message, TIMEOUT + grace)).await;
        self.answer("stop_container", begun, result, |_| ())
    }

    /// Changes a container's limits while it runs.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn update_resources(
        &self,
        id: &str,
        linux: v1::LinuxContainerResources,
    ) -> Result<(), CallError> {
        let begun = Instant::now();
        let message = v1::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(linux),
            ..Default::default()
        };
        let result = self.runtime.clone().update_container_resources(timed(message, TIMEOUT)).await;
        self.answer("update_container_resources", begun, result, |_| ()).result
    }

    /// Removes a container.
    pub async fn remove_container(&self, id: &str) -> Answer<()> {
        let begun = Instant::now();
        let message = v1::RemoveContainerRequest { container_id: id.to_owned() };
        let result = self.runtime.clone().remove_container(timed(message, TIMEOUT)).await;
        self.answer("remove_container", begun, result, |_| ())
    }

    /// Runs a command in a container to its end, for at most `timeout` (whole seconds) if there is one.
    ///
    /// # Errors
    /// [`CallError`], with `DeadlineExceeded` for one that did not end in time.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Option<Duration>,
    ) -> Result<v1::ExecSyncResponse, CallError> {
        let begun = Instant::now();
        let seconds = timeout.map_or(0, |t| i64::try_from(t.as_secs().max(1)).unwrap_or(i64::MAX));
        let message =
            v1::ExecSyncRequest { container_id: id.to_owned(), cmd: command.to_vec(), timeout: seconds };
        let mut request = Request::new(message);
        if let Some(timeout) = timeout {
            request.set_timeout(TIMEOUT + timeout);
        }
        let result = self.runtime.clone().exec_sync(request).await;
        self.answer("exec_sync", begun, result, |r| r).result
    }

    /// The image of a reference, if it is there.
    pub async fn image_status(&self, image: &str) -> Answer<Option<v1::Image>> {
        let begun = Instant::now();
        let spec = v1::ImageSpec { image: image.to_owned(), ..Default::default() };
        let message = v1::ImageStatusRequest { image: Some(spec), verbose: false };
        let result = self.image.clone().image_status(timed(message, TIMEOUT)).await;
        self.answer("image_status", begun, result, |r| r.image)
    }

    /// Pulls an image; the reference that it then has. No deadline: the runtime ends a stalled pull.
    pub async fn pull_image(&self, image: &str, auth: Option<v1::AuthConfig>) -> Answer<String> {
        let begun = Instant::now();
        let spec = v1::ImageSpec {
            image: image.to_owned(),
            user_specified_image: image.to_owned(),
            ..Default::default()
        };
        let message = v1::PullImageRequest { image: Some(spec), auth, sandbox_config: None };
        let result = self.image.clone().pull_image(Request::new(message)).await;
        self.answer("pull_image", begun, result, |r| r.image_ref)
    }

    /// Every pod that the runtime holds something of.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn pods(&self) -> Result<Vec<Found>, CallError> {
        let (sandboxes, containers) = self.holding().await?;
        let labels = sandboxes.into_iter().map(|s| s.labels).chain(containers.into_iter().map(|c| c.labels));
        let mut seen = BTreeSet::new();
        let found = labels.filter_map(|mut l| {
            let uid = l.remove(cri_config::POD_UID)?;
            seen.insert(uid.clone()).then(|| Found {
                uid,
                namespace: l.remove(cri_config::POD_NAMESPACE).unwrap_or_default(),
                name: l.remove(cri_config::POD_NAME).unwrap_or_default(),
            })
        });
        Ok(found.collect())
    }

    /// What the runtime holds of the pod `uid`. `ended` keeps what can no longer change between calls.
    ///
    /// # Errors
    /// [`CallError`]; what vanishes between two calls is simply not there.
    pub async fn observe(
        &self,
        uid: &str,
        ended: &mut HashMap<String, Instance>,
    ) -> Result<Observed, CallError> {
        let selector = HashMap::from([(cri_config::POD_UID.to_owned(), uid.to_owned())]);
        let filter = v1::PodSandboxFilter { label_selector: selector.clone(), ..Default::default() };
        let begun = Instant::now();
        let request = timed(v1::ListPodSandboxRequest { filter: Some(filter) }, TIMEOUT);
        let result = self.runtime.clone().list_pod_sandbox(request).await;
        let sandboxes = self.answer("list_podsandbox", begun, result, |r| r.items).result?;
        let filter = v1::ContainerFilter { label_selector: selector, ..Default::default() };
        let begun = Instant::now();
        let request = timed(v1::ListContainersRequest { filter: Some(filter) }, TIMEOUT);
        let result = self.runtime.clone().list_containers(request).await;
        let containers = self.answer("list_containers", begun, result, |r| r.containers).result?;
        let mut observed = Observed::default();
        for item in sandboxes {
            observed.sandboxes.extend(self.sandbox(&item.id).await?);
        }
        for item in containers {
            if let Some(known) = ended.get(&item.id) {
                observed.containers.push(known.clone());
                continue;
            }
            let Some(instance) = self.instance(&item.id, &item.pod_sandbox_id).await? else { continue };
            if matches!(instance.state, State::Exited { .. }) {
                ended.insert(item.id, instance.clone());
            }
            observed.containers.push(instance);
        }
        ended.retain(|id, _| observed.containers.iter().any(|c| c.id == *id));
        Ok(observed)
    }

    /// A sandbox; `None` for one that is not there.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn sandbox(&self, id: &str) -> Result<Option<Sandbox>, CallError> {
        Ok(self.sandbox_status(id, false).await?.0.as_ref().and_then(observe::sandbox))
    }

    /// A container of `sandbox`; `None` for one that is not there.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn instance(&self, id: &str, sandbox: &str) -> Result<Option<Instance>, CallError> {
        let status = self.container_status(id, false).await?.0;
        Ok(status.as_ref().and_then(|status| instance_of(status, sandbox)))
    }

    /// The runtime's records of what it holds of a pod, for an agent that was not there.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn records(&self, observed: &Observed) -> Result<Vec<Record>, CallError> {
        let mut all = Vec::new();
        for sandbox in &observed.sandboxes {
            all.extend(self.sandbox_status(&sandbox.id, true).await?.1);
        }
        for container in &observed.containers {
            all.extend(self.container_status(&container.id, true).await?.1);
        }
        Ok(all)
    }

    async fn sandbox_status(
        &self,
        id: &str,
        verbose: bool,
    ) -> Result<(Option<v1::PodSandboxStatus>, Vec<Record>), CallError> {
        let begun = Instant::now();
        let message = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose };
        let result = self.runtime.clone().pod_sandbox_status(timed(message, TIMEOUT)).await;
        there(self.answer("podsandbox_status", begun, result, |r| (r.status, told(&r.info))))
    }

    async fn container_status(
        &self,
        id: &str,
        verbose: bool,
    ) -> Result<(Option<v1::ContainerStatus>, Vec<Record>), CallError> {
        let begun = Instant::now();
        let message = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose };
        let result = self.runtime.clone().container_status(timed(message, TIMEOUT)).await;
        there(self.answer("container_status", begun, result, |r| (r.status, told(&r.info))))
    }

    /// The stream of container events; a runtime without it says `Unimplemented`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn events(&self) -> Result<tonic::Streaming<v1::ContainerEventResponse>, CallError> {
        let begun = Instant::now();
        let result = self.runtime.clone().get_container_events(v1::GetEventsRequest {}).await;
        self.answer("get_container_events", begun, result, |s| s).result
    }
}

fn there<T>(answer: Answer<(Option<T>, Vec<Record>)>) -> Result<(Option<T>, Vec<Record>), CallError> {
    match answer.result {
        Err(e) if e.code == Code::NotFound => Ok((None, Vec::new())),
        other => other,
    }
}

/// What an event tells of a pod: its sandbox and that one's containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The pod's UID.
    pub uid: String,
    /// The sandbox.
    pub sandbox: Sandbox,
    /// Its containers.
    pub containers: Vec<Instance>,
}

/// What an event tells; `None` when it must be asked for.
#[must_use]
pub fn event(event: &v1::ContainerEventResponse) -> Option<Told> {
    let status = event.pod_sandbox_status.as_ref()?;
    let about = |s: &v1::ContainerStatus| s.id == event.container_id;
    // A runtime that sends no statuses, or only others', has told nothing.
    event.containers_statuses.iter().any(about).then_some(())?;
    Some(Told {
        uid: status.metadata.as_ref()?.uid.clone(),
        sandbox: observe::sandbox(status)?,
        containers: event.containers_statuses.iter().filter_map(|s| instance_of(s, &status.id)).collect(),
    })
}

/// A container from its status, with its last words.
fn instance_of(status: &v1::ContainerStatus, sandbox: &str) -> Option<Instance> {
    let mut instance = observe::instance(status, sandbox)?;
    if let State::Exited { message, code, .. } = &mut instance.state
        && let Some(words) = last_words(status, *code)
    {
        *message = words;
    }
    Some(instance)
}

fn told(info: &HashMap<String, String>) -> Vec<Record> {
    // Another runtime may use the key for something else: then there are no records.
    info.get(wire::INFO_KEY).and_then(|text| wire::decode(text.as_bytes()).ok()).unwrap_or_default()
}

/// What a container left in its termination message file, else the end of its log where it asked for
/// that; `None` leaves the runtime's own message.
fn last_words(status: &v1::ContainerStatus, code: i32) -> Option<String> {
    let path = status.annotations.get(cri_config::MESSAGE_PATH)?;
    let mount = status.mounts.iter().find(|m| m.container_path == *path)?;
    let text = head(&mount.host_path).unwrap_or_default();
    let from_log = status.annotations.get(cri_config::MESSAGE_POLICY).map(String::as_str)
        == Some("FallbackToLogsOnError");
    let text = if text.is_empty() && code != 0 && from_log { tail(&status.log_path) } else { Some(text) };
    text.filter(|t| !t.is_empty())
}

fn open(path: &str) -> std::io::Result<std::fs::File> {
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    std::fs::OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

fn head(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    open(path).ok()?.take(MESSAGE_LIMIT).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last 80 lines, 2048 bytes at most, of a log in CRI format.
fn tail(path: &str) -> Option<String> {
    use std::io::{Seek as _, SeekFrom};
    let mut file = open(path).ok()?;
    let length = file.metadata().ok()?.len();
    // Each line has a time, a stream and a tag in front of it.
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL * 4))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL * 4).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(4, ' ').skip(2);
            Some((fields.next()?, fields.next()?))
        })
        .collect();
    let skip = lines.len().saturating_sub(80);
    lines.drain(..skip);
    // A part of a line (`P`) has no end of its own.
    let end = |tag: &str| if tag == "P" { "" } else { "\n" };
    let joined: String = lines.iter().map(|(tag, text)| format!("{text}{}", end(tag))).collect();
    let mut from = joined.len().saturating_sub(usize::try_from(LOG_TAIL).unwrap_or(usize::MAX));
    while !joined.is_char_boundary(from) {
        from += 1;
    }
    Some(joined[from..].to_owned())
}

mod usage;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_come_from_the_file_or_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (dir.path().join("m"), dir.path().join("l"));
        std::fs::write(&file, "").unwrap();
        std::fs::write(&log, "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stderr F two\n")
            .unwrap();
        let mut status = v1::ContainerStatus {
            log_path: log.display().to_string(),
            mounts: vec![v1::Mount {
                container_path: "/dev/termination-log".into(),
                host_path: file.display().to_string(),
                ..Default::default()
            }],
            ..Default::default()
        };
        status.annotations.insert(cri_config::MESSAGE_PATH.into(), "/dev/termination-log".into());
        assert_eq!(last_words(&status, 1), None);
        status.annotations.insert(cri_config::MESSAGE_POLICY.into(), "FallbackToLogsOnError".into());
        assert_eq!(last_words(&status, 1).as_deref(), Some("one\ntwo\n"));
        assert_eq!(last_words(&status, 0), None);
        std::fs::write(&log, "2026-01-01T00:00:00Z stdout P DO\n2026-01-01T00:00:00Z stdout P NE\n").unwrap();
        assert_eq!(last_words(&status, 1).as_deref(), Some("DONE"), "what was printed without an end");
        std::fs::write(&file, "bye").unwrap();
        assert_eq!(last_words(&status, 0).as_deref(), Some("bye"));
    }
}
