//! The managed /etc/hosts of a pod, byte for byte as the kubelet writes it, and its hostname.

use k8s_openapi::api::core::v1::{HostAlias, Pod};

/// The longest hostname that Linux takes.
const HOSTNAME_LIMIT: usize = 64;
/// The longest name that a pod's hostname is cut to.
const LABEL_LIMIT: usize = 63;

/// A pod whose name cannot be its hostname: the message of `FailedCreatePodSandBox`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostnameError {
    /// setHostnameAsFQDN with a name over 64 characters.
    #[error(
        "failed to construct FQDN from pod hostname and cluster domain, FQDN {0} is too long ({HOSTNAME_LIMIT} characters is the max, {len} characters requested)",
        len = .0.len()
    )]
    FqdnTooLong(String),
    /// Nothing is left of the name.
    #[error("hostname from pod name {0:?} is invalid: empty after cutting it to 63 characters")]
    Empty(String),
}

/// The names a pod is called by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hostname {
    /// What `hostname` answers inside the pod.
    pub hostname: String,
    /// The domain `<subdomain>.<namespace>.svc.<cluster domain>`; empty without a subdomain.
    pub domain: String,
    /// The hostname as it stands in /etc/hosts, before setHostnameAsFQDN.
    pub short: String,
}

/// The hostname of `pod`; for a pod on the host's network it is `node_hostname`.
///
/// # Errors
/// [`HostnameError`] where the kernel would refuse the name.
pub fn hostname(pod: &Pod, cluster_domain: &str, node_hostname: &str) -> Result<Hostname, HostnameError> {
    let spec = pod.spec.as_ref();
    let set = |s: Option<&String>| s.filter(|s| !s.is_empty()).cloned();
    if let Some(name) = set(spec.and_then(|s| s.hostname_override.as_ref())) {
        return Ok(Hostname { hostname: name.clone(), domain: String::new(), short: name });
    }
    if spec.and_then(|s| s.host_network).unwrap_or(false) {
        return Ok(Hostname {
            hostname: node_hostname.to_owned(),
            domain: String::new(),
            short: node_hostname.to_owned(),
        });
    }
    let pod_name = pod.metadata.name.clone().unwrap_or_default();
    let short = match set(spec.and_then(|s| s.hostname.as_ref())) {
        Some(name) => name,
        None => truncated(&pod_name).ok_or(HostnameError::Empty(pod_name))?,
    };
    let domain = match set(spec.and_then(|s| s.subdomain.as_ref())) {
        Some(subdomain) => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            format!("{subdomain}.{namespace}.svc.{cluster_domain}")
        }
        None => String::new(),
    };
    let as_fqdn = spec.and_then(|s| s.set_hostname_as_fqdn).unwrap_or(false) && !domain.is_empty();
    let hostname = if as_fqdn { format!("{short}.{domain}") } else { short.clone() };
    if hostname.len() > HOSTNAME_LIMIT {
        return Err(HostnameError::FqdnTooLong(hostname));
    }
    Ok(Hostname { hostname, domain, short })
}

fn truncated(name: &str) -> Option<String> {
    let cut = name.get(..LABEL_LIMIT.min(name.len()))?.trim_end_matches(['-', '.']);
    (!cut.is_empty()).then(|| cut.to_owned())
}

/// The content for a pod with a network of its own.
#[must_use]
pub fn managed(pod_ips: &[String], name: &Hostname, aliases: &[HostAlias]) -> String {
    let mut out = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for ip in pod_ips {
        if name.domain.is_empty() {
            out.push_str(&format!("{ip}\t{}\n", name.short));
        } else {
            out.push_str(&format!("{ip}\t{}.{}\t{}\n", name.short, name.domain, name.short));
        }
    }
    out + &alias_block(aliases)
}

/// The content for a pod on the host's network: the node's file, and the aliases.
#[must_use]
pub fn of_node(node_file: &str, aliases: &[HostAlias]) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{node_file}{}", alias_block(aliases))
}

fn alias_block(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let lines: String = aliases
        .iter()
        .map(|a| format!("{}\t{}\n", a.ip, a.hostnames.clone().unwrap_or_default().join("\t")))
        .collect();
    format!("\n# Entries added by HostAliases.\n{lines}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = serde_json::json!([]);
        serde_json::from_value(
            serde_json::json!({"metadata": {"name": name, "namespace": "n"}, "spec": spec}),
        )
        .unwrap()
    }

    #[test]
    fn hostnames_follow_the_rule() {
        let long = format!("{}-x", "a".repeat(62));
        let at = |name: &str, spec| hostname(&pod(name, spec), "cluster.local", "node").map(|h| h.hostname);
        assert_eq!(at("p", serde_json::json!({})).unwrap(), "p");
        assert_eq!(at(&long, serde_json::json!({})).unwrap(), "a".repeat(62));
        assert_eq!(at("p", serde_json::json!({"hostname": "h", "subdomain": "s"})).unwrap(), "h");
        assert_eq!(
            at("p", serde_json::json!({"subdomain": "s", "setHostnameAsFQDN": true})).unwrap(),
            "p.s.n.svc.cluster.local"
        );
        assert_eq!(at("p", serde_json::json!({"hostNetwork": true})).unwrap(), "node");
        assert!(
            at(&"b".repeat(60), serde_json::json!({"subdomain": "s", "setHostnameAsFQDN": true})).is_err()
        );
    }

    #[test]
    fn the_file_is_golden() {
        let name =
            hostname(&pod("p", serde_json::json!({"subdomain": "s"})), "cluster.local", "node").unwrap();
        let alias = HostAlias { ip: "1.2.3.4".into(), hostnames: Some(vec!["a".into(), "b".into()]) };
        let text = managed(&["10.1.0.2".into()], &name, std::slice::from_ref(&alias));
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\t"));
        assert!(text.ends_with(
            "10.1.0.2\tp.s.n.svc.cluster.local\tp\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"
        ));
        assert_eq!(of_node("x\n", &[]), "# Kubernetes-managed hosts file (host network).\nx\n");
    }
}
