//! A sandbox' life: journalled → namespaces pinned → network configured, beside it the monitor
//! started → ready.
//!
//! Creation is a chain of structs, each consuming the last; what fails undoes what stands before
//! it. Stop and Remove may be repeated and work with any part missing, the monitor included.

pub mod process1;
pub mod shm;

use crate::cgroup::driver;
use crate::cni::{Attachment, Network, Runner};
use crate::error::{Failure, OpError, blocking};
use crate::ids::Id;
use crate::journal::private_dir;
use crate::names::{Made, Name};
use crate::points::{self, Point};
use crate::state::{Attached, Life, Runtime, Sandbox};
use crate::status::{options, sandbox_config};
use crate::{container, follow, handlers, netns, podns, rootfs, spec, state, supervisor};
use futures::future::join_all;
use podway_cri::Message as _;
use podway_cri::v1::{LinuxContainerResources, NamespaceMode, PodSandboxConfig, Protocol};
use podway_flow::{Phase, Recorder, Span, Writer};
use podway_monitor::Request;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

struct Journalled {
    runtime: Arc<Runtime>,
    id: Id,
    entry: Sandbox,
    config: PodSandboxConfig,
}

struct Pinned(Journalled);

struct Networked(Journalled);

/// What a sandbox is asked for by.
///
/// # Errors
/// [`OpError::Invalid`] for metadata that names no pod.
pub fn name_of(config: &PodSandboxConfig) -> Result<Name, OpError> {
    let meta = config.metadata.clone().unwrap_or_default();
    if meta.name.is_empty() || meta.namespace.is_empty() || meta.uid.is_empty() {
        return Err(OpError::Invalid("metadata needs name, namespace and uid".to_owned()));
    }
    if [&meta.name, &meta.namespace, &meta.uid].iter().any(|v| v.contains([';', '=', '\n', '\0'])) {
        return Err(OpError::Invalid("metadata holds a character that no pod name has".to_owned()));
    }
    Ok(Name::Sandbox(meta.name, meta.namespace, meta.uid, meta.attempt))
}

/// Makes a sandbox, or joins its making, or finds it made.
///
/// # Errors
/// [`Failure`]; everything that was made for it is undone.
pub async fn run(runtime: &Arc<Runtime>, config: PodSandboxConfig, handler: String) -> Result<Made, Failure> {
    let recorder = Recorder::new(Writer::Runtime, runtime.clock);
    let name = name_of(&config).map_err(|e| Failure::new(&e, &recorder))?;
    let existing = || {
        let (id, entry) = runtime.sandbox_named(&name)?;
        Some(match entry.life {
            Life::Ready => Ok(Made { id, records: entry.records }),
            Life::Creating | Life::Stopped => Err(Failure::exists(format!(
                "sandbox {id} has this name and attempt and is not ready: remove it, or raise metadata.attempt"
            ))),
        })
    };
    let task = Arc::clone(runtime);
    let make = || make(task, name.clone(), config, handler, recorder);
    runtime.names.join(name.clone(), existing, make).await
}

async fn make(
    runtime: Arc<Runtime>,
    name: Name,
    config: PodSandboxConfig,
    handler: String,
    recorder: Recorder,
) -> Result<Made, Failure> {
    let uid = config.metadata.as_ref().map(|m| m.uid.clone()).unwrap_or_default();
    let id = Id::random().map_err(|e| Failure::new(&OpError::Io("draw an id", e), &recorder))?;
    let lock = runtime.locks.of(&id);
    let _alone = lock.write().await;
    let result = async {
        let journalled = Journalled::begin(Arc::clone(&runtime), id.clone(), name, config, handler).await?;
        // The monitor waits for nothing of the pod's. Both end, also badly, before anything is undone.
        let network = async { journalled.pin(&recorder).await?.connect(&recorder).await };
        let (networked, monitor) = tokio::join!(network, follow::ensure(&runtime, &id));
        let networked = networked?;
        monitor?;
        networked.ready(&recorder, &uid).await
    }
    .await;
    if let Err(error) = result {
        let failure = Failure::new(&error, &recorder);
        runtime.metrics.observe(&failure.records);
        runtime.remember_failed(&uid, &failure.records);
        if let Err(undo) = remove_alone(&runtime, &id).await {
            // Its entry stays, not ready: the agent's Stop and Remove, or a restart, try again.
            tracing::error!(sandbox = %id, error = undo.chain(), "a failed sandbox was not wholly undone");
        }
        return Err(failure);
    }
    let records = recorder.take();
    runtime.metrics.observe(&records);
    Ok(Made { id, records })
}

