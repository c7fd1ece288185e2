//! What the runtime tells of pulls, as all others show it.

use crate::runtime_v1::{LayerPhase, Pull, PullLayer, PullPhase, WatchPullsResponse};
use podway_flow::pulls::{self, LayerState, Pulls, State};

impl From<WatchPullsResponse> for Pulls {
    fn from(told: WatchPullsResponse) -> Self {
        Pulls { pulls: told.pulls.into_iter().map(pulls::Pull::from).collect() }
    }
}

impl From<Pull> for pulls::Pull {
    fn from(told: Pull) -> Self {
        let phase = match told.phase() {
            PullPhase::PullResolving => State::Resolving,
            PullPhase::PullFetching => State::Fetching,
            PullPhase::PullStoring => State::Storing,
            PullPhase::PullDone => State::Done,
            PullPhase::PullFailed => State::Failed,
        };
        pulls::Pull {
            image: told.image,
            started_at: told.started_at,
            phase,
            error: told.error,
            total_bytes: told.total_bytes,
            received_bytes: told.received_bytes,
            bytes_per_second: told.bytes_per_second,
            eta_milliseconds: told.eta_milliseconds,
            layers: told.layers.into_iter().map(pulls::Layer::from).collect(),
        }
    }
}

impl From<PullLayer> for pulls::Layer {
    fn from(told: PullLayer) -> Self {
        let phase = match told.phase() {
            LayerPhase::LayerWaiting => LayerState::Waiting,
            LayerPhase::LayerDownloading => LayerState::Downloading,
            LayerPhase::LayerUnpacking => LayerState::Unpacking,
            LayerPhase::LayerDone => LayerState::Done,
            LayerPhase::LayerAlreadyThere => LayerState::AlreadyThere,
        };
        let PullLayer { digest, size_bytes, received_bytes, .. } = told;
        pulls::Layer { digest, size_bytes, received_bytes, phase }
    }
}
