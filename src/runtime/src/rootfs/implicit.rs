//! Directories that a layer's archive did not name, only what is in them.
//!
//! A layer is unpacked by itself, so such a directory is made with a mode of our own choice, and in
//! the overlay it would hide what a lower layer says: `/tmp` would lose its 1777, and `/bin` that is
//! a link to `usr/bin` below would become a directory with a single file. So each container's own
//! directory, which lies on top, is given what the lower layer says before the overlay is mounted.
//!
//! Layers are hostile: every look into one is by openat2 and follows no link; in the container's
//! directory nothing is made behind a link.

use super::{Layer, is_whiteout};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};

/// The most of these directories that an image is looked after for.
pub const LIMIT: usize = 16 * 1024;

/// What a layer has at a path, its own directories that are implicit left out.
enum Found {
    Nothing,
    /// Whatever is below is hidden.
    End,
    Directory,
    Link(PathBuf),
}

fn open(root: &Path, path: &Path) -> Option<OwnedFd> {
    let root =
        rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // NOFOLLOW with PATH opens a link itself; NO_SYMLINKS would refuse it. The parents must be plain.
    let (parent, name) = (path.parent()?, path.file_name()?);
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let dir = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::openat2(&root, parent, dir, Mode::empty(), within).ok()?;
    rustix::fs::openat(&parent, name, flags, Mode::empty()).ok()
}

fn opaque(fd: &OwnedFd) -> bool {
    let mut value = [0; 2];
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    matches!(rustix::fs::getxattr(path, "trusted.overlay.opaque", &mut value), Ok(1)) && value[0] == b'y'
}

fn look(layer: &Layer, path: &Path) -> Found {
    // A parent that is no directory here, or an opaque one, hides what is below.
    let mut parents: Vec<&Path> = path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
    parents.reverse();
    let mut hides = false;
    for parent in parents {
        let Some(fd) = open(&layer.dir, parent) else {
            return if hides { Found::End } else { Found::Nothing };
        };
        let kind = rustix::fs::fstat(&fd).map(|s| FileType::from_raw_mode(s.st_mode));
        if !matches!(kind, Ok(FileType::Directory)) {
            return Found::End;
        }
        hides |= opaque(&fd);
    }
    let nothing = if hides { Found::End } else { Found::Nothing };
    let Some(fd) = open(&layer.dir, path) else { return nothing };
    match rustix::fs::fstat(&fd).map(|s| FileType::from_raw_mode(s.st_mode)) {
        Ok(FileType::Directory) if layer.implicit.iter().any(|p| p == path) => nothing,
        Ok(FileType::Directory) => Found::Directory,
        Ok(FileType::Symlink) => match rustix::fs::readlinkat(&fd, "", Vec::new()) {
            Ok(target) => Found::Link(PathBuf::from(OsStr::from_bytes(target.as_bytes()))),
            Err(_) => Found::End,
        },
        _ => Found::End,
    }
}

/// The topmost of `layers` (bottom → top) that says what `path` is, and what it says.
fn lookup<'a>(layers: &'a [Layer], path: &Path) -> Option<(&'a Layer, Found)> {
    for layer in layers.iter().rev() {
        match look(layer, path) {
            Found::Nothing => {}
            Found::End => return None,
            found => return Some((layer, found)),
        }
    }
    None
}

/// Keeps of each layer's implicit directories those that a lower layer says something of. Done once
/// per image; what is left is few.
#[must_use]
pub fn relevant(layers: &[Layer]) -> Vec<Layer> {
    let kept = |i: usize, layer: &Layer| {
        let spoken_of = |p: &&PathBuf| lookup(&layers[..i], p).is_some();
        layer.implicit.iter().take(LIMIT).filter(spoken_of).cloned().collect()
    };
    layers
        .iter()
        .enumerate()
        .map(|(i, layer)| Layer { dir: layer.dir.clone(), implicit: kept(i, layer) })
        .collect()
}

