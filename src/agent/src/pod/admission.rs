//! Whether this node takes a pod that was bound to it: the checks that the kubelet repeats, in its
//! order and words (pkg/kubelet/lifecycle/predicate.go). Pure. A pod that runs already is not asked
//! again: a restarted agent never refuses what it had taken.

use crate::env::quantity;
use crate::pod::confinement::{self, Modules};
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// What a pod takes of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Millicores.
    pub cpu: i128,
    /// Bytes.
    pub memory: i128,
    /// Host ports: address, protocol, port.
    pub ports: Vec<(String, String, i32)>,
}

/// What the node has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Offer {
    /// Its name.
    pub node: String,
    /// `status.allocatable`.
    pub allocatable: BTreeMap<String, Quantity>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// How many pods it takes.
    pub max_pods: usize,
    /// What its kernel can confine with.
    pub modules: Modules,
}

/// Why a pod is not taken: it is `Failed` with this reason and message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `status.reason`.
    pub reason: String,
    /// `status.message`.
    pub message: String,
}

/// What `spec` takes of a node.
#[must_use]
pub fn ask(spec: &api::PodSpec) -> Ask {
    let (cpu, memory) = crate::cgroups::requests(spec);
    let text = |s: &Option<String>, default: &str| s.clone().unwrap_or_else(|| default.to_owned());
    let ports = spec
        .containers
        .iter()
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            let port = p.host_port.filter(|port| *port > 0)?;
            Some((text(&p.host_ip, "0.0.0.0"), text(&p.protocol, "TCP"), port))
        })
        .collect();
    Ask { cpu, memory, ports }
}

fn predicate(name: &str, why: &str) -> Refusal {
    Refusal { reason: name.to_owned(), message: format!("Pod was rejected: Predicate {name} failed: {why}") }
}

