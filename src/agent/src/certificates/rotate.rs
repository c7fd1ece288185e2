//! The next certificate before the current one ends. One task per pair: it sleeps until its time, asks, keeps
//! what was signed and makes it the one in use; what fails is tried again after a delay that grows.

use super::client::Swap;
use super::request::{self, Name, Purpose};
use super::store::{Life, Store};
use crate::node;
use crate::pod::actions::chain;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::NodeAddress;
use kube::Client;
use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;

/// How long one request is waited for (`certificateWaitTimeout`).
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// The first and the longest delay after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(128));

/// How long until `at`: at once when it has passed.
fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "any number will do")]
fn random() -> f64 {
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}

/// One request, kept when it was signed.
async fn one(
    client: &Client,
    store: &Store,
    purpose: Purpose,
    node: &str,
    names: &[Name],
) -> Result<Life, String> {
    let signed = request::certificate(client, store, purpose, node, names, PATIENCE).await;
    let signed = signed.map_err(|e| chain(&e))?;
    store.update(&signed).map_err(|e| chain(&e))
}

/// Asks for the client's next certificate now, and uses it from then on.
///
/// # Errors
/// What failed, in words.
pub async fn renew(swap: &Swap, store: &Store, node: &str) -> Result<Life, String> {
    let life = one(&swap.client(), store, Purpose::Client, node, &[]).await?;
    swap.renew().await.map_err(|e| chain(&e))?;
    Ok(life)
}

/// Renews the client's certificate in `dir` (`rotateCertificates`); ends with the process.
pub async fn client(swap: Swap, dir: &Path, node: &str) {
    let store = Store::new(dir, Purpose::Client.pair());
    let mut delay = RETRY.0;
    loop {
        let life = match store.current() {
            Ok(Some(life)) => life,
            other => {
                let error = other.err().map(|e| chain(&e)).unwrap_or_default();
                tracing::error!(path = %store.path().display(), error, "there is no certificate to renew");
                return std::future::pending().await;
            }
        };
        let deadline = life.deadline(random());
        tracing::info!(%deadline, until = %life.until, "when the next client certificate is asked for");
        tokio::time::sleep(until(deadline, Timestamp::now())).await;
        match renew(&swap, &store, node).await {
            Ok(_) => {
                tracing::info!(node, "the client certificate is renewed");
                delay = RETRY.0;
            }
            Err(error) => {
                tracing::warn!(node, error, "the client certificate is not renewed");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(RETRY.1);
            }
        }
    }
}

/// What a node's serving certificate is for: its addresses, as the Node has them.
#[must_use]
pub fn names(addresses: &[NodeAddress]) -> Vec<Name> {
    let mut names: Vec<Name> = addresses
        .iter()
        .filter_map(|a| match a.type_.as_str() {
            "Hostname" | "InternalDNS" | "ExternalDNS" => match a.address.parse() {
                Ok(ip) => Some(Name::Ip(ip)),
                Err(_) => Some(Name::Dns(a.address.clone())),
            },
            "InternalIP" | "ExternalIP" => a.address.parse().ok().map(Name::Ip),
            _ => None,
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Gets and renews the certificate of the kubelet API in `dir` (`serverTLSBootstrap`), anew also when the
/// node's addresses change. The server reads the file when it has changed.
pub async fn serving(client: Client, dir: &Path, node: &str, mut state: watch::Receiver<node::State>) {
    let store = Store::new(dir, Purpose::Serving.pair());
    let mut delay = RETRY.0;
    // What the current certificate was asked for; an agent that has just begun trusts the one it finds.
    let mut asked: Option<Vec<Name>> = None;
    loop {
        let of_node = |state: &node::State| {
            let status = state.node.as_ref()?.status.as_ref()?;
            Some(names(status.addresses.as_deref().unwrap_or_default())).filter(|n| !n.is_empty())
        };
        let wanted = match state.wait_for(|s| of_node(s).is_some()).await {
            Ok(state) => of_node(&state).unwrap_or_default(),
            Err(_) => return,
        };
        let life = store.current().unwrap_or_else(|error| {
            tracing::warn!(
                error = chain(&error),
                "the serving certificate cannot be read: it is asked for anew"
            );
            None
        });
        let same = asked.as_ref().is_none_or(|a| *a == wanted);
        let deadline = life.filter(|_| same).map_or(Timestamp::UNIX_EPOCH, |l| l.deadline(random()));
        let changes = state.wait_for(|s| of_node(s).is_some_and(|n| asked.as_ref().is_some_and(|a| *a != n)));
        tokio::select! {
            () = tokio::time::sleep(until(deadline, Timestamp::now())) => {}
            changed = changes => {
                if changed.is_err() {
                    return;
                }
                drop(changed);
                continue;
            }
        }
        match one(&client, &store, Purpose::Serving, node, &wanted).await {
            Ok(life) => {
                tracing::info!(node, until = %life.until, "the serving certificate is there");
                (asked, delay) = (Some(wanted), RETRY.0);
            }
            Err(error) => {
                tracing::warn!(node, error, "there is no new serving certificate");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(RETRY.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_has_passed_is_now() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(until(at(5), at(3)), Duration::from_secs(2));
        assert_eq!(until(at(3), at(5)), Duration::ZERO);
        assert!((0.0..=1.0).contains(&random()));
    }

    #[test]
    fn a_serving_certificate_has_the_nodes_addresses() {
        let address = |kind: &str, address: &str| NodeAddress { type_: kind.into(), address: address.into() };
        let all = [
            address("InternalIP", "10.0.0.2"),
            address("Hostname", "n"),
            address("InternalIP", "fd00::1"),
            address("InternalDNS", "n"),
            address("Other", "x"),
        ];
        let ip = |text: &str| Name::Ip(text.parse().unwrap());
        assert_eq!(names(&all), [Name::Dns("n".into()), ip("10.0.0.2"), ip("fd00::1")]);
    }
}