/// `attempt` in records counts from 1, in CRI's metadata from 0.
fn begin(recorder: &Recorder, phase: Phase, config: &PodSandboxConfig) -> Span {
    let mut span = recorder.begin(phase);
    span.attempt(config.metadata.as_ref().map_or(0, |m| m.attempt).saturating_add(1));
    span
}

impl Journalled {
    async fn begin(
        runtime: Arc<Runtime>,
        id: Id,
        name: Name,
        config: PodSandboxConfig,
        handler: String,
    ) -> Result<Self, OpError> {
        if runtime.handlers.get(&handler).is_none() {
            return Err(OpError::Invalid(state::unknown(&handler)));
        }
        spec::refuse_in_sandbox(&config, &runtime.features)?;
        shm::size(&config.annotations, &runtime.config.allowed_annotations)?;
        let userns = spec::mapping(&options(&config))?.is_some();
        if userns && !runtime.features.user_namespaces {
            return Err(spec::SpecError::NotSupported("user namespaces on this machine".to_owned()).into());
        }
        if userns && !matches!(handler.as_str(), "" | handlers::DEFAULT) {
            let what = format!("a user namespace with the runtime handler {handler}");
            return Err(spec::SpecError::NotSupported(what).into());
        }
        if userns && options(&config).network == NamespaceMode::Node as i32 {
            return Err(
                spec::SpecError::NotSupported("a user namespace on the host's network".to_owned()).into()
            );
        }
        let asked = config.linux.as_ref().map_or("", |l| l.cgroup_parent.as_str());
        let cgroup = driver::sandbox(runtime.config.cgroup_driver, asked, &runtime.config.cgroup_parent, &id)
            .map_err(|e| OpError::Invalid(e.to_string()))?;
        let entry = Sandbox {
            name,
            config: hex::encode(config.encode_to_vec()),
            created_at: runtime.now_ns(),
            life: Life::Creating,
            host_network: options(&config).network == NamespaceMode::Node as i32,
            ips: Vec::new(),
            attached: None,
            cgroup,
            records: Vec::new(),
            handler,
        };
        blocking(move || {
            runtime.put_sandbox(&id, entry.clone())?;
            points::at(Point::SandboxIntent);
            Ok(Journalled { runtime, id, entry, config })
        })
        .await
    }

    async fn pin(self, recorder: &Recorder) -> Result<Pinned, OpError> {
        let mut span = begin(recorder, Phase::SandboxCreated, &self.config);
        span.note("sandboxId", &self.id).note("cgroupParent", &self.entry.cgroup);
        let asked = options(&self.config);
        let user = spec::mapping(&asked)?;
        let dir = self.runtime.namespaces(&self.id);
        let wanted = netns::Wanted {
            dir: dir.clone(),
            net: !self.entry.host_network,
            ipc: asked.ipc != NamespaceMode::Node as i32,
            hostname: (!self.entry.host_network).then(|| self.hostname()),
            sysctls: self
                .config
                .linux
                .as_ref()
                .map(|l| l.sysctls.clone())
                .unwrap_or_default()
                .into_iter()
                .collect(),
            user,
            pid: asked.pid == NamespaceMode::Pod as i32,
            pod: self.runtime.sandbox_dir(&self.id),
            monitor: self.runtime.config.monitor.path.clone(),
            home: self.runtime.home.clone(),
        };
        let made = async {
            let shared = wanted.pid;
            netns::create(wanted).await?;
            if shared {
                process1::watch(&self.runtime, &self.id).map_err(|e| OpError::Io("watch process 1", e))?;
            }
            blocking(move || {
                self.files(user)?;
                use std::os::unix::fs::MetadataExt as _;
                let inode = |kind| Some((kind, std::fs::metadata(dir.join(kind)).ok()?.ino()));
                let inodes: Vec<_> =
                    ["net", "ipc", "uts", "pid", "user"].into_iter().filter_map(inode).collect();
                Ok((self, inodes))
            })
            .await
        };
        let (step, inodes) = match made.await {
            Ok(made) => made,
            Err(error) => {
                span.fail("SandboxFailed", &OpError::chain(&error));
                return Err(error);
            }
        };
        for (kind, inode) in inodes {
            span.note(&format!("{kind}Namespace"), inode);
        }
        span.succeed("Created");
        Ok(Pinned(step))
    }

