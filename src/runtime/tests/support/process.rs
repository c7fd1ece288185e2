//! The runtime as a process of its own that can be killed: a test's own executable, started again.
#![allow(dead_code, reason = "each test crate uses its part")]

use super::cri::{self, Cri};
use super::node::Node;
use podway_runtime::config::Config;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use tokio_util::sync::CancellationToken;

const VARIABLE: &str = "PODWAY_TEST_RUNTIME";

/// What the test `runtime_process` of each executable does: nothing, unless it was started as a runtime.
pub async fn run() {
    let Some(path) = std::env::var_os(VARIABLE) else { return };
    let config = Config::load(path.as_ref()).unwrap();
    podway_runtime::run::run(config, CancellationToken::new()).await.unwrap();
}

pub struct Process(Child);

impl Process {
    pub fn start(node: &Node) -> Process {
        Process::start_with(node, &[])
    }

    pub fn start_with(node: &Node, environment: &[(&str, &str)]) -> Process {
        let c = &node.config;
        let mut text = format!(
            "listen = {:?}\nroot = {:?}\nstate = {:?}\ncgroup_parent = {:?}\ncgroup_driver = {:?}\n[cni]\nbin_dirs = {:?}\nconf_dir = {:?}\n[runc]\npath = {:?}\n[monitor]\npath = {:?}\n",
            c.listen,
            c.root,
            c.state,
            c.cgroup_parent,
            c.cgroup_driver.name(),
            c.cni.bin_dirs,
            c.cni.conf_dir,
            c.runc.path,
            c.monitor.path
        );
        if let Some(cgroup) = &c.monitor.cgroup {
            text.push_str(&format!("cgroup = {cgroup:?}\n"));
        }
        let file = node.at("runtime.toml");
        std::fs::write(&file, text).unwrap();
        let log = std::fs::OpenOptions::new().append(true).create(true).open(node.at("runtime.log")).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "runtime_process", "--nocapture"]).env(VARIABLE, file);
        command.envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Process(command.spawn().unwrap())
    }

    pub async fn connect(&mut self, node: &Node) -> Cri {
        cri::connect(&node.config.listen, || matches!(self.0.try_wait(), Ok(None))).await
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits for its end; gives the signal that ended it.
    pub fn ended_by(mut self) -> Option<i32> {
        self.0.wait().unwrap().signal()
    }
}

impl Drop for Process {
    /// Always `kill -9`.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
