//! Writes kubeconfigs: one file per identity, with the certificates inside it.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::layout::Layout;
use crate::state::{StateError, io_at, private_dir, write_private};

/// Writes to `path` a kubeconfig that reaches `server` with the certificate named `identity`.
pub fn write(layout: &Layout, path: &Path, identity: &str, server: &str) -> Result<(), StateError> {
    let data = |file: &Path| -> Result<String, StateError> {
        Ok(STANDARD.encode(std::fs::read(file).map_err(io_at("read", file))?))
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "podway", "cluster": {
            "server": server,
            "certificate-authority-data": data(&layout.cert("ca"))?,
        }}],
        "users": [{"name": identity, "user": {
            "client-certificate-data": data(&layout.cert(identity))?,
            "client-key-data": data(&layout.key(identity))?,
        }}],
        "contexts": [{"name": "podway", "context": {"cluster": "podway", "user": identity}}],
        "current-context": "podway",
    });
    if let Some(parent) = path.parent() {
        private_dir(parent)?;
    }
    // JSON is YAML, and needs no quoting rules of its own.
    let text = serde_json::to_vec_pretty(&config)
        .map_err(|source| StateError::Parse { path: path.display().to_string(), source })?;
    write_private(path, &text)
}
