//! `kill -9` of the runtime at every step that leaves something behind: a restart undoes or adopts
//! it, the call that was cut off succeeds when it is repeated, and in the end nothing is left.
//!
//! Built with the feature `failpoints` only: `cargo test -p podway-runtime --features failpoints
//! --test points`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

#[path = "support/booted.rs"]
mod booted;
#[path = "support/cri.rs"]
mod cri;
#[path = "support/criu.rs"]
mod criu;
#[path = "support/node.rs"]
mod node;
#[path = "support/process.rs"]
mod process;

use axum::http::{StatusCode, Uri, header};
use axum::response::IntoResponse as _;
use cri::Cri;
use node::Node;
use podway_cri::v1;
use podway_runtime::image::Digest;
use podway_runtime::points::{Point, VARIABLE};
use podway_systemd::Driver;
use process::Process;
use std::collections::HashMap;
use std::sync::Arc;
use tonic::Status;

/// Not a test of its own: see [`process::run`].
#[tokio::test(flavor = "multi_thread")]
async fn runtime_process() {
    process::run().await;
}

fn layer(path: &str, data: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    builder.append_data(&mut header, path, data).unwrap();
    builder.into_inner().unwrap()
}

/// A registry with one image of two layers; gives its name.
async fn registry() -> String {
    let (lower, upper) = (layer("a", b"one"), layer("b", b"two"));
    let config = serde_json::json!({
        "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [Digest::of(&lower), Digest::of(&upper)]},
    })
    .to_string()
    .into_bytes();
    let blob = |kind: &str, bytes: &[u8]| serde_json::json!({"mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len()});
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let layers = [&lower, &upper].map(|l| blob("application/vnd.oci.image.layer.v1.tar", l));
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": kind,
        "config": blob("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers,
    });
    let mut files = HashMap::from([("/v2/t/i/manifests/1".to_owned(), manifest.to_string().into_bytes())]);
    for bytes in [lower, upper, config] {
        files.insert(format!("/v2/t/i/blobs/{}", Digest::of(&bytes)), bytes);
    }
    let files = Arc::new(files);
    let answer = move |uri: Uri| {
        let file = files.get(uri.path()).cloned();
        async move {
            let type_of = if uri.path().contains("manifests") { kind } else { "application/octet-stream" };
            match file {
                Some(bytes) => ([(header::CONTENT_TYPE, type_of)], bytes).into_response(),
                None => StatusCode::NOT_FOUND.into_response(),
            }
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    format!("{host}/t/i:1")
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Pull,
    Sandbox,
    Create,
    Start,
    Checkpoint,
    Stop,
    Remove,
    StopPod,
    RemovePod,
    RemoveImage,
}

const LIFE: [Step; 10] = [
    Step::Pull,
    Step::Sandbox,
    Step::Create,
    Step::Start,
    Step::Checkpoint,
    Step::Stop,
    Step::Remove,
    Step::StopPod,
    Step::RemovePod,
    Step::RemoveImage,
];

/// One life of one pod, as a kubelet would lead it.
struct Life<'a> {
    node: &'a Node,
    name: String,
    image: String,
    sandbox: String,
    container: String,
}

impl Life<'_> {
    async fn step(&mut self, cri: &mut Cri, step: Step) -> Result<(), Status> {
        let pod = self.node.sandbox(&self.name, 0);
        let image = Some(v1::ImageSpec { image: self.image.clone(), ..Default::default() });
        let pod_sandbox_id = self.sandbox.clone();
        match step {
            Step::Pull => {
                let request = v1::PullImageRequest { image, ..Default::default() };
                drop(cri.image.pull_image(request).await?);
            }
            Step::Sandbox => self.sandbox = cri.run_sandbox(pod).await?.0,
            Step::Create => {
                let script = "trap 'exit 7' TERM; while :; do sleep 1 & wait $!; done";
                let config = self.node.container("app", script);
                self.container = cri.create(&self.sandbox, config, pod).await?.0;
            }
            Step::Start => drop(cri.start(&self.container).await?),
            Step::Checkpoint => {
                let request = v1::CheckpointContainerRequest {
                    container_id: self.container.clone(),
                    location: self.node.at("checkpoint.tar").display().to_string(),
                    timeout: 60,
                };
                drop(cri.runtime.checkpoint_container(request).await?);
                // It goes on: a frozen one runs no command.
                assert_eq!(cri.exec(&self.container, &["echo", "on"]).await?.stdout, b"on\n");
                std::fs::remove_file(self.node.at("checkpoint.tar")).unwrap();
            }
            Step::Stop => {
                let request = v1::StopContainerRequest { container_id: self.container.clone(), timeout: 3 };
                drop(cri.runtime.stop_container(request).await?);
            }
            Step::Remove => {
                let request = v1::RemoveContainerRequest { container_id: self.container.clone() };
                drop(cri.runtime.remove_container(request).await?);
            }
            Step::StopPod => {
                drop(cri.runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id }).await?);
            }
            Step::RemovePod => {
                drop(cri.runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id }).await?);
            }
            Step::RemoveImage => {
                drop(cri.image.remove_image(v1::RemoveImageRequest { image }).await?);
            }
        }
        Ok(())
    }
}

