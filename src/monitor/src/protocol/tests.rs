use super::*;

fn requests() -> Vec<Request> {
    let id = || "c1".to_owned();
    vec![
        Request::Hello { version: 7 },
        Request::Create(Box::new(Create {
            id: id(),
            runc: "/r".into(),
            log_path: Some("/log".into()),
            stdin: true,
            console_socket: Some("/s".into()),
            extra_args: vec!["--no-pivot".into()],
            ..Create::default()
        })),
        Request::Start { id: id() },
        Request::Signal { id: id(), signo: 15 },
        Request::Delete { id: id() },
        Request::Exec {
            id: id(),
            exec_id: "e".into(),
            process_json_path: "/p".into(),
            timeout_ms: 5,
            capture_limit: 9,
        },
        Request::ExecIo {
            id: id(),
            exec_id: "e".into(),
            process_json_path: "/p".into(),
            console_socket: Some("/c".into()),
        },
        Request::SignalExec { exec_id: "e".into(), signo: 9 },
        Request::ReopenLog { id: id() },
        Request::Attach { id: id(), stdin: true, stdout: false, stderr: true },
        Request::CloseStdin { id: id() },
        Request::List,
        Request::Shutdown,
    ]
}

#[test]
fn a_request_is_read_as_it_was_written_and_never_when_cut() {
    for request in requests() {
        let packet = request.encode(42).unwrap();
        assert_eq!(Request::decode(&packet).unwrap(), (42, request));
        for cut in 0..packet.len() {
            assert!(Request::decode(&packet[..cut]).is_err());
        }
    }
}

#[test]
fn a_message_is_read_as_it_was_written() {
    let replies = [
        Reply::Ok,
        Reply::Hello { version: 1, pid: 2 },
        Reply::Created { pid: 3, micros: 4, argv: vec!["runc".into(), "create".into()] },
        Reply::Started { micros: 5 },
        Reply::ExecDone { exit_code: -1, timed_out: true, stdout: vec![0, 255], stderr: vec![] },
        Reply::ExecStarted { pid: 6 },
        Reply::List(vec![ListedContainer {
            id: "c".into(),
            pid: 1,
            state: State::Exited,
            exit_code: 137,
            oom_killed: true,
            finished_at_ns: u64::MAX,
        }]),
        Reply::Fd,
        Reply::Error { code: ErrorCode::NotSupported, message: "not supported: tty".into() },
        Reply::ExecDoneInFds { exit_code: 0, timed_out: false },
    ];
    let events = [
        Event::Exited { id: "c".into(), exit_code: 1, oom_killed: false, finished_at_ns: 2 },
        Event::ExecExited { exec_id: "e".into(), exit_code: 1 },
    ];
    let messages =
        replies.map(|reply| Message::Reply { id: 9, reply }).into_iter().chain(events.map(Message::Event));
    for message in messages {
        assert_eq!(Message::decode(&message.encode().unwrap()).unwrap(), message);
    }
}

#[test]
fn a_lying_length_is_refused() {
    let mut packet = Request::List.encode(1).unwrap();
    packet.push(0);
    assert_eq!(Request::decode(&packet), Err(DecodeError::Length));
    packet[0] += 1;
    assert_eq!(Request::decode(&packet), Err(DecodeError::Trailing));
}
