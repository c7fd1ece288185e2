//! Traces of pods' starts, sent to an OpenTelemetry collector: OTLP over gRPC, as a kubelet's.
//!
//! One sender for all of a pod: scheduler and runtime hand their records to the agent (on the Binding, in call
//! metadata), and the trace is made from what is also the `PodFlow`, under each writer's `service.name`. So there
//! is one decision whether a trace is kept, no trace of which a part is missing, and the two cannot disagree.
//!
//! No pod waits for it: a start that is over is put into a queue of [`QUEUE`]; one that finds it full is dropped
//! and counted. [`send::run`] empties it, and nothing of it survives the agent.

pub mod config;
pub mod send;

pub use config::Tracing;

use podway_flow::Flow;
use podway_flow::otlp::{self, TraceParent};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::mpsc;

/// How many traces may wait; each is some kilobytes.
const QUEUE: usize = 256;

/// Why a trace was not sent.
const FULL: &str = "queue_full";
const FAILED: &str = "export_failed";

/// What became of traces.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// `podway_traces_exported`: the collector has them.
    pub exported: Counter,
    /// `podway_traces_dropped`, by reason.
    pub dropped: Family<Vec<(&'static str, &'static str)>, Counter>,
}

impl Counts {
    fn drop(&self, reason: &'static str, traces: usize) {
        self.dropped
            .get_or_create(&vec![("reason", reason)])
            .inc_by(u64::try_from(traces).unwrap_or(u64::MAX));
    }
}

/// A start that is to be told.
#[derive(Debug)]
pub(crate) struct Trace {
    flow: Flow,
    parent: Option<TraceParent>,
}

/// Takes starts that are over.
#[derive(Clone, Debug)]
pub struct Traces {
    queue: mpsc::Sender<Trace>,
    rate: u32,
    counts: Counts,
}

impl Traces {
    fn new(rate: u32, counts: Counts) -> (Self, mpsc::Receiver<Trace>) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        (Traces { queue, rate, counts }, waiting)
    }

    /// Takes over a start, if its trace is one that is kept; `parent` is what the pod says of its own.
    pub fn offer(&self, flow: Flow, parent: Option<&str>) {
        let parent = parent.and_then(TraceParent::parse);
        if sampled(self.rate, otlp::trace_id(&flow.pod.uid, parent.as_ref()), parent.as_ref())
            && self.queue.try_send(Trace { flow, parent }).is_err()
        {
            self.counts.drop(FULL, 1);
        }
    }
}

/// Whether a trace is kept: as whoever began it has decided; else by its id, in `rate` of a million.
///
/// This is `ParentBased(TraceIDRatioBased)` of a kubelet, but by the last seven bytes of the id, which W3C's Trace
/// Context (level 2) has as random, and which are random in a UID: the first bit of the eighth never is.
fn sampled(rate: u32, trace: [u8; 16], parent: Option<&TraceParent>) -> bool {
    let random = trace[9..].iter().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
    let share = u128::from(rate) << 56;
    parent.map_or(u128::from(random) * u128::from(Tracing::ALL) < share, |parent| parent.sampled)
}

#[cfg(test)]
mod tests;
