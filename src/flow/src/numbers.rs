//! Numbers over many pods: quantiles by phase, what to blame, the chain that decided, two groups compared.
//!
//! Pure, as all of this crate: flows in, plain data out, which serializes as it stands; [`text`] draws it
//! for a terminal. A number that rests on times of a second is marked `~`, as in the pictures.

pub mod blame;
pub mod chain;
pub mod compare;
pub mod kube_burner;
pub mod quantiles;
pub mod stats;
pub mod text;

pub use blame::{Blame, blame};
pub use chain::{Chains, chains};
pub use compare::{Comparison, compare};
pub use quantiles::Quantiles;
pub use stats::{Stats, stats};

use crate::{Flow, Outcome, Phase, Resolution};

/// The µs from the first record to Ready; `None` for a pod that is not Ready.
#[must_use]
pub fn ready_in(flow: &Flow) -> Option<u64> {
    let ready = flow.summary(Phase::Ready)?;
    (ready.outcome == Outcome::Succeeded && ready.end.is_some()).then(|| flow.total())?
}

/// The coarser of two resolutions.
const fn coarser(a: Resolution, b: Resolution) -> Resolution {
    match a {
        Resolution::Second => a,
        Resolution::Micros => b,
    }
}

/// The coarsest resolution in a flow.
fn resolution(flow: &Flow) -> Resolution {
    flow.records.iter().fold(Resolution::Micros, |so_far, r| coarser(so_far, r.resolution))
}

/// `namespace/name`.
#[must_use]
pub fn name(flow: &Flow) -> String {
    format!("{}/{}", flow.pod.namespace, flow.pod.name)
}
