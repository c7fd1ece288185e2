//! The cluster's network, and the removal of nodes that are not wanted any more.

use super::{UpError, Work};
use crate::network::Network;
use crate::parts::NodeParts;
use crate::{connect, down, firewall, nodes, registered};

impl Work<'_> {
    /// Takes a network, makes its bridge, and removes the nodes that are not wanted any more.
    pub(super) async fn network(&mut self, count: u8) -> Result<Network, UpError> {
        let _lock = nodes::lock().await?;
        let network = nodes::choose(self.layout.root(), self.state.slot)?;
        self.state.slot = Some(network.slot());
        let before = self.state.nodes;
        self.state.nodes = before.max(count);
        self.state.forwarding_was_off |= !firewall::forwards();
        self.state.save(self.layout)?;
        if nodes::share()? {
            self.state.shared_netns = true;
            self.state.save(self.layout)?;
        }
        nodes::bridge(network, self.layout.root()).await?;
        firewall::forward(true)?;
        for index in count..before {
            let node = NodeParts::new(self.layout, network.node(index));
            (self.progress)(&format!("removing {}", node.network.name()));
            down::node(&node, self.state).await?;
            let admin = self.state.existing.clone().unwrap_or_else(|| self.layout.admin_kubeconfig());
            // Without a control plane yet there is no Node either.
            if registered::ours(self.layout, &node.network.name())
                && let Ok(client) = connect::client(&admin).await
                && connect::answers(&client, "/readyz").await
            {
                registered::delete(&client, &node.network.name()).await?;
            }
        }
        self.state.nodes = count;
        self.state.save(self.layout)?;
        Ok(network)
    }
}
