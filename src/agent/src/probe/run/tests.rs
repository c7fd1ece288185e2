use super::*;
use crate::probe::spec::HttpGet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Commands end with the code that is their first word; `hang` does not end in time.
struct Commands;

#[async_trait]
impl Exec for Commands {
    async fn exec(&self, _: &str, command: &[String], _: Option<Duration>) -> Result<Ran, CallError> {
        let error = |code| Err(CallError { code, message: "no such container".into() });
        match command[0].parse() {
            Ok(code) => Ok(Ran { code, output: "words".into() }),
            Err(_) if command[0] == "hang" => error(Code::DeadlineExceeded),
            Err(_) => error(Code::NotFound),
        }
    }
}

fn target() -> Target {
    Target { id: "i".into(), name: "c".into(), address: "127.0.0.1".into() }
}

fn probe(handler: Handler) -> Probe {
    Probe {
        handler: Ok(handler),
        delay: Duration::ZERO,
        period: Duration::from_secs(10),
        timeout: Duration::from_secs(1),
        success: 1,
        failure: 3,
        grace: None,
    }
}

fn exec(command: &str) -> Handler {
    Handler::Exec(vec![command.to_owned(), "-x".to_owned()])
}

fn http(port: u16, tls: bool) -> Handler {
    Handler::Http(HttpGet { tls, host: None, port, path: "/".into(), headers: vec![] })
}

/// Answers every request with `status`; one of 0 is never answered.
async fn server(status: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            if status > 0 {
                let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nhi");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
            open.push(stream);
        }
    });
    port
}

async fn closed() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn commands_count_by_their_exit_code() {
    for (command, expected) in [
        ("0", Answer::Good),
        ("1", Answer::Bad("words".into())),
        ("hang", Answer::Bad("command timed out: \"hang -x\" timed out after 1s".into())),
        ("lost", Answer::Error("no such container".into())),
    ] {
        assert_eq!(ask(&Commands, &target(), &probe(exec(command))).await, expected, "{command}");
    }
}

#[tokio::test]
async fn http_counts_by_its_status() {
    for (status, expected) in [
        (200, Answer::Good),
        (399, Answer::Warning("Probe terminated redirects, Response body: hi".into())),
        (404, Answer::Bad("HTTP probe failed with statuscode: 404".into())),
    ] {
        let port = server(status).await;
        assert_eq!(ask(&Commands, &target(), &probe(http(port, false))).await, expected, "{status}");
    }
    let port = server(0).await;
    let mut slow = probe(http(port, false));
    slow.timeout = Duration::from_millis(50);
    let Answer::Bad(why) = ask(&Commands, &target(), &slow).await else { unreachable!("it hangs") };
    assert!(why.ends_with("(Client.Timeout exceeded while awaiting headers)"), "{why}");
}

#[tokio::test]
async fn tcp_and_grpc_count_by_who_answers() {
    let tcp = |port| probe(Handler::Tcp { host: None, port });
    assert_eq!(ask(&Commands, &target(), &tcp(server(200).await)).await, Answer::Good);
    let port = closed().await;
    let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
    assert_eq!(ask(&Commands, &target(), &tcp(port)).await, Answer::Bad(refused));
    let grpc = probe(Handler::Grpc { port, service: String::new() });
    let Answer::Bad(why) = ask(&Commands, &target(), &grpc).await else { unreachable!("nobody is there") };
    assert!(why.starts_with(&format!("timeout: failed to connect service \"127.0.0.1:{port}\"")), "{why}");
}

#[tokio::test]
async fn hooks_work_or_tell_why_not() {
    let hook = async |handler| super::hook(&Commands, &target(), &handler).await;
    assert_eq!(hook(Ok(exec("0"))).await, Ok(None));
    assert_eq!(hook(Ok(Handler::Sleep(Duration::ZERO))).await, Ok(None));
    assert_eq!(
        hook(Ok(exec("3"))).await.unwrap_err(),
        "Exec lifecycle hook ([\"3\", \"-x\"]) for Container \"c\" failed - error: command '3 -x' exited with 3: words, message: \"words\""
    );
    assert_eq!(hook(Ok(http(server(500).await, false))).await, Ok(None), "any answer will do");
    let word = hook(Ok(http(server(200).await, true))).await.unwrap();
    assert!(word.unwrap().contains("retry with HTTP"), "plain HTTP behind HTTPS");
    assert!(hook(Ok(http(closed().await, false))).await.is_err());
    assert!(hook(Err("no port".into())).await.is_err());
}
