//! The agent's configuration file: those fields of a `KubeletConfiguration` that the agent heeds.
//!
//! An unknown field is an error that names it: what is not heeded must not be taken for heeded.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use podway_agent::config::Config;
use podway_agent::node::allocatable::{Held, Reserved};
use podway_agent::shutdown::periods::{Period, Periods};
use podway_agent::traces::Tracing;
use podway_systemd::Driver;
use serde::Deserialize;

use crate::commands::Hinted;

mod thresholds;

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
    cgroup_driver: Option<Driver>,
    resolv_conf: Option<PathBuf>,
    max_pods: Option<u32>,
    pod_pids_limit: Option<i64>,
    seccomp_default: Option<bool>,
    pod_logs_dir: Option<PathBuf>,
    static_pod_path: Option<PathBuf>,
    container_runtime_endpoint: Option<String>,
    tls_cert_file: Option<PathBuf>,
    tls_private_key_file: Option<PathBuf>,
    rotate_certificates: Option<bool>,
    #[serde(rename = "serverTLSBootstrap")]
    server_tls_bootstrap: Option<bool>,
    register_with_taints: Option<Vec<Taint>>,
    #[serde(default)]
    authentication: Authentication,
    kube_reserved: Option<BTreeMap<String, String>>,
    system_reserved: Option<BTreeMap<String, String>>,
    system_reserved_cgroup: Option<String>,
    kube_reserved_cgroup: Option<String>,
    enforce_node_allocatable: Option<Vec<String>>,
    eviction_hard: Option<BTreeMap<String, String>>,
    merge_default_eviction_settings: Option<bool>,
    #[serde(default)]
    eviction_soft: BTreeMap<String, String>,
    #[serde(default)]
    eviction_soft_grace_period: BTreeMap<String, String>,
    #[serde(default)]
    eviction_minimum_reclaim: BTreeMap<String, String>,
    eviction_max_pod_grace_period: Option<u32>,
    eviction_pressure_transition_period: Option<String>,
    shutdown_grace_period: Option<String>,
    shutdown_grace_period_critical_pods: Option<String>,
    shutdown_grace_period_by_pod_priority: Option<Vec<ShutdownPeriod>>,
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
    tracing: Option<TracingConfiguration>,
}

/// Where traces go; component-base's.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TracingConfiguration {
    endpoint: Option<String>,
    sampling_rate_per_million: Option<u32>,
}

/// A taint that a node can have from the start.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Taint {
    key: String,
    value: Option<String>,
    effect: Effect,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum Effect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

