//! A client of the streaming server over SPDY, as kubelets and old kubectls are.

use bytes::Bytes;
use podway_spdy::{Headers, Role, Session, Stream};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long what must come may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Upgrades to SPDY with a protocol; the status and the head of another answer.
pub async fn upgrade(url: &str, protocol: &str) -> Result<Session, (u16, String)> {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).await.unwrap();
    let request = format!(
        "POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: {protocol}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let status: u16 = head[9..12].parse().unwrap();
    if status != 101 {
        return Err((status, head));
    }
    assert!(head.contains("upgrade: spdy/3.1") && head.contains(&format!("version: {protocol}")), "{head}");
    Ok(Session::start(stream, Role::Client, Duration::from_secs(600)))
}

pub async fn open(session: &Session, headers: &[(&str, &str)]) -> Stream {
    session.open(headers.iter().copied().collect::<Headers>()).await.unwrap()
}

/// What comes on a stream until its end.
pub async fn all(stream: &mut Stream) -> String {
    let mut bytes = Vec::new();
    while let Some(data) = stream.reader.recv().await {
        bytes.extend_from_slice(&data);
    }
    String::from_utf8(bytes).unwrap()
}

/// What comes on a stream until it ends with `end`.
pub async fn until(stream: &mut Stream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let data = tokio::time::timeout(LIMIT, stream.reader.recv()).await;
        let data = data.ok().flatten().unwrap_or_else(|| panic!("no {end:?} after {text:?}"));
        text.push_str(std::str::from_utf8(&data).unwrap());
    }
    text
}

/// The streams of a command.
pub struct Command {
    /// The connection lasts as long as this.
    _session: Session,
    pub error: Stream,
    pub stdin: Option<Stream>,
    pub stdout: Stream,
    pub stderr: Option<Stream>,
    pub resize: Option<Stream>,
}

impl Command {
    pub async fn start(url: &str, stdin: bool, tty: bool) -> Command {
        let session = upgrade(url, "v4.channel.k8s.io").await.unwrap();
        let kind = async |kind| open(&session, &[("streamType", kind)]).await;
        let error = kind("error").await;
        let stdin = if stdin { Some(kind("stdin").await) } else { None };
        let stdout = kind("stdout").await;
        let stderr = if tty { None } else { Some(kind("stderr").await) };
        let resize = if tty { Some(kind("resize").await) } else { None };
        Command { _session: session, error, stdin, stdout, stderr, resize }
    }

    pub async fn say(&self, text: &str) {
        let data = Bytes::copy_from_slice(text.as_bytes());
        self.stdin.as_ref().unwrap().writer.write(data).await.unwrap();
    }

    /// The client's input ends.
    pub async fn hush(&mut self) {
        self.stdin.as_mut().unwrap().writer.finish().await.unwrap();
    }

    /// What is left of both outputs, and the status.
    pub async fn end(mut self) -> (String, String, String) {
        let out = all(&mut self.stdout).await;
        let err = match &mut self.stderr {
            Some(stream) => all(stream).await,
            None => String::new(),
        };
        (out, err, all(&mut self.error).await)
    }
}
