//! From RunPodSandbox to RemovePodSandbox.

use crate::pod::{STAY, T};
use anyhow::{Context as _, ensure};
use podway_cri::v1::{self, ContainerEventType, ContainerState, PodSandboxState};
use podway_systemd::Driver;
use podway_tests::cri::{Kind, server::driver};
use tonic::Code;

pub async fn metadata_labels_and_annotations_come_back(mut t: T) -> anyhow::Result<()> {
    let mut config = t.pod_config();
    config.annotations = [("a".to_owned(), "1".to_owned())].into();
    let pod = t.run(config).await?;
    let mut wanted = t.container("c", STAY);
    wanted.annotations = [("b".to_owned(), "2".to_owned())].into();
    let id = t.create(&pod, &wanted).await?;

    let status = t.cri.pod_status(&pod.id).await?;
    ensure!(status.metadata == pod.config.metadata, "{:?}", status.metadata);
    ensure!(status.labels == pod.config.labels && status.annotations == pod.config.annotations);
    let listed = t.cri.pods(v1::PodSandboxFilter { id: pod.id.clone(), ..Default::default() }).await?;
    ensure!(listed.len() == 1 && listed[0].annotations == pod.config.annotations, "{listed:?}");

    let status = t.cri.status(&id).await?;
    ensure!(status.metadata == wanted.metadata && status.annotations == wanted.annotations, "{status:?}");
    ensure!(status.labels == wanted.labels);
    ensure!(status.log_path.ends_with("/c.log"), "{}", status.log_path);
    let image = status.image.context("the image")?;
    ensure!(!image.image.is_empty() && !status.image_ref.is_empty());
    let listed = t.cri.containers(v1::ContainerFilter { id: id.clone(), ..Default::default() }).await?;
    ensure!(listed.len() == 1 && listed[0].annotations == wanted.annotations, "{listed:?}");
    ensure!(listed[0].pod_sandbox_id == pod.id);
    Ok(())
}

pub async fn states_times_and_exit_codes(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    ensure!(t.cri.pod_status(&pod.id).await?.state == PodSandboxState::SandboxReady as i32);
    let id = t.create(&pod, &t.container("c", "exit 7")).await?;
    let created = t.cri.status(&id).await?;
    ensure!(created.state == ContainerState::ContainerCreated as i32, "{created:?}");
    ensure!(created.created_at > 0 && created.started_at == 0 && created.finished_at == 0, "{created:?}");
    t.cri.start(&id).await?;
    let ended = t.cri.exited(&id).await?;
    ensure!(ended.exit_code == 7 && ended.reason == "Error", "{ended:?}");
    ensure!(ended.created_at <= ended.started_at, "{ended:?}");
    // containerd notes a start once its shim has answered: a short life ends before it began.
    let in_order = ended.started_at <= ended.finished_at;
    ensure!(in_order || t.kind == Kind::Containerd, "{ended:?}");
    let id = t.start(&pod, &t.container("d", "true")).await?;
    let ended = t.cri.exited(&id).await?;
    ensure!(ended.exit_code == 0 && ended.reason == "Completed", "{ended:?}");
    let id = t.start(&pod, &t.container("e", "kill -9 $$")).await?;
    // The first process of a PID namespace is not to be killed from inside.
    t.cri.stop(&id, 0).await?;
    let ended = t.cri.exited(&id).await?;
    ensure!(ended.exit_code == 137 || ended.exit_code == 0, "{ended:?}");
    Ok(())
}

