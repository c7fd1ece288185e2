//! One certificate from the cluster: a `CertificateSigningRequest`, and the wait until somebody has
//! approved and its signer signed it. The agent approves nothing.

use super::store::{Signed, Store, StoreError};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::runtime::wait::await_condition;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData as _, SanType};
use sha2::{Digest as _, Sha256};
use std::net::IpAddr;
use std::time::Duration;

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The node as the API server's client.
    Client,
    /// The kubelet API as a server.
    Serving,
}

impl Purpose {
    /// The name of its files.
    #[must_use]
    pub fn pair(self) -> &'static str {
        match self {
            Purpose::Client => "kubelet-client",
            Purpose::Serving => "kubelet-server",
        }
    }

    fn signer(self) -> &'static str {
        match self {
            Purpose::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Purpose::Serving => "kubernetes.io/kubelet-serving",
        }
    }

    /// As for an ECDSA key: those of RSA have "key encipherment" too.
    fn usages(self) -> Vec<String> {
        let role = if self == Purpose::Client { "client auth" } else { "server auth" };
        vec!["digital signature".to_owned(), role.to_owned()]
    }
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The key or its file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The request could not be made.
    #[error("cannot make a certificate signing request")]
    Make(#[from] rcgen::Error),
    /// The API server.
    #[error("the API server does not take the certificate signing request {0}")]
    Api(String, #[source] Box<kube::Error>),
    /// Its watch.
    #[error("the certificate signing request {0} cannot be watched")]
    Watch(String, #[source] Box<kube::runtime::wait::Error>),
    /// Somebody said no.
    #[error("certificate signing request {name} is {what}, reason: {reason}, message: {message}")]
    Refused {
        /// The request.
        name: String,
        /// `denied` or `failed`.
        what: &'static str,
        /// The condition's reason.
        reason: String,
        /// ... and message.
        message: String,
    },
    /// Nobody said anything.
    #[error("certificate signing request {name} was not signed in {} s: it needs an approver and a signer", .after.as_secs())]
    Late {
        /// The request.
        name: String,
        /// How long was waited.
        after: Duration,
    },
}

/// What is to stand in the certificate beside the node's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// A DNS name.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

fn csr(key: &KeyPair, node: &str, names: &[Name]) -> Result<String, rcgen::Error> {
    let dns = names.iter().filter_map(|n| if let Name::Dns(name) = n { Some(name.clone()) } else { None });
    let mut params = CertificateParams::new(dns.collect::<Vec<_>>())?;
    let ips = names.iter().filter_map(|n| if let Name::Ip(ip) = n { Some(*ip) } else { None });
    params.subject_alt_names.extend(ips.map(SanType::IpAddress));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    params.serialize_request(key)?.pem()
}

/// The request's name: of its key and what it is for, so that whoever asks again finds the first
/// (`digestedName`).
fn name(key: &KeyPair, purpose: Purpose, node: &str, names: &[Name]) -> String {
    let mut hash = Sha256::new();
    hash.update(key.subject_public_key_info());
    hash.update(format!("|{purpose:?}|{node}|{names:?}"));
    let digest: String = hash.finalize().iter().take(20).map(|byte| format!("{byte:02x}")).collect();
    format!("node-csr-{digest}")
}

/// What became of a request: its certificate, or why there is none; nothing while it waits.
fn outcome(object: &CertificateSigningRequest) -> Option<Result<Vec<u8>, RequestError>> {
    let status = object.status.as_ref()?;
    for condition in status.conditions.iter().flatten() {
        let what = match condition.type_.as_str() {
            "Denied" => "denied",
            "Failed" => "failed",
            _ => continue,
        };
        return Some(Err(RequestError::Refused {
            name: object.metadata.name.clone().unwrap_or_default(),
            what,
            reason: condition.reason.clone().unwrap_or_default(),
            message: condition.message.clone().unwrap_or_default(),
        }));
    }
    status.certificate.as_ref().filter(|c| !c.0.is_empty()).map(|c| Ok(c.0.clone()))
}

/// Asks for a certificate of the node `node` with `names`, and waits for it for at most `patience`. The
/// key is the store's pending one, which is kept while the request may still be answered.
///
/// # Errors
/// [`RequestError`].
pub async fn certificate(
    client: &Client,
    store: &Store,
    purpose: Purpose,
    node: &str,
    names: &[Name],
    patience: Duration,
) -> Result<Signed, RequestError> {
    let key = store.key()?;
    let name = name(&key, purpose, node, names);
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let wanted = CertificateSigningRequest {
        metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(csr(&key, node, names)?.into_bytes()),
            signer_name: purpose.signer().to_owned(),
            usages: Some(purpose.usages()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    match api.create(&PostParams::default(), &wanted).await {
        Ok(_) => tracing::info!(name, signer = purpose.signer(), "asked for a certificate"),
        // Ours of before: its name is that of our key.
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
        Err(error) => return Err(RequestError::Api(name, Box::new(error))),
    }
    // One that is gone was swept away unanswered.
    let answered = |object: Option<&CertificateSigningRequest>| object.is_none_or(|o| outcome(o).is_some());
    let wait = tokio::time::timeout(patience, await_condition(api, &name, answered)).await;
    let late = || RequestError::Late { name: name.clone(), after: patience };
    let found = wait.map_err(|_| late())?;
    let found = found.map_err(|e| RequestError::Watch(name.clone(), Box::new(e)))?;
    match found.as_ref().and_then(outcome) {
        Some(Ok(chain)) => Ok(Signed { chain, key: key.serialize_pem() }),
        Some(Err(refused)) => {
            // The same key would find the same answer.
            store.forget()?;
            Err(refused)
        }
        None => {
            store.forget()?;
            Err(late())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_request_says_who_the_node_is() {
        let key = KeyPair::generate().unwrap();
        let names = [Name::Dns("n".into()), Name::Ip([10, 0, 0, 1].into())];
        let pem = csr(&key, "n", &names).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let (_, parsed) = <x509_parser::certification_request::X509CertificationRequest<'_> as
            x509_parser::prelude::FromDer<'_, _>>::from_der(&pem.contents).unwrap();
        let subject = parsed.certification_request_info.subject.to_string();
        assert_eq!(subject, "O=system:nodes, CN=system:node:n");
        let other = KeyPair::generate().unwrap();
        let of = |key, purpose, names: &[Name]| name(key, purpose, "n", names);
        let first = of(&key, Purpose::Client, &[]);
        assert!(first.starts_with("node-csr-") && first.len() == 49, "{first}");
        assert_eq!(first, of(&key, Purpose::Client, &[]));
        for differs in [
            of(&other, Purpose::Client, &[]),
            of(&key, Purpose::Serving, &[]),
            of(&key, Purpose::Client, &names),
        ] {
            assert_ne!(first, differs);
        }
    }

    #[test]
    fn what_became_of_it() {
        let of = |status: serde_json::Value| {
            let object = json!({"metadata": {"name": "r"}, "spec": {"request": "", "signerName": "s"}, "status": status});
            outcome(&serde_json::from_value(object).unwrap())
        };
        let condition =
            |kind: &str| json!([{"type": kind, "status": "True", "reason": "Why", "message": "m"}]);
        assert!(of(json!({})).is_none());
        assert!(of(json!({"conditions": condition("Approved")})).is_none(), "approved, not signed");
        assert_eq!(
            of(json!({"conditions": condition("Approved"), "certificate": "QQ=="})).unwrap().unwrap(),
            b"A"
        );
        let denied = of(json!({"conditions": condition("Denied")})).unwrap().unwrap_err().to_string();
        assert_eq!(denied, "certificate signing request r is denied, reason: Why, message: m");
        assert!(of(json!({"conditions": condition("Failed")})).unwrap().is_err());
    }
}
