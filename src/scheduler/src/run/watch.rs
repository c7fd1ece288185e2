//! The watches, each a task that hands the loop what it hears.

use super::Input;
use crate::model::Meta;
use crate::objects::{Kept, Step};
use futures::StreamExt;
use kube::Api;
use kube::api::ListParams;
use kube::runtime::{WatchStreamExt, watcher};
use podway_api::SchedulerProfile;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

pub(super) async fn watch<K>(
    api: Api<K>,
    config: watcher::Config,
    what: &'static str,
    wrap: fn(Box<watcher::Event<K>>) -> Input,
    out: mpsc::UnboundedSender<Input>,
) where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let mut stream = std::pin::pin!(watcher(api, config).default_backoff());
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                if out.send(wrap(Box::new(event))).is_err() {
                    return;
                }
            }
            Err(error) => tracing::warn!(%error, what, "the watch broke off and is begun again"),
        }
    }
    // The receiver gone means that the loop has ended; then nobody needs to know.
    let _ = out.send(Input::Ended(what));
}

/// Follows a kind that is kept whole.
pub(super) async fn watch_objects<T: Kept>(
    client: kube::Client,
    records: bool,
    out: mpsc::UnboundedSender<Input>,
) {
    let what = T::KIND.name();
    let api: Api<T::Api> = Api::all(client);
    let mut stream = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    let read = |api: T::Api| {
        let meta = Meta::of(&api);
        let key = meta.key();
        let raw = records.then(|| raw(&api)).flatten();
        let object = T::parse(meta, api);
        if object.is_none() {
            tracing::warn!(what, key, "an object is left out: it cannot be read");
        }
        (key, object.map(|o| T::wrap(Arc::new(o))), raw)
    };
    while let Some(event) = stream.next().await {
        let (step, raw) = match event {
            Ok(watcher::Event::Init) => (Step::Begin, None),
            Ok(watcher::Event::InitApply(api)) => {
                let (key, object, raw) = read(api);
                (Step::Listed(key, object), raw)
            }
            Ok(watcher::Event::InitDone) => (Step::Done, None),
            Ok(watcher::Event::Apply(api)) => {
                let (key, object, raw) = read(api);
                (Step::Set(key, object), raw)
            }
            Ok(watcher::Event::Delete(api)) => (Step::Gone(Meta::of(&api).key()), None),
            Err(error) => {
                tracing::warn!(%error, what, "the watch broke off and is begun again");
                continue;
            }
        };
        if out.send(Input::Object(T::KIND, step, raw)).is_err() {
            return;
        }
    }
    // The receiver gone means that the loop has ended; then nobody needs to know.
    let _ = out.send(Input::Ended(what));
}

/// The object as it is recorded.
fn raw(api: &impl serde::Serialize) -> Option<Box<serde_json::Value>> {
    let value = serde_json::to_value(api);
    value.inspect_err(|error| tracing::warn!(%error, "an object is not recorded")).map(Box::new).ok()
}

/// Watches profiles if the cluster has such objects and we may see them; it is asked once.
pub(super) async fn watch_profiles(client: kube::Client, out: mpsc::UnboundedSender<Input>) {
    let api = Api::<SchedulerProfile>::all(client);
    loop {
        match api.list(&ListParams::default().limit(1)).await {
            Ok(_) => break,
            Err(kube::Error::Api(status)) if [403, 404].contains(&status.code) => {
                tracing::info!(
                    reason = status.message,
                    "there are no live profiles: those of the configuration hold"
                );
                // The receiver gone means that the loop has ended.
                let _ = out.send(Input::NoProfiles);
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "the profiles were not listed; they are asked for again");
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }
    watch(api, watcher::Config::default(), "schedulerprofiles", Input::Profile, out).await;
}

/// How long it is until an API server that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
