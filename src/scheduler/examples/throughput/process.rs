//! A scheduler as a process, and what `/proc` says of it.

use podway_cluster::Cluster;
use std::time::Duration;
use tokio::process::{Child, Command};

/// Which scheduler, by its program.
pub(crate) enum Which {
    Podway(String),
    Stock(String),
}

impl Which {
    /// Its `schedulerName`.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Which::Podway(_) => "podway",
            Which::Stock(_) => "default-scheduler",
        }
    }
}

/// A running scheduler.
pub(crate) struct Scheduler {
    child: Child,
    pid: u32,
}

impl Scheduler {
    pub(crate) fn start(cluster: &Cluster, which: &Which) -> Self {
        let kubeconfig = cluster.layout.admin_kubeconfig();
        let log = std::fs::File::create(cluster.layout.log(which.name())).unwrap();
        let mut command = match which {
            Which::Podway(program) => {
                let mut command = Command::new(program);
                command.args(["scheduler", "--metrics-bind-address=0"]);
                command
            }
            Which::Stock(program) => {
                let mut command = Command::new(program);
                command.arg("--authentication-kubeconfig").arg(&kubeconfig);
                command.arg("--authorization-kubeconfig").arg(&kubeconfig);
                command.args(["--bind-address=127.0.0.1", "--secure-port=0"]);
                // Its default of 50 requests a second would be all that is measured.
                command.args(["--kube-api-qps=5000", "--kube-api-burst=5000"]);
                command
            }
        };
        command.arg("--kubeconfig").arg(&kubeconfig).arg("--leader-elect=false");
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).kill_on_drop(true).spawn().unwrap();
        Scheduler { pid: child.id().unwrap(), child }
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.pid)).unwrap()
    }

    /// The CPU time that it has used, its threads included.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = self.proc("stat");
        // The name may hold spaces; what follows its bracket does not. utime and stime are fields 14 and 15.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|f| f.parse::<u64>().unwrap()).sum();
        // USER_HZ is 100 on every architecture that this runs on.
        Duration::from_millis(ticks * 10)
    }

    /// The most memory that it ever had, in MiB.
    pub(crate) fn peak_mib(&self) -> u64 {
        let status = self.proc("status");
        let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
        peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }

    pub(crate) async fn stop(mut self) {
        self.child.kill().await.unwrap();
    }
}
