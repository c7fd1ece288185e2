//! Waiting for an object by its watch, with a limit, and with the last state seen when it is over.

use anyhow::{Context as _, anyhow, bail};
use futures::StreamExt as _;
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// What a watch needs of a kind.
pub trait Watched:
    kube::Resource + Clone + std::fmt::Debug + DeserializeOwned + Serialize + Send + 'static
{
}
impl<K> Watched for K where
    K: kube::Resource + Clone + std::fmt::Debug + DeserializeOwned + Serialize + Send + 'static
{
}

/// The first state of an object matching `fields` (a field selector) that is as `wanted`.
///
/// # Errors
/// After `limit`; the error holds the last state.
pub async fn until<K: Watched>(
    api: Api<K>,
    fields: &str,
    what: &str,
    limit: Duration,
    wanted: impl Fn(&K) -> bool,
) -> anyhow::Result<K> {
    let mut last = None;
    let found = async {
        let config = watcher::Config::default().fields(fields);
        let mut stream = std::pin::pin!(watcher(api, config).default_backoff().applied_objects());
        while let Some(object) = stream.next().await {
            // A watch that breaks off is begun again by itself; the limit ends one that never works.
            let Ok(object) = object else { continue };
            if wanted(&object) {
                return Ok(object);
            }
            last = Some(object);
        }
        bail!("the watch ended")
    };
    match tokio::time::timeout(limit, found).await {
        Ok(found) => found.with_context(|| format!("waiting for {what} ({fields})")),
        Err(_) => Err(anyhow!("{what} ({fields}) did not come in {limit:?}; last seen: {}", short(&last))),
    }
}

/// Waits until no object of that name is there, or one with another UID.
///
/// # Errors
/// After `limit`.
pub async fn until_gone<K: Watched>(
    api: Api<K>,
    name: &str,
    uid: Option<&str>,
    limit: Duration,
) -> anyhow::Result<()> {
    let condition = |object: Option<&K>| match (object, uid) {
        (None, _) => true,
        (Some(object), Some(uid)) => object.meta().uid.as_deref() != Some(uid),
        (Some(_), None) => false,
    };
    let wait = kube::runtime::wait::await_condition(api.clone(), name, condition);
    if let Ok(ended) = tokio::time::timeout(limit, wait).await {
        ended.with_context(|| format!("watching {name}"))?;
        return Ok(());
    }
    let last = api.get_opt(name).await?;
    Err(anyhow!("{name} is still there after {limit:?}: {}", short(&last)))
}

/// An object as JSON without its bulk.
fn short<K: Serialize>(object: &Option<K>) -> String {
    let Some(object) = object else { return "nothing".to_owned() };
    let Ok(mut value) = serde_json::to_value(object) else { return "(not JSON)".to_owned() };
    if let Some(metadata) = value["metadata"].as_object_mut() {
        metadata.retain(|key, _| ["name", "uid", "deletionTimestamp", "generation"].contains(&key.as_str()));
    }
    let text = value.to_string();
    podway_flow::record::bounded(&text, 4_000)
}
