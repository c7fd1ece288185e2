//! Entries to files, relative to directory descriptors only.
//!
//! Every parent is resolved by `openat2(RESOLVE_IN_ROOT | NO_MAGICLINKS | NO_XDEV)` below the
//! layer's root; the last component is made by an *at call that follows no link. So no name and no
//! symlink of the archive can reach outside, whatever the order of its entries.
//!
//! The result is an overlayfs layer: a whiteout is a 0/0 character device, an opaque directory has
//! `trusted.overlay.opaque=y`. Both are made from the OCI form only; the literal forms are refused.

use super::UnpackError;
use super::reader::{Entry, Kind, TarReader, shown};
use super::whiteout::{Name, classify};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// How much a layer may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the uncompressed archive.
    pub bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Components of a path, and depth of a directory after links are resolved.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { bytes: 64 << 30, entries: 2_000_000, depth: 256 }
    }
}

/// What a layer came to.
#[derive(Clone, Debug, Default)]
pub struct Unpacked {
    /// Bytes of its files.
    pub bytes: u64,
    /// Entries that were made.
    pub inodes: u64,
    /// Directories that the archive does not name, made for what is in them; parents first.
    pub implicit: Vec<PathBuf>,
}

const MAX_PATH: usize = 4096;
const MAX_XATTR: usize = 64 * 1024;
const OPAQUE: &str = "trusted.overlay.opaque";

/// Unpacks the archive into `root`.
pub(super) fn extract(tar: impl Read, root: OwnedFd, limits: Limits) -> Result<Unpacked, UnpackError> {
    let root_path = proc_path(root.as_fd()).map_err(|source| UnpackError::Make {
        path: "/".to_owned(),
        call: "readlink",
        source,
    })?;
    let mut layer = Layer {
        root,
        root_depth: depth_of(&root_path),
        limits,
        parent: None,
        directory_times: BTreeMap::new(),
        done: Unpacked::default(),
        implicit: BTreeSet::new(),
        buffer: vec![0; 64 * 1024],
    };
    let mut tar = TarReader::new(tar);
    let mut entries = 0;
    while let Some(entry) = tar.next()? {
        entries += 1;
        if entries > limits.entries {
            return Err(UnpackError::TooMuch { what: "entries", limit: limits.entries });
        }
        layer.entry(&mut tar, &entry)?;
    }
    layer.finish()?;
    let implicit = std::mem::take(&mut layer.implicit).into_iter();
    layer.done.implicit = implicit.map(|p| PathBuf::from(OsString::from_vec(p))).collect();
    Ok(layer.done)
}

