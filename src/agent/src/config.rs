//! Configuration of the agent; the names are the kubelet's flags in snake case.

use crate::gc::collect::ImagePolicy;
use crate::gc::logs;
use crate::node::allocatable::Reservation;
use crate::node::pressure::Thresholds;
use crate::shutdown::periods::Periods;
use crate::traces::Tracing;
use podway_systemd::Driver;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

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
    /// `cgroupDriver`: who manages cgroups where the runtime does not say; once the agent runs, who does.
    pub cgroup_driver: Driver,
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
    /// `podPidsLimit`: the most processes and threads of a pod; none: as many as all pods together.
    pub pod_pids_limit: Option<u64>,
    /// `seccompDefault`: whether a container without a profile gets the runtime's own.
    pub seccomp_default: bool,
    /// `--node-labels`.
    pub node_labels: BTreeMap<String, String>,
    /// `registerWithTaints`: what the Node is created with; one that is there keeps its own.
    pub register_with_taints: Vec<k8s_openapi::api::core::v1::Taint>,
    /// `--client-ca-file`: signs the clients of the kubelet API.
    pub client_ca_file: Option<PathBuf>,
    /// `--tls-cert-file`: of the kubelet API; made by the agent when absent.
    pub tls_cert_file: Option<PathBuf>,
    /// `--tls-private-key-file`.
    pub tls_private_key_file: Option<PathBuf>,
    /// `--cert-dir`: where certificates that the cluster signed lie; `pki` below the root directory when absent.
    pub cert_dir: Option<PathBuf>,
    /// `rotateCertificates`: whether the client's certificate is renewed before it ends.
    pub rotate_certificates: bool,
    /// `serverTLSBootstrap`: whether the cluster signs the kubelet API's certificate.
    pub server_tls_bootstrap: bool,
    /// `--device-plugin-dir`: where device plugins register; `device-plugins` below the root directory when absent.
    pub device_plugin_dir: Option<PathBuf>,
    /// The API server's audit log, from which steps 1 to 3 of a flow are read; absent: coarse times.
    pub audit_log: Option<PathBuf>,
    /// `shutdownGracePeriod` or `shutdownGracePeriodByPodPriority`: what pods have when the machine is shut down.
    pub shutdown: Periods,
    /// Whether `PodFlow` objects are written.
    pub podflow: bool,
    /// `tracing`: where traces of starts go; none: nowhere.
    pub tracing: Option<Tracing>,
    /// `staticPodPath`: the directory whose files are pods.
    pub static_pod_path: Option<PathBuf>,
    /// `evictionHard`, `evictionSoft` and their kin: below what a resource of the node is short.
    pub thresholds: Thresholds,
    /// `kubeReserved`, `systemReserved` and `enforceNodeAllocatable`.
    pub reservation: Reservation,
    /// `containerLogMaxSize` and `containerLogMaxFiles`.
    pub container_logs: logs::Policy,
    /// `imageGCHighThresholdPercent` and its kin.
    pub image_gc: ImagePolicy,
}

impl Config {
    /// Where certificates that the cluster signed lie.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.cert_dir.clone().unwrap_or_else(|| self.root_dir.join("pki"))
    }

    /// Where device plugins register.
    #[must_use]
    pub fn device_plugins(&self) -> PathBuf {
        self.device_plugin_dir.clone().unwrap_or_else(|| self.root_dir.join("device-plugins"))
    }

    /// Where plugins tell of themselves. No flag moves it: where a driver mounts, below the root directory, is not
    /// its choice either.
    #[must_use]
    pub fn plugins_registry(&self) -> PathBuf {
        self.root_dir.join("plugins_registry")
    }

    /// As `/configz` shows it: a `KubeletConfiguration`, the fields that the agent heeds.
    #[must_use]
    pub fn configz(&self) -> Value {
        let t = &self.thresholds;
        let seconds = |of: Duration| format!("{}s", of.as_secs());
        type Shown = BTreeMap<&'static str, String>;
        let hard: Shown = t.hard().map(|t| (t.signal.name(), t.value.to_string())).collect();
        let soft: Shown = t.soft().map(|t| (t.signal.name(), t.value.to_string())).collect();
        let graces: Shown = t.soft().filter_map(|t| Some((t.signal.name(), seconds(t.grace?)))).collect();
        let reclaim = t.list.iter().filter_map(|t| Some((t.signal.name(), t.min_reclaim?.to_string())));
        let reclaim: Shown = reclaim.collect();
        let ca = self.client_ca_file.as_ref();
        json!({
            "address": self.address,
            "port": self.port,
            "tlsCertFile": self.tls_cert_file,
            "tlsPrivateKeyFile": self.tls_private_key_file,
            "rotateCertificates": self.rotate_certificates,
            "serverTLSBootstrap": self.server_tls_bootstrap,
            "authentication": {
                "x509": ca.map_or_else(|| json!({}), |file| json!({"clientCAFile": file})),
                "webhook": {"enabled": true},
                "anonymous": {"enabled": false},
            },
            "authorization": {"mode": "Webhook"},
            "clusterDNS": self.cluster_dns,
            "clusterDomain": self.cluster_domain,
            "cgroupRoot": self.cgroup_root,
            "cgroupDriver": self.cgroup_driver.name(),
            "resolvConf": self.resolv_conf,
            "maxPods": self.max_pods,
            "podPidsLimit": self.pod_pids_limit.map_or_else(|| json!(-1), |pids| json!(pids)),
            "seccompDefault": self.seccomp_default,
            "podLogsDir": self.pod_logs_dir,
            "staticPodPath": self.static_pod_path,
            "tracing": self.tracing.as_ref().map(|t| json!({
                "endpoint": t.endpoint,
                "samplingRatePerMillion": t.rate,
            })),
            "containerRuntimeEndpoint": self.container_runtime_endpoint,
            "kubeReserved": self.reservation.kube.shown(),
            "systemReserved": self.reservation.system.shown(),
            "enforceNodeAllocatable": self.reservation.enforced(),
            "systemReservedCgroup": self.reservation.system_held.as_ref().map(|held| &held.cgroup),
            "kubeReservedCgroup": self.reservation.kube_held.as_ref().map(|held| &held.cgroup),
            "evictionHard": hard,
            "evictionSoft": soft,
            "evictionSoftGracePeriod": graces,
            "evictionMinimumReclaim": reclaim,
            "evictionMaxPodGracePeriod": t.max_pod_grace.as_secs(),
            "evictionPressureTransitionPeriod": seconds(t.transition),
            "shutdownGracePeriodByPodPriority": self.shutdown.list().iter().map(|period| json!({
                "priority": period.priority,
                "shutdownGracePeriodSeconds": period.time.as_secs(),
            })).collect::<Vec<_>>(),
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
            cgroup_driver: Driver::default(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            node_ip: Vec::new(),
            address: IpAddr::from([0, 0, 0, 0]),
            port: 10250,
            max_pods: 110,
            pod_pids_limit: None,
            seccomp_default: false,
            node_labels: BTreeMap::new(),
            register_with_taints: Vec::new(),
            client_ca_file: None,
            tls_cert_file: None,
            tls_private_key_file: None,
            cert_dir: None,
            rotate_certificates: false,
            server_tls_bootstrap: false,
            device_plugin_dir: None,
            audit_log: None,
            shutdown: Periods::default(),
            podflow: true,
            tracing: None,
            static_pod_path: None,
            thresholds: Thresholds::default(),
            reservation: Reservation::default(),
            container_logs: logs::Policy::default(),
            image_gc: ImagePolicy::default(),
        }
    }
}
