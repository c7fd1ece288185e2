//! What a case works with: configurations of pods and containers that differ from case to case in what
//! the case is about only.

use anyhow::{Context as _, ensure};
use podway_cri::v1;
use podway_tests::cri::images::BUSYBOX;
use podway_tests::cri::{Cri, Kind, Stage};
use std::sync::Arc;

/// A case's server, and its name.
#[derive(Clone)]
pub struct T {
    pub cri: Cri,
    pub kind: Kind,
    pub stage: Arc<Stage>,
    pub name: String,
}

/// Why a case cannot be tried on this machine.
#[derive(Debug)]
pub struct Skipped(pub String);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

/// A sandbox that runs, and what it was asked for with.
#[derive(Clone, Debug)]
pub struct Pod {
    pub id: String,
    pub config: v1::PodSandboxConfig,
}

/// A script that goes on until it is told to end.
pub const STAY: &str = "trap 'exit 0' TERM; while :; do sleep 1 & wait; done";

pub fn modes(pid: v1::NamespaceMode) -> v1::NamespaceOption {
    v1::NamespaceOption { pid: pid as i32, ..Default::default() }
}

impl T {
    pub fn pod_config(&self) -> v1::PodSandboxConfig {
        let name = self.name.replace("::", "-").replace('_', "-");
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                uid: format!("uid-{name}"),
                namespace: "cri".to_owned(),
                attempt: 0,
                name: name.clone(),
            }),
            hostname: "a-pod".to_owned(),
            log_directory: self.stage.at("logs").join(&name).display().to_string(),
            labels: [("case".to_owned(), self.name.clone())].into(),
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(modes(v1::NamespaceMode::Container)),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Of a script in busybox; its security context as the sandbox'.
    pub fn container(&self, name: &str, script: &str) -> v1::ContainerConfig {
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() }),
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: format!("{name}.log"),
            labels: [("case".to_owned(), self.name.clone())].into(),
            linux: Some(v1::LinuxContainerConfig {
                resources: None,
                security_context: Some(v1::LinuxContainerSecurityContext {
                    namespace_options: Some(modes(v1::NamespaceMode::Container)),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }

    pub async fn run(&mut self, config: v1::PodSandboxConfig) -> anyhow::Result<Pod> {
        std::fs::create_dir_all(&config.log_directory)?;
        let id = self.cri.run_pod(&config).await.context("RunPodSandbox")?;
        Ok(Pod { id, config })
    }

    pub async fn pod(&mut self) -> anyhow::Result<Pod> {
        self.run(self.pod_config()).await
    }

    pub async fn create(&mut self, pod: &Pod, config: &v1::ContainerConfig) -> anyhow::Result<String> {
        self.cri.create(&pod.id, config, &pod.config).await.context("CreateContainer")
    }

    pub async fn start(&mut self, pod: &Pod, config: &v1::ContainerConfig) -> anyhow::Result<String> {
        let id = self.create(pod, config).await?;
        self.cri.start(&id).await.context("StartContainer")?;
        Ok(id)
    }

    /// Runs a script to its end in a container of its own; gives what it wrote. It must succeed.
    pub async fn script(&mut self, pod: &Pod, mut config: v1::ContainerConfig) -> anyhow::Result<String> {
        config.log_path = format!("{}.log", config.metadata.clone().unwrap_or_default().name);
        let id = self.start(pod, &config).await?;
        let status = self.cri.exited(&id).await?;
        let text = self.log(pod, &config)?;
        ensure!(status.exit_code == 0, "it ends with {}: {text}", status.exit_code);
        Ok(text)
    }

    /// What a container has written, without the frame of the log.
    pub fn log(&self, pod: &Pod, config: &v1::ContainerConfig) -> anyhow::Result<String> {
        let path = std::path::Path::new(&pod.config.log_directory).join(&config.log_path);
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let lines = text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n");
        Ok(lines.collect())
    }

    /// Removes what the case has left.
    pub async fn clean(&mut self) -> anyhow::Result<()> {
        let label_selector = [("case".to_owned(), self.name.clone())].into();
        let filter = v1::PodSandboxFilter { label_selector, ..Default::default() };
        for pod in self.cri.pods(filter).await? {
            self.cri.remove_pod(&pod.id).await.with_context(|| format!("removing {}", pod.id))?;
        }
        Ok(())
    }
}

/// The security context of a container's configuration.
pub fn context(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The security context of a sandbox' configuration.
pub fn pod_context(config: &mut v1::PodSandboxConfig) -> &mut v1::LinuxSandboxSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// A bind mount.
pub fn mount(host: &std::path::Path, container: &str) -> v1::Mount {
    v1::Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        ..Default::default()
    }
}
