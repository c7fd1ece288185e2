//! What is asked for and not built, or not there on this machine, is an error with its name: running
//! without it would be a lie.

use super::SpecError;
use crate::features::Features;
use podway_cri::v1::security_profile::ProfileType;
use podway_cri::v1::{
    ContainerConfig, LinuxContainerSecurityContext, PodSandboxConfig, SeLinuxOption, SecurityProfile,
};

fn no<T>(what: impl Into<String>) -> Result<T, SpecError> {
    Err(SpecError::NotSupported(what.into()))
}

fn check_apparmor(profile: Option<&SecurityProfile>, features: &Features) -> Result<(), SpecError> {
    match profile.map(|p| ProfileType::try_from(p.profile_type)) {
        None | Some(Ok(ProfileType::Unconfined)) => Ok(()),
        Some(Ok(ProfileType::Localhost)) if features.apparmor => Ok(()),
        // Without AppArmor there is no default to run with.
        Some(Ok(ProfileType::RuntimeDefault)) if features.apparmor_default || !features.apparmor => Ok(()),
        Some(Ok(ProfileType::RuntimeDefault)) => {
            no("apparmor: RuntimeDefault: the profile is not loaded (podway runtime check says why)")
        }
        Some(Ok(ProfileType::Localhost)) => no("apparmor: this kernel has no AppArmor"),
        Some(Err(_)) => no("apparmor: an unknown profile type"),
    }
}

fn check_selinux(options: Option<&SeLinuxOption>, features: &Features) -> Result<(), SpecError> {
    match options {
        Some(o) if *o != SeLinuxOption::default() && features.selinux => no("selinux_options"),
        _ => Ok(()),
    }
}

/// Of a container. `context` is its security context, settled ([`profiles`](super::profiles)).
pub(super) fn container(
    container: &ContainerConfig,
    context: &LinuxContainerSecurityContext,
    features: &Features,
) -> Result<(), SpecError> {
    if container.windows.is_some() {
        return no("windows");
    }
    if container.image.as_ref().is_some_and(|i| !matches!(i.runtime_handler.as_str(), "" | "runc")) {
        return no("image.runtime_handler");
    }
    check_apparmor(context.apparmor.as_ref(), features)?;
    check_selinux(context.selinux_options.as_ref(), features)?;
    if context.supplemental_groups_policy > 1 || context.supplemental_groups_policy < 0 {
        return no("supplemental_groups_policy: an unknown value");
    }
    Ok(())
}

/// Of a sandbox.
///
/// # Errors
/// [`SpecError::NotSupported`].
pub fn sandbox(config: &PodSandboxConfig, features: &Features) -> Result<(), SpecError> {
    if config.windows.is_some() {
        return no("windows");
    }
    let Some(context) = config.linux.as_ref().and_then(|l| l.security_context.as_ref()) else {
        return Ok(());
    };
    check_apparmor(context.apparmor.as_ref(), features)?;
    check_selinux(context.selinux_options.as_ref(), features)
}