struct Layer {
    root: OwnedFd,
    root_depth: usize,
    limits: Limits,
    /// The last parent; dropped whenever something is removed, for then a path may mean something else.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Set last: making an entry touches its directory.
    directory_times: BTreeMap<Vec<u8>, (i64, u32)>,
    done: Unpacked,
    implicit: BTreeSet<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Layer {
    fn entry<R: Read>(&mut self, tar: &mut TarReader<R>, entry: &Entry) -> Result<(), UnpackError> {
        let path = clean(&entry.path, self.limits.depth)
            .map_err(|why| UnpackError::Entry { path: shown(&entry.path), why })?;
        let refuse = |why| UnpackError::Entry { path: shown(&path), why };
        let made = |call| move |source| UnpackError::Make { path: shown(&entry.path), call, source };
        check_xattrs(&entry.xattrs).map_err(refuse)?;
        if path.is_empty() {
            if entry.kind != Kind::Directory {
                return Err(refuse("the root is not a directory"));
            }
            let root = self.root.try_clone().map_err(UnpackError::Read)?;
            metadata(root.as_fd(), b".", entry).map_err(made("set metadata"))?;
            self.directory_times.insert(b".".to_vec(), entry.mtime);
            return Ok(());
        }
        let (parent_path, name) = split(&path);
        // A whiteout as a component in the middle would be made as a directory of that name.
        if parent_path.split(|&b| b == b'/').any(|c| classify(c) != Name::Plain) {
            return Err(refuse("a component of its path is a whiteout"));
        }
        self.open_parent(parent_path, &entry.path)?;
        let parent = match &self.parent {
            Some((_, fd)) => fd.try_clone().map_err(UnpackError::Read)?,
            None => return Err(refuse("its parent is not there")),
        };
        match classify(name) {
            Name::Plain => {}
            Name::Bookkeeping => return Ok(()),
            Name::Invalid => return Err(refuse("a whiteout of nothing, of . or of ..")),
            Name::Opaque => {
                return set_xattr(parent.as_fd(), b".", OPAQUE.as_bytes(), b"y").map_err(made("setxattr"));
            }
            Name::Whiteout(target) => return self.whiteout(&parent, target).map_err(made("whiteout")),
        }
        let existing = lstat(&parent, name).map_err(made("stat"))?;
        if let Kind::HardLink(target) = &entry.kind {
            return self.hard_link(&parent, name, existing, target, &entry.path);
        }
        let replaces_whiteout = existing.as_ref().is_some_and(is_whiteout);
        let keep = entry.kind == Kind::Directory
            && existing.as_ref().is_some_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
        if let Some(stat) = existing.filter(|_| !keep) {
            self.remove(&parent, name, &stat).map_err(made("remove"))?;
        }
        let mode = Mode::from_raw_mode(0o600);
        match &entry.kind {
            Kind::File => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&parent, name, flags, mode).map_err(made("open"))?;
                self.done.bytes += write_file(tar, file, &mut self.buffer)?;
            }
            Kind::Directory if keep => {}
            Kind::Directory => {
                rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)).map_err(made("mkdir"))?;
            }
            Kind::Symlink(target) => {
                if target.is_empty() || target.len() >= MAX_PATH || target.contains(&0) {
                    return Err(refuse("its link target is empty, too long or has a NUL"));
                }
                rustix::fs::symlinkat(target.as_slice(), &parent, name).map_err(made("symlink"))?;
            }
            Kind::CharDevice { major: 0, minor: 0 } => {
                return Err(refuse("a literal overlay whiteout (character device 0/0)"));
            }
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                let kind = if matches!(entry.kind, Kind::CharDevice { .. }) {
                    FileType::CharacterDevice
                } else {
                    FileType::BlockDevice
                };
                let device = rustix::fs::makedev(*major, *minor);
                rustix::fs::mknodat(&parent, name, kind, mode, device).map_err(made("mknod"))?;
            }
            Kind::Fifo => {
                rustix::fs::mknodat(&parent, name, FileType::Fifo, mode, 0).map_err(made("mknod"))?;
            }
            Kind::HardLink(_) => return Err(refuse("a hard link here is handled before")),
        }
        self.done.inodes += 1;
        self.implicit.remove(&path);
        metadata(parent.as_fd(), name, entry).map_err(made("set metadata"))?;
        if entry.kind == Kind::Directory {
            if replaces_whiteout {
                set_xattr(parent.as_fd(), name, OPAQUE.as_bytes(), b"y").map_err(made("setxattr"))?;
            }
            self.directory_times.insert(path, entry.mtime);
        } else {
            set_times(parent.as_fd(), name, entry.mtime).map_err(made("utimensat"))?;
        }
        Ok(())
    }

    /// Opens the directory `path`, making what is missing of it.
    fn open_parent(&mut self, path: &[u8], entry: &[u8]) -> Result<(), UnpackError> {
        if self.parent.as_ref().is_some_and(|(p, _)| p == path) {
            return Ok(());
        }
        let made = |call| move |source| UnpackError::Make { path: shown(entry), call, source };
        self.parent = None;
        let whole = if path.is_empty() { b".".as_slice() } else { path };
        let fd = match self.resolve(whole) {
            Err(Errno::NOENT) => {
                let mut current = self.resolve(b".").map_err(made("openat2"))?;
                let ends = path.iter().enumerate().filter(|&(_, &b)| b == b'/').map(|(i, _)| i);
                for end in ends.chain([path.len()]) {
                    let prefix = &path[..end];
                    current = match self.resolve(prefix) {
                        Err(Errno::NOENT) => {
                            // EEXIST here is a dangling link: the name is there, what it names is not.
                            let (_, name) = split(prefix);
                            rustix::fs::mkdirat(&current, name, Mode::from_raw_mode(0o755))
                                .map_err(made("mkdir of a parent"))?;
                            self.done.inodes += 1;
                            self.implicit.insert(prefix.to_vec());
                            self.resolve(prefix)
                        }
                        other => other,
                    }
                    .map_err(made("openat2"))?;
                }
                current
            }
            other => other.map_err(made("openat2"))?,
        };
        let depth = depth_of(&proc_path(fd.as_fd()).map_err(made("readlink"))?);
        if depth.saturating_sub(self.root_depth) > self.limits.depth {
            return Err(UnpackError::Entry { path: shown(entry), why: "its directory is too deep" });
        }
        self.parent = Some((path.to_vec(), fd));
        Ok(())
    }

    fn resolve(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        rustix::io::retry_on_intr(|| rustix::fs::openat2(&self.root, path, flags, Mode::empty(), within))
    }

    /// Hides `name` of the layers below. What this layer itself has of that name stays (the order
    /// of a whiteout and its entry must not matter): a directory is made opaque, the rest hides anyway.
    fn whiteout(&mut self, parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
        match lstat(parent, name)? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                set_xattr(parent.as_fd(), name, OPAQUE.as_bytes(), b"y")
            }
            Some(_) => Ok(()),
            None => {
                rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0)?;
                self.done.inodes += 1;
                Ok(())
            }
        }
    }

    fn hard_link(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        existing: Option<rustix::fs::Stat>,
        target: &[u8],
        entry: &[u8],
    ) -> Result<(), UnpackError> {
        let refuse = |why| UnpackError::Entry { path: shown(entry), why };
        let made = |call| move |source| UnpackError::Make { path: shown(entry), call, source };
        let target = clean(target, self.limits.depth).map_err(refuse)?;
        let (target_parent, target_name) = split(&target);
        if target_name.is_empty() {
            return Err(refuse("a hard link to the root"));
        }
        let from = self
            .resolve(if target_parent.is_empty() { b"." } else { target_parent })
            .map_err(|_| refuse("its hard link's target is not in this layer"))?;
        let stat = lstat(&from, target_name)
            .map_err(made("stat"))?
            .ok_or_else(|| refuse("its hard link's target is not in this layer"))?;
        if !matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Symlink) {
            return Err(refuse("its hard link's target is neither a file nor a symlink"));
        }
        if let Some(old) = existing {
            if (old.st_dev, old.st_ino) == (stat.st_dev, stat.st_ino) {
                return Ok(());
            }
            self.remove(parent, name, &old).map_err(made("remove"))?;
        }
        rustix::fs::linkat(&from, target_name, parent, name, AtFlags::empty()).map_err(made("link"))
    }

    fn remove(&mut self, parent: &OwnedFd, name: &[u8], stat: &rustix::fs::Stat) -> Result<(), Errno> {
        self.parent = None;
        remove_tree(parent.as_fd(), name, stat)
    }

    fn finish(&mut self) -> Result<(), UnpackError> {
        for (path, time) in std::mem::take(&mut self.directory_times).into_iter().rev() {
            // One that was replaced later is not a directory of this name any more.
            let Ok(directory) = self.resolve(&path) else { continue };
            set_times(directory.as_fd(), b".", time).map_err(|source| UnpackError::Make {
                path: shown(&path),
                call: "utimensat",
                source,
            })?;
        }
        Ok(())
    }
}

