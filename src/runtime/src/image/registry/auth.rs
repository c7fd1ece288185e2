//! Credentials of a pull, and the challenges that ask for them.

use base64::Engine as _;

/// What a pull may prove itself with. Never printed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    pub(super) secret: Secret,
    /// `host[:port]` they are for; `None` for the image's registry.
    pub(super) server: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Secret {
    Basic {
        username: String,
        password: String,
    },
    Bearer(String),
    /// An OAuth2 refresh token, good for nothing but a token.
    Identity(String),
}

/// Why credentials were refused; says nothing of their value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// `auth` is not base64 of `user:password`.
    #[error("the auth field of the image pull credentials is not base64 of user:password")]
    Auth,
    /// A value that no HTTP header can carry.
    #[error("the image pull credentials have a control character")]
    Control,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(redacted)")
    }
}

impl Credentials {
    /// From CRI; `Ok(None)` where nothing is given.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn from_cri(auth: &podway_cri::v1::AuthConfig) -> Result<Option<Self>, CredentialsError> {
        let secret = if !auth.registry_token.is_empty() {
            Secret::Bearer(auth.registry_token.clone())
        } else if !auth.username.is_empty() {
            Secret::Basic { username: auth.username.clone(), password: auth.password.clone() }
        } else if !auth.auth.is_empty() {
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(auth.auth.trim_end_matches('\0'))
                .map_err(|_| CredentialsError::Auth)?;
            let text = String::from_utf8(bytes).map_err(|_| CredentialsError::Auth)?;
            let (username, password) = text.split_once(':').ok_or(CredentialsError::Auth)?;
            let password = password.trim_end_matches('\0');
            Secret::Basic { username: username.to_owned(), password: password.to_owned() }
        } else if auth.identity_token.is_empty() {
            return Ok(None);
        } else {
            Secret::Identity(auth.identity_token.clone())
        };
        let control = |t: &str| t.chars().any(char::is_control);
        let bad = match &secret {
            Secret::Basic { username, password } => control(username) || control(password),
            Secret::Bearer(token) | Secret::Identity(token) => control(token),
        };
        if bad {
            return Err(CredentialsError::Control);
        }
        let server = auth.server_address.trim_start_matches("https://").trim_start_matches("http://");
        let server = server.split('/').next().filter(|s| !s.is_empty()).map(str::to_owned);
        Ok(Some(Credentials { secret, server }))
    }

    /// May `endpoint` of `registry` see them? Without a server named: the registry itself only.
    pub(super) fn are_for(&self, endpoint: &crate::image::hosts::Endpoint, registry: &str) -> bool {
        match self.server.as_deref() {
            Some("index.docker.io") => registry == "docker.io" && !endpoint.mirror,
            Some(server) if server == endpoint.authority => true,
            Some(server) => server == registry && !endpoint.mirror,
            None => !endpoint.mirror,
        }
    }
}

impl Secret {
    /// The `Authorization` header's value.
    pub(super) fn header(&self) -> String {
        match self {
            Secret::Basic { username, password } => {
                let both = format!("{username}:{password}");
                format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(both))
            }
            Secret::Bearer(token) | Secret::Identity(token) => format!("Bearer {token}"),
        }
    }
}

/// What a 401 asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// Reads `WWW-Authenticate`.
    pub(super) fn parse(value: &str) -> Option<Self> {
        let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        let mut rest = rest.trim();
        while !rest.is_empty() {
            let (key, after) = rest.split_once('=')?;
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').map_or((after, ""), |(v, a)| (v, a)),
            };
            match key.trim().to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value.to_owned()),
                "service" => service = Some(value.to_owned()),
                "scope" => scope = Some(value.to_owned()),
                _ => {}
            }
            rest = after.trim_start_matches([',', ' ']);
        }
        Some(Challenge::Bearer { realm: realm?, service, scope })
    }
}

/// A query value, percent-encoded.
pub(super) fn encode(value: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        assert_eq!(Challenge::parse("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(
            Challenge::parse(
                "Bearer realm=\"https://a/token\",service=\"s\", scope=\"repository:a/b:pull,push\""
            ),
            Some(Challenge::Bearer {
                realm: "https://a/token".into(),
                service: Some("s".into()),
                scope: Some("repository:a/b:pull,push".into())
            })
        );
        assert_eq!(Challenge::parse("Bearer service=\"s\""), None);
        assert_eq!(Challenge::parse("Bearer realm=\"s"), None);
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(encode("repository:a/b:pull"), "repository%3Aa%2Fb%3Apull");
    }

    #[test]
    fn credentials_go_only_where_they_are_meant_to_and_are_never_printed() {
        let auth = |server: &str| podway_cri::v1::AuthConfig {
            auth: "dTpw".into(),
            server_address: server.into(),
            ..Default::default()
        };
        let own =
            crate::image::hosts::endpoints(None, &crate::image::ImageRef::parse("a.io/b").unwrap()).unwrap();
        let mut mirror = own[0].clone();
        mirror.mirror = true;
        mirror.authority = "m.io".into();
        for (server, to_own, to_mirror) in [
            ("", true, false),
            ("https://a.io/v1/", true, false),
            ("m.io", false, true),
            ("x.io", false, false),
        ] {
            let credentials = Credentials::from_cri(&auth(server)).unwrap().unwrap();
            assert_eq!(credentials.are_for(&own[0], "a.io"), to_own, "{server}");
            assert_eq!(credentials.are_for(&mirror, "a.io"), to_mirror, "{server}");
            assert_eq!(format!("{credentials:?}"), "Credentials(redacted)");
            assert_eq!(credentials.secret.header(), "Basic dTpw");
        }
        let bad = podway_cri::v1::AuthConfig { auth: "!".into(), ..Default::default() };
        assert_eq!(Credentials::from_cri(&bad), Err(CredentialsError::Auth));
    }
}
