//! The node on a real control plane: it registers under NodeRestriction with an identity of its own,
//! becomes ready, keeps its lease, and `kubectl logs` and `exec` reach it through the API server.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test: a panic is its failure")]

mod common;

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{FakePods, FakeRuntime, FakeStreaming, FakeUsage, observation, within};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Client, ResourceExt as _};
use podway_agent::cgroups::layout::Layout;
use podway_agent::node::pressure::{Amount, Signal, Thresholds};
use podway_agent::node::{Handle, Registrar, addresses};
use podway_agent::server::{Parts, Server};
use podway_agent::source::{ContainerView, PodSource as _, PodView};
use podway_agent::stats::Stats;
use podway_agent::{config::Config, lease};
use podway_cluster::{Cluster, Program};
use podway_systemd::Driver;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio_util::sync::CancellationToken;

const NAME: &str = "podway-0";

/// A disk that is nearly full is not what is tested here.
fn thresholds() -> Thresholds {
    let disks = [Signal::NodeFs, Signal::ImageFs].map(|signal| (signal, Amount::Part(0.01)));
    Thresholds::hard_only(&[&[(Signal::Memory, Amount::Exact(100 << 20))], disks.as_slice()].concat())
}

/// The whole machine, as most have it.
fn layout() -> Layout {
    Layout::new(Driver::Cgroupfs, "/").unwrap()
}

fn condition<'a>(node: &'a Node, kind: &str) -> [&'a str; 3] {
    let all = node.status.as_ref().unwrap().conditions.as_ref().unwrap();
    let found = all.iter().find(|c| c.type_ == kind).unwrap();
    [&found.status, found.reason.as_deref().unwrap(), found.message.as_deref().unwrap()]
}

fn is_ready(node: Option<&Node>) -> bool {
    node.is_some_and(|node| condition(node, "Ready")[0] == "True")
}

fn register(
    client: &Client,
    runtime: &Arc<FakeRuntime>,
    config: &Config,
    port: u16,
) -> (Handle, CancellationToken) {
    let probe: Arc<FakeRuntime> = Arc::clone(runtime);
    let registrar =
        Registrar::new(client.clone(), probe, config, &layout(), thresholds()).unwrap().with_port(port);
    let (handle, stop) = (registrar.handle(), CancellationToken::new());
    tokio::spawn(registrar.run(stop.clone()));
    (handle, stop)
}

