//! A client from a kubeconfig, and the namespace that its context names.

use crate::commands::Hinted;
use anyhow::Context as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::path::Path;

/// A client and the default namespace, as [`config`] finds them.
pub(crate) async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<(Client, String)> {
    let config = config(kubeconfig).await?;
    let namespace = config.default_namespace.clone();
    Ok((Client::try_from(config).context("building the client")?, namespace))
}

/// Where the API server is and who we are: from `kubeconfig`, else as kubectl finds them
/// (`KUBECONFIG`, `~/.kube/config`, the pod's service account).
pub(crate) async fn config(kubeconfig: Option<&Path>) -> anyhow::Result<Config> {
    // A second install (by a test in the same process) is refused, and the first one serves.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let hint = "give --kubeconfig FILE or set KUBECONFIG";
    Ok(match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .with_context(|| Hinted::new(format!("reading kubeconfig {}", path.display()), hint))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .with_context(|| Hinted::new(format!("using kubeconfig {}", path.display()), hint))?
        }
        None => Config::infer().await.with_context(|| Hinted::new("no cluster is configured", hint))?,
    })
}
