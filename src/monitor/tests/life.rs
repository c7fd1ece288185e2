//! One container's life under a real monitor and a real runc.
//!
//! runc is sought in `PODWAY_RUNC`, `PATH` and `/tmp/kbin`; without it (or busybox, or root) the
//! test says so and ends.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

#[path = "support/runc.rs"]
mod runc;

use std::os::fd::AsFd as _;
use std::path::Path;

use podway_monitor::{Client, ClientError, Create, ErrorCode, Event, ExitRecord, Message, Reply, Request};
use runc::runc;

fn process(args: &[&str]) -> String {
    let args: Vec<String> = args.iter().map(|a| format!("{a:?}")).collect();
    format!(
        r#"{{"terminal":false,"user":{{"uid":0,"gid":0}},"args":[{}],"env":["PATH=/bin"],"cwd":"/"}}"#,
        args.join(",")
    )
}

fn bundle(dir: &Path, id: &str, script: &str) {
    let bin = dir.join("rootfs/bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::create_dir_all(dir.join("rootfs/proc")).unwrap();
    std::fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", bin.join("sh")).unwrap();
    let config = format!(
        r#"{{"ociVersion":"1.2.0","root":{{"path":"rootfs"}},"process":{},
        "mounts":[{{"destination":"/proc","type":"proc","source":"proc"}}],
        "linux":{{"cgroupsPath":"/podway-test/{id}","namespaces":[{{"type":"pid"}},{{"type":"mount"}},{{"type":"ipc"}},{{"type":"uts"}}]}}}}"#,
        process(&["/bin/sh", "-c", script])
    );
    std::fs::write(dir.join("config.json"), config).unwrap();
}

fn exited(client: &mut Client) -> Event {
    client.take_event().unwrap_or_else(|| match client.recv().unwrap().message {
        Message::Event(event) => event,
        other => panic!("not an event: {other:?}"),
    })
}

