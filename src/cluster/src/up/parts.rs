//! podway's own daemons: their identities, their start, and the wait for Ready nodes.

use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::Api;

use super::{READY, UpError, Work};
use crate::existing::{Existing, Signer};
use crate::parts::{self, NodeParts, Shared};
use crate::pki::{Authority, Identity};
use crate::{connect, kubeconfig, process, registered};

impl Work<'_> {
    /// The certificates and kubeconfigs of our parts: from our CA, or from the existing cluster.
    pub(super) async fn part_identities(
        &self,
        nodes: &[NodeParts],
        server: &str,
        existing: Option<&Existing>,
    ) -> Result<(), UpError> {
        let layout = self.layout;
        let mut wanted =
            vec![(Identity::client(parts::SCHEDULER, parts::SCHEDULER_USER, &[]), Signer::Client)];
        for node in nodes {
            let name = node.network.name();
            let address = IpAddr::V4(node.network.address());
            wanted.push((Identity::node(&name), Signer::NodeClient));
            wanted.push((Identity::node_serving(&node.serving(), &name, address), Signer::NodeServing));
        }
        match existing {
            Some(existing) => {
                for node in nodes {
                    let name = node.network.name();
                    if !registered::ours(layout, &name) {
                        registered::absent(&existing.client, &name).await?;
                    }
                }
                for (identity, signer) in &wanted {
                    existing.issue(layout, identity, *signer).await?;
                }
            }
            None => {
                let authority = Authority::open(layout)?;
                for (identity, _) in &wanted {
                    authority.issue(identity)?;
                }
            }
        }
        for (identity, signer) in &wanted {
            if !matches!(signer, Signer::NodeServing) {
                let name = &identity.name;
                kubeconfig::write(layout, &layout.kubeconfig(name), name, server)?;
            }
        }
        Ok(())
    }

    /// Starts scheduler, runtimes and agents, and waits until every node is Ready.
    pub(super) async fn parts(
        &mut self,
        client: &Client,
        nodes: &[NodeParts],
        shared: &Shared,
    ) -> Result<(), UpError> {
        let running = || async { true };
        let local = Ipv4Addr::LOCALHOST;
        let port = self.port(parts::SCHEDULER, local, Some(10351))?;
        let daemon = parts::scheduler(&shared.podway, self.layout, port, shared.default_scheduler);
        self.ensure(&daemon, || async { tokio::net::TcpStream::connect((local, port)).await.is_ok() })
            .await?;
        for node in nodes {
            let socket = node.socket();
            let daemon = node.runtime(shared)?;
            self.ensure(&daemon, || async { tokio::net::UnixStream::connect(&socket).await.is_ok() }).await?;
            self.ensure(&node.agent(shared, self.layout)?, running).await?;
        }
        for node in nodes {
            self.ready(client, node).await?;
        }
        Ok(())
    }

    /// Waits by a watch until the Node is Ready; an agent that ends is told at once.
    async fn ready(&self, client: &Client, node: &NodeParts) -> Result<(), UpError> {
        let name = node.network.name();
        let is_ready = |object: Option<&Node>| {
            let conditions = object.and_then(|n| n.status.as_ref()?.conditions.as_ref());
            let ready =
                conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
            // The controller manager takes the taint away a moment later; pods would wait for that.
            let taints = object.and_then(|n| n.spec.as_ref()?.taints.as_ref());
            ready && !taints.is_some_and(|all| all.iter().any(|t| t.key == "node.kubernetes.io/not-ready"))
        };
        let wait = kube::runtime::wait::await_condition(Api::all(client.clone()), &name, is_ready);
        let agent = node.agent_name();
        let log = self.layout.log(&agent);
        let ended = async {
            match self.state.processes.get(&agent) {
                Some(record) => process::ended(record).await,
                None => Ok(()),
            }
        };
        tokio::select! {
            found = wait => match found {
                Ok(_) => Ok(()),
                Err(source) => Err(UpError::Watch { what: format!("node {name}"), source }),
            },
            ended = ended => {
                ended?;
                Err(connect::ended(&agent, &log).into())
            }
            () = tokio::time::sleep(READY) => Err(UpError::NodeNotReady {
                node: name.clone(),
                seconds: READY.as_secs(),
                log: log.display().to_string(),
            }),
        }
    }
}
