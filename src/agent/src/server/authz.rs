//! Whether they may: the API server is asked for the same verb and resource that the kubelet's API
//! stands for (`nodes/proxy`, `nodes/metrics`, `nodes/pods`, ...), and its answer is kept for a while.

use super::authn::User;
use super::cache::Cache;
use axum::http::Method;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};
use std::time::Duration;

/// How long a yes holds (`authorization.webhook.cacheAuthorizedTTL`).
const YES_TTL: Duration = Duration::from_secs(300);
/// How long a no holds (`authorization.webhook.cacheUnauthorizedTTL`).
const NO_TTL: Duration = Duration::from_secs(30);
/// How long the API server may take.
const CALL: Duration = Duration::from_secs(10);

/// What a request is, in the API server's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `create`, ...; empty for a method that has none.
    pub verb: &'static str,
    /// Any of these subresources of the node is enough, the first that is allowed counts.
    pub subresources: &'static [&'static str],
}

fn below(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The attributes of a request (`nodeAuthorizerAttributesGetter`, fine-grained as of 1.36). `/livez`
/// and `/readyz` are not the kubelet's; they are as `/healthz`.
#[must_use]
pub fn attributes(method: &Method, path: &str) -> Attributes {
    let verb = match *method {
        Method::POST => "create",
        Method::GET => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    };
    const MAP: &[(&str, &[&str])] = &[
        ("/stats", &["stats"]),
        ("/metrics", &["metrics"]),
        ("/logs", &["log"]),
        ("/checkpoint", &["checkpoint"]),
        ("/statusz", &["statusz"]),
        ("/flagz", &["configz"]),
        ("/pods", &["pods", "proxy"]),
        ("/runningpods", &["pods", "proxy"]),
        ("/healthz", &["healthz", "proxy"]),
        ("/livez", &["healthz", "proxy"]),
        ("/readyz", &["healthz", "proxy"]),
        ("/configz", &["configz", "proxy"]),
    ];
    let found = MAP.iter().find(|(root, _)| below(path, root));
    Attributes { verb, subresources: found.map_or(&["proxy"], |(_, subresources)| subresources) }
}

/// Why nobody knows whether they may.
#[derive(Debug, thiserror::Error)]
pub enum AuthzError {
    /// The API server could not be asked.
    #[error("cannot review an access")]
    Review(#[source] kube::Error),
    /// It did not answer in time.
    #[error("no answer to an access review in {} s", CALL.as_secs())]
    Late,
}

/// Reviews accesses to one node.
pub struct Access {
    node: String,
    reviews: Api<SubjectAccessReview>,
    cache: Cache<(User, &'static str, &'static str), bool>,
}

impl Access {
    /// Reviews accesses to `node` by `client`.
    #[must_use]
    pub fn new(client: Client, node: &str) -> Self {
        Access { node: node.to_owned(), reviews: Api::all(client), cache: Cache::new(1024) }
    }

    /// Whether `user` may.
    ///
    /// # Errors
    /// [`AuthzError`] when the API server can't say.
    pub async fn allowed(&self, user: &User, attributes: Attributes) -> Result<bool, AuthzError> {
        for subresource in attributes.subresources {
            if self.one(user, attributes.verb, subresource).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn one(&self, user: &User, verb: &'static str, sub: &'static str) -> Result<bool, AuthzError> {
        let key = (user.clone(), verb, sub);
        if let Some(allowed) = self.cache.get(&key) {
            return Ok(allowed);
        }
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: some(&user.name),
                uid: some(&user.uid),
                groups: Some(user.groups.clone()),
                extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: some(verb),
                    version: some("v1"),
                    resource: some("nodes"),
                    subresource: some(sub),
                    name: some(&self.node),
                    ..ResourceAttributes::default()
                }),
                non_resource_attributes: None,
            },
            ..SubjectAccessReview::default()
        };
        let params = PostParams::default();
        let answer = tokio::time::timeout(CALL, self.reviews.create(&params, &review));
        let answer = answer.await.map_err(|_| AuthzError::Late)?.map_err(AuthzError::Review)?;
        let allowed = answer.status.is_some_and(|status| status.allowed && status.denied != Some(true));
        self.cache.put(key, allowed, if allowed { YES_TTL } else { NO_TTL });
        Ok(allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_they_are_to_the_kubelet() {
        for (method, path, verb, subresources) in [
            (Method::GET, "/metrics", "get", &["metrics"][..]),
            (Method::GET, "/metrics/cadvisor", "get", &["metrics"]),
            (Method::GET, "/metricsx", "get", &["proxy"]),
            (Method::GET, "/pods", "get", &["pods", "proxy"]),
            (Method::GET, "/runningpods/", "get", &["pods", "proxy"]),
            (Method::GET, "/healthz/ping", "get", &["healthz", "proxy"]),
            (Method::POST, "/exec/ns/p/c", "create", &["proxy"]),
            (Method::GET, "/containerLogs/ns/p/c", "get", &["proxy"]),
            (Method::GET, "/logs/x", "get", &["log"]),
            (Method::GET, "/podway/pulls", "get", &["proxy"]),
            (Method::HEAD, "/", "", &["proxy"]),
        ] {
            assert_eq!(attributes(&method, path), Attributes { verb, subresources }, "{method} {path}");
        }
    }
}
