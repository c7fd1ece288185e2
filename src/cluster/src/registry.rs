//! The local registry (of the distribution project), and the mirror configuration of the nodes.
//!
//! It listens on the cluster's bridge only, and without a login: what it serves is what podway
//! itself put there.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::json;

use crate::layout::Layout;
use crate::process::Daemon;
use crate::state::{StateError, io_at, private_dir, write_private};

/// The name of the daemon.
pub const NAME: &str = "registry";

/// Writes the registry's configuration and gives its command line.
pub fn daemon(program: &Path, layout: &Layout, address: Ipv4Addr, port: u16) -> Result<Daemon, StateError> {
    let dir = layout.registry();
    private_dir(&dir)?;
    let config = json!({
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": true}},
        "storage": {
            "filesystem": {"rootdirectory": dir.join("data")},
            "delete": {"enabled": true},
            "maintenance": {"uploadpurging": {"enabled": false}},
        },
        "http": {
            "addr": format!("{address}:{port}"),
            "secret": secret(&dir.join("secret"))?,
            "headers": {"X-Content-Type-Options": ["nosniff"]},
        },
    });
    let path = dir.join("config.yml");
    // JSON is YAML.
    let text = serde_json::to_vec_pretty(&config)
        .map_err(|source| StateError::Parse { path: path.display().to_string(), source })?;
    write_private(&path, &text)?;
    let mut daemon = Daemon::new(NAME, program, vec!["serve".to_owned(), path.display().to_string()]);
    daemon.files.push(path);
    // It would look for a collector on localhost and complain that there is none.
    daemon.env.push(("OTEL_TRACES_EXPORTER".to_owned(), "none".into()));
    Ok(daemon)
}

/// What the registry signs the state of an upload with: made once.
fn secret(path: &Path) -> Result<String, StateError> {
    if let Ok(text) = fs::read_to_string(path) {
        return Ok(text);
    }
    let source = Path::new("/proc/sys/kernel/random/uuid");
    let text = fs::read_to_string(source).map_err(io_at("read", source))?.trim().to_owned();
    write_private(path, text.as_bytes())?;
    Ok(text)
}

/// Writes `dir/_default/hosts.toml`: every registry is asked for at `endpoint` (`host:port`).
///
/// `only` means that it answers instead of the registries themselves; otherwise they are asked
/// for what it does not have.
pub fn write_hosts(dir: &Path, endpoint: &str, only: bool) -> Result<(), StateError> {
    let default = dir.join("_default");
    private_dir(&default)?;
    write_private(&default.join("hosts.toml"), hosts(endpoint, only).as_bytes())
}

fn hosts(endpoint: &str, only: bool) -> String {
    if only {
        format!("server = \"http://{endpoint}\"\n")
    } else {
        format!("[host.\"http://{endpoint}\"]\n  capabilities = [\"pull\", \"resolve\"]\n")
    }
}

/// A registry's `host[:port]` from the command line; nothing else may get into the files.
pub fn valid_endpoint(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
    !text.is_empty()
        && text.len() < 256
        && text.bytes().all(allowed)
        && text.parse::<http::uri::Authority>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_a_host_and_nothing_else() {
        for (text, valid) in [
            ("127.0.0.1:5000", true),
            ("registry.example", true),
            ("[::1]:5000", true),
            ("", false),
            ("http://x", false),
            ("x\"]\nserver=\"y", false),
        ] {
            assert_eq!(valid_endpoint(text), valid, "{text}");
        }
    }
}
