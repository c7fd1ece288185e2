//! A node for the tests: directories, a network of its own, an image, and the programs they need.
//!
//! Every name that is visible on the machine (bridge, cgroup, subnet) is unique to the test's
//! process, so that tests run beside each other and beside a real cluster.
#![allow(dead_code, reason = "each test crate uses its part")]

use podway_cri::v1;
use podway_runtime::config::Config;
use podway_runtime::image::{Digest, ImageRef, ImageStore};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// The image's name.
pub const IMAGE: &str = "registry.test/busybox:1";

static SEQUENCE: AtomicU32 = AtomicU32::new(0);

pub struct Node {
    pub dir: tempfile::TempDir,
    pub bridge: String,
    pub cgroup: String,
    pub config: Config,
}

pub fn program(variable: &str, name: &str) -> Option<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(|d| PathBuf::from(d).join(name));
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::var_os(variable)
        .map(PathBuf::from)
        .into_iter()
        .chain(assets)
        .chain(std::env::split_paths(&path).map(|d| d.join(name)))
        .chain([PathBuf::from("/tmp/kbin").join(name)])
        .find(|p| p.is_file())
}

fn plugins() -> Option<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(|d| PathBuf::from(d).join("cni"));
    std::env::var_os("PODWAY_CNI")
        .map(PathBuf::from)
        .into_iter()
        .chain(assets)
        .chain(["/opt/cni/bin", "/usr/lib/cni", "/tmp/kbin/cni"].map(PathBuf::from))
        .find(|d| ["bridge", "host-local", "portmap"].iter().all(|p| d.join(p).is_file()))
}

/// The monitor beside this test's own executable; built if it is not there.
fn monitor() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let profile = exe.parent().and_then(Path::parent).unwrap();
    let binary = profile.join("podway-monitor");
    if !binary.is_file() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "-q", "-p", "podway-monitor", "--target-dir"]).arg(profile.parent().unwrap());
        let name = profile.file_name().filter(|name| *name != "debug").unwrap_or("dev".as_ref());
        build.arg("--profile").arg(name);
        assert!(build.status().unwrap().success(), "podway-monitor was not built");
    }
    binary
}

/// Kills a process, and returns when it has ended.
pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    rustix::process::pidfd_send_signal(&fd, rustix::process::Signal::KILL).unwrap();
    let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, None).unwrap();
}

/// The node, or `None` with a printed reason where the machine lacks something.
pub fn node() -> Option<Node> {
    let root = rustix::process::geteuid().is_root();
    let (Some(runc), Some(cni), true, true) =
        (program("PODWAY_RUNC", "runc"), plugins(), root, Path::new("/bin/busybox").exists())
    else {
        println!("skipped: needs root, busybox, runc (PODWAY_RUNC, PATH) and CNI plugins (PODWAY_CNI)");
        return None;
    };
    // 10.<200..>.x: outside of what clusters commonly take; one subnet per test.
    let number = std::process::id() * 4 + SEQUENCE.fetch_add(1, Ordering::Relaxed);
    let bridge = format!("pwt{}", number % 1_000_000);
    let cgroup = format!("/podway-test-{number}");
    let subnet = format!("10.{}.{}.0/24", 200 + number / 256 % 50, number % 256);
    let dir = tempfile::Builder::new().prefix("pw").tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("net.d")).unwrap();
    let mut list = vec![serde_json::json!({
        "type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": false,
        "ipam": {"type": "host-local", "dataDir": at("ipam"), "ranges": [[{"subnet": subnet}]],
                 "routes": [{"dst": "0.0.0.0/0"}]},
    })];
    if program("PODWAY_IPTABLES", "iptables").is_some() {
        list.push(serde_json::json!({"type": "portmap", "capabilities": {"portMappings": true}}));
    }
    let conf = serde_json::json!({"cniVersion": "1.0.0", "name": bridge, "plugins": list});
    std::fs::write(at("net.d/10-test.conflist"), conf.to_string()).unwrap();
    let mut config = Config {
        listen: format!("unix://{}", at("cri.sock").display()),
        root: at("root"),
        state: at("state"),
        cgroup_parent: cgroup.clone(),
        ..Config::default()
    };
    config.cni.bin_dirs = vec![cni];
    config.cni.conf_dir = at("net.d");
    config.runc.path = runc;
    config.monitor.path = monitor();
    let node = Node { dir, bridge, cgroup, config };
    node.add_image();
    Some(node)
}

