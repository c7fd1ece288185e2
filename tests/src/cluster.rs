//! The cluster under test, brought up and taken down by the commands that a user types.

use anyhow::{Context as _, bail, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};
use podway_cluster::network::{Cidr, Network, NodeNetwork};
use podway_cluster::state::State;
use podway_cluster::{Layout, Program, registry};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// A command of a test may take this long; only a build of the control plane takes longer.
const COMMAND: Duration = Duration::from_secs(120);
/// `podway up` on a bare machine builds the control plane.
const UP: Duration = Duration::from_secs(900);

/// Set where the nodes' cgroups are to be systemd's.
pub const SYSTEMD: &str = "PODWAY_E2E_SYSTEMD";

/// Where in the state directory the agents look for a receiver of traces.
pub const TRACES: &str = "otlp.sock";

/// A cluster that is up.
pub struct Cluster {
    /// Its files.
    pub layout: Layout,
    /// The administrator's client.
    pub client: kube::Client,
    /// The kubectl of the control plane's version.
    pub kubectl: PathBuf,
    nodes: u8,
}

/// What a command answered.
#[derive(Debug)]
pub struct Answer {
    /// Exit code; -1 for a signal.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Answer {
    fn of(output: Output) -> Self {
        Answer {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The program `name` that was built beside this one.
///
/// # Errors
/// When it is not there.
pub fn built(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    // target/PROFILE/deps/e2e-… or target/PROFILE/podway-bench
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| {
        format!("{name} is not built beside {}: run cargo build --workspace --bins", own.display())
    })
}

/// Runs a program to its end.
///
/// # Errors
/// When it cannot be run or does not end in time; an exit code is no error.
pub async fn run(command: &mut Command, stdin: &str, limit: Duration) -> anyhow::Result<Answer> {
    let shown = format!("{:?}", command.as_std());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("starting {shown}"))?;
    let input = child.stdin.take();
    let write = async {
        if let Some(mut input) = input {
            // One that reads nothing may close it; what it answers shows whether that was right.
            let _ = input.write_all(stdin.as_bytes()).await;
        }
    };
    let both = async { tokio::join!(write, child.wait_with_output()).1 };
    match tokio::time::timeout(limit, both).await {
        Ok(output) => Ok(Answer::of(output.with_context(|| format!("running {shown}"))?)),
        Err(_) => bail!("{shown} did not end in {limit:?}"),
    }
}

impl Cluster {
    /// `podway up`; finds one that is up already.
    ///
    /// # Errors
    /// When it fails, with what it printed.
    pub async fn up(state_dir: &Path, nodes: u8) -> anyhow::Result<Self> {
        let answer = podway_up(state_dir, nodes).await?;
        ensure!(answer.code == 0, "podway up ended with {}:\n{}{}", answer.code, answer.out, answer.err);
        Self::attach(state_dir, nodes).await
    }

    /// The cluster that is up in `state_dir`.
    ///
    /// # Errors
    /// When there is none.
    pub async fn attach(state_dir: &Path, nodes: u8) -> anyhow::Result<Self> {
        let root = std::fs::canonicalize(state_dir).context("the state directory")?;
        let layout = Layout::new(root);
        let kubectl = Program::Kubectl.locate(&|line| eprintln!("{line}")).await?;
        let file = Kubeconfig::read_from(layout.admin_kubeconfig())?;
        let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        Ok(Cluster { client: kube::Client::try_from(config)?, layout, kubectl, nodes })
    }

    /// `podway up` once more, for one in which something has died.
    ///
    /// # Errors
    /// When it fails.
    pub async fn up_again(&self) -> anyhow::Result<Answer> {
        let answer = podway_up(self.layout.root(), self.nodes).await?;
        ensure!(answer.code == 0, "the second podway up ended with {}: {}", answer.code, answer.err);
        Ok(answer)
    }

    /// `podway down`.
    ///
    /// # Errors
    /// When it fails.
    pub async fn down(state_dir: &Path) -> anyhow::Result<()> {
        let mut command = Command::new(built("podway")?);
        command.args(["down", "--state-dir"]).arg(state_dir);
        let answer = run(&mut command, "", COMMAND).await?;
        ensure!(answer.code == 0, "podway down ended with {}: {}", answer.code, answer.err);
        Ok(())
    }

    /// kubectl with the administrator's identity.
    ///
    /// # Errors
    /// When it cannot be run.
    pub async fn kubectl(&self, args: &[&str], stdin: &str) -> anyhow::Result<Answer> {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(self.layout.admin_kubeconfig()).args(args);
        run(&mut command, stdin, COMMAND).await
    }

