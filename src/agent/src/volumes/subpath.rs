//! A path inside a volume as a mount of its own, safe against what a container put there: the kernel
//! resolves it beneath the volume (openat2), and what it resolved to is bound by descriptor, so that
//! a symbolic link swapped in later is never followed.

use super::{VolumeError, io_at, make_dir};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Component, Path};

/// Binds `sub` of the volume at `volume` to `place`; a directory that is not there is made, unless the
/// volume is read-only. Repeated for a restart, it shows what the path is then.
pub(super) fn bind(volume: &Path, sub: &str, read_only: bool, place: &Path) -> Result<(), VolumeError> {
    let wrong =
        |source: io::Error| VolumeError::SubPath { path: sub.to_owned(), volume: volume.to_owned(), source };
    let relative = Path::new(sub);
    if !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(wrong(io::ErrorKind::InvalidInput.into()));
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, volume, flags | OFlags::DIRECTORY, Mode::empty())
        .map_err(|e| io_at("open", volume)(e.into()))?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let open = || rustix::fs::openat2(&root, relative, flags, Mode::empty(), resolve);
    let target = match open() {
        Err(rustix::io::Errno::NOENT) if !read_only => {
            make_below(&root, relative).map_err(wrong)?;
            open()
        }
        other => other,
    }
    .map_err(|e| wrong(e.into()))?;
    let stat = rustix::fs::statat(&target, "", AtFlags::EMPTY_PATH).map_err(|e| wrong(e.into()))?;
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    unmount(place)?;
    if directory {
        make_dir(place, 0o750)?;
    } else {
        if let Some(parent) = place.parent() {
            make_dir(parent, 0o750)?;
        }
        if !place.exists() {
            std::fs::File::create(place).map_err(io_at("make", place))?;
        }
    }
    let source = format!("/proc/self/fd/{}", target.as_raw_fd());
    rustix::mount::mount_bind(source.as_str(), place).map_err(|e| io_at("bind", place)(e.into()))
}

/// What an earlier start of the container left there. One that is not mounted is fine.
fn unmount(place: &Path) -> Result<(), VolumeError> {
    match rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(io_at("unmount", place)(e.into())),
    }
}

fn make_below(root: &OwnedFd, relative: &Path) -> io::Result<()> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
    let mode = rustix::fs::fstat(root)?.st_mode & 0o7777;
    let mut at = rustix::fs::openat2(root, ".", flags, Mode::empty(), resolve)?;
    let mut above = std::path::PathBuf::new();
    for part in relative.components().filter(|c| matches!(c, Component::Normal(_))) {
        match rustix::fs::mkdirat(&at, part.as_os_str(), Mode::from_raw_mode(0o750)) {
            Ok(()) => {
                let made = rustix::fs::openat2(
                    &at,
                    part.as_os_str(),
                    OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY | OFlags::NOFOLLOW,
                    Mode::empty(),
                    resolve,
                )?;
                // Not subject to the umask: as open as the volume itself, its group's and sticky where that
                // is (`doSafeMakeDir` of pkg/volume/util/subpath).
                rustix::fs::fchmod(&made, Mode::from_raw_mode(mode))?;
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        above.push(part);
        // From the root each time: a link inside the volume may point up, but never out.
        at = rustix::fs::openat2(root, &above, flags, Mode::empty(), resolve)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_bound_and_one_that_leaves_its_volume_is_not() {
        let tmp = tempfile::tempdir().unwrap();
        let volume = tmp.path().join("v");
        std::fs::create_dir_all(volume.join("data")).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o3777);
        std::fs::set_permissions(&volume, open).unwrap();
        std::fs::write(volume.join("data/f"), "x").unwrap();
        std::os::unix::fs::symlink("data/f", volume.join("inside")).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("outside")).unwrap();
        std::os::unix::fs::symlink("../..", volume.join("up")).unwrap();
        let place = tmp.path().join("p/0");
        for bad in ["../x", "/etc", "outside/passwd", "outside", "up", "outside/new/dir"] {
            assert!(matches!(bind(&volume, bad, false, &place), Err(VolumeError::SubPath { .. })), "{bad}");
        }
        if let Err(error) = bind(&volume, "inside", false, &place) {
            assert!(matches!(&error, VolumeError::Io { verb: "bind", .. }), "{error}");
            eprintln!("no mount can be made here: not tested");
            return;
        }
        assert_eq!(std::fs::read_to_string(&place).unwrap(), "x");
        let dir = tmp.path().join("p/1");
        for _ in 0..2 {
            bind(&volume, "made/deep", false, &dir).unwrap();
        }
        let mode = |path: &str| {
            std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(volume.join(path)).unwrap()) & 0o7777
        };
        assert_eq!((mode("made"), mode("made/deep")), (0o3777, 0o3777));
        std::fs::write(dir.join("g"), "y").unwrap();
        assert_eq!(std::fs::read_to_string(volume.join("made/deep/g")).unwrap(), "y");
        assert!(bind(&volume, "absent", true, &tmp.path().join("p/2")).is_err());
        super::super::teardown(&tmp.path().join("p")).unwrap();
        assert!(volume.join("made/deep/g").exists(), "teardown unmounts and removes only the mount points");
    }
}