impl Taint {
    fn parsed(self) -> anyhow::Result<k8s_openapi::api::core::v1::Taint> {
        anyhow::ensure!(!self.key.is_empty(), "registerWithTaints: a taint without a key");
        let effect = format!("{:?}", self.effect);
        Ok(k8s_openapi::api::core::v1::Taint { key: self.key, value: self.value, effect, time_added: None })
    }
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
    set(&mut config.cgroup_driver, file.cgroup_driver);
    set(&mut config.resolv_conf, file.resolv_conf);
    set(&mut config.max_pods, file.max_pods);
    // As upstream has it: less than nothing is its default, and nothing limits nothing
    // (pkg/kubelet/apis/config/v1beta1/defaults.go, cm/pod_container_manager_linux.go).
    if let Some(pids) = file.pod_pids_limit {
        config.pod_pids_limit = u64::try_from(pids).ok().filter(|pids| *pids > 0);
    }
    set(&mut config.seccomp_default, file.seccomp_default);
    set(&mut config.pod_logs_dir, file.pod_logs_dir);
    set(&mut config.rotate_certificates, file.rotate_certificates);
    set(&mut config.server_tls_bootstrap, file.server_tls_bootstrap);
    set(&mut config.container_runtime_endpoint, file.container_runtime_endpoint);
    if let Some(taints) = file.register_with_taints {
        config.register_with_taints = taints.into_iter().map(Taint::parsed).collect::<anyhow::Result<_>>()?;
    }
    config.static_pod_path = file.static_pod_path.filter(|path| !path.as_os_str().is_empty());
    config.tls_cert_file = file.tls_cert_file.or(config.tls_cert_file.take());
    config.tls_private_key_file = file.tls_private_key_file.or(config.tls_private_key_file.take());
    let kept = &mut config.reservation;
    let reserved = |field: &'static str, list| Reserved::parse(list).context(field);
    set(&mut kept.kube, file.kube_reserved.as_ref().map(|l| reserved("kubeReserved", l)).transpose()?);
    set(&mut kept.system, file.system_reserved.as_ref().map(|l| reserved("systemReserved", l)).transpose()?);
    if let Some(what) = &file.enforce_node_allocatable {
        let enforced = Enforced::parse(what).context("enforceNodeAllocatable")?;
        kept.enforce = enforced.pods;
        let held = |list: Option<&str>, field, cgroup| list.map(|list| held(list, field, cgroup)).transpose();
        kept.system_held = held(enforced.system, "systemReservedCgroup", file.system_reserved_cgroup)?;
        kept.kube_held = held(enforced.kube, "kubeReservedCgroup", file.kube_reserved_cgroup)?;
    }
    thresholds::set(
        &mut config.thresholds,
        &thresholds::Lists {
            hard: file.eviction_hard.as_ref(),
            merge: file.merge_default_eviction_settings.unwrap_or(false),
            soft: &file.eviction_soft,
            graces: &file.eviction_soft_grace_period,
            reclaim: &file.eviction_minimum_reclaim,
        },
    )?;
    let most = file.eviction_max_pod_grace_period.map(|s| Duration::from_secs(s.into()));
    set(&mut config.thresholds.max_pod_grace, most);
    let (all, critical) = (file.shutdown_grace_period, file.shutdown_grace_period_critical_pods);
    config.shutdown = shutdown(all, critical, file.shutdown_grace_period_by_pod_priority)?;
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
    // Nothing means the default, as upstream has it.
    set(&mut config.thresholds.transition, transition.filter(|t| !t.is_zero()));
    if let Some(TracingConfiguration { endpoint, sampling_rate_per_million }) = file.tracing {
        let tracing = Tracing::of(endpoint, sampling_rate_per_million, |name| std::env::var(name).ok());
        config.tracing = Some(tracing.context("tracing")?);
    }
    config.client_ca_file = file.authentication.x509.client_ca_file.or(config.client_ca_file.take());
    Ok(())
}

/// `enforceNodeAllocatable`: which cgroups are held to what is theirs.
struct Enforced<'a> {
    pods: bool,
    /// With its `-compressible`, if it has it.
    system: Option<&'a str>,
    kube: Option<&'a str>,
}

impl<'a> Enforced<'a> {
    /// By the rules of pkg/kubelet/apis/config/validation.
    fn parse(what: &'a [String]) -> anyhow::Result<Self> {
        let mut all: Vec<&str> = what.iter().map(String::as_str).collect();
        all.sort_unstable();
        anyhow::ensure!(all.windows(2).all(|w| w[0] != w[1]), "duplicated enforcements");
        anyhow::ensure!(
            all.len() < 2 || !all.contains(&"none"),
            "may not contain additional enforcements when \"none\" is specified"
        );
        let mut found = Enforced { pods: false, system: None, kube: None };
        for one in all {
            let place = match one {
                "none" => continue,
                "pods" => {
                    found.pods = true;
                    continue;
                }
                "system-reserved" | "system-reserved-compressible" => &mut found.system,
                "kube-reserved" | "kube-reserved-compressible" => &mut found.kube,
                _ => anyhow::bail!(
                    "{one:?} is not one of pods, system-reserved, system-reserved-compressible, kube-reserved, \
                     kube-reserved-compressible, none"
                ),
            };
            if let Some(other) = place.replace(one) {
                anyhow::bail!("both {other:?} and {one:?} cannot be specified together");
            }
        }
        Ok(found)
    }
}

