//! Exec, attach and port-forward over SPDY and WebSocket, on the real kernel with a real runc.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

#[path = "support/cri.rs"]
mod cri;
#[path = "support/node.rs"]
mod node;
#[path = "support/served.rs"]
mod served;
#[path = "support/streams.rs"]
mod streams;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use node::Node;
use podway_cri::v1;
use std::time::Duration;
use streams::{Command, all, open, until, upgrade};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

struct Served {
    runtime: served::Served,
    sandbox: String,
}

/// A runtime with a pod whose one container is `script`, changed by `change`.
async fn serve(node: &Node, script: &str, change: impl FnOnce(&mut v1::ContainerConfig)) -> (Served, String) {
    let mut runtime = served::serve(node).await;
    let cri = &mut runtime.cri;
    let pod = node.sandbox("stream", 0);
    let (sandbox, _) = cri.run_sandbox(pod.clone()).await.unwrap();
    let mut config = node.container("app", script);
    change(&mut config);
    let (id, _) = cri.create(&sandbox, config, pod).await.unwrap();
    cri.start(&id).await.unwrap();
    (Served { runtime, sandbox }, id)
}

impl Served {
    async fn exec(&mut self, id: &str, cmd: &[&str], tty: bool) -> String {
        let request = v1::ExecRequest {
            container_id: id.to_owned(),
            cmd: cmd.iter().map(|s| (*s).to_owned()).collect(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        };
        self.runtime.cri.runtime.exec(request).await.unwrap().into_inner().url
    }

    async fn attach(&mut self, id: &str, stdin: bool, tty: bool) -> String {
        let container_id = id.to_owned();
        let request = v1::AttachRequest { container_id, stdin, tty, stdout: true, stderr: !tty };
        self.runtime.cri.runtime.attach(request).await.unwrap().into_inner().url
    }

    async fn forward(&mut self, port: Vec<i32>) -> String {
        let request = v1::PortForwardRequest { pod_sandbox_id: self.sandbox.clone(), port };
        self.runtime.cri.runtime.port_forward(request).await.unwrap().into_inner().url
    }

    async fn end(mut self, node: &Node) {
        let sandbox = std::mem::take(&mut self.sandbox);
        self.runtime.cri.remove_pod(&sandbox).await;
        self.runtime.end().await;
        assert_eq!(node.leftovers(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_over_spdy() {
    let Some(node) = node::node() else { return };
    let (mut served, id) = serve(&node, "sleep 1000", |_| {}).await;
    let url = served.exec(&id, &["sh", "-c", "cat; echo no >&2; exit 4"], false).await;
    // What cannot be served costs no token; a token is for one kind of stream, and works once.
    assert_eq!(upgrade(&url, "v9.channel.k8s.io").await.err().unwrap().0, 403);
    assert_eq!(
        upgrade(&url.replace("exec", "portforward"), "portforward.k8s.io").await.err().unwrap().0,
        404
    );
    let mut command = Command::start(&url, true, false).await;
    command.say("one ").await;
    command.say("two").await;
    command.hush().await;
    let (out, err, status) = command.end().await;
    assert_eq!((out.as_str(), err.as_str()), ("one two", "no\n"));
    assert!(status.contains("NonZeroExitCode") && status.contains("\"message\":\"4\""), "{status}");
    assert_eq!(upgrade(&url, "v4.channel.k8s.io").await.err().unwrap().0, 404);

    // Much output, all of it there before the status; a terminal with its size.
    let url = served.exec(&id, &["sh", "-c", "busybox seq 1 200000"], false).await;
    let (out, _, status) = Command::start(&url, true, false).await.end().await;
    assert!(out.ends_with("\n200000\n") && out.len() == 1_288_895, "{}", out.len());
    assert!(status.contains("Success"), "{status}");
    let script = "read x; busybox stty size; echo $TERM; test -t 0 && exit 5";
    let url = served.exec(&id, &["sh", "-c", script], true).await;
    let command = Command::start(&url, true, true).await;
    let size = Bytes::from_static(b"{\"Width\":91,\"Height\":33}\n");
    command.resize.as_ref().unwrap().writer.write(size).await.unwrap();
    command.say("go\n").await;
    let (out, _, status) = command.end().await;
    assert!(out.ends_with("33 91\r\nxterm\r\n"), "{out:?}");
    assert!(status.contains("\"5\""), "{status}");
    let url = served.exec(&id, &["/no/such/program"], false).await;
    let (_, _, status) = Command::start(&url, true, false).await.end().await;
    assert!(status.contains("InternalError") && status.contains("no such file"), "{status}");
    served.end(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_joins_what_runs_and_stdin_once_ends_with_the_client() {
    let Some(node) = node::node() else { return };
    let once = |config: &mut v1::ContainerConfig| (config.stdin, config.stdin_once) = (true, true);
    let script = "while read x && [ $x != go ]; do echo got $x; done; echo gone; cat; echo bye >&2; exit 3";
    let (mut served, id) = serve(&node, script, once).await;
    // Two clients, one of which only looks on; both hear of the end, which is a good one: the code is the pod's.
    let url = served.attach(&id, true, false).await;
    let mut mine = Command::start(&url, true, false).await;
    let url = served.attach(&id, false, false).await;
    let mut looking = Command::start(&url, false, false).await;
    mine.say("this\n").await;
    assert_eq!(until(&mut mine.stdout, "got this\n").await, "got this\n");
    // Who looks on is not told since when: there is something to see until it has been seen.
    loop {
        mine.say("that\n").await;
        until(&mut mine.stdout, "got that\n").await;
        let seen = tokio::time::timeout(Duration::from_millis(50), looking.stdout.reader.recv()).await;
        if let Ok(data) = seen {
            assert!(data.is_some(), "the output has ended");
            break;
        }
    }
    mine.say("go\n").await;
    assert!(until(&mut mine.stdout, "gone\n").await.ends_with("gone\n"));
    assert!(until(&mut looking.stdout, "gone\n").await.ends_with("gone\n"));
    mine.say("and that").await;
    mine.hush().await;
    let (out, err, status) = mine.end().await;
    assert_eq!((out.as_str(), err.as_str()), ("and that", "bye\n"));
    assert!(status.contains("Success"), "{status}");
    let (out, err, status) = looking.end().await;
    assert_eq!((out.as_str(), err.as_str()), ("and that", "bye\n"));
    assert!(status.contains("Success"), "{status}");
    assert_eq!(served.runtime.cri.exited(&id).await.exit_code, 3);
    let request = v1::AttachRequest { container_id: id, stdout: true, ..Default::default() };
    assert_eq!(
        served.runtime.cri.runtime.attach(request).await.unwrap_err().code(),
        tonic::Code::FailedPrecondition
    );
    served.end(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_stdin_once_the_input_outlives_the_client() {
    let Some(node) = node::node() else { return };
    let script = "while read x; do echo got $x; done; exit 3";
    let (mut served, id) = serve(&node, script, |config| config.stdin = true).await;
    for word in ["first", "second"] {
        let url = served.attach(&id, true, false).await;
        let mut command = Command::start(&url, true, false).await;
        command.say(&format!("{word}\n")).await;
        assert_eq!(until(&mut command.stdout, "\n").await, format!("got {word}\n"));
        // The client's end of input is the end of its session, and of nothing else.
        command.hush().await;
        let (_, _, status) = command.end().await;
        assert!(status.contains("Success"), "{status}");
    }
    assert_eq!(served.runtime.cri.status(&id).await.state, v1::ContainerState::ContainerRunning as i32);
    served.end(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_on_a_terminal() {
    let Some(node) = node::node() else { return };
    let script = "test -t 0 && test -t 2 || exit 9; read x; busybox stty size; echo $TERM; exit 4";
    let tty =
        |config: &mut v1::ContainerConfig| (config.stdin, config.stdin_once, config.tty) = (true, true, true);
    let (mut served, id) = serve(&node, script, tty).await;
    let url = served.attach(&id, true, true).await;
    let command = Command::start(&url, true, true).await;
    let size = Bytes::from_static(b"{\"Width\":91,\"Height\":33}{\"Width\":92,\"Height\":34}");
    command.resize.as_ref().unwrap().writer.write(size).await.unwrap();
    command.say("go\n").await;
    let (out, _, status) = command.end().await;
    assert!(out.ends_with("34 92\r\nxterm\r\n"), "{out:?}");
    assert!(status.contains("Success"), "{status}");
    let ended = served.runtime.cri.exited(&id).await;
    assert_eq!(ended.exit_code, 4);
    let log = std::fs::read_to_string(ended.log_path).unwrap();
    assert!(log.lines().any(|l| l.contains(" stdout F 34 92")), "{log}");
    served.end(&node).await;
}

const GET: &[u8] = b"GET /note HTTP/1.0\r\n\r\n";

/// A server in the pod that answers with its one file.
const SERVER: &str =
    "busybox mkdir -p /srv && echo a note > /srv/note && exec busybox httpd -f -p 127.0.0.1:8080 -h /srv";

async fn listens(served: &mut Served, id: &str) {
    // 127.0.0.1:8080, in the state LISTEN.
    let wait = ["sh", "-c", "until busybox grep -q '0100007F:1F90 .* 0A ' /proc/net/tcp; do :; done"];
    assert_eq!(served.runtime.cri.exec(id, &wait).await.unwrap().exit_code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_a_pod_without_any_process_of_ours_in_it() {
    let Some(node) = node::node() else { return };
    let (mut served, id) = serve(&node, SERVER, |_| {}).await;
    listens(&mut served, &id).await;
    let url = served.forward(vec![]).await;
    let session = upgrade(&url, "portforward.k8s.io").await.unwrap();
    // Several connections at a time over one session, and one to a port where nobody listens.
    for request in ["1", "2", "3"] {
        let headers = |kind| [("streamType", kind), ("port", "8080"), ("requestID", request)];
        let mut error = open(&session, &headers("error")).await;
        let mut data = open(&session, &headers("data")).await;
        error.writer.finish().await.unwrap();
        data.writer.write(Bytes::from_static(GET)).await.unwrap();
        let answer = all(&mut data).await;
        assert!(answer.contains("200 OK") && answer.ends_with("a note\n"), "{answer}");
        data.writer.finish().await.unwrap();
        assert_eq!(all(&mut error).await, "");
    }
    let headers = |kind| [("streamType", kind), ("port", "81"), ("requestID", "4")];
    let mut error = open(&session, &headers("error")).await;
    let mut data = open(&session, &headers("data")).await;
    let text = all(&mut error).await;
    assert!(text.starts_with("error forwarding port 81 to pod ") && text.contains("refused"), "{text}");
    assert_eq!(all(&mut data).await, "");
    assert!(data.reader.is_broken());
    // A stream that is none of ours is not taken.
    let odd = [("streamType", "data"), ("port", "0")];
    assert!(session.open(odd.into_iter().collect()).await.is_err());
    drop(session);

    // The same inside a WebSocket.
    let mut request = served.forward(vec![]).await.replace("http://", "ws://").into_client_request().unwrap();
    let tunnel = "SPDY/3.1+portforward.k8s.io";
    request.headers_mut().insert("Sec-WebSocket-Protocol", tunnel.parse().unwrap());
    let (socket, response) = tokio_tungstenite::connect_async(request).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], tunnel);
    let (client, ours) = tokio::io::duplex(1 << 16);
    let (mut sink, mut source) = socket.split();
    let (mut read, mut write) = tokio::io::split(ours);
    let pump = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let inward = async {
            while let Some(Ok(Message::Binary(data))) = source.next().await {
                write.write_all(&data).await.unwrap();
            }
        };
        let outward = async {
            let mut buffer = vec![0; 4096];
            while let Ok(n @ 1..) = read.read(&mut buffer).await {
                sink.send(Message::binary(buffer[..n].to_vec())).await.unwrap();
            }
        };
        tokio::select! { () = inward => {}, () = outward => {} }
    });
    let idle = std::time::Duration::from_secs(600);
    let session = podway_spdy::Session::start(client, podway_spdy::Role::Client, idle);
    let headers = |kind| [("streamType", kind), ("port", "8080"), ("requestID", "0")];
    let _error = open(&session, &headers("error")).await;
    let mut data = open(&session, &headers("data")).await;
    data.writer.write(Bytes::from_static(GET)).await.unwrap();
    assert!(all(&mut data).await.ends_with("a note\n"));
    drop((data, session));
    pump.await.unwrap();
    served.end(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_in_the_channels_of_a_web_socket() {
    let Some(node) = node::node() else { return };
    let (mut served, id) = serve(&node, SERVER, |_| {}).await;
    listens(&mut served, &id).await;
    let url = served.forward(vec![8080, 81]).await;
    let mut request = url.replace("http://", "ws://").into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", "v4.channel.k8s.io".parse().unwrap());
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
    socket.send(Message::binary([&[0], GET].concat())).await.unwrap();
    let mut channels: [Vec<u8>; 4] = Default::default();
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(bytes) = message {
            channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
        }
    }
    // Each channel begins with its port, in little endian.
    assert!(channels[0].starts_with(&8080u16.to_le_bytes()) && channels[0].ends_with(b"a note\n"));
    assert_eq!((channels[1].as_slice(), channels[2].as_slice()), (&8080u16.to_le_bytes()[..], &b"Q\0"[..]));
    let refused = String::from_utf8_lossy(&channels[3]);
    assert!(refused.starts_with("Q\0error forwarding port 81"), "{refused}");
    let many = v1::PortForwardRequest { pod_sandbox_id: served.sandbox.clone(), port: vec![1; 6] };
    let refusal = served.runtime.cri.runtime.port_forward(many).await.unwrap_err();
    assert!(refusal.message().contains("not supported: more than 5 ports"), "{refusal:?}");
    served.end(&node).await;
}
