//! Other programs in the place of a node's own two: containerd for our runtime, a stock kubelet for our agent.
//!
//! The node keeps its name, its network namespace, its identity and its images. What takes its place is
//! marked as the cluster's, so that `podway down` finds it whatever happens; [`Swapped::stop`] ends it, and
//! `up` again brings back our own. The pods of the one runtime are not seen by the other: delete them first.

use crate::cluster::{Cluster, SYSTEMD};
use crate::cri::server::Containerd as Settings;
use crate::namespace::LIMIT;
use crate::wait;
use anyhow::Context as _;
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use podway_cluster::{Program, process};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// The daemons in the place of the node's own.
#[derive(Debug)]
pub struct Swapped {
    /// In the order of their start.
    daemons: Vec<Child>,
    /// What a kubelet mounts on itself, where it is not in a mount namespace that ends with it.
    stays: Option<PathBuf>,
}

impl Swapped {
    /// containerd in the runtime's place, our agent on it.
    ///
    /// # Errors
    /// When a program is not to be had or does not start.
    pub async fn agent_on_containerd(cluster: &Cluster, node: &str) -> anyhow::Result<Self> {
        let containerd = Containerd::prepare(cluster, node).await?;
        let mut args = cluster.argv(&format!("{node}-agent"))?;
        let endpoint =
            args.iter().position(|a| a == "--container-runtime-endpoint").context("the endpoint")?;
        args[endpoint + 1] = containerd.endpoint();
        containerd.with("agent-on-containerd", args).await
    }

    /// A stock node: containerd, and a kubelet on it.
    ///
    /// # Errors
    /// When a program is not to be had or does not start.
    pub async fn stock(cluster: &Cluster, node: &str) -> anyhow::Result<Self> {
        let kubelet = Program::Kubelet.locate(&|line| eprintln!("{line}")).await?;
        let containerd = Containerd::prepare(cluster, node).await?;
        let args = kubelet_argv(cluster, node, &kubelet, &containerd.endpoint())?;
        containerd.with("kubelet", args).await
    }

    /// A stock kubelet in the agent's place, on our runtime as it is.
    ///
    /// # Errors
    /// When it is not to be had or does not start.
    pub async fn kubelet_on_runtime(cluster: &Cluster, node: &str) -> anyhow::Result<Self> {
        let kubelet = Program::Kubelet.locate(&|line| eprintln!("{line}")).await?;
        let agent = cluster.argv(&format!("{node}-agent"))?;
        let endpoint = agent.iter().position(|a| a == "--container-runtime-endpoint");
        let endpoint = endpoint.and_then(|at| agent.get(at + 1)).context("the runtime's endpoint")?;
        let args = kubelet_argv(cluster, node, &kubelet, endpoint)?;
        cluster.kill(&format!("{node}-agent"))?;
        let path = std::env::var("PATH").unwrap_or_default();
        // What it mounts for a pod, the runtime has to see: both are in the machine's mount namespace.
        let mut command = daemon(cluster, node, &args[0], "kubelet", &path)?;
        let kubelet = command.args(&args[1..]).spawn().context("starting the kubelet")?;
        Ok(Swapped { daemons: vec![kubelet], stays: Some(kubelet_dir(cluster, node)) })
    }

    /// A process in the node's mount and network namespaces.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pid(&self) -> anyhow::Result<u32> {
        self.daemons.first().and_then(Child::id).context("it has ended by itself")
    }

    /// Ends them, the last one first. What runs in pods is not ended: delete them before.
    ///
    /// # Errors
    /// When one has ended by itself, or does not end.
    pub async fn stop(self) -> anyhow::Result<()> {
        for mut child in self.daemons.into_iter().rev() {
            let pid = child.id().and_then(|id| i32::try_from(id).ok()).context("it has ended by itself")?;
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)?;
            tokio::time::timeout(LIMIT, child.wait()).await.context("it does not end")??;
        }
        self.stays.map_or(Ok(()), |dir| {
            nix::mount::umount(&dir).with_context(|| format!("unmounting {}", dir.display()))
        })
    }
}

/// A stock kube-scheduler, for the pods that name no other.
#[derive(Debug)]
pub struct Scheduler(Child);

impl Scheduler {
    /// Starts it, as the administrator; it listens nowhere.
    ///
    /// # Errors
    /// When it is not to be had or does not start.
    pub async fn stock(cluster: &Cluster) -> anyhow::Result<Self> {
        let program = Program::KubeScheduler.locate(&|line| eprintln!("{line}")).await?;
        let log = std::fs::File::create(cluster.layout.log("kube-scheduler"))?;
        let child = Command::new(program)
            .arg(format!("--kubeconfig={}", cluster.layout.admin_kubeconfig().display()))
            .args(["--leader-elect=false", "--secure-port=0"])
            .env(process::MARK, cluster.layout.root())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn();
        Ok(Scheduler(child.context("starting kube-scheduler")?))
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.0.kill().await.context("ending kube-scheduler")
    }
}

