//! The agent's configuration file: those fields of a `KubeletConfiguration` that the agent heeds.
//!
//! An unknown field is an error that names it: what is not heeded must not be taken for heeded.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use podway_agent::config::Config;
use podway_agent::node::pressure::Thresholds;
use serde::Deserialize;

use crate::commands::Hinted;

/// The file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KubeletConfiguration {
    api_version: String,
    kind: String,
    address: Option<IpAddr>,
    port: Option<u16>,
    #[serde(rename = "clusterDNS")]
    cluster_dns: Option<Vec<IpAddr>>,
    cluster_domain: Option<String>,
    cgroup_root: Option<String>,
    resolv_conf: Option<PathBuf>,
    max_pods: Option<u32>,
    pod_logs_dir: Option<PathBuf>,
    container_runtime_endpoint: Option<String>,
    tls_cert_file: Option<PathBuf>,
    tls_private_key_file: Option<PathBuf>,
    #[serde(default)]
    authentication: Authentication,
    #[serde(default)]
    eviction_hard: BTreeMap<String, String>,
    eviction_pressure_transition_period: Option<String>,
    container_log_max_size: Option<String>,
    container_log_max_files: Option<usize>,
    #[serde(rename = "imageGCHighThresholdPercent")]
    image_gc_high: Option<u64>,
    #[serde(rename = "imageGCLowThresholdPercent")]
    image_gc_low: Option<u64>,
    #[serde(rename = "imageMinimumGCAge")]
    image_min_age: Option<String>,
    #[serde(rename = "imageMaximumGCAge")]
    image_max_age: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Authentication {
    #[serde(default)]
    x509: X509,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct X509 {
    #[serde(rename = "clientCAFile")]
    client_ca_file: Option<PathBuf>,
}

/// Puts what the file sets over `config`.
pub(crate) fn load(path: &Path, config: &mut Config) -> anyhow::Result<()> {
    let name = path.display();
    let hint = "config/agent.yaml has every field that podway agent heeds";
    let text = std::fs::read_to_string(path)
        .with_context(|| Hinted::new(format!("reading the configuration {name}"), hint))?;
    merge(&text, config).with_context(|| Hinted::new(format!("the configuration {name} is not valid"), hint))
}

fn merge(text: &str, config: &mut Config) -> anyhow::Result<()> {
    let file: KubeletConfiguration = serde_yaml::from_str(text)?;
    let kind = (file.api_version.as_str(), file.kind.as_str());
    anyhow::ensure!(
        kind == ("kubelet.config.k8s.io/v1beta1", "KubeletConfiguration"),
        "it is {} {}, not kubelet.config.k8s.io/v1beta1 KubeletConfiguration",
        file.api_version,
        file.kind
    );
    fn set<T>(to: &mut T, from: Option<T>) {
        if let Some(value) = from {
            *to = value;
        }
    }
    set(&mut config.address, file.address);
    set(&mut config.port, file.port);
    set(&mut config.cluster_dns, file.cluster_dns);
    set(&mut config.cluster_domain, file.cluster_domain);
    set(&mut config.cgroup_root, file.cgroup_root);
    set(&mut config.resolv_conf, file.resolv_conf);
    set(&mut config.max_pods, file.max_pods);
    set(&mut config.pod_logs_dir, file.pod_logs_dir);
    set(&mut config.container_runtime_endpoint, file.container_runtime_endpoint);
    config.tls_cert_file = file.tls_cert_file.or(config.tls_cert_file.take());
    config.tls_private_key_file = file.tls_private_key_file.or(config.tls_private_key_file.take());
    for (signal, value) in &file.eviction_hard {
        threshold(&mut config.thresholds, signal, value)
            .with_context(|| format!("evictionHard {signal}: {value:?}"))?;
    }
    let logs = &mut config.container_logs;
    if let Some(size) = &file.container_log_max_size {
        let bytes = podway_agent::env::quantity::value(size).and_then(|n| u64::try_from(n).ok());
        logs.max_size =
            bytes.filter(|n| *n > 0).with_context(|| format!("containerLogMaxSize {size:?}: not a size"))?;
    }
    set(&mut logs.max_files, file.container_log_max_files);
    anyhow::ensure!(logs.max_files > 1, "containerLogMaxFiles {}: must be greater than 1", logs.max_files);
    let images = &mut config.image_gc;
    set(&mut images.high, file.image_gc_high);
    set(&mut images.low, file.image_gc_low);
    anyhow::ensure!(images.high <= 100, "imageGCHighThresholdPercent {}: more than 100", images.high);
    anyhow::ensure!(
        images.low < images.high,
        "imageGCLowThresholdPercent {} is not below imageGCHighThresholdPercent {}",
        images.low,
        images.high
    );
    set(&mut images.min_age, file.image_min_age.map(|t| duration("imageMinimumGCAge", &t)).transpose()?);
    if let Some(text) = &file.image_max_age {
        images.max_age = Some(duration("imageMaximumGCAge", text)?).filter(|age| !age.is_zero());
    }
    let transition = file.eviction_pressure_transition_period;
    let transition = transition.map(|t| duration("evictionPressureTransitionPeriod", &t)).transpose()?;
    set(&mut config.thresholds.transition, transition);
    config.client_ca_file = file.authentication.x509.client_ca_file.or(config.client_ca_file.take());
    Ok(())
}

/// A duration as Go writes one: `90s`, `2m0s`, `1h30m`.
fn duration(field: &str, text: &str) -> anyhow::Result<Duration> {
    let bad = || format!("{field} {text:?}: not a duration such as 2m0s");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).with_context(bad)?;
        let (number, unit) = rest.split_at(digits);
        let number: u32 = number.parse().with_context(bad)?;
        let (unit, length) = match unit {
            u if u.starts_with("ms") => (Duration::from_millis(1), 2),
            u if u.starts_with('h') => (Duration::from_secs(3600), 1),
            u if u.starts_with('m') => (Duration::from_secs(60), 1),
            u if u.starts_with('s') => (Duration::from_secs(1), 1),
            _ => anyhow::bail!(bad()),
        };
        total = total.checked_add(unit.checked_mul(number).with_context(bad)?).with_context(bad)?;
        rest = rest.get(digits + length..).unwrap_or_default();
    }
    anyhow::ensure!(!text.is_empty(), bad());
    Ok(total)
}

