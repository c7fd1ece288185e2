//! The list calls and their streams: what a filter lets through, whole or in parts.

use crate::state::Runtime;
use crate::status;
use podway_cri::v1;
use std::collections::HashMap;
use tonic::{Response, Status};

/// The answer of a list call that comes in parts.
pub(super) type Parts<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

/// Items in one part of a stream: far below the message limit, whatever their labels hold.
const PART: usize = 100;

fn matches(selector: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

/// The sandboxes that `filter` lets through; an id may be cut short, as clients show it.
pub(super) fn sandboxes(runtime: &Runtime, filter: Option<v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
    let filter = filter.unwrap_or_default();
    let all = runtime.sandboxes().into_iter().map(|(id, entry)| status::sandbox_status(&id, &entry));
    let some = all
        .filter(|s| s.id.starts_with(&filter.id))
        .filter(|s| filter.state.as_ref().is_none_or(|f| f.state == s.state))
        .filter(|s| matches(&filter.label_selector, &s.labels));
    some.map(|s| v1::PodSandbox {
        id: s.id,
        metadata: s.metadata,
        state: s.state,
        created_at: s.created_at,
        labels: s.labels,
        annotations: s.annotations,
        runtime_handler: s.runtime_handler,
    })
    .collect()
}

/// The containers that `filter` lets through.
pub(super) fn containers(runtime: &Runtime, filter: Option<v1::ContainerFilter>) -> Vec<v1::Container> {
    let filter = filter.unwrap_or_default();
    let all = runtime.containers().into_iter();
    let some = all
        .filter(|(_, c)| c.sandbox.as_str().starts_with(&filter.pod_sandbox_id))
        .map(|(id, c)| (c.sandbox.to_string(), status::container_status(&id, &c)))
        .filter(|(_, s)| s.id.starts_with(&filter.id))
        .filter(|(_, s)| filter.state.as_ref().is_none_or(|f| f.state == s.state))
        .filter(|(_, s)| matches(&filter.label_selector, &s.labels));
    some.map(|(pod_sandbox_id, s)| v1::Container {
        id: s.id,
        pod_sandbox_id,
        metadata: s.metadata,
        image: s.image,
        image_ref: s.image_ref,
        state: s.state,
        created_at: s.created_at,
        labels: s.labels,
        annotations: s.annotations,
        image_id: s.image_id,
    })
    .collect()
}

/// Each item once, in parts; the end of the stream is the end of the list.
pub(super) fn parts<I, T>(mut items: Vec<I>, part: impl Fn(Vec<I>) -> T) -> Response<Parts<T>> {
    let mut all = Vec::new();
    while !items.is_empty() {
        let rest = items.split_off(items.len().min(PART));
        all.push(Ok(part(items)));
        items = rest;
    }
    Response::new(tokio_stream::iter(all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt as _;

    #[tokio::test]
    async fn each_item_comes_once_and_in_order() {
        let stream = parts((0..250).collect(), |part: Vec<i32>| part).into_inner();
        let got: Vec<Vec<i32>> = stream.map(Result::unwrap).collect().await;
        assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50]);
        assert_eq!(got.concat(), (0..250).collect::<Vec<_>>());
        let none: Vec<_> = parts(Vec::<i32>::new(), |p| p).into_inner().collect().await;
        assert!(none.is_empty());
    }
}
