//! The runtime with the systemd driver: where a pod's processes are, and that nothing is left.

use crate::cri::Cri;
use crate::node::{self, Node};
use crate::node::{UNITS, units};
use crate::served::serve;
use crate::show;
use podway_cri::v1;
use podway_systemd::Driver;
use std::path::Path;

/// As the kubelet has it for a burstable pod of UID `aa-bb`.
const POD: &str = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podaa_bb.slice";

fn systemd_node() -> Node {
    let mut node = node::node().expect("what was there outside");
    node.config.cgroup_driver = Driver::Systemd;
    node.config.cgroup_parent = String::new();
    node.config.monitor.cgroup = Some("podway-monitors.slice".to_owned());
    node
}

/// Where the kernel has a process, by controller.
fn cgroup_of(pid: &str, controller: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|c| c == controller || c.is_empty()).then(|| path.to_owned())
    };
    // On v2 there is one line, of all controllers.
    let exact =
        text.lines().find(|l| l.split(':').nth(1).is_some_and(|c| c.split(',').any(|c| c == controller)));
    exact.or(text.lines().last()).and_then(of).unwrap()
}

/// The cgroup directories of this name in any tree.
fn directories(path: &str) -> Vec<std::path::PathBuf> {
    let mount = Path::new("/sys/fs/cgroup");
    let trees = std::fs::read_dir(mount).unwrap().flatten().map(|e| e.path());
    let all = trees.chain([mount.to_owned()]).map(|tree| tree.join(path.trim_start_matches('/')));
    all.filter(|d| d.is_dir()).collect()
}

fn memory_limit(cgroup: &str) -> String {
    let v1 = Path::new("/sys/fs/cgroup/memory").join(&cgroup[1..]).join("memory.limit_in_bytes");
    let v2 = Path::new("/sys/fs/cgroup").join(&cgroup[1..]).join("memory.max");
    std::fs::read_to_string(v1).or_else(|_| std::fs::read_to_string(v2)).unwrap().trim().to_owned()
}

async fn verbose(cri: &mut Cri, id: &str) -> serde_json::Value {
    let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let answer = cri.runtime.container_status(request).await.unwrap().into_inner();
    serde_json::from_str(&answer.info["info"]).unwrap()
}

fn with_parent(node: &Node, name: &str, parent: &str) -> v1::PodSandboxConfig {
    let mut pod = node.sandbox(name, 0);
    pod.linux.as_mut().unwrap().cgroup_parent = parent.to_owned();
    pod
}

