//! Who a container's processes are, and what they may.

use crate::pod::{Pod, STAY, T, context, pod_context};
use anyhow::{Context as _, ensure};
use podway_cri::v1::{self, Int64Value, SecurityProfile, security_profile::ProfileType};
use podway_runtime::apparmor;
use podway_tests::cri::Kind;
use podway_tests::cri::images::{NO_NEW_PRIVS, PREDEFINED_GROUP};

async fn privileged_pod(t: &mut T) -> anyhow::Result<Pod> {
    let mut config = t.pod_config();
    pod_context(&mut config).privileged = true;
    t.run(config).await
}

fn image(name: &str) -> Option<v1::ImageSpec> {
    Some(v1::ImageSpec { image: name.to_owned(), ..Default::default() })
}

pub async fn users_and_groups(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let script = "echo $(id -u) $(id -g) $(id -G)";
    let mut config = t.container("numbers", script);
    context(&mut config).run_as_user = Some(Int64Value { value: 7 });
    context(&mut config).run_as_group = Some(Int64Value { value: 8 });
    context(&mut config).supplemental_groups = vec![1234];
    ensure!(t.script(&pod, config).await? == "7 8 8 1234\n");
    let mut config = t.container("name", script);
    context(&mut config).run_as_username = "nobody".to_owned();
    ensure!(t.script(&pod, config).await?.starts_with("65534 65534"));

    for (name, policy, expected) in
        [("merge", 0, "1000 1000 1000 1234 50000\n"), ("strict", 1, "1000 1000 1000 1234\n")]
    {
        let mut config = t.container(name, &format!("{script}; {STAY}"));
        config.image = image(PREDEFINED_GROUP);
        context(&mut config).run_as_user = Some(Int64Value { value: 1000 });
        context(&mut config).supplemental_groups = vec![1234];
        context(&mut config).supplemental_groups_policy = policy;
        let id = t.start(&pod, &config).await?;
        let (_, groups) = t.cri.exec(&id, script).await?;
        ensure!(groups == expected, "{name}: {groups}");
        let user = t.cri.status(&id).await?.user.and_then(|u| u.linux).context("the status has no user")?;
        let mut groups = user.supplemental_groups.clone();
        groups.sort_unstable();
        let wanted: &[i64] = if policy == 0 { &[1000, 1234, 50000] } else { &[1000, 1234] };
        ensure!((user.uid, user.gid, groups.as_slice()) == (1000, 1000, wanted), "{user:?}");
    }
    let mut config = t.container("group-alone", script);
    context(&mut config).run_as_group = Some(Int64Value { value: 8 });
    ensure!(t.cri.create(&pod.id, &config, &pod.config).await.is_err(), "a group without a user");
    let mut config = t.container("unknown", script);
    context(&mut config).run_as_username = "who".to_owned();
    ensure!(
        t.cri.create(&pod.id, &config, &pod.config).await.is_err(),
        "a user that the image does not have"
    );
    Ok(())
}

pub async fn capabilities(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let bits = "sed -n 's/^CapEff:.//p' /proc/self/status";
    let read = |text: String| u64::from_str_radix(text.trim(), 16);
    let plain = read(t.script(&pod, t.container("plain", bits)).await?)?;
    ensure!(plain & 1 == 1 && plain >> 21 & 1 == 0, "CHOWN and not SYS_ADMIN: {plain:x}");
    let words = |w: &[&str]| w.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    for (name, add, drop, set, clear) in [
        ("add", &["NET_ADMIN"][..], &[][..], 1 << 12, 0),
        ("drop", &[], &["CHOWN"], 0, 1),
        ("none", &[], &["ALL"], 0, u64::MAX),
        ("only", &["NET_ADMIN"], &["ALL"], 1 << 12, 1),
        ("all", &["ALL"], &[], 1 << 21 | 1 << 12, 0),
    ] {
        let mut config = t.container(name, bits);
        context(&mut config).capabilities = Some(v1::Capability {
            add_capabilities: words(add),
            drop_capabilities: words(drop),
            ..Default::default()
        });
        let got = read(t.script(&pod, config).await?)?;
        ensure!(got & set == set && got & clear == 0, "{name}: {got:x}");
    }
    let mut config = t.container("ambient", "sed -n 's/^CapAmb:.//p' /proc/self/status");
    context(&mut config).run_as_user = Some(Int64Value { value: 1000 });
    context(&mut config).capabilities = Some(v1::Capability {
        add_capabilities: words(&["NET_BIND_SERVICE"]),
        add_ambient_capabilities: words(&["NET_BIND_SERVICE"]),
        ..Default::default()
    });
    // containerd sets no ambient ones (`WithAddedCapabilities` only).
    let expected = if t.kind == Kind::Containerd { 0 } else { 1 << 10 };
    ensure!(read(t.script(&pod, config).await?)? == expected);
    let mut config = t.container("unknown", bits);
    context(&mut config).capabilities =
        Some(v1::Capability { add_capabilities: words(&["FLY"]), ..Default::default() });
    let made = t.cri.create(&pod.id, &config, &pod.config).await;
    // containerd hands it to runc, which warns of it and goes on.
    ensure!(made.is_err() || t.kind == Kind::Containerd, "a capability that Linux does not have");
    Ok(())
}