/// How often the node wrote its status, by the API server's audit log.
fn writes(cluster: &Cluster) -> usize {
    let audit = std::fs::read_to_string(cluster.layout.audit_log()).unwrap();
    let user = format!("\"username\":\"system:node:{NAME}\"");
    audit.lines().filter(|l| l.contains(&user) && l.contains("\"resource\":\"nodes\"")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_a_real_control_plane() {
    common::on_control_plane("node-", whole).await;
}

async fn whole(cluster: &Cluster, dir: &Path) {
    let root = dir.join("agent");
    let ip = addresses::default_route().expect("this machine has a default route");
    let (client, config) = common::node(cluster, NAME, ip, &root).await;
    let runtime = Arc::new(FakeRuntime(Mutex::new(observation(false))));
    let pods = Arc::new(FakePods::default());
    let streaming = FakeStreaming::start().await;
    let used = Arc::new(FakeUsage::default());

    // The server has its port before the node says which it is.
    let (state, stop) = (tokio::sync::watch::Sender::new(Default::default()), CancellationToken::new());
    let parts = Parts {
        client: client.clone(),
        pods: pods.clone(),
        streaming: streaming.clone(),
        pulls: streaming.clone(),
        checkpointing: streaming.clone(),
        checkpoints: dir.join("checkpoints"),
        stats: Arc::new(Stats::new(used.clone(), &config, &layout())),
        configz: Arc::new(config.configz()),
        system_logs: dir.to_owned(),
        node: state.subscribe(),
    };
    let server = Server::bind(&config, parts).await.unwrap();
    let port = server.port().unwrap();
    tokio::spawn(server.serve(stop.clone()));
    let (handle, stop_node) = register(&client, &runtime, &config, port);
    let mut views = handle.state();
    let forward = state.clone();
    tokio::spawn(async move {
        while views.changed().await.is_ok() {
            forward.send_replace(views.borrow_and_update().clone());
        }
    });
    let (lease_client, views) = (client.clone(), handle.state());
    tokio::spawn(async move { lease::keep(lease_client, NAME, views).await });

    becomes_ready(cluster, &runtime, &handle, port).await;
    others_are_respected(cluster).await;
    keeps_its_lease(cluster).await;
    registers_again(cluster, &client, &runtime, &config, port, stop_node).await;
    logs(cluster, &pods, dir).await;
    only_who_may(cluster, ip, port).await;
    usage(cluster, &pods, &used).await;
    checkpoints(cluster, &dir.join("checkpoints")).await;
    exec(cluster, &streaming).await;
    is_not_put_back(cluster).await;

    stop.cancel();
}

async fn becomes_ready(cluster: &Cluster, runtime: &Arc<FakeRuntime>, handle: &Handle, port: u16) {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let there = |node: Option<&Node>| node.is_some();
    let node = within("registered", await_condition(nodes.clone(), NAME, there)).await.unwrap().unwrap();
    assert_eq!(
        condition(&node, "Ready"),
        [
            "False",
            "KubeletNotReady",
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:no conflist"
        ]
    );
    *runtime.0.lock().unwrap() = observation(true);
    let since = Instant::now();
    let node = within("ready", await_condition(nodes.clone(), NAME, is_ready)).await.unwrap().unwrap();
    let took = since.elapsed();
    eprintln!("ready {} ms after the runtime was", took.as_millis());
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(condition(&node, "Ready")[1..], ["KubeletReady", "kubelet is posting ready status"]);
    assert_eq!(condition(&node, "MemoryPressure")[..2], ["False", "KubeletHasSufficientMemory"]);
    assert_eq!(condition(&node, "DiskPressure")[..2], ["False", "KubeletHasNoDiskPressure"]);
    assert_eq!(condition(&node, "PIDPressure")[..2], ["False", "KubeletHasSufficientPID"]);
    assert_eq!(node.labels()["example.com/rack"], "7");
    assert_eq!(node.labels()["kubernetes.io/hostname"], NAME);
    let status = node.status.as_ref().unwrap();
    assert_eq!(
        status.daemon_endpoints.as_ref().unwrap().kubelet_endpoint.as_ref().unwrap().port,
        i32::from(port)
    );
    assert_eq!(status.declared_features.as_deref().unwrap(), ["ExtendWebSocketsToKubelet"]);
    let info = status.node_info.as_ref().unwrap();
    assert_eq!(
        (info.kubelet_version.as_str(), info.container_runtime_version.as_str()),
        ("v1.36.3+podway", "podway://1.2.3")
    );
    assert!(!info.boot_id.is_empty() && !info.kernel_version.is_empty() && !info.os_image.is_empty());
    assert_eq!(status.images.as_ref().unwrap()[0].names.as_ref().unwrap(), &["example.com/a:1"]);
    for resource in ["cpu", "memory", "pods", "ephemeral-storage"] {
        assert!(status.allocatable.as_ref().unwrap().contains_key(resource), "{resource}");
    }
    assert_eq!(handle.state().borrow().not_ready, None);
    // What flipped is told as the kubelet tells it.
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), "default");
    let said = within("the events", async {
        loop {
            let all = events.list(&Default::default()).await.unwrap();
            let said: Vec<_> = all.into_iter().filter_map(|e| e.note).collect();
            if said.iter().any(|note| note.ends_with("NodeReady")) {
                return said;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    for note in ["Starting kubelet.", "Node podway-0 status is now: NodeHasSufficientMemory"] {
        assert!(said.iter().any(|n| n == note), "{note} in {said:?}");
    }
    // The controller manager takes it for ready too: pods may come.
    let open = |node: Option<&Node>| {
        let taints = node.and_then(|n| n.spec.as_ref()).and_then(|s| s.taints.clone()).unwrap_or_default();
        taints.is_empty()
    };
    within("no taint", await_condition(nodes, NAME, open)).await.unwrap();
}

async fn others_are_respected(cluster: &Cluster) {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let params = PatchParams::default();
    let mine = json!({"metadata": {"labels": {"mine": "1", "kubernetes.io/os": "plan9"}}});
    nodes.patch(NAME, &params, &Patch::Merge(mine)).await.unwrap();
    let gpus = json!({"status": {"capacity": {"example.com/gpu": "4"}}});
    nodes.patch_status(NAME, &params, &Patch::Merge(gpus)).await.unwrap();
    let since = Instant::now();
    let done = |node: Option<&Node>| {
        let node = node.unwrap();
        let free = node.status.as_ref().unwrap().allocatable.as_ref().unwrap().get("example.com/gpu");
        free.is_some_and(|q| q.0 == "4") && node.labels()["kubernetes.io/os"] == "linux"
    };
    let node = within("taken over", await_condition(nodes, NAME, done)).await.unwrap().unwrap();
    eprintln!("taken over in {} ms", since.elapsed().as_millis());
    assert_eq!(node.labels()["mine"], "1");
    assert_eq!(node.status.unwrap().capacity.unwrap()["example.com/gpu"].0, "4");
}

async fn keeps_its_lease(cluster: &Cluster) {
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), lease::NAMESPACE);
    let there = |lease: Option<&Lease>| lease.is_some();
    let first = within("a lease", await_condition(leases.clone(), NAME, there)).await.unwrap().unwrap();
    let uid = Api::<Node>::all(cluster.client.clone()).get(NAME).await.unwrap().uid().unwrap();
    let owner = &first.owner_references()[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("Node", uid.as_str()));
    let spec = first.spec.unwrap();
    assert_eq!((spec.holder_identity.as_deref(), spec.lease_duration_seconds), (Some(NAME), Some(40)));
    // Two renewals, and meanwhile nothing at all is written to a node of which nothing changes.
    let before = writes(cluster);
    let mut times = vec![spec.renew_time.unwrap()];
    for _ in 0..2 {
        let last = times.last().unwrap().clone();
        let later = move |lease: Option<&Lease>| {
            lease.and_then(|l| l.spec.as_ref()?.renew_time.clone()).is_some_and(|t| t > last)
        };
        let lease = within("renewed", await_condition(leases.clone(), NAME, later)).await.unwrap().unwrap();
        times.push(lease.spec.unwrap().renew_time.unwrap());
    }
    let gaps: Vec<i64> = times.windows(2).map(|t| t[1].0.duration_since(t[0].0).as_millis() as i64).collect();
    eprintln!("renewed after {gaps:?} ms");
    assert!(gaps.iter().all(|gap| (9_000..15_000).contains(gap)), "{gaps:?}");
    assert_eq!(writes(cluster), before, "a node that does not change is written");
}

/// The agent again, on the Node that is there.
async fn registers_again(
    cluster: &Cluster,
    client: &Client,
    runtime: &Arc<FakeRuntime>,
    config: &Config,
    port: u16,
    stop: CancellationToken,
) {
    stop.cancel();
    let config = Config { max_pods: 7, ..config.clone() };
    register(client, runtime, &config, port);
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let seven = |node: Option<&Node>| {
        node.unwrap().status.as_ref().unwrap().capacity.as_ref().unwrap()["pods"].0 == "7"
    };
    let node = within("patched", await_condition(nodes, NAME, seven)).await.unwrap().unwrap();
    assert!(is_ready(Some(&node)));
    assert_eq!(node.labels()["mine"], "1");
    assert_eq!(node.status.unwrap().allocatable.unwrap()["example.com/gpu"].0, "4");
}

/// A client of the agent itself.
fn direct(cluster: &Cluster, ip: std::net::IpAddr, port: u16, token: Option<String>) -> Client {
    let mut config = kube::Config::new(format!("https://{ip}:{port}").parse().unwrap());
    let ca = std::fs::read(cluster.layout.cert("ca")).unwrap();
    use rustls_pki_types::pem::PemObject as _;
    let ca = rustls_pki_types::CertificateDer::from_pem_slice(&ca).unwrap();
    config.root_cert = Some(vec![ca.to_vec()]);
    config.auth_info.token = token.map(Into::into);
    Client::try_from(config).unwrap()
}

async fn get(client: &Client, path: &str) -> (u16, String) {
    ask(client, http::Method::GET, path).await
}

async fn ask(client: &Client, method: http::Method, path: &str) -> (u16, String) {
    let request = http::Request::builder().method(method).uri(path);
    let request = request.body(kube::client::Body::empty()).unwrap();
    let response = client.send(request).await.unwrap();
    let status = response.status().as_u16();
    let bytes = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

async fn only_who_may(cluster: &Cluster, ip: std::net::IpAddr, port: u16) {
    assert_eq!(get(&direct(cluster, ip, port, None), "/metrics").await, (401, "Unauthorized".to_owned()));
    let bad = direct(cluster, ip, port, Some("not.a.token".to_owned()));
    assert_eq!(get(&bad, "/healthz").await.0, 401);
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), "default");
    let wanted = TokenRequest { spec: Some(TokenRequestSpec::default()), ..TokenRequest::default() };
    let token = accounts.create_token_request("default", &PostParams::default(), &wanted).await.unwrap();
    let nobody = direct(cluster, ip, port, token.status.unwrap().token);
    assert_eq!(
        get(&nobody, "/pods").await,
        (403, "Forbidden (user=system:serviceaccount:default:default, verb=get, resource=nodes, subresource(s)=[pods proxy])\n".to_owned())
    );
    let account: ServiceAccount =
        serde_json::from_value(json!({"metadata": {"name": "prometheus"}})).unwrap();
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let role: serde_json::Value = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "scraper"},
        "rules": [{"apiGroups": [""], "resources": ["nodes/metrics", "nodes/healthz"], "verbs": ["get"]}],
    });
    let roles: Api<k8s_openapi::api::rbac::v1::ClusterRole> = Api::all(cluster.client.clone());
    roles.create(&PostParams::default(), &serde_json::from_value(role).unwrap()).await.unwrap();
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": {"name": "scraper"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "scraper"},
        "subjects": [{"kind": "ServiceAccount", "name": "prometheus", "namespace": "default"}],
    }))
    .unwrap();
    let bindings: Api<ClusterRoleBinding> = Api::all(cluster.client.clone());
    bindings.create(&PostParams::default(), &binding).await.unwrap();
    let token = accounts.create_token_request("prometheus", &PostParams::default(), &wanted).await.unwrap();
    let scraper = direct(cluster, ip, port, token.status.unwrap().token);
    let metrics = get(&scraper, "/metrics").await;
    assert_eq!(metrics, (200, "# TYPE things_total counter\nthings_total 3\n".to_owned()));
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(get(&scraper, path).await, (200, "ok".to_owned()), "{path}");
    }
    assert_eq!(get(&scraper, "/containerLogs/default/p/c").await.0, 403);
    assert_eq!(get(&scraper, "/podway/pulls").await.0, 403);
    let checkpoint = ask(&scraper, http::Method::POST, "/checkpoint/default/p/c").await;
    let said = "Forbidden (user=system:serviceaccount:default:prometheus, verb=create, resource=nodes, subresource(s)=[checkpoint])\n";
    assert_eq!(checkpoint, (403, said.to_owned()));
    // The API server's own certificate, by its proxy; what is not there is told only to who may ask.
    let proxied = format!("/api/v1/nodes/{NAME}/proxy");
    let through = |path: &str| format!("{proxied}{path}");
    assert_eq!(get(&cluster.client, &through("/healthz")).await, (200, "ok".to_owned()));
    assert_eq!(get(&cluster.client, &through("/nothing")).await.0, 404);
    // Streams are checked before the runtime is asked for them.
    for (path, code, text) in [
        ("/attach/default/p/c", 400, "you must specify at least 1 of stdin, stdout, stderr"),
        ("/attach/default/p/c?output=1", 400, "Upgrade request required"),
        ("/attach/default/p/none?output=1", 404, "container not found (\"none\")"),
        ("/portForward/default/none", 404, "pod does not exist"),
        ("/portForward/default/p", 400, "Upgrade request required"),
        ("/portForward/default/p/another", 404, "pod not found"),
        ("/run/default/p/c?cmd=true", 405, ""),
    ] {
        assert_eq!(get(&cluster.client, &through(path)).await, (code, text.to_owned()), "{path}");
    }
}

