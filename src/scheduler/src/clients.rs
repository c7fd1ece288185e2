//! The API clients: one connection each for watches, bindings, the lease, and conditions and events,
//! so that a flood on one (upstream's #135900) does not make another wait.

use kube::Client;

/// A client for each lane.
#[derive(Clone)]
pub struct Clients {
    /// Watches of nodes and pods.
    pub watch: Client,
    /// Bindings.
    pub bind: Client,
    /// Conditions and events.
    pub status: Client,
    /// The lease of the leader.
    pub lease: Client,
}

impl Clients {
    /// A connection for each from one configuration.
    ///
    /// # Errors
    /// When the configuration makes no client (a certificate that does not parse).
    pub fn connect(config: &kube::Config) -> Result<Self, kube::Error> {
        let client = || Client::try_from(config.clone());
        Ok(Clients { watch: client()?, bind: client()?, status: client()?, lease: client()? })
    }
}

/// All lanes over one connection; for tests and small uses.
impl From<Client> for Clients {
    fn from(client: Client) -> Self {
        Clients { watch: client.clone(), bind: client.clone(), status: client.clone(), lease: client }
    }
}
