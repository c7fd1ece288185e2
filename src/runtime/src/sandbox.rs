//! A sandbox' life: journalled → namespaces pinned → network configured → monitor runs → ready.
//!
//! Creation is a chain of structs, each consuming the last; what fails undoes what stands before
//! it. Stop and Remove may be repeated and work with any part missing.

use crate::cgroup;
use crate::cni::{Attachment, Network};
use crate::error::OpError;
use crate::ids::Id;
use crate::journal::private_dir;
use crate::state::{Runtime, Sandbox};
use crate::{container, netns, rootfs, supervisor};
use nix::mount::{MsFlags, mount};
use podway_cri::Message as _;
use podway_cri::v1::{NamespaceMode, NamespaceOption, PodSandboxConfig, Protocol};
use podway_flow::{Phase, Recorder};
use podway_monitor::Request;
use std::sync::Arc;

/// A sandbox' configuration, read back from its entry.
///
/// # Errors
/// [`OpError::Precondition`] when the entry was damaged.
pub fn config_of(sandbox: &Sandbox) -> Result<PodSandboxConfig, OpError> {
    let bytes = hex::decode(&sandbox.config).unwrap_or_default();
    PodSandboxConfig::decode(bytes.as_slice())
        .map_err(|e| OpError::Precondition(format!("the sandbox' journal entry is damaged: {e}")))
}

/// The namespace options of a sandbox.
#[must_use]
pub fn options(config: &PodSandboxConfig) -> NamespaceOption {
    let context = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    context.and_then(|c| c.namespace_options.clone()).unwrap_or_default()
}

struct Journalled<'a> {
    runtime: &'a Runtime,
    id: Id,
    entry: Sandbox,
    config: PodSandboxConfig,
}

struct Pinned<'a>(Journalled<'a>);

struct Networked<'a>(Journalled<'a>);

/// Makes a sandbox.
///
/// # Errors
/// [`OpError`]; everything that was made for it is undone.
pub async fn run(
    runtime: &Arc<Runtime>,
    config: PodSandboxConfig,
    handler: String,
    recorder: &Recorder,
) -> Result<Id, OpError> {
    let id = Id::random().map_err(|e| OpError::Io("draw an id", e))?;
    let result = async {
        let journalled = Journalled::begin(runtime, id.clone(), config, handler)?;
        let pinned = journalled.pin(recorder).await?;
        let networked = pinned.connect(recorder).await?;
        networked.supervise(recorder).await
    }
    .await;
    if let Err(error) = result {
        if let Err(undo) = remove(runtime, &id).await {
            // Its entry stays, not ready: the agent's Stop and Remove, or a restart, try again.
            tracing::error!(sandbox = %id, error = undo.chain(), "a failed sandbox was not wholly undone");
        }
        return Err(error);
    }
    Ok(id)
}

impl<'a> Journalled<'a> {
    fn begin(
        runtime: &'a Arc<Runtime>,
        id: Id,
        config: PodSandboxConfig,
        handler: String,
    ) -> Result<Self, OpError> {
        let meta = config.metadata.clone().unwrap_or_default();
        if meta.name.is_empty() || meta.namespace.is_empty() || meta.uid.is_empty() {
            return Err(OpError::Invalid("metadata needs name, namespace and uid".to_owned()));
        }
        if [&meta.name, &meta.namespace, &meta.uid].iter().any(|v| v.contains([';', '=', '\n', '\0'])) {
            return Err(OpError::Invalid("metadata holds a character that no pod name has".to_owned()));
        }
        if !handler.is_empty() && handler != "runc" {
            return Err(OpError::Invalid(format!(
                "not supported: runtime handler {handler:?}; give runc or none"
            )));
        }
        let asked = config.linux.as_ref().map_or("", |l| l.cgroup_parent.as_str());
        let parent = cgroup::parent(asked, &runtime.config.cgroup_parent)
            .map_err(|e| OpError::Invalid(e.to_string()))?;
        let cgroup = if asked.is_empty() { format!("{parent}/{id}") } else { parent };
        let entry = Sandbox {
            config: hex::encode(config.encode_to_vec()),
            created_at: runtime.now_ns(),
            ready: false,
            host_network: options(&config).network == NamespaceMode::Node as i32,
            ips: Vec::new(),
            cni: None,
            cgroup,
            records: Vec::new(),
            handler,
        };
        runtime.put_sandbox(&id, entry.clone())?;
        Ok(Journalled { runtime, id, entry, config })
    }

    async fn pin(self, recorder: &Recorder) -> Result<Pinned<'a>, OpError> {
        let mut span = recorder.begin(Phase::SandboxCreated);
        span.note("sandboxId", &self.id).note("cgroupParent", &self.entry.cgroup);
        let asked = options(&self.config);
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
        };
        let result = match netns::create(wanted).await {
            Ok(()) => self.files(),
            Err(e) => Err(e.into()),
        };
        if let Err(error) = result {
            span.fail("SandboxFailed", &error.chain());
            return Err(error);
        }
        for kind in ["net", "ipc", "uts"] {
            use std::os::unix::fs::MetadataExt as _;
            if let Ok(meta) = std::fs::metadata(dir.join(kind)) {
                span.note(&format!("{kind}Namespace"), meta.ino());
            }
        }
        span.succeed("Created");
        Ok(Pinned(self))
    }

    fn hostname(&self) -> String {
        let name = &self.config.metadata.clone().unwrap_or_default().name;
        if self.config.hostname.is_empty() { name.clone() } else { self.config.hostname.clone() }
    }

    /// resolv.conf, hostname and shm, bound into every container.
    fn files(&self) -> Result<(), OpError> {
        let io = |what| move |e| OpError::Io(what, e);
        let dir = self.runtime.sandbox_dir(&self.id);
        private_dir(&dir).map_err(io("make the sandbox' directory"))?;
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
            let shm = dir.join("shm");
            private_dir(&shm).map_err(io("make the sandbox' shm"))?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
            mount(Some("shm"), &shm, Some("tmpfs"), flags, Some("mode=1777,size=65536k"))
                .map_err(|e| OpError::Io("mount the sandbox' shm", e.into()))?;
        }
        Ok(())
    }
}