/// What a runtime's own units of systemd are called.
pub const UNITS: [&str; 3] = ["cri-podway-*", "podway-monitor-*", "podway-????????????????????*"];

/// The units that systemd knows by these patterns, failed and ended ones too.
pub fn units(patterns: &[&str]) -> Vec<String> {
    let mut command = Command::new("systemctl");
    command.args(["list-units", "--all", "--plain", "--no-legend", "--full", "--"]).args(patterns);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect()
}

impl Node {
    /// Where the programs are that it needs.
    pub fn programs(&self) -> Vec<PathBuf> {
        let runc = self.config.runc.path.parent().map(Path::to_owned);
        self.config.cni.bin_dirs.iter().cloned().chain(runc).collect()
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts the runtime's root on a tmpfs of its own.
    pub fn remount_root(&self, options: &str) {
        let root = self.at("root");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&root).status();
        assert!(mounted.unwrap().success());
        self.add_image();
    }

    pub fn unmount_root(&self) {
        assert!(Command::new("umount").arg(self.at("root")).status().unwrap().success());
    }

    /// busybox with `sh` and the directories that a distribution has, straight into the store.
    fn add_image(&self) {
        std::fs::create_dir_all(&self.config.root).unwrap();
        let store = ImageStore::open(&self.config.root).unwrap();
        let staging = store.staging().unwrap();
        for name in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
            std::fs::create_dir(staging.join(name)).unwrap();
        }
        std::fs::set_permissions(staging.join("tmp"), std::fs::Permissions::from_mode(0o1777)).unwrap();
        std::fs::copy("/bin/busybox", staging.join("bin/busybox")).unwrap();
        for applet in ["sh", "sleep", "cat", "echo", "id", "hostname", "ip", "kill", "nc"] {
            std::os::unix::fs::symlink("busybox", staging.join("bin").join(applet)).unwrap();
        }
        std::fs::write(staging.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        std::fs::write(staging.join("etc/group"), "root:x:0:\n").unwrap();
        let layer = Digest::of(b"busybox layer");
        store.commit_layer(&staging, layer, Default::default()).unwrap();
        let reference = ImageRef::parse(IMAGE).unwrap();
        let id = Digest::of(b"busybox config");
        let names = (reference.repo_tag(), reference.repo_digest(id));
        store.put(id, names, Default::default(), 2, vec![layer]).unwrap();
    }

