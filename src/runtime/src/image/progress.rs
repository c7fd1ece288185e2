//! How far each pull has got, while it runs: told to whoever watches ([`service`]), kept nowhere.
//!
//! A pull holds a [`Track`] and says what happens to it; what it says is counted in memory, and wakes those
//! who watch. A track that is dropped before its end is a pull that was given up. The last ended pulls are
//! remembered, so that a watcher who looks ten times a second misses no end.

mod meter;
pub mod service;

use super::pull::{LayerReport, PullError, chain};
use super::reference::{Digest, ImageRef};
use meter::Meter;
use podway_cri::runtime_v1::{LayerPhase, Pull, PullLayer, PullPhase};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// How many ended pulls are remembered.
const ENDED: usize = 64;

/// All pulls of the process.
#[derive(Debug)]
pub struct Progress {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    running: BTreeMap<u64, Running>,
    begun: u64,
    /// With the number of the end.
    ended: VecDeque<(u64, Pull)>,
    ends: u64,
}

#[derive(Debug)]
struct Running {
    pull: Pull,
    meter: Meter,
}

/// What is told at a moment.
#[derive(Clone, Debug)]
struct Told {
    pulls: Vec<Pull>,
    /// How many pulls had ended by then.
    ends: u64,
}

impl Default for Progress {
    fn default() -> Self {
        Progress { state: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pull of `image` begins; `started_at` in nanoseconds.
    pub(super) fn begin(self: &Arc<Self>, image: &ImageRef, started_at: i64) -> Track {
        let mut state = self.lock();
        state.begun += 1;
        let number = state.begun;
        let pull = Pull { image: image.to_string(), started_at, ..Pull::default() };
        state.running.insert(number, Running { pull, meter: Meter::default() });
        drop(state);
        self.changed.send_replace(());
        Track { progress: Arc::clone(self), number, ended: false }
    }

    /// The pulls that run, and those that ended after the first `since` ends.
    fn told(&self, since: u64, now: Instant) -> Told {
        let state = self.lock();
        let mut pulls: Vec<Pull> = state.running.values().map(|r| r.told(now)).collect();
        pulls.extend(state.ended.iter().filter(|(end, _)| *end > since).map(|(_, pull)| pull.clone()));
        pulls.sort_by_key(|pull| pull.started_at);
        Told { pulls, ends: state.ends }
    }

    fn change(&self, number: u64, change: impl FnOnce(&mut Running)) {
        if let Some(running) = self.lock().running.get_mut(&number) {
            change(running);
        }
        self.changed.send_replace(());
    }
}

impl Running {
    fn told(&self, now: Instant) -> Pull {
        let mut pull = self.pull.clone();
        let there = LayerPhase::LayerAlreadyThere as i32;
        let wanted = pull.layers.iter().filter(|layer| layer.phase != there);
        (pull.total_bytes, pull.received_bytes) =
            wanted.fold((0, 0), |sum, layer| (sum.0 + layer.size_bytes, sum.1 + layer.received_bytes));
        pull.bytes_per_second = self.meter.rate(now);
        let left = pull.total_bytes.saturating_sub(pull.received_bytes);
        let fetching = pull.phase == PullPhase::PullFetching as i32;
        pull.eta_milliseconds =
            left.saturating_mul(1000).checked_div(pull.bytes_per_second).filter(|_| fetching);
        pull
    }
}

/// One pull, as the pull itself has it.
#[derive(Debug)]
pub(super) struct Track {
    progress: Arc<Progress>,
    number: u64,
    ended: bool,
}

impl Track {
    /// The manifest is here.
    pub(super) fn layers(&self, layers: impl Iterator<Item = (Digest, u64)>) {
        let of = |(digest, size_bytes): (Digest, u64)| PullLayer {
            digest: digest.to_string(),
            size_bytes,
            ..PullLayer::default()
        };
        let layers = layers.map(of).collect();
        self.progress.change(self.number, |running| {
            running.pull.phase = PullPhase::PullFetching as i32;
            running.pull.layers = layers;
        });
    }

    /// All layers are there.
    pub(super) fn storing(&self) {
        self.progress.change(self.number, |running| running.pull.phase = PullPhase::PullStoring as i32);
    }

    /// The layer at `index`.
    pub(super) fn layer(&self, index: usize) -> LayerTrack<'_> {
        LayerTrack { track: self, index }
    }

    /// It has ended.
    pub(super) fn end(mut self, error: Option<&PullError>) {
        self.close(error.map(|error| chain(error)));
    }

    fn close(&mut self, error: Option<String>) {
        self.ended = true;
        let mut state = self.progress.lock();
        if let Some(running) = state.running.remove(&self.number) {
            let mut pull = running.told(Instant::now());
            let phase = if error.is_some() { PullPhase::PullFailed } else { PullPhase::PullDone };
            (pull.phase, pull.error) = (phase as i32, error.unwrap_or_default());
            (pull.bytes_per_second, pull.eta_milliseconds) = (0, None);
            state.ends += 1;
            let end = state.ends;
            state.ended.push_back((end, pull));
            if state.ended.len() > ENDED {
                state.ended.pop_front();
            }
        }
        drop(state);
        self.progress.changed.send_replace(());
    }
}

impl Drop for Track {
    fn drop(&mut self) {
        if !self.ended {
            self.close(Some("given up: nobody waits for it any more".to_owned()));
        }
    }
}

/// One layer of a pull.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerTrack<'a> {
    track: &'a Track,
    index: usize,
}

