//! `/exec`, `/attach` and `/run` of a container, `/portForward` of a pod: the runtime is asked over CRI
//! for a URL, and the connection is handed through to it ([`super::proxy`]).

use super::logs::has_container;
use super::proxy::{self, CALL};
use crate::pod::cri_config::POD_UID;
use crate::source::{PodSource, PodView};
use async_trait::async_trait;
use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use podway_cri::v1;
use std::collections::HashMap;
use std::sync::Arc;
use tonic::transport::Channel;

/// Where streams into containers come from.
#[async_trait]
pub trait Streaming: Send + Sync {
    /// The URL to which the connection of an exec is taken.
    ///
    /// # Errors
    /// The CRI status.
    async fn exec(&self, request: v1::ExecRequest) -> Result<String, tonic::Status>;

    /// The same for an attach.
    ///
    /// # Errors
    /// The CRI status.
    async fn attach(&self, request: v1::AttachRequest) -> Result<String, tonic::Status>;

    /// The same for port-forward to the pod of this UID; ports are named by clients without SPDY.
    ///
    /// # Errors
    /// The CRI status; `NotFound` without a sandbox that is ready.
    async fn port_forward(&self, uid: &str, ports: Vec<i32>) -> Result<String, tonic::Status>;

    /// Runs a command to its end.
    ///
    /// # Errors
    /// The CRI status.
    async fn run(&self, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse, tonic::Status>;
}

async fn in_time<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, tonic::Status> {
    let late = |_| tonic::Status::deadline_exceeded("the runtime does not answer");
    Ok(tokio::time::timeout(CALL, call).await.map_err(late)??.into_inner())
}

#[async_trait]
impl Streaming for Channel {
    async fn exec(&self, request: v1::ExecRequest) -> Result<String, tonic::Status> {
        Ok(in_time(podway_cri::client::runtime(self.clone()).exec(request)).await?.url)
    }

    async fn attach(&self, request: v1::AttachRequest) -> Result<String, tonic::Status> {
        Ok(in_time(podway_cri::client::runtime(self.clone()).attach(request)).await?.url)
    }

    async fn port_forward(&self, uid: &str, port: Vec<i32>) -> Result<String, tonic::Status> {
        let mut client = podway_cri::client::runtime(self.clone());
        let ready = v1::PodSandboxStateValue { state: v1::PodSandboxState::SandboxReady as i32 };
        let filter = v1::PodSandboxFilter {
            state: Some(ready),
            label_selector: HashMap::from([(POD_UID.to_owned(), uid.to_owned())]),
            ..Default::default()
        };
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        let listed = in_time(client.list_pod_sandbox(request)).await?.items;
        let newest = listed.into_iter().max_by_key(|sandbox| sandbox.created_at);
        let missing = || tonic::Status::not_found("the pod has no sandbox that is ready");
        let pod_sandbox_id = newest.ok_or_else(missing)?.id;
        let request = v1::PortForwardRequest { pod_sandbox_id, port };
        Ok(in_time(client.port_forward(request)).await?.url)
    }

    async fn run(&self, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse, tonic::Status> {
        // It may take as long as the client waits.
        Ok(podway_cri::client::runtime(self.clone()).exec_sync(request).await?.into_inner())
    }
}

/// Which streams are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

/// Reads them (`remotecommand.NewOptions`).
fn wanted(query: &[(String, String)]) -> Result<Wanted, &'static str> {
    let on = |name: &str| query.iter().any(|(key, value)| key == name && value == "1");
    let (stdin, stdout, tty) = (on("input"), on("output"), on("tty"));
    // A terminal has one output only.
    let stderr = on("error") && !tty;
    if !stdin && !stdout && !stderr {
        return Err("you must specify at least 1 of stdin, stdout, stderr");
    }
    Ok(Wanted { stdin, stdout, stderr, tty })
}

/// What to run; in which container is found afterwards.
fn exec_request(query: &[(String, String)]) -> Result<v1::ExecRequest, &'static str> {
    let Wanted { stdin, stdout, stderr, tty } = wanted(query)?;
    let cmd: Vec<String> = query.iter().filter(|(key, _)| key == "command").map(|(_, v)| v.clone()).collect();
    if cmd.is_empty() {
        return Err("no command: give command=… for each word of it");
    }
    Ok(v1::ExecRequest { container_id: String::new(), cmd, tty, stdin, stdout, stderr })
}

