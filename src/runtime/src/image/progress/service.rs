//! The pulls as a stream of gRPC: a message when something has changed, at most ten a second.
//!
//! A watcher sleeps until a change; after one with a rate it also wakes when that rate has become nothing. What
//! it was told last is not told again. The streams end with the process, which waits for its calls.

use super::meter::WINDOW;
use super::{Progress, Told};
use crate::image::ImageRef;
use futures::stream::{self, BoxStream, StreamExt as _};
use podway_cri::runtime_v1::pulls_server::Pulls;
use podway_cri::runtime_v1::{Pull, WatchPullsRequest, WatchPullsResponse};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// The least time between two messages.
const PACE: Duration = Duration::from_millis(100);

/// The service.
#[derive(Clone, Debug)]
pub struct PullsServer {
    progress: Arc<Progress>,
    shutdown: CancellationToken,
}

impl PullsServer {
    /// A service over `progress`, whose streams end at `shutdown`.
    #[must_use]
    pub fn new(progress: Arc<Progress>, shutdown: CancellationToken) -> Self {
        PullsServer { progress, shutdown }
    }
}

struct Watcher {
    progress: Arc<Progress>,
    changed: watch::Receiver<()>,
    /// The full name of the one image that is wanted.
    image: Option<String>,
    ends: u64,
    /// What was told last, and when.
    last: Option<(Vec<Pull>, Instant)>,
}

impl Watcher {
    async fn next(&mut self) -> Option<Vec<Pull>> {
        loop {
            if let Some((told, at)) = &self.last {
                tokio::time::sleep_until(*at + PACE).await;
                let moving = told.iter().any(|pull| pull.bytes_per_second > 0);
                if moving {
                    // Where nothing more comes, that is to be told.
                    let waited = tokio::time::timeout_at(*at + WINDOW, self.changed.changed()).await;
                    waited.unwrap_or(Ok(())).ok()?;
                } else {
                    self.changed.changed().await.ok()?;
                }
            }
            self.changed.mark_unchanged();
            let Told { mut pulls, ends } = self.progress.told(self.ends, std::time::Instant::now());
            pulls.retain(|pull| self.image.as_ref().is_none_or(|image| *image == pull.image));
            self.ends = ends;
            let news = self.last.as_ref().is_none_or(|(told, _)| *told != pulls);
            self.last = Some((pulls.clone(), Instant::now()));
            if news {
                return Some(pulls);
            }
        }
    }
}

#[tonic::async_trait]
impl Pulls for PullsServer {
    type WatchPullsStream = BoxStream<'static, Result<WatchPullsResponse, Status>>;

    async fn watch_pulls(
        &self,
        request: Request<WatchPullsRequest>,
    ) -> Result<Response<Self::WatchPullsStream>, Status> {
        let WatchPullsRequest { image, once } = request.into_inner();
        let image = match image.as_str() {
            "" => None,
            name => {
                let parsed = ImageRef::parse(name).map_err(|e| Status::invalid_argument(e.to_string()))?;
                Some(parsed.to_string())
            }
        };
        let watcher = Watcher {
            progress: Arc::clone(&self.progress),
            changed: self.progress.changed.subscribe(),
            image,
            // What ended before somebody asked is no news.
            ends: self.progress.told(0, std::time::Instant::now()).ends,
            last: None,
        };
        let told = stream::unfold(watcher, |mut watcher| async {
            let pulls = watcher.next().await?;
            Some((Ok(WatchPullsResponse { pulls }), watcher))
        });
        let told = told.take(if once { 1 } else { usize::MAX });
        Ok(Response::new(told.take_until(self.shutdown.clone().cancelled_owned()).boxed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;
    use podway_cri::runtime_v1::PullPhase;

    type Messages = BoxStream<'static, Result<WatchPullsResponse, Status>>;

    async fn watch(server: &PullsServer, image: &str, once: bool) -> Messages {
        let request = WatchPullsRequest { image: image.to_owned(), once };
        server.watch_pulls(Request::new(request)).await.unwrap().into_inner()
    }

    async fn next(messages: &mut Messages) -> Vec<Pull> {
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, messages.next()).await.unwrap().unwrap().unwrap().pulls
    }

    #[tokio::test]
    async fn a_watcher_hears_of_each_change_and_of_the_end_and_then_of_nothing() {
        let progress = Arc::new(Progress::default());
        let shutdown = CancellationToken::new();
        let server = PullsServer::new(Arc::clone(&progress), shutdown.clone());
        let image = ImageRef::parse("busybox:1").unwrap();
        drop(progress.begin(&image, 0));
        let mut all = watch(&server, "", false).await;
        let mut other = watch(&server, "nginx", false).await;
        assert!(
            next(&mut all).await.is_empty(),
            "the first message comes at once; what has ended is no news"
        );
        assert!(next(&mut other).await.is_empty());

        let track = progress.begin(&image, 1);
        assert_eq!(next(&mut all).await[0].phase(), PullPhase::PullResolving);
        track.layers([(Digest::of(b"a"), 100)].into_iter());
        assert_eq!(next(&mut all).await[0].layers.len(), 1);
        track.layer(0).begins();
        track.layer(0).received(50);
        let moving = next(&mut all).await;
        assert_eq!(moving[0].received_bytes, 50);
        // Nothing comes any more: the rate falls, step by step, until it is told as none.
        let mut rate = moving[0].bytes_per_second;
        while rate > 0 {
            rate = next(&mut all).await[0].bytes_per_second;
        }
        assert!(next(&mut watch(&server, "busybox:1", true).await).await[0].image.contains("busybox"));
        track.end(None);
        assert_eq!(next(&mut all).await[0].phase(), PullPhase::PullDone);

        shutdown.cancel();
        assert!(all.next().await.is_none(), "the stream ends with the process");
        assert!(other.next().await.is_none(), "and nothing of another image was told");
    }

    #[tokio::test]
    async fn once_is_one_message_and_a_name_that_is_none_is_refused() {
        let server = PullsServer::new(Arc::default(), CancellationToken::new());
        let mut messages = watch(&server, "", true).await;
        assert!(next(&mut messages).await.is_empty());
        assert!(messages.next().await.is_none());
        let request = WatchPullsRequest { image: "A B".to_owned(), once: true };
        let refused = server.watch_pulls(Request::new(request)).await.err().unwrap();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    }
}
