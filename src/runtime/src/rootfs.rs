//! A container's root filesystem: an overlay of the image's layers under a writable directory.

pub mod idmap;
pub mod implicit;

use crate::journal::private_dir;
use crate::points::{self, Point};
use crate::spec::Mapping;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Why a root filesystem could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The image has no layer.
    #[error("the image has no layers to make a root filesystem from")]
    NoLayers,
    /// More or longer layer paths than one mount call takes.
    #[error("the image's {0} layers do not fit into one overlay mount (4096 bytes of options)")]
    TooManyLayers(usize),
    /// The kernel refused.
    #[error("cannot mount the root filesystem at {0}")]
    Mount(PathBuf, #[source] io::Error),
    /// The file system of the layers cannot be id-mapped.
    #[error("not supported: a user namespace with layers in {0}: its file system has no id-mapped mounts")]
    Mapping(PathBuf, #[source] io::Error),
}

/// Whether this is what an overlay has in the place of what is deleted: a character device 0/0.
pub(crate) fn is_whiteout(meta: &std::fs::Metadata) -> bool {
    meta.file_type().is_char_device() && meta.rdev() == 0
}

/// A layer of an image, unpacked.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Layer {
    /// Its directory.
    pub dir: PathBuf,
    /// Directories that the archive did not hold and that were made for what is in them. What a
    /// lower layer says of them counts (see [`implicit`]).
    #[serde(default)]
    pub implicit: Vec<PathBuf>,
}

/// The user namespace that a root file system is for.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Its ids.
    pub mapping: Mapping,
    /// Where it is pinned.
    pub pin: PathBuf,
}

/// Mounts the overlay at `target`. `layers` are bottom → top, as images name them. For a user namespace
/// the layers are mapped, and what is written is its root's: nothing is copied.
///
/// # Errors
/// [`RootfsError`].
pub fn mount_overlay(
    layers: &[Layer],
    data: &Path,
    target: &Path,
    owner: Option<&Owner>,
) -> Result<(), RootfsError> {
    if layers.is_empty() {
        return Err(RootfsError::NoLayers);
    }
    let err = |e: io::Error| RootfsError::Mount(target.to_owned(), e);
    let (upper, work) = (data.join("upper"), data.join("work"));
    for dir in [data, target] {
        private_dir(dir).map_err(err)?;
    }
    for dir in [&upper, &work] {
        // The upper directory is the container's `/`: everybody in it must be able to enter it.
        std::fs::create_dir_all(dir).map_err(err)?;
    }
    implicit::apply(layers, &upper).map_err(err)?;
    points::at(Point::RootfsDirectories);
    let mut lower: Vec<String> = layers.iter().rev().map(|l| l.dir.display().to_string()).collect();
    let mut mapped = None;
    if let Some(owner) = owner {
        shift(&upper, owner.mapping).map_err(err)?;
        let place = target.with_extension("lower");
        let dirs = layers.iter().rev().map(|l| l.dir.as_path());
        let made = idmap::Mapped::mount(place, &owner.pin, dirs);
        let made = made.map_err(|e| RootfsError::Mapping(data.to_owned(), e))?;
        lower = made.paths.iter().map(|p| p.display().to_string()).collect();
        mapped = Some(made);
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
    if options.len() >= 4096 {
        return Err(RootfsError::TooManyLayers(layers.len()));
    }
    let mounted = mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options.as_str()));
    drop(mapped);
    mounted.map_err(|e| err(e.into()))
}

/// Gives what is in a new upper directory (and it itself) to the ids that `mapping` has for its owners.
fn shift(path: &Path, mapping: Mapping) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::symlink_metadata(path)?;
    let host = |id: u32| mapping.host.saturating_add(id.min(mapping.length - 1));
    std::os::unix::fs::lchown(path, Some(host(meta.uid())), Some(host(meta.gid())))?;
    if meta.is_dir() {
        for entry in std::fs::read_dir(path)? {
            shift(&entry?.path(), mapping)?;
        }
    }
    Ok(())
}

/// Unmounts what is mounted on the entries of `dir`, and removes it; one that is not there is removed.
///
/// # Errors
/// The kernel's.
pub fn unmount_in(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry?.path();
        unmount(&path)?;
        std::fs::remove_dir(&path)?;
    }
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Unmounts whatever is mounted at `target`; nothing there is unmounted already.
///
/// # Errors
/// The kernel's.
pub fn unmount(target: &Path) -> io::Result<()> {
    match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Removes a file of ours; one that is not there is removed already.
///
/// # Errors
/// The kernel's.
pub fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Removes a directory tree of ours; one that is not there is removed already.
///
/// # Errors
/// The kernel's.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
