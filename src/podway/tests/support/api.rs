//! An API server that lists, gets and watches what a test puts there, for reading commands and pages: no
//! etcd, no Go. What only a real one can show is shown end to end, by `tests/`.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Json, Response};
use axum::routing::get;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Event, Pod};
use podway_api::PodFlow;
use podway_flow::pulls::{PATH, Pull, Pulls};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::sync::{broadcast, watch};

const PODS: &str = "pods";
const FLOWS: &str = "podflows";
const EVENTS: &str = "events";
pub const NODES: &str = "nodes/proxy";

#[derive(Clone)]
pub struct FakeApi {
    objects: Arc<Mutex<HashMap<&'static str, Vec<Value>>>>,
    /// All changes so far: a version is how many there had been and one more (0 is none), and a watch tells what came after its own.
    log: Arc<Mutex<Vec<(&'static str, Value)>>>,
    changes: broadcast::Sender<(&'static str, Value)>,
    /// What every node tells of its pulls; nothing until it is set, as a node without an agent of podway.
    pulls: Arc<watch::Sender<Option<Pulls>>>,
    /// Resources that are forbidden.
    refused: Arc<Mutex<Vec<&'static str>>>,
    directory: Arc<tempfile::TempDir>,
}

impl FakeApi {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": server}}], "users": [{"name": "fake", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake", "namespace": "default"}}]});
        let mut file = std::fs::File::create(directory.path().join("kubeconfig")).unwrap();
        file.write_all(kubeconfig.to_string().as_bytes()).unwrap();
        let api = FakeApi {
            objects: Arc::default(),
            log: Arc::default(),
            changes: broadcast::Sender::new(1024),
            pulls: Arc::new(watch::Sender::new(None)),
            refused: Arc::default(),
            directory: Arc::new(directory),
        };
        let mut router = Router::new();
        for (resource, group) in
            [(PODS, "/api/v1"), (EVENTS, "/api/v1"), (FLOWS, "/apis/podway.dev/v1alpha1")]
        {
            let all = move |State(api): State<FakeApi>, Query(asked): Query<HashMap<String, String>>| async move {
                api.answer(resource, None, &asked)
            };
            let of = move |State(api): State<FakeApi>,
                           Path(ns): Path<String>,
                           Query(asked): Query<HashMap<String, String>>| async move {
                api.answer(resource, Some(&ns), &asked)
            };
            let one = move |State(api): State<FakeApi>, Path((ns, name)): Path<(String, String)>| async move {
                let found =
                    api.of(resource, Some(&ns), "").into_iter().find(|o| o["metadata"]["name"] == *name);
                found.map_or_else(|| status(404, "not found"), |object| Json(object).into_response())
            };
            router = router
                .route(&format!("{group}/{resource}"), get(all))
                .route(&format!("{group}/namespaces/{{ns}}/{resource}"), get(of))
                .route(&format!("{group}/namespaces/{{ns}}/{resource}/{{name}}"), get(one));
        }
        let node = async |State(api): State<FakeApi>| api.node();
        let router =
            router.route(&format!("/api/v1/nodes/{{node}}/proxy{PATH}"), get(node)).with_state(api.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        api
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    pub fn pod(&self, pod: &Pod) {
        self.put(PODS, serde_json::to_value(pod).unwrap());
    }

    pub fn flow(&self, flow: &PodFlow) {
        self.put(FLOWS, serde_json::to_value(flow).unwrap());
    }

    pub fn event(&self, event: &Event) {
        self.put(EVENTS, serde_json::to_value(event).unwrap());
    }

    /// Has the nodes tell of these pulls from now on.
    pub fn pulls(&self, pulls: Vec<Pull>) {
        self.pulls.send_replace(Some(Pulls { pulls }));
    }

    fn node(&self) -> Response {
        if self.refused.lock().unwrap().contains(&NODES) {
            return status(403, "nodes \"podway-0\" is forbidden: no <b>rights</b>");
        }
        if self.pulls.borrow().is_none() {
            return (StatusCode::NOT_FOUND, "404 page not found").into_response();
        }
        let told = tokio_stream::wrappers::WatchStream::new(self.pulls.subscribe());
        let lines = told.map(|pulls| serde_json::to_string(&pulls).map(|line| format!("{line}\n")));
        Body::from_stream(lines).into_response()
    }

    pub fn refuse(&self, resource: &'static str) {
        self.refused.lock().unwrap().push(resource);
    }

    fn put(&self, resource: &'static str, mut object: Value) {
        let mut objects = self.objects.lock().unwrap();
        let mut log = self.log.lock().unwrap();
        // That of this change: a watcher takes an object without one for the end of its watch.
        object["metadata"]["resourceVersion"] = json!((log.len() + 2).to_string());
        let all = objects.entry(resource).or_default();
        let same = |o: &Value| {
            o["metadata"]["name"] == object["metadata"]["name"]
                && o["metadata"]["namespace"] == object["metadata"]["namespace"]
        };
        let known = all.iter().position(same);
        let type_ = if known.is_some() { "MODIFIED" } else { "ADDED" };
        match known {
            Some(i) => all[i] = object.clone(),
            None => all.push(object.clone()),
        }
        let change = (resource, json!({"type": type_, "object": object}));
        log.push(change.clone());
        // Nobody may be watching.
        drop(self.changes.send(change));
    }

    fn of(&self, resource: &str, namespace: Option<&str>, selector: &str) -> Vec<Value> {
        let objects = self.objects.lock().unwrap();
        let all = objects.get(resource).cloned().unwrap_or_default();
        all.into_iter().filter(|o| is_in(o, namespace) && selected(o, selector)).collect()
    }

    fn answer(
        &self,
        resource: &'static str,
        namespace: Option<&str>,
        asked: &HashMap<String, String>,
    ) -> Response {
        if self.refused.lock().unwrap().contains(&resource) {
            return status(403, &format!("{resource} is forbidden: no <b>rights</b>"));
        }
        if asked.contains_key("watch") {
            let namespace = namespace.map(str::to_owned);
            let log = self.log.lock().unwrap();
            let known = asked.get("resourceVersion").and_then(|v| v.parse::<usize>().ok());
            let known = known.map_or(log.len(), |version| version.saturating_sub(1));
            let missed: Vec<_> = log.iter().skip(known).cloned().map(Ok).collect();
            let later = tokio_stream::wrappers::BroadcastStream::new(self.changes.subscribe());
            drop(log);
            let lines = futures::stream::iter(missed).chain(later).filter_map(move |change| {
                let line = change
                    .ok()
                    .filter(|(of, c)| *of == resource && is_in(&c["object"], namespace.as_deref()));
                std::future::ready(line.map(|(_, change)| Ok::<_, std::io::Error>(format!("{change}\n"))))
            });
            return Body::from_stream(lines).into_response();
        }
        // Before the objects: what changes in between is told twice, and not never.
        let version = (self.log.lock().unwrap().len() + 1).to_string();
        let items = self.of(resource, namespace, asked.get("labelSelector").map_or("", String::as_str));
        Json(
            json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": version}, "items": items}),
        )
        .into_response()
    }
}

fn is_in(object: &Value, namespace: Option<&str>) -> bool {
    namespace.is_none_or(|ns| object["metadata"]["namespace"] == *ns)
}

fn selected(object: &Value, selector: &str) -> bool {
    selector.split_once('=').is_none_or(|(key, value)| object["metadata"]["labels"][key] == *value)
}

fn status(code: u16, message: &str) -> Response {
    let body = json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "code": code, "message": message, "reason": if code == 404 { "NotFound" } else { "Forbidden" }});
    (StatusCode::from_u16(code).unwrap(), Json(body)).into_response()
}
