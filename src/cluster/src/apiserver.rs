//! The command line of kube-apiserver, and its audit policy.

use std::net::Ipv4Addr;
use std::path::Path;

use crate::layout::Layout;
use crate::process::Daemon;

/// The name of the daemon.
pub const NAME: &str = "kube-apiserver";

/// The range of service addresses.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";

/// The address of the `kubernetes` service: the first of [`SERVICE_CIDR`].
pub const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// What is audited: who asked for what, and when, of every write and of every single read of a
/// pod; no bodies, so that no secret ends in a log. One line per request, when it is answered:
/// that line has both times, received and answered, in microseconds.
pub const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  verbs: [create, update, patch, delete, deletecollection]
- level: Metadata
  verbs: [get]
  resources:
  - group: ''
    resources: [pods, pods/status]
- level: None
";

/// kube-apiserver on `address:port`, storing in the etcd at `etcd`.
pub fn daemon(program: &Path, layout: &Layout, address: Ipv4Addr, port: u16, etcd: u16) -> Daemon {
    let file = |path: std::path::PathBuf| path.display().to_string();
    let pair = |cert: &str, key: &str, name: &str| {
        [format!("--{cert}={}", file(layout.cert(name))), format!("--{key}={}", file(layout.key(name)))]
    };
    let mut args = vec![
        format!("--bind-address={address}"),
        format!("--advertise-address={address}"),
        format!("--secure-port={port}"),
        format!("--etcd-servers=https://127.0.0.1:{etcd}"),
        format!("--etcd-cafile={}", file(layout.cert("ca"))),
        format!("--client-ca-file={}", file(layout.cert("ca"))),
        format!("--kubelet-certificate-authority={}", file(layout.cert("ca"))),
        format!("--cert-dir={}", file(layout.pki())),
        format!("--service-account-key-file={}", file(layout.pki().join("sa.pub"))),
        format!("--service-account-signing-key-file={}", file(layout.key("sa"))),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!("--service-cluster-ip-range={SERVICE_CIDR}"),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--kubelet-preferred-address-types=InternalIP,Hostname".to_owned(),
        "--enable-aggregator-routing=true".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--profiling=false".to_owned(),
        format!("--audit-policy-file={}", file(layout.audit_policy())),
        format!("--audit-log-path={}", file(layout.audit_log())),
    ];
    args.extend(pair("tls-cert-file", "tls-private-key-file", "apiserver"));
    args.extend(pair("etcd-certfile", "etcd-keyfile", "apiserver-etcd-client"));
    args.extend(pair("kubelet-client-certificate", "kubelet-client-key", "apiserver-kubelet-client"));
    if address.is_loopback() {
        // An endpoint may not be a loopback address; nothing runs that would use it.
        args.push("--endpoint-reconciler-type=none".to_owned());
    }
    Daemon::new(NAME, program, args)
}
