//! Extenders that are real servers, asked by whole cycles.

use super::http::HttpExtender;
use super::*;
use crate::cache::Cache;
use crate::cycle::{CycleError, Decision, FitError, Nomination, Sample, Trace, schedule_one};
use crate::model::NodeInfo;
use crate::plugins::default_framework;
use axum::Router;
use axum::extract::{Json, Path, State};
use axum::http::StatusCode;
use k8s_openapi::api::core::v1;
use podway_flow::Micros;
use serde_json::{Value, json};
use std::sync::Mutex;
use std::time::Duration;

/// What was asked: the verb and the arguments.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;
type Answer = fn(&str, &Value) -> (u16, Value);

/// An extender that answers as told and remembers what it was asked.
struct Server {
    url: String,
    asked: Asked,
}

impl Server {
    async fn start(answer: Answer) -> Self {
        let asked = Asked::default();
        let handle = |State((asked, answer)): State<(Asked, Answer)>,
                      Path(verb): Path<String>,
                      Json(args)| async move {
            let (code, value) = answer(&verb, &args);
            asked.lock().unwrap().push((verb, args));
            (StatusCode::from_u16(code).unwrap(), Json(value))
        };
        let router = Router::new().route("/ext/{verb}", axum::routing::post(handle));
        let router = router.with_state((asked.clone(), answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/ext/", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Server { url, asked }
    }

    /// It does all that can be asked.
    fn spec(&self) -> Spec {
        Spec {
            filter: Some("filter".into()),
            prioritize: Some(("prioritize".into(), 2)),
            preempt: Some("preempt".into()),
            bind: Some("bind".into()),
            knows_nodes: true,
            ..Spec::new(self.url.clone())
        }
    }

    fn asked(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn node(name: &str, cpu: &str) -> Arc<NodeInfo> {
    let node: v1::Node =
        serde_json::from_value(json!({"metadata": {"name": name, "annotations": {"rack": "7"}},
        "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "9"}}}))
        .unwrap();
    Arc::new(NodeInfo::parse(&node).unwrap().keeping(&node))
}

fn pod(name: &str, priority: i32, more: &Value) -> Arc<PodInfo> {
    let mut requests = json!({"cpu": "1"});
    requests.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let pod: v1::Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "d", "uid": format!("uid-{name}"), "managedFields": [{}]},
        "spec": {"priority": priority, "containers": [{"name": "c", "resources": {"requests": requests}}]}}))
    .unwrap();
    Arc::new(PodInfo::parse(&pod).unwrap().keeping(&pod))
}

fn cluster() -> Cache {
    let mut cache = Cache::default();
    for name in ["a", "b", "c"] {
        cache.set_node(node(name, "4"));
    }
    cache
}

/// A cycle with these extenders, on a thread that may wait.
async fn cycle(specs: Vec<Spec>, cache: &mut Cache, pod: &Arc<PodInfo>) -> Result<Decision, CycleError> {
    let made = specs.into_iter().map(|s| Arc::new(HttpExtender::new(s).unwrap()) as Arc<dyn Extender>);
    let framework = Framework { extenders: made.collect(), ..default_framework() };
    let (snapshot, pod) = (cache.snapshot(), pod.clone());
    let decide =
        move || schedule_one(None, &framework, &snapshot, &pod, &|| Micros(1), &mut Trace::default());
    tokio::task::spawn_blocking(decide).await.unwrap()
}

fn unfit(found: Result<Decision, CycleError>) -> FitError {
    match found.unwrap_err() {
        CycleError::Unfit(error) => *error,
        CycleError::Failed(failure) => panic!("{failure}"),
    }
}

const NONE: fn() -> Value = || json!({});

#[tokio::test(flavor = "multi_thread")]
async fn it_filters_and_scores_and_its_score_is_a_column() {
    // Field names in any case, as Go reads them.
    let server = Server::start(|verb, _| match verb {
        "filter" => (200, json!({"nodenames": ["c", "b"], "failedNodes": {"a": "no licence"}})),
        _ => {
            (200, json!([{"host": "b", "score": 1}, {"Host": "c", "Score": 9}, {"Host": "zzz", "Score": 10}]))
        }
    })
    .await;
    let pod = pod("p", 0, &NONE());
    let decision = cycle(vec![server.spec()], &mut cluster(), &pod).await.unwrap();
    assert_eq!((decision.node.as_str(), decision.feasible, decision.margin), ("c", 2, Some(160)));
    assert_eq!(decision.rejected["a"], Status::unschedulable(NAME, "no licence"));
    let (best, column) = (&decision.scores[0], decision.scores[0].by_plugin.last().unwrap());
    assert_eq!(*column, (server.url.clone().into(), 9, 90, 2));
    assert_eq!(best.total, best.by_plugin.iter().map(|(_, _, n, w)| n * w).sum::<i64>());

    let asked = server.asked();
    assert_eq!(asked.iter().map(|(verb, _)| verb.as_str()).collect::<Vec<_>>(), ["filter", "prioritize"]);
    let args = &asked[0].1;
    assert_eq!((&args["NodeNames"], &args["Nodes"]), (&json!(["a", "b", "c"]), &Value::Null));
    assert_eq!(args["Pod"]["metadata"]["name"], "p");
    assert_eq!(args["Pod"]["metadata"]["managedFields"], Value::Null);
    assert_eq!(asked[1].1["NodeNames"], json!(["b", "c"]), "what it filtered out it need not score");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_know_the_nodes_is_sent_them_whole() {
    let server =
        Server::start(|_, args| (200, json!({"Nodes": {"items": [args["Nodes"]["items"][1]]}}))).await;
    let spec = Spec { knows_nodes: false, prioritize: None, ..server.spec() };
    let decision = cycle(vec![spec], &mut cluster(), &pod("p", 0, &NONE())).await.unwrap();
    assert_eq!((decision.node.as_str(), decision.feasible), ("b", 1));
    let args = &server.asked()[0].1;
    assert_eq!(args["Nodes"]["items"][2]["metadata"]["annotations"]["rack"], "7");
    assert_eq!(args["NodeNames"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_refuses_is_told_and_any_event_may_help() {
    let server = Server::start(|_, _| {
        let (failed, final_) = (json!({"a": "busy", "b": "busy"}), json!({"b": "broken"}));
        (200, json!({"NodeNames": [], "FailedNodes": failed, "FailedAndUnresolvableNodes": final_}))
    })
    .await;
    let error = unfit(cycle(vec![server.spec()], &mut cluster(), &pod("p", 0, &NONE())).await);
    // Node c fell without a word, as it may; that counts as final.
    assert_eq!(
        error.message(),
        "0/3 nodes are available: 1 broken, 1 busy. no new claims to deallocate, preemption: 0/3 nodes are \
         available: 1 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling."
    );
    assert_eq!(error.plugins(), [NAME].into());
    let framework = Framework {
        extenders: vec![Arc::new(HttpExtender::new(server.spec()).unwrap())],
        ..default_framework()
    };
    let hint = framework.refusing()[NAME];
    assert!(hint.may_help(&pod("p", 0, &NONE()), &ClusterEvent::PodUpdate));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_fails_fails_the_pod_unless_it_is_ignorable() {
    let broken = Server::start(|verb, _| match verb {
        "said" => (200, json!({"Error": "out of order"})),
        "unasked" => (200, json!({"NodeNames": ["elsewhere"]})),
        "garbage" => (200, json!([1, 2])),
        _ => (503, json!({})),
    })
    .await;
    let pod = pod("p", 0, &NONE());
    let url = &broken.url;
    let bare = url.trim_end_matches('/');
    for (verb, text) in [
        ("filter", format!("failed filter with extender at URL {bare}/filter, code 503")),
        ("said", "out of order".to_owned()),
        (
            "unasked",
            format!(
                "extender {url:?} claims a filtered node \"elsewhere\" which is not found in the input node list"
            ),
        ),
        (
            "garbage",
            format!(
                "the answer of the extender at URL {bare}/garbage cannot be read: an array in the place of an object"
            ),
        ),
    ] {
        let spec = Spec { filter: Some(verb.into()), prioritize: None, ..broken.spec() };
        let error = cycle(vec![spec.clone()], &mut cluster(), &pod).await.unwrap_err();
        assert!(matches!(error, CycleError::Failed(_)));
        assert_eq!(error.to_string(), text);
        let decision = cycle(vec![Spec { ignorable: true, ..spec }], &mut cluster(), &pod).await.unwrap();
        assert_eq!(decision.feasible, 3, "{verb}");
    }
    // Nobody is there.
    let gone = Spec { filter: Some("filter".into()), ..Spec::new("http://127.0.0.1:1/x") };
    let error = cycle(vec![gone.clone()], &mut cluster(), &pod).await.unwrap_err().to_string();
    assert!(error.starts_with("Post \"http://127.0.0.1:1/x/filter\": "), "{error}");
    // A score that does not come is none, however much the extender is needed.
    let scoring = Spec { filter: None, prioritize: Some(("prioritize".into(), 1)), ..gone };
    assert_eq!(cycle(vec![scoring], &mut cluster(), &pod).await.unwrap().feasible, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_does_not_answer_is_not_waited_for() {
    // A listener that nobody accepts from: connected, and silent.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let spec =
        Spec { filter: Some("f".into()), timeout: Duration::from_millis(50), ..Spec::new(url.clone()) };
    let error = cycle(vec![spec], &mut cluster(), &pod("p", 0, &NONE())).await.unwrap_err();
    assert_eq!(error.to_string(), format!("Post \"{url}/f\": context deadline exceeded"));
}

#[tokio::test(flavor = "multi_thread")]
async fn they_are_asked_one_after_the_other_and_only_about_their_resources() {
    let first = Server::start(|_, _| (200, json!({"NodeNames": ["a", "b"]}))).await;
    let second = Server::start(|_, _| (200, json!({"NodeNames": ["b"]}))).await;
    let third = Server::start(|_, _| (200, json!({"NodeNames": []}))).await;
    let filters = |server: &Server| Spec { prioritize: None, ..server.spec() };
    let gpu = Spec { managed: ["example.com/gpu".to_owned()].into(), ..filters(&third) };
    let all = vec![filters(&first), filters(&second), gpu];
    let found = cycle(all.clone(), &mut cluster(), &pod("p", 0, &NONE())).await.unwrap();
    assert_eq!((found.node.as_str(), found.feasible), ("b", 1));
    assert_eq!(second.asked()[0].1["NodeNames"], json!(["a", "b"]), "what the first one left");
    assert!(third.asked().is_empty());
    let asks = pod("p", 0, &json!({"example.com/gpu": "0"}));
    assert_eq!(unfit(cycle(all, &mut cluster(), &asks).await).plugins(), [NAME].into());
    assert_eq!(third.asked().len(), 1, "it is named, in whatever amount");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_share_of_the_nodes_is_enough_a_filter_still_sees_so_many() {
    let server = Server::start(|_, args| (200, json!({"NodeNames": args["NodeNames"]}))).await;
    let mut cache = Cache::default();
    for i in 0..200 {
        cache.set_node(node(&format!("n{i:03}"), "4"));
    }
    let made = HttpExtender::new(Spec { prioritize: None, ..server.spec() }).unwrap();
    let framework = Framework {
        score: vec![],
        sample: Sample::Percent(60),
        extenders: vec![Arc::new(made)],
        ..default_framework()
    };
    let (snapshot, pod) = (cache.snapshot(), pod("p", 0, &NONE()));
    let decide =
        move || schedule_one(None, &framework, &snapshot, &pod, &|| Micros(1), &mut Trace::default());
    let found = tokio::task::spawn_blocking(decide).await.unwrap().unwrap();
    assert_eq!(found.feasible, 120);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_has_a_say_about_victims() {
    let cache = || {
        let mut cache = Cache::default();
        for name in ["a", "b"] {
            cache.set_node(node(name, "1"));
            cache.assume(pod(&format!("low-{name}"), 1, &NONE()), name);
        }
        cache
    };
    let high = pod("high", 9, &NONE());
    let pick = |error: FitError| match error.nomination {
        Nomination::Preempt(p) => {
            (p.best.node, p.best.victims.iter().map(|v| v.name.clone()).collect::<Vec<_>>())
        }
        _ => (error.post_filter, vec![]),
    };
    let server = Server::start(|_, _| {
        (
            200,
            json!({"NodeNameToMetaVictims": {"b": {"Pods": [{"UID": "uid-low-b"}], "NumPDBViolations": 0}}}),
        )
    })
    .await;
    let only = Spec { filter: None, prioritize: None, ..server.spec() };
    let found = pick(unfit(cycle(vec![only.clone()], &mut cache(), &high).await));
    assert_eq!(found, ("b".to_owned(), vec!["low-b".to_owned()]));
    let args = &server.asked()[0].1;
    assert_eq!(
        args["NodeNameToMetaVictims"]["a"],
        json!({"Pods": [{"UID": "uid-low-a"}], "NumPDBViolations": 0})
    );
    assert_eq!(args["NodeNameToVictims"], Value::Null);
    let whole = Spec { knows_nodes: false, ..only.clone() };
    let _ = unfit(cycle(vec![whole], &mut cache(), &high).await);
    let args = &server.asked()[0].1;
    assert_eq!(args["NodeNameToVictims"]["b"]["Pods"][0]["metadata"]["name"], "low-b");

    let none = Server::start(|_, _| (200, json!({"NodeNameToMetaVictims": {}}))).await;
    let only = |server: &Server| Spec { filter: None, prioritize: None, ..server.spec() };
    let found = pick(unfit(cycle(vec![only(&none)], &mut cache(), &high).await));
    assert_eq!(found.0, "no new claims to deallocate, preemption: no candidate node for preemption");

    let stranger = Server::start(|_, _| {
        (200, json!({"NodeNameToMetaVictims": {"a": {"Pods": [{"UID": "who"}]}, "b": {"Pods": []}}}))
    })
    .await;
    let error = unfit(cycle(vec![only(&stranger)], &mut cache(), &high).await);
    assert_eq!(error.nomination, Nomination::Keep);
    assert!(
        error.post_filter.contains("claims to preempt pod (UID: who) on node: a"),
        "{}",
        error.post_filter
    );
    let ignorable = Spec { ignorable: true, ..only(&stranger) };
    let found = pick(unfit(cycle(vec![ignorable], &mut cache(), &high).await));
    assert_eq!(found.0, "a", "as if it had not been asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_binds_and_one_that_may_fail_leaves_it_to_the_next() {
    let placement =
        Placement { pod: pod("p", 0, &NONE()), node: "a".into(), annotation: None, volumes: None };
    let bind = async |server: &Server, ignorable| {
        let made = HttpExtender::new(Spec { ignorable, ..server.spec() }).unwrap();
        ExtenderBinder(vec![Arc::new(made)]).bind(&placement).await
    };
    let server = Server::start(|_, _| (200, json!({}))).await;
    assert_eq!(bind(&server, false).await, Ok(true));
    let want = json!({"PodName": "p", "PodNamespace": "d", "PodUID": "uid-p", "Node": "a"});
    assert_eq!(server.asked(), [("bind".to_owned(), want)]);
    let broken = Server::start(|_, _| (200, json!({"Error": "not today"}))).await;
    assert_eq!(bind(&broken, false).await, Err(Status::error(NAME, "not today")));
    assert_eq!(bind(&broken, true).await, Ok(false));
    assert_eq!(ExtenderBinder(vec![]).bind(&placement).await, Ok(false));
}

#[tokio::test]
async fn what_cannot_be_an_extender_is_refused() {
    use super::http::SpecError;
    use super::spec::{Pem, Tls};
    let made = |spec: Spec| HttpExtender::new(spec).map(|_| ());
    for url in ["", "localhost:80", "ftp://x", "http://x/?a=b", "http:// x"] {
        assert!(matches!(made(Spec::new(url)), Err(SpecError::Url(_))), "{url}");
    }
    let tls = |tls| Spec { tls, ..Spec::new("https://x") };
    let missing = Tls { authority: Some(Pem::File("/not/there".into())), ..Tls::default() };
    assert!(matches!(made(tls(missing)), Err(SpecError::Read(..))));
    let both = Tls { insecure: true, authority: Some(Pem::Data(vec![])), ..Tls::default() };
    assert!(matches!(made(tls(both)), Err(SpecError::InsecureAuthority)));
    assert!(made(Spec { https: true, ..Spec::new("https://x") }).is_ok());
}
