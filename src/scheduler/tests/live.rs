//! The scheduler on a real control plane, as its own user with its own rights; nodes are bare
//! objects. One control plane for all, since it takes seconds to come up.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test: a panic is its failure")]

#[path = "live/extender.rs"]
mod extender;
#[path = "live/replay.rs"]
mod replay;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use http::{Request, Response};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use podway_api::{SchedulerProfile, SchedulerProfileStatus};
use podway_cluster::{Cluster, UpOptions, down, up};
use podway_flow::{Outcome, Phase, Record, wire};
use podway_scheduler::cycle::CycleError;
use podway_scheduler::explain::search::{decide, remedies};
use podway_scheduler::explain::world::World;
use podway_scheduler::framework::{ClusterEvent, Permit, Placement, Plugin, Status};
use podway_scheduler::leader::LeaderElection;
use podway_scheduler::model::PodInfo;
use podway_scheduler::plugins::default_framework;
use podway_scheduler::{Clients, Config, RunError, run_with};
use serde_json::json;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(20);

/// Holds pods labelled `hold` until it is given a permit for each.
struct Hold(Semaphore, Semaphore);

impl Plugin for Hold {
    fn name(&self) -> &'static str {
        "Hold"
    }
    fn may_help(&self, _: &PodInfo, _: &ClusterEvent) -> bool {
        false
    }
}

impl Permit for Hold {
    fn permit<'a>(&'a self, placement: &'a Placement) -> BoxFuture<'a, Result<(), Status>> {
        async move {
            if placement.pod.labels.contains_key("hold") {
                self.0.add_permits(1);
                self.1.acquire().await.unwrap().forget();
            }
            Ok(())
        }
        .boxed()
    }
}

/// A scheduler that runs.
struct Scheduler {
    token: CancellationToken,
    task: JoinHandle<Result<(), RunError>>,
    address: SocketAddr,
    hold: Arc<Hold>,
}

impl Scheduler {
    async fn start(cluster: &Cluster) -> Self {
        Scheduler::elected(cluster, LeaderElection::default()).await
    }

    async fn elected(cluster: &Cluster, election: LeaderElection) -> Self {
        let config = Config { leader_election: Some(election), ..Config::default() };
        Scheduler::with(cluster, config, |clients| clients).await
    }

    async fn start_with(cluster: &Cluster, change: impl FnOnce(Clients) -> Clients) -> Self {
        Scheduler::with(cluster, Config::default(), change).await
    }

    async fn with(cluster: &Cluster, own: Config, change: impl FnOnce(Clients) -> Clients) -> Self {
        let file = Kubeconfig::read_from(cluster.layout.admin_kubeconfig()).unwrap();
        let mut config =
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        // Its rights are those of manifests/rbac.yaml and no more.
        config.auth_info.impersonate = Some("system:podway-scheduler".to_owned());
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let hold = Arc::new(Hold(Semaphore::new(0), Semaphore::new(0)));
        let mut framework = default_framework();
        framework.permit.push(hold.clone());
        let token = CancellationToken::new();
        let task = tokio::spawn(run_with(
            move |_| framework.clone(),
            change(Clients::connect(&config).unwrap()),
            Config { serve: Some(free), ..own },
            token.clone(),
        ));
        Scheduler { token, task, address: free, hold }
    }

    async fn stop(self) {
        self.token.cancel();
        tokio::time::timeout(LIMIT, self.task).await.expect("it ends when told").unwrap().unwrap();
    }