/// Gives `upper` what lower layers say of the implicit directories of upper ones.
///
/// # Errors
/// The kernel's.
pub fn apply(layers: &[Layer], upper: &Path) -> io::Result<()> {
    let mut links = Vec::new();
    let mut made = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        for path in &layer.implicit {
            // A layer above that names the path itself has the last word already.
            if !layers[i + 1..].iter().all(|above| matches!(look(above, path), Found::Nothing)) {
                continue;
            }
            match lookup(&layers[..i], path) {
                Some((_, Found::Directory)) => {
                    directories(layers, upper, path, &mut made)?;
                }
                Some((below, Found::Link(target))) => links.push((i, path, below, target)),
                _ => {}
            }
        }
    }
    for (i, path, below, target) in links {
        let Some(target) = inside(path, &target) else { continue };
        // Only a link to a plain directory: a chain of links would need all of the overlay's rules.
        if !matches!(lookup(layers, &target), Some((_, Found::Directory)))
            || !directories(layers, upper, &target, &mut made)?
        {
            tracing::warn!(path = %path.display(), "a layer writes through a link of a lower layer that is not followed");
            continue;
        }
        merge(layers, i, path, &target, upper, &mut made)?;
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty())
            && !directories(layers, upper, parent, &mut made)?
        {
            continue;
        }
        if !upper.join(path).exists() {
            copy(&below.dir.join(path), &upper.join(path))?;
        }
    }
    // Making an entry touches its directory: the times come last.
    for (path, meta) in made.into_iter().rev() {
        times(&path, &meta)?;
    }
    Ok(())
}

