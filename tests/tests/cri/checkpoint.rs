//! Checkpoints, with the criu of this machine; its own check says whether it works with the kernel.

use crate::pod::{STAY, Skipped, T};
use anyhow::{Context as _, ensure};
use podway_cri::v1;
use podway_runtime::container::checkpoint::criu;
use podway_tests::cri::Kind;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use tonic::Code;

/// In the shell's memory alone: the script holds it in two parts.
const STATE: &str = "kept=in-memory; kept=only-$kept-$((6 * 7)); echo changed >/tmp/changed; rm /etc/passwd; \
                     n=0; while :; do n=$((n + 1)); echo $n; sleep 0.1; done";

async fn criu() -> Result<(), Skipped> {
    criu::check().await.map(drop).map_err(|why| Skipped(why.to_string()))
}

fn wanted(id: &str, location: &Path) -> v1::CheckpointContainerRequest {
    let location = location.display().to_string();
    v1::CheckpointContainerRequest { container_id: id.to_owned(), location, timeout: 60 }
}

/// The files of an archive.
fn read(archive: impl std::io::Read) -> anyhow::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut archive = tar::Archive::new(archive);
    let files = archive.entries()?.map(|entry| {
        let mut entry = entry?;
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        Ok((entry.path()?.into_owned(), bytes))
    });
    files.collect()
}

/// Waits until the container has written a line more than `seen`; gives how many there are.
async fn goes_on(
    t: &T,
    pod: &crate::pod::Pod,
    config: &v1::ContainerConfig,
    seen: usize,
) -> anyhow::Result<usize> {
    let more = async {
        loop {
            match t.log(pod, config).map(|log| log.lines().count()) {
                Ok(lines) if lines > seen => return lines,
                _ => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), more).await.context("it does not go on")
}

pub async fn memory_and_files_of_a_running_container(mut t: T) -> anyhow::Result<()> {
    criu().await?;
    let pod = t.pod().await?;
    let config = t.container("c", STATE);
    let id = t.start(&pod, &config).await?;
    let seen = goes_on(&t, &pod, &config, 0).await?;
    let dir = t.stage.at("checkpoints").join(t.kind.name());
    std::fs::create_dir_all(&dir)?;
    let place = dir.join("checkpoint-c_cri-c-2026-11-29T19:00:00Z.tar");
    match t.cri.runtime.checkpoint_container(wanted(&id, &place)).await {
        // Debian's crun is built without criu.
        Err(e) if !t.cri.handler.is_empty() && e.message().contains("unknown command checkpoint") => {
            return Err(Skipped(e.message().to_owned()).into());
        }
        made => made?,
    };
    ensure!(t.cri.status(&id).await?.state == v1::ContainerState::ContainerRunning as i32);
    goes_on(&t, &pod, &config, t.log(&pod, &config)?.lines().count().max(seen)).await?;

    let beside: Vec<_> = std::fs::read_dir(&dir)?.map(|e| Ok(e?.path())).collect::<std::io::Result<_>>()?;
    ensure!(beside == [place.clone()], "{beside:?}");
    let mode = std::fs::metadata(&place)?.permissions().mode() & 0o7777;
    ensure!(mode == 0o600, "{mode:o}");
    let files = read(std::fs::File::open(&place)?)?;
    let file =
        |name: &str| files.get(Path::new(name)).with_context(|| format!("{name} in {:?}", files.keys()));
    let json = |name: &str| anyhow::Ok(serde_json::from_slice::<serde_json::Value>(file(name)?)?);
    let pages = files.iter().filter(|(path, _)| path.starts_with("checkpoint"));
    let mut pages = pages.filter(|(path, _)| path.to_string_lossy().contains("pages-"));
    let state = b"only-in-memory-42";
    ensure!(pages.any(|(_, bytes)| bytes.windows(state.len()).any(|w| w == state)), "{:?}", files.keys());
    ensure!(json("config.dump")?["id"] == id.as_str() && json("status.dump")?["metadata"]["name"] == "c");
    let spec = json("spec.dump")?;
    ensure!(spec["process"]["args"][0] == "sh", "{spec}");
    ensure!(spec["annotations"]["io.kubernetes.cri.container-name"] == "c", "{spec}");
    file("stats-dump")?;
    file("container.log")?;
    let diff = file("rootfs-diff.tar")?;
    if t.kind == Kind::Containerd {
        // A layer of an image, compressed, with a whiteout for what was deleted.
        return Ok(());
    }
    ensure!(read(diff.as_slice())?.get(Path::new("tmp/changed")).is_some_and(|bytes| bytes == b"changed\n"));
    ensure!(json("deleted.files")? == serde_json::json!(["/etc/passwd"]));
    let network = json("network.status")?;
    let told = network.as_object().and_then(|all| all.values().next()).context("no network")?;
    ensure!(told["interfaces"]["eth0"]["subnets"][0]["ipnet"].is_string(), "{told}");
    ensure!(String::from_utf8_lossy(file("dump.log")?).contains("Dumping finished successfully"));
    // Once more, over the first.
    t.cri.runtime.checkpoint_container(wanted(&id, &place)).await?;
    Ok(())
}

/// containerd takes any path that its process can open.
pub async fn a_hostile_location_is_refused(mut t: T) -> anyhow::Result<()> {
    if t.kind == Kind::Containerd {
        return Ok(());
    }
    let pod = t.pod().await?;
    let id = t.start(&pod, &t.container("c", STAY)).await?;
    let own = t.stage.at("podway/root/journal/containers/x.json");
    let link = t.stage.at("link.tar");
    std::os::unix::fs::symlink("/etc/passwd", &link)?;
    for location in ["", "x.tar", "/", "/tmp/../etc/x", "/no/such/dir/x.tar", "/tmp/"]
        .map(PathBuf::from)
        .iter()
        .chain([&own, &link])
    {
        let refused = t.cri.runtime.checkpoint_container(wanted(&id, location)).await;
        let code = refused.as_ref().err().map(tonic::Status::code);
        ensure!(code == Some(Code::InvalidArgument), "{location:?}: {refused:?}");
    }
    let mut late = wanted(&id, &t.stage.at("x.tar"));
    late.timeout = -1;
    let refused = t.cri.runtime.checkpoint_container(late).await;
    ensure!(refused.is_err_and(|e| e.code() == Code::InvalidArgument));
    ensure!(!own.exists() && !t.stage.at("x.tar").exists());
    Ok(())
}

pub async fn of_nothing_but_what_runs(mut t: T) -> anyhow::Result<()> {
    let pod = t.pod().await?;
    let place = t.stage.at(&format!("{}-none.tar", t.kind.name()));
    let created = t.create(&pod, &t.container("created", STAY)).await?;
    let ended = t.start(&pod, &t.container("ended", "true")).await?;
    t.cri.exited(&ended).await?;
    for (id, code) in [
        (created.as_str(), Code::FailedPrecondition),
        (ended.as_str(), Code::FailedPrecondition),
        (&"0".repeat(64), Code::NotFound),
    ] {
        let refused = t.cri.runtime.checkpoint_container(wanted(id, &place)).await;
        let told = refused.as_ref().err().map(tonic::Status::code);
        // containerd looks for criu first, and has no code for what is not running.
        ensure!(told == Some(code) || told.is_some() && t.kind == Kind::Containerd, "{id}: {refused:?}");
    }
    ensure!(!place.exists());
    Ok(())
}