/// As `kubectl create --raw` asks for one.
async fn checkpoints(cluster: &Cluster, dir: &Path) {
    let post = async |path: &str| {
        let path = format!("/api/v1/nodes/{NAME}/proxy/checkpoint/default/{path}");
        ask(&cluster.client, http::Method::POST, &path).await
    };
    for (path, code, text) in [
        ("none/c", 404, "pod does not exist"),
        ("p/none", 404, "container none does not exist"),
        ("p/c?timeout=soon", 404, "cannot parse value of timeout parameter"),
        (
            "p/c?timeout=9&timeout=1",
            500,
            "checkpointing of default/p/c failed (rpc error: code = Unknown desc = CRIU binary not found)",
        ),
    ] {
        assert_eq!(post(path).await, (code, text.to_owned()), "{path}");
    }
    let (code, text) = post("p/c").await;
    assert_eq!(code, 200, "{text}");
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    let path = answer["items"][0].as_str().unwrap();
    let name = Path::new(path).strip_prefix(dir).unwrap().display().to_string();
    let stamp = name.strip_prefix("checkpoint-p_default-c-").and_then(|rest| rest.strip_suffix(".tar"));
    stamp.unwrap().parse::<jiff::Timestamp>().unwrap();
    assert_eq!(std::fs::read_to_string(path).unwrap(), "now", "the newest instance");
    assert_eq!(
        get(&cluster.client, &format!("/api/v1/nodes/{NAME}/proxy/checkpoint/default/p/c")).await.0,
        405
    );
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(dir).unwrap().permissions().mode() & 0o7777, 0o700);
}

