//! Security profiles as texts: the fields that CRI has deprecated, `apparmor_profile` and `seccomp_profile_path`. A
//! kubelet sets them beside the new ones, which then count; a client that only knows them means what containerd reads
//! out of them (`generateSecurityProfile`, internal/cri/server/container_create.go).

use super::SpecError;
use podway_cri::v1::security_profile::ProfileType;
use podway_cri::v1::{LinuxContainerSecurityContext, SecurityProfile};

/// What a profile of this machine is named with: AppArmor's by its name, seccomp's by its file.
const LOCALHOST: &str = "localhost/";

/// `context` with its profiles in the new fields alone.
///
/// # Errors
/// [`SpecError::NotSupported`] for a text that is no profile.
#[expect(deprecated, reason = "this is where they end")]
pub(super) fn settled(
    mut context: LinuxContainerSecurityContext,
) -> Result<LinuxContainerSecurityContext, SpecError> {
    let apparmor = std::mem::take(&mut context.apparmor_profile);
    if context.apparmor.is_none() {
        context.apparmor = read("apparmor_profile", &apparmor)?;
    }
    let seccomp = std::mem::take(&mut context.seccomp_profile_path);
    if context.seccomp.is_none() {
        context.seccomp = read("seccomp_profile_path", &seccomp)?;
    }
    Ok(context)
}

fn read(field: &str, text: &str) -> Result<Option<SecurityProfile>, SpecError> {
    let (kind, reference) = match text {
        "" => return Ok(None),
        "runtime/default" | "docker/default" => (ProfileType::RuntimeDefault, ""),
        "unconfined" => (ProfileType::Unconfined, ""),
        _ => match text.strip_prefix(LOCALHOST) {
            Some(reference) if !reference.is_empty() => (ProfileType::Localhost, reference),
            _ => {
                let text = podway_flow::record::bounded(text, 200);
                return Err(SpecError::NotSupported(format!(
                    "{field}: {text:?} is not runtime/default, unconfined or localhost/…"
                )));
            }
        },
    };
    Ok(Some(SecurityProfile { profile_type: kind as i32, localhost_ref: reference.to_owned() }))
}

#[cfg(test)]
mod tests {
    #![expect(deprecated, reason = "what old clients say")]
    use super::settled;
    use podway_cri::v1::security_profile::ProfileType::{self, Localhost, RuntimeDefault, Unconfined};
    use podway_cri::v1::{LinuxContainerSecurityContext, SecurityProfile};

    fn profile(kind: ProfileType, reference: &str) -> SecurityProfile {
        SecurityProfile { profile_type: kind as i32, localhost_ref: reference.to_owned() }
    }

    fn old(apparmor: &str, seccomp: &str) -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext {
            apparmor_profile: apparmor.to_owned(),
            seccomp_profile_path: seccomp.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn a_text_means_what_containerd_reads_out_of_it() {
        for (text, expected) in [
            ("", None),
            ("runtime/default", Some(profile(RuntimeDefault, ""))),
            ("docker/default", Some(profile(RuntimeDefault, ""))),
            ("unconfined", Some(profile(Unconfined, ""))),
            ("localhost/own", Some(profile(Localhost, "own"))),
            (
                "localhost//var/lib/kubelet/seccomp/own.json",
                Some(profile(Localhost, "/var/lib/kubelet/seccomp/own.json")),
            ),
        ] {
            let context = settled(old(text, text)).unwrap();
            assert_eq!((&context.apparmor, &context.seccomp), (&expected, &expected), "{text}");
        }
        for text in ["own", "localhost/", "Runtime/default"] {
            let error = settled(old(text, "")).unwrap_err().to_string();
            assert!(error.contains("apparmor_profile") && error.contains(text), "{error}");
            assert!(settled(old("", text)).unwrap_err().to_string().contains("seccomp_profile_path"));
        }
    }

    #[test]
    fn the_new_field_counts_where_both_are_set() {
        let both = LinuxContainerSecurityContext {
            apparmor: Some(profile(Localhost, "new")),
            ..old("localhost/old", "")
        };
        assert_eq!(settled(both).unwrap().apparmor, Some(profile(Localhost, "new")));
    }
}
