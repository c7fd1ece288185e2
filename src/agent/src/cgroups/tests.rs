//! On trees of files, and on the machine's own.

use super::*;
use std::path::PathBuf;

fn plain(mount: &Path, root: &str) -> Cgroups {
    Cgroups::new(mount, Layout::new(Driver::Cgroupfs, root).unwrap())
}

#[tokio::test]
async fn limits_stand_in_either_tree_and_a_name_is_enough_to_remove_them() {
    let tmp = tempfile::tempdir().unwrap();
    for v2 in [false, true] {
        let mount = tmp.path().join(if v2 { "v2" } else { "v1" });
        let dirs: Vec<PathBuf> = if v2 {
            vec![mount.clone()]
        } else {
            vec![mount.join("cpu"), mount.join("memory"), mount.join("pids"), mount.join("freezer")]
        };
        for dir in &dirs {
            std::fs::create_dir_all(dir.join("mine")).unwrap();
        }
        if v2 {
            std::fs::write(mount.join("cgroup.controllers"), "cpu memory").unwrap();
        }
        let cgroups = plain(&mount, "/mine");
        cgroups.prepare(2000).await.unwrap();
        cgroups.prepare(2000).await.unwrap();
        for class in ["", "/burstable", "/besteffort"] {
            assert!(cgroups.tree.dir("cpu", &format!("/mine/kubepods{class}")).is_dir(), "{class}");
        }
        let limits = PodLimits { cpu_shares: 512, cpu_quota: Some(50_000), memory: Some(1 << 20) };
        cgroups.make("Burstable", "u", limits).await.unwrap();
        let path = cgroups.pod_path("Burstable", "u").unwrap();
        assert_eq!(path, "/mine/kubepods/burstable/podu");
        assert_eq!(cgroups.uids(), ["u"]);
        assert!(cgroups.tree.dir("memory", &path).is_dir());
        cgroups.leave().await.unwrap();
        assert!(cgroups.tree.dir("memory", &path).is_dir(), "a pod is there");
        if v2 {
            let read = |file: &str| std::fs::read_to_string(mount.join(file)).unwrap();
            assert_eq!(read("cgroup.subtree_control"), "+memory");
        }
        cgroups.remove("u").await.unwrap();
        cgroups.remove("u").await.unwrap();
        assert!(!cgroups.tree.dir("memory", &path).exists());
        cgroups.leave().await.unwrap();
        let base = cgroups.tree.dir("memory", "/mine/kubepods");
        assert!(!base.exists() && base.with_file_name("").is_dir());
    }
}

/// On the machine's own tree, in a cgroup of this test's own.
#[tokio::test]
async fn the_kernel_holds_what_was_set() {
    let mount = Path::new("/sys/fs/cgroup");
    let root = format!("podway-agent-test-{}", std::process::id());
    let cgroups = plain(mount, &root).with_pod_pids(Some(77));
    let limits = PodLimits { cpu_shares: 512, cpu_quota: Some(50_000), memory: Some(64 << 20) };
    let prepared = cgroups.prepare(1500).await;
    if cgroups.make("Burstable", "u", limits).await.is_err() {
        eprintln!("no cgroup can be made here: not tested");
        return;
    }
    let path = cgroups.pod_path("Burstable", "u").unwrap();
    assert_eq!(cgroups.tree.number("pids", &path, "pids.max"), Some(77));
    if !cgroups.tree.v2() {
        let read = |c: &str, f: &str| std::fs::read_to_string(cgroups.tree.dir(c, &path).join(f)).unwrap();
        assert_eq!(read("memory", "memory.limit_in_bytes").trim(), (64 << 20).to_string());
        assert_eq!(read("cpu", "cpu.shares").trim(), "512");
        assert_eq!(read("cpu", "cpu.cfs_quota_us").trim(), "50000");
        let now = || (read("memory", "memory.limit_in_bytes"), read("cpu", "cpu.cfs_quota_us"));
        let other = PodLimits { cpu_shares: 512, cpu_quota: Some(20_000), memory: Some(128 << 20) };
        cgroups.widen("Burstable", "u", other).await.unwrap();
        assert_eq!(now(), (format!("{}\n", 128 << 20), "50000\n".into()), "raised, and not lowered");
        cgroups.resize("Burstable", "u", other).await.unwrap();
        assert_eq!(now(), (format!("{}\n", 128 << 20), "20000\n".into()));
        cgroups.resize("Burstable", "u", PodLimits { cpu_quota: None, ..other }).await.unwrap();
        assert_eq!(now().1, "-1\n", "a limit that is gone is taken away");
        prepared.unwrap();
        let all = PodsLimits { milli_cpu: 1500, memory: 256 << 20, pids: Some(5000) };
        cgroups.enforce(all).await.unwrap();
        let base = format!("/{root}/kubepods");
        let kubepods =
            |c: &str, f: &str| std::fs::read_to_string(cgroups.tree.dir(c, &base).join(f)).unwrap();
        assert_eq!(kubepods("memory", "memory.limit_in_bytes").trim(), (256 << 20).to_string());
        assert_eq!(kubepods("pids", "pids.max").trim(), "5000");
        let shares = |path: &str| {
            let dir = cgroups.tree.dir("cpu", &format!("/{root}/kubepods{path}"));
            std::fs::read_to_string(dir.join("cpu.shares")).unwrap().trim().to_owned()
        };
        assert_eq!(
            (shares(""), shares("/burstable"), shares("/besteffort")),
            ("1536".into(), "512".into(), "2".into())
        );
    }
    let (list, name) =
        (BTreeMap::from([("memory".to_owned(), "32Mi".to_owned())]), format!("/{root}/system"));
    let kept = Reserved::parse(&list).unwrap();
    let mut held = Held { cgroup: name.clone(), compressible: true };
    let error = cgroups.hold(&held, &kept).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{name:?} cgroup does not exist"));
    cgroups.tree.make(&name).unwrap();
    let file = if cgroups.tree.v2() { "memory.max" } else { "memory.limit_in_bytes" };
    let memory = || cgroups.tree.number("memory", &name, file);
    cgroups.hold(&held, &kept).await.unwrap();
    assert_ne!(memory(), Some(32 << 20), "memory is not compressible");
    held.compressible = false;
    cgroups.hold(&held, &kept).await.unwrap();
    assert_eq!(memory(), Some(32 << 20));
    cgroups.remove("u").await.unwrap();
    assert!(!cgroups.tree.has(&path));
    cgroups.tree.remove(&format!("/{root}")).unwrap();
}