fn short(resource: &str, requested: i128, used: i128, capacity: i128) -> Option<Refusal> {
    (requested > 0 && requested + used > capacity).then(|| Refusal {
        reason: format!("OutOf{resource}"),
        message: format!(
            "Pod was rejected: Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        ),
    })
}

fn clash(a: &(String, String, i32), b: &(String, String, i32)) -> bool {
    let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
    a.1 == b.1 && a.2 == b.2 && (a.0 == b.0 || any(&a.0) || any(&b.0))
}

/// Whether the node takes `spec` beside `others`.
///
/// # Errors
/// The first [`Refusal`].
pub fn admit(spec: &api::PodSpec, others: &[&Ask], offer: &Offer) -> Result<(), Refusal> {
    if let Some(os) = spec.os.as_ref().filter(|os| os.name != "linux") {
        let message = format!(
            "Pod was rejected: Failed to admit pod as the OS field doesn't match node OS: {}",
            os.name
        );
        return Err(Refusal { reason: "PodOSNotSupported".to_owned(), message });
    }
    let sysctls = spec.security_context.as_ref().and_then(|c| c.sysctls.as_ref());
    for sysctl in sysctls.into_iter().flatten() {
        if !SAFE_SYSCTLS.contains(&sysctl_name(&sysctl.name).as_str()) {
            let message = format!(
                "Pod was rejected: forbidden sysctl: {:?} not allowlisted",
                podway_flow::record::bounded(&sysctl.name, 128)
            );
            return Err(Refusal { reason: "SysctlForbidden".to_owned(), message });
        }
    }
    if confinement::needs_apparmor(spec) && !offer.modules.apparmor {
        let message = "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host";
        return Err(Refusal { reason: "AppArmor".to_owned(), message: message.to_owned() });
    }
    let own = ask(spec);
    let amount = |name: &str| offer.allocatable.get(name).map(|q| q.0.as_str());
    if others.len() >= offer.max_pods {
        let full = short("pods", 1, others.len() as i128, offer.max_pods as i128);
        return full.map_or(Ok(()), Err);
    }
    let used = |of: fn(&Ask) -> i128| others.iter().map(|a| of(a)).sum::<i128>();
    let cpu = amount("cpu").and_then(quantity::milli);
    let memory = amount("memory").and_then(quantity::value);
    let lacks = cpu
        .and_then(|have| short("cpu", own.cpu, used(|a| a.cpu), have))
        .or_else(|| memory.and_then(|have| short("memory", own.memory, used(|a| a.memory), have)));
    if let Some(refusal) = lacks {
        return Err(refusal);
    }
    let selector = spec.node_selector.iter().flatten();
    if selector.clone().any(|(k, v)| offer.labels.get(k) != Some(v)) && !offer.labels.is_empty() {
        return Err(predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"));
    }
    if own.ports.iter().any(|p| others.iter().any(|o| o.ports.iter().any(|q| clash(p, q)))) {
        return Err(predicate("NodePorts", "node(s) didn't have free ports for the requested pod ports"));
    }
    if spec.node_name.as_deref().is_some_and(|n| n != offer.node) {
        return Err(predicate("NodeName", "node(s) didn't match the requested node name"));
    }
    Ok(())
}

/// A sysctl's name with dots between its parts: where the first separator is a slash, dots and slashes
/// change places (`NormalizeName` of component-helpers/node/util/sysctl).
#[must_use]
pub fn sysctl_name(name: &str) -> String {
    if name.find(['.', '/']).is_none_or(|at| name.as_bytes().get(at) == Some(&b'.')) {
        return name.to_owned();
    }
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    name.chars().map(swap).collect()
}

/// What is allowed without the node's consent (pkg/kubelet/sysctl/safe_sysctls.go).
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_refusal_has_upstreams_word() {
        let offer = Offer {
            node: "n".into(),
            allocatable: BTreeMap::from([
                ("cpu".into(), Quantity("1".into())),
                ("memory".into(), Quantity("1Gi".into())),
            ]),
            labels: BTreeMap::from([("disk".into(), "ssd".into())]),
            max_pods: 2,
            modules: Modules::default(),
        };
        let busy = Ask { cpu: 900, memory: 0, ports: vec![("0.0.0.0".into(), "TCP".into(), 80)] };
        let one = |extra: serde_json::Value, container: serde_json::Value| {
            let mut spec = extra;
            let mut c = json!({"name": "c", "image": "i"});
            c.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
            spec["containers"] = json!([c]);
            let spec: api::PodSpec = serde_json::from_value(spec).unwrap();
            admit(&spec, &[&busy], &offer).map_err(|r| r.reason)
        };
        let refused = |reason: &str| Err(reason.to_owned());
        assert_eq!(one(json!({}), json!({})), Ok(()));
        assert_eq!(one(json!({"nodeName": "n", "nodeSelector": {"disk": "ssd"}}), json!({})), Ok(()));
        assert_eq!(one(json!({"nodeName": "m"}), json!({})), refused("NodeName"));
        assert_eq!(one(json!({"nodeSelector": {"disk": "hdd"}}), json!({})), refused("NodeAffinity"));
        assert_eq!(one(json!({"os": {"name": "windows"}}), json!({})), refused("PodOSNotSupported"));
        assert_eq!(one(json!({}), json!({"resources": {"requests": {"cpu": "101m"}}})), refused("OutOfcpu"));
        assert_eq!(
            one(json!({}), json!({"resources": {"requests": {"memory": "2Gi"}}})),
            refused("OutOfmemory")
        );
        let port = json!({"ports": [{"containerPort": 1, "hostPort": 80, "hostIP": "10.0.0.1"}]});
        assert_eq!(one(json!({}), port), refused("NodePorts"));
        let sysctl = json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}});
        assert_eq!(one(sysctl, json!({})), refused("SysctlForbidden"));
        let slashes =
            json!({"securityContext": {"sysctls": [{"name": "kernel/shm_rmid_forced", "value": "1"}]}});
        assert_eq!(one(slashes, json!({})), Ok(()));
        assert_eq!(sysctl_name("net/ipv4/conf/eth0.1/x"), "net.ipv4.conf.eth0/1.x");
        let profile = |kind| json!({"securityContext": {"appArmorProfile": {"type": kind}}});
        assert_eq!(one(profile("RuntimeDefault"), json!({})), refused("AppArmor"));
        assert_eq!(one(json!({}), profile("RuntimeDefault")), refused("AppArmor"));
        assert_eq!(one(profile("Unconfined"), profile("Unconfined")), Ok(()));
        let spec =
            json!({"containers": [], "securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}});
        let confines = Modules { apparmor: true, selinux: false };
        let able = Offer { modules: confines, ..offer.clone() };
        assert_eq!(admit(&serde_json::from_value(spec).unwrap(), &[], &able), Ok(()));
        let spec: api::PodSpec = serde_json::from_value(json!({"containers": []})).unwrap();
        let full = admit(&spec, &[&busy, &busy], &offer).unwrap_err();
        assert_eq!(full.reason, "OutOfpods");
        assert!(full.message.ends_with("requested: 1, used: 2, capacity: 2"));
    }
}