fn view(object: Pod, containers: Vec<ContainerView>) -> PodView {
    PodView { object: Arc::new(object), containers, flow: Arc::default() }
}

/// What metrics-server, Prometheus and `kubectl get --raw` read.
async fn usage(cluster: &Cluster, pods: &Arc<FakePods>, used: &Arc<FakeUsage>) {
    let uid = pods.pods()[0].object.metadata.uid.clone().unwrap();
    *used.0.lock().unwrap() = uid.clone();
    let read = async |path: &str| {
        let (status, text) = get(&cluster.client, &format!("/api/v1/nodes/{NAME}/proxy{path}")).await;
        assert_eq!(status, 200, "{path}: {text}");
        text
    };
    let json = async |path: &str| -> serde_json::Value { serde_json::from_str(&read(path).await).unwrap() };
    let summary = json("/stats/summary").await;
    assert_eq!(summary["node"]["nodeName"], NAME);
    for figure in ["/node/cpu/usageCoreNanoSeconds", "/node/memory/workingSetBytes", "/node/fs/capacityBytes"]
    {
        assert!(summary.pointer(figure).unwrap().as_u64().unwrap() > 0, "{figure}");
    }
    let pod = &summary["pods"][0];
    assert_eq!((&pod["podRef"]["name"], &pod["podRef"]["uid"]), (&json!("p"), &json!(uid)));
    assert_eq!(pod["containers"][0]["memory"]["workingSetBytes"], 4096);
    assert!(pod["ephemeral-storage"]["usedBytes"].is_u64(), "{pod}");
    assert!(json("/stats/summary?only_cpu_and_memory=true").await["pods"][0]["ephemeral-storage"].is_null());
    let resource = read("/metrics/resource").await;
    for sample in [
        "node_cpu_usage_seconds_total ",
        "node_memory_working_set_bytes ",
        "container_cpu_usage_seconds_total{container=\"c\",pod=\"p\",namespace=\"default\"} 1.5 ",
        "pod_memory_working_set_bytes{pod=\"p\",namespace=\"default\"} 4096 ",
        "resource_scrape_error 0",
    ] {
        assert!(resource.lines().any(|line| line.starts_with(sample)), "{sample} in {resource}");
    }
    let cadvisor = read("/metrics/cadvisor").await;
    assert!(cadvisor.contains("machine_cpu_cores "), "{cadvisor}");
    assert!(cadvisor.contains("container_memory_working_set_bytes{container=\"c\""), "{cadvisor}");
    assert_eq!(read("/metrics/probes").await, "prober_probe_total 1\n");
    assert_eq!(json("/configz").await["kubeletconfig"]["maxPods"], 110);
    assert_eq!(json("/runningpods/").await["kind"], "PodList");
    assert!(read("/logs/0.log").await.ends_with("the end of it\n"));
}