pub async fn a_pod_in_the_slice_of_its_kubelet() {
    let node = systemd_node();
    let mut served = serve(&node).await;
    let cri = &mut served.cri;
    let config = cri.runtime.runtime_config(v1::RuntimeConfigRequest {}).await.unwrap().into_inner();
    assert_eq!(config.linux.unwrap().cgroup_driver, v1::CgroupDriver::Systemd as i32);

    for hostile in
        ["/kubepods/podx", "/../x.slice", "/a/../b.slice", "/", "-.slice", "x", "/a-b.slice", "a:b.slice:c"]
    {
        let error = cri.run_sandbox(with_parent(&node, "hostile", hostile)).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{hostile}: {error:?}");
        assert!(error.message().contains("cgroup_parent") && error.message().contains("slice"), "{error:?}");
    }

    // By its path, as a kubelet says it.
    let pod = with_parent(&node, "burstable", POD);
    let (sandbox, _) = cri.run_sandbox(pod.clone()).await.unwrap();
    let (id, _) = cri.create(&sandbox, node.container("app", "exec sleep 3600"), pod.clone()).await.unwrap();
    cri.start(&id).await.unwrap();
    let info = verbose(cri, &id).await;
    let (pid, scope) = (info["pid"].to_string(), format!("cri-podway-{id}.scope"));
    let cgroup = format!("{POD}/{scope}");
    assert_eq!(info["cgroup"], cgroup.as_str());
    for controller in ["memory", "pids", "cpu", "freezer", "name=systemd"] {
        assert_eq!(cgroup_of(&pid, controller), cgroup, "{controller}");
    }
    assert_eq!(memory_limit(&cgroup), (64 << 20).to_string());
    let shown = show(&scope, &["ActiveState", "Delegate", "Slice", "ControlGroup"]);
    let expected = [
        ("ActiveState", "active"),
        ("ControlGroup", &cgroup),
        ("Delegate", "yes"),
        ("Slice", "kubepods-burstable-podaa_bb.slice"),
    ];
    assert_eq!(shown, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());

    // The monitor has a scope of its own, away from the runtime's service.
    let [monitor] = node.monitors()[..] else { panic!("monitors: {:?}", node.monitors()) };
    let home = format!("/podway.slice/podway-monitors.slice/podway-monitor-{sandbox}-{monitor}.scope");
    assert_eq!(cgroup_of(&monitor.to_string(), "memory"), home);

    // Read, executed in, changed.
    let stats = v1::ContainerStatsRequest { container_id: id.clone() };
    let stats = cri.runtime.container_stats(stats).await.unwrap().into_inner().stats.unwrap();
    assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
    let out = cri.exec(&id, &["cat", "/proc/self/cgroup"]).await.unwrap();
    assert!(
        out.exit_code == 0 && !String::from_utf8(out.stdout).unwrap().contains("podway-test"),
        "exec is elsewhere"
    );
    cri.limit_memory(&id, 96 << 20).await;
    assert_eq!(memory_limit(&cgroup), (96 << 20).to_string());
    let limits = show(&scope, &["MemoryLimit", "MemoryMax"]);
    assert!(limits.values().any(|v| *v == (96 << 20).to_string()), "systemd holds {limits:?}");

    // A runtime that comes back finds it by its journal.
    served.end().await;
    let mut served = serve(&node).await;
    let cri = &mut served.cri;
    assert_eq!(cri.status(&id).await.state, v1::ContainerState::ContainerRunning as i32);

    // systemd takes a scope away as soon as it is empty; what the kernel did in it has to be known by then.
    for attempt in 0..5 {
        let mut config = node.container("hog", "x=a; while :; do x=$x$x; done");
        config.metadata.as_mut().unwrap().attempt = attempt;
        let (hog, _) = cri.create(&sandbox, config, pod.clone()).await.unwrap();
        cri.start(&hog).await.unwrap();
        let status = cri.exited(&hog).await;
        assert_eq!((status.reason.as_str(), status.exit_code), ("OOMKilled", 137), "attempt {attempt}");
        cri.remove(&hog).await;
        assert_eq!(units(&[&format!("cri-podway-{hog}*")]), Vec::<String>::new());
    }

    // Its monitor dies: it is removed without one.
    node::kill(monitor);
    cri.stop(&id, 0).await;
    cri.remove(&id).await;
    cri.remove_pod(&sandbox).await;
    assert_eq!(units(&UNITS), Vec::<String>::new());
    assert_eq!(directories(&cgroup), Vec::<std::path::PathBuf>::new());
    // The pod's slice is the kubelet's to remove.
    let manager = podway_systemd::Manager::default();
    manager.stop("kubepods-burstable-podaa_bb.slice").await.unwrap();
    served.end().await;
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

pub async fn a_pod_in_a_slice_of_its_own() {
    let node = systemd_node();
    let mut served = serve(&node).await;
    let cri = &mut served.cri;
    let pod = node.sandbox("own", 0);
    let (sandbox, _) = cri.run_sandbox(pod.clone()).await.unwrap();
    let (id, _) = cri.create(&sandbox, node.container("app", "exec sleep 3600"), pod).await.unwrap();
    cri.start(&id).await.unwrap();
    let slice = format!("podway-{sandbox}.slice");
    let pid = verbose(cri, &id).await["pid"].to_string();
    let path = format!("/podway.slice/{slice}");
    assert_eq!(cgroup_of(&pid, "memory"), format!("{path}/cri-podway-{id}.scope"));
    assert_eq!(show(&slice, &["ActiveState"])["ActiveState"], "active");
    // Without a Stop before.
    cri.remove_pod(&sandbox).await;
    assert_eq!(units(&UNITS), Vec::<String>::new());
    assert_eq!(directories(&path), Vec::<std::path::PathBuf>::new());
    served.end().await;
    assert_eq!(node.leftovers(), Vec::<String>::new());
}
