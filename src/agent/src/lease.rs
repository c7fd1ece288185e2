//! The node's Lease: 40 s long, renewed each 10 s by a task and a connection of its own, so that no
//! pod's work can delay it. The Node owns it.

use crate::node::State;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Api, PostParams};
use kube::{Client, Error};
use std::time::Duration;
use tokio::sync::watch;

/// The namespace of node leases.
pub const NAMESPACE: &str = "kube-node-lease";
/// How long a lease holds, in seconds.
pub const DURATION_SECONDS: i32 = 40;
/// How often it is renewed: a quarter of its duration.
pub const RENEW_EVERY: Duration = Duration::from_secs(10);
/// How long one renewal may take: a connection that hangs must not cost the lease.
const CALL: Duration = Duration::from_secs(5);
/// The first and the longest wait before a failed renewal is tried again.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(7);

/// `old` renewed at `now`, or a new lease of `node` whose object has `uid`.
#[must_use]
pub fn renewed(old: Option<Lease>, node: &str, uid: Option<&str>, now: Timestamp) -> Lease {
    let mut lease = old.unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        ..Lease::default()
    });
    if let Some(uid) = uid {
        lease.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.to_owned(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        }]);
    }
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(node.to_owned());
    spec.lease_duration_seconds = Some(DURATION_SECONDS);
    spec.renew_time = Some(MicroTime(now));
    lease
}

/// Why a renewal failed.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("no answer in {} s", CALL.as_secs())]
    Late,
}

/// Renews the lease of `node` until the future is dropped. A failure is logged and tried again
/// sooner; a conflict or a lease that was removed makes the next try read it anew.
pub async fn run(client: Client, node: &str, uid: Option<&str>) {
    let api: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let mut known: Option<Lease> = None;
    let mut backoff = FIRST_RETRY;
    loop {
        let started = tokio::time::Instant::now();
        let renewal = tokio::time::timeout(CALL, once(&api, known.take(), node, uid));
        let pause = match renewal.await.map_err(|_| RenewError::Late).and_then(|r| r.map_err(RenewError::Api))
        {
            Ok(lease) => {
                known = Some(lease);
                backoff = FIRST_RETRY;
                RENEW_EVERY
            }
            Err(error) => {
                tracing::warn!(node, %error, "cannot renew the node's lease");
                let pause = backoff;
                backoff = (backoff * 2).min(LAST_RETRY);
                pause
            }
        };
        tokio::time::sleep_until(started + pause).await;
    }
}

/// Keeps the lease of `node` until the future is dropped: from when the node is registered, owned by
/// the Node that is there at the time, and by none while it is deleted (then nothing is renewed:
/// the garbage collector takes the lease away with the Node).
pub async fn keep(client: Client, node: &str, mut state: watch::Receiver<State>) {
    let uid = |state: &State| state.node.as_ref().and_then(|node| node.metadata.uid.clone());
    loop {
        let owner = uid(&state.borrow_and_update());
        let changed = async {
            // A sender that is gone sends no other owner.
            if state.wait_for(|state| uid(state) != owner).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let renewing = async {
            match &owner {
                Some(owner) => run(client.clone(), node, Some(owner)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => {}
            () = renewing => {}
        }
    }
}

async fn once(api: &Api<Lease>, known: Option<Lease>, node: &str, uid: Option<&str>) -> Result<Lease, Error> {
    let old = match known {
        Some(lease) => Some(lease),
        None => api.get_opt(node).await?,
    };
    let exists = old.is_some();
    let lease = renewed(old, node, uid, Timestamp::now());
    if exists {
        api.replace(node, &PostParams::default(), &lease).await
    } else {
        api.create(&PostParams::default(), &lease).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_made_once_and_then_only_renewed() {
        let first = renewed(None, "n", Some("u"), Timestamp::UNIX_EPOCH);
        let owner = &first.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("Node", "u"));
        let later = Timestamp::from_second(10).unwrap();
        let second = renewed(Some(first.clone()), "n", Some("u"), later);
        assert_eq!(second.metadata, first.metadata);
        assert_eq!(second.spec.unwrap().renew_time, Some(MicroTime(later)));
    }
}
