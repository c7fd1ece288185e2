//! Probes and lifecycle hooks: what a container is asked (`spec`), when, and what follows from the
//! answers (`schedule`, pure), and how it is asked (`run`). The semantics and the words are the
//! kubelet's (pkg/kubelet/prober, pkg/probe, 1.36).

mod grpc;
pub mod http;
pub mod run;
pub mod schedule;
pub mod spec;