    /// The pod's; the node's where none is asked for, as with containerd.
    fn hostname(&self) -> String {
        if !self.config.hostname.is_empty() {
            return self.config.hostname.clone();
        }
        nix::unistd::gethostname().map(|h| h.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The files belong to the pod's root, who must be able to pass to them.
    fn for_root_of(&self, dir: &Path, mapping: spec::Mapping) -> Result<(), OpError> {
        let io = |e| OpError::Io("give the sandbox' files to the pod's root", e);
        let sandboxes = self.runtime.config.state.join("sandboxes");
        for dir in [self.runtime.config.state.as_path(), &sandboxes, dir] {
            std::fs::set_permissions(dir, Permissions::from_mode(0o711)).map_err(io)?;
        }
        for file in ["hostname", "resolv.conf"].map(|f| dir.join(f)).iter().filter(|f| f.exists()) {
            std::os::unix::fs::chown(file, Some(mapping.host), Some(mapping.host)).map_err(io)?;
        }
        Ok(())
    }

    /// resolv.conf, hostname and shm, bound into every container.
    fn files(&self, user: Option<spec::Mapping>) -> Result<(), OpError> {
        let io = |what| move |e| OpError::Io(what, e);
        let dir = self.runtime.sandbox_dir(&self.id);
        private_dir(&dir).map_err(io("make the sandbox' directory"))?;
        points::at(Point::SandboxDirectory);
        std::fs::write(dir.join("hostname"), format!("{}\n", self.hostname()))
            .map_err(io("write hostname"))?;
        if let Some(dns) = &self.config.dns_config {
            let mut text = String::new();
            if dns.servers.iter().chain(&dns.searches).chain(&dns.options).any(|v| v.contains(['\n', '\0'])) {
                return Err(OpError::Invalid("dns_config holds a line break".to_owned()));
            }
            if !dns.searches.is_empty() {
                text.push_str(&format!("search {}\n", dns.searches.join(" ")));
            }
            for server in &dns.servers {
                text.push_str(&format!("nameserver {server}\n"));
            }
            if !dns.options.is_empty() {
                text.push_str(&format!("options {}\n", dns.options.join(" ")));
            }
            std::fs::write(dir.join("resolv.conf"), text).map_err(io("write resolv.conf"))?;
        }
        if options(&self.config).ipc != NamespaceMode::Node as i32 {
            let size = shm::size(&self.config.annotations, &self.runtime.config.allowed_annotations)?;
            shm::make(&dir, size, user.map_or(0, |m| m.host))?;
        }
        if let Some(mapping) = user {
            self.for_root_of(&dir, mapping)?;
        }
        Ok(())
    }
}

impl Pinned {
    async fn connect(self, recorder: &Recorder) -> Result<Networked, OpError> {
        let Pinned(mut step) = self;
        let mut span = begin(recorder, Phase::NetworkConfigured, &step.config);
        if step.entry.host_network {
            span.skip("HostNetwork");
            return Ok(Networked(step));
        }
        let intent = blocking(move || {
            let network = Network::load(&step.runtime.config.cni.conf_dir)?;
            network.installed(&step.runtime.config.cni.bin_dirs)?;
            // The intent: from here on a DEL is owed, whatever becomes of the ADD.
            step.entry.attached = Some(Attached { network: network.clone(), result: None });
            step.runtime.put_sandbox(&step.id, step.entry.clone())?;
            points::at(Point::NetworkIntent);
            Ok((step, network))
        });
        let added = async {
            let (step, network) = intent.await?;
            let attachment = attachment(&step.runtime, &step.id, &step.config);
            let added = network.add(runner(&step.runtime), &attachment).await?;
            points::at(Point::NetworkAdded);
            Ok::<_, OpError>((step, network, added))
        };
        let (mut step, network, added) = match added.await {
            Ok(added) => added,
            Err(error) => {
                span.fail("NetworkFailed", &error.chain());
                return Err(error);
            }
        };
        span.note("ips", added.ips.join(",")).note("network", &network.name);
        for timing in &added.timings {
            span.note(&format!("cni.{}.micros", timing.plugin), timing.micros);
        }
        span.succeed("Configured");
        step.entry.ips = added.ips;
        step.entry.attached = Some(Attached { network, result: Some(added.result) });
        Ok(Networked(step))
    }
}

impl Networked {
    async fn ready(self, recorder: &Recorder, uid: &str) -> Result<(), OpError> {
        let Networked(mut step) = self;
        step.entry.life = Life::Ready;
        step.entry.records = step.runtime.take_failed(uid);
        step.entry.records.extend(recorder.snapshot());
        blocking(move || Ok(step.runtime.put_sandbox(&step.id, step.entry)?)).await?;
        points::at(Point::SandboxReady);
        Ok(())
    }
}

fn runner(runtime: &Runtime) -> Runner<'_> {
    let cni = &runtime.config.cni;
    Runner { bin_dirs: &cni.bin_dirs, timeout: Duration::from_secs(cni.timeout_seconds) }
}

fn attachment(runtime: &Runtime, id: &Id, config: &PodSandboxConfig) -> Attachment {
    let meta = config.metadata.clone().unwrap_or_default();
    let pin = runtime.namespaces(id).join("net");
    let ports = config.port_mappings.iter().filter(|p| p.host_port > 0).map(|p| {
        let protocol = Protocol::try_from(p.protocol).unwrap_or(Protocol::Tcp).as_str_name().to_ascii_lowercase();
        serde_json::json!({
            "hostPort": p.host_port, "containerPort": p.container_port, "protocol": protocol, "hostIP": p.host_ip,
        })
    });
    Attachment {
        container_id: id.to_string(),
        netns: netns::pinned(&pin).then_some(pin),
        pod: (meta.name, meta.namespace, meta.uid),
        port_mappings: ports.collect(),
    }
}

/// Stops a sandbox: containers killed, network given back. May be repeated; an unknown one is stopped.
///
/// # Errors
/// [`OpError`]; what is left stays journalled.
pub async fn stop(runtime: &Arc<Runtime>, id: &Id) -> Result<(), OpError> {
    let lock = runtime.locks.of(id);
    let _alone = lock.write().await;
    stop_alone(runtime, id).await
}

async fn stop_alone(runtime: &Arc<Runtime>, id: &Id) -> Result<(), OpError> {
    let Some(entry) = runtime.sandbox(id) else { return Ok(()) };
    if entry.life == Life::Ready {
        let (state, of) = (Arc::clone(runtime), id.clone());
        blocking(move || {
            state.note_sandbox(&of, |s| s.life = Life::Stopped);
            Ok(())
        })
        .await?;
        points::at(Point::SandboxStopped);
    }
    let stops = runtime
        .containers_of(id)
        .into_iter()
        .map(|(cid, _)| async move { container::stop(runtime, &cid, 0).await });
    join_all(stops).await.into_iter().collect::<Result<(), _>>()?;
    points::at(Point::ContainersEnded);
    if let Some(attached) = &entry.attached {
        let attachment = attachment(runtime, id, &sandbox_config(&entry)?);
        attached.network.del(runner(runtime), &attachment, attached.result.as_ref()).await?;
        points::at(Point::NetworkDeleted);
    }
    let (state, id) = (Arc::clone(runtime), id.clone());
    blocking(move || {
        podns::end(&state.sandbox_dir(&id)).map_err(|e| OpError::Io("end the pod's process 1", e))?;
        netns::remove(&state.namespaces(&id)).map_err(|e| OpError::Io("unpin the namespaces", e))?;
        points::at(Point::NamespacesUnpinned);
        state.note_sandbox(&id, |s| s.attached = None);
        Ok(())
    })
    .await
}

/// Keeps the limits of a pod as they are now: they are applied to its cgroup by who made it.
///
/// # Errors
/// [`OpError`].
pub async fn update(
    runtime: &Arc<Runtime>,
    id: &Id,
    overhead: Option<LinuxContainerResources>,
    resources: Option<LinuxContainerResources>,
) -> Result<(), OpError> {
    let lock = runtime.locks.of(id);
    let _alone = lock.write().await;
    let entry = runtime.known_sandbox(id)?;
    let mut config = sandbox_config(&entry)?;
    let linux = config.linux.get_or_insert_default();
    linux.overhead = overhead.or(linux.overhead.take());
    linux.resources = resources.or(linux.resources.take());
    let (state, id, config) = (Arc::clone(runtime), id.clone(), hex::encode(config.encode_to_vec()));
    blocking(move || {
        state.update_sandbox(&id, |s| s.config = config)?;
        Ok(())
    })
    .await
}

/// Removes a sandbox and its containers. May be repeated.
///
/// # Errors
/// [`OpError`]; what is left stays journalled.
pub async fn remove(runtime: &Arc<Runtime>, id: &Id) -> Result<(), OpError> {
    let lock = runtime.locks.of(id);
    let _alone = lock.write().await;
    remove_alone(runtime, id).await
}

async fn remove_alone(runtime: &Arc<Runtime>, id: &Id) -> Result<(), OpError> {
    let Some(entry) = runtime.sandbox(id) else { return Ok(()) };
    stop_alone(runtime, id).await?;
    let removes = runtime
        .containers_of(id)
        .into_iter()
        .map(|(cid, _)| async move { container::remove(runtime, &cid).await });
    join_all(removes).await.into_iter().collect::<Result<(), _>>()?;
    points::at(Point::ContainersRemoved);
    let socket = runtime.monitor_socket(id);
    match supervisor::call(&socket, Request::Shutdown).await {
        Err(error) if !supervisor::is_gone(&error) => return Err(error.into()),
        _ => {}
    }
    points::at(Point::MonitorEnded);
    let own = entry.cgroup.trim_end_matches(".slice").ends_with(id.as_str());
    if own {
        runtime.units.end(&entry.cgroup).await?;
    }
    let (runtime, id) = (Arc::clone(runtime), id.clone());
    blocking(move || {
        rootfs::remove_file(&socket).map_err(|e| OpError::Io("remove the monitor's socket", e))?;
        let dir = runtime.sandbox_dir(&id);
        rootfs::unmount(&dir.join("shm")).map_err(|e| OpError::Io("unmount the sandbox' shm", e))?;
        points::at(Point::ShmUnmounted);
        rootfs::remove_tree(&dir).map_err(|e| OpError::Io("remove the sandbox' directory", e))?;
        if own {
            let removed = runtime.cgroups.remove_tree(&entry.cgroup);
            removed.map_err(|e| OpError::Io("remove the sandbox' cgroup", e))?;
        }
        points::at(Point::SandboxFilesGone);
        runtime.forget_sandbox(&id)?;
        points::at(Point::SandboxForgotten);
        Ok(())
    })
    .await
}
