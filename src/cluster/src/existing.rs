//! Identities in a cluster that exists (`--kubeconfig`): by certificate signing requests.
//!
//! The key never leaves the machine. The request is approved by the user whose kubeconfig it is,
//! and signed by the cluster's own controller manager. Signers and names are those that
//! kubelets have, so that the Node authorizer knows our agents.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use rcgen::KeyPair;

use crate::connect::ConnectError;
use crate::layout::Layout;
use crate::pki::{self, Identity, PkiError};
use crate::state::{StateError, write_private};

/// Why an identity was not given.
#[derive(Debug, thiserror::Error)]
pub enum ExistingError {
    /// The kubeconfig cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The key or the request could not be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] StateError),
    /// The API server is not to be reached from the nodes.
    #[error(
        "the API server {server} of the kubeconfig is on loopback, which podway's nodes do not reach; \
         give a kubeconfig with the machine's address (kind get kubeconfig --internal)"
    )]
    Loopback {
        /// Its URL.
        server: String,
    },
    /// The kubeconfig has no certificate authority.
    #[error(
        "the kubeconfig has no certificate-authority; a cluster without TLS verification is not supported"
    )]
    NoAuthority,
    /// The cluster refused.
    #[error("the cluster refuses to {what} the certificate signing request {name}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// The request.
        name: String,
        /// The cause.
        #[source]
        source: kube::Error,
    },
    /// The request was not signed.
    #[error(
        "the cluster did not sign {name} within {seconds} s; does its controller manager sign for {signer}?"
    )]
    Unsigned {
        /// The request.
        name: String,
        /// The signer.
        signer: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// The watch of the request failed.
    #[error("cannot watch the certificate signing request {name}")]
    Watch {
        /// The request.
        name: String,
        /// The cause.
        #[source]
        source: kube::runtime::wait::Error,
    },
}

/// A cluster that exists.
pub(crate) struct Existing {
    pub client: Client,
    pub server: String,
}

const LIMIT: Duration = Duration::from_secs(30);

/// Who signs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Signer {
    /// Clients in general.
    Client,
    /// Nodes as clients.
    NodeClient,
    /// Nodes as servers.
    NodeServing,
}

impl Signer {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "kubernetes.io/kube-apiserver-client",
            Self::NodeClient => "kubernetes.io/kube-apiserver-client-kubelet",
            Self::NodeServing => "kubernetes.io/kubelet-serving",
        }
    }

    fn usages(self) -> Vec<String> {
        let role = if matches!(self, Self::NodeServing) { "server auth" } else { "client auth" };
        vec!["digital signature".to_owned(), role.to_owned()]
    }
}

impl Existing {
    /// Reaches the cluster of a kubeconfig and keeps its CA as the state directory's.
    pub(crate) async fn open(layout: &Layout, path: &std::path::Path) -> Result<Self, ExistingError> {
        let name = || path.display().to_string();
        let bad = |source| ConnectError::Kubeconfig { path: name(), source };
        let file = Kubeconfig::read_from(path).map_err(bad)?;
        let config =
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(bad)?;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let host = config.cluster_url.host().unwrap_or_default();
        let loopback = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        if host == "localhost" || loopback.is_ok_and(|a| a.is_loopback()) {
            return Err(ExistingError::Loopback { server });
        }
        let Some(root) = &config.root_cert else { return Err(ExistingError::NoAuthority) };
        crate::state::private_dir(&layout.pki())?;
        write_private(&layout.cert("ca"), pki::pem("CERTIFICATE", root).as_bytes())?;
        let client =
            Client::try_from(config).map_err(|source| ConnectError::Client { path: name(), source })?;
        Ok(Self { client, server })
    }

    /// Gets a certificate for an identity, unless there is one.
    pub(crate) async fn issue(
        &self,
        layout: &Layout,
        identity: &Identity,
        signer: Signer,
    ) -> Result<(), ExistingError> {
        let (cert, key) = (layout.cert(&identity.name), layout.key(&identity.name));
        if cert.exists() && key.exists() {
            return Ok(());
        }
        let pair = KeyPair::generate().map_err(pki::failed(&identity.name))?;
        let request = pki::request(identity, &pair)?;
        let signed = self.sign(request, signer, &identity.name).await?;
        write_private(&key, pair.serialize_pem().as_bytes())?;
        write_private(&cert, &signed)?;
        Ok(())
    }

    async fn sign(&self, pem: String, signer: Signer, identity: &str) -> Result<Vec<u8>, ExistingError> {
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let wanted = CertificateSigningRequest {
            metadata: ObjectMeta {
                generate_name: Some(format!("podway-{identity}-")),
                ..ObjectMeta::default()
            },
            spec: CertificateSigningRequestSpec {
                request: ByteString(pem.into_bytes()),
                signer_name: signer.name().to_owned(),
                usages: Some(signer.usages()),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        };
        let refused = |what: &'static str, name: &str| {
            let name = name.to_owned();
            move |source| ExistingError::Refused { what, name, source }
        };
        let made = api.create(&PostParams::default(), &wanted).await.map_err(refused("take", identity))?;
        let name = made.metadata.name.unwrap_or_default();
        let approval = serde_json::json!({"status": {"conditions": [{
            "type": "Approved",
            "status": "True",
            "reason": "PodwayUp",
            "message": "approved by the user of podway up",
        }]}});
        api.patch_approval(&name, &PatchParams::default(), &Patch::Merge(&approval))
            .await
            .map_err(refused("approve", &name))?;
        let certificate = |object: &CertificateSigningRequest| -> Option<Vec<u8>> {
            Some(object.status.as_ref()?.certificate.as_ref()?.0.clone())
        };
        let there = |object: Option<&CertificateSigningRequest>| object.and_then(certificate).is_some();
        let wait = kube::runtime::wait::await_condition(api.clone(), &name, there);
        let unsigned = || ExistingError::Unsigned {
            name: name.clone(),
            signer: signer.name(),
            seconds: LIMIT.as_secs(),
        };
        let found = tokio::time::timeout(LIMIT, wait).await.map_err(|_| unsigned())?;
        let found = found.map_err(|source| ExistingError::Watch { name: name.clone(), source })?;
        found.as_ref().and_then(certificate).ok_or_else(unsigned)
    }
}
