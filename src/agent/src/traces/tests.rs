//! Against the official service of opentelemetry-proto, over a Unix socket.

use super::*;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use podway_flow::{Clock, Phase, PodRef, Recorder, Writer};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// Takes every trace, but that of a pod called `refused`.
struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let request = request.into_inner();
        if format!("{request:?}").contains("refused") {
            return Err(Status::invalid_argument("no"));
        }
        self.0.send(request).map_err(|_| Status::internal("the test is over"))?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn flow(name: &str) -> Flow {
    let mut records = Vec::new();
    for (writer, phase) in [
        (Writer::Scheduler, Phase::Bound),
        (Writer::Agent, Phase::Observed),
        (Writer::Runtime, Phase::SandboxCreated),
    ] {
        let recorder = Recorder::new(writer, Clock::new());
        recorder.begin(phase).succeed("Done");
        records.extend(recorder.take());
    }
    let uid = "0f0e0d0c-0b0a-4908-8706-050403020100".to_owned();
    Flow { pod: PodRef { namespace: "ns".into(), name: name.into(), uid, node: "n".into() }, records }
}

fn dropped(counts: &Counts, reason: &'static str) -> u64 {
    counts.dropped.get_or_create(&vec![("reason", reason)]).get()
}

#[tokio::test]
async fn a_collector_gets_one_trace_of_all_writers_and_what_it_refuses_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("otlp.sock");
    let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let (sender, mut received) = mpsc::unbounded_channel();
    let server = TraceServiceServer::new(Collector(sender));
    let serving = tonic::transport::Server::builder().add_service(server).serve_with_incoming(listener);
    let serving = tokio::spawn(serving);

    let endpoint = format!("unix://{}", socket.display());
    let counts = Counts::default();
    let tracing = Tracing::of(Some(endpoint), Some(0), |_| None).unwrap();
    let (traces, sending) = send::start(&tracing, counts.clone()).unwrap();
    let sending = tokio::spawn(sending);
    let parent = |flags| Some(format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}"));
    traces.offer(flow("undecided"), None);
    traces.offer(flow("unsampled"), parent("00").as_deref());
    traces.offer(flow("web-0"), parent("01").as_deref());
    let request = received.recv().await.unwrap();
    let services: Vec<String> = request
        .resource_spans
        .iter()
        .map(|r| format!("{:?}", r.resource.as_ref().unwrap().attributes[0].value))
        .collect();
    for (name, of) in ["podway-scheduler", "podway-agent", "podway-runtime"].into_iter().zip(&services) {
        assert!(of.contains(name), "{of}");
    }
    let spans: Vec<_> =
        request.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans).collect();
    assert_eq!(spans.len(), 4);
    assert!(spans.iter().all(|s| s.trace_id.starts_with(&[0x4b, 0xf9])));
    let root = spans.iter().find(|s| s.name == "pod start").unwrap();
    assert_eq!(root.parent_span_id, [0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
    assert!(spans.iter().all(|s| s.name == "pod start" || s.parent_span_id == root.span_id));
    assert!(format!("{root:?}").contains("web-0"), "the other two are not kept: {root:?}");

    traces.offer(flow("refused"), parent("01").as_deref());
    drop(traces);
    sending.await.unwrap();
    assert_eq!((counts.exported.get(), dropped(&counts, FAILED), dropped(&counts, FULL)), (1, 1, 0));
    serving.abort();
}

#[test]
fn a_full_queue_drops_and_counts() {
    let counts = Counts::default();
    let (traces, waiting) = Traces::new(Tracing::ALL, counts.clone());
    for _ in 0..QUEUE + 3 {
        traces.offer(flow("many"), None);
    }
    assert_eq!((waiting.len(), dropped(&counts, FULL)), (QUEUE, 3));
    drop(waiting);
    traces.offer(flow("late"), None);
    assert_eq!(dropped(&counts, FULL), 4);
}

#[test]
fn a_share_of_uids_is_kept_and_a_parent_decides() {
    // UIDs are random but for six bits, two of which are where Go's sampler looks first.
    let uid = |n: u64| {
        let random = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        let mut id = [0x40_u8; 16];
        id[8..].copy_from_slice(&random);
        id[8] = id[8] & 0x3f | 0x80;
        id
    };
    let kept = |rate| (0..10_000).filter(|n| sampled(rate, uid(*n), None)).count();
    assert_eq!((kept(0), kept(Tracing::ALL)), (0, 10_000));
    assert!((2_300..2_700).contains(&kept(250_000)), "{}", kept(250_000));
    assert!(sampled(Tracing::ALL, [0xff; 16], None) && !sampled(0, [0; 16], None));
    for flag in [true, false] {
        let parent = TraceParent { trace: [1; 16], span: [1; 8], sampled: flag };
        assert_eq!(
            (sampled(0, [1; 16], Some(&parent)), sampled(Tracing::ALL, [1; 16], Some(&parent))),
            (flag, flag)
        );
    }
}
