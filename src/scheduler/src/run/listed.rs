//! The self-audit's side of the API: lists nodes and pods anew, now and then.

use super::Input;
use crate::audit::Listed;
use crate::model::{NodeInfo, PodInfo};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::ListParams;
use std::time::Duration;
use tokio::sync::mpsc;

/// How many objects one answer has.
const PAGE: u32 = 500;

/// Lists on the watches' lane, every `period`; an answer that does not come is asked for the next time.
pub(super) async fn audits(client: kube::Client, period: Duration, out: mpsc::UnboundedSender<Input>) {
    loop {
        tokio::time::sleep(period).await;
        match listed(&client).await {
            Ok(listed) => {
                if out.send(Input::Audit(Box::new(listed))).is_err() {
                    return;
                }
            }
            Err(error) => tracing::warn!(%error, "the cache was not audited: the lists did not come"),
        }
    }
}

async fn listed(client: &kube::Client) -> Result<Listed, kube::Error> {
    let mut listed = Listed::default();
    // What does not parse is left out of the cache too (`run/pods.rs`, `run/objects.rs`).
    pages::<Node>(client, ListParams::default(), |n| listed.nodes.extend(NodeInfo::parse(&n).ok())).await?;
    let live = ListParams::default().fields("status.phase!=Succeeded,status.phase!=Failed");
    pages::<Pod>(client, live, |p| listed.pods.extend(PodInfo::parse(&p).ok())).await?;
    Ok(listed)
}

async fn pages<K>(
    client: &kube::Client,
    params: ListParams,
    mut take: impl FnMut(K),
) -> Result<(), kube::Error>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let api = Api::<K>::all(client.clone());
    let mut params = params.limit(PAGE);
    loop {
        let page = api.list(&params).await?;
        page.items.into_iter().for_each(&mut take);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(()),
        }
    }
}
