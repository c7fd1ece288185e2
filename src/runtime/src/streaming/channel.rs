//! The Kubernetes channel protocol over WebSocket: the first byte of a message names the channel.
//! Versions 4 and 5, and the one before them; binary, or text with base64. Pure.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

/// Standard input, from the client.
const STDIN: u8 = 0;
/// Standard output.
pub const STDOUT: u8 = 1;
/// Standard error.
pub const STDERR: u8 = 2;
/// How it ended.
pub const ERROR: u8 = 3;
/// The terminal's size, from the client.
const RESIZE: u8 = 4;
/// Version 5: the next byte names a channel that ends.
const CLOSE: u8 = 255;

/// How an end is told, and whether a channel ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// A failure as a line of text, nothing for a success (versions 1 to 3 of the SPDY protocol as well).
    V1,
    /// A `metav1.Status`.
    V4,
    /// A channel can be closed by itself.
    V5,
}

/// What both sides speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Its version.
    pub version: Version,
    base64: bool,
}

/// The subprotocols, as clients name them.
pub const NAMES: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];

impl Protocol {
    /// The protocol of a name; the empty one is the oldest.
    #[must_use]
    pub fn named(name: &str) -> Option<Protocol> {
        let (version, base64) = match name {
            "v5.channel.k8s.io" => (Version::V5, false),
            "v4.channel.k8s.io" => (Version::V4, false),
            "v4.base64.channel.k8s.io" => (Version::V4, true),
            "channel.k8s.io" | "" => (Version::V1, false),
            "base64.channel.k8s.io" => (Version::V1, true),
            _ => return None,
        };
        Some(Protocol { version, base64 })
    }

    /// A message on a channel.
    #[must_use]
    pub fn write(self, channel: u8, data: &[u8]) -> Message {
        if self.base64 {
            return Message::text(format!("{channel}{}", BASE64_STANDARD.encode(data)));
        }
        let mut message = Vec::with_capacity(1 + data.len());
        message.push(channel);
        message.extend_from_slice(data);
        Message::binary(message)
    }

    /// The channel and the bytes of a client's message; `None` for one that is of no use.
    #[must_use]
    pub fn open(self, message: &Bytes) -> Option<(u8, Bytes)> {
        let channel = *message.first()?;
        let data = message.slice(1..);
        if !self.base64 {
            return Some((channel, data));
        }
        Some((channel.checked_sub(b'0')?, BASE64_STANDARD.decode(&data).ok()?.into()))
    }

    /// Reads a client's message. What is not understood is nothing: a newer client must not be cut off.
    #[must_use]
    pub fn read(self, message: &Bytes) -> Option<Said> {
        let (channel, data) = self.open(message)?;
        match channel {
            STDIN => (!data.is_empty()).then_some(Said::Stdin(data)),
            CLOSE => (self.version == Version::V5 && data == [STDIN][..]).then_some(Said::EndOfStdin),
            RESIZE => size(&serde_json::from_slice(&data).ok()?),
            _ => None,
        }
    }
}

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Bytes for standard input.
    Stdin(Bytes),
    /// Standard input has ended.
    EndOfStdin,
    /// The terminal has this many columns and rows now.
    Resize(u16, u16),
    /// The client has left.
    Left,
}

/// The size in a resize message.
#[must_use]
pub fn size(message: &serde_json::Value) -> Option<Said> {
    let side = |name: &str| u16::try_from(message.get(name)?.as_u64()?).ok();
    Some(Said::Resize(side("Width")?, side("Height")?))
}

/// How it ended, as clients read it on the error channel (`k8s.io/client-go/tools/remotecommand`);
/// `None` where nothing is said.
#[must_use]
pub fn status(version: Version, result: &Result<i32, String>) -> Option<String> {
    let message = match result {
        Ok(0) => String::new(),
        Ok(code) => format!("command terminated with non-zero exit code: exit status {code}"),
        Err(message) => format!("Internal error occurred: {message}"),
    };
    if version == Version::V1 {
        return (!message.is_empty()).then_some(message);
    }
    let status = match result {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": message,
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(_) => json!({
            "metadata": {}, "status": "Failure", "reason": "InternalError", "message": message, "code": 500,
        }),
    };
    Some(status.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_known_by_name() {
        assert!(NAMES.iter().all(|name| Protocol::named(name).is_some()));
        assert_eq!(Protocol::named("").unwrap().version, Version::V1);
        assert_eq!(Protocol::named("SPDY/3.1+portforward.k8s.io"), None);
    }

    #[test]
    fn messages_are_read() {
        let read = |name: &str, message: &'static [u8]| Protocol::named(name).unwrap().read(&message.into());
        let stdin = || Some(Said::Stdin(Bytes::from_static(b"hi")));
        for (message, v4, v5) in [
            (&b"\0hi"[..], stdin(), stdin()),
            (b"\xff\0", None, Some(Said::EndOfStdin)),
            (b"\xff\x01", None, None),
            (b"\x04{\"Width\":80,\"Height\":24}", Some(Said::Resize(80, 24)), Some(Said::Resize(80, 24))),
            (b"\x04{\"Width\":-1}", None, None),
            (b"\x01x", None, None),
            (b"", None, None),
            (b"\0", None, None),
        ] {
            let got = (read("v4.channel.k8s.io", message), read("v5.channel.k8s.io", message));
            assert_eq!(got, (v4, v5), "{message:?}");
        }
        assert_eq!(read("v4.base64.channel.k8s.io", b"0aGk="), stdin());
        for bad in [&b"0a"[..], b"\0aGk=", b"0!!!!", b""] {
            assert_eq!(read("base64.channel.k8s.io", bad), None, "{bad:?}");
        }
    }

    #[test]
    fn messages_are_written() {
        let write = |name: &str| Protocol::named(name).unwrap().write(STDOUT, b"hi");
        assert_eq!(write("v5.channel.k8s.io"), Message::binary(b"\x01hi".to_vec()));
        assert_eq!(write("base64.channel.k8s.io"), Message::text("1aGk="));
    }

    #[test]
    fn an_exit_code_is_told_as_a_status() {
        let text = status(Version::V4, &Ok(3)).unwrap();
        assert!(text.contains("\"ExitCode\"") && text.contains("\"3\""));
        assert!(status(Version::V5, &Ok(0)).unwrap().contains("Success"));
        assert_eq!(status(Version::V1, &Ok(0)), None);
        assert!(status(Version::V1, &Err("x".to_owned())).unwrap().ends_with("occurred: x"));
    }
}
