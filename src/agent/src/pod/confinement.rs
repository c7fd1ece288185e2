//! AppArmor and SELinux: what a pod asks of the kernel's security modules, as CRI asks for it.
//!
//! `DetermineEffectiveSecurityContext` and `getAppArmorProfile` (pkg/securitycontext, pkg/kubelet/kuberuntime):
//! a container's own options take the place of the pod's as a whole. AppArmor on a kernel without it is refused,
//! since the pod would run unconfined; an SELinux label there has no meaning, and none is given.

use k8s_openapi::api::core::v1 as api;
use podway_cri::v1;
use std::path::Path;

/// The kernel's security modules that are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modules {
    /// AppArmor.
    pub apparmor: bool,
    /// SELinux.
    pub selinux: bool,
}

impl Modules {
    /// Those of the running kernel.
    #[must_use]
    pub fn of_kernel() -> Self {
        let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        Modules {
            apparmor: enabled.is_ok_and(|text| text.starts_with('Y')),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        }
    }
}

/// Whether a container of the pod must be confined by AppArmor (`isRequired` of pkg/security/apparmor).
#[must_use]
pub fn needs_apparmor(spec: &api::PodSpec) -> bool {
    let of_pod = spec.security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref());
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let of_containers =
        all.filter_map(|c| c.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref()));
    of_pod.into_iter().chain(of_containers).any(|profile| profile.type_ != "Unconfined")
}

/// A profile for the runtime.
///
/// # Errors
/// What it does not know of it.
pub fn apparmor(profile: &api::AppArmorProfile) -> Result<v1::SecurityProfile, String> {
    use v1::security_profile::ProfileType;
    let (kind, localhost_ref) = match (profile.type_.as_str(), &profile.localhost_profile) {
        ("Unconfined", _) => (ProfileType::Unconfined, String::new()),
        ("RuntimeDefault", _) => (ProfileType::RuntimeDefault, String::new()),
        ("Localhost", Some(name)) if !name.is_empty() => (ProfileType::Localhost, name.clone()),
        ("Localhost", _) => return Err("appArmorProfile: localhostProfile is missing".to_owned()),
        (other, _) => return Err(format!("appArmorProfile type {other}")),
    };
    Ok(v1::SecurityProfile { profile_type: kind as i32, localhost_ref })
}

/// A label for the runtime.
#[must_use]
pub fn selinux(options: &api::SELinuxOptions) -> v1::SeLinuxOption {
    let word = |text: &Option<String>| text.clone().unwrap_or_default();
    v1::SeLinuxOption {
        user: word(&options.user),
        role: word(&options.role),
        r#type: word(&options.type_),
        level: word(&options.level),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn profiles_and_labels_as_the_runtime_has_them() {
        let profile = |value| apparmor(&serde_json::from_value(value).unwrap());
        let made = profile(json!({"type": "Localhost", "localhostProfile": "k8s-x"})).unwrap();
        assert_eq!((made.profile_type, made.localhost_ref.as_str()), (2, "k8s-x"));
        assert_eq!(profile(json!({"type": "RuntimeDefault"})).unwrap().profile_type, 0);
        assert_eq!(profile(json!({"type": "Unconfined"})).unwrap().profile_type, 1);
        assert!(profile(json!({"type": "Localhost"})).unwrap_err().contains("localhostProfile"));
        assert!(profile(json!({"type": "Other"})).unwrap_err().contains("Other"));
        let label = selinux(&serde_json::from_value(json!({"type": "spc_t", "level": "s0:c1"})).unwrap());
        assert_eq!(
            (label.user.as_str(), label.r#type.as_str(), label.level.as_str()),
            ("", "spc_t", "s0:c1")
        );
    }
}
