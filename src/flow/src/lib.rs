//! podway-flow: what happened to a pod on its way from a request to running processes.
//!
//! A step is recorded **once**, as a [`Record`]. Conditions, the `PodFlow` object, metrics, spans,
//! the terminal waterfall and the HTML page are made from records and from nothing else, so they
//! cannot disagree. This crate is pure: it knows no network, no Kubernetes client and no async
//! runtime, and everything that it renders is a function of its input.
//!
//! How a record travels: the scheduler puts its part on the Binding as an annotation, the runtime
//! returns its part in gRPC response metadata ([`wire`]), the agent gathers all into a [`Flow`].

pub mod audit;
pub mod clock;
pub mod conditions;
pub mod decision;
pub mod flow;
pub mod html;
pub mod numbers;
pub mod otlp;
pub mod path;
pub mod phase;
pub mod picture;
pub mod pulls;
pub mod record;
pub mod recorder;
#[cfg(test)]
mod samples;
pub mod stuck;
pub mod waterfall;
pub mod wire;

pub use clock::{Clock, Micros};
pub use flow::{Flow, PhaseSummary, PodRef};
pub use phase::Phase;
pub use record::{Outcome, Record, Resolution, Writer};
pub use recorder::{Recorder, Span};