/// Waits until the node tells of a runtime whose version begins so, and is Ready.
///
/// # Errors
/// When that takes too long.
pub async fn is_on(cluster: &Cluster, node: &str, runtime: &str) -> anyhow::Result<()> {
    let there = |node: &Node| {
        let status = node.status.as_ref();
        let version = status.and_then(|s| Some(s.node_info.as_ref()?.container_runtime_version.as_str()));
        let conditions = status.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
        version.is_some_and(|v| v.starts_with(runtime))
            && conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    wait::until(nodes, &format!("metadata.name={node}"), runtime, LIMIT, there).await?;
    Ok(())
}

/// Where containerd listens, in its directory.
const SOCKET: &str = "containerd.sock";

/// containerd on a node, before it runs.
struct Containerd<'a> {
    cluster: &'a Cluster,
    node: String,
    programs: PathBuf,
    /// What `/opt/cni/bin`, `/etc/cni/net.d` and `/etc/containerd/certs.d` would be on a machine of its own.
    cni: PathBuf,
    conf: PathBuf,
    hosts: PathBuf,
    dir: PathBuf,
    config: PathBuf,
}

impl<'a> Containerd<'a> {
    async fn prepare(cluster: &'a Cluster, node: &str) -> anyhow::Result<Self> {
        let say = |line: &str| eprintln!("{line}");
        let programs = Program::Containerd.locate(&say).await?;
        let (runc, cni) = (Program::Runc.locate(&say).await?, Program::CniPlugins.locate(&say).await?);
        let above = cluster.layout.node(node);
        let dir = above.join("containerd");
        let (conf, hosts) = (dir.join("net.d"), above.join("hosts"));
        std::fs::create_dir_all(&conf)?;
        let config = dir.join("config.toml");
        // The pods' network is our runtime's, with the addresses where host-local keeps them by default:
        // whoever else runs pods on this machine takes from the same.
        let mut network = cluster.network(node)?.conflist(Path::new(""));
        if let Some(ipam) = network.pointer_mut("/plugins/0/ipam").and_then(serde_json::Value::as_object_mut)
        {
            ipam.remove("dataDir");
        }
        std::fs::write(conf.join("10-podway.conflist"), network.to_string())?;
        // The images are, too.
        let settings = Settings {
            dir: &dir,
            socket: &dir.join(SOCKET),
            hosts: &hosts,
            runc: &runc,
            cni: &cni,
            conf: &conf,
        };
        std::fs::write(&config, settings.toml())?;
        Ok(Containerd { cluster, node: node.to_owned(), programs, cni, conf, hosts, dir, config })
    }

    fn endpoint(&self) -> String {
        format!("unix://{}", self.dir.join(SOCKET).display())
    }

    /// Kills the node's own daemons and starts containerd, then what is to run on it.
    async fn with(self, name: &str, argv: Vec<String>) -> anyhow::Result<Swapped> {
        let node = &self.node;
        self.cluster.kill(&format!("{node}-agent"))?;
        self.cluster.kill(&format!("{node}-runtime"))?;
        let path = std::env::var("PATH").unwrap_or_default();
        // It finds its shim there.
        let with_shim = format!("{}:{path}", self.programs.display());
        let program = self.programs.join("containerd").display().to_string();
        let args = [program, "--config".into(), self.config.display().to_string()];
        let mut containerd = self.command("unshare", "containerd", &with_shim)?;
        containerd
            .args(["--mount", "--propagation=private", "sh", "-euc", MACHINE, "sh"])
            .args([&self.dir.join("machine"), &self.cni, &self.conf, &self.hosts])
            .arg(self.cluster.layout.root())
            .args(args);
        let containerd = containerd.spawn().context("starting containerd")?;
        until_connects(&self.dir.join(SOCKET)).await?;
        let pid = containerd.id().context("containerd has ended")?;
        let mut other = self.command("nsenter", name, &path)?;
        other.arg(format!("--mount=/proc/{pid}/ns/mnt")).args(&argv);
        let other = other.spawn().with_context(|| format!("starting {argv:?}"))?;
        Ok(Swapped { daemons: vec![containerd, other], stays: None })
    }

    fn command(&self, program: &str, name: &str, path: &str) -> anyhow::Result<Command> {
        daemon(self.cluster, &self.node, program, name, path)
    }
}

/// `nsenter` into the node's network and on with `program`, marked as the cluster's.
fn daemon(cluster: &Cluster, node: &str, program: &str, name: &str, path: &str) -> anyhow::Result<Command> {
    let log = std::fs::File::create(cluster.layout.log(name))?;
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", cluster.netns(node)?.display()))
        .arg(program)
        .env("PATH", path)
        .env(process::MARK, cluster.layout.root())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true);
    Ok(command)
}

