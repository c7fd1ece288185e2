//! `grpc.health.v1.Health/Check`, in the words of the kubelet's probe (pkg/probe/grpc).

use crate::probe::http::AGENT;
use crate::probe::schedule::Answer;
use std::time::Duration;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request};

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "Serving", tag = "1")]
    status: i32,
}

/// `HealthCheckResponse.ServingStatus`, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
enum Serving {
    Unknown = 0,
    Up = 1,
    Down = 2,
    Stranger = 3,
}

/// Asks the server at `address` for `service`.
pub(super) async fn ask(address: &str, service: &str, timeout: Duration) -> Answer {
    let uri = format!("http://{address}");
    let endpoint = tonic::transport::Endpoint::from_shared(uri).and_then(|e| e.user_agent(AGENT));
    let endpoint = match endpoint {
        Ok(endpoint) => endpoint,
        Err(error) => return Answer::Error(error.to_string()),
    };
    let deadline = tokio::time::Instant::now() + timeout;
    let channel = match tokio::time::timeout_at(deadline, endpoint.connect()).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(_)) | Err(_) => {
            return Answer::Bad(format!(
                "timeout: failed to connect service {address:?} within {timeout:?}: context deadline exceeded"
            ));
        }
    };
    let mut client = tonic::client::Grpc::new(channel);
    let call = async {
        client.ready().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        client.unary(Request::new(HealthCheckRequest { service: service.to_owned() }), path, codec).await
    };
    match tokio::time::timeout_at(deadline, call).await {
        Err(_) => Answer::Bad(format!("timeout: health rpc did not complete within {timeout:?}")),
        Ok(Err(status)) => match status.code() {
            Code::Unimplemented => Answer::Bad(format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
                status.message()
            )),
            Code::DeadlineExceeded => {
                Answer::Bad(format!("timeout: health rpc did not complete within {timeout:?}"))
            }
            _ => Answer::Bad(format!("error: health rpc probe failed: {}", status.message())),
        },
        Ok(Ok(response)) => match Serving::try_from(response.into_inner().status) {
            Ok(Serving::Up) => Answer::Good,
            other => {
                let word = match other {
                    Ok(Serving::Down) => "NOT_SERVING",
                    Ok(Serving::Stranger) => "SERVICE_UNKNOWN",
                    _ => "UNKNOWN",
                };
                Answer::Bad(format!("service unhealthy (responded with {word:?})"))
            }
        },
    }
}