/// Whether it is a terminal is the container's to say: that cannot be changed any more.
fn attach_request(container_id: String, wanted: Wanted, tty: bool) -> v1::AttachRequest {
    let Wanted { stdin, stdout, stderr, .. } = wanted;
    v1::AttachRequest { container_id, stdin, tty, stdout, stderr: stderr && !tty }
}

/// The ports that a client names: one that speaks the channels of a WebSocket must, others open a
/// stream for each (`portforward.NewV4Options`).
fn ports(headers: &HeaderMap, query: &[(String, String)]) -> Result<Vec<i32>, String> {
    let has = |name, word: &str| {
        let mut values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.any(|value| value.to_ascii_lowercase().contains(word))
    };
    if !has(UPGRADE, "websocket") || has(SEC_WEBSOCKET_PROTOCOL, "spdy/3.1+portforward.k8s.io") {
        return Ok(Vec::new());
    }
    let given: Vec<&str> = query.iter().filter(|(key, _)| key == "port").map(|(_, v)| v.as_str()).collect();
    if given.is_empty() {
        return Err("query parameter \"port\" is required".to_owned());
    }
    let port = |text: &str| match text.parse::<u16>() {
        Ok(0) => Err(format!("port {text:?} must be > 0")),
        Ok(port) => Ok(i32::from(port)),
        Err(_) => Err(format!("unable to parse {text:?} as a port")),
    };
    given.into_iter().flat_map(|list| list.split(',')).map(port).collect()
}

/// A container that a request names.
pub struct Target<'a> {
    /// The pods.
    pub source: &'a Arc<dyn PodSource>,
    /// The streams.
    pub streaming: &'a Arc<dyn Streaming>,
    /// Namespace, pod and container; the last is empty where a pod is meant.
    pub names: [&'a str; 3],
    /// The pod's UID, where it is given.
    pub uid: Option<&'a str>,
}

fn bad(text: impl Into<String>) -> Response {
    (StatusCode::BAD_REQUEST, text.into()).into_response()
}

