//! The programs that the cluster needs: names, versions that fit, and why one is not to be had.

use std::path::Path;

/// A program, or a set of them, that the cluster starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// etcd 3.6.
    Etcd,
    /// kube-apiserver 1.36.
    KubeApiserver,
    /// kube-controller-manager 1.36.
    KubeControllerManager,
    /// kubectl 1.36.
    Kubectl,
    /// runc, 1.3.6 or newer: older ones have known escapes.
    Runc,
    /// The directory of the CNI plugins bridge, host-local, portmap and loopback.
    CniPlugins,
    /// The registry of the distribution project.
    Registry,
    /// Kubernetes' test server, for an image of it.
    Agnhost,
    /// The directory of containerd and its shim, for the test that runs the agent on it.
    Containerd,
    /// kube-scheduler 1.36, to compare ours with.
    KubeScheduler,
    /// Kubernetes' own end-to-end suite, 1.36.
    E2eTest,
    /// What runs it.
    Ginkgo,
    /// The program of the suite's image that tries to gain privileges.
    Nonewprivs,
    /// The program of the suite's image that watches connections being dropped.
    Regression74839,
    /// kubelet 1.36, for the test that runs it on our runtime.
    Kubelet,
    /// The CRI validation suite of cri-tools.
    Critest,
    /// kube-proxy 1.36, for an image of it.
    KubeProxy,
    /// CoreDNS, for an image of it.
    CoreDns,
    /// helm 3 or 4, for the test that renders the chart.
    Helm,
}

/// Why a program is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// It must be built, and what builds it is not there.
    #[error("{programs} must be built, and there is no {tool}")]
    NoTool {
        /// The programs.
        programs: String,
        /// What is missing.
        tool: &'static str,
    },
    /// It was not looked for at the start: a defect of ours.
    #[error("{program} was not looked for")]
    NotWanted {
        /// The program.
        program: &'static str,
    },
    /// There is no directory for the cache.
    #[error("no cache directory for {program}; set XDG_CACHE_HOME or HOME")]
    NoCache {
        /// The program.
        program: &'static str,
    },
    /// The build failed.
    #[error("cannot build {program} ({status}): {output}")]
    Build {
        /// The program.
        program: &'static str,
        /// How go ended.
        status: std::process::ExitStatus,
        /// The end of what go said.
        output: String,
    },
    /// A file operation failed.
    #[error("cannot {what} {path} for {program}")]
    Io {
        /// The program.
        program: &'static str,
        /// What was tried.
        what: &'static str,
        /// The path.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl Program {
    /// The file's name; for the plugins the directory's.
    pub fn file(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::Kubectl => "kubectl",
            Self::Runc => "runc",
            Self::CniPlugins => "cni",
            Self::Registry => "registry",
            Self::Agnhost => "agnhost",
            Self::Containerd => "containerd-bin",
            Self::KubeScheduler => "kube-scheduler",
            Self::E2eTest => "e2e.test",
            Self::Ginkgo => "ginkgo",
            Self::Nonewprivs => "nonewprivs",
            Self::Regression74839 => "regression-issue-74839",
            Self::Kubelet => "kubelet",
            Self::Critest => "critest",
            Self::KubeProxy => "kube-proxy",
            Self::CoreDns => "coredns",
            Self::Helm => "helm",
        }
    }

    /// Whether what the program prints of its version fits.
    pub(crate) fn fits(self, printed: &str) -> bool {
        let version =
            |after: &str| printed.lines().find_map(|l| parse_version(l.trim().strip_prefix(after)?));
        match self {
            Self::Etcd => version("etcd Version:").is_some_and(|v| v.0 == 3 && v.1 == 6),
            Self::KubeApiserver
            | Self::KubeControllerManager
            | Self::KubeScheduler
            | Self::KubeProxy
            | Self::Kubelet => version("Kubernetes v").is_some_and(|v| v.0 == 1 && v.1 == 36),
            // kubectl may be one minor version away from the server.
            Self::Kubectl => {
                version("Client Version: v").is_some_and(|v| v.0 == 1 && (35..=37).contains(&v.1))
            }
            Self::Runc => version("runc version").is_some_and(|v| v >= (1, 3, 6)),
            Self::CoreDns => version("CoreDNS-").is_some_and(|v| v.0 == 1),
            Self::Helm => ["Version:\"v3.", "Version:\"v4."].iter().any(|v| printed.contains(v)),
            Self::Registry => printed.contains("distribution/v3"),
            Self::Ginkgo => version("Ginkgo Version ").is_some_and(|v| v >= (2, 28, 0)),
            // Directories are not in PATH.
            Self::CniPlugins | Self::Containerd => true,
            // Nobody installs these but for this purpose.
            Self::Agnhost | Self::E2eTest | Self::Nonewprivs | Self::Regression74839 => true,
            // The suite has one set of specs per version, and the figures name it.
            Self::Critest => false,
        }
    }

    /// Whether it tells a version: what is made for tests alone does not.
    pub(crate) fn versioned(self) -> bool {
        !matches!(self, Self::Agnhost | Self::E2eTest | Self::Nonewprivs | Self::Regression74839)
    }

    /// What it is called with to print its version.
    pub(crate) fn version_args(self) -> &'static [&'static str] {
        match self {
            Self::Kubectl => &["version", "--client"],
            Self::Ginkgo | Self::Helm => &["version"],
            Self::CoreDns => &["-version"],
            _ => &["--version"],
        }
    }

    /// Whether all files of the program are at `path`.
    pub(crate) fn complete(self, path: &Path) -> bool {
        match self {
            Self::CniPlugins => CNI_PLUGINS.iter().all(|p| path.join(p).is_file()),
            Self::Containerd => CONTAINERD.iter().all(|p| path.join(p).is_file()),
            _ => path.is_file(),
        }
    }
}

/// The plugins of a node's network.
pub(crate) const CNI_PLUGINS: [&str; 4] = ["bridge", "host-local", "portmap", "loopback"];

/// containerd, and what it starts beside each pod.
const CONTAINERD: [&str; 2] = ["containerd", "containerd-shim-runc-v2"];

/// `1.36.3-beta+x` → (1, 36, 3).
fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text
        .trim()
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .next()?
        .split('.')
        .map(|p| p.parse::<u32>());
    let mut next = || parts.next()?.ok();
    Some((next()?, next()?, next().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fitting_versions_are_taken_from_path() {
        for (program, printed, fits) in [
            (Program::KubeApiserver, "Kubernetes v1.36.3\n", true),
            (Program::KubeApiserver, "Kubernetes v1.35.0\n", false),
            (Program::Etcd, "etcd Version: 3.6.16\nGit SHA: x\n", true),
            (Program::Etcd, "etcd Version: 3.5.9\n", false),
            (Program::Runc, "runc version 1.4.3\nspec: 1.2.1\n", true),
            (Program::Runc, "runc version 1.3.6-rc.1\n", true),
            (Program::Runc, "runc version 1.1.5+ds1\n", false),
            (Program::Kubectl, "Client Version: v1.36.3\nKustomize Version: v5\n", true),
            (Program::Kubectl, "", false),
            (Program::Ginkgo, "Ginkgo Version 2.28.1\n", true),
            (Program::Ginkgo, "Ginkgo Version 1.16.5\n", false),
            (Program::Helm, "version.BuildInfo{Version:\"v3.22.0\", GitCommit:\"\"}\n", true),
            (Program::Helm, "Client: v2.17.0\n", false),
        ] {
            assert_eq!(program.fits(printed), fits, "{program:?} {printed}");
        }
    }
}
