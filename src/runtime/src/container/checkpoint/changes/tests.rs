//! On a real overlay: what is found is what was done.

use super::*;
use crate::rootfs;
use std::os::unix::fs::symlink;

/// A root filesystem of two layers, unmounted when dropped.
struct Mounted {
    root: Root,
    _dir: tempfile::TempDir,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rootfs::unmount(&self.root.merged).unwrap();
    }
}

fn mounted() -> Option<Mounted> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (path, text) in [
        ("lower/etc/passwd", "root"),
        ("lower/etc/old", "old"),
        ("lower/srv/a", "a"),
        ("lower/srv/sub/b", "b"),
        ("lower/srv/sub/c", "c"),
        ("upper-layer/srv/sub/d", "d"),
        ("upper-layer/etc/group", "root"),
    ] {
        std::fs::create_dir_all(at(path).parent().unwrap()).unwrap();
        std::fs::write(at(path), text).unwrap();
    }
    // The upper layer of the image deletes a file of the lower one.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("upper-layer/srv/a"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    )
    .unwrap();
    let layer = |name: &str| Layer { dir: at(name), implicit: Vec::new() };
    let layers = vec![layer("lower"), layer("upper-layer")];
    rootfs::mount_overlay(&layers, &at("data"), &at("merged"), None).unwrap();
    let root = Root {
        layers,
        upper: at("data/upper"),
        merged: at("merged"),
        mounted: BTreeSet::from([PathBuf::from("proc")]),
        owner: None,
    };
    Some(Mounted { root, _dir: dir })
}

/// The archive's paths with what is behind each, and what was deleted.
fn read(root: &Root) -> (Vec<(String, String)>, Vec<String>) {
    let mut bytes = Vec::new();
    let deleted = write(root, &mut bytes).unwrap();
    let mut archive = tar::Archive::new(bytes.as_slice());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let target = entry.link_name().unwrap().map(|to| format!("-> {}", to.display()));
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (path, target.unwrap_or(text))
    });
    let mut entries: Vec<_> = entries.collect();
    entries.sort();
    (entries, deleted)
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

#[test]
fn what_was_written_is_archived_and_what_was_deleted_listed() {
    let Some(mounted) = mounted() else { return };
    let at = |path: &str| mounted.root.merged.join(path);
    assert_eq!(read(&mounted.root), (Vec::new(), Vec::new()), "nothing has changed");
    std::fs::write(at("etc/new"), "new").unwrap();
    std::fs::hard_link(at("etc/new"), at("etc/same")).unwrap();
    symlink("/etc/shadow", at("etc/to")).unwrap();
    std::fs::remove_file(at("etc/old")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("etc/socket")).unwrap();
    std::fs::create_dir(at("proc")).unwrap();
    std::fs::write(at("proc/below-a-mount"), "").unwrap();
    let long = format!("etc/{}", "x".repeat(200));
    std::fs::write(at(&long), "long").unwrap();
    xattr::set(at("etc/new"), "user.kept", b"yes").unwrap();
    let (entries, deleted) = read(&mounted.root);
    let want = [("etc", ""), ("etc/new", "new"), ("etc/same", "-> etc/new"), ("etc/to", "-> /etc/shadow")];
    assert_eq!(entries[..4], pairs(&want), "{entries:?}");
    assert_eq!(entries[4..], pairs(&[(&long, "long")]));
    assert_eq!(deleted, ["/etc/old"]);
    let mut bytes = Vec::new();
    write(&mounted.root, &mut bytes).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("SCHILY.xattr.user.kept=yes"));
}

#[test]
fn a_directory_made_anew_hides_what_the_image_has_there() {
    let Some(mounted) = mounted() else { return };
    let at = |path: &str| mounted.root.merged.join(path);
    std::fs::remove_dir_all(at("srv")).unwrap();
    std::fs::create_dir_all(at("srv/sub")).unwrap();
    std::fs::write(at("srv/sub/c"), "mine").unwrap();
    let (entries, deleted) = read(&mounted.root);
    assert_eq!(entries, pairs(&[("srv", ""), ("srv/sub", ""), ("srv/sub/c", "mine")]));
    // /srv/a is the image's own to have deleted.
    assert_eq!(deleted, ["/srv/sub/b", "/srv/sub/d"]);
}

#[test]
fn ids_are_those_that_the_container_sees() {
    let Some(mut mounted) = mounted() else { return };
    std::fs::write(mounted.root.merged.join("mine"), "").unwrap();
    std::os::unix::fs::chown(mounted.root.merged.join("mine"), Some(70_033), Some(5)).unwrap();
    mounted.root.owner = Some(Mapping { host: 70_000, length: 1000 });
    let mut bytes = Vec::new();
    write(&mounted.root, &mut bytes).unwrap();
    let mut archive = tar::Archive::new(bytes.as_slice());
    let entry = archive.entries().unwrap().next().unwrap().unwrap();
    assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (33, 5));
}
