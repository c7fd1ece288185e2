//! A volume given to the pod's `fsGroup` (`SetVolumeOwnership` of pkg/volume): all that is in it, and what is made in
//! it later.

use super::{VolumeError, io_at};
use k8s_openapi::api::core::v1::Pod;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

/// The group that a pod wants its volumes to be given to.
pub(super) fn group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    context.and_then(|context| context.fs_group).and_then(|group| u32::try_from(group).ok())
}

/// Gives the volume at `path` to the group. A volume that stands right at its top is left as it is, unless
/// `always`; a link is never followed.
pub(super) fn give(path: &Path, gid: u32, always: bool) -> Result<(), VolumeError> {
    let stat = std::fs::symlink_metadata(path).map_err(io_at("stat", path))?;
    if !always && stat.gid() == gid && stat.mode() & 0o2060 == 0o2060 {
        return Ok(());
    }
    let mut left: Vec<PathBuf> = vec![path.to_owned()];
    while let Some(at) = left.pop() {
        let stat = std::fs::symlink_metadata(&at).map_err(io_at("stat", &at))?;
        if stat.is_symlink() {
            continue;
        }
        chown(&at, None, Some(gid)).map_err(io_at("chown", &at))?;
        let more = if stat.is_dir() { 0o2770 } else { 0o660 };
        let mode = std::fs::Permissions::from_mode((stat.mode() | more) & 0o7777);
        std::fs::set_permissions(&at, mode).map_err(io_at("chmod", &at))?;
        if stat.is_dir() {
            for entry in std::fs::read_dir(&at).map_err(io_at("list", &at))? {
                left.push(entry.map_err(io_at("list", &at))?.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_given_to_the_group_and_a_link_out_of_it_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("v"), dir.path().join("o"));
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(volume.join("f"), "x").unwrap();
        std::fs::write(&outside, "x").unwrap();
        let set = |p: &Path| std::fs::set_permissions(p, std::fs::Permissions::from_mode(0o600)).unwrap();
        set(&outside);
        std::os::unix::fs::symlink(&outside, volume.join("l")).unwrap();
        let own = std::fs::metadata(&volume).unwrap().gid();
        give(&volume, own, false).unwrap();
        let mode = |p: &Path| std::fs::symlink_metadata(p).unwrap().mode() & 0o7777;
        assert_eq!(mode(&volume) & 0o2770, 0o2770);
        assert_eq!((mode(&volume.join("f")) & 0o660, mode(&outside)), (0o660, 0o600));
        set(&volume.join("f"));
        give(&volume, own, false).unwrap();
        assert_eq!(mode(&volume.join("f")), 0o600, "its top stands right");
        give(&volume, own, true).unwrap();
        assert_eq!(mode(&volume.join("f")), 0o660);
    }
}
