//! How far a node's image pulls have got, read through the API server's proxy of the node with the user's own
//! credentials: for the page and for `podway flow -w`. Whoever may not `get` `nodes/proxy`, or asks a node that does
//! not tell, is told why once; a connection that breaks is made anew, later each time.

use std::time::Duration;

use futures::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};
use futures::stream::{self, Stream};
use k8s_openapi::api::core::v1::PodSpec;
use kube::Client;
use podway_flow::html::encoded;
use podway_flow::pulls::{LINE, PATH, Pull, Pulls};

/// How long after a broken connection the node is asked again; each time twice as long, up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What a node tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Its pulls as they are now; none also where the connection broke, since then nobody knows.
    Pulls(Vec<Pull>),
    /// It will not, and why. Nothing comes after it.
    Refused(String),
}

/// Those of `pulls` that are of an image in `spec`.
#[must_use]
pub fn of_images(spec: &PodSpec, pulls: &[Pull]) -> Vec<Pull> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(|c| &c.image);
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| &c.image);
    let volumes = spec.volumes.iter().flatten().filter_map(|v| Some(&v.image.as_ref()?.reference));
    let images: Vec<&str> =
        containers.chain(ephemeral).chain(volumes).flatten().map(String::as_str).collect();
    pulls.iter().filter(|pull| images.iter().any(|image| pull.is_of(image))).cloned().collect()
}

/// What `node` tells, as it goes. It is asked when the stream is.
pub fn watch(client: Client, node: &str) -> impl Stream<Item = Told> + Send + use<> {
    let asking = Asking { client, node: node.to_owned(), lines: None, pause: None };
    stream::unfold(Some(asking), |asking| async {
        let mut asking = asking?;
        let told = asking.next().await;
        let goes_on = matches!(told, Told::Pulls(_));
        Some((told, goes_on.then_some(asking)))
    })
}

type Lines = Box<dyn AsyncBufRead + Send + Unpin>;

struct Asking {
    client: Client,
    node: String,
    lines: Option<Lines>,
    /// Before it is asked again.
    pause: Option<Duration>,
}

impl Asking {
    async fn next(&mut self) -> Told {
        loop {
            let Some(lines) = &mut self.lines else {
                if let Err(why) = self.ask().await {
                    return Told::Refused(why);
                }
                continue;
            };
            match line(lines).await {
                Ok(Line::Pulls(pulls)) => {
                    self.pause = None;
                    return Told::Pulls(pulls);
                }
                Ok(Line::Nonsense) => {
                    return Told::Refused(format!("node {} tells what is no pull", self.node));
                }
                Ok(Line::End) | Err(_) => {
                    self.lines = None;
                    self.wait_longer();
                    return Told::Pulls(Vec::new());
                }
            }
        }
    }

    /// The next try is later than this one was.
    fn wait_longer(&mut self) {
        self.pause = Some(self.pause.map_or(AGAIN.0, |pause| (pause * 2).min(AGAIN.1)));
    }

    /// Opens the stream of lines, or leaves it closed where it is worth another try; an error says why it is not.
    async fn ask(&mut self) -> Result<(), String> {
        if let Some(pause) = self.pause {
            tokio::time::sleep(pause).await;
        }
        let node = &self.node;
        let path = format!("/api/v1/nodes/{}/proxy{PATH}", encoded(node));
        let request = http::Request::get(path).body(Vec::new()).map_err(|error| error.to_string())?;
        match self.client.request_stream(request).await {
            Ok(lines) => self.lines = Some(Box::new(Box::pin(lines))),
            Err(kube::Error::Api(status)) => match status.code {
                404 => {
                    return Err(format!(
                        "node {node} does not tell of its pulls: no agent of podway runs it"
                    ));
                }
                400..=405 | 501 => return Err(status.message.clone()),
                _ => self.wait_longer(),
            },
            Err(error) => {
                tracing::debug!(
                    node,
                    error = &error as &dyn std::error::Error,
                    "pulls could not be asked for"
                );
                self.wait_longer();
            }
        }
        Ok(())
    }
}

enum Line {
    Pulls(Vec<Pull>),
    /// It is too long, or says something else.
    Nonsense,
    End,
}

