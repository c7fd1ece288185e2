//! The command lines of podway's own daemons, and the files that they read.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::layout::Layout;
use crate::network::NodeNetwork;
use crate::own;
use crate::process::Daemon;
use crate::registry;
use crate::state::{StateError, io_at, private_dir, write_private};

/// The name of the scheduler's daemon and of its identity.
pub const SCHEDULER: &str = "podway-scheduler";

/// The user that the scheduler is.
pub const SCHEDULER_USER: &str = "system:podway-scheduler";

/// The scheduler under its own identity, with health and metrics on a loopback port; with
/// `default` it has the pods that name no scheduler as well.
pub fn scheduler(podway: &Path, layout: &Layout, port: u16, default: bool) -> Daemon {
    let kubeconfig = layout.kubeconfig(SCHEDULER).display().to_string();
    let serve = format!("127.0.0.1:{port}");
    // There is one. Were it to wait for the lease of one that was killed, the next `up` would, too.
    let alone = "--leader-elect=false";
    let mut args = vec!["--kubeconfig", &kubeconfig, "--metrics-bind-address", &serve, alone];
    if default {
        args.extend(["--scheduler-name", "podway", "--scheduler-name", "default-scheduler"]);
    }
    Daemon::new(SCHEDULER, own::beside(podway, own::SCHEDULER), args.into_iter().map(str::to_owned).collect())
}

/// The port of a runtime's metrics, on its node's address.
pub const RUNTIME_METRICS: u16 = 10252;

/// One node: its place in the network and in the state directory.
#[derive(Debug, Clone)]
pub struct NodeParts {
    /// Its network.
    pub network: NodeNetwork,
    /// Its directory.
    dir: PathBuf,
}

/// What all nodes share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The `podway` binary, with [the others](crate::own) beside it.
    pub podway: PathBuf,
    /// runc.
    pub runc: PathBuf,
    /// The directory of the CNI plugins.
    pub cni: PathBuf,
    /// Whom pods ask for names.
    pub cluster_dns: Option<Ipv4Addr>,
    /// The registry that is asked first, `host:port`.
    pub registry: String,
    /// Whether that one answers for every registry.
    pub registry_only: bool,
    /// Whether the API server's audit log is at hand.
    pub audit: bool,
    /// Whether our scheduler has the pods that name none.
    pub default_scheduler: bool,
    /// Whether systemd manages the nodes' cgroups.
    pub systemd: bool,
}

impl NodeParts {
    /// The node at `network` in a state directory.
    pub fn new(layout: &Layout, network: NodeNetwork) -> Self {
        Self { dir: layout.node(&network.name()), network }
    }

    /// The name of its serving certificate.
    pub fn serving(&self) -> String {
        format!("{}-serving", self.network.name())
    }

    /// The CRI socket.
    pub fn socket(&self) -> PathBuf {
        self.network.run_dir().join("runtime.sock")
    }

    /// The name of its runtime's daemon.
    pub fn runtime_name(&self) -> String {
        format!("{}-runtime", self.network.name())
    }

    /// The name of its agent's daemon.
    pub fn agent_name(&self) -> String {
        format!("{}-agent", self.network.name())
    }