pub async fn no_new_privileges(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    for (name, no_new_privs, uid) in [("may", false, 0), ("may-not", true, 1000)] {
        let mut config = t.container(name, "");
        config.image = image(NO_NEW_PRIVS);
        config.command.clear();
        context(&mut config).run_as_user = Some(Int64Value { value: 1000 });
        context(&mut config).no_new_privs = no_new_privs;
        ensure!(t.script(&pod, config).await? == format!("Effective uid: {uid}\n"), "{name}");
    }
    Ok(())
}

pub async fn seccomp_profiles(mut t: T) -> anyhow::Result<()> {
    let pod = privileged_pod(&mut t).await?;
    let path = t.stage.at(&format!("{}-seccomp.json", t.kind.name()));
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["sethostname"],"action":"SCMP_ACT_ERRNO"}]}"#;
    std::fs::write(&path, profile)?;
    let mode = "sed -n 's/^Seccomp:.//p' /proc/self/status";
    let profile = |kind: ProfileType, path: &str| {
        Some(SecurityProfile { profile_type: kind as i32, localhost_ref: path.to_owned() })
    };
    let path = path.display().to_string();
    for (name, seccomp, privileged, script, expected) in [
        ("default", profile(ProfileType::RuntimeDefault, ""), false, mode, "2\n"),
        ("unconfined", profile(ProfileType::Unconfined, ""), false, mode, "0\n"),
        ("none", None, false, mode, "0\n"),
        (
            "file",
            profile(ProfileType::Localhost, &path),
            false,
            "hostname x 2>/dev/null || echo refused",
            "refused\n",
        ),
        ("privileged", profile(ProfileType::Localhost, &path), true, mode, "0\n"),
    ] {
        let mut config = t.container(name, script);
        context(&mut config).seccomp = seccomp;
        context(&mut config).privileged = privileged;
        if name == "file" {
            context(&mut config).capabilities =
                Some(v1::Capability { add_capabilities: vec!["SYS_ADMIN".to_owned()], ..Default::default() });
        }
        let text = t.script(&pod, config).await?;
        ensure!(text == expected, "{name}: {text}");
    }
    let mut config = t.container("lost", mode);
    context(&mut config).seccomp = profile(ProfileType::Localhost, "/not/there.json");
    ensure!(t.cri.create(&pod.id, &config, &pod.config).await.is_err());
    Ok(())
}

pub async fn a_read_only_root(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container("c", "touch /x 2>&1 || true; touch /dev/shm/y && echo shm");
    context(&mut config).readonly_rootfs = true;
    let text = t.script(&pod, config).await?;
    ensure!(text.contains("Read-only file system") && text.ends_with("shm\n"), "{text}");
    Ok(())
}

pub async fn masked_and_read_only_paths(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let script = "ls /proc/sys/vm | wc -l; touch /bin/x 2>&1 || true; wc -c </etc/passwd";
    let mut config = t.container("c", script);
    context(&mut config).masked_paths = vec!["/proc/sys/vm".to_owned(), "/etc/passwd".to_owned()];
    context(&mut config).readonly_paths = vec!["/bin".to_owned()];
    let text = t.script(&pod, config).await?;
    ensure!(text.starts_with("0\n") && text.contains("Read-only") && text.ends_with("\n0\n"), "{text}");
    Ok(())
}

pub async fn privileged(mut t: T) -> anyhow::Result<()> {
    let script =
        "ls /dev | wc -l; touch /sys/fs/cgroup/x 2>&1; mkdir /m && mount -t tmpfs x /m && echo mounted";
    let pod = privileged_pod(&mut t).await?;
    let mut config = t.container("c", script);
    context(&mut config).privileged = true;
    let text = t.script(&pod, config).await?;
    ensure!(text.contains("mounted"), "{text}");
    let devices: usize = text.lines().next().unwrap_or_default().trim().parse()?;
    let mut config = t.container("d", "ls /dev | wc -l");
    context(&mut config).privileged = false;
    let plain: usize = t.script(&pod, config).await?.trim().parse()?;
    ensure!(devices > plain, "{devices} devices, without privileges {plain}");
    // A sandbox that was not asked for as one for it.
    let mut other = t.pod_config();
    other.metadata.get_or_insert_default().attempt = 1;
    let pod = t.run(other).await?;
    let mut config = t.container("c", script);
    context(&mut config).privileged = true;
    ensure!(t.cri.create(&pod.id, &config, &pod.config).await.is_err());
    Ok(())
}