    /// The status line's code and the body.
    async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let code = text.split(' ').nth(1).unwrap().parse().unwrap();
        (code, text.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    /// Waits until `/readyz` is answered with a text that has `part`.
    async fn ready_as(&self, part: &str) {
        let mut said = String::new();
        let came = async {
            loop {
                if tokio::net::TcpStream::connect(self.address).await.is_ok() {
                    let (code, body) = self.get("/readyz").await;
                    if code == 200 && body.contains(part) {
                        return;
                    }
                    said = body;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(LIMIT, came).await.is_err() {
            panic!("/readyz does not say {part:?} but {said:?}");
        }
    }

    async fn metric(&self, sample: &str) -> f64 {
        self.counted(sample).await.unwrap_or_else(|| panic!("no {sample} in /metrics"))
    }

    /// None before the first is counted.
    async fn counted(&self, sample: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics").await;
        let line = text.lines().find_map(|l| l.strip_prefix(sample))?;
        Some(line.trim().parse().unwrap())
    }

    /// Waits until a sample has a value: what a lane has done is counted after the API server shows it.
    async fn metric_is(&self, sample: &str, value: f64) {
        let came = async {
            #[expect(clippy::float_cmp, reason = "counters are whole numbers")]
            while self.counted(sample).await.is_none_or(|counted| counted != value) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(20), came).await.is_err() {
            let (_, text) = self.get("/metrics").await;
            let name = sample.split('{').next().unwrap();
            let all: Vec<_> = text.lines().filter(|l| l.starts_with(name)).collect();
            panic!("{sample} is not {value} after 20 s: {all:#?}");
        }
    }
}

fn crds() -> Vec<String> {
    podway_api::crds().unwrap().into_iter().map(|crd| crd.yaml).collect()
}

struct Live {
    cluster: Cluster,
    client: Client,
}

impl Live {
    fn pods(&self) -> Api<Pod> {
        Api::default_namespaced(self.client.clone())
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// The first object that the watch shows as wanted.
    async fn until<K>(&self, api: Api<K>, fields: String, what: &str, wanted: impl Fn(&K) -> bool) -> K
    where
        K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
    {
        let config = watcher::Config::default().fields(&fields);
        let mut seen = None;
        let found = async {
            let mut stream = std::pin::pin!(watcher(api, config).default_backoff().applied_objects());
            while let Some(object) = stream.next().await {
                let Ok(object) = object else { continue };
                if wanted(&object) {
                    return Some(object);
                }
                seen = Some(object);
            }
            None
        };
        match tokio::time::timeout(LIMIT, found).await {
            Ok(Some(object)) => object,
            _ => panic!("{what} ({fields}) did not come; last seen: {seen:?}"),
        }
    }

    async fn node(&self, name: &str, cpu: &str) {
        let object = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
        self.nodes().create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
        let now = k8s_openapi::jiff::Timestamp::now();
        let status = json!({"status": {
            "capacity": {"cpu": cpu, "memory": "8Gi", "pods": "110"},
            "allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
                "message": "", "lastHeartbeatTime": now, "lastTransitionTime": now}]}});
        self.nodes().patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await.unwrap();
        self.until(self.nodes(), format!("metadata.name={name}"), "the node free of taints", |n| {
            n.spec.as_ref().is_none_or(|s| s.taints.iter().flatten().count() == 0)
        })
        .await;
    }

    async fn cordon(&self, name: &str, on: bool) {
        let patch = json!({"spec": {"unschedulable": on}});
        self.nodes().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    async fn pod(&self, name: &str, cpu: &str, more: serde_json::Value) -> Pod {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"schedulerName": "podway", "containers": [{
                "name": "c", "image": "none", "resources": {"requests": {"cpu": cpu}}}]}});
        for (key, value) in more["spec"].as_object().into_iter().flatten() {
            object["spec"][key] = value.clone();
        }
        object["metadata"]["labels"] = more["labels"].clone();
        let pod = serde_json::from_value(object).unwrap();
        self.pods().create(&PostParams::default(), &pod).await.unwrap()
    }

    async fn bound(&self, name: &str) -> Pod {
        self.until(self.pods(), format!("metadata.name={name}"), "the binding", |p| !node_of(p).is_empty())
            .await
    }

    async fn refused(&self, name: &str) -> (String, String, Option<i64>) {
        let pod = self
            .until(self.pods(), format!("metadata.name={name}"), "the refusal", |p| {
                scheduled(p).is_some_and(|c| c.status == "False")
            })
            .await;
        let condition = scheduled(&pod).unwrap();
        (
            condition.reason.clone().unwrap_or_default(),
            condition.message.clone().unwrap_or_default(),
            condition.observed_generation,
        )
    }

    async fn event(&self, pod: &Pod, reason: &str) -> Event {
        let events: Api<Event> = Api::default_namespaced(self.client.clone());
        let uid = pod.uid();
        self.until(events, format!("reason={reason}"), "the event", |e| {
            e.regarding.as_ref().is_some_and(|r| r.uid == uid)
        })
        .await
    }

    async fn delete(&self, name: &str) {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        self.pods().delete(name, &now).await.unwrap();
    }

    async fn bind_elsewhere(&self, name: &str, node: &str) {
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"kind": "Node", "name": node}});
        let body = serde_json::from_value::<k8s_openapi::api::core::v1::Binding>(binding).unwrap();
        let _: serde_json::Value =
            self.pods().create_subresource("binding", name, &PostParams::default(), &body).await.unwrap();
    }
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

