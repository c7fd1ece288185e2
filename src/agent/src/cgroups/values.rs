//! What a cgroup is set to: as the kernel's files have it, and as systemd's properties, which a reload of systemd
//! would else undo. Both as libcontainer has them (cgroups/systemd/v1.go, v2.go and common.go).

use super::tree::{FileError, Tree};
use podway_systemd::Property;

/// µs of a CPU's time, per which a quota is meant.
const PERIOD: i64 = 100_000;

/// One value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// CPU requests as v1's shares.
    Shares(i64),
    /// µs of CPU per 100 ms; none: as much as there is.
    Quota(Option<i64>),
    /// Bytes of memory; none: as much as there is.
    Memory(Option<i64>),
    /// Processes and threads.
    Pids(u64),
}

impl Value {
    /// Writes it to the kernel's files.
    ///
    /// # Errors
    /// [`FileError`] with the kernel's reason, e.g. that more memory is used now.
    pub fn write(self, tree: &Tree, path: &str) -> Result<(), FileError> {
        let or = |value: Option<i64>, none: &str| value.map_or_else(|| none.to_owned(), |v| v.to_string());
        match (self, tree.v2()) {
            (Value::Shares(shares), false) => tree.set("cpu", path, "cpu.shares", &shares.to_string()),
            (Value::Shares(shares), true) => tree.set("cpu", path, "cpu.weight", &weight(shares).to_string()),
            (Value::Quota(quota), false) => {
                if quota.is_some() {
                    tree.set("cpu", path, "cpu.cfs_period_us", &PERIOD.to_string())?;
                }
                tree.set("cpu", path, "cpu.cfs_quota_us", &or(quota, "-1"))
            }
            (Value::Quota(quota), true) => {
                tree.set("cpu", path, "cpu.max", &format!("{} {PERIOD}", or(quota, "max")))
            }
            (Value::Memory(bytes), false) => {
                tree.set("memory", path, "memory.limit_in_bytes", &or(bytes, "-1"))
            }
            (Value::Memory(bytes), true) => tree.set("memory", path, "memory.max", &or(bytes, "max")),
            (Value::Pids(pids), _) => tree.set("pids", path, "pids.max", &pids.to_string()),
        }
    }

    /// As systemd has it.
    #[must_use]
    pub fn property(self, v2: bool) -> Property {
        let number = |value: i64| u64::try_from(value).unwrap_or_default();
        match self {
            Value::Shares(shares) if v2 => Property::Number("CPUWeight", number(weight(shares))),
            Value::Shares(shares) => Property::Number("CPUShares", number(shares)),
            Value::Quota(quota) => {
                // Per second, in steps of 10 ms, as systemd rounds it, and rather more than less.
                let step = |quota: i64| number(quota).saturating_mul(10).div_ceil(10_000) * 10_000;
                Property::Number("CPUQuotaPerSecUSec", quota.map_or(u64::MAX, step))
            }
            Value::Memory(bytes) => {
                let name = if v2 { "MemoryMax" } else { "MemoryLimit" };
                Property::Number(name, bytes.map_or(u64::MAX, number))
            }
            Value::Pids(pids) => Property::Number("TasksMax", pids),
        }
    }
}

/// runc's conversion of shares of [2, 262144] to a weight of [1, 10000].
fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_gets_what_libcontainer_gives_it() {
        for (value, v2, name, number) in [
            (Value::Shares(1024), false, "CPUShares", 1024),
            (Value::Shares(1024), true, "CPUWeight", 39),
            (Value::Quota(Some(50_000)), false, "CPUQuotaPerSecUSec", 500_000),
            (Value::Quota(Some(1_234)), true, "CPUQuotaPerSecUSec", 20_000),
            (Value::Quota(None), true, "CPUQuotaPerSecUSec", u64::MAX),
            (Value::Memory(Some(4096)), false, "MemoryLimit", 4096),
            (Value::Memory(None), true, "MemoryMax", u64::MAX),
            (Value::Pids(7), true, "TasksMax", 7),
        ] {
            assert_eq!(value.property(v2), Property::Number(name, number), "{value:?}");
        }
    }
}
