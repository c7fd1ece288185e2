//! Pods that want devices of a plugin.

use super::*;
use crate::devices::tests::{Fake, has, open, register};

#[tokio::test]
async fn a_pod_has_its_devices_or_is_refused() {
    let limits = json!({"limits": {"example.com/device": "1"}});
    let bench = Bench::new(json!({"containers": [{"name": "c", "image": "i:1", "resources": limits}]})).await;
    let devices = &bench.context.devices;
    open(devices).await;
    let plugins = bench.dir.path().join("plugins");
    let _fake = Fake::start(&plugins, "p.sock", &[("d-1", true)], false);
    register(devices, "p.sock").await.unwrap();
    has(devices, 1, 1).await;

    let pods = bench.pods();
    pods.apply(Arc::new(bench.server.object()), bench.context.clock.now(), true);
    bench.server.until(|s| s.has("flow true")).await;
    let config = bench.runtime.lock().containers[0].2.clone();
    assert_eq!(
        (config.envs[0].key.as_str(), config.envs[0].value.as_slice()),
        ("DEVICES", b"d-1".as_slice())
    );
    assert_eq!(config.devices[0].container_path, "/dev/of-plugin");
    assert_eq!((config.mounts[0].container_path.as_str(), config.mounts[0].readonly), ("/plugin", true));
    assert_eq!(config.annotations["example.com/ids"], "d-1");
    let admitted = |flow: &Flow| flow.summary(Phase::Admitted).map(|s| s.outcome);
    assert_eq!(bench.server.flow.lock().unwrap().as_ref().and_then(admitted), Some(Outcome::Succeeded));
    let health =
        json!([{"name": "example.com/device", "resources": [{"resourceID": "d-1", "health": "Healthy"}]}]);
    let status = serde_json::to_value(bench.server.object().status).unwrap();
    assert_eq!(status["containerStatuses"][0]["allocatedResourcesStatus"], health);

    // The next one finds none, which the scheduler would have known.
    let mut next = serde_json::to_value(bench.server.object()).unwrap();
    next["metadata"]["uid"] = json!("u-2");
    next["metadata"]["name"] = json!("q");
    next["status"] = json!({"phase": "Pending", "qosClass": "BestEffort"});
    *bench.server.pod.lock().unwrap() = next;
    pods.apply(Arc::new(bench.server.object()), bench.context.clock.now(), true);
    bench.server.until(|s| s.phase() == "Failed").await;
    let status = bench.server.object().status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("UnexpectedAdmissionError"));
    assert_eq!(
        status.message.as_deref(),
        Some(
            "Pod was rejected: Allocate failed due to requested number of devices unavailable for \
             example.com/device. Requested: 1, Available: 0, which is unexpected"
        )
    );
    assert_eq!(bench.runtime.lock().containers.len(), 1, "nothing of it was made");
    assert_eq!(devices.uids(), ["u-1"]);
}

#[tokio::test]
async fn a_pod_that_was_over_when_the_agent_came_gives_its_devices_back() {
    let limits = json!({"limits": {"example.com/device": "1"}});
    let bench = Bench::new(json!({"containers": [{"name": "c", "image": "i:1", "resources": limits}]})).await;
    let devices = &bench.context.devices;
    open(devices).await;
    let _fake = Fake::start(&bench.dir.path().join("plugins"), "p.sock", &[("d-1", true)], false);
    register(devices, "p.sock").await.unwrap();
    has(devices, 1, 1).await;
    devices.allocate("u-1", bench.server.object().spec.as_ref().unwrap()).await.unwrap();
    let mut given = devices.health();
    {
        let mut pod = bench.server.pod.lock().unwrap();
        pod["status"] =
            json!({"phase": "Succeeded", "qosClass": "BestEffort", "startTime": "2026-01-01T00:00:01Z"});
    }
    let pods = bench.pods();
    pods.apply(Arc::new(bench.server.object()), bench.context.clock.now(), false);
    let back = async {
        while devices.has("u-1") {
            given.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), back).await.unwrap();
    assert_eq!(bench.runtime.lock().calls, [""; 0], "nothing of it is made again");
}
