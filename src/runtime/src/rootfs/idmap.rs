//! Id-mapped mounts: a directory as a user namespace sees it, without a copy and without a chown.

use crate::rootfs;
use nix::libc;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A mount of `dir` that is nowhere yet, its ids mapped as in the namespace `user`.
///
/// # Errors
/// The kernel's: `EINVAL` where the file system cannot be mapped.
pub fn mapped(dir: &Path, user: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, dir, flags)?;
    set_mapping(tree.as_fd(), user)?;
    Ok(tree)
}

#[expect(unsafe_code, reason = "mount_setattr has no safe wrapper")]
fn set_mapping(tree: BorrowedFd<'_>, user: BorrowedFd<'_>) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(user.as_raw_fd()).map_err(io::Error::other)?,
    };
    // SAFETY: the path is a C string, and the kernel reads as much of `attr` as the size says.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Mapped mounts of directories, in a directory of their own, for as long as this lives: an overlay that
/// is mounted over them keeps what it needs by itself.
#[derive(Debug)]
pub struct Mapped {
    dir: PathBuf,
    /// The mounts, in the order of the directories.
    pub paths: Vec<PathBuf>,
}

impl Mapped {
    /// Mounts each of `dirs` below `dir`, mapped as in the user namespace pinned at `user`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn mount<'a>(dir: PathBuf, user: &Path, dirs: impl Iterator<Item = &'a Path>) -> io::Result<Self> {
        let user = File::open(user)?;
        let mut mapped_dirs = Mapped { dir, paths: Vec::new() };
        for (number, source) in dirs.enumerate() {
            let place = mapped_dirs.dir.join(number.to_string());
            std::fs::create_dir_all(&place)?;
            let tree = mapped(source, user.as_fd())?;
            move_mount(tree, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
            mapped_dirs.paths.push(place);
        }
        Ok(mapped_dirs)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if let Err(error) = rootfs::unmount_in(&self.dir) {
            tracing::warn!(%error, dir = %self.dir.display(), "mapped layers stay mounted until the removal");
        }
    }
}