impl Target<'_> {
    fn pod(&self) -> Result<PodView, Box<Response>> {
        let [namespace, name, _] = self.names;
        let missing = |text: &'static str| Box::new((StatusCode::NOT_FOUND, text).into_response());
        let view = self.source.pod(namespace, name).ok_or_else(|| missing("pod does not exist"))?;
        let other = self.uid.is_some_and(|uid| view.object.metadata.uid.as_deref() != Some(uid));
        if other { Err(missing("pod not found")) } else { Ok(view) }
    }

    /// The pod, and the id of the newest instance of the container.
    fn container(&self) -> Result<(PodView, String), Box<Response>> {
        let view = self.pod()?;
        let [.., container] = self.names;
        let found = view.container(container, false).filter(|_| has_container(&view.object, container));
        let text = format!("container not found ({container:?})");
        let id = found.ok_or_else(|| (StatusCode::NOT_FOUND, text).into_response())?.id.clone();
        Ok((view, id))
    }

    fn is_terminal(&self, view: &PodView) -> bool {
        let Some(spec) = &view.object.spec else { return false };
        let [.., name] = self.names;
        let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| (&c.name, c.tty));
        let mut all = all.map(|c| (&c.name, c.tty)).chain(ephemeral);
        all.any(|(of, tty)| of == name && tty == Some(true))
    }

    /// Runs a command in the container on the client's streams.
    pub async fn exec(&self, query: &[(String, String)], request: Request<Body>) -> Response {
        // The query is judged first, as by the kubelet (`getExec`).
        let wanted = match exec_request(query) {
            Ok(wanted) => wanted,
            Err(text) => return bad(text),
        };
        let container_id = match self.container() {
            Ok((_, id)) => id,
            Err(refusal) => return *refusal,
        };
        proxy::answer(self.streaming.exec(v1::ExecRequest { container_id, ..wanted }), request).await
    }

    /// Joins the client's streams with those of the container's own process.
    pub async fn attach(&self, query: &[(String, String)], request: Request<Body>) -> Response {
        let wanted = match wanted(query) {
            Ok(wanted) => wanted,
            Err(text) => return bad(text),
        };
        let (view, id) = match self.container() {
            Ok(found) => found,
            Err(refusal) => return *refusal,
        };
        let wanted = attach_request(id, wanted, self.is_terminal(&view));
        proxy::answer(self.streaming.attach(wanted), request).await
    }

    /// Takes connections of the client to ports of the pod.
    pub async fn port_forward(&self, query: &[(String, String)], request: Request<Body>) -> Response {
        let ports = match ports(request.headers(), query) {
            Ok(ports) => ports,
            Err(text) => return bad(text),
        };
        let view = match self.pod() {
            Ok(view) => view,
            Err(refusal) => return *refusal,
        };
        let uid = view.object.metadata.uid.clone().unwrap_or_default();
        proxy::answer(self.streaming.port_forward(&uid, ports), request).await
    }

    /// Runs a command to its end and answers with its output (`getRun`).
    pub async fn run(&self, query: &[(String, String)]) -> Response {
        let id = match self.container() {
            Ok((_, id)) => id,
            Err(refusal) => return *refusal,
        };
        let text = query.iter().find(|(key, _)| key == "cmd").map_or("", |(_, v)| v.as_str());
        let cmd = text.split(' ').map(str::to_owned).collect();
        match self.streaming.run(v1::ExecSyncRequest { container_id: id, cmd, timeout: 0 }).await {
            Ok(v1::ExecSyncResponse { mut stdout, stderr, exit_code: 0 }) => {
                stdout.extend(stderr);
                ([(CONTENT_TYPE, "application/json")], stdout).into_response()
            }
            Ok(v1::ExecSyncResponse { stderr, exit_code, .. }) => {
                let text =
                    format!("command {text:?} exited with {exit_code}: {}", String::from_utf8_lossy(&stderr));
                (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
            }
            Err(status) => proxy::refused(&status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Vec<(String, String)> {
        text.split('&')
            .map(|p| p.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap())
            .collect()
    }

    #[test]
    fn what_the_runtime_is_asked_for() {
        let request = exec_request(&query("command=sh&command=-c&input=1&output=1&error=1&tty=1")).unwrap();
        assert_eq!(request.cmd, ["sh", "-c"]);
        assert!(request.tty && request.stdin && request.stdout && !request.stderr);
        assert!(exec_request(&query("command=sh&tty=1")).unwrap_err().contains("at least 1"));
        assert!(exec_request(&query("output=1")).unwrap_err().contains("no command"));

        let all = wanted(&query("input=1&output=1&error=1")).unwrap();
        let request = attach_request("id".to_owned(), all, false);
        assert!(request.stdin && request.stdout && request.stderr && !request.tty);
        let request = attach_request("id".to_owned(), all, true);
        assert!(request.tty && !request.stderr, "the container's terminal counts, not the query's");
    }

    #[test]
    fn ports_are_named_by_who_has_no_streams_for_them() {
        let headers = |pairs: &[(axum::http::HeaderName, &str)]| -> HeaderMap {
            pairs.iter().map(|(k, v)| (k.clone(), v.parse().unwrap())).collect()
        };
        let spdy = headers(&[(UPGRADE, "SPDY/3.1")]);
        let tunnel =
            headers(&[(UPGRADE, "websocket"), (SEC_WEBSOCKET_PROTOCOL, "SPDY/3.1+portforward.k8s.io")]);
        let channels = headers(&[(UPGRADE, "websocket"), (SEC_WEBSOCKET_PROTOCOL, "v4.channel.k8s.io")]);
        for none in [&spdy, &tunnel] {
            assert_eq!(ports(none, &query("port=80")), Ok(vec![]));
        }
        assert_eq!(ports(&channels, &query("port=80,81&port=8080")), Ok(vec![80, 81, 8080]));
        for wrong in ["x=1", "port=0", "port=65536", "port=", "port=a"] {
            assert!(ports(&channels, &query(wrong)).unwrap_err().contains("port"), "{wrong}");
        }
    }
}
