//! Binds through the Binding API; the last of a profile's Bind plugins.

use crate::bind::{self, BindError};
use crate::framework::{Bind, ClusterEvent, Placement, Plugin, Status};
use crate::metrics::Metrics;
use crate::model::PodInfo;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::sync::Arc;

/// The plugin, with the client of the bind lane.
pub struct DefaultBinder {
    client: kube::Client,
    metrics: Arc<Metrics>,
}

impl DefaultBinder {
    /// Binds with `client`.
    #[must_use]
    pub fn new(client: kube::Client, metrics: Arc<Metrics>) -> Self {
        DefaultBinder { client, metrics }
    }
}

impl Plugin for DefaultBinder {
    fn name(&self) -> &'static str {
        "DefaultBinder"
    }

    fn may_help(&self, _: &PodInfo, _: &ClusterEvent) -> bool {
        false
    }
}

impl Bind for DefaultBinder {
    fn bind<'a>(&'a self, placement: &'a Placement) -> BoxFuture<'a, Result<bool, Status>> {
        async move {
            match bind::bind(&self.client, placement).await {
                Ok(()) => Ok(true),
                Err(error) => {
                    let BindError::Refused { source, .. } = &error;
                    if matches!(source.as_ref(), kube::Error::Api(status) if status.code == 409) {
                        self.metrics.bind_conflict();
                    }
                    Err(Status::error(self.name(), detail(source)))
                }
            }
        }
        .boxed()
    }
}

/// Stands in the place of [`DefaultBinder`] where nothing is bound: a profile needs one.
pub(crate) struct NoBinder;

impl Plugin for NoBinder {
    fn name(&self) -> &'static str {
        "DefaultBinder"
    }

    fn may_help(&self, _: &PodInfo, _: &ClusterEvent) -> bool {
        false
    }
}

impl Bind for NoBinder {
    fn bind<'a>(&'a self, _: &'a Placement) -> BoxFuture<'a, Result<bool, Status>> {
        async { Ok(false) }.boxed()
    }
}

/// The API server's own words, without the client's wrapping.
fn detail(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
