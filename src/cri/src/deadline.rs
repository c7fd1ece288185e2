//! The client's deadline (`grpc-timeout`), kept as every gRPC server keeps it: `DeadlineExceeded`.
//!
//! tonic keeps it too, and answers `Cancelled`; kubelet and critest tell the two apart. What runs here was
//! begun before tonic's own clock and is asked first, so its answer is the one that is sent.

use http::{HeaderMap, Request, Response};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;

/// Ends a call at the client's deadline. What the call was doing is dropped, as when the client goes away.
#[derive(Clone, Debug)]
pub(crate) struct Deadline<S>(pub(crate) S);

impl<S, B> tower::Service<Request<B>> for Deadline<S>
where
    S: tower::Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let until = timeout(request.headers()).and_then(|limit| Instant::now().checked_add(limit));
        let answer = self.0.call(request);
        let Some(until) = until else { return Box::pin(answer) };
        Box::pin(async move {
            let late = || Status::deadline_exceeded("context deadline exceeded").into_http();
            tokio::time::timeout_at(until, answer).await.unwrap_or_else(|_| Ok(late()))
        })
    }
}

/// The time that the client gives: at most 8 digits and a unit (gRPC over HTTP/2, `Timeout`). What is not one
/// is none, as in grpc-go's transport and in tonic.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::ServiceExt as _;

    fn asked(limit: &str) -> Request<()> {
        let mut request = Request::new(());
        request.headers_mut().insert("grpc-timeout", limit.parse().expect("a header"));
        request
    }

    #[test]
    fn a_limit_is_digits_and_a_unit() {
        let of = |text: &str| timeout(asked(text).headers());
        assert_eq!(of("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(of("99999999M"), Some(Duration::from_secs(99_999_999 * 60)));
        assert_eq!(of("15S"), Some(Duration::from_secs(15)));
        assert_eq!(of("994m"), Some(Duration::from_millis(994)));
        assert_eq!((of("7u"), of("7n")), (Some(Duration::from_micros(7)), Some(Duration::from_nanos(7))));
        for wrong in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1.5S", "1 S"] {
            assert_eq!(of(wrong), None, "{wrong:?}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn what_does_not_answer_in_time_has_exceeded_its_deadline() {
        type Answer = Result<Response<Body>, std::convert::Infallible>;
        let never = tower::service_fn(|_: Request<()>| std::future::pending::<Answer>());
        let Ok(answer) = Deadline(never).oneshot(asked("1m")).await;
        let code = Status::from_header_map(answer.headers()).map(|status| status.code());
        assert_eq!(code, Some(tonic::Code::DeadlineExceeded));
        for request in [asked("60S"), Request::new(())] {
            let at_once = tower::service_fn(|_| async { Answer::Ok(Response::new(Body::empty())) });
            let Ok(answer) = Deadline(at_once).oneshot(request).await;
            assert!(Status::from_header_map(answer.headers()).is_none());
        }
    }
}
