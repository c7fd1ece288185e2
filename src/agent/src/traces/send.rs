//! Empties the queue of traces into the collector: what waits goes together, one request at a time.

use super::{Counts, FAILED, Trace, Traces, Tracing};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use podway_flow::otlp;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How many traces go in one request: some hundred kilobytes, of the 4 MiB that gRPC takes.
const BATCH: usize = 32;
/// How long the collector may take (`OTEL_EXPORTER_OTLP_TIMEOUT`'s default).
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request is tried again, from the first delay doubled to the longest; then it is given up.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
const PATIENCE: Duration = Duration::from_secs(60);

/// Where to put traces, and what sends them: it ends when nobody can offer any more.
///
/// # Errors
/// [`super::config::TracingError`].
pub fn start(
    tracing: &Tracing,
    counts: Counts,
) -> Result<(Traces, impl Future<Output = ()> + Send + use<>), super::config::TracingError> {
    // The collector may come and go: it is connected to when there is something to tell.
    let channel = tracing.endpoint()?.timeout(TIMEOUT).connect_timeout(TIMEOUT).connect_lazy();
    let (traces, waiting) = Traces::new(tracing.rate, counts.clone());
    Ok((traces, run(waiting, TraceServiceClient::new(channel), counts)))
}

async fn run(mut waiting: mpsc::Receiver<Trace>, mut collector: TraceServiceClient<Channel>, counts: Counts) {
    let mut batch = Vec::with_capacity(BATCH);
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        let traces = batch.len();
        let requests = batch.drain(..).flat_map(|t| otlp::request(&t.flow, t.parent.as_ref()).resource_spans);
        let request = ExportTraceServiceRequest { resource_spans: requests.collect() };
        match export(&mut collector, &request).await {
            Ok(()) => drop(counts.exported.inc_by(u64::try_from(traces).unwrap_or(u64::MAX))),
            Err(error) => {
                counts.drop(FAILED, traces);
                tracing::warn!(code = ?error.code(), error = error.message(), traces, "traces are lost");
            }
        }
    }
}

async fn export(
    collector: &mut TraceServiceClient<Channel>,
    request: &ExportTraceServiceRequest,
) -> Result<(), Status> {
    let (mut delay, mut waited) = (RETRY.0, Duration::ZERO);
    loop {
        let error = match collector.export(request.clone()).await {
            Ok(answer) => {
                let rejected = answer.into_inner().partial_success.filter(|p| p.rejected_spans != 0);
                if let Some(part) = rejected {
                    let (spans, error) = (part.rejected_spans, part.error_message);
                    tracing::warn!(spans, error, "the collector has rejected spans");
                }
                return Ok(());
            }
            Err(error) => error,
        };
        if !may_retry(error.code()) || waited >= PATIENCE {
            return Err(error);
        }
        tokio::time::sleep(delay).await;
        waited += delay;
        delay = (delay * 2).min(RETRY.1);
    }
}

/// OTLP's table of failures that may pass ("Failures" of OTLP/gRPC).
fn may_retry(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    )
}
