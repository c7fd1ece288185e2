//! Ids of sandboxes and containers: 64 lower-case hex digits, parsed before they touch a path.

use rustix::fs::{Mode, OFlags};

/// A valid id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

/// Not an id.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an id: 64 hex digits are expected")]
pub struct InvalidId(String);

impl Id {
    /// A new random id.
    ///
    /// # Errors
    /// The kernel's, when `/dev/urandom` cannot be read.
    pub fn random() -> std::io::Result<Self> {
        let fd = rustix::fs::open("/dev/urandom", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut bytes = [0u8; 32];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += rustix::io::read(&fd, &mut bytes[filled..])?;
        }
        Ok(Id(hex::encode(bytes)))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, for people.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl TryFrom<String> for Id {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        let valid =
            text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if valid { Ok(Id(text)) } else { Err(InvalidId(podway_flow::record::bounded(&text, 80))) }
    }
}

impl From<Id> for String {
    fn from(id: Id) -> String {
        id.0
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_64_hex_digits_are_an_id() {
        assert_ne!(Id::random().unwrap(), Id::random().unwrap());
        for bad in ["", "../../etc", &"A".repeat(64), &"a".repeat(63)] {
            assert!(Id::try_from(bad.to_string()).is_err(), "{bad}");
        }
    }
}
