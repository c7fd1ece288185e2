//! What a container changed of its image: an archive of what it wrote and a list of what it deleted, in the form
//! of podman and CRI-O (`rootfs-diff.tar`, `deleted.files`).
//!
//! The overlay's upper directory says what has changed; what a thing is now is read through the overlay, for a
//! kernel may leave what was only renamed below. Files are the container's, so hostile; but its processes are
//! frozen meanwhile, no link is followed, and how deep directories are is no matter of our stack.

use crate::rootfs::{Layer, is_whiteout};
use crate::spec::Mapping;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::io::{self, Read as _, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// A container's root filesystem in its parts.
pub(super) struct Root {
    /// The image's layers, bottom → top.
    pub layers: Vec<Layer>,
    /// What the container wrote.
    pub upper: PathBuf,
    /// The overlay.
    pub merged: PathBuf,
    /// Where something is mounted, relative to the root: what is below is not of the root filesystem.
    pub mounted: BTreeSet<PathBuf>,
    /// The pod's user namespace: the archive has ids as the container sees them.
    pub owner: Option<Mapping>,
}

/// Writes the archive to `to`; gives the absolute paths that were deleted.
pub(super) fn write(root: &Root, to: impl Write) -> io::Result<Vec<String>> {
    let mut archive = Archive { root, tar: tar::Builder::new(to), links: HashMap::new() };
    let mut deleted = BTreeSet::new();
    // Directories to look into, and whether nothing of the image's shows through there.
    let mut waiting = vec![(PathBuf::new(), false)];
    while let Some((dir, whole)) = waiting.pop() {
        if whole {
            deleted.extend(root.gone(&dir)?);
        }
        for name in names(&if whole { &root.merged } else { &root.upper }.join(&dir))? {
            let path = dir.join(name);
            if root.mounted.contains(&path) {
                continue;
            }
            let upper = root.upper.join(&path);
            if !whole && is_whiteout(&std::fs::symlink_metadata(&upper)?) {
                deleted.insert(path);
                continue;
            }
            let meta = std::fs::symlink_metadata(root.merged.join(&path))?;
            archive.append(&path, &meta)?;
            if meta.is_dir() {
                let whole = whole || covers(&upper)?;
                waiting.push((path, whole));
            }
        }
    }
    archive.tar.into_inner()?.flush()?;
    Ok(deleted.iter().map(|path| Path::new("/").join(path).to_string_lossy().into_owned()).collect())
}

fn names(dir: &Path) -> io::Result<BTreeSet<OsString>> {
    std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
}

fn is_opaque(dir: &Path) -> io::Result<bool> {
    Ok(xattr::get(dir, "trusted.overlay.opaque")?.is_some_and(|value| value == b"y"))
}

/// Whether a directory of the upper one hides the image's of its name: it was made anew, or renamed to here.
fn covers(dir: &Path) -> io::Result<bool> {
    Ok(is_opaque(dir)? || xattr::get(dir, "trusted.overlay.redirect")?.is_some())
}

impl Root {
    /// What the image has in `dir`, of which nothing shows through, and the container has no more.
    fn gone(&self, dir: &Path) -> io::Result<BTreeSet<PathBuf>> {
        let (mut there, mut hidden) = (BTreeSet::new(), BTreeSet::new());
        for layer in self.layers.iter().rev() {
            let (look, last) = into(&layer.dir, dir)?;
            for name in if look { names(&layer.dir.join(dir))? } else { BTreeSet::new() } {
                let path = dir.join(&name);
                if is_whiteout(&std::fs::symlink_metadata(layer.dir.join(&path))?) {
                    hidden.insert(path);
                } else if !hidden.contains(&path) {
                    there.insert(path);
                }
            }
            if last {
                break;
            }
        }
        let is_gone = |path: &PathBuf| std::fs::symlink_metadata(self.merged.join(path)).is_err();
        Ok(there.into_iter().filter(is_gone).collect())
    }
}

/// Whether a layer has `dir` as a directory, and whether what it has there hides the layers below.
fn into(layer: &Path, dir: &Path) -> io::Result<(bool, bool)> {
    let mut last = false;
    let mut at = layer.to_owned();
    for part in dir {
        at.push(part);
        match std::fs::symlink_metadata(&at) {
            Ok(meta) if meta.is_dir() => last |= is_opaque(&at)?,
            Ok(_) => return Ok((false, true)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((false, last)),
            Err(e) => return Err(e),
        }
    }
    Ok((true, last))
}

struct Archive<'a, W: Write> {
    root: &'a Root,
    tar: tar::Builder<W>,
    /// Files of more than one name, by device and inode: where the first is in the archive.
    links: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Archive<'_, W> {
    fn append(&mut self, path: &Path, meta: &std::fs::Metadata) -> io::Result<()> {
        let kind = meta.file_type();
        if kind.is_socket() {
            // It is its process' to make, and no archive has a form for it.
            return Ok(());
        }
        let source = self.root.merged.join(path);
        let mut header = tar::Header::new_gnu();
        header.set_metadata(meta);
        header.set_uid(self.id(meta.uid()));
        header.set_gid(self.id(meta.gid()));
        if !kind.is_file() {
            header.set_size(0);
        }
        if kind.is_file() && meta.nlink() > 1 {
            if let Some(first) = self.links.get(&(meta.dev(), meta.ino())) {
                header.set_entry_type(tar::EntryType::Link);
                header.set_size(0);
                return self.tar.append_link(&mut header, path, first);
            }
            self.links.insert((meta.dev(), meta.ino()), path.to_owned());
        }
        if kind.is_symlink() {
            return self.tar.append_link(&mut header, path, std::fs::read_link(source)?);
        }
        if kind.is_file() || kind.is_dir() {
            self.attributes(&source)?;
        }
        if kind.is_file() {
            let mut options = std::fs::OpenOptions::new();
            options.read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK);
            return self.tar.append_data(&mut header, path, options.open(source)?.take(meta.len()));
        }
        self.tar.append_data(&mut header, path, io::empty())
    }

    /// Capabilities of a file, access lists and the like, as a pax header before its entry.
    fn attributes(&mut self, source: &Path) -> io::Result<()> {
        let mut found = Vec::new();
        for name in xattr::list(source)? {
            // The overlay's own, and labels of this machine's policy, mean nothing elsewhere.
            let Some(text) = name.to_str() else { continue };
            if !text.starts_with("trusted.")
                && text != "security.selinux"
                && let Some(value) = xattr::get(source, &name)?
            {
                found.push((format!("SCHILY.xattr.{text}"), value));
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        self.tar.append_pax_extensions(found.iter().map(|(key, value)| (key.as_str(), value.as_slice())))
    }

    fn id(&self, host: u32) -> u64 {
        let inside = self.root.owner.and_then(|m| host.checked_sub(m.host).filter(|id| *id < m.length));
        u64::from(inside.unwrap_or(host))
    }
}

#[cfg(test)]
mod tests;