pub async fn a_repeated_call_has_one_effect(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let again = t.cri.run_pod(&pod.config).await;
    let config = t.container("c", STAY);
    let id = t.create(&pod, &config).await?;
    let created_again = t.cri.create(&pod.id, &config, &pod.config).await;
    match t.kind {
        // A retry finds what the first call made.
        Kind::Podway => {
            ensure!(again? == pod.id);
            ensure!(created_again? == id);
        }
        // containerd keeps the name reserved, and does not say for whom.
        Kind::Containerd => {
            ensure!(again.is_err_and(|e| e.message().contains("is reserved")));
            ensure!(created_again.is_err_and(|e| e.message().contains("is reserved")));
        }
    }
    t.cri.start(&id).await?;
    // Before its trap stands, the first process of a PID namespace does not hear of SIGTERM (bit 14 of what it catches).
    t.cri.exec(&id, "until grep -Eq '^SigCgt:.*[4-7c-f]...$' /proc/1/status; do sleep 0.05; done").await?;
    let stop = async |mut t: T| t.cri.stop(&id, 5).await;
    let (one, other) = tokio::join!(stop(t.clone()), stop(t.clone()));
    one?;
    other?;
    ensure!(t.cri.exited(&id).await?.exit_code == 0);
    t.cri.stop(&id, 0).await?;
    t.cri.remove(&id).await?;
    t.cri.remove(&id).await?;
    t.cri.remove_pod(&pod.id).await?;
    t.cri.remove_pod(&pod.id).await?;
    Ok(())
}

pub async fn stop_and_remove_of_what_is_not_there(mut t: T) -> anyhow::Result<()> {
    for id in ["f".repeat(64), "no-id".to_owned()] {
        t.cri.stop(&id, 0).await?;
        t.cri.remove(&id).await?;
        t.cri.remove_pod(&id).await?;
        ensure!(
            t.cri.status(&id).await.is_err_and(|e| e.code() == Code::NotFound),
            "ContainerStatus of {id}"
        );
        ensure!(t.cri.pod_status(&id).await.is_err_and(|e| e.code() == Code::NotFound));
    }
    Ok(())
}

pub async fn a_new_attempt_is_another_container(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container("c", "true");
    let first = t.start(&pod, &config).await?;
    t.cri.exited(&first).await?;
    ensure!(t.cri.create(&pod.id, &config, &pod.config).await.is_err(), "the name and attempt are taken");
    config.metadata = Some(v1::ContainerMetadata { name: "c".to_owned(), attempt: 1 });
    let second = t.start(&pod, &config).await?;
    ensure!(first != second);
    let both = t.cri.containers(v1::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() });
    ensure!(both.await?.len() == 2);
    Ok(())
}

pub async fn nothing_is_created_in_a_stopped_sandbox(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.start(&pod, &t.container("c", STAY)).await?;
    let stop = v1::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    t.cri.runtime.stop_pod_sandbox(stop).await?;
    ensure!(t.cri.status(&id).await?.state == ContainerState::ContainerExited as i32);
    ensure!(t.cri.pod_status(&pod.id).await?.state == PodSandboxState::SandboxNotready as i32);
    let late = t.cri.create(&pod.id, &t.container("late", STAY), &pod.config).await;
    // containerd creates it (cri-tools tells of that as a difference from the specification).
    ensure!(t.kind == Kind::Containerd || late.is_err(), "created in a stopped sandbox");
    Ok(())
}

pub async fn removed_while_it_runs(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.start(&pod, &t.container("c", STAY)).await?;
    t.cri.remove(&id).await?;
    ensure!(t.cri.status(&id).await.is_err_and(|e| e.code() == Code::NotFound));
    let id = t.start(&pod, &t.container("d", STAY)).await?;
    t.cri.remove_pod(&pod.id).await?;
    ensure!(
        t.cri.status(&id).await.is_err_and(|e| e.code() == Code::NotFound),
        "a sandbox takes its own along"
    );
    Ok(())
}

pub async fn output_goes_to_the_log(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let config = t.container("c", "echo out; echo err >&2; printf part");
    let id = t.start(&pod, &config).await?;
    t.cri.exited(&id).await?;
    let path = std::path::Path::new(&pod.config.log_directory).join("c.log");
    let text = std::fs::read_to_string(path)?;
    let has = |stream: &str, tag: &str, line: &str| {
        text.lines().any(|l| l.ends_with(&format!(" {stream} {tag} {line}")))
    };
    ensure!(has("stdout", "F", "out") && has("stderr", "F", "err"), "{text}");
    ensure!(has("stdout", "P", "part") || has("stdout", "F", "part"), "{text}");
    for line in text.lines() {
        let time = line.split(' ').next().unwrap_or_default();
        ensure!(time.contains('T') && time.contains('.'), "not RFC 3339 with nanoseconds: {line}");
    }
    Ok(())
}

