//! What a sandbox has of its own, on the real kernel: its process 1 where containers share a PID namespace,
//! and its /dev/shm.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

#[path = "support/cri.rs"]
mod cri;
#[path = "support/node.rs"]
mod node;
#[path = "support/served.rs"]
mod served;

use cri::Cri;
use node::Node;
use podway_cri::v1;
use podway_runtime::sandbox::shm;
use served::serve;

async fn is_ready(cri: &mut Cri, id: &str) -> bool {
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    let status = cri.runtime.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
    status.state == v1::PodSandboxState::SandboxReady as i32
}

fn shared() -> v1::NamespaceOption {
    v1::NamespaceOption { pid: v1::NamespaceMode::Pod as i32, ..Default::default() }
}

/// A pod whose containers share a PID namespace, with a container that runs.
async fn pod(cri: &mut Cri, node: &Node, name: &str) -> (String, String, v1::PodSandboxConfig) {
    let mut config = node.sandbox(name, 0);
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options = Some(shared());
    let (sandbox, _) = cri.run_sandbox(config.clone()).await.unwrap();
    let mut app = node.container("app", "sleep 1000");
    app.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options = Some(shared());
    let (id, _) = cri.create(&sandbox, app, config.clone()).await.unwrap();
    cri.start(&id).await.unwrap();
    (sandbox, id, config)
}

fn kill_process_1(node: &Node, sandbox: &str) {
    let record = node.config.state.join("sandboxes").join(sandbox).join("process-1");
    let text = std::fs::read_to_string(record).unwrap();
    let pid: i32 = text.split(' ').next().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_process_1_has_ended_is_not_ready_and_says_so() {
    let Some(node) = node::node() else { return };
    let mut served = serve(&node).await;
    let cri = &mut served.cri;
    let (sandbox, app, config) = pod(cri, &node, "first").await;
    let (later, _, _) = pod(cri, &node, "later").await;
    assert!(is_ready(cri, &sandbox).await);

    // Over a connection of its own, as another client has it.
    let mut listener = cri::connect(&node.config.listen, || true).await;
    let events = listener.runtime.get_container_events(v1::GetEventsRequest::default()).await;
    let mut events = events.unwrap().into_inner();
    kill_process_1(&node, &sandbox);
    // Its containers end with it, and of the sandbox an event tells.
    loop {
        let event = events.message().await.unwrap().unwrap();
        if event.container_id == sandbox {
            assert_eq!(event.container_event_type(), v1::ContainerEventType::ContainerStoppedEvent);
            let status = event.pod_sandbox_status.unwrap();
            assert_eq!(status.state, v1::PodSandboxState::SandboxNotready as i32);
            break;
        }
    }
    assert!(!is_ready(cri, &sandbox).await);
    assert_eq!(cri.exited(&app).await.exit_code, 137);
    let refused = cri.create(&sandbox, node.container("second", "true"), config).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused:?}");
    // A neighbour is none of it, a runtime that comes back sees what ended while it was away.
    assert!(is_ready(cri, &later).await);
    served.end().await;
    // Who listens does not keep the runtime from ending.
    while events.message().await.unwrap().is_some() {}
    kill_process_1(&node, &later);
    let mut served = serve(&node).await;
    let cri = &mut served.cri;
    let mut events =
        cri.runtime.get_container_events(v1::GetEventsRequest::default()).await.unwrap().into_inner();
    while is_ready(cri, &later).await {
        events.message().await.unwrap().unwrap();
    }
    drop(events);
    assert!(!is_ready(cri, &sandbox).await);
    for pod in [&sandbox, &later] {
        cri.remove_pod(pod).await;
    }
    served.end().await;
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn shm_is_as_large_as_an_allowed_annotation_says() {
    let Some(mut node) = node::node() else { return };
    node.config.allowed_annotations = vec![podway_runtime::config::Annotation::ShmSize];
    let mut served = serve(&node).await;
    let cri = &mut served.cri;
    let shm = |sandbox: &str| {
        let dir = node.config.state.join("sandboxes").join(sandbox).join("shm");
        let stat = nix::sys::statvfs::statvfs(&dir).unwrap();
        stat.blocks() * stat.fragment_size()
    };
    let (plain, _) = cri.run_sandbox(node.sandbox("plain", 0)).await.unwrap();
    assert_eq!(shm(&plain), shm::DEFAULT);
    let annotated = |name: &str, size: &str| {
        let annotations = [(shm::ANNOTATION.to_owned(), size.to_owned())].into();
        v1::PodSandboxConfig { annotations, ..node.sandbox(name, 0) }
    };
    let (large, _) = cri.run_sandbox(annotated("large", "128Mi")).await.unwrap();
    assert_eq!(shm(&large), 128 << 20);
    let refused = cri.run_sandbox(annotated("wrong", "1,mode=0")).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused:?}");
    for pod in [&plain, &large] {
        cri.remove_pod(pod).await;
    }
    served.end().await;
    assert_eq!(node.leftovers(), Vec::<String>::new());
}
