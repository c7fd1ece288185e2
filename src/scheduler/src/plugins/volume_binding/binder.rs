//! The writing half (`volumebinding/binder.go` BindPodVolumes): volumes are reserved for their claims,
//! claims are told their node, and then the volume controller is waited for, by watches.

use super::{NAME, VolumePlan};
use crate::framework::{ClusterEvent, Placement, Plugin, PreBind, Status};
use crate::model::storage::SELECTED_NODE;
use crate::model::{Meta, PersistentVolume, PersistentVolumeClaim, PodInfo};
use crate::objects::Kept as _;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::wait::await_condition;
use std::time::Duration;

/// The plugin, with the client of the bind lane.
pub struct VolumeBinder {
    client: kube::Client,
    timeout: Duration,
}

impl VolumeBinder {
    /// Upstream's `bindTimeoutSeconds`.
    pub const TIMEOUT: Duration = Duration::from_secs(600);

    /// Writes with `client`, and waits no longer than `timeout`.
    #[must_use]
    pub fn new(client: kube::Client, timeout: Duration) -> Self {
        VolumeBinder { client, timeout }
    }

    async fn bind(&self, placement: &Placement, plan: &VolumePlan) -> Result<(), String> {
        self.write(plan).await?;
        let all = async {
            for (_, claim) in &plan.binds {
                self.bound(claim, None).await?;
            }
            for claim in &plan.makes {
                self.bound(claim, Some(&placement.node)).await?;
            }
            Ok(())
        };
        let late = || Err("binding volumes: context deadline exceeded".to_owned());
        tokio::time::timeout(self.timeout, all).await.unwrap_or_else(|_| late())
    }

    async fn write(&self, plan: &VolumePlan) -> Result<(), String> {
        let volumes: Api<v1::PersistentVolume> = Api::all(self.client.clone());
        for (volume, claim) in &plan.binds {
            let mut patch = serde_json::json!({
                "metadata": {"resourceVersion": volume.version},
                "spec": {"claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "namespace": claim.meta.namespace,
                    "name": claim.meta.name,
                    "uid": claim.meta.uid,
                    "resourceVersion": claim.version,
                }}
            });
            if !volume.is_for(claim) {
                // So that the volume controller knows that it may let go of it again.
                let by = serde_json::json!({"pv.kubernetes.io/bound-by-controller": "yes"});
                patch["metadata"]["annotations"] = by;
            }
            let patched =
                volumes.patch(&volume.meta.name, &PatchParams::default(), &Patch::Merge(patch)).await;
            patched.map_err(|e| e.to_string())?;
        }
        for claim in &plan.makes {
            let patch = serde_json::json!({
                "metadata": {"resourceVersion": claim.version, "annotations": {SELECTED_NODE: plan.node}}
            });
            let claims: Api<v1::PersistentVolumeClaim> =
                Api::namespaced(self.client.clone(), &claim.meta.namespace);
            let patched = claims.patch(&claim.meta.name, &PatchParams::default(), &Patch::Merge(patch)).await;
            patched.map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Waits until a claim has its volume, or the provisioner has given up on the node.
    async fn bound(&self, claim: &PersistentVolumeClaim, on: Option<&str>) -> Result<(), String> {
        let claims: Api<v1::PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), &claim.meta.namespace);
        let read = |api: Option<&v1::PersistentVolumeClaim>| {
            api.and_then(|c| PersistentVolumeClaim::parse(Meta::of(c), c.clone()))
        };
        let given_up = |claim: &PersistentVolumeClaim| on.is_some() && claim.selected_node.as_deref() != on;
        let settled = |api: Option<&v1::PersistentVolumeClaim>| {
            read(api).is_none_or(|claim| claim.bound() || given_up(&claim))
        };
        let seen = await_condition(claims, &claim.meta.name, settled).await.map_err(|e| e.to_string())?;
        let Some(seen) = read(seen.as_ref()) else {
            return Err(format!("persistentvolumeclaim {:?} not found", claim.meta.name));
        };
        if given_up(&seen) {
            return Err(format!("provisioning failed for PVC {:?}", claim.meta.name));
        }
        self.reachable(&seen, on).await
    }

    /// A volume that was made must be one that the node reaches.
    async fn reachable(&self, claim: &PersistentVolumeClaim, on: Option<&str>) -> Result<(), String> {
        let Some(node) = on else { return Ok(()) };
        let volumes: Api<v1::PersistentVolume> = Api::all(self.client.clone());
        let nodes: Api<v1::Node> = Api::all(self.client.clone());
        let made = volumes.get(&claim.volume).await.map_err(|e| e.to_string())?;
        let made = PersistentVolume::parse(Meta::of(&made), made.clone());
        let labels = nodes.get(node).await.map_err(|e| e.to_string())?.metadata.labels.unwrap_or_default();
        if made.is_none_or(|m| m.reaches(&labels)) {
            return Ok(());
        }
        let volume = &claim.volume;
        Err(format!("pv {volume:?} node affinity doesn't match node {node:?}: no matching NodeSelectorTerms"))
    }
}

impl Plugin for VolumeBinder {
    fn name(&self) -> &'static str {
        NAME
    }

    fn may_help(&self, _: &PodInfo, _: &ClusterEvent) -> bool {
        false
    }
}

impl PreBind for VolumeBinder {
    fn pre_bind<'a>(&'a self, placement: &'a Placement) -> BoxFuture<'a, Result<(), Status>> {
        async move {
            let Some(plan) = &placement.volumes else { return Ok(()) };
            self.bind(placement, plan).await.map_err(|detail| Status::error(NAME, detail))
        }
        .boxed()
    }
}
