//! A pod's volumes of drivers taken down, by what is written down of them: whoever made them may be long gone.

use super::journal::{self, Use};
use super::*;
use crate::volumes::blocking;
use podway_cri::csi::{NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest};

impl Csi {
    /// Unpublishes every volume of the pod `uid`, and unstages those that nobody else uses, side by side: a driver
    /// that hangs or has gone holds up the pod, and none of its other volumes. May be repeated.
    ///
    /// # Errors
    /// The first of the [`Failure`]s.
    pub(in crate::volumes) async fn unmount(&self, uid: &str) -> Result<(), VolumeError> {
        lock(&self.stands).retain(|(of, _), _| of != uid);
        let pod = crate::volumes::pod_dir(&self.root, uid)?;
        let places = blocking("list a pod's volumes", move || journal::places(&pod)).await?;
        let each = futures::future::join_all(places.into_iter().map(|place| self.take_down(place))).await;
        each.into_iter().collect::<Result<Vec<()>, _>>().map(drop)
    }

    async fn take_down(&self, place: PathBuf) -> Result<(), VolumeError> {
        let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let at = |step: &'static str| {
            let name = name.clone();
            move |why: Why| Failure::new(step, &name, why)
        };
        let files = |step| {
            let at = at(step);
            move |error: VolumeError| at(other(error))
        };
        let read = place.clone();
        let used =
            blocking("read a volume's file", move || journal::read(&read)).await.map_err(files(TEARDOWN))?;
        let Some(used) = used else {
            return Ok(clear(place).await.map_err(files(TEARDOWN))?);
        };
        let volume = (used.driver.clone(), used.handle.clone());
        let _turn = self.turn(&volume).await;
        self.unpublish(&used, &place).await.map_err(at(TEARDOWN))?;
        if used.persistent && !self.others_use(&used, &place).await.map_err(files(UNSTAGING))? {
            self.unstage(&volume).await.map_err(at(UNSTAGING))?;
            self.in_use.send_if_modified(|all| all.remove(&unique_name(&used.driver, &used.handle)));
        }
        Ok(clear(place).await.map_err(files(TEARDOWN))?)
    }

    async fn unpublish(&self, used: &Use, place: &Path) -> Result<(), Why> {
        let target = place.join("mount");
        if used.published {
            const WHAT: &str = "Unmounter.TearDownAt failed to get CSI client";
            let driver = self.drivers.find(&used.driver).await;
            let driver = driver.ok_or_else(|| Why::Absent(WHAT, used.driver.clone()))?;
            let request = NodeUnpublishVolumeRequest {
                volume_id: used.handle.clone(),
                target_path: target.display().to_string(),
            };
            let done = driver.unpublish(request).await;
            done.map_err(|error| Why::Said("Unmounter.TearDownAt failed", error))?;
        }
        // That of a driver that forgot to.
        let removed = blocking("remove a volume's directory", move || journal::remove_target(&target));
        removed.await.map_err(other)
    }

    /// Whether a pod has a use of the volume that is not at `place`.
    async fn others_use(&self, used: &Use, place: &Path) -> Result<bool, VolumeError> {
        let (root, used, place) = (self.root.clone(), used.clone(), place.to_owned());
        blocking("look for other uses of a volume", move || {
            let same = |u: &Use| u.driver == used.driver && u.handle == used.handle && u.persistent;
            Ok(journal::uses(&root)?.iter().any(|(at, u)| *at != place && same(u)))
        })
        .await
    }

    async fn unstage(&self, volume: &Volume) -> Result<(), Why> {
        lock(&self.staged).remove(volume);
        let place = self.stage_place(volume);
        if !journal::is_staged(&place) {
            return Ok(());
        }
        const WHAT: &str = "attacher.UnmountDevice failed to create newCsiDriverClient";
        let (name, handle) = volume;
        let driver = self.drivers.find(name).await.ok_or_else(|| Why::Absent(WHAT, name.clone()))?;
        let target = place.join("globalmount");
        let request = NodeUnstageVolumeRequest {
            volume_id: handle.clone(),
            staging_target_path: target.display().to_string(),
        };
        let done = driver.unstage(request).await;
        done.map_err(|error| Why::Said("attacher.UnmountDevice failed", error))?;
        let removed = blocking("forget a stage", move || {
            journal::remove_target(&target)?;
            journal::forget(&place)
        });
        removed.await.map_err(other)
    }
}

/// Removes what is left of a pod's volume.
async fn clear(place: PathBuf) -> Result<(), VolumeError> {
    blocking("forget a volume", move || {
        journal::remove_target(&place.join("mount"))?;
        journal::forget(&place)
    })
    .await
}
