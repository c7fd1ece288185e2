//! The Kubernetes channel protocol over WebSocket, versions 4 and 5: the first byte of a binary
//! message names the channel. Pure.

use serde_json::json;

/// Standard input, from the client.
const STDIN: u8 = 0;
/// Standard output.
pub const STDOUT: u8 = 1;
/// Standard error.
pub const STDERR: u8 = 2;
/// How it ended, as a `metav1.Status`.
pub const ERROR: u8 = 3;
/// The terminal's size, from the client.
const RESIZE: u8 = 4;
/// Version 5: the next byte names a channel that ends.
const CLOSE: u8 = 255;

/// What both sides speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Standard input ends with the connection.
    V4,
    /// A channel can be closed by itself.
    V5,
}

impl Version {
    /// The first one of a `Sec-WebSocket-Protocol` list that we speak.
    #[must_use]
    pub fn choose(offered: &str) -> Option<Version> {
        offered.split(',').find_map(|p| match p.trim() {
            "v5.channel.k8s.io" => Some(Version::V5),
            "v4.channel.k8s.io" => Some(Version::V4),
            _ => None,
        })
    }

    /// Its subprotocol's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Version::V4 => "v4.channel.k8s.io",
            Version::V5 => "v5.channel.k8s.io",
        }
    }
}

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// Bytes for standard input.
    Stdin(&'a [u8]),
    /// Standard input has ended.
    EndOfStdin,
    /// The terminal has this many columns and rows now.
    Resize(u16, u16),
    /// Something that is of no use to us: an empty message, a channel that only we write.
    Nothing,
}

/// Reads a client's binary message. What is not understood is nothing: a newer client must not be cut off.
#[must_use]
pub fn read(version: Version, message: &[u8]) -> Said<'_> {
    match message {
        [STDIN, data @ ..] if !data.is_empty() => Said::Stdin(data),
        [CLOSE, STDIN] if version == Version::V5 => Said::EndOfStdin,
        [RESIZE, data @ ..] => {
            let size: serde_json::Value = serde_json::from_slice(data).unwrap_or_default();
            let side = |name: &str| u16::try_from(size.get(name)?.as_u64()?).ok();
            side("Width").zip(side("Height")).map_or(Said::Nothing, |(w, h)| Said::Resize(w, h))
        }
        _ => Said::Nothing,
    }
}

/// A message on a channel.
#[must_use]
pub fn write(channel: u8, data: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(1 + data.len());
    message.push(channel);
    message.extend_from_slice(data);
    message
}

/// How a command ended, as clients read it (`k8s.io/client-go/tools/remotecommand`).
#[must_use]
pub fn status(result: Result<i32, String>) -> Vec<u8> {
    let status = match result {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(message) => json!({
            "metadata": {}, "status": "Failure", "reason": "InternalError", "message": message, "code": 500,
        }),
    };
    write(ERROR, status.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_protocol_is_spoken() {
        assert_eq!(Version::choose("v5.channel.k8s.io, v4.channel.k8s.io"), Some(Version::V5));
        assert_eq!(Version::choose("v6.channel.k8s.io,v4.channel.k8s.io"), Some(Version::V4));
        assert_eq!(Version::choose("SPDY/3.1+portforward.k8s.io"), None);
    }

    #[test]
    fn messages_are_read() {
        for (message, v4, v5) in [
            (&b"\0hi"[..], Said::Stdin(b"hi"), Said::Stdin(b"hi")),
            (b"\xff\0", Said::Nothing, Said::EndOfStdin),
            (b"\xff\x01", Said::Nothing, Said::Nothing),
            (b"\x04{\"Width\":80,\"Height\":24}", Said::Resize(80, 24), Said::Resize(80, 24)),
            (b"\x04{\"Width\":-1}", Said::Nothing, Said::Nothing),
            (b"\x01x", Said::Nothing, Said::Nothing),
            (b"", Said::Nothing, Said::Nothing),
            (b"\0", Said::Nothing, Said::Nothing),
        ] {
            assert_eq!((read(Version::V4, message), read(Version::V5, message)), (v4, v5), "{message:?}");
        }
    }

    #[test]
    fn an_exit_code_is_told_as_a_status() {
        let text = String::from_utf8(status(Ok(3))).unwrap();
        assert!(text.starts_with('\u{3}') && text.contains("\"ExitCode\"") && text.contains("\"3\""));
        assert!(String::from_utf8(status(Ok(0))).unwrap().contains("Success"));
    }
}
