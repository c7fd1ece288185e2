//! Attaching to containers under a real monitor and a real runc: fan-out, slow clients, terminals.
//!
//! Without runc (`PODWAY_RUNC`, `PATH`, `/tmp/kbin`), busybox or root the tests say so and end.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

#[path = "support/bundle.rs"]
mod bundle;

use bundle::{Bench, bench};
use podway_monitor::{Client, Event, Message, Reply, Request};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

/// Attaches; gives the input, if there is one, and the outputs that were asked for.
fn attach(
    client: &mut Client,
    id: &str,
    stdin: bool,
    stdout: bool,
    stderr: bool,
) -> (Option<File>, Vec<File>) {
    let (ours, theirs): (Vec<OwnedFd>, Vec<OwnedFd>) = [stdout, stderr]
        .into_iter()
        .filter(|wanted| *wanted)
        .map(|_| rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap())
        .unzip();
    let request = Request::Attach { id: id.to_owned(), stdin, stdout, stderr };
    let fds: Vec<_> = theirs.iter().map(|fd| fd.as_fd()).collect();
    let (reply, fds) = client.call_with_fds(&request, &fds).unwrap();
    assert_eq!(matches!(reply, Reply::Fd), !fds.is_empty());
    (fds.into_iter().next().map(File::from), ours.into_iter().map(File::from).collect())
}

fn text(mut file: &File) -> String {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn until(mut file: &File, wanted: &str) -> String {
    let mut all = String::new();
    let mut buffer = [0; 4096];
    while !all.ends_with(wanted) {
        match file.read(&mut buffer) {
            Ok(0) => panic!("{wanted:?} did not come in {} bytes", all.len()),
            Ok(n) => all.push_str(std::str::from_utf8(&buffer[..n]).unwrap()),
            Err(e) => panic!("{e}"),
        }
    }
    all
}

fn exit(client: &mut Client, id: &str) -> i32 {
    loop {
        let event = client.take_event().unwrap_or_else(|| match client.recv().unwrap().message {
            Message::Event(event) => event,
            other => panic!("not an event: {other:?}"),
        });
        if let Event::Exited { id: of, exit_code, .. } = event
            && of == id
        {
            return exit_code;
        }
    }
}

#[test]
fn output_goes_to_the_log_and_to_all_who_are_attached() {
    let Some(bench) = bench("fan") else { return };
    let Bench { mut client, .. } = bench.connect();
    let script = "cat; echo rest >&2; exit 3";
    let id = bench.start(&mut client, "fan", script, |create| create.stdin = true);
    let (input, mine) = attach(&mut client, &id, true, true, true);
    let (none, looking) = attach(&mut client, &id, false, true, false);
    assert!(none.is_none(), "who looks on has no input");
    let mut input = input.unwrap();
    input.write_all(b"one\n").unwrap();
    assert_eq!(until(&mine[0], "one\n"), "one\n");
    assert_eq!(until(&looking[0], "one\n"), "one\n");
    // Both ends of the input have to be closed: the client's own, and the monitor's.
    drop(input);
    client.call(&Request::CloseStdin { id: id.clone() }).unwrap();
    assert_eq!(exit(&mut client, &id), 3);
    assert_eq!(
        (text(&mine[0]), text(&mine[1]), text(&looking[0])),
        (String::new(), "rest\n".into(), String::new())
    );
    let log = bench.log("fan");
    assert!(log.contains("Z stdout F one\n") && log.contains("Z stderr F rest\n"), "{log}");
    let late = Request::Attach { id: id.clone(), stdin: false, stdout: false, stderr: false };
    assert!(client.call(&late).unwrap_err().to_string().contains("NotRunning"));
    bench.end(client, &[id]);
}

#[test]
fn a_client_that_only_looks_on_is_dropped_when_it_does_not_read() {
    let Some(bench) = bench("slow") else { return };
    let Bench { mut client, .. } = bench.connect();
    // 600 KB, of which a client that does not read gets a pipe's and a backlog's worth.
    let script = "busybox seq 1 100000; echo done; busybox sleep 1000";
    let id = bench.start(&mut client, "slow", &format!("read x; {script}"), |create| create.stdin = true);
    let (_, deaf) = attach(&mut client, &id, false, true, false);
    let (_, keen) = attach(&mut client, &id, false, true, false);
    let reader = std::thread::spawn(move || until(&keen[0], "done\n").len());
    let (input, _) = attach(&mut client, &id, true, false, false);
    input.unwrap().write_all(b"go\n").unwrap();
    assert!(reader.join().unwrap() > 580_000);
    // It was dropped: its stream ends while the container lives.
    let cut = text(&deaf[0]);
    assert!(cut.starts_with("1\n2\n") && !cut.contains("done") && cut.len() < 300_000, "{}", cut.len());
    client.call(&Request::Signal { id: id.clone(), signo: 9 }).unwrap();
    exit(&mut client, &id);
    assert_eq!(bench.log("slow").lines().count(), 100_001);
    bench.end(client, &[id]);
}

#[test]
fn who_has_the_input_is_waited_for_and_loses_nothing() {
    let Some(bench) = bench("hold") else { return };
    let Bench { mut client, .. } = bench.connect();
    let script = "read x; busybox seq 1 100000; echo done";
    let id = bench.start(&mut client, "hold", script, |create| create.stdin = true);
    let (input, output) = attach(&mut client, &id, true, true, false);
    let (_, other) = attach(&mut client, &id, false, true, false);
    let other = std::thread::spawn(move || text(&other[0]));
    input.unwrap().write_all(b"go\n").unwrap();
    // Nothing is read here until the container is stuck: it cannot end before.
    let stuck = bench.log_reaches("hold", 20_000);
    assert!(stuck < 1_000_000, "{stuck}");
    match client.call(&Request::List).unwrap() {
        Reply::List(all) => assert_eq!(all[0].state, podway_monitor::protocol::State::Running),
        reply => panic!("{reply:?}"),
    }
    let all = text(&output[0]);
    assert!(all.ends_with("100000\ndone\n") && all.len() > 580_000, "{}", all.len());
    assert_eq!(other.join().unwrap(), all);
    assert_eq!(exit(&mut client, &id), 0);
    assert_eq!(bench.log("hold").lines().count(), 100_001);
    bench.end(client, &[id]);
}

#[test]
fn a_terminal_is_one_stream_with_a_size() {
    let Some(bench) = bench("tty") else { return };
    let Bench { mut client, .. } = bench.connect();
    let script = "test -t 0 && test -t 1 && test -t 2 || exit 9; echo up; read x; busybox stty size; exit 4";
    let id = bench.start(&mut client, "tty", script, |create| {
        create.console_socket = Some(create.exit_file.with_file_name("tty.sock"));
    });
    let (master, output) = attach(&mut client, &id, true, true, false);
    let mut master = master.unwrap();
    let size = rustix::termios::Winsize { ws_col: 91, ws_row: 33, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&master, size).unwrap();
    // A terminal has no half to close: the client's leaving it does not end it.
    client.call(&Request::CloseStdin { id: id.clone() }).unwrap();
    master.write_all(b"go\n").unwrap();
    assert_eq!(exit(&mut client, &id), 4);
    // The echo of the input, which may come before what the script says first, and what it answered.
    let shown = text(&output[0]);
    assert!(shown.contains("go\r\n") && shown.ends_with("33 91\r\n"), "{shown:?}");
    let log = bench.log("tty");
    assert!(log.contains("Z stdout F up\r\n") && log.contains("Z stdout F 33 91\r\n"), "{log:?}");
    bench.end(client, &[id]);
}