fn scheduled(pod: &Pod) -> Option<&k8s_openapi::api::core::v1::PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == "PodScheduled")
}

fn records(pod: &Pod) -> Vec<Record> {
    wire::decode(pod.annotations()[wire::SCHEDULING_ANNOTATION].as_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scheduler_on_a_real_control_plane() {
    // What it says is shown if the test fails.
    tracing_subscriber::fmt().with_test_writer().init();
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("state");
    let options = UpOptions {
        state_dir: state_dir.clone(),
        control_plane_only: true,
        crds: crds(),
        ..UpOptions::default()
    };
    let cluster = up(options, |line| eprintln!("{line}")).await.unwrap();
    let live = Live { client: cluster.client.clone(), cluster };
    let result = AssertUnwindSafe(all(&live)).catch_unwind().await;
    assert!(down(&state_dir, |line| eprintln!("{line}")).await.unwrap());
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

async fn all(live: &Live) {
    let scheduler = Scheduler::start(&live.cluster).await;
    live.node("n1", "4").await;
    a_pod_is_bound_and_the_decision_lands_on_it(live, &scheduler).await;
    live.node("n2", "1").await;
    a_refusal_has_upstreams_words_and_an_uncordon_wakes(live).await;
    a_conflict_is_survived(live, &scheduler).await;
    a_pod_of_the_same_name_is_another_pod(live, &scheduler).await;
    health_and_metrics(&scheduler).await;
    a_profile_is_live_and_a_bad_one_is_not(live).await;
    questions_have_the_schedulers_answers(live).await;
    a_shadow_agrees_with_itself_and_tells_what_differs(live).await;
    let scheduler = a_restart_loses_nothing(live, scheduler).await;
    fifty_at_once(live).await;
    a_higher_priority_takes_the_room_of_a_lower_one(live, &scheduler).await;
    scheduler.stop().await;
    a_lease_given_back_is_taken_at_once(live).await;
    the_successor_of_one_that_was_killed_counts_what_that_one_bound(live).await;
    a_leader_that_lost_its_lease_ends(live).await;
    extender::filters_and_binds_while_health_is_told(live).await;
    replay::a_recorded_run_comes_to_the_same_decisions(live).await;
    faults_are_survived_without_overcommit(live).await;
}

async fn a_pod_is_bound_and_the_decision_lands_on_it(live: &Live, scheduler: &Scheduler) {
    let start = Instant::now();
    live.pod("first", "100m", json!({})).await;
    let pod = live.bound("first").await;
    eprintln!("created -> seen bound: {:?}", start.elapsed());
    assert_eq!(node_of(&pod), "n1");
    assert_eq!(scheduled(&pod).unwrap().status, "True");
    let records = records(&pod);
    let phases: Vec<Phase> = records.iter().map(|r| r.phase).collect();
    assert_eq!(phases, [Phase::Queued, Phase::NodesFiltered, Phase::NodesScored, Phase::Bound]);
    assert_eq!(records[1].evidence["feasible"], "1");
    assert_eq!((records[2].outcome, records[2].reason.as_str()), (Outcome::Skipped, "OneFeasible"));
    assert_eq!(records[3].evidence["node"], "n1");
    let event = live.event(&pod, "Scheduled").await;
    assert_eq!(event.note.as_deref(), Some("Successfully assigned default/first to n1"));
    assert_eq!(event.action.as_deref(), Some("Binding"));
    assert_eq!(event.reporting_controller.as_deref(), Some("podway"));
    assert_eq!(scheduler.get("/readyz").await.0, 200);
}

async fn a_refusal_has_upstreams_words_and_an_uncordon_wakes(live: &Live) {
    live.cordon("n1", true).await;
    live.until(live.nodes(), "metadata.name=n1".into(), "the cordon's taint", |n| {
        n.spec.as_ref().is_some_and(|s| s.taints.iter().flatten().count() == 1)
    })
    .await;
    let pod = live.pod("big", "3", json!({})).await;
    let expected = "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable. no new claims to \
                    deallocate, preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    assert_eq!(live.refused("big").await, ("Unschedulable".into(), expected.into(), Some(1)));
    let event = live.event(&pod, "FailedScheduling").await;
    assert_eq!((event.note.as_deref(), event.type_.as_deref()), (Some(expected), Some("Warning")));
    // It has a backoff of a second from its refusal, which nobody but it would be spared by.
    let bound = async {
        live.bound("big").await;
        Instant::now()
    };
    let opened = async {
        live.cordon("n1", false).await;
        live.until(live.nodes(), "metadata.name=n1".into(), "the end of the taint", |n| {
            n.spec.as_ref().is_some_and(|s| s.taints.is_none() && s.unschedulable.is_none())
        })
        .await;
        Instant::now()
    };
    let start = Instant::now();
    let (bound, opened) = tokio::join!(bound, opened);
    let woke = bound.saturating_duration_since(opened);
    eprintln!("uncordon -> bound: {:?}, of which after the taint went: {woke:?}", bound - start);
    // A figure, not an assertion: how long it took is the benchmark's business.
    live.delete("big").await;
}

async fn a_conflict_is_survived(live: &Live, scheduler: &Scheduler) {
    live.pod(
        "taken",
        "100m",
        json!({"labels": {"hold": "y"}, "spec": {"nodeSelector": {"kubernetes.io/hostname": "n1"}}}),
    )
    .await;
    scheduler.hold.0.acquire().await.unwrap().forget();
    live.bind_elsewhere("taken", "n2").await;
    scheduler.hold.1.add_permits(1);
    // Another one shows that the loop is well, and that what was assumed has been given back.
    live.pod("after", "100m", json!({})).await;
    live.bound("after").await;
    let taken = live.bound("taken").await;
    assert_eq!(node_of(&taken), "n2");
    scheduler.metric_is("podway_scheduler_bind_conflicts_total ", 1.0).await;
    scheduler.metric_is("scheduler_cache_size{type=\"pods\"} ", 3.0).await;
    scheduler.metric_is("scheduler_cache_size{type=\"assumed_pods\"} ", 0.0).await;
    live.delete("taken").await;
    live.delete("after").await;
}

async fn a_pod_of_the_same_name_is_another_pod(live: &Live, scheduler: &Scheduler) {
    let first = live.pod("twin", "100m", json!({"labels": {"hold": "y"}})).await;
    scheduler.hold.0.acquire().await.unwrap().forget();
    live.delete("twin").await;
    let second = live.pod("twin", "100m", json!({})).await;
    scheduler.hold.1.add_permits(1);
    let bound = live.bound("twin").await;
    assert_ne!(first.uid(), second.uid());
    assert_eq!(bound.uid(), second.uid());
    assert_eq!(live.event(&second, "Scheduled").await.reason.as_deref(), Some("Scheduled"));
    live.delete("twin").await;
}

async fn health_and_metrics(scheduler: &Scheduler) {
    let (code, body) = scheduler.get("/livez").await;
    assert_eq!((code, body.as_str()), (200, "[+]loop ok\n[+]status-lane ok\n[+]leaderElection ok: leader\n"));
    let attempts = "scheduler_schedule_attempts_total{result=\"scheduled\",profile=\"podway\"} ";
    assert!(scheduler.metric(attempts).await >= 4.0);
    let refusals = "scheduler_schedule_attempts_total{result=\"unschedulable\",profile=\"podway\"} ";
    assert_eq!(scheduler.metric(refusals).await, 1.0);
    let bound = "podway_pod_phase_duration_seconds_count{phase=\"Bound\",result=\"succeeded\"} ";
    assert!(scheduler.metric(bound).await >= 4.0);
}

async fn a_restart_loses_nothing(live: &Live, scheduler: Scheduler) -> Scheduler {
    live.pod("before", "3", json!({})).await;
    let before = live.bound("before").await;
    scheduler.stop().await;
    live.pod("meanwhile", "100m", json!({})).await;
    live.pod("too-much", "3", json!({})).await;
    let scheduler = Scheduler::start(&live.cluster).await;
    live.bound("meanwhile").await;
    let (reason, message, _) = live.refused("too-much").await;
    let expected = "0/2 nodes are available: 2 Insufficient cpu. no new claims to deallocate, preemption: 0/2 nodes \
                    are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for \
                    scheduling.";
    assert_eq!((reason.as_str(), message.as_str()), ("Unschedulable", expected));
    let again = live.pods().get("before").await.unwrap();
    assert_eq!(records(&again), records(&before), "bound once");
    // Room that comes free wakes the one that waits for it.
    let start = Instant::now();
    live.delete("before").await;
    live.bound("too-much").await;
    eprintln!("room free -> bound: {:?}", start.elapsed());
    live.delete("too-much").await;
    live.delete("meanwhile").await;
    scheduler
}

async fn fifty_at_once(live: &Live) {
    let start = Instant::now();
    let all = futures::future::join_all((0..50).map(|i| async move {
        let name = format!("burst-{i}");
        live.pod(&name, "10m", json!({})).await;
        live.bound(&name).await
    }))
    .await;
    eprintln!("50 created and bound: {:?}", start.elapsed());
    assert!(all.iter().any(|p| node_of(p) == "n1") && all.iter().any(|p| node_of(p) == "n2"));
}

async fn a_higher_priority_takes_the_room_of_a_lower_one(live: &Live, scheduler: &Scheduler) {
    let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"},
        "value": 1000});
    let classes: Api<PriorityClass> = Api::all(live.client.clone());
    classes.create(&PostParams::default(), &serde_json::from_value(class).unwrap()).await.unwrap();
    live.pod("victim", "3", json!({})).await;
    assert_eq!(node_of(&live.bound("victim").await), "n1");
    // A finalizer holds the victim for as long as the test looks at it.
    let hold = |finalizers: serde_json::Value| {
        let patch = Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
        async move { live.pods().patch("victim", &PatchParams::default(), &patch).await.unwrap() }
    };
    let victim = hold(json!(["podway.dev/test"])).await;
    live.pod("high", "3", json!({"spec": {"priorityClassName": "high"}})).await;
    let leaving = live
        .until(live.pods(), "metadata.name=victim".into(), "the eviction", |p| {
            p.metadata.deletion_timestamp.is_some()
        })
        .await;
    let conditions = leaving.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let target = conditions.clone().find(|c| c.type_ == "DisruptionTarget").unwrap();
    assert_eq!(target.reason.as_deref(), Some("PreemptionByScheduler"));
    let event = live.event(&victim, "Preempted").await;
    let high = live.pods().get("high").await.unwrap();
    let note = format!("Preempted by pod {} on node n1", high.uid().unwrap());
    assert_eq!(event.note, Some(note));
    let nominated = |p: &Pod| p.status.as_ref().and_then(|s| s.nominated_node_name.clone());
    live.until(live.pods(), "metadata.name=high".into(), "the nomination", |p| {
        nominated(p).as_deref() == Some("n1")
    })
    .await;
    // The room is promised: one of lower priority that would fit once the victim is gone does not get it.
    live.pod("late", "2", json!({})).await;
    live.refused("late").await;
    hold(json!(null)).await;
    live.delete("victim").await;
    assert_eq!(node_of(&live.bound("high").await), "n1");
    assert_eq!(scheduler.metric("scheduler_preemption_victims_count ").await, 1.0);
    live.delete("high").await;
    assert_eq!(node_of(&live.bound("late").await), "n1");
    live.delete("late").await;
}

fn seconds(lease: f64, renew: f64, retry: f64) -> LeaderElection {
    LeaderElection {
        lease_duration: Duration::from_secs_f64(lease),
        renew_deadline: Duration::from_secs_f64(renew),
        retry_period: Duration::from_secs_f64(retry),
        ..LeaderElection::default()
    }
}

const LEADS: &str = "leader_election_master_status{name=\"podway-scheduler\"} ";

async fn a_lease_given_back_is_taken_at_once(live: &Live) {
    // Nobody who only tries now and then would get it within this test.
    let patient = || seconds(3600.0, 3000.0, 1800.0);
    let first = Scheduler::elected(&live.cluster, patient()).await;
    first.ready_as("leaderElection ok: leader").await;
    let second = Scheduler::elected(&live.cluster, patient()).await;
    second.ready_as(": standby, ").await;
    assert_eq!((first.metric(LEADS).await, second.metric(LEADS).await), (1.0, 0.0));
    live.pod("by-the-first", "10m", json!({})).await;
    live.bound("by-the-first").await;
    first.stop().await;
    live.pod("by-the-second", "10m", json!({})).await;
    live.bound("by-the-second").await;
    assert_eq!(second.metric(LEADS).await, 1.0);
    let attempts = "scheduler_schedule_attempts_total{result=\"scheduled\",profile=\"podway\"} ";
    second.metric_is(attempts, 1.0).await;
    let leases: Api<Lease> = Api::namespaced(live.client.clone(), "podway-system");
    let lease = leases.get("podway-scheduler").await.unwrap().spec.unwrap();
    assert!(lease.lease_transitions > Some(0), "{lease:?}");
    second.stop().await;
    let lease = leases.get("podway-scheduler").await.unwrap().spec.unwrap();
    assert_eq!(lease.holder_identity.as_deref().unwrap_or_default(), "", "given back");
    live.delete("by-the-first").await;
    live.delete("by-the-second").await;
}

async fn the_successor_of_one_that_was_killed_counts_what_that_one_bound(live: &Live) {
    let brief = || seconds(3.0, 2.0, 0.5);
    let first = Scheduler::elected(&live.cluster, brief()).await;
    first.ready_as("leaderElection ok: leader").await;
    let second = Scheduler::elected(&live.cluster, brief()).await;
    second.ready_as(": standby, ").await;
    live.pod("fills", "3", json!({})).await;
    assert_eq!(node_of(&live.bound("fills").await), "n1");
    // As by kill -9: neither the lease nor anything else is given back.
    first.task.abort();
    live.pod("finds-it-full", "3", json!({})).await;
    let (_, message, _) = live.refused("finds-it-full").await;
    assert!(message.starts_with("0/2 nodes are available: 2 Insufficient cpu."), "{message}");
    assert_eq!(second.metric(LEADS).await, 1.0);
    live.delete("fills").await;
    live.bound("finds-it-full").await;
    live.delete("finds-it-full").await;
    second.stop().await;
}

async fn a_leader_that_lost_its_lease_ends(live: &Live) {
    let scheduler = Scheduler::elected(&live.cluster, seconds(3.0, 2.0, 0.5)).await;
    scheduler.ready_as("leaderElection ok: leader").await;
    let leases: Api<Lease> = Api::namespaced(live.client.clone(), "podway-system");
    let stolen = json!({"spec": {"holderIdentity": "another", "leaseDurationSeconds": 3600}});
    leases.patch("podway-scheduler", &PatchParams::default(), &Patch::Merge(stolen)).await.unwrap();
    let ended = tokio::time::timeout(LIMIT, scheduler.task).await.expect("it ends").unwrap();
    assert!(matches!(ended, Err(RunError::LeaseLost)), "{ended:?}");
    leases.delete("podway-scheduler", &DeleteParams::default()).await.unwrap();
}

/// The status that a profile comes to have once `wanted` holds of it.
async fn verdict(
    live: &Live,
    name: &str,
    wanted: impl Fn(&SchedulerProfileStatus) -> bool,
) -> SchedulerProfileStatus {
    let api: Api<SchedulerProfile> = Api::all(live.client.clone());
    let is = |p: &SchedulerProfile| p.status.as_ref().is_some_and(&wanted);
    live.until(api, format!("metadata.name={name}"), "the profile's status", is).await.status.unwrap()
}

async fn a_profile_is_live_and_a_bad_one_is_not(live: &Live) {
    let api: Api<SchedulerProfile> = Api::all(live.client.clone());
    let profile = |name: &str, spec: serde_json::Value| -> SchedulerProfile {
        let object = json!({"apiVersion": "podway.dev/v1alpha1", "kind": "SchedulerProfile",
            "metadata": {"name": name}, "spec": spec});
        serde_json::from_value(object).unwrap()
    };
    // Admission: the schema and its rules.
    let params = PostParams::default();
    let score = |enabled: serde_json::Value| json!({"plugins": {"score": {"enabled": enabled}}});
    for (spec, part) in [
        (score(json!([{"name": "ImageLocalty"}])), "each name must be that of a plugin"),
        (score(json!([{"name": "ImageLocality", "weight": -1}])), "greater than or equal to 0"),
        (json!({"percentageOfNodesToScore": 101}), "less than or equal to 100"),
        (json!({"pluginConfig": [{"name": "NodeName", "args": {}}]}), "a plugin that takes arguments"),
    ] {
        let error = api.create(&params, &profile("bad", spec)).await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    // A name that nobody owned: its pod waits until the profile comes.
    live.pod("of-another", "10m", json!({"spec": {"schedulerName": "packed"}})).await;
    api.create(&params, &profile("packed", score(json!([{"name": "ImageLocality", "weight": 9}]))))
        .await
        .unwrap();
    let pod = live.bound("of-another").await;
    let status = verdict(live, "packed", |s| s.live_generation == Some(1)).await;
    let condition = &status.conditions[0];
    assert_eq!(
        (condition.type_.as_str(), condition.status.as_str(), condition.reason.as_str()),
        ("Accepted", "True", "Live")
    );
    assert_eq!(live.event(&pod, "Scheduled").await.reporting_controller.as_deref(), Some("packed"));
    // What only the scheduler can find leaves the last good one live.
    let bad = json!({"spec": {"pluginConfig": [{"name": "InterPodAffinity", "args": {"hardPodAffinityWeight": 101}}]}});
    api.patch("packed", &PatchParams::default(), &Patch::Merge(bad)).await.unwrap();
    let status = verdict(live, "packed", |s| s.observed_generation == Some(2)).await;
    assert_eq!((status.live_generation, status.conditions[0].status.as_str()), (Some(1), "False"));
    let message = &status.conditions[0].message;
    assert!(message.contains("hardPodAffinityWeight not in valid range [0, 100]"), "{message}");
    live.pod("under-the-last", "10m", json!({"spec": {"schedulerName": "packed"}})).await;
    live.bound("under-the-last").await;
    api.delete("packed", &DeleteParams::default()).await.unwrap();
    live.delete("of-another").await;
    live.delete("under-the-last").await;
}

async fn questions_have_the_schedulers_answers(live: &Live) {
    live.pod("asked", "64", json!({})).await;
    let (_, told, _) = live.refused("asked").await;
    let mut world = World::read(&live.client).await.unwrap();
    assert!(world.left_out.is_empty(), "{:?}", world.left_out);
    let pod = world.waiting("default/asked").unwrap().clone();
    let (framework, snapshot) = (world.framework("podway"), world.snapshot());
    let Err(CycleError::Unfit(error)) = decide(&framework, &snapshot, &pod) else { panic!("it fits") };
    assert_eq!(error.message(), told);
    let found = remedies(&framework, &snapshot, &pod, &error, 3);
    assert_eq!(found[0].changes[0].to_string(), "add a node like n1 with at least 64 of cpu: it has 4");
    live.delete("asked").await;
    // The same pod on the same cluster has the same node, here and there.
    let bound = {
        live.pod("twice", "10m", json!({})).await;
        live.bound("twice").await
    };
    let mut world = World::read(&live.client).await.unwrap();
    let there = world.placed("default/twice").unwrap().clone();
    world.remove(&there);
    let again = world.place(Arc::new(PodInfo { node_name: String::new(), ..(*there).clone() }));
    assert_eq!(again.result.unwrap().node, node_of(&bound));
    live.delete("twice").await;
}

async fn a_shadow_agrees_with_itself_and_tells_what_differs(live: &Live) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("debug.sock");
    let config = Config { shadow: true, debug_socket: Some(socket.clone()), ..Config::default() };
    let shadow = Scheduler::with(&live.cluster, config, |clients| clients).await;
    shadow.ready_as("pods-synced ok").await;
    let count = |result: &str| format!("podway_scheduler_shadow_decisions_total{{result=\"{result}\"}} ");
    for i in 0..3 {
        let name = format!("shadowed-{i}");
        live.pod(&name, "10m", json!({})).await;
        live.bound(&name).await;
    }
    shadow.metric_is(&count("same"), 3.0).await;
    // One that ours would not put there.
    live.cordon("n2", true).await;
    live.pod("on-a-cordoned-node", "10m", json!({"spec": {"nodeName": "n2"}})).await;
    shadow.metric_is(&count("refused"), 1.0).await;
    let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    stream.write_all(b"GET /debug/shadow HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    let all: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(
        (all[0]["pod"].as_str(), all[0]["node"].as_str()),
        (Some("default/on-a-cordoned-node"), Some("n2"))
    );
    assert_eq!(all[0]["theirs"]["plugin"], "NodeUnschedulable");
    live.cordon("n2", false).await;
    for name in ["shadowed-0", "shadowed-1", "shadowed-2", "on-a-cordoned-node"] {
        live.delete(name).await;
    }
    shadow.stop().await;
}

/// What is done to a request instead of only answering it.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The API server says this and does nothing.
    Says(u16),
    /// It does it, and the answer is lost.
    AnswerLost,
    /// It is not reached.
    Unreachable,
}

