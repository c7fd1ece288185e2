//! The seccomp filter of a container: none, the runtime's default, or a profile from a file.
//!
//! The default is a list of what is allowed (data, `seccomp.list`); everything else is `EPERM`. What
//! a capability unlocks is allowed with the capability, so that one is not given without the other.

use super::SpecError;
use podway_cri::v1::{SecurityProfile, security_profile::ProfileType};
use serde_json::{Value, json};
use std::path::Path;

const LIST: &str = include_str!("seccomp.list");

/// clone(2) flags that make a namespace: allowed with `CAP_SYS_ADMIN` only.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;
/// personality(2) values: Linux, Linux32, their no-randomisation forms, and the query.
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Socket families below this one are allowed, `AF_UNIX` (1) to `AF_CAIF` (37), in one comparison.
const FAMILIES_BELOW: u64 = 38;
/// The families allowed above: not `AF_ALG` (38) and not `AF_VSOCK` (40), which reach
/// the kernel's crypto interface and the hypervisor.
const FAMILIES: [u64; 6] = [39, 41, 42, 43, 44, 45];
const ENOSYS: u32 = 38;

/// The filter that `profile` asks for, or `None` for no filter.
///
/// # Errors
/// [`SpecError`] for a file that cannot be read or is not a filter.
pub fn filter(
    profile: Option<&SecurityProfile>,
    privileged: bool,
    bounding: &[String],
) -> Result<Option<Value>, SpecError> {
    let Some(profile) = profile.filter(|_| !privileged) else { return Ok(None) };
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok(Some(default_filter(bounding, std::env::consts::ARCH))),
        Ok(ProfileType::Unconfined) => Ok(None),
        Ok(ProfileType::Localhost) => localhost(&profile.localhost_ref).map(Some),
        Err(_) => Err(SpecError::NotSupported(format!("seccomp profile type {}", profile.profile_type))),
    }
}

/// The kubelet gives the absolute path of a file below its own root directory.
fn localhost(path: &str) -> Result<Value, SpecError> {
    const LIMIT: u64 = 1 << 20;
    let bad = |why: String| SpecError::Seccomp(podway_flow::record::bounded(path, 200), why);
    if !path.starts_with('/') {
        return Err(bad("localhost_ref must be an absolute path".to_owned()));
    }
    let meta = std::fs::metadata(Path::new(path)).map_err(|e| bad(e.to_string()))?;
    if !meta.is_file() || meta.len() > LIMIT {
        return Err(bad("it is not a file of at most 1 MiB".to_owned()));
    }
    let text = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    if value.get("defaultAction").and_then(Value::as_str).is_none() {
        return Err(bad("defaultAction is missing".to_owned()));
    }
    Ok(value)
}

fn architectures(machine: &str) -> &'static [&'static str] {
    match machine {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_ARM", "SCMP_ARCH_AARCH64"],
        "s390x" => &["SCMP_ARCH_S390", "SCMP_ARCH_S390X"],
        "riscv64" => &["SCMP_ARCH_RISCV64"],
        _ => &[],
    }
}

/// The names of the groups that apply.
fn allowed(bounding: &[String], machine: &str) -> Vec<&'static str> {
    let mut applies = false;
    let mut names = Vec::new();
    for line in LIST.lines().filter(|l| !l.starts_with('#')) {
        if let Some(group) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            applies = group == "always"
                || group.strip_prefix("arch ").is_some_and(|arch| arch == machine)
                || bounding.iter().any(|cap| cap == group);
        } else if applies {
            names.extend(line.split_ascii_whitespace());
        }
    }
    names.sort_unstable();
    names.dedup();
    names
}

fn default_filter(bounding: &[String], machine: &str) -> Value {
    let allow = |name: &str, index: u32, value: u64, op: &str| {
        json!({"names": [name], "action": "SCMP_ACT_ALLOW",
               "args": [{"index": index, "value": value, "valueTwo": 0, "op": op}]})
    };
    let mut rules = vec![json!({"names": allowed(bounding, machine), "action": "SCMP_ACT_ALLOW"})];
    rules.push(allow("socket", 0, FAMILIES_BELOW, "SCMP_CMP_LT"));
    rules.extend(FAMILIES.iter().map(|&f| allow("socket", 0, f, "SCMP_CMP_EQ")));
    rules.extend(PERSONALITIES.iter().map(|&p| allow("personality", 0, p, "SCMP_CMP_EQ")));
    if !bounding.iter().any(|cap| cap == "CAP_SYS_ADMIN") {
        // s390x has clone's arguments the other way round.
        let index = u32::from(machine == "s390x");
        rules.push(allow("clone", index, NAMESPACE_FLAGS, "SCMP_CMP_MASKED_EQ"));
        // Its flags are behind a pointer. ENOSYS makes libc fall back to clone; EPERM would not.
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": architectures(machine),
        "syscalls": rules,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_capability_unlocks_comes_with_it() {
        let caps = |c: &[&str]| c.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        let plain = allowed(&caps(&["CAP_CHOWN"]), "x86_64");
        assert!(plain.len() > 300 && plain.contains(&"openat") && plain.contains(&"arch_prctl"));
        for closed in
            ["mount", "unshare", "bpf", "keyctl", "add_key", "reboot", "socket", "clone", "personality"]
        {
            assert!(!plain.contains(&closed), "{closed}");
        }
        assert!(allowed(&caps(&["CAP_SYS_ADMIN"]), "x86_64").contains(&"mount"));
        assert!(!allowed(&[], "aarch64").contains(&"modify_ldt"));
        let admin = default_filter(&caps(&["CAP_SYS_ADMIN"]), "x86_64").to_string();
        assert!(!admin.contains("ENOSYS") && !admin.contains("SCMP_CMP_MASKED_EQ"));
    }

    #[test]
    fn a_profile_is_chosen_by_type_and_a_bad_file_says_why() {
        let profile = |t: ProfileType, path: &str| SecurityProfile {
            profile_type: t as i32,
            localhost_ref: path.to_owned(),
        };
        let default = profile(ProfileType::RuntimeDefault, "");
        assert!(filter(Some(&default), false, &[]).unwrap().is_some());
        assert!(filter(Some(&default), true, &[]).unwrap().is_none());
        assert!(filter(Some(&profile(ProfileType::Unconfined, "")), false, &[]).unwrap().is_none());
        assert!(filter(None, false, &[]).unwrap().is_none());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        let path = path.to_str().unwrap();
        for (text, ok) in [("{}", false), ("[", false), (r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#, true)] {
            std::fs::write(path, text).unwrap();
            let got = filter(Some(&profile(ProfileType::Localhost, path)), false, &[]);
            assert_eq!(got.is_ok(), ok, "{text}");
        }
        assert!(filter(Some(&profile(ProfileType::Localhost, "rel")), false, &[]).is_err());
    }
}
