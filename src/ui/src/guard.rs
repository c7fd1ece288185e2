//! Who is let in: a port on the loopback is open to every user of the machine and to every page in the
//! browser, so that each request must have the secret that the command printed: once as `?token=`, then as
//! a cookie that no script reads and no other site sends.

use http::HeaderMap;
use http::header::COOKIE;
use std::io::Read as _;

/// The secret of one run.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// A new one, of 128 bits.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn new() -> std::io::Result<Self> {
        let mut bytes = [0_u8; 16];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Secret(hex::encode(bytes)))
    }

    /// For the address that is printed.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether `said` is the secret, in a time that does not depend on where it differs.
    #[must_use]
    pub fn is(&self, said: &str) -> bool {
        let (own, said) = (self.0.as_bytes(), said.as_bytes());
        own.len() == said.len() && own.iter().zip(said).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }

    /// The cookie's name: browsers send cookies to every port of a host, so that two pages need two names.
    #[must_use]
    pub fn cookie_name(port: u16) -> String {
        format!("podway-ui-{port}")
    }

    /// The header that sets the cookie.
    #[must_use]
    pub fn set_cookie(&self, port: u16) -> String {
        format!("{}={}; Path=/; HttpOnly; SameSite=Strict", Self::cookie_name(port), self.0)
    }

    /// Whether a request has the cookie.
    #[must_use]
    pub fn is_in(&self, headers: &HeaderMap, port: u16) -> bool {
        let name = Self::cookie_name(port);
        headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .any(|(key, value)| key == name && self.is(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_secret_opens_and_two_runs_differ() {
        let secret = Secret::new().unwrap();
        assert_eq!(secret.reveal().len(), 32);
        assert!(!secret.is(Secret::new().unwrap().reveal()));
        assert!(secret.is(secret.reveal()) && !secret.is("") && !secret.is(&secret.reveal()[1..]));
    }

    #[test]
    fn the_cookie_is_found_among_others_and_only_under_its_port() {
        let secret = Secret::new().unwrap();
        let mut headers = HeaderMap::new();
        assert!(!secret.is_in(&headers, 1));
        let value = format!("a=b; podway-ui-1={}; c", secret.reveal());
        headers.insert(COOKIE, value.parse().unwrap());
        assert!(secret.is_in(&headers, 1) && !secret.is_in(&headers, 2));
        assert!(secret.set_cookie(1).contains("HttpOnly; SameSite=Strict"));
    }
}
