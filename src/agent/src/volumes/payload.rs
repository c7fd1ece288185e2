//! The files of configMap, secret, downwardAPI and projected volumes, as the atomic writer takes them.

use super::atomic_writer::{File, Payload};
use super::{TokenRequest, VolumeError, tokens};
use crate::env::Objects;
use crate::env::fields::{self, Addresses};
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Volume, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// The default permission bits of a volume's files.
const DEFAULT_MODE: i32 = 0o644;
/// A token's life when the pod names none, in seconds.
const TOKEN_SECONDS: i64 = 3600;

/// What the files are made from.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    pub pod: &'a Pod,
    pub addresses: &'a Addresses,
    pub allocatable: &'a BTreeMap<String, Quantity>,
    pub objects: &'a dyn Objects,
    pub tokens: &'a tokens::Cache,
}

fn mode(mode: Option<i32>, default: Option<i32>) -> u32 {
    u32::try_from(mode.or(default).unwrap_or(DEFAULT_MODE)).unwrap_or(0o644) & 0o7777
}

fn missing_key(kind: &str) -> &'static str {
    if kind == "configmap" {
        "configmap references non-existent config key"
    } else {
        "references non-existent secret key"
    }
}

impl Sources<'_> {
    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or("default")
    }

    /// The files of `volume`; `None` when it is not of a kind that has files of the API's.
    pub(super) async fn payload(&self, volume: &Volume) -> Result<Option<Payload>, VolumeError> {
        if let Some(s) = &volume.config_map {
            return self
                .object("configmap", &s.name, s.optional, s.items.as_ref(), s.default_mode)
                .await
                .map(Some);
        }
        if let Some(s) = &volume.secret {
            let name = s.secret_name.as_deref().unwrap_or_default();
            return self.object("secret", name, s.optional, s.items.as_ref(), s.default_mode).await.map(Some);
        }
        if let Some(s) = &volume.downward_api {
            return self.downward(s.items.as_ref(), s.default_mode).map(Some);
        }
        match &volume.projected {
            Some(s) => self.projected(s).await.map(Some),
            None => Ok(None),
        }
    }

    async fn object(
        &self,
        kind: &'static str,
        name: &str,
        optional: Option<bool>,
        items: Option<&Vec<KeyToPath>>,
        default: Option<i32>,
    ) -> Result<Payload, VolumeError> {
        let optional = optional == Some(true);
        let data: Option<BTreeMap<String, Vec<u8>>> = if kind == "configmap" {
            self.objects.config_map(self.namespace(), name).await?.map(|c| {
                let text = c.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes()));
                text.chain(c.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0))).collect()
            })
        } else {
            let secret = self.objects.secret(self.namespace(), name).await?;
            secret.map(|s| s.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect())
        };
        let mut data = match data {
            None if optional => BTreeMap::new(),
            None => return Err(VolumeError::NotFound { kind, name: name.to_owned() }),
            Some(data) => data,
        };
        let file = |data, m| File { data, mode: mode(m, default), uid: None };
        let Some(items) = items.filter(|i| !i.is_empty()) else {
            return Ok(data.into_iter().map(|(k, v)| (k, file(v, None))).collect());
        };
        let mut out = Payload::new();
        for item in items {
            match data.get_mut(&item.key) {
                Some(v) => {
                    out.insert(item.path.clone(), file(v.clone(), item.mode));
                }
                None if optional => {}
                None => return Err(VolumeError::Key { problem: missing_key(kind), key: item.key.clone() }),
            }
        }
        Ok(out)
    }

    fn downward(
        &self,
        items: Option<&Vec<DownwardAPIVolumeFile>>,
        default: Option<i32>,
    ) -> Result<Payload, VolumeError> {
        let mut out = Payload::new();
        for item in items.into_iter().flatten() {
            let text = if let Some(f) = &item.field_ref {
                fields::field(self.pod, &f.field_path, self.addresses)?
            } else if let Some(r) = &item.resource_field_ref {
                fields::resource(self.pod, None, r, self.allocatable)?
            } else {
                continue;
            };
            let file = File { data: text.into_bytes(), mode: mode(item.mode, default), uid: None };
            out.insert(item.path.clone(), file);
        }
        Ok(out)
    }

    async fn projected(&self, source: &ProjectedVolumeSource) -> Result<Payload, VolumeError> {
        let parts = source.sources.iter().flatten().map(|part| self.part(part, source.default_mode));
        // All asked for at once; laid over each other in their order.
        let parts = futures::future::try_join_all(parts).await?;
        Ok(parts.into_iter().flatten().collect())
    }

    async fn part(&self, part: &VolumeProjection, default: Option<i32>) -> Result<Payload, VolumeError> {
        if let Some(s) = &part.config_map {
            return self.object("configmap", &s.name, s.optional, s.items.as_ref(), default).await;
        }
        if let Some(s) = &part.secret {
            return self.object("secret", &s.name, s.optional, s.items.as_ref(), default).await;
        }
        if let Some(s) = &part.downward_api {
            return self.downward(s.items.as_ref(), default);
        }
        let Some(s) = &part.service_account_token else {
            return Err(VolumeError::Unsupported("projected source".to_owned()));
        };
        let spec = self.pod.spec.as_ref();
        let request = TokenRequest {
            namespace: self.namespace().to_owned(),
            service_account: spec
                .and_then(|s| s.service_account_name.clone())
                .filter(|s| !s.is_empty())
                .unwrap_or_else(|| "default".to_owned()),
            pod_name: self.pod.metadata.name.clone().unwrap_or_default(),
            pod_uid: self.pod.metadata.uid.clone().unwrap_or_default(),
            audience: s.audience.clone().filter(|a| !a.is_empty()),
            seconds: s.expiration_seconds.unwrap_or(TOKEN_SECONDS),
        };
        let token = self.tokens.get(&request, jiff::Timestamp::now()).await?;
        let uid = self.only_user();
        // With fsGroup the atomic writer adds the group's read bit to 0600.
        let group = spec.and_then(|s| s.security_context.as_ref()).and_then(|c| c.fs_group).is_some();
        let bits = if group || uid.is_some() { 0o600 } else { mode(None, default) };
        Ok(Payload::from([(s.path.clone(), File { data: token.text.into_bytes(), mode: bits, uid })]))
    }

    /// The user that every container runs as, if it is one and stated.
    fn only_user(&self) -> Option<u32> {
        let spec = self.pod.spec.as_ref()?;
        let pod_user = spec.security_context.as_ref().and_then(|c| c.run_as_user);
        let mut users = spec
            .containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
            .map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(pod_user));
        let first = users.next()??;
        users.all(|u| u == Some(first)).then(|| u32::try_from(first).ok())?
    }
}
