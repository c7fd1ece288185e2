//! What a `CSIDriver` object says of its driver; without one, what Kubernetes takes for granted.

use k8s_openapi::api::storage::v1::CSIDriver;
use std::fmt;

/// Which kind of volume it is to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lifecycle {
    /// It outlives pods.
    Persistent,
    /// It is its pod's.
    Ephemeral,
}

impl fmt::Display for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lifecycle::Persistent => "Persistent",
            Lifecycle::Ephemeral => "Ephemeral",
        })
    }
}

/// When a volume is given to the pod's group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// Where it has a file system that it says, and one node writes.
    ReadWriteOnceWithFsType,
    /// Always.
    File,
    /// Never.
    None,
}

/// What a pod's service account proves towards the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proof {
    /// For whom; the API server itself if empty.
    pub(super) audience: String,
    /// How long, in seconds; none: as long as the API server likes.
    pub(super) seconds: Option<i64>,
}

/// How a driver wants to be treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// Volumes are attached to the node before they are mounted.
    pub(super) attach: bool,
    /// It wants to know of the pod.
    pub(super) pod_info: bool,
    /// The modes that its object lists; none where there is no object.
    modes: Option<Vec<String>>,
    pub(super) group: Group,
    /// It wants to be asked again and again.
    pub(super) republish: bool,
    pub(super) proofs: Vec<Proof>,
    /// Proofs go among the secrets, not into the volume's context.
    pub(super) proofs_are_secret: bool,
}

impl Policy {
    pub(super) fn of(driver: Option<CSIDriver>) -> Self {
        let Some(spec) = driver.map(|driver| driver.spec) else {
            return Policy {
                attach: true,
                pod_info: false,
                modes: None,
                group: Group::ReadWriteOnceWithFsType,
                republish: false,
                proofs: Vec::new(),
                proofs_are_secret: false,
            };
        };
        let proofs = spec.token_requests.unwrap_or_default().into_iter();
        Policy {
            attach: spec.attach_required != Some(false),
            pod_info: spec.pod_info_on_mount == Some(true),
            modes: Some(spec.volume_lifecycle_modes.unwrap_or_else(|| vec!["Persistent".to_owned()])),
            group: match spec.fs_group_policy.as_deref() {
                Some("File") => Group::File,
                Some("None") => Group::None,
                _ => Group::ReadWriteOnceWithFsType,
            },
            republish: spec.requires_republish == Some(true),
            proofs: proofs.map(|t| Proof { audience: t.audience, seconds: t.expiration_seconds }).collect(),
            proofs_are_secret: spec.service_account_token_in_secrets == Some(true),
        }
    }

    /// Why the driver has no volumes of this mode, if it has none.
    pub(super) fn refuses(&self, mode: Lifecycle, driver: &str) -> Option<String> {
        let told = match &self.modes {
            None if mode == Lifecycle::Persistent => return None,
            None => "(no CSIDriver object)".to_owned(),
            Some(modes) if modes.contains(&mode.to_string()) => return None,
            Some(modes) => {
                let modes: Vec<String> = modes.iter().map(|mode| format!("{mode:?}")).collect();
                format!("(only supports [{}])", modes.join(" "))
            }
        };
        Some(format!("volume mode \"{mode}\" not supported by driver {driver} {told}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn without_an_object_a_driver_has_persistent_volumes_that_are_attached() {
        let none = Policy::of(None);
        assert!(none.attach && !none.pod_info);
        assert_eq!(none.refuses(Lifecycle::Persistent, "d"), None);
        assert_eq!(
            none.refuses(Lifecycle::Ephemeral, "d").unwrap(),
            "volume mode \"Ephemeral\" not supported by driver d (no CSIDriver object)"
        );
        let object = json!({"metadata": {}, "spec": {"attachRequired": false, "podInfoOnMount": true,
            "volumeLifecycleModes": ["Ephemeral"], "fsGroupPolicy": "File", "tokenRequests": [{"audience": "a"}]}});
        let some = Policy::of(serde_json::from_value(object).unwrap());
        assert!(!some.attach && some.pod_info && some.group == Group::File && !some.republish);
        assert_eq!(some.proofs, [Proof { audience: "a".to_owned(), seconds: None }]);
        assert_eq!(
            some.refuses(Lifecycle::Persistent, "d").unwrap(),
            "volume mode \"Persistent\" not supported by driver d (only supports [\"Ephemeral\"])"
        );
    }
}