pub async fn the_log_is_reopened(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let config = t.container("c", "while :; do echo tick; sleep 0.05; done");
    let id = t.start(&pod, &config).await?;
    let path = std::path::Path::new(&pod.config.log_directory).join("c.log");
    std::fs::rename(&path, path.with_extension("old"))?;
    let request = v1::ReopenContainerLogRequest { container_id: id.clone() };
    t.cri.runtime.reopen_container_log(request.clone()).await?;
    let written = async {
        while !std::fs::read_to_string(&path).is_ok_and(|text| text.contains("tick")) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), written)
        .await
        .context("the new log stays empty")?;
    t.cri.stop(&id, 0).await?;
    ensure!(t.cri.runtime.reopen_container_log(request).await.is_err(), "of one that has ended");
    Ok(())
}

pub async fn the_stop_signal_is_sent(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container("c", "trap 'exit 41' USR1; touch /ready; while :; do sleep 1 & wait; done");
    config.stop_signal = v1::Signal::Sigusr1 as i32;
    let id = t.start(&pod, &config).await?;
    t.cri.exec(&id, "until [ -e /ready ]; do sleep 0.05; done").await?;
    let told = t.cri.status(&id).await?.stop_signal;
    ensure!(told == v1::Signal::Sigusr1 as i32, "the status tells of signal {told}");
    t.cri.stop(&id, 20).await?;
    ensure!(t.cri.exited(&id).await?.exit_code == 41);
    Ok(())
}

pub async fn filters(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let runs = t.start(&pod, &t.container("runs", STAY)).await?;
    let mut other = t.container("made", STAY);
    other.labels.insert("k".to_owned(), "v".to_owned());
    let made = t.create(&pod, &other).await?;
    let of = v1::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    let state = |s: ContainerState| Some(v1::ContainerStateValue { state: s as i32 });
    for (filter, wanted) in [
        (v1::ContainerFilter { id: runs.clone(), ..of.clone() }, &runs),
        (v1::ContainerFilter { id: made[..13].to_owned(), ..of.clone() }, &made),
        (v1::ContainerFilter { state: state(ContainerState::ContainerRunning), ..of.clone() }, &runs),
        (v1::ContainerFilter { state: state(ContainerState::ContainerCreated), ..of.clone() }, &made),
        (
            v1::ContainerFilter { label_selector: [("k".to_owned(), "v".to_owned())].into(), ..of.clone() },
            &made,
        ),
    ] {
        let got = t.cri.containers(filter.clone()).await?;
        ensure!(got.len() == 1 && got[0].id == *wanted, "{filter:?}: {got:?}");
    }
    let none = v1::ContainerFilter { label_selector: [("k".to_owned(), "w".to_owned())].into(), ..of };
    ensure!(t.cri.containers(none).await?.is_empty());
    let not_ready = Some(v1::PodSandboxStateValue { state: PodSandboxState::SandboxNotready as i32 });
    let filter = v1::PodSandboxFilter { id: pod.id.clone(), state: not_ready, ..Default::default() };
    ensure!(t.cri.pods(filter).await?.is_empty());
    Ok(())
}

pub async fn events_in_order(mut t: T) -> anyhow::Result<()> {
    let mut events = t.cri.runtime.get_container_events(v1::GetEventsRequest {}).await?.into_inner();
    let pod = t.pod().await?;
    let id = t.start(&pod, &t.container("c", "true")).await?;
    t.cri.exited(&id).await?;
    t.cri.remove(&id).await?;
    let mut seen = Vec::new();
    let deleted = async {
        while seen.last() != Some(&ContainerEventType::ContainerDeletedEvent) {
            let event = events.message().await?.context("the stream has ended")?;
            if event.container_id == id {
                seen.push(event.container_event_type());
                if let Some(status) = &event.pod_sandbox_status {
                    ensure!(status.id == pod.id, "of another pod: {event:?}");
                }
            }
        }
        Ok(())
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), deleted)
        .await
        .context("no deletion is told")??;
    ensure!(
        seen == [
            ContainerEventType::ContainerCreatedEvent,
            ContainerEventType::ContainerStartedEvent,
            ContainerEventType::ContainerStoppedEvent,
            ContainerEventType::ContainerDeletedEvent
        ],
        "{seen:?}"
    );
    Ok(())
}