pub async fn devices(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let script = "head -c 3 /dev/other | wc -c; echo x 2>&1 >/dev/other || true";
    let mut config = t.container("c", script);
    config.devices = vec![v1::Device {
        host_path: "/dev/zero".to_owned(),
        container_path: "/dev/other".to_owned(),
        permissions: "r".to_owned(),
    }];
    let text = t.script(&pod, config).await?;
    ensure!(text.starts_with("3\n"), "{text}");
    let mut config = t.container("d", script);
    config.devices = vec![v1::Device {
        host_path: "/not/there".to_owned(),
        container_path: "/dev/x".to_owned(),
        ..Default::default()
    }];
    ensure!(t.cri.create(&pod.id, &config, &pod.config).await.is_err());
    Ok(())
}

pub async fn what_cannot_be_had_is_refused(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let request = v1::RunPodSandboxRequest {
        config: Some(v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "other".to_owned(),
                ..pod.config.metadata.clone().unwrap_or_default()
            }),
            ..pod.config.clone()
        }),
        runtime_handler: "kata".to_owned(),
    };
    ensure!(t.cri.runtime.run_pod_sandbox(request).await.is_err(), "a handler that is not there");
    Ok(())
}

/// Of a kernel with AppArmor, what a container is confined by; of one without, that a profile is refused.
pub async fn apparmor_profiles(mut t: T) -> anyhow::Result<()> {
    const NAMED: &str = "podway-cri-suite";
    let profile = |kind: ProfileType, name: &str| {
        Some(SecurityProfile { profile_type: kind as i32, localhost_ref: name.to_owned() })
    };
    let pod = privileged_pod(&mut t).await?;
    if !apparmor::enabled() {
        let mut config = t.container("named", "true");
        context(&mut config).apparmor = profile(ProfileType::Localhost, NAMED);
        let refused = t.cri.create(&pod.id, &config, &pod.config).await.err().context("it is not refused")?;
        ensure!(format!("{refused:#}").to_lowercase().contains("apparmor"), "{refused:#}");
        return Ok(());
    }
    let text = format!("profile {NAMED} flags=(attach_disconnected) {{ file, signal, deny /denied w, }}");
    apparmor::parse(&text, &apparmor::LOAD).await?;
    let default = match t.kind {
        Kind::Podway => "podway-default (enforce)\n",
        Kind::Containerd => "cri-containerd.apparmor.d (enforce)\n",
    };
    let named = "podway-cri-suite (enforce)\n";
    let free = "unconfined\n";
    let confined = "cat /proc/self/attr/current";
    for (name, apparmor, old, privileged, expected) in [
        ("unsaid", None, "", false, default),
        ("default", profile(ProfileType::RuntimeDefault, ""), "", false, default),
        ("unconfined", profile(ProfileType::Unconfined, ""), "", false, free),
        ("named", profile(ProfileType::Localhost, NAMED), "", false, named),
        ("old-default", None, "runtime/default", false, default),
        ("old-unconfined", None, "unconfined", false, free),
        ("old-named", None, "localhost/podway-cri-suite", false, named),
        ("privileged", profile(ProfileType::RuntimeDefault, ""), "", true, free),
    ] {
        let mut config = t.container(name, confined);
        let own = context(&mut config);
        own.apparmor = apparmor;
        #[expect(deprecated, reason = "what a client says that knows no other")]
        own.apparmor_profile.push_str(old);
        own.privileged = privileged;
        let got = t.script(&pod, config).await?;
        ensure!(got == expected, "{name}: {got:?}");
    }
    // It is enforced: what the profile denies, root with every capability cannot do.
    for (name, apparmor, script, expected) in [
        ("denied", profile(ProfileType::Localhost, NAMED), "touch /denied", "no\n"),
        ("allowed", profile(ProfileType::Localhost, NAMED), "touch /other", "yes\n"),
        ("mount", profile(ProfileType::RuntimeDefault, ""), "mount -t tmpfs none /mnt", "no\n"),
        ("mount-free", profile(ProfileType::Unconfined, ""), "mount -t tmpfs none /mnt", "yes\n"),
    ] {
        let script = format!("mkdir -p /mnt; if {script} 2>/dev/null; then echo yes; else echo no; fi");
        let mut config = t.container(name, &script);
        let own = context(&mut config);
        own.apparmor = apparmor;
        own.capabilities =
            Some(v1::Capability { add_capabilities: vec!["SYS_ADMIN".to_owned()], ..Default::default() });
        let got = t.script(&pod, config).await?;
        ensure!(got == expected, "{name}: {got:?}");
    }
    let mut config = t.container("not-loaded", "true");
    context(&mut config).apparmor = profile(ProfileType::Localhost, "podway-not-loaded");
    ensure!(t.start(&pod, &config).await.is_err(), "a profile that is not loaded");
    Ok(())
}
