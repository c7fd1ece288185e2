//! When the machine was last shut down in grace, as the kubelet's metrics tell it (`pkg/kubelet/nodeshutdown`): kept in
//! a file, as whoever asks comes after the machine is up again.

use crate::files;
use crate::metrics::Metrics;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Below the root directory, by upstream's name.
const FILE: &str = "graceful_node_shutdown_state";

/// The file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct State {
    start_time: Timestamp,
    /// None while it goes on, and for good where the machine did not wait for its end.
    end_time: Option<Timestamp>,
}

/// The times of the last shutdown.
#[derive(Debug)]
pub struct Times {
    path: PathBuf,
    metrics: Arc<Metrics>,
    last: Option<State>,
}

impl Times {
    /// As an agent before this one left them below `root`. What cannot be read is told of, and as none.
    #[must_use]
    pub fn recall(root: &Path, metrics: Arc<Metrics>) -> Self {
        let path = root.join(FILE);
        let last = files::recall(&path).unwrap_or_else(|error| {
            tracing::warn!(%error, path = %path.display(), "when the machine was shut down last cannot be read");
            None
        });
        let times = Times { path, metrics, last };
        times.show();
        times
    }

    /// The pods begin to end.
    pub async fn begin(&mut self) {
        self.note(State { start_time: Timestamp::now(), end_time: None }).await;
    }

    /// They have ended, or have had their time.
    pub async fn end(&mut self) {
        if let Some(state) = self.last {
            self.note(State { end_time: Some(Timestamp::now()), ..state }).await;
        }
    }

    async fn note(&mut self, state: State) {
        self.last = Some(state);
        self.show();
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || {
            // The machine goes next: the file must outlive that.
            files::replace_for_good(&path, 0o700, &serde_json::to_vec(&state)?)
        });
        // A lost thread is the machine's end.
        if let Ok(Err(error)) = written.await {
            tracing::warn!(%error, path = %self.path.display(), "the time of the shutdown is not kept");
        }
    }

    fn show(&self) {
        #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^52")]
        let seconds = |at: Option<Timestamp>| at.map_or(0.0, |at| at.as_second() as f64);
        self.metrics.shutdown_start.set(seconds(self.last.map(|s| s.start_time)));
        self.metrics.shutdown_end.set(seconds(self.last.and_then(|s| s.end_time)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(metrics: &Metrics) -> [f64; 2] {
        ["start", "end"].map(|which| {
            let name = format!("kubelet_graceful_shutdown_{which}_time_seconds ");
            let text = metrics.text();
            let line = text.lines().find_map(|line| line.strip_prefix(&name)).unwrap();
            line.parse().unwrap()
        })
    }

    #[tokio::test]
    async fn the_times_of_the_last_shutdown_outlive_the_agent() {
        let root = tempfile::tempdir().unwrap();
        let metrics = || Arc::new(Metrics::new("n"));
        let before = metrics();
        let mut times = Times::recall(root.path(), Arc::clone(&before));
        assert_eq!(shown(&before), [0.0, 0.0], "there was none");
        times.begin().await;
        let [start, end] = shown(&before);
        assert!(start > 1e9 && end == 0.0, "it goes on: {start} {end}");
        let cut = metrics();
        drop(Times::recall(root.path(), Arc::clone(&cut)));
        assert_eq!(shown(&cut), [start, 0.0], "the machine did not wait");
        times.end().await;
        let after = metrics();
        drop(Times::recall(root.path(), Arc::clone(&after)));
        let [again, end] = shown(&after);
        assert!(again == start && end >= start, "{again} {end}");
        std::fs::write(root.path().join(FILE), "{").unwrap();
        let none = metrics();
        drop(Times::recall(root.path(), Arc::clone(&none)));
        assert_eq!(shown(&none), [0.0, 0.0], "what is broken is as none");
    }
}