async fn line(lines: &mut Lines) -> std::io::Result<Line> {
    let mut line = Vec::new();
    // One byte more tells a line that is too long from one that is just as long as it may be.
    lines.take(LINE as u64 + 1).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Ok(Line::End);
    }
    if line.len() <= LINE && !line.ends_with(b"\n") {
        // It broke off within one.
        return Ok(Line::End);
    }
    let pulls = serde_json::from_slice::<Pulls>(&line).ok().filter(|_| line.len() <= LINE);
    Ok(pulls.map_or(Line::Nonsense, |told| Line::Pulls(told.pulls)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::extract::{Path, State};
    use axum::http::StatusCode;
    use axum::response::IntoResponse as _;
    use axum::routing::get;
    use futures::StreamExt as _;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A client of an API server whose node `good` says `said` and then breaks off, the first time; others refuse.
    async fn client(said: &'static str) -> (Client, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let answer = move |State(asked): State<Arc<AtomicUsize>>, Path(node): Path<String>| async move {
            asked.fetch_add(1, Ordering::SeqCst);
            match node.as_str() {
                "good" => said.into_response(),
                "old" => (StatusCode::NOT_IMPLEMENTED, "not supported: the runtime").into_response(),
                "stock" => (StatusCode::NOT_FOUND, "404 page not found").into_response(),
                _ => {
                    let status = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","code":403,"reason":"Forbidden","message":"nodes is forbidden"}"#;
                    (StatusCode::FORBIDDEN, status).into_response()
                }
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new()
            .route(&format!("/api/v1/nodes/{{node}}/proxy{PATH}"), get(answer))
            .with_state(Arc::clone(&asked));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let config = kube::Config::new(address.parse().unwrap());
        (Client::try_from(config).unwrap(), asked)
    }

    #[test]
    fn a_pods_images_are_those_of_all_that_it_has() {
        let spec: PodSpec = serde_json::from_value(serde_json::json!({
            "containers": [{"name": "a", "image": "app"}],
            "initContainers": [{"name": "b", "image": "r.example/b:1"}],
            "ephemeralContainers": [{"name": "c", "image": "c:1"}],
            "volumes": [{"name": "v", "image": {"reference": "r.example/v:2"}}, {"name": "w", "emptyDir": {}}],
        }))
        .unwrap();
        let all = [
            "docker.io/library/app:latest",
            "r.example/b:1",
            "docker.io/library/c:1",
            "r.example/v:2",
            "r.example/other:1",
        ];
        let pulls = all.map(|image| Pull { image: image.to_owned(), ..Pull::default() });
        assert_eq!(of_images(&spec, &pulls), pulls[..4]);
    }

    #[tokio::test]
    async fn a_node_that_does_not_tell_is_asked_once_and_says_why() {
        let (client, asked) = client("").await;
        for (node, why) in [
            ("old", "not supported: the runtime"),
            ("stock", "node stock does not tell of its pulls: no agent of podway runs it"),
            ("mine/../x", "nodes is forbidden"),
        ] {
            let told: Vec<Told> = watch(client.clone(), node).collect().await;
            assert_eq!(told, [Told::Refused(why.to_owned())], "{node}");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn what_breaks_off_is_forgotten_and_asked_for_again() {
        let line = "{\"pulls\":[{\"image\":\"i\",\"startedAt\":1,\"phase\":\"storing\",\"error\":\"\",\"totalBytes\":2,\"receivedBytes\":2,\"bytesPerSecond\":0,\"etaMilliseconds\":null,\"layers\":[]}]}\n{\"pul";
        let (client, asked) = client(line).await;
        let mut told = std::pin::pin!(watch(client, "good"));
        for round in 1..=2 {
            let Some(Told::Pulls(pulls)) = told.next().await else { panic!("refused") };
            assert_eq!((pulls[0].image.as_str(), asked.load(Ordering::SeqCst)), ("i", round));
            assert_eq!(told.next().await, Some(Told::Pulls(Vec::new())));
        }
    }

    #[tokio::test]
    async fn nonsense_and_what_does_not_end_are_the_end() {
        for said in ["no json\n", Box::leak(" ".repeat(LINE + 2).into_boxed_str())] {
            let (client, _) = client(said).await;
            let told: Vec<Told> = watch(client, "good").collect().await;
            assert_eq!(told, [Told::Refused("node good tells what is no pull".to_owned())]);
        }
    }
}