    pub fn sandbox(&self, name: &str, attempt: u32) -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "test".to_owned(),
                attempt,
            }),
            hostname: name.to_owned(),
            log_directory: self.at("logs").join(name).display().to_string(),
            dns_config: Some(v1::DnsConfig { servers: vec!["10.0.0.53".to_owned()], ..Default::default() }),
            labels: [("app".to_owned(), name.to_owned())].into(),
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub fn container(&self, name: &str, script: &str) -> v1::ContainerConfig {
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: IMAGE.to_owned(), ..Default::default() }),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            envs: vec![v1::KeyValue { key: "COLOUR".to_owned(), value: b"green".to_vec() }],
            log_path: format!("{name}.log"),
            linux: Some(v1::LinuxContainerConfig {
                resources: Some(v1::LinuxContainerResources {
                    memory_limit_in_bytes: 64 << 20,
                    cpu_shares: 256,
                    ..Default::default()
                }),
                security_context: Some(v1::LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces()),
                    seccomp: Some(v1::SecurityProfile::default()),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }

    /// What of ours is on the machine; empty after everything was removed.
    /// The monitors of its pods.
    pub fn monitors(&self) -> Vec<u32> {
        let root = self.dir.path().display().to_string();
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|e| {
            let pid = e.file_name().to_string_lossy().parse::<u32>().ok()?;
            let text = String::from_utf8(std::fs::read(e.path().join("cmdline")).ok()?).ok()?;
            (text.contains("podway-monitor") && text.contains(&root)).then_some(pid)
        })
        .collect()
    }

    pub fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        let root = self.dir.path().display().to_string();
        for line in std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
            if line.contains(&root) {
                found.push(format!("mount {line}"));
            }
        }
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            if !pid.bytes().all(|b| b.is_ascii_digit()) {
                continue;
            }
            let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let cgroups = String::from_utf8_lossy(&read("cgroup")).into_owned();
            // A zombie is its parent's to reap: nothing of it is ours any more.
            let stat = String::from_utf8_lossy(&read("stat")).into_owned();
            if stat.rsplit_once(')').is_none_or(|(_, s)| s.trim_start().starts_with('Z')) {
                continue;
            }
            let monitor = command.starts_with(&*self.config.monitor.path.display().to_string());
            if cgroups.contains(&self.cgroup) || monitor && command.contains(&root) {
                found.push(format!("process {pid} {command}"));
            }
        }
        for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let parent = controller.path().join(self.cgroup.trim_start_matches('/'));
            for child in std::fs::read_dir(parent).into_iter().flatten().flatten() {
                if child.path().is_dir() {
                    found.push(format!("cgroup {}", child.path().display()));
                }
            }
        }
        let ports = Path::new("/sys/class/net").join(&self.bridge).join("brif");
        for port in std::fs::read_dir(ports).into_iter().flatten().flatten() {
            found.push(format!("veth {}", port.file_name().display()));
        }
        for ip in std::fs::read_dir(self.at("ipam").join(&self.bridge)).into_iter().flatten().flatten() {
            let name = ip.file_name().to_string_lossy().into_owned();
            if name.parse::<std::net::IpAddr>().is_ok() {
                found.push(format!("address {name}"));
            }
        }
        for below in
            ["state/ns", "state/sandboxes", "state/bundles", "state/m", "state/runc", "root/containers"]
                .iter()
                .chain(&["root/journal/sandboxes", "root/journal/containers"])
        {
            for entry in std::fs::read_dir(self.at(below)).into_iter().flatten().flatten() {
                found.push(format!("file {}", entry.path().display()));
            }
        }
        let rules = Command::new("iptables").args(["-w", "-t", "nat", "-S"]).output();
        let rules = rules.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        found.extend(rules.lines().filter(|l| l.contains(&self.bridge)).map(|l| format!("rule {l}")));
        found
    }
}

impl Drop for Node {
    /// A failed test must not leave the machine dirty; a good one has left nothing but the bridge.
    fn drop(&mut self) {
        for line in self.leftovers() {
            let word = line.split(' ').nth(1).unwrap_or_default();
            if line.starts_with("process ") {
                let _ = Command::new("kill").args(["-9", word]).output();
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let root = self.dir.path().display().to_string();
        for target in mounts.lines().filter_map(|l| l.split(' ').nth(4)).filter(|t| t.starts_with(&root)) {
            let _ = Command::new("umount").args(["-l", target]).output();
        }
        let _ = Command::new("ip").args(["link", "del", &self.bridge]).output();
        for controller in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let parent = controller.path().join(self.cgroup.trim_start_matches('/'));
            for child in std::fs::read_dir(&parent).into_iter().flatten().flatten() {
                for inner in std::fs::read_dir(child.path()).into_iter().flatten().flatten() {
                    let _ = std::fs::remove_dir(inner.path());
                }
                let _ = std::fs::remove_dir(child.path());
            }
            let _ = std::fs::remove_dir(parent);
        }
    }
}

pub fn namespaces() -> v1::NamespaceOption {
    v1::NamespaceOption { pid: v1::NamespaceMode::Container as i32, ..Default::default() }
}
