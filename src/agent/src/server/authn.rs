//! Who asks: the client certificate that the handshake has verified, else a bearer token that the
//! API server reviews. Nobody is anonymous.

use super::cache::Cache;
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::Client;
use kube::api::{Api, PostParams};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::time::Duration;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How long a reviewed token is taken for good (`authentication.webhook.cacheTTL`).
const TOKEN_TTL: Duration = Duration::from_secs(120);
/// How long the API server may take.
const CALL: Duration = Duration::from_secs(10);

/// A user, as reviews name one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct User {
    /// The name.
    pub name: String,
    /// The UID, or nothing.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
    /// What else is known.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Why nobody knows who asks.
#[derive(Debug, thiserror::Error)]
pub enum AuthnError {
    /// The API server could not be asked.
    #[error("cannot review a token")]
    Review(#[source] kube::Error),
    /// It did not answer in time.
    #[error("no answer to a token review in {} s", CALL.as_secs())]
    Late,
}

/// The user of a client certificate in DER: CN is the name, O are the groups, as the API server has
/// it. None when there is no CN.
#[must_use]
pub fn of_certificate(der: &[u8]) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    if name.is_empty() {
        return None;
    }
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    groups.push("system:authenticated".to_owned());
    let credential = format!("X509SHA256={}", hex::encode(Sha256::digest(der)));
    let extra = [("authentication.kubernetes.io/credential-id".to_owned(), vec![credential])].into();
    Some(User { name, groups, extra, ..User::default() })
}

/// Reviews tokens.
pub struct Tokens {
    reviews: Api<TokenReview>,
    cache: Cache<[u8; 32], User>,
}

impl Tokens {
    /// Reviews by `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Tokens { reviews: Api::all(client), cache: Cache::new(1024) }
    }

    /// Whose token the headers carry; none when there is none or it is not good.
    ///
    /// # Errors
    /// [`AuthnError`] when the API server can't say.
    pub async fn user(&self, headers: &HeaderMap) -> Result<Option<User>, AuthnError> {
        let Some(token) = bearer(headers) else { return Ok(None) };
        // Only a digest is kept.
        let key: [u8; 32] = Sha256::digest(token).into();
        if let Some(user) = self.cache.get(&key) {
            return Ok(Some(user));
        }
        let spec = TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let params = PostParams::default();
        let answer = tokio::time::timeout(CALL, self.reviews.create(&params, &review));
        let answer = answer.await.map_err(|_| AuthnError::Late)?.map_err(AuthnError::Review)?;
        let status = answer.status.unwrap_or_default();
        let Some(user) = status.user.filter(|_| status.authenticated == Some(true)) else { return Ok(None) };
        let user = reviewed(user);
        self.cache.put(key, user.clone(), TOKEN_TTL);
        Ok(Some(user))
    }
}

fn reviewed(info: UserInfo) -> User {
    User {
        name: info.username.unwrap_or_default(),
        uid: info.uid.unwrap_or_default(),
        groups: info.groups.unwrap_or_default(),
        extra: info.extra.unwrap_or_default(),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    #[test]
    fn the_user_of_a_certificate() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        params.distinguished_name.push(DnType::CommonName, "admin");
        let certificate = params.self_signed(&key).unwrap();
        let user = of_certificate(certificate.der()).unwrap();
        assert_eq!((user.name.as_str(), user.groups.len()), ("admin", 2));
        assert_eq!(user.groups, ["system:masters", "system:authenticated"]);
        params.distinguished_name = rcgen::DistinguishedName::new();
        assert_eq!(of_certificate(params.self_signed(&key).unwrap().der()), None);
        assert_eq!(of_certificate(b"garbage"), None);
    }

    #[test]
    fn only_a_bearer_token_is_one() {
        for (value, token) in [
            ("Bearer x.y", Some("x.y")),
            ("bearer  z ", Some("z")),
            ("Basic eA==", None),
            ("Bearer ", None),
            ("x", None),
        ] {
            let headers = [(AUTHORIZATION, value.parse().unwrap())].into_iter().collect();
            assert_eq!(bearer(&headers), token, "{value}");
        }
    }
}