impl LayerTrack<'_> {
    fn change(&self, change: impl FnOnce(&mut PullLayer, &mut Meter)) {
        self.track.progress.change(self.track.number, |running| {
            if let Some(layer) = running.pull.layers.get_mut(self.index) {
                change(layer, &mut running.meter);
            }
        });
    }

    /// It is fetched, from its first byte.
    pub(super) fn begins(&self) {
        self.change(|layer, _| {
            layer.phase = LayerPhase::LayerDownloading as i32;
            layer.received_bytes = 0;
        });
    }

    /// So many bytes more have come.
    pub(super) fn received(&self, bytes: u64) {
        self.change(|layer, meter| {
            layer.received_bytes = layer.received_bytes.saturating_add(bytes);
            if layer.received_bytes >= layer.size_bytes {
                layer.phase = LayerPhase::LayerUnpacking as i32;
            }
            meter.add(Instant::now(), bytes);
        });
    }

    /// It is in its place.
    pub(super) fn done(&self, report: &LayerReport) {
        let phase = match report.endpoint {
            Some(_) => LayerPhase::LayerDone,
            None => LayerPhase::LayerAlreadyThere,
        };
        self.change(|layer, _| layer.phase = phase as i32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(endpoint: Option<&str>) -> LayerReport {
        let endpoint = endpoint.map(str::to_owned);
        LayerReport { digest: Digest::of(b"x"), bytes: 0, micros: 0, endpoint, resumed: 0 }
    }

    #[test]
    fn a_pull_is_told_layer_by_layer_and_its_end_once_to_each_who_watches() {
        let progress = Arc::new(Progress::default());
        let image = ImageRef::parse("busybox").unwrap();
        let track = progress.begin(&image, 7);
        let now = Instant::now;
        let one = |since| {
            let told = progress.told(since, now());
            assert_eq!(told.pulls.len(), 1);
            (told.pulls[0].clone(), told.ends)
        };
        let (pull, _) = one(0);
        assert_eq!((pull.image.as_str(), pull.started_at), ("docker.io/library/busybox:latest", 7));
        assert_eq!((pull.phase(), pull.eta_milliseconds), (PullPhase::PullResolving, None));

        track.layers([(Digest::of(b"a"), 1000), (Digest::of(b"b"), 500)].into_iter());
        track.layer(1).done(&report(None));
        track.layer(0).begins();
        track.layer(0).received(400);
        let (pull, _) = one(0);
        assert_eq!((pull.total_bytes, pull.received_bytes), (1000, 400), "what is there need not come");
        assert!(pull.bytes_per_second > 0 && pull.eta_milliseconds.is_some());
        assert_eq!(pull.layers[1].phase(), LayerPhase::LayerAlreadyThere);
        // Taken up from its start by another endpoint.
        track.layer(0).begins();
        assert_eq!(one(0).0.received_bytes, 0);
        track.layer(0).received(1000);
        assert_eq!(one(0).0.layers[0].phase(), LayerPhase::LayerUnpacking);
        track.layer(0).done(&report(Some("http://r")));
        track.storing();
        let (pull, ends) = one(0);
        assert_eq!((pull.layers[0].phase(), pull.phase()), (LayerPhase::LayerDone, PullPhase::PullStoring));
        assert_eq!((pull.eta_milliseconds, ends), (None, 0));
        track.end(None);
        let (pull, ends) = one(0);
        assert_eq!((pull.phase(), ends), (PullPhase::PullDone, 1));
        assert!(progress.told(1, now()).pulls.is_empty(), "told once");
    }

    #[test]
    fn a_pull_that_is_given_up_has_failed_and_of_the_ended_a_few_are_kept() {
        let progress = Arc::new(Progress::default());
        for n in 0..i64::try_from(ENDED).unwrap() + 10 {
            drop(progress.begin(&ImageRef::parse("x").unwrap(), n));
        }
        let told = progress.told(0, Instant::now());
        assert_eq!(told.pulls.len(), ENDED);
        assert!(
            told.pulls.iter().all(|p| p.phase() == PullPhase::PullFailed && p.error.contains("given up"))
        );
        let error = PullError::NoEndpoint("r".to_owned(), "pull");
        progress.begin(&ImageRef::parse("x").unwrap(), 1000).end(Some(&error));
        assert!(progress.told(told.ends, Instant::now()).pulls[0].error.contains("no endpoint of r"));
    }
}