/// Makes the places of a machine that has a kubelet, in a mount namespace of the node's own: what a pod
/// mounts from them is there, and this machine stays as it is. Arguments: a directory for what is written,
/// the CNI plugins, the network configuration, the mirrors, the cluster's state, which may lie in a place that
/// is made anew and stays in sight; then what to run.
const MACHINE: &str = r#"
dir=$1 plugins=$2 network=$3 mirrors=$4 state=$5; shift 5
exec 9<"$state"
for at in etc opt var; do
    mkdir -p "$dir/$at/upper" "$dir/$at/work"
    mount -t overlay machine -o "lowerdir=/$at,upperdir=$dir/$at/upper,workdir=$dir/$at/work" "/$at"
done
mkdir -p /opt/cni/bin /etc/cni/net.d /etc/containerd/certs.d
mount --bind "$plugins" /opt/cni/bin
mount --bind "$network" /etc/cni/net.d
mount --bind "$mirrors" /etc/containerd/certs.d
for at in /run/podway /var/lib/podway /var/log/podway /var/lib/cni; do
    mkdir -p "$dir$at" "$at"
    # What a node by default settings keeps itself free of pods for is a full disk, and this machine's may be one.
    case $at in
        /var/lib/podway) mount -t tmpfs -o size=1g machine "$at" ;;
        *) mount --bind "$dir$at" "$at" ;;
    esac
    mount --make-rshared "$at"
done
mkdir -p "$state"
mount --no-canonicalize --bind /proc/self/fd/9 "$state"
exec 9<&-
exec "$@"
"#;

/// Makes the kubelet's `cgroupRoot` in every tree: it makes none itself, and our agent only where it needs one.
fn root_cgroup(path: &str) -> anyhow::Result<()> {
    let mount = Path::new("/sys/fs/cgroup");
    let mut trees = vec![mount.to_owned()];
    if !mount.join("cgroup.controllers").exists() {
        let all = std::fs::read_dir(mount)?.collect::<Result<Vec<_>, _>>()?.into_iter();
        let own = all.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path());
        trees = own.filter(|tree| tree.join("cgroup.procs").exists()).collect();
    }
    for tree in trees {
        std::fs::create_dir_all(tree.join(path.trim_start_matches('/')))?;
    }
    Ok(())
}

async fn until_connects(socket: &Path) -> anyhow::Result<()> {
    let connect = async {
        while tokio::net::UnixStream::connect(socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, connect).await.context("containerd does not listen")
}

/// A kubelet's `--root-dir`.
fn kubelet_dir(cluster: &Cluster, node: &str) -> PathBuf {
    cluster.layout.node(node).join("kubelet")
}

/// A kubelet's command line, its files below the node's directory.
fn kubelet_argv(
    cluster: &Cluster,
    node: &str,
    kubelet: &Path,
    endpoint: &str,
) -> anyhow::Result<Vec<String>> {
    let dir = kubelet_dir(cluster, node);
    std::fs::create_dir_all(&dir)?;
    let address = cluster.network(node)?.address().to_string();
    let network = cluster.network(node)?;
    let systemd = std::env::var_os(SYSTEMD).is_some();
    root_cgroup(&if systemd { format!("/podway.slice/{}", network.slice()) } else { network.cgroup() })?;
    let config = dir.join("config.json");
    std::fs::write(&config, kubelet_config(cluster, node, &address, endpoint)?)?;
    Ok(vec![
        kubelet.display().to_string(),
        format!("--config={}", config.display()),
        format!("--kubeconfig={}", cluster.layout.kubeconfig(node).display()),
        format!("--hostname-override={node}"),
        format!("--node-ip={address}"),
        format!("--root-dir={}", dir.display()),
        format!("--cert-dir={}", dir.join("pki").display()),
    ])
}

/// The kubelet's configuration: the node's certificates, its cgroup, and cgroup v1 where the machine has it.
fn kubelet_config(cluster: &Cluster, node: &str, address: &str, endpoint: &str) -> anyhow::Result<Vec<u8>> {
    let serving = format!("{node}-serving");
    let layout = &cluster.layout;
    Ok(serde_json::to_vec_pretty(&json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "port": 10250,
        "healthzPort": 0,
        "tlsCertFile": layout.cert(&serving),
        "tlsPrivateKeyFile": layout.key(&serving),
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": layout.cert("ca")},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": endpoint,
        "failCgroupV1": false,
        "failSwapOn": false,
        // Heeded with a runtime that does not say which it has (KEP-4033): ours and containerd do.
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cluster.network(node)?.cgroup(),
        "enforceNodeAllocatable": [],
        "clusterDomain": "cluster.local",
        "podLogsDir": layout.node(node).join("kubelet-pod-logs"),
        "volumePluginDir": layout.node(node).join("kubelet/volume-plugins"),
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
            "imagefs.inodesFree": "0%",
        },
    }))?)
}
