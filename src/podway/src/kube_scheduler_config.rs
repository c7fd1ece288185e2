//! Upstream's file: `KubeSchedulerConfiguration` of `kubescheduler.config.k8s.io/v1`
//! (`staging/src/k8s.io/kube-scheduler/config/v1/types.go`), as `kube-scheduler --config` reads it.
//!
//! Its fields are all known. One that asks for what there is not is refused by name, so that nothing is
//! taken for heeded: limits of the client, profiling. `parallelism` and
//! `delayCacheUntilActive` change no decision and are let pass.

pub(crate) mod extenders;

use extenders::Extender;
use podway_api::profile::{PluginConfig, Plugins, ProfileSpec};
use serde::Deserialize;
use std::path::PathBuf;

use crate::scheduler_config::Election;

/// The API version.
pub(crate) const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
/// The kind.
pub(crate) const KIND: &str = "KubeSchedulerConfiguration";
/// The scheduler of a single profile that has no name.
const DEFAULT_SCHEDULER: &str = "default-scheduler";

/// The file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct KubeSchedulerConfiguration {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    parallelism: Option<i32>,
    #[serde(default)]
    pub(crate) leader_election: Election,
    #[serde(default)]
    client_connection: ClientConnection,
    percentage_of_nodes_to_score: Option<i32>,
    pub(crate) pod_initial_backoff_seconds: Option<u32>,
    pub(crate) pod_max_backoff_seconds: Option<u32>,
    #[serde(default)]
    profiles: Vec<KubeSchedulerProfile>,
    #[serde(default)]
    pub(crate) extenders: Vec<Extender>,
    enable_profiling: Option<bool>,
    enable_contention_profiling: Option<bool>,
    #[serde(rename = "delayCacheUntilActive")]
    _delay_cache_until_active: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClientConnection {
    kubeconfig: Option<PathBuf>,
    accept_content_types: Option<String>,
    content_type: Option<String>,
    qps: Option<f64>,
    burst: Option<i32>,
}

/// A profile of the file; [`ProfileSpec`] with a name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct KubeSchedulerProfile {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<i32>,
    #[serde(default)]
    plugins: Plugins,
    #[serde(default)]
    plugin_config: Vec<PluginConfig>,
}

impl KubeSchedulerConfiguration {
    /// What it names besides the profiles' own.
    pub(crate) fn kubeconfig(&self) -> Option<PathBuf> {
        self.client_connection.kubeconfig.clone()
    }

    /// Refuses by name what there is not.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let client = &self.client_connection;
        let json = |t: &Option<String>| t.as_deref().is_none_or(|t| ["", "application/json"].contains(&t));
        for (field, asked) in [
            ("clientConnection.qps", client.qps.is_some_and(|qps| qps != 0.0)),
            ("clientConnection.burst", client.burst.is_some_and(|burst| burst != 0)),
            ("clientConnection.contentType other than application/json", !json(&client.content_type)),
            (
                "clientConnection.acceptContentTypes other than application/json",
                !json(&client.accept_content_types),
            ),
            ("enableProfiling", self.enable_profiling == Some(true)),
            ("enableContentionProfiling", self.enable_contention_profiling == Some(true)),
        ] {
            anyhow::ensure!(!asked, "not supported: {field}");
        }
        let threads = self.parallelism.unwrap_or(1);
        anyhow::ensure!(threads > 0, "parallelism {threads} should be an integer value greater than zero");
        Ok(())
    }

    /// Its profiles: one without a name is default-scheduler's, and so is none at all.
    pub(crate) fn profiles(&self) -> anyhow::Result<Vec<(String, ProfileSpec)>> {
        let one = [KubeSchedulerProfile::default()];
        let all = if self.profiles.is_empty() { &one[..] } else { &self.profiles };
        named(all, self.percentage_of_nodes_to_score, Some(DEFAULT_SCHEDULER))
    }
}

/// The profiles with their names, each once. The name of a single one may be left out where there is a
/// `default`.
pub(crate) fn named(
    profiles: &[KubeSchedulerProfile],
    percentage: Option<i32>,
    default: Option<&str>,
) -> anyhow::Result<Vec<(String, ProfileSpec)>> {
    let mut out: Vec<(String, ProfileSpec)> = Vec::new();
    for (i, profile) in profiles.iter().enumerate() {
        let default = default.filter(|_| profiles.len() == 1);
        let name = profile.scheduler_name.as_deref().or(default).unwrap_or_default();
        anyhow::ensure!(
            !name.is_empty() && name.trim() == name,
            "profiles[{i}].schedulerName: Required value"
        );
        anyhow::ensure!(
            !out.iter().any(|(other, _)| other == name),
            "profiles[{i}].schedulerName: Duplicate value {name:?}"
        );
        let spec = ProfileSpec {
            percentage_of_nodes_to_score: profile.percentage_of_nodes_to_score.or(percentage),
            plugins: profile.plugins.clone(),
            plugin_config: profile.plugin_config.clone(),
        };
        out.push((name.to_owned(), spec));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &str) -> anyhow::Result<KubeSchedulerConfiguration> {
        let file: KubeSchedulerConfiguration =
            serde_yaml::from_str(&format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{fields}"))?;
        file.check()?;
        Ok(file)
    }

    #[test]
    fn upstreams_file_is_read_with_upstreams_defaults() {
        let names = |fields: &str| -> Vec<String> {
            read(fields).unwrap().profiles().unwrap().into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(names(""), ["default-scheduler"]);
        assert_eq!(names("profiles: [{plugins: {}}]"), ["default-scheduler"]);
        assert_eq!(names("profiles: [{schedulerName: a}, {schedulerName: b}]"), ["a", "b"]);
        let file = read(
            "clientConnection: {kubeconfig: /k}\nparallelism: 16\npercentageOfNodesToScore: 100\n\
             profiles:\n- plugins:\n    score: {disabled: [{name: ImageLocality}]}\n  pluginConfig:\n  - name: \
             InterPodAffinity\n    args: {hardPodAffinityWeight: 1}\n",
        )
        .unwrap();
        let (_, spec) = file.profiles().unwrap().remove(0);
        assert_eq!(file.kubeconfig(), Some("/k".into()));
        assert_eq!(spec.percentage_of_nodes_to_score, Some(100));
        assert!(spec.plugins.score.disables("ImageLocality") && spec.plugin_config.len() == 1);
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        for (fields, part) in [
            ("clientConnection: {qps: 50}", "not supported: clientConnection.qps"),
            ("clientConnection: {contentType: application/vnd.kubernetes.protobuf}", "contentType"),
            ("enableProfiling: true", "not supported: enableProfiling"),
            ("parallelism: 0", "greater than zero"),
            ("healthzBindAddress: 0.0.0.0", "healthzBindAddress"),
            ("profiles: [{plugins: {filters: {}}}]", "filters"),
        ] {
            let error = format!("{:#}", read(fields).unwrap_err());
            assert!(error.contains(part), "{fields}: {error}");
        }
        for (fields, part) in [
            ("profiles: [{schedulerName: a}, {}]", "profiles[1].schedulerName: Required"),
            ("profiles: [{schedulerName: a}, {schedulerName: a}]", "Duplicate value \"a\""),
        ] {
            let error = read(fields).unwrap().profiles().unwrap_err().to_string();
            assert!(error.contains(part), "{fields}: {error}");
        }
    }
}
