//! Configuration of the agent; the names are the kubelet's flags in snake case.

use crate::gc::collect::ImagePolicy;
use crate::gc::logs;
use crate::node::pressure::Thresholds;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::path::PathBuf;

/// What `podway agent` is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--node-name`: the Node that this agent owns; its credential must be `system:node:<name>`.
    pub node_name: String,
    /// `--container-runtime-endpoint`: `unix:///path` of a CRI v1 server.
    pub container_runtime_endpoint: String,
    /// `--root-dir`: pod volumes and the agent's own state (`/var/lib/kubelet` of a kubelet).
    pub root_dir: PathBuf,
    /// Where container logs go: `<pod_logs_dir>/<ns>_<name>_<uid>/<container>/<n>.log`.
    pub pod_logs_dir: PathBuf,
    /// `--cgroup-root`: the cgroup under which `kubepods` lies, `/` for the root.
    pub cgroup_root: String,
    /// `--cluster-dns`: name servers of pods with `dnsPolicy: ClusterFirst`; empty: the host's.
    pub cluster_dns: Vec<IpAddr>,
    /// `--cluster-domain`.
    pub cluster_domain: String,
    /// `--resolv-conf`: the host's resolver file.
    pub resolv_conf: PathBuf,
    /// `--node-ip`; empty: found from the default route.
    pub node_ip: Vec<IpAddr>,
    /// `--address`: where the kubelet API listens.
    pub address: IpAddr,
    /// `--port`: of the kubelet API.
    pub port: u16,
    /// `--max-pods`.
    pub max_pods: u32,
    /// `--node-labels`.
    pub node_labels: std::collections::BTreeMap<String, String>,
    /// `--client-ca-file`: signs the clients of the kubelet API.
    pub client_ca_file: Option<PathBuf>,
    /// `--tls-cert-file`: of the kubelet API; made by the agent when absent.
    pub tls_cert_file: Option<PathBuf>,
    /// `--tls-private-key-file`.
    pub tls_private_key_file: Option<PathBuf>,
    /// The API server's audit log, from which steps 1 to 3 of a flow are read; absent: coarse times.
    pub audit_log: Option<PathBuf>,
    /// Whether `PodFlow` objects are written.
    pub podflow: bool,
    /// `evictionHard`: below what a resource of the node is reported as short.
    pub thresholds: Thresholds,
    /// `containerLogMaxSize` and `containerLogMaxFiles`.
    pub container_logs: logs::Policy,
    /// `imageGCHighThresholdPercent` and its kin.
    pub image_gc: ImagePolicy,
}

impl Config {
    /// As `/configz` shows it: a `KubeletConfiguration`, the fields that the agent heeds.
    #[must_use]
    pub fn configz(&self) -> Value {
        let percent = |part: f64| format!("{}%", part * 100.0);
        let t = &self.thresholds;
        let mut hard = json!({
            "memory.available": format!("{}", t.memory),
            "nodefs.available": percent(t.nodefs),
            "nodefs.inodesFree": percent(t.nodefs_inodes),
            "imagefs.available": percent(t.imagefs),
            "imagefs.inodesFree": percent(t.imagefs_inodes),
        });
        if let Some(part) = t.pids {
            hard["pid.available"] = json!(percent(part));
        }
        let ca = self.client_ca_file.as_ref();
        json!({
            "address": self.address,
            "port": self.port,
            "tlsCertFile": self.tls_cert_file,
            "tlsPrivateKeyFile": self.tls_private_key_file,
            "authentication": {
                "x509": ca.map_or_else(|| json!({}), |file| json!({"clientCAFile": file})),
                "webhook": {"enabled": true},
                "anonymous": {"enabled": false},
            },
            "authorization": {"mode": "Webhook"},
            "clusterDNS": self.cluster_dns,
            "clusterDomain": self.cluster_domain,
            "cgroupRoot": self.cgroup_root,
            "cgroupDriver": "cgroupfs",
            "resolvConf": self.resolv_conf,
            "maxPods": self.max_pods,
            "podLogsDir": self.pod_logs_dir,
            "containerRuntimeEndpoint": self.container_runtime_endpoint,
            "evictionHard": hard,
            "evictionPressureTransitionPeriod": format!("{}s", t.transition.as_secs()),
            "containerLogMaxSize": self.container_logs.max_size.to_string(),
            "containerLogMaxFiles": self.container_logs.max_files,
            "imageGCHighThresholdPercent": self.image_gc.high,
            "imageGCLowThresholdPercent": self.image_gc.low,
            "imageMinimumGCAge": format!("{}s", self.image_gc.min_age.as_secs()),
            "imageMaximumGCAge": format!("{}s", self.image_gc.max_age.unwrap_or_default().as_secs()),
        })
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            node_name: String::new(),
            container_runtime_endpoint: "unix:///run/podway/runtime.sock".to_owned(),
            root_dir: PathBuf::from("/var/lib/podway/agent"),
            pod_logs_dir: PathBuf::from("/var/log/pods"),
            cgroup_root: "/".to_owned(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            node_ip: Vec::new(),
            address: IpAddr::from([0, 0, 0, 0]),
            port: 10250,
            max_pods: 110,
            node_labels: std::collections::BTreeMap::new(),
            client_ca_file: None,
            tls_cert_file: None,
            tls_private_key_file: None,
            audit_log: None,
            podflow: true,
            thresholds: Thresholds::default(),
            container_logs: logs::Policy::default(),
            image_gc: ImagePolicy::default(),
        }
    }
}
