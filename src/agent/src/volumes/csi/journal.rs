//! What is on disk of drivers' volumes, as a kubelet has it: `vol_data.json` beside a pod's volume and beside a staged
//! one. Each is written before its driver is asked, so that whatever a crash leaves is known to the next agent; what
//! a volume is used by is what lies in the pods' directories.
//!
//! Two keys are ours, which a kubelet leaves alone: that the volume is not published yet, and that it is attached.

use super::wanted::digest;
use crate::csi::name::DriverName;
use crate::files;
use crate::volumes::{VolumeError, io_at, mounts};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The file (`volDataFileName`).
const FILE: &str = "vol_data.json";
const UNPUBLISHED: &str = "podway.dev/unpublished";
const ATTACHED: &str = "podway.dev/attached";
/// Where a pod's volumes of drivers are, below its directory.
pub(in crate::volumes) const VOLUMES: &str = "volumes/kubernetes.io~csi";

/// A pod's use of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Use {
    /// The PersistentVolume, or the pod's volume.
    pub(super) volume: String,
    pub(super) driver: DriverName,
    pub(super) handle: String,
    /// Whether it outlives the pod, and may be others', too.
    pub(super) persistent: bool,
    /// Whether the driver may have published it.
    pub(super) published: bool,
    /// Whether it is attached to the node, and must not be detached.
    pub(super) attached: bool,
}

/// A file that says something else.
#[derive(Debug, thiserror::Error)]
#[error("{0} is missing in it, or no such value")]
struct Torn(&'static str);

impl Use {
    fn data(&self, node: &str) -> BTreeMap<&'static str, String> {
        let mode = if self.persistent { "Persistent" } else { "Ephemeral" };
        let mut data = BTreeMap::from([
            ("specVolID", self.volume.clone()),
            ("volumeHandle", self.handle.clone()),
            ("driverName", self.driver.to_string()),
            ("nodeName", node.to_owned()),
            ("volumeLifecycleMode", mode.to_owned()),
            ("attachmentID", digest(&[&self.handle, self.driver.as_str(), node])),
        ]);
        data.extend((!self.published).then(|| (UNPUBLISHED, "true".to_owned())));
        data.extend(self.attached.then(|| (ATTACHED, "true".to_owned())));
        data
    }

    fn parse(mut data: BTreeMap<String, String>) -> Result<Self, Torn> {
        let is =
            |data: &BTreeMap<String, String>, key: &str| data.get(key).is_some_and(|value| value == "true");
        let (unpublished, attached) = (is(&data, UNPUBLISHED), is(&data, ATTACHED));
        let mut take = |key: &'static str| data.remove(key).ok_or(Torn(key));
        Ok(Use {
            volume: take("specVolID")?,
            driver: DriverName::parse(&take("driverName")?).ok_or(Torn("driverName"))?,
            handle: take("volumeHandle")?,
            // A kubelet of long ago had no such key, and no other volumes.
            persistent: take("volumeLifecycleMode").map_or(true, |mode| mode != "Ephemeral"),
            published: !unpublished,
            attached,
        })
    }

    /// Writes it down in the volume's directory `place`.
    pub(super) fn write(&self, place: &Path, node: &str) -> Result<(), VolumeError> {
        put(place, &self.data(node))
    }
}

fn put(place: &Path, data: &BTreeMap<&'static str, String>) -> Result<(), VolumeError> {
    let file = place.join(FILE);
    let text = serde_json::to_vec(data).map_err(|e| io_at("write", &file)(e.into()))?;
    files::replace_for_good(&file, 0o750, &text).map_err(io_at("write", &file))
}

/// Writes down that a volume is about to be staged in `place`.
pub(super) fn write_stage(place: &Path, driver: &DriverName, handle: &str) -> Result<(), VolumeError> {
    put(place, &BTreeMap::from([("volumeHandle", handle.to_owned()), ("driverName", driver.to_string())]))
}

/// Whether a volume is, or may be, staged in `place`.
pub(super) fn is_staged(place: &Path) -> bool {
    place.join(FILE).exists()
}

