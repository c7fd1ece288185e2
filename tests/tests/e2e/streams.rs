//! exec, attach, run -it, port-forward and cp through an unmodified kubectl, over both of its protocols:
//! WebSocket, and SPDY as older ones speak it.

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use podway_tests::cluster::Answer;
use podway_tests::namespace::{BUSYBOX, LIMIT, Ns, pod};
use serde_json::{Value, json};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// Both kubectls: what is set in their environment.
const PROTOCOLS: [(&str, &str); 2] = [("WebSocket", "true"), ("SPDY", "false")];

/// A pod that repeats what it is told and serves a file.
pub fn talker(name: &str, spec: Value) -> Value {
    let script = "mkdir -p /srv; echo a note > /srv/note; busybox httpd -p 8080 -h /srv; \
        echo up; while read x; do echo got $x; done; exec sleep 3600";
    let mut pod = pod(name, script, spec);
    pod["spec"]["containers"][0]["stdin"] = json!(true);
    pod
}

pub async fn over_both_protocols(ns: Ns) -> anyhow::Result<()> {
    let _: Pod = ns.create(talker("talks", json!({}))).await?;
    ns.ready("talks").await?;
    ns.until_log("talks", "main", "up").await?;
    for (protocol, value) in PROTOCOLS {
        into(&ns, "talks", value).await.context(protocol)?;
        with_a_terminal(&ns, value).await.context(protocol)?;
        copied(&ns, value).await.context(protocol)?;
    }
    Ok(())
}

/// exec, attach and port-forward into a [`talker`].
pub async fn into(ns: &Ns, pod: &str, web_sockets: &str) -> anyhow::Result<()> {
    let data = "a line\n".repeat(10_000);
    let answer = kubectl(ns, web_sockets, &["exec", "-i", pod, "--", "cat"], &data).await?;
    ensure!(answer.code == 0 && answer.out == data, "exec -i: {} bytes, {}", answer.out.len(), answer.err);
    let script = ["exec", pod, "--", "sh", "-c", "echo out; echo err >&2; exit 7"];
    let answer = kubectl(ns, web_sockets, &script, "").await?;
    ensure!((answer.code, answer.out.as_str()) == (7, "out\n"), "exec: {answer:?}");
    ensure!(answer.err.starts_with("err\n"), "exec: {answer:?}");

    // The pod goes on after each client, so the second protocol finds it as the first did.
    let mut attached = spawn(ns, web_sockets, &["attach", "-i", pod])?;
    let mut input = attached.stdin.take().context("stdin")?;
    let mut lines = BufReader::new(attached.stdout.take().context("stdout")?).lines();
    input.write_all(b"hello\n").await?;
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await.context("attach answers nothing")??;
    ensure!(line.as_deref() == Some("got hello"), "attach: {line:?}");
    drop(input);
    let status = tokio::time::timeout(LIMIT, attached.wait()).await.context("attach does not end")??;
    ensure!(status.success(), "attach: {status}");

    let mut forward = spawn(ns, web_sockets, &["port-forward", pod, ":8080"])?;
    let mut lines = BufReader::new(forward.stdout.take().context("stdout")?).lines();
    let line =
        tokio::time::timeout(LIMIT, lines.next_line()).await.context("port-forward says nothing")??;
    let line = line.context("port-forward ended")?;
    let address =
        line.strip_prefix("Forwarding from ").and_then(|l| l.split_once(" -> ")).context(line.clone())?.0;
    for _ in 0..3 {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /note HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer)).await.context("no answer")??;
        ensure!(answer.contains("200 OK") && answer.ends_with("a note\n"), "port-forward: {answer:?}");
    }
    forward.kill().await?;
    Ok(())
}

/// `exec -it` and `run -it --rm`, on the terminal that script(1) gives them.
async fn with_a_terminal(ns: &Ns, web_sockets: &str) -> anyhow::Result<()> {
    let exec = "exec -it talks -- sh -c 'test -t 0 && test -t 1 && read x && echo read $x && exit 5'";
    let answer = on_a_terminal(ns, web_sockets, exec, "word\n").await?;
    ensure!(answer.code == 5 && answer.out.contains("read word"), "exec -it: {answer:?}");
    let overrides = r#"{"spec":{"schedulerName":"podway","terminationGracePeriodSeconds":1}}"#;
    let run = format!(
        "run once -it --rm --restart=Never --image={BUSYBOX} --overrides='{overrides}' -- \
         sh -c 'test -t 0 && read x && echo read $x && exit 6'"
    );
    let answer = on_a_terminal(ns, web_sockets, &run, "word\n").await?;
    ensure!(answer.code == 6 && answer.out.contains("read word"), "run -it --rm: {answer:?}");
    ensure!(answer.out.contains("deleted"), "run -it --rm: {answer:?}");
    Ok(())
}

async fn copied(ns: &Ns, web_sockets: &str) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    let data: Vec<u8> = (0u32..100_000).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&there, &data)?;
    let (there, back) = (there.display().to_string(), back.display().to_string());
    for (from, to) in [(there.as_str(), "talks:/tmp/file"), ("talks:/tmp/file", back.as_str())] {
        let answer = kubectl(ns, web_sockets, &["cp", from, to], "").await?;
        ensure!(answer.code == 0, "cp {from} {to}: {answer:?}");
    }
    ensure!(std::fs::read(&back)? == data, "what comes back is not what went");
    Ok(())
}

fn command(ns: &Ns, program: &str, web_sockets: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env("KUBECONFIG", ns.cluster.layout.admin_kubeconfig())
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", web_sockets)
        .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", web_sockets);
    command
}

async fn kubectl(ns: &Ns, web_sockets: &str, args: &[&str], stdin: &str) -> anyhow::Result<Answer> {
    let mut command = command(ns, &ns.cluster.kubectl.display().to_string(), web_sockets);
    command.args(["-n", &ns.name]).args(args);
    podway_tests::cluster::run(&mut command, stdin, LIMIT).await
}

fn spawn(ns: &Ns, web_sockets: &str, args: &[&str]) -> anyhow::Result<Child> {
    let mut command = command(ns, &ns.cluster.kubectl.display().to_string(), web_sockets);
    command.args(["-n", &ns.name]).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn().context("starting kubectl")
}

/// script(1) runs a command on a terminal of its own, and passes on what is typed and its exit code.
async fn on_a_terminal(ns: &Ns, web_sockets: &str, args: &str, typed: &str) -> anyhow::Result<Answer> {
    let line = format!("{} -n {} {args}", ns.cluster.kubectl.display(), ns.name);
    let mut command = command(ns, "script", web_sockets);
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    podway_tests::cluster::run(&mut command, typed, LIMIT).await
}
