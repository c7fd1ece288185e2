//! What a pod wants of a driver, read from its volume and the PersistentVolume once; and what the driver is asked with.
//! Pure.

use super::policy::{Group, Lifecycle, Policy};
use super::{Failure, SETUP, Why};
use crate::csi::driver::Abilities;
use crate::csi::name::DriverName;
use crate::volumes::ownership::group;
use k8s_openapi::api::core::v1::{CSIVolumeSource, PersistentVolume, Pod};
use podway_cri::csi::VolumeCapability;
use podway_cri::csi::volume_capability::access_mode::Mode;
use podway_cri::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SecretAt {
    pub(super) namespace: String,
    pub(super) name: String,
}

/// A volume of a driver, for a pod.
#[derive(Clone, Debug)]
pub(in crate::volumes) struct Wanted {
    /// The pod.
    pub(super) uid: String,
    /// What its directory is called: as the PersistentVolume, or as the pod's volume.
    pub(super) name: String,
    pub(super) driver: DriverName,
    /// What the driver calls it.
    pub(super) handle: String,
    pub(super) mode: Lifecycle,
    pub(super) read_only: bool,
    fs_type: String,
    /// As the PersistentVolume has them.
    access: Vec<String>,
    options: Vec<String>,
    attributes: BTreeMap<String, String>,
    pub(super) stage_secret: Option<SecretAt>,
    pub(super) publish_secret: Option<SecretAt>,
    group: Option<u32>,
    /// Whether all of it is given to the group, also where its top is the group's already.
    pub(super) whole: bool,
}

/// `csi-` and the SHA-256 of these together.
pub(super) fn digest(of: &[&str]) -> String {
    format!("csi-{}", hash(of))
}

/// The SHA-256 of these together.
pub(super) fn hash(of: &[&str]) -> String {
    hex::encode(of.iter().fold(Sha256::new(), |sha, part| sha.chain_update(part)).finalize())
}

fn whole(pod: &Pod) -> bool {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    context.and_then(|c| c.fs_group_change_policy.as_deref()) != Some("OnRootMismatch")
}

fn driver(name: &str, volume: &str) -> Result<DriverName, Failure> {
    let why = || Why::Name(podway_flow::record::bounded(name, 64));
    DriverName::parse(name).ok_or_else(|| Failure::new(SETUP, volume, why()))
}

impl Wanted {
    /// The volume of a claim, which is a driver's; `read_only` as the pod has it.
    pub(in crate::volumes) fn of_claim(
        pod: &Pod,
        volume: &PersistentVolume,
        read_only: bool,
    ) -> Result<Self, Failure> {
        let name = volume.metadata.name.clone().unwrap_or_default();
        let spec = volume.spec.clone().unwrap_or_default();
        let source = spec.csi.unwrap_or_default();
        if source.volume_handle.is_empty() {
            return Err(Failure::new(SETUP, &name, Why::NoHandle));
        }
        let secret = |at: Option<k8s_openapi::api::core::v1::SecretReference>| {
            let at = at?;
            Some(SecretAt { namespace: at.namespace?, name: at.name? })
        };
        Ok(Wanted {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            driver: driver(&source.driver, &name)?,
            name,
            handle: source.volume_handle,
            mode: Lifecycle::Persistent,
            read_only,
            fs_type: source.fs_type.unwrap_or_default(),
            access: spec.access_modes.unwrap_or_default(),
            options: spec.mount_options.unwrap_or_default(),
            attributes: source.volume_attributes.unwrap_or_default(),
            stage_secret: secret(source.node_stage_secret_ref),
            publish_secret: secret(source.node_publish_secret_ref),
            group: group(pod),
            whole: whole(pod),
        })
    }

