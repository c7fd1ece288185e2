//! One pod through the runtime, in process, on the real kernel: real runc, CNI plugins and monitor.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

#[path = "support/cri.rs"]
mod cri;
#[path = "support/node.rs"]
mod node;
#[path = "support/registry.rs"]
mod registry;
#[path = "support/served.rs"]
mod served;

use cri::Cri;
use futures::{SinkExt as _, StreamExt as _};

use node::IMAGE;
use podway_cri::v1;
use podway_flow::{Outcome, Phase, Record};
use served::serve;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// One exec over a WebSocket: what came on each channel until the server closed.
async fn stream(url: &str, protocol: &str, send: &[&[u8]]) -> Result<[Vec<u8>; 4], WsError> {
    let mut request = url.replace("http://", "ws://").into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
    let (mut socket, response) = tokio_tungstenite::connect_async(request).await?;
    assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
    for message in send {
        socket.send(Message::binary(message.to_vec())).await?;
    }
    let mut channels: [Vec<u8>; 4] = Default::default();
    while let Some(message) = socket.next().await {
        match message? {
            Message::Binary(bytes) => channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]),
            // kubectl takes any other code, and none, for a broken stream (client-go's websocket.go).
            Message::Close(end) => {
                assert_eq!(end.map(|e| u16::from(e.code)), Some(1000));
                return Ok(channels);
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("the stream ended without a close frame")
}

async fn exec_url(cri: &mut Cri, id: &str, cmd: &[&str], tty: bool) -> String {
    let request = v1::ExecRequest {
        container_id: id.to_owned(),
        cmd: cmd.iter().map(|s| (*s).to_owned()).collect(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    cri.runtime.exec(request).await.unwrap().into_inner().url
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_streams_both_ways_by_a_token_that_works_once() {
    let Some(node) = node::node() else { return };
    let mut served = serve(&node).await;
    let cri = &mut served.cri;
    let pod = node.sandbox("stream", 0);
    let (sandbox, _) = cri.run_sandbox(pod.clone()).await.unwrap();
    let (id, _) = cri.create(&sandbox, node.container("app", "sleep 1000"), pod).await.unwrap();
    cri.start(&id).await.unwrap();

    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let url = exec_url(cri, &id, &["sh", "-c", "cat; echo no >&2; exit 4"], false).await;
    let input: &[&[u8]] = &[b"\0one ", b"\0two", b"\xff\0"];
    let [_, out, err, status] = stream(&url, "v5.channel.k8s.io", input).await.unwrap();
    assert_eq!((text(&out).as_str(), text(&err).as_str()), ("one two", "no\n"));
    assert!(text(&status).contains("ExitCode") && text(&status).contains("\"4\""), "{}", text(&status));
    match stream(&url, "v5.channel.k8s.io", &[]).await {
        Err(WsError::Http(response)) => assert_eq!(response.status(), 404),
        other => panic!("{other:?}"),
    }

    // Version 4; much output, all of it there before the status.
    let url = exec_url(cri, &id, &["sh", "-c", "busybox head -c 3000000 /dev/zero"], false).await;
    let [_, out, _, status] = stream(&url, "v4.channel.k8s.io", &[]).await.unwrap();
    assert_eq!((out.len(), text(&status).contains("Success")), (3_000_000, true));

    // A terminal, with its size.
    let url = exec_url(cri, &id, &["sh", "-c", "read x; busybox stty size; test -t 0 && exit 5"], true).await;
    let input: &[&[u8]] = &[b"\x04{\"Width\":91,\"Height\":33}", b"\0go\n"];
    let [_, out, _, status] = stream(&url, "v5.channel.k8s.io", input).await.unwrap();
    assert!(text(&out).contains("33 91"), "{:?}", text(&out));
    assert!(text(&status).contains("\"5\""), "{}", text(&status));

    // A command that is not there is told on the error channel.
    let url = exec_url(cri, &id, &["/no/such/program"], false).await;
    let [_, _, _, status] = stream(&url, "v5.channel.k8s.io", &[]).await.unwrap();
    assert!(text(&status).contains("no such file"), "{}", text(&status));
    cri.remove_pod(&sandbox).await;
    served.end().await;
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

fn evidence<'a>(records: &'a [Record], phase: Phase, key: &str) -> &'a str {
    let record = records.iter().find(|r| r.phase == phase).unwrap_or_else(|| panic!("{phase} is missing"));
    assert_ne!(record.outcome, Outcome::Failed, "{record:?}");
    record.evidence.get(key).unwrap_or_else(|| panic!("{phase} has no {key}: {record:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_is_asked_stops_and_leaves_nothing() {
    let Some(mut node) = node::node() else { return };
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    node.config.metrics.listen = Some(free);
    let mut served = serve(&node).await;
    let cri = &mut served.cri;
    let status = cri.runtime.status(v1::StatusRequest::default()).await.unwrap().into_inner();
    assert!(status.status.unwrap().conditions.iter().all(|c| c.status), "ready");

    let pod = node.sandbox("web", 0);
    let (sandbox, mut flow) = cri.run_sandbox(pod.clone()).await.unwrap();
    let spec = v1::ImageSpec { image: IMAGE.to_owned(), ..Default::default() };
    let image = v1::ImageStatusRequest { image: Some(spec), verbose: false };
    assert!(cri.image.image_status(image).await.unwrap().into_inner().image.is_some());

    let script =
        "echo out $COLOUR; echo err >&2; trap 'echo bye; exit 7' TERM; while :; do sleep 1 & wait $!; done";
    let (id, records) = cri.create(&sandbox, node.container("app", script), pod.clone()).await.unwrap();
    flow.extend(records);
    assert_eq!(cri.status(&id).await.state, v1::ContainerState::ContainerCreated as i32);
    flow.extend(cri.start(&id).await.unwrap());
    assert_eq!(cri.status(&id).await.state, v1::ContainerState::ContainerRunning as i32);

    // Every step of the runtime is on record, with evidence that the kernel agrees with.
    for phase in [
        Phase::SandboxCreated,
        Phase::NetworkConfigured,
        Phase::RootfsPrepared,
        Phase::SpecGenerated,
        Phase::ContainersCreated,
        Phase::ContainersStarted,
    ] {
        let record = flow.iter().find(|r| r.phase == phase).unwrap_or_else(|| panic!("no {phase}"));
        assert_eq!(record.outcome, Outcome::Succeeded, "{record:?}");
        assert!(record.end.unwrap() >= record.start);
    }
    let pid: u32 = evidence(&flow, Phase::ContainersCreated, "pid").parse().unwrap();
    let net = std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(evidence(&flow, Phase::ContainersCreated, "ns.net"), net.display().to_string());
    let inode = evidence(&flow, Phase::SandboxCreated, "netNamespace");
    assert_eq!(net.display().to_string(), format!("net:[{inode}]"));
    let limit = flow.iter().find(|r| r.phase == Phase::ContainersCreated).unwrap();
    let limit = limit.evidence.get("memory.limit_in_bytes").or(limit.evidence.get("memory.max")).unwrap();
    assert_eq!(limit, &(64 << 20).to_string());
    let path = evidence(&flow, Phase::SpecGenerated, "path");
    use sha2::Digest as _;
    let sum = hex::encode(sha2::Sha256::digest(std::fs::read(path).unwrap()));
    assert_eq!(evidence(&flow, Phase::SpecGenerated, "sha256"), sum);

    // Status and exec agree with the namespaces.
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: true };
    let status = cri.runtime.pod_sandbox_status(request).await.unwrap().into_inner();
    let ip = status.status.unwrap().network.unwrap().ip;
    assert_eq!(evidence(&flow, Phase::NetworkConfigured, "ips"), ip);
    assert!(status.info["flow"].contains("SandboxCreated"));
    let addresses = cri.exec(&id, &["ip", "addr", "show", "eth0"]).await.unwrap();
    assert!(String::from_utf8_lossy(&addresses.stdout).contains(&ip), "{addresses:?}");
    let out = cri
        .exec(&id, &["sh", "-c", "hostname; cat /etc/resolv.conf; id -u; echo $COLOUR; exit 3"])
        .await
        .unwrap();
    assert_eq!(out.exit_code, 3);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "web\nnameserver 10.0.0.53\n0\ngreen\n");

    // The default seccomp filter is on: what needs CAP_SYS_ADMIN is refused by it.
    let filter =
        cri.exec(&id, &["sh", "-c", "grep Seccomp: /proc/self/status; unshare -U true"]).await.unwrap();
    assert!(String::from_utf8_lossy(&filter.stdout).contains("Seccomp:\t2"), "{filter:?}");
    assert_ne!(filter.exit_code, 0, "{filter:?}");

    assert!(get(free, "/livez").await.ends_with("ok\n"));
    let metrics = get(free, "/metrics").await;
    for line in [
        "podway_pod_phase_duration_seconds_count{phase=\"ContainersStarted\",result=\"succeeded\"} 1",
        "podway_runtime_containers{state=\"running\"} 1",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }

    cri.stop(&id, 10).await;
    let status = cri.status(&id).await;
    assert_eq!((status.state, status.exit_code), (v1::ContainerState::ContainerExited as i32, 7));
    assert_eq!(status.reason, "Error");
    assert!(status.finished_at >= status.started_at && status.started_at >= status.created_at);
    let log = std::fs::read_to_string(&status.log_path).unwrap();
    for tail in [" stdout F out green", " stderr F err", " stdout F bye"] {
        assert!(log.lines().any(|l| l.ends_with(tail)), "{tail} is not in {log}");
    }
    cri.remove(&id).await;
    cri.remove_pod(&sandbox).await;
    served.end().await;
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

/// Another OCI runtime, by the handler that the sandbox is asked for with: it runs the pod from its start to its
/// end, also over a restart of ours and the loss of the monitor.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_names_another_oci_runtime() {
    let Some(mut node) = node::node() else { return };
    // runc under another name: crun refuses the hybrid cgroups of machines like CI's.
    let other = node.at("fast-runc");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" != --version ] || {{ echo fast version 1; exit; }}\nexec {} \"$@\"\n",
        node.config.runc.path.display()
    );
    std::fs::write(&other, script).unwrap();
    std::fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    node.config.runtimes.insert("fast".to_owned(), podway_runtime::config::Oci { path: other.clone() });
    let mut served = serve(&node).await;
    let cri = &mut served.cri;
    let told = cri.runtime.status(v1::StatusRequest::default()).await.unwrap().into_inner().runtime_handlers;
    assert_eq!(told.iter().map(|h| h.name.as_str()).collect::<Vec<_>>(), ["", "fast", "runc"]);
    let pod = node.sandbox("other", 0);
    let asked = |handler: &str| v1::RunPodSandboxRequest {
        config: Some(pod.clone()),
        runtime_handler: handler.to_owned(),
    };
    let refused = cri.runtime.run_pod_sandbox(asked("slow")).await.unwrap_err();
    assert!(refused.message().contains("no runtime for \"slow\" is configured"), "{refused:?}");
    let sandbox = cri.runtime.run_pod_sandbox(asked("fast")).await.unwrap().into_inner().pod_sandbox_id;
    let listed = cri.runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().items[0].runtime_handler, "fast");

    let script = "echo up; trap 'exit 7' TERM; while :; do sleep 1 & wait $!; done";
    let (id, _) = cri.create(&sandbox, node.container("app", script), pod.clone()).await.unwrap();
    let flow = cri.start(&id).await.unwrap();
    assert_eq!(evidence(&flow, Phase::ContainersCreated, "runcVersion"), "fast version 1");
    assert!(evidence(&flow, Phase::ContainersCreated, "argv").starts_with(other.to_str().unwrap()));
    let said = cri.exec(&id, &["sh", "-c", "echo in; exit 3"]).await.unwrap();
    assert_eq!((said.exit_code, said.stdout.as_slice()), (3, b"in\n".as_slice()));
    cri.limit_memory(&id, 48 << 20).await;
    let mut bad = node.container("bad", "");
    bad.command = vec!["/no/such/program".to_owned()];
    let (bad, _) = cri.create(&sandbox, bad, pod.clone()).await.unwrap();
    let refused = cri.start(&bad).await.unwrap_err();
    assert!(refused.message().contains("/no/such/program"), "{refused:?}");

    // Another process of ours finds it running, and it ends as it was told to.
    let (orphan, _) =
        cri.create(&sandbox, node.container("orphan", "sleep 1000"), pod.clone()).await.unwrap();
    cri.start(&orphan).await.unwrap();
    served.end().await;
    let mut served = serve(&node).await;
    let cri = &mut served.cri;
    assert_eq!(cri.status(&id).await.state, v1::ContainerState::ContainerRunning as i32);
    cri.stop(&id, 10).await;
    assert_eq!(cri.status(&id).await.exit_code, 7);
    served.end().await;

    // Without its monitor it is known by what the OCI runtime wrote of it.
    node.monitors().into_iter().for_each(node::kill);
    let mut served = serve(&node).await;
    let cri = &mut served.cri;
    assert_eq!(cri.status(&orphan).await.state, v1::ContainerState::ContainerRunning as i32);
    cri.stop(&orphan, 0).await;
    assert_eq!(cri.status(&orphan).await.exit_code, 137);
    cri.remove_pod(&sandbox).await;
    served.end().await;
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

/// A retried call joins or finds; a failed one tells what it did, leaves nothing, and is remembered.
#[tokio::test(flavor = "multi_thread")]
async fn calls_are_idempotent_and_failures_tell_their_records() {
    let Some(node) = node::node() else { return };
    let mut served = serve(&node).await;
    let cri = &mut served.cri;
    let pod = node.sandbox("same", 0);

    // A plugin that is not there, then the right configuration: the failure stays in the flow.
    let conf = node.at("net.d/10-test.conflist");
    let good = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(&conf, good.replace("\"type\":\"bridge\"", "\"type\":\"no-such-plugin\"")).unwrap();
    let error = cri.run_sandbox(pod.clone()).await.unwrap_err();
    let told = podway_cri::metadata::take(error.metadata());
    assert_eq!(told.last().unwrap().phase, Phase::NetworkConfigured, "{told:?}");
    assert_eq!(told.last().unwrap().outcome, Outcome::Failed);
    assert_eq!(node.leftovers(), Vec::<String>::new());
    std::fs::write(&conf, &good).unwrap();

    let mut other = cri.clone();
    let (a, b) = tokio::join!(cri.run_sandbox(pod.clone()), other.run_sandbox(pod.clone()));
    let (sandbox, _) = a.unwrap();
    assert_eq!(b.unwrap().0, sandbox, "joined");
    assert_eq!(cri.run_sandbox(pod.clone()).await.unwrap().0, sandbox, "found");
    let app = node.container("app", "sleep 1000");
    let (a, b) = tokio::join!(
        cri.create(&sandbox, app.clone(), pod.clone()),
        other.create(&sandbox, app.clone(), pod.clone())
    );
    let (id, _) = a.unwrap();
    assert_eq!(b.unwrap().0, id);
    assert_eq!(cri.create(&sandbox, app.clone(), pod.clone()).await.unwrap().0, id);
    let (a, b) = tokio::join!(cri.start(&id), other.start(&id));
    assert!(a.is_ok() && b.is_ok());
    let again = cri.create(&sandbox, app.clone(), pod.clone()).await.unwrap_err();
    assert_eq!(again.code(), tonic::Code::AlreadyExists);

    // A command that does not exist is told at the start, in runc's words.
    let mut bad = node.container("bad", "");
    bad.command = vec!["/no/such/program".to_owned()];
    let (refused, _) = cri.create(&sandbox, bad, pod.clone()).await.unwrap();
    assert_eq!(cri.status(&refused).await.state, v1::ContainerState::ContainerCreated as i32);
    let error = cri.start(&refused).await.unwrap_err();
    let told = podway_cri::metadata::take(error.metadata());
    let last = told.last().unwrap();
    assert_eq!((last.phase, last.outcome), (Phase::ContainersCreated, Outcome::Failed));
    for _ in 0..2 {
        let error = cri.start(&refused).await.unwrap_err();
        assert!(error.message().starts_with("OCI runtime create failed: "), "{error:?}");
        assert!(error.message().contains("/no/such/program: no such file or directory"), "{error:?}");
        let status = cri.status(&refused).await;
        assert_eq!((status.state, status.exit_code), (v1::ContainerState::ContainerExited as i32, 128));
        assert_eq!((status.reason.as_str(), status.started_at), ("StartError", 0));
        assert_eq!(status.message, error.message());
        assert!(status.finished_at > 0);
    }
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: true };
    let info = cri.runtime.pod_sandbox_status(request).await.unwrap().into_inner();
    assert_eq!(info.containers_statuses.len(), 2);
    let kept = podway_flow::wire::decode(info.info["flow"].as_bytes()).unwrap();
    assert!(kept.iter().any(|r| r.phase == Phase::NetworkConfigured && r.outcome == Outcome::Failed));
    cri.remove(&refused).await;

    // One that is stopped before its start has no process to signal, and is not started any more.
    let (early, _) = cri.create(&sandbox, node.container("early", "sleep 1000"), pod.clone()).await.unwrap();
    cri.stop(&early, 10).await;
    let status = cri.status(&early).await;
    assert_eq!((status.state, status.exit_code), (v1::ContainerState::ContainerExited as i32, 128));
    assert_eq!(status.message, "the container was stopped before it was started");
    assert!(cri.start(&early).await.is_err());
    cri.remove(&early).await;

    // The configuration on disk is gone: DEL is given what ADD was given.
    std::fs::remove_file(&conf).unwrap();
    // A second stop shortens the first one's grace.
    let mut slow = cri.clone();
    let waiting = id.clone();
    let long = tokio::spawn(async move { slow.stop(&waiting, 1000).await });
    cri.remove_pod(&sandbox).await;
    long.await.unwrap();
    served.end().await;
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

/// From a real registry to a process, with every phase that the runtime has on record; the image
/// outlives its removal as long as a container stands on it, across a restart.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_and_run_with_every_phase_on_record() {
    let Some(binary) = node::program("PODWAY_REGISTRY_BIN", "registry") else {
        println!("skipped: needs distribution's registry (PODWAY_REGISTRY_BIN, KUBEBUILDER_ASSETS, PATH)");
        return;
    };
    let Some(node) = node::node() else { return };
    let registry = registry::Registry::start(&binary, node.dir.path());
    let image = v1::ImageSpec { image: registry.image(), ..Default::default() };
    let mut served = serve(&node).await;
    let cri = &mut served.cri;
    let pod = node.sandbox("pulled", 0);
    let (sandbox, mut flow) = cri.run_sandbox(pod.clone()).await.unwrap();
    let pull = v1::PullImageRequest { image: Some(image.clone()), ..Default::default() };
    let pulled = cri.image.pull_image(pull).await.unwrap();
    flow.extend(podway_cri::metadata::take(pulled.metadata()));
    let mut app = node.container("app", "");
    app.command.clear();
    app.image = Some(image.clone());
    let (id, records) = cri.create(&sandbox, app.clone(), pod.clone()).await.unwrap();
    flow.extend(records);
    flow.extend(cri.start(&id).await.unwrap());
    let phases: Vec<Phase> = flow.iter().map(|r| r.phase).collect();
    let runtime =
        Phase::ALL.into_iter().filter(|p| (Phase::SandboxCreated..=Phase::ContainersStarted).contains(p));
    assert_eq!(phases, runtime.collect::<Vec<_>>());
    assert!(flow.iter().all(|r| r.outcome == Outcome::Succeeded), "{flow:?}");
    assert_eq!(evidence(&flow, Phase::RootfsPrepared, "layers"), "2");

    // The upper layer's file is there and the lower layer's mode is not hidden by it.
    let script = "busybox stat -c %a /tmp; busybox cat /tmp/note; echo $FROM";
    let out = cri.exec(&id, &["sh", "-c", script]).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "1777\nnoteimage\n");

    let remove = v1::RemoveImageRequest { image: Some(image) };
    cri.image.remove_image(remove).await.unwrap();
    served.end().await;
    let mut served = serve(&node).await;
    let cri = &mut served.cri;
    let out = cri.exec(&id, &["sh", "-c", script]).await.unwrap();
    assert_eq!(
        String::from_utf8_lossy(&out.stdout),
        "1777\nnoteimage\n",
        "pinned again before the collection"
    );
    let layers = || std::fs::read_dir(node.at("root/layers")).unwrap().count();
    assert_eq!(layers(), 3);
    cri.remove_pod(&sandbox).await;
    served.end().await;
    let served = serve(&node).await;
    assert_eq!(layers(), 1, "collected once nothing stands on them");
    served.end().await;
    assert_eq!(node.leftovers(), Vec::<String>::new());
}
