//! etcd, kube-apiserver and kube-controller-manager, with their identities.

use std::net::{IpAddr, Ipv4Addr};

use kube::Client;
use kube::api::Api;

use super::{READY, UpError, Work};
use crate::pki::{Authority, Identity};
use crate::program::Program;
use crate::state::write_private;
use crate::{apiserver, connect, controller_manager, etcd, kubeconfig};

impl Work<'_> {
    /// Starts the three; gives a client and the server's URL.
    pub(super) async fn control_plane(&mut self, address: Ipv4Addr) -> Result<(Client, String), UpError> {
        let local = Ipv4Addr::LOCALHOST;
        let etcd_port = self.port("etcd", local, None)?;
        let peer_port = self.port("etcd-peer", local, None)?;
        let secure_port = self.port("apiserver", address, Some(6443))?;
        let manager_port = self.port("controller-manager", local, None)?;
        let server = format!("https://{address}:{secure_port}");
        self.identities(address, &server)?;

        let daemon = etcd::daemon(self.program(Program::Etcd)?, self.layout, etcd_port, peer_port);
        self.ensure(&daemon, || async { tokio::net::TcpStream::connect((local, etcd_port)).await.is_ok() })
            .await?;

        write_private(&self.layout.audit_policy(), apiserver::AUDIT_POLICY.as_bytes())?;
        let daemon = apiserver::daemon(
            self.program(Program::KubeApiserver)?,
            self.layout,
            address,
            secure_port,
            etcd_port,
        );
        let client = connect::client(&self.layout.admin_kubeconfig()).await?;
        self.ensure(&daemon, || connect::answers(&client, "/readyz")).await?;

        let daemon = controller_manager::daemon(
            self.program(Program::KubeControllerManager)?,
            self.layout,
            manager_port,
        );
        self.ensure(&daemon, || async {
            tokio::net::TcpStream::connect((local, manager_port)).await.is_ok()
        })
        .await?;
        Ok((client, server))
    }

    /// Every certificate and kubeconfig of the control plane.
    fn identities(&self, address: Ipv4Addr, server: &str) -> Result<(), UpError> {
        let layout = self.layout;
        let authority = Authority::open(layout)?;
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let serving = [local, IpAddr::V4(apiserver::SERVICE_ADDRESS), IpAddr::V4(address)];
        let serving = if address.is_loopback() { &serving[..2] } else { &serving[..] };
        let names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ];
        for identity in [
            Identity::server("etcd", "etcd", &["localhost"], &[local]),
            Identity::server("apiserver", "kube-apiserver", &names, serving),
            Identity::client("apiserver-etcd-client", "kube-apiserver", &[]),
            Identity::client(
                "apiserver-kubelet-client",
                "kube-apiserver-kubelet-client",
                &["system:masters"],
            ),
            Identity::client("admin", "podway-admin", &["system:masters"]),
            Identity::client(controller_manager::NAME, "system:kube-controller-manager", &[]),
        ] {
            authority.issue(&identity)?;
        }
        kubeconfig::write(layout, &layout.admin_kubeconfig(), "admin", server)?;
        let manager = controller_manager::NAME;
        kubeconfig::write(layout, &layout.kubeconfig(manager), manager, server)?;
        Ok(())
    }

    /// Pods cannot be created before their namespace has a service account.
    pub(super) async fn default_service_account(&self, client: &Client) -> Result<(), UpError> {
        use k8s_openapi::api::core::v1::ServiceAccount;
        let api: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
        let there = |object: Option<&ServiceAccount>| object.is_some();
        let wait = kube::runtime::wait::await_condition(api, "default", there);
        match tokio::time::timeout(READY, wait).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(source)) => Err(UpError::Watch { what: "the default service account".to_owned(), source }),
            Err(_) => Err(UpError::NoServiceAccount { seconds: READY.as_secs() }),
        }
    }
}