    /// Writes the runtime's files and gives its command line.
    pub fn runtime(&self, shared: &Shared) -> Result<Daemon, StateError> {
        let dir = &self.dir;
        let (hosts, conf_dir) = (dir.join("hosts"), dir.join("cni"));
        private_dir(dir)?;
        private_dir(&conf_dir)?;
        let run_dir = self.network.run_dir();
        private_dir(&run_dir)?;
        // The root of a pod with ids of its own is nobody on the way to its root file system: it may pass.
        for passed in run_dir.ancestors().take(2) {
            fs::set_permissions(passed, fs::Permissions::from_mode(0o711)).map_err(io_at("open", passed))?;
        }
        registry::write_hosts(&hosts, &shared.registry, shared.registry_only)?;
        let conflist = self.network.conflist(&dir.join("ipam"));
        write_json(&conf_dir.join("10-podway.conflist"), &conflist)?;
        // The paths are strings of TOML as they are of JSON.
        let text = |path: &Path| json!(path.display().to_string());
        // The agent asks the runtime who manages cgroups.
        let (driver, parent) = match shared.systemd {
            false => ("cgroupfs", self.network.cgroup()),
            true => ("systemd", self.network.slice()),
        };
        let config = format!(
            "# Written by podway up.\nlisten = {}\nroot = {}\nstate = {}\ncgroup_driver = {}\ncgroup_parent = {}\n\
             [registry]\nconfig_path = {}\n\
             [cni]\nbin_dirs = [{}]\nconf_dir = {}\n\
             [runc]\npath = {}\n[monitor]\npath = {}\n[metrics]\nlisten = {}\n",
            json!(format!("unix://{}", self.socket().display())),
            text(&dir.join("runtime")),
            text(&self.network.run_dir().join("state")),
            json!(driver),
            json!(parent),
            text(&hosts),
            text(&shared.cni),
            text(&conf_dir),
            text(&shared.runc),
            text(&own::beside(&shared.podway, own::MONITOR)),
            // On the bridge, which only this machine reaches.
            json!(format!("{}:{RUNTIME_METRICS}", self.network.address())),
        );
        let path = dir.join("runtime.toml");
        write_private(&path, config.as_bytes())?;
        let args = vec!["--config".to_owned(), path.display().to_string()];
        let mut daemon = Daemon::new(self.runtime_name(), own::beside(&shared.podway, own::RUNTIME), args);
        daemon.files.push(path);
        daemon.netns = Some(self.network.netns_path());
        Ok(daemon)
    }

    /// Writes the agent's files and gives its command line.
    pub fn agent(&self, shared: &Shared, layout: &Layout) -> Result<Daemon, StateError> {
        let (dir, name) = (&self.dir, self.network.name());
        let logs = dir.join("pod-logs");
        // Static pods of this node, for whoever puts a file there.
        let manifests = dir.join("manifests");
        for made in [dir, &logs, &dir.join("agent"), &manifests] {
            private_dir(made)?;
        }
        let serving = self.serving();
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.network.address(),
            "port": 10250,
            "tlsCertFile": layout.cert(&serving),
            "tlsPrivateKeyFile": layout.key(&serving),
            "authentication": {"x509": {"clientCAFile": layout.cert("ca")}},
            "clusterDomain": "cluster.local",
            "clusterDNS": shared.cluster_dns.as_slice(),
            "cgroupRoot": self.network.cgroup(),
            "podLogsDir": logs,
            "staticPodPath": manifests,
            // The disk is the user's own; how full it is says nothing about a cluster to try things
            // on. Memory stays guarded.
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "0%",
                "nodefs.inodesFree": "0%",
                "imagefs.available": "0%",
                "imagefs.inodesFree": "0%",
            },
        });
        let path = dir.join("agent.yaml");
        write_json(&path, &config)?;
        let mut args = Vec::new();
        let mut flag = |name: &str, value: String| args.extend([format!("--{name}"), value]);
        flag("kubeconfig", layout.kubeconfig(&name).display().to_string());
        flag("node-name", name);
        flag("node-ip", self.network.address().to_string());
        flag("container-runtime-endpoint", format!("unix://{}", self.socket().display()));
        flag("root-dir", dir.join("agent").display().to_string());
        flag("config", path.display().to_string());
        if shared.audit {
            flag("audit-log", layout.audit_log().display().to_string());
        }
        let mut daemon = Daemon::new(self.agent_name(), own::beside(&shared.podway, own::AGENT), args);
        daemon.files.push(path);
        daemon.netns = Some(self.network.netns_path());
        Ok(daemon)
    }

    /// Removes what is outside the state directory.
    pub(crate) fn remove_run_dir(&self) -> Result<(), StateError> {
        let dir = self.network.run_dir();
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io_at("remove", &dir)(e)),
            _ => {}
        }
        // The parent goes with the last node of the machine.
        if let Some(parent) = dir.parent() {
            match std::fs::remove_dir(parent) {
                Err(e)
                    if !matches!(
                        e.kind(),
                        std::io::ErrorKind::NotFound | std::io::ErrorKind::DirectoryNotEmpty
                    ) =>
                {
                    return Err(io_at("remove", parent)(e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Its directory in the state directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<(), StateError> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|source| StateError::Parse { path: path.display().to_string(), source })?;
    write_private(path, &text)
}