pub async fn verbose_status(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.start(&pod, &t.container("c", STAY)).await?;
    let request = v1::ContainerStatusRequest { container_id: id, verbose: true };
    let info = t.cri.runtime.container_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
    ensure!(info["sandboxID"] == pod.id.as_str(), "{info}");
    let pid = info["pid"].as_u64().context("no pid")?;
    ensure!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    ensure!(info["runtimeSpec"]["process"]["args"][0] == "sh", "{info}");
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let info = t.cri.runtime.pod_sandbox_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
    ensure!(info.get("cniResult").is_some(), "{info}");
    let status = t.cri.runtime.status(v1::StatusRequest { verbose: true }).await?.into_inner();
    let config: serde_json::Value = serde_json::from_str(status.info.get("config").context("no config")?)?;
    ensure!(config["stateDir"].is_string(), "{config}");
    Ok(())
}

pub async fn lists_as_streams(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.create(&pod, &t.container("c", STAY)).await?;
    let request = v1::StreamPodSandboxesRequest {
        filter: Some(v1::PodSandboxFilter { id: pod.id.clone(), ..Default::default() }),
    };
    let mut stream = t.cri.runtime.stream_pod_sandboxes(request).await?.into_inner();
    let mut pods = Vec::new();
    while let Some(part) = stream.message().await? {
        pods.extend(part.pod_sandboxes.into_iter().map(|p| p.id));
    }
    ensure!(pods == [pod.id.clone()], "{pods:?}");
    let request = v1::StreamContainersRequest {
        filter: Some(v1::ContainerFilter { pod_sandbox_id: pod.id, ..Default::default() }),
    };
    let mut stream = t.cri.runtime.stream_containers(request).await?.into_inner();
    let mut containers = Vec::new();
    while let Some(part) = stream.message().await? {
        containers.extend(part.containers.into_iter().map(|c| c.id));
    }
    ensure!(containers == [id], "{containers:?}");
    Ok(())
}

pub async fn a_command_that_is_not_there(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container("c", "");
    config.command = vec!["/not/there".to_owned()];
    let id = t.create(&pod, &config).await?;
    let error = t.cri.start(&id).await.err().context("it starts")?;
    ensure!(error.message().contains("/not/there"), "{}", error.message());
    let status = t.cri.exited(&id).await?;
    ensure!(status.exit_code == 128 && status.reason == "StartError", "{status:?}");
    Ok(())
}

pub async fn what_the_runtime_says_of_itself(mut t: T) -> anyhow::Result<()> {
    let version = t.cri.runtime.version(v1::VersionRequest::default()).await?.into_inner();
    ensure!(version.runtime_name == t.kind.name() && version.runtime_api_version == "v1", "{version:?}");
    let config = t.cri.runtime.runtime_config(v1::RuntimeConfigRequest {}).await?.into_inner();
    let driver = match (t.kind, driver()?) {
        (Kind::Podway, Driver::Systemd) => v1::CgroupDriver::Systemd,
        _ => v1::CgroupDriver::Cgroupfs,
    };
    ensure!(config.linux.is_some_and(|l| l.cgroup_driver == driver as i32));
    let status = t.cri.runtime.status(v1::StatusRequest::default()).await?.into_inner();
    ensure!(status.features.is_some_and(|f| f.supplemental_groups_policy));
    let handler = status.runtime_handlers.iter().find(|h| h.name.is_empty()).context("no default handler")?;
    let features = handler.features.context("no features")?;
    ensure!(features.recursive_read_only_mounts && features.user_namespaces, "{features:?}");
    let cidr = v1::NetworkConfig { pod_cidr: "10.1.0.0/16".to_owned() };
    let request = v1::UpdateRuntimeConfigRequest {
        runtime_config: Some(v1::RuntimeConfig { network_config: Some(cidr) }),
    };
    t.cri.runtime.update_runtime_config(request).await?;
    Ok(())
}
