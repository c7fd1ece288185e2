//! The node's certificates, which the cluster signs: the first one as a client with a bootstrap credential
//! (`--bootstrap-kubeconfig`), and before each ends the next one (`rotateCertificates`,
//! `serverTLSBootstrap`), as client-go's certificate manager has it. Keys are made here and never leave
//! the machine.
//!
//! A certificate and its key lie in one file, `kubelet-client-<time>.pem`, and `kubelet-client-current.pem`
//! is a link to the newest: the names of a kubelet. A request is named after its key, and its key is kept
//! until it is signed: an agent that was killed goes on with the request that it had made.

pub mod client;
pub mod request;
pub mod rotate;
pub mod store;

use crate::{connection, files};
use client::Swap;
use kube::config::{AuthInfo, Context, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedContext};
use request::{Purpose, RequestError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::{Store, StoreError};

/// How long a first certificate is waited for.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Why there is no credential.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A kubeconfig.
    #[error("cannot use the kubeconfig {0}")]
    Kubeconfig(PathBuf, #[source] Box<kube::config::KubeconfigError>),
    /// It names no cluster, or cannot be written.
    #[error("the kubeconfig {0} cannot be made of the bootstrap one")]
    Made(PathBuf, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// No client can be built.
    #[error("cannot build a client of the kubeconfig {0}")]
    Client(PathBuf, #[source] Box<kube::Error>),
    /// The certificate's files.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cluster.
    #[error(transparent)]
    Request(#[from] RequestError),
}

async fn client(path: &Path) -> Result<kube::Client, CertificateError> {
    // A second install (by another part of the process) is refused, and the first one serves.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let bad = |e| CertificateError::Kubeconfig(path.to_owned(), Box::new(e));
    let file = Kubeconfig::read_from(path).map_err(bad)?;
    let config =
        kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(bad)?;
    connection::client(config).map_err(|e| CertificateError::Client(path.to_owned(), Box::new(e)))
}

/// A client of `kubeconfig` that follows the file.
///
/// # Errors
/// [`CertificateError`].
pub async fn swapping(kubeconfig: &Path) -> Result<Swap, CertificateError> {
    Ok(Swap::new(kubeconfig, client(kubeconfig).await?))
}

/// Makes sure that `kubeconfig` is there and its certificate valid: one is asked for with the credential of
/// `bootstrap` where it is not (`LoadClientCert`).
///
/// # Errors
/// [`CertificateError`].
pub async fn bootstrap(
    bootstrap: &Path,
    kubeconfig: &Path,
    dir: &Path,
    node: &str,
) -> Result<(), CertificateError> {
    let store = Store::new(dir, Purpose::Client.pair());
    if kubeconfig.exists()
        && store.current().is_ok_and(|c| c.is_some_and(|c| c.valid(jiff::Timestamp::now())))
    {
        tracing::info!("the kubeconfig is there and its certificate valid: no bootstrap");
        return Ok(());
    }
    tracing::info!("a client certificate is asked for with the bootstrap credential");
    let client = client(bootstrap).await?;
    let signed = request::certificate(&client, &store, Purpose::Client, node, &[], PATIENCE).await?;
    store.update(&signed)?;
    write(bootstrap, kubeconfig, &store.path())
}

/// The bootstrap kubeconfig's cluster, with the certificate instead of its credential.
fn write(bootstrap: &Path, kubeconfig: &Path, pem: &Path) -> Result<(), CertificateError> {
    let bad = |e| CertificateError::Kubeconfig(bootstrap.to_owned(), Box::new(e));
    let mut file = Kubeconfig::read_from(bootstrap).map_err(bad)?;
    let current = file.current_context.clone();
    let named = file.contexts.iter().find(|c| Some(&c.name) == current.as_ref());
    let cluster = named.and_then(|c| c.context.as_ref()).map(|c| c.cluster.clone()).unwrap_or_default();
    file.clusters.retain(|c| c.name == cluster);
    let name = "default-auth".to_owned();
    let path = Some(pem.display().to_string());
    let auth = AuthInfo { client_certificate: path.clone(), client_key: path, ..AuthInfo::default() };
    file.auth_infos =
        vec![NamedAuthInfo { name: name.clone(), auth_info: Some(auth), other: BTreeMap::new() }];
    let context = Context { cluster, user: Some(name), ..Context::default() };
    file.contexts = vec![NamedContext {
        name: "default-context".to_owned(),
        context: Some(context),
        other: BTreeMap::new(),
    }];
    file.current_context = Some("default-context".to_owned());
    let failed =
        |e: Box<dyn std::error::Error + Send + Sync>| CertificateError::Made(kubeconfig.to_owned(), e);
    let text = serde_yaml::to_string(&file).map_err(|e| failed(e.into()))?;
    files::replace_for_good(kubeconfig, 0o700, text.as_bytes()).map_err(|e| failed(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_is_made_of_the_bootstrap_one_without_its_credential() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("bootstrap"), dir.path().join("kubeconfig"));
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: k\n  cluster: {server: \
                    'https://10.0.0.1:6443', certificate-authority-data: QQ==}\n- name: other\n  cluster: \
                    {server: 'https://x'}\ncontexts:\n- name: c\n  context: {cluster: k, user: u}\nusers:\n- \
                    name: u\n  user: {token: secret.token}\n";
        std::fs::write(&from, text).unwrap();
        write(&from, &to, Path::new("/pki/kubelet-client-current.pem")).unwrap();
        let made = std::fs::read_to_string(&to).unwrap();
        assert!(!made.contains("secret") && !made.contains("other"), "{made}");
        let file = Kubeconfig::read_from(&to).unwrap();
        let cluster = file.clusters[0].cluster.as_ref().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://10.0.0.1:6443"));
        let user = file.auth_infos[0].auth_info.as_ref().unwrap();
        assert_eq!(user.client_key.as_deref(), Some("/pki/kubelet-client-current.pem"));
        assert_eq!(file.contexts[0].context.as_ref().unwrap().cluster, "k");
    }
}