/// One entry of `evictionHard`: a percentage of a disk or of the tasks, or bytes of memory.
fn threshold(to: &mut Thresholds, signal: &str, value: &str) -> anyhow::Result<()> {
    let part = || -> anyhow::Result<f64> {
        let number = value.strip_suffix('%').context("not supported: other than a percentage")?;
        let number: f64 = number.parse()?;
        anyhow::ensure!((0.0..=100.0).contains(&number), "not between 0% and 100%");
        Ok(number / 100.0)
    };
    match signal {
        "memory.available" => {
            let (number, unit) = match value.strip_suffix("Mi") {
                Some(number) => (number, 1 << 20),
                None => value.strip_suffix("Gi").map_or((value, 1), |number| (number, 1 << 30)),
            };
            let number: u64 = number.parse().context("not supported: other than bytes, Mi or Gi")?;
            to.memory = number.checked_mul(unit).context("too much")?;
        }
        "nodefs.available" => to.nodefs = part()?,
        "nodefs.inodesFree" => to.nodefs_inodes = part()?,
        "imagefs.available" => to.imagefs = part()?,
        "imagefs.inodesFree" => to.imagefs_inodes = part()?,
        "pid.available" => to.pids = Some(part()?),
        _ => anyhow::bail!("not supported: this signal"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_in_the_repository_sets_nothing_but_defaults() {
        let mut config = Config::default();
        merge(include_str!("../../../config/agent.yaml"), &mut config).unwrap();
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
    }

    #[test]
    fn what_is_cleared_away_when() {
        let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        let mut config = Config::default();
        let all = "containerLogMaxSize: 1Mi\ncontainerLogMaxFiles: 3\nimageGCHighThresholdPercent: 70\n\
                   imageGCLowThresholdPercent: 60\nimageMinimumGCAge: 1m30s\nimageMaximumGCAge: 1h\n\
                   evictionPressureTransitionPeriod: 10s\n";
        merge(&format!("{text}{all}"), &mut config).unwrap();
        assert_eq!((config.container_logs.max_size, config.container_logs.max_files), (1 << 20, 3));
        let images = config.image_gc;
        assert_eq!((images.high, images.low, images.min_age.as_secs()), (70, 60, 90));
        assert_eq!(images.max_age, Some(Duration::from_secs(3600)));
        assert_eq!(config.thresholds.transition, Duration::from_secs(10));
        for bad in [
            "containerLogMaxSize: many",
            "containerLogMaxFiles: 1",
            "imageGCLowThresholdPercent: 90",
            "imageGCHighThresholdPercent: 101",
            "imageMinimumGCAge: soon",
            "imageMinimumGCAge: 3",
        ] {
            merge(&format!("{text}{bad}\n"), &mut Config::default()).unwrap_err();
        }
    }

    #[test]
    fn an_unknown_field_is_named() {
        let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        merge(text, &mut Config::default()).unwrap();
        let error = merge(&format!("{text}maxPod: 3\n"), &mut Config::default()).unwrap_err();
        assert!(error.to_string().contains("maxPod"), "{error}");
        let other = text.replace("KubeletConfiguration", "Config");
        merge(&other, &mut Config::default()).unwrap_err();
        for bad in
            ["{nodefs.available: 10Gi}", "{nodefs.available: 101%}", "{disk: 1%}", "{memory.available: 5%}"]
        {
            merge(&format!("{text}evictionHard: {bad}\n"), &mut Config::default()).unwrap_err();
        }
    }
}
