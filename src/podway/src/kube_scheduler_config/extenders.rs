//! Upstream's `extenders` (`staging/src/k8s.io/kube-scheduler/config/v1/types.go` Extender), with its rules
//! (`pkg/scheduler/apis/config/validation/validation.go` validateExtenders).

use crate::go_duration::GoDuration;
use k8s_openapi::ByteString;
use podway_scheduler::extender::spec::{Pem, Spec, TIMEOUT, Tls};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// An extender as the file has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Extender {
    url_prefix: String,
    #[serde(default)]
    filter_verb: String,
    #[serde(default)]
    preempt_verb: String,
    #[serde(default)]
    prioritize_verb: String,
    #[serde(default)]
    weight: i64,
    #[serde(default)]
    bind_verb: String,
    #[serde(rename = "enableHTTPS", default)]
    enable_https: bool,
    tls_config: Option<TlsConfig>,
    http_timeout: Option<GoDuration>,
    #[serde(default)]
    node_cache_capable: bool,
    #[serde(default)]
    managed_resources: Vec<ManagedResource>,
    #[serde(default)]
    ignorable: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ManagedResource {
    name: String,
    #[serde(default)]
    ignored_by_scheduler: bool,
}

/// Data goes before a file.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TlsConfig {
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    server_name: String,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    cert_data: Option<ByteString>,
    key_data: Option<ByteString>,
    ca_data: Option<ByteString>,
}

/// A key is never shown.
impl std::fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsConfig").field("insecure", &self.insecure).finish_non_exhaustive()
    }
}

fn pem(data: Option<ByteString>, file: Option<PathBuf>) -> Option<Pem> {
    let data = data.filter(|d| !d.0.is_empty()).map(|d| Pem::Data(d.0));
    data.or_else(|| file.filter(|f| !f.as_os_str().is_empty()).map(Pem::File))
}

impl TlsConfig {
    fn checked(self) -> anyhow::Result<Tls> {
        let identity = match (pem(self.cert_data, self.cert_file), pem(self.key_data, self.key_file)) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => anyhow::bail!("a certificate needs its key, and a key its certificate"),
        };
        let server_name = Some(self.server_name).filter(|name| !name.is_empty());
        let authority = pem(self.ca_data, self.ca_file);
        anyhow::ensure!(
            !self.insecure || authority.is_none(),
            "specifying a root certificates file with the insecure flag is not allowed"
        );
        Ok(Tls { insecure: self.insecure, server_name, authority, identity })
    }
}

/// What upstream takes for the name of an extended resource (`v1helper.IsExtendedResourceName`).
fn extended(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let label = |part: &str, most: usize, more: &str| {
        (1..=most).contains(&part.len())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
            && edge(part.chars().next())
            && edge(part.chars().last())
    };
    let Some((domain, resource)) = name.split_once('/') else { return false };
    // The quota's name of it must be one as well.
    let longest = 253 - "requests.".len();
    !domain.ends_with("kubernetes.io")
        && !name.starts_with("requests.")
        && domain.split('.').all(|part| label(part, 63, "-") && part == part.to_ascii_lowercase())
        && domain.len() <= longest
        && label(resource, 63, "-_.")
}

