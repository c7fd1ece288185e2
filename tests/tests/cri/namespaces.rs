//! What a pod shares with whom.

use crate::pod::{Pod, STAY, Skipped, T, context, modes, mount, pod_context};
use anyhow::{Context as _, ensure};
use nix::mount::{MntFlags, MsFlags, umount2};
use podway_cri::v1::{self, NamespaceMode};
use podway_tests::cri::Kind;

async fn pod_of(t: &mut T, options: v1::NamespaceOption) -> anyhow::Result<Pod> {
    let mut config = t.pod_config();
    if options.network == NamespaceMode::Node as i32 {
        // The name is the host's, and the kubelet gives none.
        config.hostname.clear();
    }
    pod_context(&mut config).namespace_options = Some(options);
    t.run(config).await
}

/// A container whose namespaces are its sandbox'.
fn like(t: &T, pod: &Pod, name: &str, script: &str) -> v1::ContainerConfig {
    let mut config = t.container(name, script);
    let mut of = pod.config.clone();
    context(&mut config).namespace_options = pod_context(&mut of).namespace_options.clone();
    config
}

fn own(kind: &str) -> anyhow::Result<String> {
    Ok(std::fs::read_link(format!("/proc/self/ns/{kind}"))?.display().to_string())
}

pub async fn a_pid_namespace_each(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let config = t.container("c", STAY);
    let id = t.start(&pod, &config).await?;
    t.start(&pod, &t.container("other", &format!(": 7461; {STAY}"))).await?;
    let (_, all) = t.cri.exec(&id, "echo /proc/[0-9]*; tr '\\0' ' ' </proc/1/cmdline").await?;
    ensure!(all.contains("/proc/1 ") && all.contains("trap"), "{all}");
    // A pattern that does not match the words of who looks for it.
    let (code, found) = t.cri.exec(&id, "grep -l '746[1]' /proc/[0-9]*/cmdline").await?;
    ensure!(code == 1, "the other container's are seen: {found}");
    Ok(())
}

pub async fn a_shared_pid_namespace(mut t: T) -> anyhow::Result<()> {
    let pod = pod_of(&mut t, modes(NamespaceMode::Pod)).await?;
    let one = t.start(&pod, &like(&t, &pod, "one", STAY)).await?;
    let two = t.start(&pod, &like(&t, &pod, "two", "sleep 4321")).await?;
    let (_, first) = t.cri.exec(&one, "cat /proc/1/cmdline").await?;
    // Both containers sleep; a sandbox' id has any digits.
    ensure!(
        !first.contains("trap") && !first.contains("sleep"),
        "the first process is a container's: {first}"
    );
    let (code, _) = t.cri.exec(&one, "grep -q '432[1]' /proc/[0-9]*/cmdline").await?;
    ensure!(code == 0, "the other container's processes are not seen");
    // Somebody reaps what is left without a parent.
    let (code, text) =
        t.cri.exec(&one, "(sleep 0.1 & ) ; sleep 0.5; grep -sl '^State:.Z' /proc/[0-9]*/status").await?;
    ensure!(code != 0 && text.trim().is_empty(), "zombies: {text}");
    if t.kind == Kind::Podway {
        // It can be neither looked into nor killed.
        let (code, text) = t.cri.exec(&one, "ls /proc/1/root/ /proc/1/cwd/").await?;
        ensure!(code != 0, "the root of the first process: {text}");
        let (_, caps) = t.cri.exec(&one, "grep -E '^(Cap(Prm|Eff|Inh)|Uid):' /proc/1/status").await?;
        for line in caps.lines() {
            ensure!(line.contains("0000000000000000") || line.contains("65534"), "{caps}");
        }
        t.cri.exec(&one, "kill -9 1; kill 1").await?;
        let (code, _) = t.cri.exec(&two, "true").await?;
        ensure!(code == 0, "killed from inside");
    }
    // What a container has started ends with it.
    let mut config = like(&t, &pod, "three", "sleep 5432 & sleep 0.2");
    config.log_path.clear();
    let three = t.start(&pod, &config).await?;
    t.cri.exited(&three).await?;
    let (code, _) = t.cri.exec(&one, "grep -l '543[2]' /proc/[0-9]*/cmdline").await?;
    ensure!(code != 0, "a process of an ended container lives on");
    Ok(())
}

