//! Where things are in a state directory. Only names, no effects.

use std::path::{Path, PathBuf};

/// The paths of one cluster, all under its state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below `root`, which is made absolute by the caller.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The state directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `state.json`: what was started and made.
    pub fn state_file(&self) -> PathBuf {
        self.root.join("state.json")
    }

    /// The file that is locked while an `up` or a `down` works.
    pub fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The kubeconfig of the administrator (`system:masters`).
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.root.join("admin.kubeconfig")
    }

    /// The kubeconfig of a component, by its name.
    pub fn kubeconfig(&self, name: &str) -> PathBuf {
        self.root.join("kubeconfigs").join(format!("{name}.kubeconfig"))
    }

    /// The API server's audit log: JSON lines.
    pub fn audit_log(&self) -> PathBuf {
        self.root.join("audit.log")
    }

    /// The API server's audit policy.
    pub fn audit_policy(&self) -> PathBuf {
        self.root.join("audit-policy.yaml")
    }

    /// The directory of the daemons' logs.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The log of one daemon: its standard output and error.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// The directory of certificates and keys.
    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// A certificate in PEM.
    pub fn cert(&self, name: &str) -> PathBuf {
        self.pki().join(format!("{name}.crt"))
    }

    /// A private key in PEM (mode 0600).
    pub fn key(&self, name: &str) -> PathBuf {
        self.pki().join(format!("{name}.key"))
    }

    /// The data of etcd.
    pub fn etcd(&self) -> PathBuf {
        self.root.join("etcd")
    }

    /// The directory of one node's runtime, agent and CNI configuration.
    pub fn node(&self, name: &str) -> PathBuf {
        self.root.join("nodes").join(name)
    }

    /// The directory with links to what a user calls.
    pub fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// The directory of the local registry.
    pub fn registry(&self) -> PathBuf {
        self.root.join("registry")
    }
}