async fn kubectl(cluster: &Cluster, args: &[&str]) -> (bool, String, String) {
    let mut command = command(cluster, args).await;
    let output = within("kubectl", command.output()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

async fn command(cluster: &Cluster, args: &[&str]) -> tokio::process::Command {
    let program = Program::Kubectl.locate(&|line| eprintln!("{line}")).await.unwrap();
    let mut command = tokio::process::Command::new(program);
    command.arg("--kubeconfig").arg(cluster.layout.admin_kubeconfig()).args(args).kill_on_drop(true);
    command
}

async fn logs(cluster: &Cluster, pods: &Arc<FakePods>, dir: &Path) {
    let spec = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"nodeName": NAME, "containers": [{"name": "c", "image": "a"}]},
    });
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), "default");
    let mut object = api.create(&PostParams::default(), &common::pod(spec)).await.unwrap();
    let with_state = |object: &mut Pod, state: serde_json::Value| {
        object.status = serde_json::from_value(json!({"containerStatuses": [{
            "name": "c", "image": "a", "imageID": "", "ready": false, "restartCount": 1,
            "containerID": "podway://now", "state": state,
            "lastState": {"terminated": {"exitCode": 1, "containerID": "podway://old"}},
        }]}))
        .unwrap();
    };
    let (log, old) = (dir.join("1.log"), dir.join("0.log"));
    let line = |n: usize| format!("2026-01-01T00:00:0{n}.5Z stdout F line {n}\n");
    std::fs::write(&log, (1..=3).map(line).collect::<String>()).unwrap();
    std::fs::write(&old, "2025-12-31T00:00:00Z stderr F the end of it\n").unwrap();
    let container = |id: &str, restarts, path: &Path, running| ContainerView {
        name: "c".to_owned(),
        id: id.to_owned(),
        restarts,
        log_path: path.to_owned(),
        running,
    };
    let containers = |running| vec![container("now", 1, &log, running), container("old", 0, &old, false)];
    with_state(&mut object, json!({"running": {}}));
    pods.set(view(object.clone(), containers(true)));

    let all = "line 1\nline 2\nline 3\n";
    for (args, expected) in [
        (&[][..], all),
        (&["--tail=1"], "line 3\n"),
        (&["--since-time=2026-01-01T00:00:02Z"], "line 2\nline 3\n"),
        (&["--since=1h", "--tail=5"], ""),
        (&["--limit-bytes=9"], "line 1\nli"),
        (&["--previous"], "the end of it\n"),
        (&["--timestamps", "--tail=1"], "2026-01-01T00:00:03.500000000Z line 3\n"),
    ] {
        let (ok, out, err) = kubectl(cluster, &[&["logs", "p"], args].concat()).await;
        assert!(ok, "{args:?}: {err}");
        // sinceTime and since are of the log's own time; 1 h ago is long after 2026-01-01.
        assert_eq!(out, expected, "{args:?}");
    }

    // Followed while it grows, is rotated, and until the container has ended.
    let mut follower = command(cluster, &["logs", "-f", "--tail=1", "p"]).await;
    let mut follower = follower.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut next = async || within("a line", lines.next_line()).await.unwrap();
    assert_eq!(next().await.as_deref(), Some("line 3"));
    let append = |n| {
        let mut file = std::fs::File::options().append(true).create(true).open(&log).unwrap();
        file.write_all(line(n).as_bytes()).unwrap();
    };
    let since = Instant::now();
    append(4);
    assert_eq!(next().await.as_deref(), Some("line 4"));
    eprintln!("a new line is at kubectl's after {} ms", since.elapsed().as_millis());
    std::fs::rename(&log, dir.join("1.log.20260101")).unwrap();
    append(5);
    assert_eq!(next().await.as_deref(), Some("line 5"));
    append(6);
    pods.set(view(object.clone(), containers(false)));
    assert_eq!(next().await.as_deref(), Some("line 6"));
    assert_eq!(next().await, None);
    assert!(within("the follower", follower.wait()).await.unwrap().success());

    // What has no log says why, in upstream's words.
    object.status = serde_json::from_value(json!({"containerStatuses": [{
        "name": "c", "image": "a", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": "ImagePullBackOff"}},
    }]}))
    .unwrap();
    pods.set(view(object.clone(), vec![]));
    let (ok, _, err) = kubectl(cluster, &["logs", "p"]).await;
    assert!(!ok);
    assert_eq!(
        err,
        "Error from server (BadRequest): container \"c\" in pod \"p\" is waiting to start: trying and failing to pull image\n"
    );
    with_state(&mut object, json!({"running": {}}));
    pods.set(view(object, containers(true)));
    let listed = get(&cluster.client, &format!("/api/v1/nodes/{NAME}/proxy/pods")).await;
    assert_eq!(listed.0, 200);
    let listed: serde_json::Value = serde_json::from_str(&listed.1).unwrap();
    assert_eq!((&listed["kind"], &listed["items"][0]["metadata"]["name"]), (&json!("PodList"), &json!("p")));
}