/// The cgroup that a list of `enforceNodeAllocatable` is about.
fn held(list: &str, field: &str, cgroup: Option<String>) -> anyhow::Result<Held> {
    let cgroup = cgroup.filter(|name| !name.is_empty());
    let cgroup = cgroup
        .with_context(|| format!("{field} must be specified when {list:?} is in enforceNodeAllocatable"))?;
    Ok(Held { cgroup, compressible: list.ends_with("-compressible") })
}

/// One of `shutdownGracePeriodByPodPriority`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ShutdownPeriod {
    priority: i32,
    shutdown_grace_period_seconds: u32,
}

/// What pods have when the machine is shut down, by the rules of pkg/kubelet/apis/config/validation.
fn shutdown(
    all: Option<String>,
    critical: Option<String>,
    by_priority: Option<Vec<ShutdownPeriod>>,
) -> anyhow::Result<Periods> {
    const ALL: &str = "shutdownGracePeriod";
    const CRITICAL: &str = "shutdownGracePeriodCriticalPods";
    let of = |field, text: Option<String>| text.map_or(Ok(Duration::ZERO), |text| duration(field, &text));
    let (all, critical) = (of(ALL, all)?, of(CRITICAL, critical)?);
    for (field, time) in [(ALL, all), (CRITICAL, critical)] {
        anyhow::ensure!(
            time.is_zero() || time >= Duration::from_secs(1),
            "{field} {time:?} must be either zero or otherwise >= 1 sec"
        );
    }
    anyhow::ensure!(critical <= all, "{CRITICAL} {critical:?} must be <= {ALL} {all:?}");
    let Some(list) = by_priority.filter(|list| !list.is_empty()) else {
        return Ok(Periods::of(all, critical));
    };
    anyhow::ensure!(
        all.is_zero() && critical.is_zero(),
        "cannot specify both {ALL} or {CRITICAL}, and shutdownGracePeriodByPodPriority at the same time"
    );
    let period = |p: ShutdownPeriod| {
        let time = Duration::from_secs(p.shutdown_grace_period_seconds.into());
        Period { priority: p.priority, time }
    };
    Ok(Periods::by_priority(list.into_iter().map(period).collect()))
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
    fn how_a_container_is_confined_that_does_not_say() {
        let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        let mut config = Config::default();
        merge(&format!("{text}seccompDefault: true\n"), &mut config).unwrap();
        assert!(config.seccomp_default);
        assert_eq!(config.configz()["seccompDefault"], true);
    }

    #[test]
    fn how_many_processes_a_pod_may_have() {
        let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        for (given, limit, shown) in
            [("4096", Some(4096), 4096), ("-1", None, -1), ("-7", None, -1), ("0", None, -1)]
        {
            let mut config = Config::default();
            merge(&format!("{text}podPidsLimit: {given}\n"), &mut config).unwrap();
            assert_eq!(config.pod_pids_limit, limit, "{given}");
            assert_eq!(config.configz()["podPidsLimit"], shown, "{given}");
        }
        for bad in ["many", "1.5", "9223372036854775808"] {
            let error = merge(&format!("{text}podPidsLimit: {bad}\n"), &mut Config::default()).unwrap_err();
            assert!(format!("{error:#}").contains("podPidsLimit"), "{error:#}");
        }
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
    fn traces_are_sent_if_it_says_so() {
        let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        let mut config = Config::default();
        let tracing = "tracing: {endpoint: 'otel:4317', samplingRatePerMillion: 100}\n";
        merge(&format!("{text}{tracing}"), &mut config).unwrap();
        assert_eq!(config.tracing, Some(Tracing { endpoint: "otel:4317".to_owned(), rate: 100 }));
        assert_eq!(config.configz()["tracing"]["samplingRatePerMillion"], 100);
        for (from, says) in [
            ("otel:4317', s", "https://otel:4317', s"),
            ("100}", "1000001}"),
            ("samplingRatePerMillion", "rate"),
        ] {
            merge(&format!("{text}{}", tracing.replace(from, says)), &mut Config::default()).unwrap_err();
        }
    }

    #[test]
    fn what_pods_have_when_the_machine_is_shut_down() {
        let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        let read = |more: &str| {
            let mut config = Config::default();
            merge(&format!("{text}{more}\n"), &mut config).map(|()| config).map_err(|e| format!("{e:#}"))
        };
        assert!(read("").unwrap().shutdown.is_empty());
        let config = read("shutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 10s").unwrap();
        let shown = &config.configz()["shutdownGracePeriodByPodPriority"];
        assert_eq!(shown[0]["shutdownGracePeriodSeconds"], 20);
        assert_eq!(shown[1]["priority"], 2_000_000_000);
        let list = "shutdownGracePeriodByPodPriority: [{priority: 5, shutdownGracePeriodSeconds: 7}]";
        assert_eq!(read(list).unwrap().shutdown.total(), Duration::from_secs(7));
        for (bad, says) in [
            ("shutdownGracePeriod: 10s\nshutdownGracePeriodCriticalPods: 20s", "must be <="),
            ("shutdownGracePeriod: 10ms", "must be either zero or otherwise >= 1 sec"),
            (&format!("shutdownGracePeriod: 10s\n{list}"), "at the same time"),
            ("shutdownGracePeriodByPodPriority: [{priority: 5}]", "shutdownGracePeriodSeconds"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn what_is_kept_from_pods() {
        let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        let mut config = Config::default();
        let all = "kubeReserved: {cpu: 100m, memory: 256Mi}\nsystemReserved: {pid: '1000'}\n\
                   enforceNodeAllocatable: [none]\n";
        merge(&format!("{text}{all}"), &mut config).unwrap();
        assert!(!config.reservation.enforce);
        assert_eq!(config.reservation.kube.shown(), [("cpu", "100m"), ("memory", "256Mi")].into());
        let shown = config.configz();
        assert_eq!(shown["systemReserved"]["pid"], "1000");
        assert_eq!(shown["enforceNodeAllocatable"], serde_json::json!(["none"]));
        let held = "enforceNodeAllocatable: [pods, system-reserved, kube-reserved-compressible]\n\
                    systemReservedCgroup: /system\nkubeReservedCgroup: /kube\ncgroupDriver: systemd\n";
        merge(&format!("{text}{held}"), &mut config).unwrap();
        let kept = &config.reservation;
        assert_eq!(kept.system_held, Some(Held { cgroup: "/system".to_owned(), compressible: false }));
        assert_eq!(kept.kube_held, Some(Held { cgroup: "/kube".to_owned(), compressible: true }));
        let (shown, all) = (config.configz(), ["pods", "system-reserved", "kube-reserved-compressible"]);
        assert_eq!(shown["enforceNodeAllocatable"], serde_json::json!(all));
        assert_eq!(
            (&shown["kubeReservedCgroup"], &shown["cgroupDriver"]),
            (&"/kube".into(), &"systemd".into())
        );
        for (bad, says) in [
            ("kubeReserved: {disk: 1Gi}", "kubeReserved: cannot reserve \"disk\" resource"),
            (
                "systemReserved: {memory: -1}",
                "systemReserved: resource quantity for \"memory\" cannot be negative",
            ),
            ("systemReserved: {memory: '-1'}", "cannot be negative"),
            ("enforceNodeAllocatable: [pods, kube-reserved]", "kubeReservedCgroup must be specified"),
            ("enforceNodeAllocatable: [kube-reserved-compressible, kube-reserved]", "together"),
            ("enforceNodeAllocatable: [none, pods]", "additional enforcements"),
            ("enforceNodeAllocatable: [pods, pods]", "duplicated"),
            ("enforceNodeAllocatable: [all]", "\"all\" is not one of"),
            ("cgroupDriver: cgroups", "cgroupDriver"),
        ] {
            let error = merge(&format!("{text}{bad}\n"), &mut Config::default()).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(says), "{bad}: {error}");
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
        let taints = format!("{text}registerWithTaints: [{{key: a, effect: NoSchedule}}]\n");
        let mut config = Config::default();
        merge(&taints, &mut config).unwrap();
        assert_eq!(config.register_with_taints[0].effect, "NoSchedule");
        for (from, to) in [("NoSchedule", "Never"), ("key: a", "key: ''")] {
            merge(&taints.replace(from, to), &mut Config::default()).unwrap_err();
        }
    }
}