/// The path without a leading `/` or `./`, or why it is refused.
fn clean(path: &[u8], depth: usize) -> Result<Vec<u8>, &'static str> {
    if path.is_empty() {
        return Err("its name is empty");
    }
    if path.len() >= MAX_PATH {
        return Err("its name is longer than 4095 bytes");
    }
    if path.contains(&0) {
        return Err("its name has a NUL");
    }
    let parts: Vec<&[u8]> =
        path.split(|&b| b == b'/').filter(|c| !c.is_empty() && *c != b".".as_slice()).collect();
    if parts.iter().any(|c| *c == b"..".as_slice()) {
        return Err("its name has a .. component");
    }
    if parts.iter().any(|c| c.len() > 255) {
        return Err("a component of its name is longer than 255 bytes");
    }
    if parts.len() > depth {
        return Err("its name is too deep");
    }
    Ok(parts.join(&b'/'))
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn check_xattrs(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<(), &'static str> {
    for (name, value) in xattrs {
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            return Err("it has an overlay extended attribute, which would rewrite the layers below");
        }
        if value.len() > MAX_XATTR || name.len() > 255 || name.contains(&0) {
            return Err("an extended attribute is too long or its name has a NUL");
        }
    }
    Ok(())
}

/// The attributes that mean the same on every host. Labels of a security module and IMA's
/// signatures are the host's own and are left out.
fn is_kept(name: &[u8]) -> bool {
    name == b"security.capability" || name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_")
}

