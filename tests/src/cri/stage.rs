//! What a CRI server needs around it: a registry that stands for every registry, a directory, a
//! network configuration of its own. Names that are visible on the machine carry the process id, so
//! that several stages stand beside each other and beside a real cluster.

use anyhow::{Context as _, bail};
use podway_cluster::images::Image;
use podway_cluster::push::Registry;
use podway_cluster::{Program, registry};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// Where the servers of a test run.
pub struct Stage {
    dir: tempfile::TempDir,
    /// Its `host:port`, for pushes during the test.
    pub registry: String,
    /// Made before: runc.
    pub runc: PathBuf,
    /// The directory of the CNI plugins.
    pub cni: PathBuf,
    _registry: Child,
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage").field("dir", &self.dir.path()).finish_non_exhaustive()
    }
}

impl Stage {
    /// A registry with `images` in it, and the programs that every server needs.
    ///
    /// # Errors
    /// What is missing on the machine.
    pub async fn set(images: &[Image]) -> anyhow::Result<Self> {
        let say = |line: &str| eprintln!("{line}");
        let (runc, cni) = (Program::Runc.locate(&say).await?, Program::CniPlugins.locate(&say).await?);
        let program = Program::Registry.locate(&say).await?;
        let dir = tempfile::Builder::new().prefix("pwcri").tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let registry = format!("127.0.0.1:{port}");
        let config = json!({
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": dir.path().join("registry")}, "delete": {"enabled": true}},
            "http": {"addr": registry, "secret": "of a test"},
        });
        let path = dir.path().join("registry.yml");
        std::fs::write(&path, config.to_string())?;
        let mut child = Command::new(&program)
            .arg("serve")
            .arg(&path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let client = Registry::new(&registry);
        while !client.answers().await {
            if let Some(status) = child.try_wait()? {
                bail!("the registry has ended: {status}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for image in images {
            client.push(image).await?;
        }
        // It stands for all of them: docker.io, registry.k8s.io, …
        registry::write_hosts(&dir.path().join("hosts"), &registry, true)?;
        Ok(Stage { dir, registry, runc, cni, _registry: child })
    }

    /// A path in the stage's directory.
    #[must_use]
    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The mirrors' configuration.
    #[must_use]
    pub fn hosts(&self) -> PathBuf {
        self.at("hosts")
    }

    /// A network of its own for the server `name`; gives the directory of its configuration and the bridge.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn network(&self, name: &str, number: u8) -> anyhow::Result<(PathBuf, String)> {
        let dir = self.at(&format!("{name}-cni"));
        std::fs::create_dir_all(&dir)?;
        let process = std::process::id();
        let bridge = format!("pwc{number}-{}", process % 1_000_000);
        let subnet = format!("10.{}.{}.0/24", 180 + number, process % 256);
        let list = json!({
            "cniVersion": "1.0.0",
            "name": bridge,
            "plugins": [
                {
                    "type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": false, "hairpinMode": true,
                    "ipam": {"type": "host-local", "dataDir": self.at(&format!("{name}-ipam")),
                             "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]},
                },
                {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
            ],
        });
        std::fs::write(dir.join("10-test.conflist"), list.to_string())?;
        Ok((dir, bridge))
    }
}

/// Removes a bridge; one that no pod made is not there.
pub(super) async fn remove_bridge(bridge: &str) -> anyhow::Result<()> {
    if Path::new("/sys/class/net").join(bridge).exists() {
        let status = Command::new("ip").args(["link", "delete", bridge]).status().await?;
        anyhow::ensure!(status.success(), "ip link delete {bridge}: {status}");
    }
    Ok(())
}
