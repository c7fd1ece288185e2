//! Image volumes: an image's files, read-only, at a place in a container.
//!
//! Each is an overlay of the image's layers in the bundle, which the container has as a bind mount. What
//! was asked for is kept with the image that was taken, as the container's status tells it.

use crate::error::OpError;
use crate::ids::Id;
use crate::rootfs::{self, Layer, Owner};
use crate::spec::SpecError;
use crate::state::Runtime;
use podway_cri::v1::ContainerConfig;
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

/// What the images of a container's volumes stand on.
pub(super) type Layers = Vec<Vec<Layer>>;

/// Finds the images of `config`'s volumes and notes in it which they are; gives their layers, in order.
pub(super) fn find(runtime: &Runtime, config: &mut ContainerConfig) -> Result<Layers, OpError> {
    let mut all = Vec::new();
    for mount in &mut config.mounts {
        let bad = |why| OpError::from(SpecError::Mount(mount.container_path.clone(), why));
        let Some(asked) = &mut mount.image else {
            if mount.image_sub_path.is_empty() {
                continue;
            }
            return Err(bad("image_sub_path is set without an image"));
        };
        if !mount.host_path.is_empty() {
            return Err(bad("image and host_path cannot both be set"));
        }
        if !mount.readonly {
            return Err(bad("an image volume must be readonly"));
        }
        if mount.propagation != 0 {
            return Err(bad("an image volume must have private propagation"));
        }
        let image = runtime
            .images
            .resolve(&asked.image)
            .ok_or_else(|| OpError::NotFound("image", asked.image.clone()))?;
        asked.image_ref.clone_from(&image.id);
        all.push(image.layers);
    }
    Ok(all)
}

/// Mounts them in the bundle, and names their places in `config`. Blocks.
pub(super) fn mount(
    runtime: &Runtime,
    id: &Id,
    config: &mut ContainerConfig,
    layers: &Layers,
    owner: Option<&Owner>,
) -> Result<(), OpError> {
    let images = config.mounts.iter_mut().filter(|m| m.image.is_some());
    for ((number, mount), layers) in images.enumerate().zip(layers) {
        let place = runtime.bundle(id).join("volumes").join(number.to_string());
        let data = runtime.container_dir(id).join("volumes").join(number.to_string());
        rootfs::mount_overlay(layers, &data, &place, owner)?;
        let found = below(&place, &mount.image_sub_path).map_err(|source| {
            OpError::Invalid(format!(
                "image_sub_path {:?} of the image volume at {:?} cannot be used: {source}",
                mount.image_sub_path, mount.container_path
            ))
        })?;
        mount.host_path = found.display().to_string();
        // The namespace's ids are those of the layers' mapping already.
        mount.uid_mappings.clear();
        mount.gid_mappings.clear();
    }
    Ok(())
}

/// A path inside of `root`, whatever links lead to it.
fn below(root: &Path, path: &str) -> std::io::Result<PathBuf> {
    if path.is_empty() {
        return Ok(root.to_owned());
    }
    if Path::new(path).is_absolute() || Path::new(path).components().any(|c| c.as_os_str() == "..") {
        return Err(std::io::Error::other("it must be relative and without `..`"));
    }
    let top = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let found = openat2(&top, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

/// Unmounts them. Blocks.
pub(super) fn unmount(runtime: &Runtime, id: &Id) -> Result<(), OpError> {
    let dir = runtime.bundle(id).join("volumes");
    // What a killed runtime left of the mapped layers lies beside the volumes, and is mounts as they are.
    let lower: Vec<PathBuf> = std::fs::read_dir(&dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "lower"))
        .chain([runtime.bundle(id).join("rootfs.lower")])
        .collect();
    for dir in lower.iter().chain([&dir]) {
        rootfs::unmount_in(dir).map_err(|e| OpError::Io("unmount an image volume", e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_path_stays_inside() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink("/a", root.path().join("link")).unwrap();
        std::os::unix::fs::symlink("../../../etc", root.path().join("out")).unwrap();
        let real = std::fs::canonicalize(root.path()).unwrap();
        assert_eq!(below(root.path(), "").unwrap(), root.path());
        assert_eq!(below(root.path(), "a/b").unwrap(), real.join("a/b"));
        assert_eq!(below(root.path(), "link/b").unwrap(), real.join("a/b"));
        for bad in ["missing", "/a", "a/../a", "out"] {
            assert!(below(root.path(), bad).is_err(), "{bad}");
        }
    }
}