    /// The pod's own volume `name`.
    pub(in crate::volumes) fn inline(
        pod: &Pod,
        name: &str,
        source: &CSIVolumeSource,
    ) -> Result<Self, Failure> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let secret = source.node_publish_secret_ref.clone();
        Ok(Wanted {
            driver: driver(&source.driver, name)?,
            handle: digest(&[&uid, name]),
            uid,
            name: name.to_owned(),
            mode: Lifecycle::Ephemeral,
            read_only: source.read_only == Some(true),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            access: Vec::new(),
            options: Vec::new(),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            stage_secret: None,
            publish_secret: secret.map(|secret| SecretAt { namespace, name: secret.name }),
            group: group(pod),
            whole: whole(pod),
        })
    }

    /// How the pod uses it, in CSI's words.
    pub(super) fn capability(&self, can: Abilities) -> VolumeCapability {
        let mode = match (self.access.first().map_or("ReadWriteOnce", String::as_str), can.many_writers) {
            ("ReadWriteOnce", false) | ("ReadWriteOncePod", false) => Mode::SingleNodeWriter,
            ("ReadWriteOnce", true) => Mode::SingleNodeMultiWriter,
            ("ReadWriteOncePod", true) => Mode::SingleNodeSingleWriter,
            ("ReadOnlyMany", _) => Mode::MultiNodeReaderOnly,
            ("ReadWriteMany", _) => Mode::MultiNodeMultiWriter,
            _ => Mode::Unknown,
        };
        let mount = MountVolume {
            fs_type: self.fs_type.clone(),
            mount_flags: self.options.clone(),
            volume_mount_group: self.group.filter(|_| can.group).map(|g| g.to_string()).unwrap_or_default(),
        };
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Mount(mount)),
        }
    }

    /// The group that the agent gives the volume to, where the driver does not (`supportsFSGroup`).
    pub(super) fn group(&self, policy: &Policy, can: Abilities) -> Option<u32> {
        let once = || self.access.iter().any(|mode| mode == "ReadWriteOnce" || mode == "ReadWriteOncePod");
        let ours = match policy.group {
            Group::None => false,
            Group::File => true,
            Group::ReadWriteOnceWithFsType => {
                !self.fs_type.is_empty() && (self.mode == Lifecycle::Ephemeral || once())
            }
        };
        self.group.filter(|_| ours && !self.read_only && !can.group)
    }

    /// What the driver was told when the volume was made.
    pub(super) fn attributes(&self) -> BTreeMap<String, String> {
        self.attributes.clone()
    }

    /// That, and what it wants to know of the pod (`getPodInfoAttrs`).
    pub(super) fn context(&self, pod: &Pod, policy: &Policy) -> BTreeMap<String, String> {
        let mut context = self.attributes();
        if policy.pod_info {
            let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
            let meta = &pod.metadata;
            for (key, value) in [
                ("pod.name", meta.name.clone().unwrap_or_default()),
                ("pod.namespace", meta.namespace.clone().unwrap_or_default()),
                ("pod.uid", self.uid.clone()),
                ("serviceAccount.name", account.unwrap_or_default()),
                ("ephemeral", (self.mode == Lifecycle::Ephemeral).to_string()),
            ] {
                context.insert(format!("csi.storage.k8s.io/{key}"), value);
            }
        }
        context
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "serviceAccountName": "sa", "securityContext": {"fsGroup": 7}}}))
        .unwrap()
    }

    fn volume(access: &[&str], source: &Value) -> Wanted {
        let mut csi = json!({"driver": "d.example.com", "volumeHandle": "h"});
        csi.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        let volume = json!({"metadata": {"name": "pv"}, "spec": {"accessModes": access, "csi": csi}});
        Wanted::of_claim(&pod(), &serde_json::from_value(volume).unwrap(), false).unwrap()
    }

    #[test]
    fn the_first_access_mode_is_what_the_driver_is_told() {
        let mode = |access: &[&str], many_writers| {
            let said =
                volume(access, &json!({})).capability(Abilities { many_writers, ..Abilities::default() });
            Mode::try_from(said.access_mode.unwrap().mode).unwrap()
        };
        for (access, one, many) in [
            (&["ReadWriteOnce", "ReadOnlyMany"][..], Mode::SingleNodeWriter, Mode::SingleNodeMultiWriter),
            (&["ReadWriteOncePod"], Mode::SingleNodeWriter, Mode::SingleNodeSingleWriter),
            (&["ReadOnlyMany"], Mode::MultiNodeReaderOnly, Mode::MultiNodeReaderOnly),
            (&["ReadWriteMany"], Mode::MultiNodeMultiWriter, Mode::MultiNodeMultiWriter),
            (&[], Mode::SingleNodeWriter, Mode::SingleNodeMultiWriter),
        ] {
            assert_eq!((mode(access, false), mode(access, true)), (one, many), "{access:?}");
        }
    }

    #[test]
    fn the_group_is_the_drivers_or_the_agents_or_nobodys() {
        let none = Policy::of(None);
        let with = |policy: &str| {
            Policy::of(
                serde_json::from_value(json!({"metadata": {}, "spec": {"fsGroupPolicy": policy}})).unwrap(),
            )
        };
        let (able, plain) = (Abilities { group: true, ..Abilities::default() }, Abilities::default());
        let ext4 = volume(&["ReadWriteOnce"], &json!({"fsType": "ext4"}));
        assert_eq!(ext4.group(&none, plain), Some(7));
        assert_eq!(ext4.group(&none, able), None, "the driver does it");
        let told = |can| match ext4.capability(can).access_type.unwrap() {
            AccessType::Mount(mount) => mount.volume_mount_group,
            AccessType::Block(_) => unreachable!("no volume is a block device here"),
        };
        assert_eq!((told(able), told(plain)), ("7".to_owned(), String::new()));
        assert_eq!(ext4.group(&with("None"), plain), None);
        let shared = volume(&["ReadWriteMany"], &json!({}));
        assert_eq!((shared.group(&none, plain), shared.group(&with("File"), plain)), (None, Some(7)));
    }

    #[test]
    fn a_driver_that_wants_to_know_of_the_pod_is_told() {
        let policy = |info: bool| {
            Policy::of(
                serde_json::from_value(json!({"metadata": {}, "spec": {"podInfoOnMount": info}})).unwrap(),
            )
        };
        let source =
            serde_json::from_value(json!({"driver": "d.example.com", "volumeAttributes": {"a": "b"}}));
        let inline = Wanted::inline(&pod(), "v", &source.unwrap()).unwrap();
        // sha256sum of "uv".
        assert_eq!(inline.handle, "csi-e6184ce10e266134fdcfa401e8f1a95005bcd4f18d16b62b757323e2833fe9a9");
        assert_eq!(inline.context(&pod(), &policy(false)), [("a".to_owned(), "b".to_owned())].into());
        let told = inline.context(&pod(), &policy(true));
        assert_eq!(told.len(), 6);
        assert_eq!(told["csi.storage.k8s.io/ephemeral"], "true");
        assert_eq!(told["csi.storage.k8s.io/serviceAccount.name"], "sa");
    }

    #[test]
    fn what_could_be_no_directory_is_no_driver() {
        let bad =
            json!({"metadata": {"name": "pv"}, "spec": {"csi": {"driver": "../x", "volumeHandle": "h"}}});
        let error = Wanted::of_claim(&pod(), &serde_json::from_value(bad).unwrap(), false).unwrap_err();
        assert!(
            crate::pod::actions::chain(&error).ends_with("\"../x\" is no name of a CSI driver"),
            "{error}"
        );
    }
}
