//! What a pod uses, as the runtime tells it, against what the machine's own kernel says.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

#[path = "support/cri.rs"]
mod cri;
#[path = "support/node.rs"]
mod node;
#[path = "support/served.rs"]
mod served;

use podway_cri::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio_stream::StreamExt as _;

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

fn value(v: &Option<v1::UInt64Value>) -> u64 {
    v.as_ref().unwrap().value
}

/// Everything that a message stream had, and how many messages it took.
async fn all<T, I>(stream: tonic::Streaming<T>, items: impl Fn(T) -> Vec<I>) -> Vec<I> {
    stream.map(|m| items(m.unwrap())).collect::<Vec<_>>().await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pod_uses_is_told_in_every_way_that_cri_has() {
    let Some(node) = node::node() else { return };
    let mut served = served::serve(&node).await;
    let cri = &mut served.cri;
    let began = now();
    let mut pod = node.sandbox("used", 0);
    pod.annotations.insert("note".to_owned(), "kept".to_owned());
    let (sandbox, _) = cri.run_sandbox(pod.clone()).await.unwrap();
    // Some processor time, 3 MiB written, one process with a socket, then it waits.
    let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; busybox head -c 3145728 /dev/zero > /file; busybox sync; exec busybox nc -l -p 81";
    let (id, _) = cri.create(&sandbox, node.container("app", script), pod.clone()).await.unwrap();
    cri.start(&id).await.unwrap();
    let created = cri.create(&sandbox, node.container("later", "sleep 1"), pod.clone()).await.unwrap().0;
    // Until it listens, and its writes have reached the disk.
    let listens =
        ["sh", "-c", "until busybox grep -q :0051 /proc/net/tcp /proc/net/tcp6; do sleep 0.02; done"];
    assert_eq!(cri.exec(&id, &listens).await.unwrap().exit_code, 0);

    let request = v1::ContainerStatsRequest { container_id: id.clone() };
    let one = cri.runtime.container_stats(request).await.unwrap().into_inner().stats.unwrap();
    let attributes = one.attributes.clone().unwrap();
    assert_eq!((attributes.id.as_str(), attributes.metadata.unwrap().name.as_str()), (id.as_str(), "app"));
    let cpu = one.cpu.unwrap();
    assert!((began..=now()).contains(&cpu.timestamp), "its age is stated");
    assert!(value(&cpu.usage_core_nano_seconds) > 1_000_000 && value(&cpu.usage_nano_cores) > 0, "{cpu:?}");
    let memory = one.memory.unwrap();
    assert!(value(&memory.working_set_bytes) > 0 && value(&memory.rss_bytes) > 0, "{memory:?}");
    assert!(value(&memory.working_set_bytes) <= value(&memory.usage_bytes));
    assert_eq!(value(&memory.available_bytes), (64 << 20) - value(&memory.working_set_bytes));
    assert!(value(&memory.page_faults) > 0);
    assert!(one.swap.unwrap().swap_usage_bytes.is_some());
    let layer = one.writable_layer.unwrap();
    assert!((3 << 20..4 << 20).contains(&value(&layer.used_bytes)), "{layer:?}");
    assert!(value(&layer.inodes_used) >= 1 && layer.timestamp > 0);
    let root = layer.fs_id.unwrap().mountpoint;

    // The image file system is the same one, and says what the layers take besides.
    let info = cri.image.image_fs_info(v1::ImageFsInfoRequest {}).await.unwrap().into_inner();
    let (images, containers) = (&info.image_filesystems[0], &info.container_filesystems[0]);
    assert_eq!(images.fs_id.as_ref().unwrap().mountpoint, root);
    assert_eq!(containers.fs_id, images.fs_id);
    assert!(value(&containers.used_bytes) >= 3 << 20, "{containers:?}");

    // A list has what runs; one that does not is told by name, without what it does not have.
    let list = v1::ListContainerStatsRequest { filter: None };
    let listed = cri.runtime.list_container_stats(list).await.unwrap().into_inner().stats;
    assert_eq!(listed.len(), 1);
    let streamed = cri.runtime.stream_container_stats(v1::StreamContainerStatsRequest { filter: None }).await;
    let streamed = all(streamed.unwrap().into_inner(), |m| m.container_stats).await;
    assert_eq!(streamed[0].attributes, listed[0].attributes);
    let filter = v1::ContainerStatsFilter { pod_sandbox_id: "0".repeat(64), ..Default::default() };
    let list = v1::ListContainerStatsRequest { filter: Some(filter) };
    assert!(cri.runtime.list_container_stats(list).await.unwrap().into_inner().stats.is_empty());
    let request = v1::ContainerStatsRequest { container_id: created };
    let idle = cri.runtime.container_stats(request).await.unwrap().into_inner().stats.unwrap();
    assert!(idle.cpu.is_none() && idle.writable_layer.is_some(), "{idle:?}");
    let request = v1::ContainerStatsRequest { container_id: "0".repeat(64) };
    assert_eq!(cri.runtime.container_stats(request).await.unwrap_err().code(), tonic::Code::NotFound);

    // The sandbox: its own cgroup, its network, its containers.
    let request = v1::PodSandboxStatsRequest { pod_sandbox_id: sandbox.clone() };
    let whole = cri.runtime.pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap();
    let attributes = whole.attributes.unwrap();
    assert_eq!(
        (attributes.annotations["note"].as_str(), attributes.labels["app"].as_str()),
        ("kept", "used")
    );
    let linux = whole.linux.unwrap();
    assert!(value(&linux.cpu.unwrap().usage_core_nano_seconds) > 0);
    assert!(value(&linux.memory.unwrap().usage_bytes) > 0);
    assert!(value(&linux.process.unwrap().process_count) >= 1);
    let network = linux.network.unwrap();
    let eth0 = network.default_interface.unwrap();
    assert!(network.timestamp > 0 && eth0.name == "eth0" && eth0.tx_bytes.is_some(), "{eth0:?}");
    assert_eq!(linux.containers.len(), 1);
    let filter = v1::PodSandboxStatsFilter {
        label_selector: [("app".to_owned(), "used".to_owned())].into(),
        ..Default::default()
    };
    let list = v1::ListPodSandboxStatsRequest { filter: Some(filter.clone()) };
    assert_eq!(cri.runtime.list_pod_sandbox_stats(list).await.unwrap().into_inner().stats.len(), 1);
    let stream = v1::StreamPodSandboxStatsRequest { filter: Some(filter) };
    let stream = cri.runtime.stream_pod_sandbox_stats(stream).await.unwrap().into_inner();
    assert_eq!(all(stream, |m| m.pod_sandbox_stats).await.len(), 1);

    // The metrics: each of a described family, with as many labels as were described.
    let request = v1::ListMetricDescriptorsRequest {};
    let described = cri.runtime.list_metric_descriptors(request).await.unwrap().into_inner().descriptors;
    let described: BTreeMap<String, Vec<String>> =
        described.into_iter().map(|d| (d.name, d.label_keys)).collect();
    let request = v1::ListPodSandboxMetricsRequest {};
    let told = cri.runtime.list_pod_sandbox_metrics(request).await.unwrap().into_inner().pod_metrics;
    let stream = cri.runtime.stream_pod_sandbox_metrics(v1::StreamPodSandboxMetricsRequest {}).await.unwrap();
    assert_eq!(all(stream.into_inner(), |m| m.pod_sandbox_metrics).await.len(), told.len());
    let container = &told[0].container_metrics[0];
    assert_eq!((told[0].pod_sandbox_id.as_str(), container.container_id.as_str()), (&*sandbox, &*id));
    let every: Vec<&v1::Metric> = told[0].metrics.iter().chain(&container.metrics).collect();
    for metric in &every {
        let keys = &described[&metric.name];
        assert_eq!(metric.label_values.len(), keys.len(), "{metric:?}");
        let label = |key: &str| &metric.label_values[keys.iter().position(|k| k == key).unwrap()];
        assert_eq!((label("namespace").as_str(), label("pod").as_str()), ("test", "used"));
        assert!((began..=now()).contains(&metric.timestamp), "{metric:?}");
    }
    let seen: BTreeSet<&str> = every.iter().map(|m| m.name.as_str()).collect();
    let missing: Vec<&String> = described.keys().filter(|n| !seen.contains(n.as_str())).collect();
    // What this kind of machine or container has nothing to say of: stalls on v1, huge pages
    // without their controller, a quota that was not asked for.
    let may_miss = |n: &str| {
        ["pressure_", "hugetlb_", "_cpu_quota", "_fs_reads", "_fs_writes", "blkio_"]
            .iter()
            .any(|p| n.contains(p))
    };
    assert!(missing.iter().all(|n| may_miss(n)), "{missing:?}");
    let of = |name: &str| every.iter().find(|m| m.name == name).map(|m| value(&m.value)).unwrap();
    assert_eq!(of("container_spec_memory_limit_bytes"), 64 << 20);
    assert_eq!(of("container_spec_cpu_shares"), 256);
    assert_eq!((of("container_processes"), of("container_sockets")), (1, 1));
    assert!(of("container_file_descriptors") >= 4 && of("container_threads") == 1);
    assert!(of("container_fs_usage_bytes") >= 3 << 20 && of("container_fs_limit_bytes") > 3 << 20);
    let started = u64::try_from(cri.status(&id).await.started_at / 1_000_000_000).unwrap();
    assert_eq!(of("container_start_time_seconds"), started);

    cri.remove_pod(&sandbox).await;
    let list = v1::ListPodSandboxStatsRequest { filter: None };
    assert!(cri.runtime.list_pod_sandbox_stats(list).await.unwrap().into_inner().stats.is_empty());
    served.end().await;
    assert_eq!(node.leftovers(), Vec::<String>::new());
}
