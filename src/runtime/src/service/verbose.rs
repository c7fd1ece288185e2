//! What the verbose calls add: JSON documents by the keys that crictl and its users know (`info`,
//! `config`), and our own records.

use crate::cni::Network;
use crate::error::OpError;
use crate::handlers::{self, Handler};
use crate::ids::Id;
use crate::orphan;
use crate::state::{Container, Runtime, Sandbox};
use podway_cri::v1;
use podway_flow::wire;
use serde_json::{Value, json};
use std::collections::HashMap;

type Info = HashMap<String, String>;

fn records(records: &[podway_flow::Record]) -> (String, String) {
    (wire::INFO_KEY.to_owned(), String::from_utf8_lossy(&wire::encode(records)).into_owned())
}

/// Of `Status`: the configuration, the machine, and how much there is.
pub(super) fn runtime(runtime: &Runtime) -> Info {
    let config = &runtime.config;
    let network = Network::load(&config.cni.conf_dir);
    let known = runtime.handlers.all();
    let runtimes: Value = known
        .map(|(name, handler)| (name.to_owned(), json!({"path": handler.path, "version": handler.version})))
        .collect();
    let document = json!({
        // The names that others ask for (the CRI validation suite wants the directory of root file systems).
        "rootDir": config.root,
        "stateDir": config.state,
        "endpoint": config.listen,
        "cgroupParent": config.cgroup_parent,
        "cgroupDriver": runtime.config.cgroup_driver.name(),
        "cgroupVersion": format!("{:?}", runtime.cgroups.version()),
        "runtimes": runtimes,
        "monitor": config.monitor.path,
        "cni": {
            "binDirs": config.cni.bin_dirs,
            "confDir": config.cni.conf_dir,
            "network": network.as_ref().map(|n| n.name.clone()).unwrap_or_default(),
        },
        "registryConfigPath": config.registry.config_path,
    });
    let counts = json!({
        "sandboxes": runtime.sandboxes().len(),
        "containers": runtime.containers().len(),
        "eventListeners": runtime.events.receiver_count(),
    });
    let loaded = network.map_or_else(|e| OpError::from(e).chain(), |_| "OK".to_owned());
    Info::from([
        ("config".to_owned(), document.to_string()),
        ("state".to_owned(), counts.to_string()),
        ("lastCNILoadStatus".to_owned(), loaded),
    ])
}

/// Of `PodSandboxStatus`.
pub(super) fn sandbox(runtime: &Runtime, id: &Id, entry: &Sandbox) -> Info {
    let namespaces = runtime.namespaces(id);
    let pinned = ["net", "ipc", "uts", "pid", "user"].into_iter().filter_map(|kind| {
        let pin = namespaces.join(kind);
        crate::netns::pinned(&pin).then(|| (kind.to_owned(), json!(pin)))
    });
    let document = json!({
        "pid": 0, // no pause process
        "netNamespaceClosed": !entry.host_network && !crate::netns::pinned(&namespaces.join("net")),
        "namespaces": pinned.collect::<serde_json::Map<_, _>>(),
        "cgroup": entry.cgroup,
        "runtimeHandler": entry.handler,
        "runtimeType": "podway",
        "cniResult": entry.attached.as_ref().and_then(|a| a.result.clone()),
    });
    Info::from([("info".to_owned(), document.to_string()), records(&entry.records)])
}

/// Of `ContainerStatus`. Blocks: it reads files.
pub(super) fn container(runtime: &Runtime, id: &Id, entry: &Container) -> Info {
    let spec = std::fs::read(runtime.bundle(id).join("config.json")).ok();
    let spec = spec.and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    let running = entry.stage == crate::state::Stage::Running;
    let init = running.then(|| orphan::init(&runtime.config.state.join("runc"), id)).flatten();
    let document = json!({
        "sandboxID": entry.sandbox,
        "pid": init.map_or(0, |p| p.pid),
        "cgroup": entry.cgroup,
        "rootfs": runtime.bundle(id).join("rootfs"),
        "runtimeSpec": spec,
    });
    Info::from([("info".to_owned(), document.to_string()), records(&entry.records)])
}

/// What the handlers can do on this machine.
pub(super) fn handlers(runtime: &Runtime) -> Vec<v1::RuntimeHandler> {
    let features = |name: &str, handler: &Handler| v1::RuntimeHandlerFeatures {
        recursive_read_only_mounts: handler.recursive_read_only,
        // Tried with runc alone: sandbox.rs refuses it with others.
        user_namespaces: name == handlers::DEFAULT && runtime.features.user_namespaces,
    };
    let all = runtime.handlers.all().map(|(name, handler)| (name, features(name, handler)));
    let default =
        all.clone().find(|(name, _)| *name == handlers::DEFAULT).map(|(_, features)| ("", features));
    let told = default.into_iter().chain(all);
    told.map(|(name, features)| v1::RuntimeHandler { name: name.to_owned(), features: Some(features) })
        .collect()
}