/// The use that `place` tells of; none where nothing was begun.
pub(super) fn read(place: &Path) -> Result<Option<Use>, VolumeError> {
    let file = place.join(FILE);
    let data = files::recall::<BTreeMap<String, String>>(&file).map_err(io_at("read", &file))?;
    let parsed = data.map(Use::parse).transpose();
    parsed.map_err(|torn| io_at("read", &file)(io::Error::new(io::ErrorKind::InvalidData, torn)))
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    match std::fs::read_dir(dir) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        list => {
            let all = list.and_then(|list| list.map(|entry| entry.map(|e| e.path())).collect());
            all.map_err(io_at("list", dir))
        }
    }
}

/// Where the volumes of drivers of the pod with the directory `pod` are.
pub(super) fn places(pod: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    list(&pod.join(VOLUMES))
}

/// Every use of this node, and where it is written; what cannot be read is not anybody's.
pub(super) fn uses(root: &Path) -> Result<Vec<(PathBuf, Use)>, VolumeError> {
    let mut found = Vec::new();
    for pod in list(&root.join("pods"))? {
        for place in places(&pod)? {
            match read(&place) {
                Ok(one) => found.extend(one.map(|one| (place, one))),
                Err(error) => {
                    tracing::error!(%error, place = %place.display(), "a volume's file is not understood")
                }
            }
        }
    }
    Ok(found)
}

/// Removes the directory that a driver was given to mount at; none of it is touched while something is mounted
/// there, or it is not empty: that is the driver's (`removeMountDir`).
pub(super) fn remove_target(target: &Path) -> Result<(), VolumeError> {
    if mounts::has(target)? {
        return Err(io_at("remove", target)(io::Error::from(io::ErrorKind::ResourceBusy)));
    }
    absent(std::fs::remove_dir(target)).map_err(io_at("remove", target))
}

/// Removes what stands in `place`, in which nothing is mounted any more.
pub(super) fn forget(place: &Path) -> Result<(), VolumeError> {
    let file = place.join(FILE);
    files::forget(&file).map_err(io_at("remove", &file))?;
    absent(std::fs::remove_dir(place)).map_err(io_at("remove", place))
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(published: bool) -> Use {
        Use {
            volume: "pv".to_owned(),
            driver: DriverName::parse("d.example.com").unwrap(),
            handle: "h".to_owned(),
            persistent: true,
            published,
            attached: !published,
        }
    }

    #[test]
    fn a_use_is_written_as_a_kubelet_writes_it_and_read_back() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("pods/u").join(VOLUMES).join("pv");
        assert_eq!(uses(root.path()).unwrap(), []);
        of(true).write(&place, "n").unwrap();
        let text = std::fs::read_to_string(place.join("vol_data.json")).unwrap();
        let attachment = digest(&["h", "d.example.com", "n"]);
        assert_eq!(
            serde_json::from_str::<Value>(&text).unwrap(),
            json!({"specVolID": "pv", "volumeHandle": "h", "driverName": "d.example.com", "nodeName": "n",
                "volumeLifecycleMode": "Persistent", "attachmentID": attachment})
        );
        assert_eq!(read(&place).unwrap(), Some(of(true)));
        of(false).write(&place, "n").unwrap();
        assert_eq!(uses(root.path()).unwrap(), [(place.clone(), of(false))]);
        std::fs::write(place.join("vol_data.json"), "{\"driverName\": \"../x\"}").unwrap();
        assert!(read(&place).is_err());
        forget(&place).unwrap();
        forget(&place).unwrap();
        assert_eq!(read(&place).unwrap(), None);
    }

    #[test]
    fn what_a_driver_has_left_in_its_directory_stays() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("mount");
        std::fs::create_dir(&target).unwrap();
        std::fs::write(target.join("data"), "x").unwrap();
        remove_target(&target).unwrap_err();
        assert!(target.join("data").exists());
        std::fs::remove_file(target.join("data")).unwrap();
        remove_target(&target).unwrap();
        remove_target(&target).unwrap();
    }
}
