//! A pod's resolv.conf by its dnsPolicy (pkg/kubelet/network/dns), as the CRI's `DNSConfig` takes it.

use k8s_openapi::api::core::v1::Pod;

/// The most name servers kept.
const MAX_SERVERS: usize = 3;
/// The most search domains kept.
const MAX_SEARCHES: usize = 32;
/// The most characters of the search list, spaces counted.
const MAX_SEARCH_CHARS: usize = 2048;

/// The lines of a resolv.conf.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolv {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// What the node gives its pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeDns {
    /// The cluster's name servers; empty if it has none.
    pub cluster_dns: Vec<String>,
    /// The cluster's domain, e.g. `cluster.local`.
    pub cluster_domain: String,
    /// The node's own resolv.conf.
    pub host: Resolv,
}

/// A pod's DNS, and the events it deserves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodDns {
    /// The lines.
    pub resolv: Resolv,
    /// Reason and message of each warning: `MissingClusterDNS`, `DNSConfigForming`.
    pub warnings: Vec<(&'static str, String)>,
}

/// Reads a resolv.conf. Only the last `search` and `options` lines count.
#[must_use]
pub fn parse(text: &str) -> Resolv {
    let mut out = Resolv::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => out.servers.extend(words.next().map(str::to_owned)),
            Some("search") => {
                out.searches = words
                    .map(|w| if w == "." { w.to_owned() } else { w.trim_end_matches('.').to_owned() })
                    .collect()
            }
            Some("options") => out.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    out
}

/// The resolv.conf of `pod`.
#[must_use]
pub fn of_pod(pod: &Pod, node: &NodeDns) -> PodDns {
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let host_network = spec.and_then(|s| s.host_network).unwrap_or(false);
    let cluster = policy == "ClusterFirstWithHostNet" || (policy == "ClusterFirst" && !host_network);
    let mut warnings = Vec::new();
    let mut resolv = if policy == "None" {
        Resolv::default()
    } else if cluster && !node.cluster_dns.is_empty() {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let domain = &node.cluster_domain;
        let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
        if domain.is_empty() {
            searches.clear();
        }
        searches.extend(node.host.searches.iter().cloned());
        Resolv {
            servers: node.cluster_dns.clone(),
            searches: distinct(searches),
            options: vec!["ndots:5".to_owned()],
        }
    } else {
        if cluster {
            warnings.push(("MissingClusterDNS", format!(
                "kubelet does not have ClusterDNS IP configured and cannot create Pod using \"{policy}\" policy. Falling back to \"Default\" policy."
            )));
        }
        node.host.clone()
    };
    if let Some(own) = spec.and_then(|s| s.dns_config.as_ref()) {
        resolv.servers.extend(own.nameservers.iter().flatten().cloned());
        resolv.servers = distinct(std::mem::take(&mut resolv.servers));
        resolv.searches.extend(own.searches.iter().flatten().cloned());
        resolv.searches = distinct(std::mem::take(&mut resolv.searches));
        for option in own.options.iter().flatten() {
            let Some(name) = option.name.as_deref() else { continue };
            resolv.options.retain(|o| o.split(':').next() != Some(name));
            resolv.options.push(match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.to_owned(),
            });
        }
    }
    limit(&mut resolv, &mut warnings);
    PodDns { resolv, warnings }
}

fn distinct(items: Vec<String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for item in items {
        if !out.contains(&item) {
            out.push(item);
        }
    }
    out
}

fn limit(resolv: &mut Resolv, warnings: &mut Vec<(&'static str, String)>) {
    if resolv.servers.len() > MAX_SERVERS {
        resolv.servers.truncate(MAX_SERVERS);
        warnings.push(("DNSConfigForming", format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            resolv.servers.join(" ")
        )));
    }
    let before = resolv.searches.len();
    resolv.searches.truncate(MAX_SEARCHES);
    while resolv.searches.join(" ").len() > MAX_SEARCH_CHARS {
        resolv.searches.pop();
    }
    if resolv.searches.len() < before {
        warnings.push(("DNSConfigForming", format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            resolv.searches.join(" ")
        )));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_has_its_file() {
        let node = NodeDns {
            cluster_dns: vec!["10.96.0.10".into()],
            cluster_domain: "cluster.local".into(),
            host: parse("nameserver 1.1.1.1\nsearch old\nsearch corp.\noptions a\n# x\n"),
        };
        for (spec, servers, searches, options) in [
            (
                serde_json::json!({}),
                "10.96.0.10",
                "n.svc.cluster.local svc.cluster.local cluster.local corp",
                "ndots:5",
            ),
            (serde_json::json!({"dnsPolicy": "Default"}), "1.1.1.1", "corp", "a"),
            (serde_json::json!({"hostNetwork": true}), "1.1.1.1", "corp", "a"),
            (
                serde_json::json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["a", "b", "c", "d"], "searches": ["s"],
                    "options": [{"name": "ndots", "value": "2"}, {"name": "debug"}]}}),
                "a b c",
                "s",
                "ndots:2 debug",
            ),
            (
                serde_json::json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}),
                "10.96.0.10",
                "n.svc.cluster.local svc.cluster.local cluster.local corp",
                "ndots:1",
            ),
        ] {
            let mut spec = spec;
            spec["containers"] = serde_json::json!([]);
            let pod: Pod =
                serde_json::from_value(serde_json::json!({"metadata": {"namespace": "n"}, "spec": spec}))
                    .unwrap();
            let got = of_pod(&pod, &node).resolv;
            assert_eq!(
                (
                    got.servers.join(" ").as_str(),
                    got.searches.join(" ").as_str(),
                    got.options.join(" ").as_str()
                ),
                (servers, searches, options)
            );
        }
        let none = NodeDns { host: node.host.clone(), ..NodeDns::default() };
        assert_eq!(of_pod(&Pod::default(), &none).warnings[0].0, "MissingClusterDNS");
    }
}
