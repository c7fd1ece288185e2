//! The variables that a container has of the services beside it (pkg/kubelet/envvars).

use k8s_openapi::api::core::v1::Service;
use std::collections::BTreeMap;

/// The variables of the services that a pod in `namespace` sees: its namespace's when
/// `enable_service_links`, and `default/kubernetes` always. Headless services give none.
#[must_use]
pub fn variables(
    services: &[Service],
    namespace: &str,
    enable_service_links: bool,
) -> BTreeMap<String, String> {
    let mut seen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let of = service.metadata.namespace.as_deref().unwrap_or_default();
        if cluster_ip(service).is_none() {
            continue;
        }
        if of == "default" && name == "kubernetes" {
            seen.entry(name).or_insert(service);
        } else if of == namespace && enable_service_links {
            seen.insert(name, service);
        }
    }
    seen.into_iter().flat_map(|(name, service)| of_service(name, service)).collect()
}

fn cluster_ip(service: &Service) -> Option<&str> {
    service.spec.as_ref()?.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None")
}

fn of_service(name: &str, service: &Service) -> Vec<(String, String)> {
    let (Some(ip), Some(ports)) = (cluster_ip(service), service.spec.as_ref().and_then(|s| s.ports.as_ref()))
    else {
        return Vec::new();
    };
    let shout = |s: &str| s.to_uppercase().replace('-', "_");
    let prefix = shout(name);
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let mut out = vec![(format!("{prefix}_SERVICE_HOST"), ip.to_owned())];
    for (i, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if i == 0 {
            out.push((format!("{prefix}_SERVICE_PORT"), port.port.to_string()));
            out.push((format!("{prefix}_PORT"), url.clone()));
        }
        if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            out.push((format!("{prefix}_SERVICE_PORT_{}", shout(port_name)), port.port.to_string()));
        }
        let of_port = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        out.push((of_port.clone(), url));
        out.push((format!("{of_port}_PROTO"), protocol.to_lowercase()));
        out.push((format!("{of_port}_PORT"), port.port.to_string()));
        out.push((format!("{of_port}_ADDR"), ip.to_owned()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_give_upstreams_variables() {
        let service = |ns: &str, name: &str, ip: &str| -> Service {
            serde_json::from_value(serde_json::json!({"metadata": {"namespace": ns, "name": name},
                "spec": {"clusterIP": ip, "ports": [{"name": "http-x", "port": 80}]}}))
            .unwrap()
        };
        let all = [
            service("default", "kubernetes", "10.0.0.1"),
            service("a", "my-svc", "10.0.0.2"),
            service("a", "headless", "None"),
            service("b", "other", "10.0.0.3"),
        ];
        let got = variables(&all, "a", true);
        for (key, value) in [
            ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
            ("MY_SVC_SERVICE_PORT", "80"),
            ("MY_SVC_SERVICE_PORT_HTTP_X", "80"),
            ("MY_SVC_PORT", "tcp://10.0.0.2:80"),
            ("MY_SVC_PORT_80_TCP_ADDR", "10.0.0.2"),
        ] {
            assert_eq!(got[key], value, "{key}");
        }
        assert!(!got.keys().any(|k| k.starts_with("HEADLESS") || k.starts_with("OTHER")));
        assert!(variables(&all, "a", false).keys().all(|k| k.starts_with("KUBERNETES_")));
    }
}
