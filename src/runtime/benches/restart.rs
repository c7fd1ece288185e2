//! How long a restarted runtime takes until it answers, with many pods to take over: `cargo bench -p
//! podway-runtime --bench restart`, as root. `-- --pods N` (default 100).
//!
//! Each pod has a namespace, an address, a monitor and a running container, as a kubelet's have. The
//! runtime runs in this process: the time is from its start to the first answer over its socket.
#![expect(clippy::unwrap_used, reason = "a bench may fail by panicking")]

#[path = "../tests/support/cri.rs"]
mod cri;
#[path = "../tests/support/node.rs"]
mod node;

use podway_cri::v1;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() {
    let Some(node) = node::node() else { return };
    let mut arguments = std::env::args().skip_while(|a| a != "--pods").skip(1);
    let pods: usize = arguments.next().map_or(100, |n| n.parse().unwrap());
    let start = |shutdown: &CancellationToken| {
        tokio::spawn(podway_runtime::run::run(node.config.clone(), shutdown.clone()))
    };
    let shutdown = CancellationToken::new();
    let task = start(&shutdown);
    let mut cri = cri::connect(&node.config.listen, || !task.is_finished()).await;
    let mut sandboxes = Vec::new();
    for n in 0..pods {
        let pod = node.sandbox(&format!("r{n}"), 0);
        let (sandbox, _) = cri.run_sandbox(pod.clone()).await.unwrap();
        let app = node.container("app", "exec sleep 100000");
        let (id, _) = cri.create(&sandbox, app, pod).await.unwrap();
        cri.start(&id).await.unwrap();
        sandboxes.push(sandbox);
    }
    drop(cri);
    shutdown.cancel();
    task.await.unwrap().unwrap();

    let mut times = Vec::new();
    for _ in 0..5 {
        let shutdown = CancellationToken::new();
        let began = Instant::now();
        let task = start(&shutdown);
        let mut cri = cri::connect(&node.config.listen, || !task.is_finished()).await;
        let list = v1::ListContainersRequest::default();
        let running = cri.runtime.list_containers(list).await.unwrap().into_inner().containers;
        times.push(began.elapsed());
        let alive = running.iter().filter(|c| c.state == v1::ContainerState::ContainerRunning as i32);
        assert_eq!(alive.count(), pods);
        drop(cri);
        shutdown.cancel();
        task.await.unwrap().unwrap();
    }
    times.sort();
    let ms = times.iter().map(|t| format!("{:.0}", t.as_secs_f64() * 1000.0)).collect::<Vec<_>>();
    println!("restart with {pods} running pods to the first list, ms: {}", ms.join(" "));

    let shutdown = CancellationToken::new();
    let task = start(&shutdown);
    let mut cri = cri::connect(&node.config.listen, || !task.is_finished()).await;
    for sandbox in &sandboxes {
        cri.remove_pod(sandbox).await;
    }
    drop(cri);
    shutdown.cancel();
    task.await.unwrap().unwrap();
    assert_eq!(node.leftovers(), Vec::<String>::new());
}
