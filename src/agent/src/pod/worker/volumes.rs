//! A worker's volumes: set up at first, and brought up to date when what they show changes (a config map
//! or secret, a field of the pod, a token whose time is over), or their driver wants to be asked again.

use super::*;
use crate::volumes::follow;

impl Worker {
    /// Sees to the volumes. Returns when to ask again.
    pub(super) fn want_volumes(&mut self, now: Micros) -> Option<Micros> {
        let due = self.refresh.filter(|at| *at <= now).is_some();
        let fresh = self.journal.volumes_ready && !self.changed && !due;
        if fresh || self.runs(&Key::Volumes) {
            return self.refresh.filter(|at| *at > now);
        }
        if let Some(at) = self.waits(&Key::Volumes, now) {
            return Some(at);
        }
        if self.following.is_none() {
            self.following = Some(self.context.volumes.follow(&self.pod.object, &self.changes));
        }
        // What changes from here on is seen by the next round.
        (self.changed, self.refresh) = (false, None);
        let first = !self.journal.volumes_ready;
        let open = first.then(|| record(Phase::VolumesMounted, None, now, None, "Running"));
        let (context, pod, quit) = (self.context.clone(), self.pod.clone(), self.ends.clone());
        self.spawn(Key::Volumes, open.into_iter().collect(), async move {
            let (result, records) = actions::mount(context, pod, quit).await;
            Done::Volumes(result, records)
        });
        None
    }

    /// Takes over what setting up or bringing up to date came to.
    pub(super) fn mounted(
        &mut self,
        result: Result<BTreeMap<String, MountedVolume>, VolumeError>,
        records: Vec<Record>,
    ) -> bool {
        // A pod's start has one VolumesMounted of each volume; later changes are none of it.
        if !self.journal.volumes_ready {
            self.start.absorb(records);
        }
        match result {
            Ok(volumes) => {
                self.volumes = volumes;
                self.journal.volumes_ready = true;
                let refresh = self.context.volumes.refresh(&self.pod.uid);
                self.refresh = refresh.map(|at| Micros(at.as_microsecond()));
                true
            }
            Err(error) => {
                let text = match &error {
                    // It says itself which step of which volume.
                    VolumeError::Csi(_) => chain(&error),
                    _ => format!("MountVolume.SetUp failed: {}", chain(&error)),
                };
                self.last_error = Some(text.clone());
                // What fails since the pod goes is no news.
                if !self.ends.is_cancelled() {
                    self.warn("FailedMount", &text);
                }
                self.changed = true;
                false
            }
        }
    }

    /// A newer object: its volumes may show labels, annotations or resources of it.
    pub(super) fn fields_changed(&mut self, old: &api::Pod, new: &api::Pod) {
        let resources = |p: &api::Pod| {
            let spec = p.spec.clone().unwrap_or_default();
            spec.containers.into_iter().map(|c| c.resources).collect::<Vec<_>>()
        };
        let shows = new.spec.iter().flat_map(|s| s.volumes.iter().flatten()).any(follow::shows_fields);
        self.changed |= shows
            && (old.metadata.labels != new.metadata.labels
                || old.metadata.annotations != new.metadata.annotations
                || resources(old) != resources(new));
    }
}