/// All of them, each checked.
pub(crate) fn checked(all: &[Extender]) -> anyhow::Result<Vec<Spec>> {
    let mut seen = BTreeSet::new();
    let binders = all.iter().filter(|e| !e.bind_verb.is_empty()).count();
    anyhow::ensure!(
        binders <= 1,
        "extenders: found {binders} extenders implementing bind: only one extender can implement bind"
    );
    let mut specs = Vec::new();
    for (i, extender) in all.iter().enumerate() {
        let verb = |verb: &String| Some(verb.clone()).filter(|v| !v.is_empty());
        let prioritize = verb(&extender.prioritize_verb).map(|verb| (verb, extender.weight));
        anyhow::ensure!(
            prioritize.as_ref().is_none_or(|(_, weight)| *weight > 0),
            "extenders[{i}].weight {}: must have a positive weight applied to it",
            extender.weight
        );
        for (j, resource) in extender.managed_resources.iter().enumerate() {
            let field = format!("extenders[{i}].managedResources[{j}].name {:?}", resource.name);
            anyhow::ensure!(extended(&resource.name), "{field}: is an invalid extended resource name");
            anyhow::ensure!(
                seen.insert(resource.name.clone()),
                "{field}: duplicate extender managed resource name"
            );
        }
        let names = |only_ignored: bool| {
            let all = extender.managed_resources.iter().filter(|r| !only_ignored || r.ignored_by_scheduler);
            all.map(|r| r.name.clone()).collect()
        };
        let tls = extender.tls_config.clone().unwrap_or_default().checked();
        let timeout = extender.http_timeout.map(|GoDuration(timeout)| timeout);
        specs.push(Spec {
            filter: verb(&extender.filter_verb),
            prioritize,
            preempt: verb(&extender.preempt_verb),
            bind: verb(&extender.bind_verb),
            timeout: timeout.filter(|t| !t.is_zero()).unwrap_or(TIMEOUT),
            knows_nodes: extender.node_cache_capable,
            managed: names(false),
            ignored: names(true),
            ignorable: extender.ignorable,
            https: extender.enable_https,
            tls: tls.map_err(|error| anyhow::anyhow!("extenders[{i}].tlsConfig: {error}"))?,
            ..Spec::new(extender.url_prefix.clone())
        });
    }
    Ok(specs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn read(yaml: &str) -> anyhow::Result<Vec<Spec>> {
        checked(&serde_yaml::from_str::<Vec<Extender>>(yaml)?)
    }

    #[test]
    fn every_field_of_upstreams_is_read() {
        let all = read(
            "- urlPrefix: https://one.example/scheduler\n  filterVerb: filter\n  prioritizeVerb: prioritize\n  \
             preemptVerb: preempt\n  bindVerb: bind\n  weight: 3\n  enableHTTPS: true\n  httpTimeout: 250ms\n  \
             nodeCacheCapable: true\n  ignorable: true\n  managedResources:\n  - {name: example.com/gpu, \
             ignoredByScheduler: true}\n  - {name: example.com/fpga}\n  tlsConfig: {serverName: one, caData: \
             aGVsbG8=, caFile: /not/looked/at, certFile: /c, keyFile: /k}\n- urlPrefix: http://two.example\n",
        )
        .unwrap();
        let [one, two] = &*all else { panic!("{all:?}") };
        assert_eq!(one.prioritize, Some(("prioritize".to_owned(), 3)));
        assert_eq!((one.filter.as_deref(), one.bind.as_deref()), (Some("filter"), Some("bind")));
        assert_eq!((one.preempt.as_deref(), one.timeout), (Some("preempt"), Duration::from_millis(250)));
        assert!(one.knows_nodes && one.ignorable && one.https && !one.tls.insecure);
        assert_eq!(one.managed.len(), 2);
        assert_eq!(one.ignored.iter().collect::<Vec<_>>(), ["example.com/gpu"]);
        assert_eq!(one.tls.authority, Some(Pem::Data(b"hello".to_vec())));
        assert_eq!(one.tls.identity, Some((Pem::File("/c".into()), Pem::File("/k".into()))));
        assert_eq!(*two, Spec::new("http://two.example"));
        assert!(!format!("{one:?}").contains("hello"), "what is secret is not shown");
    }

    #[test]
    fn what_upstream_refuses_is_refused_with_its_words() {
        for (yaml, error) in [
            (
                "[{urlPrefix: http://a, prioritizeVerb: p}]",
                "extenders[0].weight 0: must have a positive weight",
            ),
            ("[{urlPrefix: http://a, bindVerb: b}, {urlPrefix: http://b, bindVerb: b}]", "only one extender"),
            (
                "[{urlPrefix: http://a, managedResources: [{name: example.com/x}]}, {urlPrefix: http://b, \
                 managedResources: [{name: example.com/x}]}]",
                "duplicate extender managed resource name",
            ),
            ("[{urlPrefix: http://a, managedResources: [{name: cpu}]}]", "invalid extended resource name"),
            ("[{urlPrefix: http://a, managedResources: [{name: kubernetes.io/x}]}]", "invalid extended"),
            ("[{urlPrefix: http://a, managedResources: [{name: 'example.com/x y'}]}]", "invalid extended"),
            ("[{urlPrefix: http://a, tlsConfig: {certFile: /c}}]", "needs its key"),
            ("[{urlPrefix: http://a, tlsConfig: {insecure: true, caFile: /c}}]", "insecure flag"),
            ("[{urlPrefix: http://a, filter: x}]", "unknown field `filter`"),
            ("[{filterVerb: x}]", "urlPrefix"),
        ] {
            let text = format!("{:#}", read(yaml).unwrap_err());
            assert!(text.contains(error), "{yaml}: {text}");
        }
    }
}
