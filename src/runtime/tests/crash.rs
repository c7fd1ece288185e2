//! `kill -9` of the runtime, of a monitor, and of both, on the real kernel: nothing is lost that
//! lives, nothing is started twice, and what is removed afterwards leaves nothing.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

#[path = "support/cri.rs"]
mod cri;
#[path = "support/node.rs"]
mod node;
#[path = "support/process.rs"]
mod process;

use cri::Cri;
use node::Node;
use podway_cri::v1;
use podway_runtime::cgroup::Cgroups;
use podway_runtime::cgroup::home::Home;
use process::Process;
use std::time::{Duration, Instant};

/// Not a test of its own: see [`process::run`].
#[tokio::test(flavor = "multi_thread")]
async fn runtime_process() {
    process::run().await;
}

/// The living processes whose command line is exactly `command`.
fn processes(command: &str) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|e| {
        let pid = e.file_name().to_string_lossy().parse::<u32>().ok()?;
        let text = String::from_utf8(std::fs::read(e.path().join("cmdline")).ok()?).ok()?;
        (text.trim_end_matches('\0').replace('\0', " ") == command).then_some(pid)
    })
    .collect()
}

/// A pod up to its running container, each call repeated as an agent does after a lost answer.
async fn bring_up(
    cri: &mut Cri,
    node: &Node,
    name: &str,
    command: &str,
) -> Result<(String, String), tonic::Status> {
    let pod = node.sandbox(name, 0);
    let (sandbox, _) = cri.run_sandbox(pod.clone()).await?;
    let all =
        cri.runtime.list_containers(v1::ListContainersRequest::default()).await?.into_inner().containers;
    let known = all.into_iter().find(|c| c.pod_sandbox_id == sandbox);
    let id = match known {
        Some(c) => c.id,
        None => cri.create(&sandbox, node.container("app", command), pod).await?.0,
    };
    cri.start(&id).await?;
    Ok((sandbox, id))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_killed_at_any_moment_of_a_start_leaks_nothing_and_starts_nothing_twice() {
    let Some(node) = node::node() else { return };
    // How long a start takes here, so that the kills fall all over it.
    let mut process = Process::start(&node);
    let mut cri = process.connect(&node).await;
    let began = Instant::now();
    let (sandbox, _) = bring_up(&mut cri, &node, "probe", "exec sleep 7000").await.unwrap();
    let whole = began.elapsed();
    cri.remove_pod(&sandbox).await;
    const KILLS: u32 = 24;
    for n in 0..KILLS {
        let (name, seconds) = (format!("p{n}"), 7001 + n);
        let script = format!("exec sleep {seconds}");
        let calls = {
            let (mut cri, script, name) = (cri.clone(), script.clone(), name.clone());
            let pod = node.sandbox(&name, 0);
            let container = node.container("app", &script);
            tokio::spawn(async move {
                let (sandbox, _) = cri.run_sandbox(pod.clone()).await?;
                let (id, _) = cri.create(&sandbox, container, pod).await?;
                cri.start(&id).await
            })
        };
        tokio::time::sleep(whole * n / KILLS).await;
        drop(process);
        let answered = calls.await.unwrap().is_ok();
        process = Process::start(&node);
        cri = process.connect(&node).await;
        let (sandbox, id) = bring_up(&mut cri, &node, &name, &script).await.unwrap();
        // The shell execs a moment after runc start.
        let command = format!("sleep {seconds}");
        let deadline = Instant::now() + Duration::from_secs(10);
        while processes(&command).is_empty() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let running = processes(&command);
        assert_eq!(running.len(), 1, "kill {n} (answered: {answered}): {running:?}");
        assert_eq!(cri.status(&id).await.state, v1::ContainerState::ContainerRunning as i32);
        let all = cri.runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await.unwrap();
        assert_eq!(all.into_inner().items.len(), 1, "kill {n}");
        cri.remove_pod(&sandbox).await;
        assert_eq!(node.leftovers(), Vec::<String>::new(), "kill {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_killed_at_any_moment_of_a_removal_finishes_it() {
    let Some(node) = node::node() else { return };
    let mut process = Process::start(&node);
    let mut cri = process.connect(&node).await;
    for n in 0..12 {
        let (sandbox, _) = bring_up(&mut cri, &node, &format!("r{n}"), "exec sleep 7100").await.unwrap();
        let mut calls = cri.clone();
        let doomed = sandbox.clone();
        let removal = tokio::spawn(async move {
            let stop = v1::StopPodSandboxRequest { pod_sandbox_id: doomed.clone() };
            calls.runtime.stop_pod_sandbox(stop).await?;
            calls.runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: doomed }).await
        });
        tokio::time::sleep(Duration::from_millis(8 * n)).await;
        drop(process);
        drop(removal.await);
        process = Process::start(&node);
        cri = process.connect(&node).await;
        cri.remove_pod(&sandbox).await;
        assert_eq!(node.leftovers(), Vec::<String>::new(), "kill {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_its_log_and_its_exit_code_survive_the_runtime() {
    let Some(node) = node::node() else { return };
    let mut process = Process::start(&node);
    let mut cri = process.connect(&node).await;
    let script = "echo one; read x < /tmp/go; echo two; exit 9";
    let script = format!("busybox mkfifo /tmp/go; {script}");
    let (sandbox, id) = bring_up(&mut cri, &node, "survivor", &script).await.unwrap();
    // It ends while no runtime runs: killed between the two lines of its log.
    let status = cri.status(&id).await;
    let release = cri.exec(&id, &["sh", "-c", "(sleep 1; echo > /tmp/go) > /dev/null 2>&1 &"]).await.unwrap();
    assert_eq!(release.exit_code, 0);
    drop(process);
    let log = || std::fs::read_to_string(&status.log_path).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !log().contains("two") {
        assert!(Instant::now() < deadline, "{}", log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut process = Process::start(&node);
    let mut cri = process.connect(&node).await;
    let status = cri.exited(&id).await;
    assert_eq!((status.exit_code, log().lines().count()), (9, 2), "{}", log());
    cri.remove_pod(&sandbox).await;
    assert_eq!(node.leftovers(), Vec::<String>::new());
}

/// What was created and not started has no process: neither a runtime nor a monitor can take it along.
#[tokio::test(flavor = "multi_thread")]
async fn a_created_container_is_started_once_whoever_died_since() {
    let Some(node) = node::node() else { return };
    for (n, monitor_too) in [false, true].into_iter().enumerate() {
        let mut process = Process::start(&node);
        let mut cri = process.connect(&node).await;
        let pod = node.sandbox(&format!("c{n}"), 0);
        let (sandbox, _) = cri.run_sandbox(pod.clone()).await.unwrap();
        let command = format!("sleep {}", 7200 + n);
        let app = node.container("app", &format!("exec {command}"));
        let (id, _) = cri.create(&sandbox, app.clone(), pod.clone()).await.unwrap();
        drop(process);
        if monitor_too {
            let [monitor] = node.monitors()[..] else { unreachable!("one monitor") };
            node::kill(monitor);
        }
        process = Process::start(&node);
        cri = process.connect(&node).await;
        assert_eq!(cri.status(&id).await.state, v1::ContainerState::ContainerCreated as i32);
        assert_eq!(cri.create(&sandbox, app, pod).await.unwrap().0, id, "found");
        cri.start(&id).await.unwrap();
        cri.start(&id).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while processes(&command).is_empty() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(processes(&command).len(), 1);
        cri.remove_pod(&sandbox).await;
        assert_eq!(node.leftovers(), Vec::<String>::new());
    }
}

/// Its monitor made the exit durable and died before the runtime, which sleeps or is dead, heard of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_durable_exit_code_outlives_the_monitor_that_nobody_heard() {
    let Some(node) = node::node() else { return };
    for dead in [false, true] {
        let mut process = Process::start(&node);
        let mut cri = process.connect(&node).await;
        let script = "busybox mkfifo /go; read x < /go; exit 9";
        let (sandbox, id) = bring_up(&mut cri, &node, &format!("durable{dead}"), script).await.unwrap();
        let ready = ["sh", "-c", "until test -p /go; do sleep 0.02; done"];
        assert_eq!(cri.exec(&id, &ready).await.unwrap().exit_code, 0);
        let [monitor] = node.monitors()[..] else { unreachable!("one monitor") };
        let runtime = nix::unistd::Pid::from_raw(i32::try_from(process.pid()).unwrap());
        nix::sys::signal::kill(runtime, nix::sys::signal::Signal::SIGSTOP).unwrap();
        // In the container's own mount: the overlay's pipe is not the one that lies in its upper directory.
        let state = std::fs::read(node.at("state/runc").join(&id).join("state.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
        std::fs::write(format!("/proc/{}/root/go", state["init_process_pid"]), "\n").unwrap();
        let record = node.at("root/containers").join(&id).join("exit");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !record.exists() {
            assert!(Instant::now() < deadline, "no exit record");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        node::kill(monitor);
        if dead {
            drop(process);
            process = Process::start(&node);
            cri = process.connect(&node).await;
        } else {
            nix::sys::signal::kill(runtime, nix::sys::signal::Signal::SIGCONT).unwrap();
        }
        let status = cri.exited(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (9, "Error"), "dead: {dead}");
        cri.remove_pod(&sandbox).await;
        assert_eq!(node.leftovers(), Vec::<String>::new(), "dead: {dead}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_monitor_is_not_a_dead_container() {
    let Some(node) = node::node() else { return };
    for both in [false, true] {
        let mut process = Process::start(&node);
        let mut cri = process.connect(&node).await;
        let name = format!("lost{both}");
        let script = "trap 'exit 6' TERM; while :; do sleep 1 & wait $!; done";
        let (sandbox, id) = bring_up(&mut cri, &node, &name, script).await.unwrap();
        if both {
            drop(process);
        }
        let [monitor] = node.monitors()[..] else { unreachable!("one monitor") };
        node::kill(monitor);
        if both {
            process = Process::start(&node);
            cri = process.connect(&node).await;
        }
        assert_eq!(cri.status(&id).await.state, v1::ContainerState::ContainerRunning as i32);
        // A new container of the pod gets a new monitor; the old one is stopped without any.
        let pod = node.sandbox(&name, 0);
        let (second, _) = cri.create(&sandbox, node.container("second", "sleep 1000"), pod).await.unwrap();
        cri.start(&second).await.unwrap();
        assert_eq!(node.monitors().len(), 1);
        assert_eq!(cri.status(&id).await.state, v1::ContainerState::ContainerRunning as i32);
        cri.stop(&id, 10).await;
        let status = cri.exited(&id).await;
        // 6 where the kernel tells who is not the parent (Linux 6.15), else unknown.
        assert!([6, 255].contains(&status.exit_code), "{}", status.exit_code);
        assert_eq!(cri.status(&second).await.state, v1::ContainerState::ContainerRunning as i32);
        // The second's monitor dies as well: it is killed and removed without one.
        let [monitor] = node.monitors()[..] else { unreachable!("one monitor") };
        node::kill(monitor);
        cri.remove(&second).await;
        cri.remove_pod(&sandbox).await;
        assert_eq!(node.leftovers(), Vec::<String>::new(), "both: {both}");
    }
}

/// As runc ends a container that shares the host's PID namespace: all that are in its cgroup.
#[tokio::test(flavor = "multi_thread")]
async fn monitors_outlive_a_runtime_that_is_ended_by_its_cgroup() {
    let Some(mut node) = node::node() else { return };
    let (home, container) = (format!("{}/monitors", node.cgroup), format!("{}/container", node.cgroup));
    node.config.monitor.cgroup = Some(home.clone());
    let cgroups = Cgroups::at(std::path::Path::new("/sys/fs/cgroup"));
    let container = Home::make(cgroups.clone(), Some(&container)).map(|home| (home, container)).unwrap();
    let mut process = Process::start(&node);
    container.0.take_in(process.pid(), "runtime").await.unwrap();
    let mut cri = process.connect(&node).await;

    // Process 1 of a shared PID namespace is nobody's container: it has to live on as well.
    let shared = v1::NamespaceOption { pid: v1::NamespaceMode::Pod as i32, ..Default::default() };
    let mut pod = node.sandbox("kept", 0);
    let context = pod.linux.as_mut().and_then(|l| l.security_context.as_mut()).unwrap();
    context.namespace_options = Some(shared.clone());
    let mut config = node.container("app", "exec sleep 3600");
    let context = config.linux.as_mut().and_then(|l| l.security_context.as_mut()).unwrap();
    context.namespace_options = Some(shared);
    let (sandbox, _) = cri.run_sandbox(pod.clone()).await.unwrap();
    let (id, _) = cri.create(&sandbox, config, pod).await.unwrap();
    cri.start(&id).await.unwrap();
    assert_eq!(cgroups.processes(&container.1), [process.pid()].into());
    let kept = cgroups.processes(&home);
    assert_eq!(kept.len(), 2, "the monitor and process 1 are {kept:?}");

    podway_runtime::orphan::kill_all(&cgroups, &container.1).unwrap();
    assert_eq!(process.ended_by(), Some(9));
    assert_eq!(cgroups.processes(&home), kept);
    let mut process = Process::start(&node);
    let mut cri = process.connect(&node).await;
    assert_eq!(cri.status(&id).await.state, v1::ContainerState::ContainerRunning as i32);
    let out = cri.exec(&id, &["cat", "/proc/1/cmdline"]).await.unwrap();
    let line = String::from_utf8_lossy(&out.stdout).replace('\0', " ");
    assert!(out.exit_code == 0 && line.contains(" init "), "process 1 is {line:?}");
    cri.stop(&id, 0).await;
    cri.remove(&id).await;
    cri.remove_pod(&sandbox).await;
    drop(process);
    for path in [home, container.1] {
        Home::make(cgroups.clone(), Some(&path)).unwrap().leave().unwrap();
    }
    assert_eq!(node.leftovers(), Vec::<String>::new());
}