    /// `podway` with the administrator's identity.
    ///
    /// # Errors
    /// When it cannot be run.
    pub async fn podway(&self, args: &[&str]) -> anyhow::Result<Answer> {
        let mut command = Command::new(built("podway")?);
        command.args(args).env("KUBECONFIG", self.layout.admin_kubeconfig());
        run(&mut command, "", COMMAND).await
    }

    /// A POST as a program without a library would do it: path and body in, body and code out.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn post(&self, path: &str, body: Vec<u8>) -> anyhow::Result<(String, u16)> {
        let request =
            http::Request::post(path).header("content-type", "application/json").body(body.into())?;
        let answer = self.client.send(request).await?;
        let code = answer.status().as_u16();
        let bytes = http_body_util::BodyExt::collect(answer.into_body()).await?.to_bytes();
        Ok((String::from_utf8_lossy(&bytes).into_owned(), code))
    }

    fn state(&self) -> anyhow::Result<State> {
        State::load(&self.layout)?.context("the cluster has no state.json")
    }

    /// The daemons of the cluster whose name has `part` in it: name and process id.
    ///
    /// # Errors
    /// When the state cannot be read, or there is none.
    pub fn daemons(&self, part: &str) -> anyhow::Result<Vec<(String, i32)>> {
        let state = self.state()?;
        let found: Vec<_> = state
            .processes
            .into_iter()
            .filter(|(name, _)| name.contains(part))
            .map(|(name, record)| (name, record.pid))
            .collect();
        ensure!(!found.is_empty(), "no daemon is called *{part}*");
        Ok(found)
    }

    /// The command line that a daemon was started with, as the cluster's state tells it.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn argv(&self, daemon: &str) -> anyhow::Result<Vec<String>> {
        let state = self.state()?;
        let record = state.processes.get(daemon).with_context(|| format!("no daemon is called {daemon}"))?;
        Ok(record.argv.clone())
    }

    /// Where the local registry listens: on the bridge, which the nodes reach.
    ///
    /// # Errors
    /// When the state cannot be read, or there is none.
    pub fn registry(&self) -> anyhow::Result<SocketAddr> {
        let state = self.state()?;
        let network = network(&state)?;
        let port = state.ports.get(registry::NAME).context("the cluster has no registry")?;
        Ok(SocketAddr::new(network.gateway().into(), *port))
    }

    /// The pod networks of all nodes.
    ///
    /// # Errors
    /// When the state cannot be read, or there is none.
    pub fn pods(&self) -> anyhow::Result<Cidr> {
        Ok(network(&self.state()?)?.pods())
    }

    /// The nodes' names.
    ///
    /// # Errors
    /// When the state cannot be read, or there is none.
    pub fn nodes(&self) -> anyhow::Result<Vec<String>> {
        let network = network(&self.state()?)?;
        Ok(network.nodes(self.nodes).map(|n| n.name()).collect())
    }

    /// A node's part of the network.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn network(&self, node: &str) -> anyhow::Result<NodeNetwork> {
        let network = network(&self.state()?)?;
        let found = network.nodes(self.nodes).find(|n| n.name() == node);
        found.with_context(|| format!("no node is called {node}"))
    }

    /// Where the network namespace of a node is pinned.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn netns(&self, node: &str) -> anyhow::Result<PathBuf> {
        Ok(self.network(node)?.netns_path())
    }

    /// `kill -9` of every daemon whose name has `part` in it.
    ///
    /// # Errors
    /// When there is none, or one is gone already.
    pub fn kill(&self, part: &str) -> anyhow::Result<()> {
        for (name, pid) in self.daemons(part)? {
            let pid = nix::unistd::Pid::from_raw(pid);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)
                .with_context(|| format!("killing {name}"))?;
        }
        Ok(())
    }
}

fn network(state: &State) -> anyhow::Result<Network> {
    state.slot.and_then(Network::new).context("the cluster has no network")
}

async fn podway_up(state_dir: &Path, nodes: u8) -> anyhow::Result<Answer> {
    let mut command = Command::new(built("podway")?);
    if std::env::var_os("PODWAY_E2E_TRACES").is_some() {
        // A Unix socket is reached from the nodes' network namespaces, too.
        let traces = format!("unix://{}", std::path::absolute(state_dir)?.join(TRACES).display());
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", traces);
    }
    command.args(["up", "--no-demo", "--nodes", &nodes.to_string(), "--state-dir"]).arg(state_dir);
    if std::env::var_os(SYSTEMD).is_some() {
        command.args(["--cgroup-driver", "systemd"]);
    }
    run(&mut command, "", UP).await
}
