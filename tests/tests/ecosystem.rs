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

use podway_tests::tree::{file, text};
