//! A scheduler with an extender that filters and binds.

use super::{Live, Scheduler, node_of};
use axum::Router;
use axum::extract::{Json, Path, State};
use k8s_openapi::api::core::v1::Binding;
use kube::ResourceExt as _;
use kube::api::{Api, PostParams};
use podway_scheduler::Config;
use podway_scheduler::extender::Spec;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// An extender that lets only n2 through, once it may answer, and binds with a client of its own.
struct Server {
    client: kube::Client,
    /// It was asked; it may answer.
    asked: Semaphore,
    may: Semaphore,
}

async fn answer(
    State(server): State<Arc<Server>>,
    Path(verb): Path<String>,
    Json(args): Json<Value>,
) -> Json<Value> {
    if verb == "filter" {
        server.asked.add_permits(1);
        server.may.acquire().await.unwrap().forget();
        assert_eq!(args["Pod"]["spec"]["schedulerName"], "podway");
        return Json(json!({"NodeNames": ["n2"], "FailedNodes": {"n1": "not n1"}}));
    }
    let pods = Api::<k8s_openapi::api::core::v1::Pod>::default_namespaced(server.client.clone());
    let binding: Binding = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": args["PodName"], "uid": args["PodUID"]},
        "target": {"kind": "Node", "name": args["Node"]}}))
    .unwrap();
    let name = args["PodName"].as_str().unwrap();
    let bound: Result<Value, _> =
        pods.create_subresource("binding", name, &PostParams::default(), &binding).await;
    Json(json!({"Error": bound.err().map(|e| e.to_string()).unwrap_or_default()}))
}

pub(super) async fn filters_and_binds_while_health_is_told(live: &Live) {
    let client = live.client.clone();
    let server = Arc::new(Server { client, asked: Semaphore::new(0), may: Semaphore::new(0) });
    let router = Router::new().route("/{verb}", axum::routing::post(answer)).with_state(server.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let spec = Spec {
        filter: Some("filter".into()),
        bind: Some("bind".into()),
        knows_nodes: true,
        // It is not to end while this test looks at something else.
        timeout: Duration::from_secs(60),
        ..Spec::new(url)
    };
    let config = Config { extenders: vec![spec], leader_election: None, ..Config::default() };
    let scheduler = Scheduler::with(&live.cluster, config, |clients| clients).await;
    live.pod("by-extender", "10m", json!({})).await;
    server.asked.acquire().await.unwrap().forget();
    // The cycle waits for the answer; who asks for our health does not.
    scheduler.ready_as("nodes-synced ok").await;
    server.may.add_permits(1);
    let pod = live.bound("by-extender").await;
    assert_eq!(node_of(&pod), "n2");
    assert!(pod.annotations().is_empty(), "the binding was the extender's");
    let attempts = "scheduler_schedule_attempts_total{result=\"scheduled\",profile=\"podway\"} ";
    scheduler.metric_is(attempts, 1.0).await;
    live.delete("by-extender").await;
    scheduler.stop().await;
    serving.abort();
}
