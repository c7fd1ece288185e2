//! A client whose credential can change: every request goes through the client that is current when it
//! begins. What was begun ends on its own connection, whose certificate is good for a while yet.

use super::CertificateError;
use crate::connection::chosen;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// The current client, and the kubeconfig that it is made of.
#[derive(Clone)]
pub struct Swap {
    kubeconfig: PathBuf,
    current: Arc<RwLock<kube::Client>>,
}

impl std::fmt::Debug for Swap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Swap").field("kubeconfig", &self.kubeconfig).finish_non_exhaustive()
    }
}

impl Swap {
    /// `client` is made of `kubeconfig`.
    #[must_use]
    pub fn new(kubeconfig: &Path, client: kube::Client) -> Self {
        Swap { kubeconfig: kubeconfig.to_owned(), current: Arc::new(RwLock::new(client)) }
    }

    fn now(&self) -> kube::Client {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A client that is always the current one.
    #[must_use]
    pub fn client(&self) -> kube::Client {
        let (swap, namespace) = (self.clone(), self.now().default_namespace().to_owned());
        chosen(namespace, move |_| swap.now())
    }

    /// Reads the kubeconfig and its files anew.
    ///
    /// # Errors
    /// [`CertificateError`]; the old client stays.
    pub async fn renew(&self) -> Result<(), CertificateError> {
        let new = super::client(&self.kubeconfig).await?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }
}
