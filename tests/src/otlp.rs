//! A receiver of traces on a Unix socket: the service of opentelemetry-proto, or a real OpenTelemetry Collector (`tests/go/collector`,
//! where `PODWAY_OTELCOL` names the built program), of which what its debug exporter writes is read.

use anyhow::{Context as _, bail};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use serde_json::json;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::UnixListener;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// How long it may take until a trace is there.
const LIMIT: Duration = Duration::from_secs(60);

/// A span, as far as the tests look at it. Ids are in hex.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// `service.name` of its resource.
    pub service: String,
    /// Of the trace.
    pub trace: String,
    /// Its own.
    pub id: String,
    /// Of the span that it is below; empty for a root.
    pub parent: String,
    /// What it tells of.
    pub name: String,
}

/// One that takes traces; it ends when this is dropped.
pub struct Receiver {
    spans: mpsc::UnboundedReceiver<Span>,
    task: AbortHandle,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Receiver {
    /// Takes traces at `socket`.
    ///
    /// # Errors
    /// When it cannot be served, or the Collector does not come up.
    pub async fn start(socket: &Path) -> anyhow::Result<Self> {
        let (sender, spans) = mpsc::unbounded_channel();
        if let Some(program) = std::env::var_os("PODWAY_OTELCOL") {
            return Ok(Receiver { spans, task: collector(Path::new(&program), socket, sender).await? });
        }
        let listener = UnixListener::bind(socket).with_context(|| format!("serving {}", socket.display()))?;
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Taker(sender)));
        let serving = tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        Ok(Receiver { spans, task: serving.abort_handle() })
    }

    /// The spans of `trace` once they are `whole`, whatever else comes in between.
    ///
    /// # Errors
    /// After [`LIMIT`].
    pub async fn trace(&mut self, trace: &str, whole: impl Fn(&[Span]) -> bool) -> anyhow::Result<Vec<Span>> {
        let mut found = Vec::new();
        let all = async {
            while !whole(&found) {
                let span = self.spans.recv().await.context("the receiver has ended")?;
                if span.trace == trace {
                    found.push(span);
                }
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(LIMIT, all).await {
            Ok(result) => result.map(|()| found),
            Err(_) => bail!("trace {trace} is not whole after {LIMIT:?}: {found:#?}"),
        }
    }
}

struct Taker(mpsc::UnboundedSender<Span>);

#[tonic::async_trait]
impl TraceService for Taker {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.into_iter().flat_map(|r| r.attributes);
            let service =
                attributes.into_iter().find(|a| a.key == "service.name").and_then(|a| a.value?.value);
            let Some(Value::StringValue(service)) = service else {
                return Err(Status::invalid_argument("a resource without service.name"));
            };
            for span in resource.scope_spans.into_iter().flat_map(|s| s.spans) {
                let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
                let span = Span {
                    service: service.clone(),
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    name: span.name,
                };
                self.0.send(span).map_err(|_| Status::unavailable("the test is over"))?;
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Starts the Collector and reads what it writes.
async fn collector(
    program: &Path,
    socket: &Path,
    sender: mpsc::UnboundedSender<Span>,
) -> anyhow::Result<AbortHandle> {
    let config = json!({
        "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": socket, "transport": "unix"}}}},
        "exporters": {"debug": {"verbosity": "detailed", "use_internal_logger": false}},
        "service": {
            "telemetry": {"metrics": {"level": "none"}},
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["debug"]}},
        },
    });
    let mut child = Command::new(program)
        .arg(format!("--config=yaml:{config}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let mut out = BufReader::new(child.stdout.take().context("its output")?).lines();
    let mut log = BufReader::new(child.stderr.take().context("its log")?).lines();
    loop {
        let line = log.next_line().await?.context("the Collector has ended; PODWAY_OTELCOL names it")?;
        println!("{line}");
        if line.contains("Everything is ready") {
            break;
        }
    }
    let reading = tokio::spawn(async move {
        let _child = child;
        let mut text = Text::default();
        loop {
            tokio::select! {
                line = out.next_line() => match line {
                    Ok(Some(line)) => if let Some(span) = text.line(&line) && sender.send(span).is_err() {
                        return;
                    },
                    _ => return,
                },
                Ok(Some(line)) = log.next_line() => println!("{line}"),
            }
        }
    });
    Ok(reading.abort_handle())
}

/// What the debug exporter's text tells so far.
#[derive(Default)]
struct Text {
    span: Span,
}

impl Text {
    /// A span, once its name is there: the last of what is looked at.
    fn line(&mut self, line: &str) -> Option<Span> {
        let line = line.trim();
        if let Some(service) = line.strip_prefix("-> service.name: Str(") {
            self.span = Span { service: service.trim_end_matches(')').to_owned(), ..Span::default() };
        }
        let (key, value) = line.split_once(':')?;
        let value = value.trim();
        match key.trim_end() {
            "Trace ID" => value.clone_into(&mut self.span.trace),
            "Parent ID" => value.clone_into(&mut self.span.parent),
            "ID" => value.clone_into(&mut self.span.id),
            "Name" => {
                value.clone_into(&mut self.span.name);
                return Some(self.span.clone());
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_collector_writes_is_read() {
        let text = "ResourceSpans #0\nResource attributes:\n     -> service.name: Str(podway-agent)\nScopeSpans #0\nSpan #0\n    \
                    Trace ID       : 4bf9\n    Parent ID      : \n    ID             : 00f0\n    Name           : pod start\n    \
                    Kind           : Internal\n";
        let mut read = Text::default();
        let spans: Vec<Span> = text.lines().filter_map(|line| read.line(line)).collect();
        let of = |text: &str| text.to_owned();
        let (service, name) = (of("podway-agent"), of("pod start"));
        assert_eq!(spans, [Span { service, trace: of("4bf9"), id: of("00f0"), parent: of(""), name }]);
    }
}