async fn exec(cluster: &Cluster, streaming: &Arc<FakeStreaming>) {
    let mut child = command(cluster, &["exec", "-i", "p", "--", "tr", "a-z", "A-Z"]).await;
    let mut child =
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"through it all").await.unwrap();
    drop(stdin);
    let output = within("exec", child.wait_with_output()).await.unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "THROUGH IT ALL", "{err}");
    assert!(err.starts_with("a warning\n"), "{err}");
    assert_eq!(output.status.code(), Some(3), "{err}");
    let asked = streaming.asked.lock().unwrap();
    assert_eq!((asked[0].container_id.as_str(), asked[0].cmd.len()), ("now", 3));
    assert!(asked[0].stdin && asked[0].stdout && asked[0].stderr && !asked[0].tty);
}

/// A Node that was taken out of the cluster stays out.
async fn is_not_put_back(cluster: &Cluster) {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    nodes.delete(NAME, &Default::default()).await.unwrap();
    let gone = |node: Option<&Node>| node.is_none();
    within("gone", await_condition(nodes.clone(), NAME, gone)).await.unwrap();
    let back = await_condition(nodes, NAME, |node: Option<&Node>| node.is_some());
    assert!(tokio::time::timeout(Duration::from_secs(12), back).await.is_err(), "the node came back");
}
