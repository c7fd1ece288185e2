//! An extender that is reached over HTTP.

use super::spec::{Pem, Spec};
use super::wire::{self, Answer};
use super::{Extender, ExtenderError, Filtered, MetaVictims};
use crate::cache::NodeState;
use crate::framework::{Candidate, Placement};
use crate::model::PodInfo;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use k8s_openapi::api::core::v1::Container;
use kube::client::Body;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::error::Error;

/// The longest answer that is read; 5,000 whole nodes are a few tens of MiB.
const LONGEST: usize = 256 << 20;

/// Why an extender cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The URL is none.
    #[error("urlPrefix {0:?} is not an http or https URL")]
    Url(String),
    /// A file is not there.
    #[error("reading {0}")]
    Read(String, #[source] std::io::Error),
    /// Not PEM.
    #[error("the certificates of caFile or caData are not PEM")]
    Pem(#[source] rustls_pki_types::pem::Error),
    /// The two exclude each other.
    #[error("specifying a root certificates file with the insecure flag is not allowed")]
    InsecureAuthority,
    /// The client is none.
    #[error("a client for the extender cannot be made")]
    Client(#[source] Box<kube::Error>),
}

/// The extender.
pub struct HttpExtender {
    spec: Spec,
    client: kube::Client,
    runtime: tokio::runtime::Handle,
}

impl HttpExtender {
    /// Makes its client; within a runtime.
    ///
    /// # Errors
    /// [`SpecError`] when a URL, a file or a certificate is not one.
    pub fn new(spec: Spec) -> Result<Self, SpecError> {
        let wrong = || SpecError::Url(spec.url.clone());
        let url: Uri = spec.url.trim_end_matches('/').parse().map_err(|_| wrong())?;
        if !matches!(url.scheme_str(), Some("http" | "https")) || url.query().is_some() {
            return Err(wrong());
        }
        let mut config = kube::Config::new(url);
        config.connect_timeout = Some(spec.timeout);
        (config.read_timeout, config.write_timeout) = (None, None);
        // One answer is the answer, as upstream takes it.
        config.default_retry = false;
        config.tls_server_name.clone_from(&spec.tls.server_name);
        if let Some(authority) = &spec.tls.authority {
            if spec.tls.insecure {
                return Err(SpecError::InsecureAuthority);
            }
            let pem = read(authority)?;
            let all = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
            config.root_cert = Some(all.map_err(SpecError::Pem)?.into_iter().map(|c| c.to_vec()).collect());
        }
        config.accept_invalid_certs = spec.tls.insecure || (spec.https && spec.tls.authority.is_none());
        if let Some((certificate, key)) = &spec.tls.identity {
            config.auth_info.client_certificate_data = Some(BASE64_STANDARD.encode(read(certificate)?));
            config.auth_info.client_key_data = Some(BASE64_STANDARD.encode(read(key)?).into());
        }
        let client = kube::Client::try_from(config).map_err(|e| SpecError::Client(Box::new(e)))?;
        Ok(HttpExtender { spec, client, runtime: tokio::runtime::Handle::current() })
    }

    /// Asks, and reads the answer.
    async fn send<T>(
        &self,
        verb: &str,
        args: &impl Serialize,
        parse: impl FnOnce(Value) -> Result<T, Answer>,
    ) -> Result<T, ExtenderError> {
        let url = format!("{}/{verb}", self.spec.url.trim_end_matches('/'));
        let unread = |reason: String| ExtenderError::Unread { url: url.clone(), reason };
        let unreached = |reason: String| ExtenderError::Unreached { url: url.clone(), reason };
        let body = serde_json::to_vec(args).map_err(|e| unreached(e.to_string()))?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("/{verb}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .map_err(|e| unreached(e.to_string()))?;
        let exchange = async {
            let answer = self.client.send(request).await.map_err(|e| unreached(chain(&e)))?;
            if answer.status() != StatusCode::OK {
                let (verb, url, code) = (verb.to_owned(), url.clone(), answer.status().as_u16());
                return Err(ExtenderError::Code { verb, url, code });
            }
            let whole = Limited::new(answer.into_body(), LONGEST).collect().await;
            Ok(whole.map_err(|e| unread(chain(&*e)))?.to_bytes())
        };
        let late = |_| unreached("context deadline exceeded".to_owned());
        let bytes = tokio::time::timeout(self.spec.timeout, exchange).await.map_err(late)??;
        let value = serde_json::from_slice(&bytes).map_err(|e| unread(e.to_string()))?;
        parse(value).map_err(|answer| match answer {
            Answer::Said(error) => ExtenderError::Said(error),
            Answer::Unread(reason) => unread(reason),
        })
    }

    fn args<'a>(&self, pod: &'a PodInfo, nodes: &[&'a NodeState]) -> Result<wire::Args<'a>, ExtenderError> {
        let (mut whole, mut names) = (None, None);
        if self.spec.knows_nodes {
            names = Some(nodes.iter().map(|n| &*n.info.name).collect());
        } else {
            let one = |n: &&'a NodeState| {
                let kept = || ExtenderError::NotKept(format!("node {}", n.info.name));
                n.info.original.get().ok_or_else(kept)
            };
            let items = nodes.iter().map(one).collect::<Result<_, _>>()?;
            whole = Some(wire::NodeList { metadata: wire::Empty {}, items });
        }
        Ok(wire::Args { pod: wire::whole(pod)?, nodes: whole, node_names: names })
    }
}

fn read(pem: &Pem) -> Result<Vec<u8>, SpecError> {
    match pem {
        Pem::Data(data) => Ok(data.clone()),
        Pem::File(path) => std::fs::read(path).map_err(|e| SpecError::Read(path.display().to_string(), e)),
    }
}

/// An error with what caused it, each once.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

impl Extender for HttpExtender {
    fn name(&self) -> &str {
        &self.spec.url
    }

    fn ignorable(&self) -> bool {
        self.spec.ignorable
    }

    /// IsInterested: of what its containers and init containers name, whatever the amount.
    fn interested(&self, pod: &PodInfo) -> bool {
        if self.spec.managed.is_empty() {
            return true;
        }
        let Some(spec) = pod.original.get().and_then(|pod| pod.spec.as_ref()) else { return false };
        let names = |c: &Container| {
            let Some(resources) = &c.resources else { return false };
            let mut all = resources.requests.iter().chain(&resources.limits).flatten();
            all.any(|(name, _)| self.spec.managed.contains(name))
        };
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(names)
    }

    fn filters(&self) -> bool {
        self.spec.filter.is_some()
    }

    fn weight(&self) -> Option<i64> {
        self.spec.prioritize.as_ref().map(|(_, weight)| *weight)
    }

    fn preempts(&self) -> bool {
        self.spec.preempt.is_some()
    }

    fn binds(&self) -> bool {
        self.spec.bind.is_some()
    }

    fn filter(&self, pod: &PodInfo, nodes: &[&NodeState]) -> Result<Filtered, ExtenderError> {
        let verb = self.spec.filter.as_deref().unwrap_or_default();
        let (args, knows) = (self.args(pod, nodes)?, self.spec.knows_nodes);
        self.runtime.block_on(self.send(verb, &args, |value| wire::filtered(value, knows)))
    }

    fn prioritize(&self, pod: &PodInfo, nodes: &[&NodeState]) -> Result<Vec<(String, i64)>, ExtenderError> {
        let verb = self.spec.prioritize.as_ref().map_or("", |(verb, _)| verb);
        self.runtime.block_on(self.send(verb, &self.args(pod, nodes)?, wire::prioritized))
    }

    fn preempt(
        &self,
        pod: &PodInfo,
        candidates: &[Candidate],
    ) -> Result<BTreeMap<String, MetaVictims>, ExtenderError> {
        let verb = self.spec.preempt.as_deref().unwrap_or_default();
        let args = wire::PreemptionArgs::of(pod, candidates, self.spec.knows_nodes)?;
        self.runtime.block_on(self.send(verb, &args, wire::preempted))
    }

    fn bind<'a>(&'a self, placement: &'a Placement) -> BoxFuture<'a, Result<(), ExtenderError>> {
        async move {
            let verb = self.spec.bind.as_deref().unwrap_or_default();
            self.send(verb, &wire::BindingArgs::of(placement), wire::bound).await
        }
        .boxed()
    }
}
