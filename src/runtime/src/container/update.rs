//! New limits for a container: whole or not at all.
//!
//! `runc update` puts the old ones back if the kernel refuses one; then nothing is changed here either.
//! A container that was not started yet has no cgroup: its config.json is written anew.

use super::oci;
use crate::error::{OpError, blocking};
use crate::ids::Id;
use crate::spec::{self, SpecError};
use crate::state::{Runtime, Stage};
use crate::status::container_config;
use podway_cri::Message as _;
use podway_cri::v1::LinuxContainerResources;
use std::sync::Arc;

/// Changes the limits of a container that is created or runs.
///
/// # Errors
/// [`OpError`]; the old limits stand then.
pub async fn update(runtime: &Arc<Runtime>, id: &Id, wanted: LinuxContainerResources) -> Result<(), OpError> {
    let lock = runtime.locks.of(id);
    let _alone = lock.write().await;
    let entry = runtime.known_container(id)?;
    if !matches!(entry.stage, Stage::Created | Stage::Running) {
        return Err(OpError::Precondition(format!(
            "container {id} is {:?}: only one that is created or runs has limits to change",
            entry.stage
        )));
    }
    let mut config = container_config(&entry)?;
    let linux = config.linux.get_or_insert_default();
    let old = linux.resources.take().unwrap_or_default();
    let merged = merge(old, wanted)?;
    let mut limits = spec::resources_json(&merged, &runtime.features)?;
    linux.resources = Some(merged);
    if entry.stage == Stage::Running {
        // A limit below what is used is refused, and nobody is killed for it.
        if let Some(memory) = limits.get_mut("memory").and_then(|m| m.as_object_mut()) {
            memory.insert("checkBeforeUpdate".to_owned(), serde_json::Value::Bool(true));
        }
        let mut command = oci::command(runtime, &entry.sandbox, "update")?;
        command.args(["--resources", "-", id.as_str()]);
        let limits = serde_json::Value::Object(limits).to_string();
        oci::run("update", command, limits.as_bytes()).await?;
    } else {
        let (path, new) = (runtime.bundle(id).join("config.json"), limits);
        blocking(move || {
            let text = std::fs::read(&path).map_err(|e| OpError::Io("read config.json", e))?;
            let mut document: serde_json::Value = serde_json::from_slice(&text).map_err(SpecError::Shape)?;
            let resources = &mut document["linux"]["resources"];
            let devices = resources["devices"].take();
            *resources = serde_json::Value::Object(new);
            resources["devices"] = devices;
            let staged = path.with_extension("new");
            std::fs::write(&staged, document.to_string()).map_err(|e| OpError::Io("write config.json", e))?;
            std::fs::rename(&staged, &path).map_err(|e| OpError::Io("replace config.json", e))
        })
        .await?;
    }
    let (state, of, config) = (Arc::clone(runtime), id.clone(), hex::encode(config.encode_to_vec()));
    blocking(move || {
        state.update_container(&of, |c| c.config = config)?;
        Ok(())
    })
    .await
}

/// What is given replaces; what is not stays.
fn merge(
    mut old: LinuxContainerResources,
    new: LinuxContainerResources,
) -> Result<LinuxContainerResources, OpError> {
    if new.oom_score_adj != 0 && new.oom_score_adj != old.oom_score_adj {
        return Err(SpecError::NotSupported("oom_score_adj of UpdateContainerResources".to_owned()).into());
    }
    let number = |to: &mut i64, from: i64| {
        if from != 0 {
            *to = from;
        }
    };
    let text = |to: &mut String, from: String| {
        if !from.is_empty() {
            *to = from;
        }
    };
    if new.memory_limit_in_bytes != 0 && new.memory_swap_limit_in_bytes == 0 {
        // As at the creation: without a word on swap there is none beyond the memory.
        old.memory_swap_limit_in_bytes = 0;
    }
    number(&mut old.cpu_period, new.cpu_period);
    number(&mut old.cpu_quota, new.cpu_quota);
    number(&mut old.cpu_shares, new.cpu_shares);
    number(&mut old.memory_limit_in_bytes, new.memory_limit_in_bytes);
    number(&mut old.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes);
    text(&mut old.cpuset_cpus, new.cpuset_cpus);
    text(&mut old.cpuset_mems, new.cpuset_mems);
    if !new.hugepage_limits.is_empty() {
        old.hugepage_limits = new.hugepage_limits;
    }
    old.unified.extend(new.unified);
    Ok(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_stays() {
        let old = LinuxContainerResources {
            cpu_shares: 100,
            memory_limit_in_bytes: 10,
            memory_swap_limit_in_bytes: 20,
            oom_score_adj: 5,
            ..Default::default()
        };
        let new = LinuxContainerResources { cpu_quota: 7, memory_limit_in_bytes: 30, ..Default::default() };
        let got = merge(old.clone(), new).unwrap();
        assert_eq!((got.cpu_shares, got.cpu_quota, got.oom_score_adj), (100, 7, 5));
        assert_eq!((got.memory_limit_in_bytes, got.memory_swap_limit_in_bytes), (30, 0));
        let new = LinuxContainerResources { oom_score_adj: 6, ..Default::default() };
        assert!(merge(old, new).is_err());
    }
}