/// Faults to come, in order, for requests that a text is part of.
struct Faults(Vec<(&'static str, Mutex<VecDeque<Fault>>)>);

impl Faults {
    fn next(&self, request: &Request<Body>) -> Option<Fault> {
        let target = format!("{} {}", request.method(), request.uri());
        let (_, faults) = self.0.iter().find(|(part, _)| target.contains(part))?;
        faults.lock().unwrap().pop_front()
    }

    fn left(&self) -> usize {
        self.0.iter().map(|(_, faults)| faults.lock().unwrap().len()).sum()
    }

    /// A client whose requests meet them.
    fn before(self: &Arc<Self>, client: Client) -> Client {
        let faults = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (client, fault) = (client.clone(), faults.next(&request));
            async move {
                let lost = || Err(std::io::Error::other("the connection broke off").into());
                match fault {
                    None => Ok(client.send(request).await?),
                    Some(Fault::Unreachable) => lost(),
                    Some(Fault::AnswerLost) => {
                        client.send(request).await?;
                        lost()
                    }
                    Some(Fault::Says(code)) => {
                        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                            "code": code, "reason": "Fault", "message": "a fault"});
                        let body = Body::from(serde_json::to_vec(&status).unwrap());
                        Ok::<_, tower::BoxError>(Response::builder().status(code).body(body).unwrap())
                    }
                }
            }
        });
        Client::new(service, "default")
    }
}

