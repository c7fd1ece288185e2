//! What the host does for the nodes: it forwards and masquerades what leaves the machine, and
//! answers for the address of the `kubernetes` service, since no kube-proxy runs.
//!
//! By `iptables`, which the portmap plugin needs anyway. Every rule names the cluster's bridge or
//! its networks, so that the rules of two clusters, and a user's own, do not touch.

use std::fs;
use std::io;
use std::process::Output;

use tokio::process::Command;

use crate::apiserver::SERVICE_ADDRESS;
use crate::network::Network;

/// Why a rule could not be set or removed.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// iptables does not run.
    #[error("cannot run iptables; install it (apt-get install iptables)")]
    Run(#[source] io::Error),
    /// iptables refused.
    #[error("iptables {args}: {message}")]
    Refused {
        /// Its arguments.
        args: String,
        /// What it said.
        message: String,
    },
    /// Forwarding could not be switched.
    #[error("cannot write {FORWARD}")]
    Forward(#[source] io::Error),
}

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// One rule: its table, its chain, and the rest.
type Rule = (&'static str, &'static str, Vec<String>);

fn rules(network: Network, api_port: Option<u16>) -> Vec<Rule> {
    let bridge = network.bridge();
    let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    // The host's own connections to its address on the bridge go by the loopback: not those.
    let nodes = network.subnet();
    let out = |source| words(format!("-s {source} ! -d {nodes} ! -o {bridge} -j MASQUERADE"));
    let mut rules = vec![
        ("nat", "POSTROUTING", out(network.subnet())),
        ("nat", "POSTROUTING", out(network.pods())),
        // A host whose policy is to drop what it forwards (Docker's) forwards for the nodes.
        ("filter", "FORWARD", words(format!("-i {bridge} -j ACCEPT"))),
        ("filter", "FORWARD", words(format!("-o {bridge} -j ACCEPT"))),
    ];
    if let Some(port) = api_port {
        let to = network.gateway();
        let rest = format!(
            "-i {bridge} -d {SERVICE_ADDRESS}/32 -p tcp --dport 443 -j DNAT --to-destination {to}:{port}"
        );
        rules.push(("nat", "PREROUTING", words(rest)));
    }
    rules
}

async fn iptables(rule: &Rule, verb: &str) -> Result<Output, FirewallError> {
    let (table, chain, rest) = rule;
    Command::new("iptables")
        .args(["-w", "10", "-t", table, verb, chain])
        .args(rest)
        .kill_on_drop(true)
        .output()
        .await
        .map_err(FirewallError::Run)
}

fn refused(rule: &Rule, verb: &str, output: &Output) -> FirewallError {
    let (table, chain, rest) = rule;
    FirewallError::Refused {
        args: format!("-t {table} {verb} {chain} {}", rest.join(" ")),
        message: String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "),
    }
}

/// Sets the rules that are not there; `api_port` is that of the API server on the gateway.
pub(crate) async fn open(network: Network, api_port: Option<u16>) -> Result<(), FirewallError> {
    for rule in rules(network, api_port) {
        if iptables(&rule, "-C").await?.status.success() {
            continue;
        }
        // First in the chain: a rule that drops may come before what is appended.
        let output = iptables(&rule, "-I").await?;
        if !output.status.success() {
            return Err(refused(&rule, "-I", &output));
        }
    }
    Ok(())
}

/// Removes every rule that names the cluster's bridge.
pub(crate) async fn close(network: Network) -> Result<(), FirewallError> {
    for table in ["nat", "filter"] {
        let list = ["-w", "10", "-t", table, "-S"];
        let output = Command::new("iptables").args(list).kill_on_drop(true).output().await;
        let output = output.map_err(FirewallError::Run)?;
        if !output.status.success() {
            return Err(refused(&(table, "", Vec::new()), "-S", &output));
        }
        for (chain, rest) in naming(&String::from_utf8_lossy(&output.stdout), &network.bridge()) {
            let mut command = Command::new("iptables");
            command.args(["-w", "10", "-t", table, "-D", &chain]).args(&rest).kill_on_drop(true);
            let output = command.output().await.map_err(FirewallError::Run)?;
            if !output.status.success() {
                return Err(refused(&(table, "", rest), "-D", &output));
            }
        }
    }
    Ok(())
}

/// The rules of `iptables -S` that have `bridge` as a word: chain, and the rest.
fn naming(listed: &str, bridge: &str) -> Vec<(String, Vec<String>)> {
    let ours = listed.lines().filter(|l| l.split(' ').any(|word| word == bridge));
    ours.filter_map(|line| {
        let mut words = line.split(' ').map(str::to_owned);
        let verb = words.next()?;
        let chain = words.next()?;
        (verb == "-A").then(|| (chain, words.collect()))
    })
    .collect()
}

/// Whether the host forwards packets.
pub(crate) fn forwards() -> bool {
    fs::read_to_string(FORWARD).is_ok_and(|text| text.trim() != "0")
}

/// Switches forwarding.
pub(crate) fn forward(on: bool) -> Result<(), FirewallError> {
    fs::write(FORWARD, if on { "1" } else { "0" }).map_err(FirewallError::Forward)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_names_the_clusters_bridge() {
        let network = Network::new(3).unwrap();
        let rules = rules(network, Some(6443));
        assert_eq!(rules.len(), 5);
        for (_, _, words) in rules {
            assert!(words.contains(&"podway3".to_owned()), "{words:?}");
        }
    }

    #[test]
    fn only_rules_of_this_very_bridge_are_removed() {
        let listed = "-P FORWARD ACCEPT\n-N podway1\n-A FORWARD -i podway1 -j ACCEPT\n\
                      -A FORWARD -i podway11 -j ACCEPT\n-A FORWARD -j ACCEPT\n";
        let found = naming(listed, "podway1");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0.as_str(), found[0].1.join(" ").as_str()), ("FORWARD", "-i podway1 -j ACCEPT"));
    }
}