pub async fn the_pid_namespace_of_another(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let target = t.start(&pod, &t.container("target", "sleep 6543")).await?;
    let mut config = t.container("debug", STAY);
    context(&mut config).namespace_options =
        Some(v1::NamespaceOption { target_id: target.clone(), ..modes(NamespaceMode::Target) });
    let id = t.start(&pod, &config).await?;
    let (code, _) = t.cri.exec(&id, "grep -q 6543 /proc/1/cmdline").await?;
    ensure!(code == 0, "the first process is not the target's");
    context(&mut config).namespace_options =
        Some(v1::NamespaceOption { target_id: "0".repeat(64), ..modes(NamespaceMode::Target) });
    config.metadata = Some(v1::ContainerMetadata { name: "lost".to_owned(), attempt: 0 });
    ensure!(t.cri.create(&pod.id, &config, &pod.config).await.is_err(), "of a container that is not there");
    Ok(())
}

pub async fn the_hosts_pids(mut t: T) -> anyhow::Result<()> {
    let pod = pod_of(&mut t, modes(NamespaceMode::Node)).await?;
    let config = like(&t, &pod, "c", "readlink /proc/self/ns/pid");
    ensure!(t.script(&pod, config).await?.trim() == own("pid")?);
    Ok(())
}

pub async fn the_hosts_network_is_the_hosts(mut t: T) -> anyhow::Result<()> {
    let node = v1::NamespaceOption { network: NamespaceMode::Node as i32, ..modes(NamespaceMode::Container) };
    let pod = pod_of(&mut t, node).await?;
    let config = like(&t, &pod, "c", "readlink /proc/self/ns/net; readlink /proc/self/ns/uts");
    let text = t.script(&pod, config).await?;
    ensure!(text == format!("{}\n{}\n", own("net")?, own("uts")?), "{text}");
    let other = t.script(&pod, t.container("d", "true")).await;
    ensure!(other.is_ok(), "{other:?}");
    Ok(())
}

pub async fn the_hosts_ipc_is_the_hosts(mut t: T) -> anyhow::Result<()> {
    let node = v1::NamespaceOption { ipc: NamespaceMode::Node as i32, ..modes(NamespaceMode::Container) };
    let pod = pod_of(&mut t, node).await?;
    let config = like(&t, &pod, "c", "readlink /proc/self/ns/ipc");
    ensure!(t.script(&pod, config).await?.trim() == own("ipc")?);
    Ok(())
}

pub async fn a_user_namespace(mut t: T) -> anyhow::Result<()> {
    let range = vec![v1::IdMapping { host_id: 100_000, container_id: 0, length: 65536 }];
    let user =
        v1::UserNamespace { mode: NamespaceMode::Pod as i32, uids: range.clone(), gids: range.clone() };
    for (number, pid) in [NamespaceMode::Container, NamespaceMode::Pod].into_iter().enumerate() {
        let options = v1::NamespaceOption { userns_options: Some(user.clone()), ..modes(pid) };
        let mut wanted = t.pod_config();
        wanted.metadata.get_or_insert_default().attempt = u32::try_from(number)?;
        pod_context(&mut wanted).namespace_options = Some(options);
        wanted.linux.get_or_insert_default().sysctls = [
            ("net.ipv4.ip_unprivileged_port_start".to_owned(), "77".to_owned()),
            ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
        ]
        .into();
        if !t.cri.handler.is_empty() {
            let refused =
                t.cri.run_pod(&wanted).await.err().context("a user namespace of another handler")?;
            ensure!(
                refused.message().contains("not supported: a user namespace with the runtime handler"),
                "{refused:?}"
            );
            return Err(Skipped(format!("{} has none, and it is refused", t.cri.handler)).into());
        }
        let pod = t.run(wanted).await?;
        let volume = t.stage.at(&format!("{}-{number}", t.kind.name()));
        std::fs::create_dir_all(&volume)?;
        let script = "set -e; cat /proc/self/uid_map; id -u; touch /a /etc/b; stat -c %u /bin/busybox /a /etc/passwd; \
                      cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced; touch /v/f; ip link show lo; \
                      touch /dev/shm/x; cat /etc/hostname >/dev/null";
        let mut config = like(&t, &pod, "c", script);
        let mut inside = mount(&volume, "/v");
        (inside.uid_mappings, inside.gid_mappings) = (range.clone(), range.clone());
        config.mounts.push(inside);
        let text = t.script(&pod, config).await?;
        let words: Vec<&str> = text.split_whitespace().collect();
        ensure!(words[..3] == ["0", "100000", "65536"], "{text}");
        ensure!(words[3..9] == ["0", "0", "0", "0", "77", "1"], "{text}");
        ensure!(text.contains("UP"), "the loopback is down: {text}");
        // The file on the host is root's: the mount is mapped, not chowned.
        use std::os::unix::fs::MetadataExt as _;
        ensure!(std::fs::metadata(volume.join("f"))?.uid() == 0);
        let stays = t.start(&pod, &like(&t, &pod, "stays", STAY)).await?;
        let (code, text) =
            t.cri.exec(&stays, "grep -q 100000 /proc/self/uid_map && mount -t tmpfs x /mnt").await?;
        ensure!(code != 0 && !text.contains("uid_map"), "{text}");
        t.cri.remove_pod(&pod.id).await?;
    }
    let twice =
        [range.clone(), vec![v1::IdMapping { host_id: 300_000, container_id: 65536, length: 1 }]].concat();
    for (mode, ids) in [
        (NamespaceMode::Pod, twice),
        (NamespaceMode::Pod, vec![v1::IdMapping { host_id: 1000, container_id: 1, length: 9 }]),
        (NamespaceMode::Container, vec![]),
        (NamespaceMode::Target, vec![]),
    ] {
        let user = v1::UserNamespace { mode: mode as i32, uids: ids.clone(), gids: ids };
        let options = v1::NamespaceOption { userns_options: Some(user), ..Default::default() };
        ensure!(pod_of(&mut t, options.clone()).await.is_err(), "{options:?}");
    }
    Ok(())
}