fn files(node: &Node, below: &str) -> usize {
    std::fs::read_dir(node.at(below)).unwrap().count()
}

/// What a restart must have put right before anybody repeats anything.
async fn consistent(node: &Node, cri: &mut Cri, point: &str) {
    let pods = cri.runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await.unwrap();
    let pods = pods.into_inner().items;
    assert!(pods.len() <= 1, "{point}: {pods:?}");
    let containers = cri.runtime.list_containers(v1::ListContainersRequest::default()).await.unwrap();
    let containers = containers.into_inner().containers;
    if pods.is_empty() {
        assert!(containers.is_empty(), "{point}: a container without a pod: {containers:?}");
        assert_eq!(
            node.leftovers(),
            Vec::<String>::new(),
            "{point}: nothing is known, so nothing may be there"
        );
    }
    if containers.is_empty() {
        let held = node.leftovers().into_iter().filter(|l| l.contains("overlay") || l.contains("/bundles/"));
        assert_eq!(held.collect::<Vec<_>>(), Vec::<String>::new(), "{point}: nobody's container");
    }
    for container in containers {
        if container.state == v1::ContainerState::ContainerRunning as i32 {
            assert_eq!(cri.exec(&container.id, &["echo", "on"]).await.unwrap().stdout, b"on\n", "{point}");
        }
        let work = node.at("root/containers").join(&container.id).join("checkpoint");
        assert!(!work.exists(), "{point}: a checkpoint's directory");
    }
    let partial = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(".checkpoint-");
    let beside = std::fs::read_dir(node.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(beside.filter(|name| partial(name)).count(), 0, "{point}: an unfinished archive");
    let images = cri.image.list_images(v1::ListImagesRequest::default()).await.unwrap().into_inner().images;
    // The node's own has one layer, the pulled one two.
    let layers = if images.len() == 2 { 3 } else { 1 };
    assert_eq!((files(node, "root/staging"), files(node, "root/layers")), (0, layers), "{point}: layers");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_killed_at_each_step_leaves_nothing_and_the_repeated_call_succeeds() {
    let Some(mut node) = node::node() else { return };
    killed_at_each_step(&mut node).await;
}

/// The same with the cgroup driver systemd, on a real one: booted in a container, where this executable runs
/// once more.
#[test]
fn the_same_under_systemd() {
    let Some(mut node) = node::node() else { return };
    if std::env::var_os(booted::INSIDE).is_some() {
        node.config.cgroup_driver = Driver::Systemd;
        node.config.cgroup_parent = String::new();
        node.config.monitor.cgroup = Some("podwaymonitors.slice".to_owned());
        // Where the slices of pods that name none are.
        node.cgroup = "/podway.slice".to_owned();
        let threads = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        threads.block_on(killed_at_each_step(&mut node));
        assert_eq!(node::units(&node::UNITS), Vec::<String>::new());
        return;
    }
    let directories = node.programs();
    drop(node);
    match booted::run(&["--exact", "the_same_under_systemd", "--nocapture"], &[], &directories) {
        Ok(said) => println!("{said}"),
        Err(error) => panic!("{error}"),
    }
}

async fn killed_at_each_step(node: &mut Node) {
    let path = criu::stand_in(node, criu::WRITES);
    let node = &*node;
    let image = registry().await;
    let mut never = Vec::new();
    for (n, &point) in Point::ALL.iter().enumerate() {
        let point = point.name();
        let mut life = Life {
            node,
            name: format!("p{n}"),
            image: image.clone(),
            sandbox: String::new(),
            container: String::new(),
        };
        let mut process = Some(Process::start_with(node, &[(VARIABLE, point), ("PATH", &path)]));
        let mut cri = process.as_mut().unwrap().connect(node).await;
        let mut killed = false;
        for step in LIFE {
            let Err(error) = life.step(&mut cri, step).await else { continue };
            assert!(!killed, "{point}: {step:?} failed after the restart: {error:?}");
            killed = true;
            let signal = process.take().unwrap().ended_by();
            let log = std::fs::read_to_string(node.at("runtime.log")).unwrap();
            assert!(
                signal == Some(9) && log.contains(&format!("killed at {point}\n")),
                "{point}: {step:?} failed otherwise: {error:?}, {signal:?}"
            );
            let again = process.insert(Process::start_with(node, &[("PATH", &path)]));
            cri = again.connect(node).await;
            consistent(node, &mut cri, point).await;
            if let Err(error) = life.step(&mut cri, step).await {
                panic!("{point}: {step:?} fails when it is repeated: {error:?}");
            }
        }
        if !killed {
            never.push(point);
        }
        assert_eq!(node.leftovers(), Vec::<String>::new(), "{point}");
        assert_eq!((files(node, "root/staging"), files(node, "root/layers")), (0, 1), "{point}");
    }
    assert_eq!(never, Vec::<&str>::new(), "points that no step passes");
}