async fn faults_are_survived_without_overcommit(live: &Live) {
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    live.pods().delete_collection(&now, &ListParams::default()).await.unwrap();
    let binds = [
        Fault::Says(429),
        Fault::AnswerLost,
        Fault::Says(409),
        Fault::Unreachable,
        Fault::AnswerLost,
        Fault::Says(500),
    ];
    // The first watch of each kind follows its list; what is lost then is found by another list.
    let watches = [Fault::Says(410), Fault::Unreachable, Fault::Says(429)];
    let faults = Arc::new(Faults(vec![
        ("/binding", Mutex::new(binds.into())),
        ("/api/v1/pods?&watch=true", Mutex::new(watches.into())),
        ("/api/v1/nodes?&watch=true", Mutex::new(watches.into())),
        ("/status", Mutex::new([Fault::Says(429), Fault::Unreachable].into())),
    ]));
    let scheduler = Scheduler::start_with(&live.cluster, |clients| Clients {
        watch: faults.before(clients.watch),
        bind: faults.before(clients.bind),
        status: faults.before(clients.status),
        lease: clients.lease,
    })
    .await;
    // Room for five of twelve: four on n1, one on n2.
    for i in 0..12 {
        live.pod(&format!("fault-{i}"), "1", json!({})).await;
    }
    let settled = async {
        let mut stream = std::pin::pin!(watcher(live.pods(), watcher::Config::default()).applied_objects());
        let mut seen = BTreeMap::new();
        while let Some(Ok(pod)) = stream.next().await {
            let refused = scheduled(&pod).is_some_and(|c| c.reason.as_deref() == Some("Unschedulable"));
            let state = if node_of(&pod).is_empty() { refused.then_some(false) } else { Some(true) };
            seen.insert(pod.name_any(), state);
            let count = |wanted| seen.values().filter(|s| **s == Some(wanted)).count();
            if (count(true), count(false)) == (5, 7) {
                return;
            }
        }
    };
    if tokio::time::timeout(Duration::from_secs(60), settled).await.is_err() {
        panic!("five of twelve are not bound; {} faults are left", faults.left());
    }
    let mut on: BTreeMap<String, usize> = BTreeMap::new();
    for pod in live.pods().list(&ListParams::default()).await.unwrap().items {
        *on.entry(node_of(&pod).to_owned()).or_default() += 1;
    }
    assert_eq!(on, BTreeMap::from([(String::new(), 7), ("n1".into(), 4), ("n2".into(), 1)]));
    assert_eq!(faults.left(), 0, "every fault was met");
    scheduler.stop().await;
}