#[test]
fn a_container_lives_is_asked_and_dies_on_record() {
    let root = rustix::process::geteuid().is_root();
    let (Some(runc), true, true) = (runc(), Path::new("/bin/busybox").exists(), root) else {
        println!("skipped: needs root, /bin/busybox and runc (PODWAY_RUNC, PATH or /tmp/kbin)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let binary = Path::new(env!("CARGO_BIN_EXE_podway-monitor"));
    let pid = podway_monitor::spawn(binary, &at("m.sock"), &at("state")).unwrap();
    let mut client = Client::connect(&at("m.sock")).unwrap();
    assert_eq!(client.monitor_pid(), pid);

    let id = format!("life-{pid}");
    let script = "echo out; echo err >&2; echo -n tail; trap 'exit 7' TERM; while :; do sleep 1; done";
    bundle(&at("b"), &id, script);
    let create = Create {
        id: id.clone(),
        runc,
        runc_root: at("runc"),
        runc_log: at("runc.log"),
        bundle: at("b"),
        log_path: Some(at("c.log")),
        exit_file: at("exit"),
        memory_cgroup: Some(format!("/sys/fs/cgroup/memory/podway-test/{id}").into()),
        ..Create::default()
    };
    // A container that cannot be made is told in runc's words and leaves nothing behind.
    let bad = Create { id: "bad".into(), bundle: at("none"), ..create.clone() };
    match client.call(&Request::Create(Box::new(bad))) {
        Err(ClientError::Refused { code: ErrorCode::Runc, message }) => {
            assert!(message.contains("config.json") || message.contains("no such file"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    let Reply::Created { pid: init, micros, argv } =
        client.call(&Request::Create(Box::new(create.clone()))).unwrap()
    else {
        panic!("not created")
    };
    // Asked again by a runtime that had not heard: the same one.
    match client.call(&Request::Create(Box::new(create))).unwrap() {
        Reply::Created { pid, .. } => assert_eq!(pid, init),
        other => panic!("{other:?}"),
    }
    assert!(init > 1 && micros > 0 && argv.contains(&"create".to_owned()));
    client.call(&Request::Start { id: id.clone() }).unwrap();

    // Exec: both outputs, the code, a large output through memfds, a timeout.
    let mut n = 0;
    let mut exec = |client: &mut Client, script: &str, timeout_ms| {
        n += 1;
        std::fs::write(at("p.json"), process(&["/bin/sh", "-c", script])).unwrap();
        client
            .call(&Request::Exec {
                id: id.clone(),
                exec_id: format!("e{n}"),
                process_json_path: at("p.json"),
                timeout_ms,
                capture_limit: 1 << 20,
            })
            .unwrap()
    };
    let done = exec(&mut client, "echo a; echo b >&2; exit 3", 0);
    let expected =
        Reply::ExecDone { exit_code: 3, timed_out: false, stdout: b"a\n".to_vec(), stderr: b"b\n".to_vec() };
    assert_eq!(done, expected);
    match exec(&mut client, "busybox head -c 3000000 /dev/zero", 0) {
        Reply::ExecDone { exit_code: 0, stdout, .. } => assert_eq!(stdout.len(), 1 << 20),
        other => panic!("{other:?}"),
    }
    // Both streams together are kept up to the limit, the rest is dropped and stops nobody.
    match exec(&mut client, "busybox head -c 900000 /dev/zero; busybox head -c 900000 /dev/zero >&2", 0) {
        Reply::ExecDone { exit_code: 0, stdout, stderr, .. } => {
            assert_eq!(stdout.len() + stderr.len(), 1 << 20)
        }
        other => panic!("{other:?}"),
    }
    // At the time limit its whole process group dies, a child in the background too.
    let child = match exec(&mut client, "busybox sleep 1000 & echo $!; wait", 300) {
        Reply::ExecDone { exit_code: 137, timed_out: true, stdout, .. } => String::from_utf8(stdout).unwrap(),
        other => panic!("{other:?}"),
    };
    let gone = format!("while busybox grep -q '^State:.[^Z]' /proc/{}/status; do :; done", child.trim());
    match exec(&mut client, &gone, 20_000) {
        Reply::ExecDone { timed_out: false, .. } => {}
        other => panic!("process {child} lives: {other:?}"),
    }
    // Streaming exec on our own descriptors.
    std::fs::write(at("p.json"), process(&["/bin/sh", "-c", "busybox cat; exit 5"])).unwrap();
    std::fs::write(at("in"), "through").unwrap();
    let input = std::fs::File::open(at("in")).unwrap();
    let output = std::fs::File::create(at("out")).unwrap();
    let io = Request::ExecIo {
        id: id.clone(),
        exec_id: "io".into(),
        process_json_path: at("p.json"),
        console_socket: None,
    };
    client.call_with_fds(&io, &[input.as_fd(), output.as_fd(), output.as_fd()]).unwrap();
    assert_eq!(exited(&mut client), Event::ExecExited { exec_id: "io".into(), exit_code: 5 });
    assert_eq!(std::fs::read_to_string(at("out")).unwrap(), "through");

    // A second client (a restarted runtime) sees the living; a live pod is not shut down.
    drop(client);
    let mut client = Client::connect(&at("m.sock")).unwrap();
    match client.call(&Request::List).unwrap() {
        Reply::List(all) => assert_eq!((all[0].pid, all.len()), (init, 1)),
        other => panic!("{other:?}"),
    }
    assert!(client.call(&Request::Shutdown).is_err());

    client.call(&Request::Signal { id: id.clone(), signo: 15 }).unwrap();
    let Event::Exited { exit_code: 7, oom_killed: false, .. } = exited(&mut client) else {
        panic!("not exited with 7")
    };
    assert_eq!(ExitRecord::read(&at("exit")).unwrap().exit_code, 7);
    let log = std::fs::read_to_string(at("c.log")).unwrap();
    let has = |tail: &str| log.lines().any(|l| l.ends_with(tail));
    assert!(has("Z stdout F out") && has("Z stderr F err") && has("Z stdout P tail"), "{log}");

    client.call(&Request::Delete { id }).unwrap();
    client.call(&Request::Shutdown).unwrap();
    // runc removes the container's own cgroup, not the parent that it made.
    for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let parent = controller.path().join("podway-test");
        if parent.exists() {
            std::fs::remove_dir(parent).unwrap();
        }
    }
}