pub async fn the_hostname_and_dns_are_the_pods(mut t: T) -> anyhow::Result<()> {
    let mut config = t.pod_config();
    let words = |w: &[&str]| w.iter().map(|s| (*s).to_owned()).collect();
    config.dns_config = Some(v1::DnsConfig {
        servers: words(&["10.9.8.7"]),
        searches: words(&["a.test"]),
        options: words(&["ndots:8"]),
    });
    let pod = t.run(config).await?;
    let text = t.script(&pod, t.container("c", "hostname; cat /etc/hostname /etc/resolv.conf")).await?;
    ensure!(text.starts_with("a-pod\na-pod\n"), "{text}");
    for line in ["nameserver 10.9.8.7", "search a.test", "options ndots:8"] {
        ensure!(text.contains(line), "{text}");
    }
    Ok(())
}

pub async fn sysctls_of_the_pod(mut t: T) -> anyhow::Result<()> {
    let set =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let mut config = t.pod_config();
    config.linux.get_or_insert_default().sysctls = set(&[
        ("kernel.shm_rmid_forced", "1"),
        ("net.ipv4.ip_unprivileged_port_start", "77"),
        ("fs.mqueue.msg_max", "100"),
    ]);
    let pod = t.run(config).await?;
    let script = "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start \
                  /proc/sys/fs/mqueue/msg_max";
    ensure!(t.script(&pod, t.container("c", script)).await? == "1\n77\n100\n");
    let mut config = t.pod_config();
    config.metadata.get_or_insert_default().attempt = 1;
    config.linux.get_or_insert_default().sysctls = set(&[("kernel.core_pattern", "|/x")]);
    ensure!(t.run(config).await.is_err(), "a sysctl of the host");
    Ok(())
}

pub async fn mounts_that_propagate(mut t: T) -> anyhow::Result<()> {
    let mut config = t.pod_config();
    pod_context(&mut config).privileged = true;
    let pod = t.run(config).await?;
    let source = t.stage.at(&format!("{}-shared", t.kind.name()));
    std::fs::create_dir_all(source.join("late"))?;
    std::fs::create_dir_all(source.join("back"))?;
    let none: Option<&str> = None;
    nix::mount::mount(Some(&source), &source, none, MsFlags::MS_BIND, none)?;
    nix::mount::mount(none, &source, none, MsFlags::MS_SHARED, none)?;
    let result = async {
        let mut ids = Vec::new();
        for (name, propagation) in [("private", 0), ("slave", 1), ("shared", 2)] {
            let mut config = t.container(name, STAY);
            context(&mut config).privileged = true;
            config.mounts.push(v1::Mount { propagation, ..mount(&source, "/m") });
            ids.push(t.start(&pod, &config).await?);
        }
        nix::mount::mount(Some("x"), &source.join("late"), Some("tmpfs"), MsFlags::empty(), none)?;
        for (id, sees) in ids.iter().zip([false, true, true]) {
            let (code, text) = t.cri.exec(id, "grep -q ' /m/late ' /proc/self/mounts").await?;
            ensure!((code == 0) == sees, "{code} {text}");
        }
        t.cri.exec(&ids[2], "mount -t tmpfs y /m/back").await?;
        let ours = std::fs::read_to_string("/proc/self/mounts")?;
        ensure!(ours.contains(&format!("{} ", source.join("back").display())), "nothing comes back");
        anyhow::Ok(())
    };
    let result = result.await;
    for dir in [source.join("back"), source.join("late"), source] {
        match umount2(&dir, MntFlags::MNT_DETACH) {
            // What the case did not come to is not mounted.
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    result.context("propagation")
}