/// Where a link leads, within the root.
fn inside(link: &Path, target: &Path) -> Option<PathBuf> {
    let mut at = if target.is_absolute() { PathBuf::new() } else { link.parent()?.to_owned() };
    for component in target.components() {
        match component {
            Component::Normal(name) => at.push(name),
            Component::ParentDir => drop(at.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    (!at.as_os_str().is_empty()).then_some(at)
}

type Made = Vec<(PathBuf, fs::Metadata)>;

/// Makes `path` and its parents in `upper` as the layers have them; `false` if a link is in the way.
fn directories(layers: &[Layer], upper: &Path, path: &Path, made: &mut Made) -> io::Result<bool> {
    let mut at = PathBuf::new();
    for component in path.components() {
        at.push(component);
        let target = upper.join(&at);
        match fs::symlink_metadata(&target) {
            Ok(meta) if meta.is_dir() => continue,
            Ok(_) => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let named = lookup(layers, &at).filter(|(_, found)| matches!(found, Found::Directory));
        let source = named.map(|(layer, _)| layer.dir.join(&at));
        // A directory that every layer only implies is as the unpacker made it.
        let source = source.or_else(|| layers.iter().rev().map(|l| l.dir.join(&at)).find(|p| p.is_dir()));
        let Some(source) = source else { return Ok(false) };
        made.push((target.clone(), directory(&source, &target)?));
    }
    Ok(true)
}

fn directory(source: &Path, target: &Path) -> io::Result<fs::Metadata> {
    let meta = fs::symlink_metadata(source)?;
    fs::DirBuilder::new().mode(0o700).create(target)?;
    attributes(source, target, &meta)?;
    Ok(meta)
}

/// Copies what layer `i` has below `from` to below `to` in `upper`, where no layer above has its own.
fn merge(
    layers: &[Layer],
    i: usize,
    from: &Path,
    to: &Path,
    upper: &Path,
    made: &mut Made,
) -> io::Result<()> {
    for entry in fs::read_dir(layers[i].dir.join(from))? {
        let entry = entry?;
        let (from, to) = (from.join(entry.file_name()), to.join(entry.file_name()));
        if !layers[i + 1..].iter().all(|above| open(&above.dir, &to).is_none()) {
            continue;
        }
        let target = upper.join(&to);
        if entry.file_type()?.is_dir() {
            let plain = if matches!(lookup(&layers[..i], &to), Some((_, Found::Directory))) {
                directories(layers, upper, &to, made)?
            } else {
                if fs::symlink_metadata(&target).is_err() {
                    made.push((target.clone(), directory(&entry.path(), &target)?));
                }
                true
            };
            if plain {
                merge(layers, i, &from, &to, upper, made)?;
            }
        } else if fs::symlink_metadata(&target).is_err() {
            copy(&entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Copies one entry that is no directory; whiteouts are devices like others.
fn copy(source: &Path, target: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(source)?;
    let kind = meta.file_type();
    if kind.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(source)?, target)?;
        std::os::unix::fs::lchown(target, Some(meta.uid()), Some(meta.gid()))?;
        return times(target, &meta);
    }
    if kind.is_file() {
        fs::copy(source, target)?;
    } else {
        let kind = if kind.is_block_device() {
            FileType::BlockDevice
        } else if kind.is_char_device() {
            FileType::CharacterDevice
        } else {
            FileType::Fifo
        };
        rustix::fs::mknodat(CWD, target, kind, Mode::from_raw_mode(0o600), meta.rdev())?;
        if is_whiteout(&meta) {
            return Ok(());
        }
    }
    attributes(source, target, &meta)?;
    times(target, &meta)
}

/// Owner, mode (chown clears set-id bits), then attributes (chown clears capabilities).
fn attributes(source: &Path, target: &Path, meta: &fs::Metadata) -> io::Result<()> {
    std::os::unix::fs::lchown(target, Some(meta.uid()), Some(meta.gid()))?;
    rustix::fs::chmodat(
        CWD,
        target,
        Mode::from_raw_mode(meta.mode() & 0o7777),
        rustix::fs::AtFlags::empty(),
    )?;
    for name in xattr::list(source)? {
        // The overlay's own marks speak of the layer that they are in.
        if !name.as_bytes().starts_with(b"trusted.overlay.")
            && let Some(value) = xattr::get(source, &name)?
        {
            xattr::set(target, &name, &value)?;
        }
    }
    Ok(())
}

fn times(target: &Path, meta: &fs::Metadata) -> io::Result<()> {
    let time = rustix::fs::Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, target, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn layer(root: &Path, name: &str, implicit: &[&str]) -> Layer {
        let dir = root.join(name);
        fs::create_dir(&dir).unwrap();
        Layer { dir, implicit: implicit.iter().map(PathBuf::from).collect() }
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    /// Debian's usrmerge below, an archive that names only files above, then one more.
    #[test]
    fn a_lower_layers_mode_and_link_are_kept() {
        let tmp = tempfile::tempdir().unwrap();
        let base = layer(tmp.path(), "0", &[]);
        let files = layer(tmp.path(), "1", &["tmp", "bin", "bin/sub", "new", "escape"]);
        let top = layer(tmp.path(), "2", &["usr", "usr/bin"]);
        fs::create_dir_all(base.dir.join("usr/bin/sub")).unwrap();
        fs::create_dir(base.dir.join("tmp")).unwrap();
        fs::set_permissions(base.dir.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        std::os::unix::fs::symlink("usr/bin", base.dir.join("bin")).unwrap();
        std::os::unix::fs::symlink("../../../../etc", base.dir.join("escape")).unwrap();
        for (path, text) in [
            ("tmp/f", "f"),
            ("bin/tool", "1"),
            ("bin/both", "1"),
            ("bin/sub/x", "x"),
            ("new/n", "n"),
            ("escape/e", "e"),
        ] {
            let file = files.dir.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        fs::create_dir_all(top.dir.join("usr/bin")).unwrap();
        fs::write(top.dir.join("usr/bin/both"), "2").unwrap();

        let layers = relevant(&[base, files, top]);
        assert_eq!(layers[1].implicit, ["tmp", "bin", "escape"].map(PathBuf::from));
        let upper = tmp.path().join("upper");
        fs::create_dir(&upper).unwrap();
        apply(&layers, &upper).unwrap();
        assert_eq!(mode(&upper.join("tmp")), 0o1777);
        assert_eq!(fs::read_link(upper.join("bin")).unwrap(), Path::new("usr/bin"));
        assert_eq!(fs::read_to_string(upper.join("usr/bin/tool")).unwrap(), "1");
        assert_eq!(fs::read_to_string(upper.join("usr/bin/sub/x")).unwrap(), "x");
        assert!(!upper.join("usr/bin/both").exists(), "the top layer's own stays");
        assert!(!Path::new("/etc/e").exists() && !upper.join("etc").exists());

        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let (data, target) = (tmp.path().join("data"), tmp.path().join("root"));
        crate::rootfs::mount_overlay(&layers, &data, &target, None).unwrap();
        let seen = (
            mode(&target.join("tmp")),
            fs::read_to_string(target.join("bin/both")),
            target.join("new/n").exists(),
        );
        crate::rootfs::unmount(&target).unwrap();
        assert_eq!((seen.0, seen.1.unwrap().as_str(), seen.2), (0o1777, "2", true));
    }
}
