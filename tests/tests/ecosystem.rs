//! What the tools of others are given about podway: Prometheus its rules, Grafana its dashboard, Argo CD, Flux and kstatus
//! the state of a `PodFlow`; and the pages of `docs/` that are made from the code,
//! or checked against it.

#[path = "ecosystem/expression.rs"]
mod expression;
#[path = "ecosystem/monitoring.rs"]
mod monitoring;
#[path = "ecosystem/pages.rs"]
mod pages;
#[path = "ecosystem/readers.rs"]
mod readers;
#[path = "ecosystem/registry.rs"]
mod registry;
#[path = "ecosystem/security.rs"]
mod security;

use std::path::{Path, PathBuf};

/// A file of the repository.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// Its text.
fn text(name: &str) -> anyhow::Result<String> {
    use anyhow::Context as _;
    std::fs::read_to_string(file(name)).with_context(|| name.to_owned())
}