/// Owner, then mode (chown clears set-id bits), then attributes (chown clears capabilities).
fn metadata(parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), Errno> {
    let owner = Some(Uid::from_raw(entry.uid));
    let group = Some(Gid::from_raw(entry.gid));
    rustix::fs::chownat(parent, name, owner, group, AtFlags::SYMLINK_NOFOLLOW)?;
    if !matches!(entry.kind, Kind::Symlink(_)) {
        // The name was made just now and is no link; the layer is private to this thread.
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
    }
    for (key, value) in entry.xattrs.iter().filter(|(k, _)| is_kept(k)) {
        match set_xattr(parent, name, key, value) {
            // user.* on a link or a device, or a file system without ACLs: as containerd, go on without.
            Err(Errno::NOTSUP | Errno::PERM) if key != b"security.capability" => {}
            other => other?,
        }
    }
    Ok(())
}

fn set_times(parent: BorrowedFd<'_>, name: &[u8], (tv_sec, nanos): (i64, u32)) -> Result<(), Errno> {
    let time = Timespec { tv_sec, tv_nsec: nanos.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// There is no lsetxattrat(2) on the kernels we support: the parent goes by its own descriptor's
/// link, and the last component is not followed.
fn set_xattr(parent: BorrowedFd<'_>, name: &[u8], key: &[u8], value: &[u8]) -> Result<(), Errno> {
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    rustix::fs::lsetxattr(path.as_slice(), key, value, XattrFlags::empty())
}

fn proc_path(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(rustix::fs::readlinkat(CWD, link, Vec::new())?.into_bytes())
}

fn depth_of(path: &[u8]) -> usize {
    path.split(|&b| b == b'/').filter(|c| !c.is_empty()).count()
}

fn lstat(parent: &OwnedFd, name: &[u8]) -> Result<Option<rustix::fs::Stat>, Errno> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(other) => Err(other),
    }
}

fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Depth is bounded by [`Limits::depth`], so recursion is.
fn remove_tree(parent: BorrowedFd<'_>, name: &[u8], stat: &rustix::fs::Stat) -> Result<(), Errno> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return rustix::fs::unlinkat(parent, name, AtFlags::empty());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let names: Vec<Vec<u8>> = rustix::fs::Dir::read_from(&directory)?
        .map(|e| e.map(|e| e.file_name().to_bytes().to_vec()))
        .collect::<Result<_, _>>()?;
    for child in names.iter().filter(|n| *n != b"." && *n != b"..") {
        let stat = rustix::fs::statat(&directory, child.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
        remove_tree(directory.as_fd(), child, &stat)?;
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn write_file<R: Read>(tar: &mut TarReader<R>, file: OwnedFd, buffer: &mut [u8]) -> Result<u64, UnpackError> {
    use std::io::Write;
    let mut file = std::fs::File::from(file);
    let mut total = 0;
    loop {
        let n = tar.read_data(buffer)?;
        if n == 0 {
            return Ok(total);
        }
        file.write_all(&buffer[..n]).map_err(UnpackError::Read)?;
        total += n as u64;
    }
}
