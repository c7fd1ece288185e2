//! Who pushes: what a registry asks for, and what docker's configuration has for it. Never printed.

use base64::Engine as _;
use docker_credential::DockerCredential;
use http::HeaderValue;
use serde::Deserialize;

use super::PushError;

/// What a 401 asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from somewhere else.
    Bearer(TokenServer),
}

/// Where a token is to be had.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TokenServer {
    realm: String,
    service: Option<String>,
}

impl Challenge {
    /// The best of the `WWW-Authenticate` headers that we know.
    pub(super) fn choose(headers: &[&str]) -> Option<Self> {
        let all = headers
            .iter()
            .filter_map(|h| http_auth::parser::ChallengeParser::new(h).collect::<Result<Vec<_>, _>>().ok());
        let all: Vec<_> = all.flatten().collect();
        let bearer = all.iter().filter(|c| c.scheme.eq_ignore_ascii_case("bearer")).find_map(|c| {
            let value = |name: &str| {
                let found = c.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            Some(Challenge::Bearer(TokenServer { realm: value("realm")?, service: value("service") }))
        });
        let basic = || all.iter().any(|c| c.scheme.eq_ignore_ascii_case("basic")).then_some(Challenge::Basic);
        bearer.or_else(basic)
    }
}

impl TokenServer {
    /// What is asked for a token that may push to `repository`.
    pub(super) fn url(&self, repository: &str) -> String {
        let joint = if self.realm.contains('?') { '&' } else { '?' };
        // A repository's letters need no escape; the service is the registry's own word.
        let service = self.service.as_deref().map(|s| format!("service={}&", s.replace(' ', "%20")));
        let service = service.unwrap_or_default();
        format!("{}{joint}{service}scope=repository:{repository}:pull,push", self.realm)
    }
}

/// User and password, or a token in their place.
pub(super) struct Credentials(DockerCredential);

/// What docker's `config.json` (or the helper that it names) has for a registry.
pub(super) fn credentials(host: &str) -> Result<Credentials, PushError> {
    // Docker's own name for its registry is a URL.
    let key = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
    let none = |why: docker_credential::CredentialRetrievalError| PushError::Credentials {
        host: host.to_owned(),
        why: why.to_string(),
    };
    docker_credential::get_credential(key).map(Credentials).map_err(none)
}

impl Credentials {
    /// The `Authorization` header.
    pub(super) fn header(&self) -> Result<HeaderValue, PushError> {
        let (user, password) = match &self.0 {
            DockerCredential::UsernamePassword(user, password) => (user.as_str(), password),
            DockerCredential::IdentityToken(token) => ("<token>", token),
        };
        let both = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        secret(format!("Basic {both}")).ok_or(PushError::Control)
    }
}

/// The header with the token of a token server's answer.
pub(super) fn bearer(body: &[u8]) -> Option<HeaderValue> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    secret(format!("Bearer {}", answer.token.or(answer.access_token)?))
}

/// A header that no log shows.
fn secret(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_challenge_is_chosen() {
        let server = |realm: &str, service: Option<&str>| {
            Challenge::Bearer(TokenServer { realm: realm.into(), service: service.map(str::to_owned) })
        };
        let both = r#"Basic realm="x", Bearer realm="https://a/token",service="s""#;
        assert_eq!(Challenge::choose(&[both]), Some(server("https://a/token", Some("s"))));
        assert_eq!(Challenge::choose(&["Negotiate", r#"Basic realm="x""#]), Some(Challenge::Basic));
        assert_eq!(Challenge::choose(&["Negotiate", "Bearer realm=\"x"]), None);
        let Some(Challenge::Bearer(plain)) = Challenge::choose(&[r#"Bearer realm="https://a/t?x=1""#]) else {
            panic!("no bearer");
        };
        assert_eq!(plain.url("team/p"), "https://a/t?x=1&scope=repository:team/p:pull,push");
    }

    #[test]
    fn a_token_is_read_and_hidden() {
        for answer in [r#"{"token":"abc"}"#, r#"{"access_token":"abc","expires_in":60}"#] {
            let header = bearer(answer.as_bytes()).unwrap();
            assert_eq!(header, "Bearer abc");
            assert!(!format!("{header:?}").contains("abc"), "{header:?}");
        }
        assert!(bearer(br#"{"token":"a\nb"}"#).is_none() && bearer(b"{}").is_none());
        let credentials = Credentials(DockerCredential::UsernamePassword("u".into(), "p".into()));
        assert_eq!(credentials.header().unwrap(), "Basic dTpw");
    }
}
