//! What of images a container has, and mounts of the host.

use crate::pod::{STAY, T, mount};
use anyhow::{Context as _, ensure};
use nix::mount::{MntFlags, MsFlags, umount2};
use podway_cri::v1;
use podway_tests::cri::images::BUSYBOX;
use tonic::Code;

pub async fn an_image_that_is_not_there_is_not_found(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let mut config = t.container("c", STAY);
    config.image = Some(v1::ImageSpec { image: "registry.test/nothing:1".to_owned(), ..Default::default() });
    let error = t.cri.create(&pod.id, &config, &pod.config).await.err().context("it is created")?;
    ensure!(error.code() == Code::NotFound, "{error:?}");
    ensure!(
        t.cri
            .containers(v1::ContainerFilter { pod_sandbox_id: pod.id, ..Default::default() })
            .await?
            .is_empty()
    );
    Ok(())
}

pub async fn an_image_is_a_volume(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let id = t.cri.pull(BUSYBOX).await?;
    let volume = |sub_path: &str| v1::Mount {
        container_path: "/v".to_owned(),
        readonly: true,
        image: Some(v1::ImageSpec { image: id.clone(), ..Default::default() }),
        image_sub_path: sub_path.to_owned(),
        ..Default::default()
    };
    let mut config = t.container("whole", STAY);
    config.mounts = vec![volume("")];
    let made = t.start(&pod, &config).await?;
    let (code, text) = t.cri.exec(&made, "/v/bin/ls /v/bin/busybox && ! touch /v/x").await?;
    ensure!(code == 0 && text.contains("Read-only"), "{text}");
    let told = t.cri.status(&made).await?.mounts;
    let told = told.iter().find(|m| m.container_path == "/v").context("no mount in the status")?;
    ensure!(told.image.as_ref().is_some_and(|i| i.image_ref == id || i.image == id), "{told:?}");

    let mut config = t.container("part", "ls /v/passwd");
    config.mounts = vec![volume("etc")];
    ensure!(t.script(&pod, config).await? == "/v/passwd\n");
    for sub_path in ["not-there", "../.."] {
        let mut config = t.container("lost", "true");
        config.mounts = vec![volume(sub_path)];
        ensure!(t.cri.create(&pod.id, &config, &pod.config).await.is_err(), "{sub_path}");
    }
    let mut config = t.container("unknown", "true");
    let mut other = volume("");
    other.image = Some(v1::ImageSpec { image: "registry.test/nothing:1".to_owned(), ..Default::default() });
    config.mounts = vec![other];
    ensure!(t.cri.create(&pod.id, &config, &pod.config).await.is_err());
    Ok(())
}

pub async fn a_read_only_mount_is_so_in_depth(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let source = t.stage.at(&format!("{}-rro", t.kind.name()));
    std::fs::create_dir_all(source.join("below"))?;
    nix::mount::mount(Some("x"), &source.join("below"), Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    let result = async {
        let script = "touch /m/x 2>/dev/null || echo ro; touch /m/below/x 2>/dev/null || echo ro below";
        for (name, recursive_read_only, expected) in
            [("flat", false, "ro\n"), ("deep", true, "ro\nro below\n")]
        {
            let mut config = t.container(name, script);
            config.mounts = vec![v1::Mount { readonly: true, recursive_read_only, ..mount(&source, "/m") }];
            let text = t.script(&pod, config).await?;
            ensure!(text == expected, "{name}: {text}");
        }
        for (readonly, propagation) in [(false, 0), (true, 1), (true, 2)] {
            let mut config = t.container("bad", "true");
            let of = mount(&source, "/m");
            config.mounts = vec![v1::Mount { readonly, propagation, recursive_read_only: true, ..of }];
            ensure!(t.cri.create(&pod.id, &config, &pod.config).await.is_err(), "{readonly} {propagation}");
        }
        anyhow::Ok(())
    };
    let result = result.await;
    umount2(&source.join("below"), MntFlags::MNT_DETACH)?;
    result
}
