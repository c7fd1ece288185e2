//! The capabilities of a container: the runtimes' common default, plus and minus what is asked.

use std::collections::BTreeSet;

/// The default set, as containerd and CRI-O give it (minus `NET_RAW`'s siblings nobody asked for).
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Every capability of Linux 6, by number.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A name that is no capability.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a capability: give e.g. NET_ADMIN, or ALL")]
pub struct Unknown(String);

/// The set as `CAP_…` names. `available` is the bit mask that this process may hand on: what the
/// runtime itself lacks cannot be given (runc would refuse the container).
///
/// # Errors
/// [`Unknown`] for a name that Linux does not have.
pub fn set(
    privileged: bool,
    add: &[String],
    drop: &[String],
    available: u64,
) -> Result<Vec<String>, Unknown> {
    let mut caps: BTreeSet<&'static str> =
        if privileged { ALL.into_iter().collect() } else { DEFAULT.into_iter().collect() };
    // ALL first, single names after, so that `drop: [ALL], add: [X]` leaves X.
    if add.iter().any(|n| n.eq_ignore_ascii_case("ALL")) {
        caps.extend(ALL);
    }
    if drop.iter().any(|n| n.eq_ignore_ascii_case("ALL")) {
        caps.clear();
    }
    for name in add.iter().filter(|n| !n.eq_ignore_ascii_case("ALL")) {
        caps.insert(known(name)?);
    }
    for name in drop.iter().filter(|n| !n.eq_ignore_ascii_case("ALL")) {
        caps.remove(known(name)?);
    }
    let may = |cap: &&str| ALL.iter().position(|c| c == cap).is_some_and(|bit| available >> bit & 1 == 1);
    Ok(caps.into_iter().filter(may).map(|c| format!("CAP_{c}")).collect())
}

fn known(name: &str) -> Result<&'static str, Unknown> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    ALL.into_iter().find(|c| *c == bare).ok_or_else(|| Unknown(podway_flow::record::bounded(name, 64)))
}

/// What this process may hand on: its bounding set, from `/proc/self/status`; none if unreadable.
#[must_use]
pub fn available() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("CapBnd:"));
    line.and_then(|l| u64::from_str_radix(l.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn add_and_drop() {
        let names = |v: &[&str]| v.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let set = |p, a: &[&str], d: &[&str]| set(p, &names(a), &names(d), u64::MAX);
        assert_eq!(set(false, &[], &[]).unwrap().len(), 14);
        assert_eq!(set(true, &[], &[]).unwrap().len(), 41);
        assert_eq!(set(false, &["net_admin"], &["ALL"]).unwrap(), ["CAP_NET_ADMIN"]);
        assert!(!set(false, &["ALL"], &["CAP_SYS_ADMIN"]).unwrap().contains(&"CAP_SYS_ADMIN".to_owned()));
        assert!(set(false, &["FLY"], &[]).is_err());
        assert_eq!(super::set(true, &[], &[], 1).unwrap(), ["CAP_CHOWN"]);
    }
}
