//! The control plane alone, for real: up, a request, a second up, a crash, down, nothing left.

#![expect(clippy::unwrap_used, reason = "a test: a panic is its failure")]

use std::sync::Mutex;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ObjectMeta, PostParams};
use podway_cluster::{Layout, UpOptions, down, process, state::State, up};

fn links() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir("/sys/class/net")
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn netns() -> Vec<String> {
    let Ok(dir) = std::fs::read_dir("/run/netns") else { return Vec::new() };
    dir.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane_comes_up_answers_recovers_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("state");
    let before = (links(), netns());
    let options =
        UpOptions { state_dir: state_dir.clone(), control_plane_only: true, ..UpOptions::default() };
    let cluster = up(options.clone(), |line| eprintln!("{line}")).await.unwrap();

    let version = cluster.client.apiserver_version().await.unwrap();
    assert_eq!((version.major.as_str(), version.minor.as_str()), ("1", "36"));
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace = Namespace {
        metadata: ObjectMeta { name: Some("first".into()), ..ObjectMeta::default() },
        ..Namespace::default()
    };
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let audit = std::fs::read_to_string(cluster.layout.audit_log()).unwrap();
    let line = audit
        .lines()
        .find(|l| l.contains("\"verb\":\"create\"") && l.contains("\"name\":\"first\""))
        .expect("the write is in the audit log");
    assert!(line.contains("\"username\":\"podway-admin\""), "{line}");
    assert!(line.contains("\"authorization.k8s.io/decision\":\"allow\""), "{line}");

    // A second up finds everything; nothing is started.
    let layout = Layout::new(std::fs::canonicalize(&state_dir).unwrap());
    let first = State::load(&layout).unwrap().unwrap();
    let lines = Mutex::new(Vec::new());
    up(options.clone(), |line| lines.lock().unwrap().push(line.to_owned())).await.unwrap();
    assert_eq!(*lines.lock().unwrap(), Vec::<String>::new());
    assert_eq!(State::load(&layout).unwrap().unwrap(), first);

    // What died is started again, and the data is still there.
    process::stop(&first.processes["kube-apiserver"], std::time::Duration::ZERO).await.unwrap();
    let cluster = up(options, |line| eprintln!("{line}")).await.unwrap();
    Api::<Namespace>::all(cluster.client.clone()).get("first").await.unwrap();
    let second = State::load(&layout).unwrap().unwrap();
    assert_eq!(second.processes["etcd"], first.processes["etcd"]);
    assert_ne!(second.processes["kube-apiserver"], first.processes["kube-apiserver"]);

    assert!(down(&state_dir, |line| eprintln!("{line}")).await.unwrap());
    for (name, record) in second.processes.iter().chain(&first.processes) {
        assert!(!process::alive(record), "{name} is left");
    }
    assert_eq!(process::marked(layout.root()).unwrap(), vec![]);
    assert!(!state_dir.exists());
    assert_eq!((links(), netns()), before, "a bridge, a veth or a netns is left");
    assert!(!down(&state_dir, |_| ()).await.unwrap(), "a second down finds nothing");
}