impl<'a> Pinned<'a> {
    async fn connect(self, recorder: &Recorder) -> Result<Networked<'a>, OpError> {
        let Pinned(mut step) = self;
        let mut span = recorder.begin(Phase::NetworkConfigured);
        if step.entry.host_network {
            span.skip("HostNetwork");
            return Ok(Networked(step));
        }
        // The intent: from here on a DEL is owed, whatever becomes of the ADD.
        step.entry.cni = Some(serde_json::Value::Null);
        step.runtime.put_sandbox(&step.id, step.entry.clone())?;
        let attachment = attachment(step.runtime, &step.id, &step.config);
        let added = match Network::load(&step.runtime.config.cni.conf_dir) {
            Ok(network) => network.add(&step.runtime.config.cni.bin_dirs, &attachment).await,
            Err(e) => Err(e),
        };
        let added = match added {
            Ok(added) => added,
            Err(error) => {
                let error = OpError::from(error);
                span.fail("NetworkFailed", &error.chain());
                return Err(error);
            }
        };
        span.note("ips", added.ips.join(","));
        for timing in &added.timings {
            span.note(&format!("cni.{}.micros", timing.plugin), timing.micros);
        }
        span.succeed("Configured");
        step.entry.ips = added.ips;
        step.entry.cni = Some(added.result);
        Ok(Networked(step))
    }
}

impl Networked<'_> {
    async fn supervise(self, recorder: &Recorder) -> Result<(), OpError> {
        let Networked(mut step) = self;
        let socket = step.runtime.monitor_socket(&step.id);
        let dir = step.runtime.sandbox_dir(&step.id).join("monitor");
        supervisor::start(step.runtime.config.monitor.path.clone(), socket, dir).await?;
        step.entry.ready = true;
        step.entry.records = recorder.snapshot();
        step.runtime.put_sandbox(&step.id, step.entry)?;
        Ok(())
    }
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
        netns: pin.exists().then_some(pin),
        pod: (meta.name, meta.namespace, meta.uid),
        port_mappings: ports.collect(),
    }
}

/// Stops a sandbox: containers killed, network given back. May be repeated; an unknown one is stopped.
///
/// # Errors
/// [`OpError`]; what is left stays journalled.
pub async fn stop(runtime: &Arc<Runtime>, id: &Id) -> Result<(), OpError> {
    let Some(mut entry) = runtime.sandbox(id) else { return Ok(()) };
    for (cid, c) in runtime.containers() {
        if c.sandbox == *id {
            container::stop(runtime, &cid, 0).await?;
        }
    }
    if let Some(cached) = &entry.cni {
        let config = config_of(&entry)?;
        let cached = Some(cached).filter(|v| !v.is_null());
        match Network::load(&runtime.config.cni.conf_dir) {
            Ok(network) => {
                network.del(&runtime.config.cni.bin_dirs, &attachment(runtime, id, &config), cached).await?;
            }
            // Without a configuration nothing was added, unless a result says so.
            Err(e) if cached.is_some() => return Err(e.into()),
            Err(_) => {}
        }
    }
    entry.cni = None;
    entry.ready = false;
    runtime.put_sandbox(id, entry)?;
    netns::remove(&runtime.namespaces(id)).map_err(|e| OpError::Io("unpin the namespaces", e))
}

/// Removes a sandbox and its containers. May be repeated.
///
/// # Errors
/// [`OpError`]; what is left stays journalled.
pub async fn remove(runtime: &Arc<Runtime>, id: &Id) -> Result<(), OpError> {
    let Some(entry) = runtime.sandbox(id) else { return Ok(()) };
    stop(runtime, id).await?;
    for (cid, c) in runtime.containers() {
        if c.sandbox == *id {
            container::remove(runtime, &cid).await?;
        }
    }
    let socket = runtime.monitor_socket(id);
    match supervisor::call(&socket, Request::Shutdown).await {
        Err(error) if !supervisor::is_gone(&error) => return Err(error.into()),
        _ => {}
    }
    match std::fs::remove_file(&socket) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(OpError::Io("remove the monitor's socket", e));
        }
        _ => {}
    }
    let dir = runtime.sandbox_dir(id);
    rootfs::unmount(&dir.join("shm")).map_err(|e| OpError::Io("unmount the sandbox' shm", e))?;
    rootfs::remove_tree(&dir).map_err(|e| OpError::Io("remove the sandbox' directory", e))?;
    if entry.cgroup.ends_with(id.as_str()) {
        runtime.cgroups.remove(&entry.cgroup).map_err(|e| OpError::Io("remove the sandbox' cgroup", e))?;
    }
    runtime.forget_sandbox(id)?;
    Ok(())
}
