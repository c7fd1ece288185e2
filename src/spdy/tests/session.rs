//! Two ends of a session, and a hostile one.

use bytes::Bytes;
use podway_spdy::{Closed, Headers, Role, Session, Status};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const IDLE: Duration = Duration::from_secs(600);

fn pair() -> (Session, Session) {
    let (a, b) = tokio::io::duplex(4096);
    (Session::start(a, Role::Client, IDLE), Session::start(b, Role::Server, IDLE))
}

fn named(kind: &str) -> Headers {
    [("streamType", kind)].into_iter().collect()
}

#[tokio::test]
async fn streams_go_both_ways_and_end_by_themselves() {
    let (client, mut server) = pair();
    let echo = tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            let mut stream = incoming.accept().await.unwrap();
            tokio::spawn(async move {
                while let Some(data) = stream.reader.recv().await {
                    stream.writer.write(data).await.unwrap();
                }
                assert!(!stream.reader.is_broken());
                stream.writer.finish().await.unwrap();
            });
        }
    });
    let mut all = Vec::new();
    for n in 0..20u8 {
        let stream = client.open(named("data")).await.unwrap();
        assert_eq!(stream.id, u32::from(n) * 2 + 1);
        all.push(tokio::spawn(async move {
            let (mut reader, mut writer) = (stream.reader, stream.writer);
            let send = async {
                for _ in 0..10 {
                    writer.write(Bytes::from(vec![n; 50_000])).await.unwrap();
                }
                writer.finish().await.unwrap();
                assert_eq!(writer.write(Bytes::new()).await, Err(Closed));
            };
            let receive = async {
                let mut length = 0;
                while let Some(data) = reader.recv().await {
                    assert!(data.iter().all(|b| *b == n));
                    length += data.len();
                }
                length
            };
            let ((), length) = tokio::join!(send, receive);
            assert_eq!(length, 500_000);
        }));
    }
    for one in all {
        one.await.unwrap();
    }
    drop(client);
    echo.await.unwrap();
}

#[tokio::test]
async fn a_reset_ends_one_stream_and_the_end_of_the_connection_all() {
    let (client, mut server) = pair();
    let (a, b) =
        tokio::join!(client.open(named("a")), async { server.accept().await.unwrap().accept().await });
    let (mut a, mut b) = (a.unwrap(), b.unwrap());
    assert_eq!(b.headers.get("streamtype"), Some("a"));
    a.writer.write(Bytes::from_static(b"last words")).await.unwrap();
    a.writer.reset(Status::CANCEL).await;
    assert_eq!(b.reader.recv().await.unwrap(), "last words");
    assert_eq!(b.reader.recv().await, None);
    assert!(b.reader.is_broken());
    assert_eq!(b.writer.write(Bytes::new()).await, Err(Closed));

    let (c, d) =
        tokio::join!(client.open(named("c")), async { server.accept().await.unwrap().accept().await });
    let (_c, mut d) = (c.unwrap(), d.unwrap());
    let (refused, ()) = tokio::join!(client.open(named("no")), async {
        server.accept().await.unwrap().refuse(Status::REFUSED_STREAM).await;
    });
    assert_eq!(refused.map(|s| s.id), Err(Closed));
    drop(client);
    assert_eq!(d.reader.recv().await, None);
    assert!(d.reader.is_broken());
    assert!(server.accept().await.is_none());
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_its_writer_back() {
    let (client, mut server) = pair();
    let (a, b) =
        tokio::join!(client.open(named("a")), async { server.accept().await.unwrap().accept().await });
    let (a, mut b) = (a.unwrap(), b.unwrap());
    let writing = tokio::spawn(async move {
        let mut sent = 0usize;
        while sent < 10_000_000 && a.writer.write(Bytes::from(vec![0; 16_384])).await.is_ok() {
            sent += 16_384;
        }
        (a, sent)
    });
    // The queues and the pipe fill up; the writer is stuck long before its 10 MB, however long one waits.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(!writing.is_finished());
    let mut read = 0;
    while read < 10_000_000 {
        read += b.reader.recv().await.unwrap().len();
    }
    let (_a, sent) = writing.await.unwrap();
    assert!(sent >= read, "{sent} {read}");
}

#[tokio::test]
async fn a_hostile_peer_gets_resets_and_then_its_end() {
    let (mut raw, end) = tokio::io::duplex(1 << 16);
    let mut server = Session::start(end, Role::Server, IDLE);
    // An even stream is not a client's to open; a frame of another version ends the connection.
    let empty_block = {
        // An encoder of a session of its own gives the block.
        let (mut wire, io) = tokio::io::duplex(1 << 16);
        let client = Session::start(io, Role::Client, IDLE);
        let open = tokio::spawn(async move { client.open(Headers::default()).await.map(|s| s.id) });
        let mut head = [0; 18];
        wire.read_exact(&mut head).await.unwrap();
        let mut block = vec![0; usize::from(head[7]) - 10];
        wire.read_exact(&mut block).await.unwrap();
        drop(wire);
        assert_eq!(open.await.unwrap(), Err(Closed));
        block
    };
    let length = u8::try_from(10 + empty_block.len()).unwrap();
    let syn = [&[0x80, 3, 0, 1, 0, 0, 0, length, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0][..], &empty_block].concat();
    raw.write_all(&syn).await.unwrap();
    let mut answer = [0; 16];
    raw.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0, 1]);
    raw.write_all(&[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9]).await.unwrap();
    let mut pong = [0; 12];
    raw.read_exact(&mut pong).await.unwrap();
    assert_eq!(pong, [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9]);
    raw.write_all(&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9]).await.unwrap();
    assert!(server.accept().await.is_none());
    let error = server.finish(IDLE).await.unwrap_err();
    assert_eq!(error.to_string(), "a control frame has version 2, not 3");
}

#[tokio::test]
async fn a_connection_on_which_nothing_happens_ends() {
    let (a, b) = tokio::io::duplex(64);
    let mut server = Session::start(a, Role::Server, Duration::from_millis(20));
    assert!(server.accept().await.is_none());
    drop(b);
}
