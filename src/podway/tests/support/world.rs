//! Pods for the pages: some that went well, at several speeds; one that is stuck; one that no part of ours
//! ran; one whose every text tries to leave its place.

use super::api::FakeApi;
use k8s_openapi::api::core::v1::{Container, Event, Pod};
use podway_api::PodFlow;
use podway_flow::pulls::{Layer, LayerState, Pull, State};
use podway_flow::{Flow, Micros, Outcome, Phase, PodRef, Record, Resolution, Writer};
use serde_json::{Value, json};

/// What tries to leave its place.
pub const EVIL: &str =
    "\u{1b}[2J\u{202e}</style></title><script>window.pwned=1</script><img src=x onerror=window.pwned=2>\"'&";

/// The image of [`pulling`].
const IMAGE: &str = "registry.local/web:v9";

pub fn now() -> Micros {
    podway_flow::Clock::new().now()
}

pub fn pod(namespace: &str, name: &str, labels: &Value, status: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"namespace": namespace, "name": name, "uid": format!("uid-{namespace}-{name}"),
            "labels": labels, "creationTimestamp": "2026-11-24T05:31:12Z", "resourceVersion": "7"},
        "spec": {"nodeName": "podway-0", "containers": []}, "status": status}))
    .unwrap()
}

fn reference(pod: &Pod, node: &str) -> PodRef {
    PodRef { node: node.to_owned(), ..podway_api::stock::reference(pod) }
}

/// A record from `start` to `end` (µs after `t0`).
pub fn record(
    t0: Micros,
    writer: Writer,
    phase: Phase,
    start: i64,
    end: Option<i64>,
    facts: &[(&str, &str)],
) -> Record {
    Record {
        phase,
        subject: None,
        writer,
        attempt: 1,
        start: Micros(t0.0 + start),
        end: end.map(|end| Micros(t0.0 + end)),
        queued_micros: 0,
        outcome: if end.is_some() { Outcome::Succeeded } else { Outcome::Running },
        reason: if end.is_some() { "Done" } else { "Running" }.to_owned(),
        message: String::new(),
        resolution: Resolution::Micros,
        evidence: facts.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    }
}

/// The records of a start; `slow` per cent longer than usual, with an image pull of `pull` µs.
pub fn start(t0: Micros, slow: i64, pull: i64) -> Vec<Record> {
    use Writer::{Agent, ApiServer, Runtime, Scheduler};
    let at = |t: i64| t * (100 + slow) / 100;
    let r = |writer, phase, start, end, facts: &[(&str, &str)]| {
        record(t0, writer, phase, at(start), Some(at(end)), facts)
    };
    let pulled = 10_900 + pull;
    let go = pulled.max(21_400);
    let after = |writer, phase, start: i64, end: i64, facts: &[(&str, &str)]| {
        r(writer, phase, go + start, go + end, facts)
    };
    let mut records = vec![
        r(
            ApiServer,
            Phase::Requested,
            0,
            900,
            &[("user", "kubernetes-admin"), ("verb", "create"), ("decision", "allow")],
        ),
        r(ApiServer, Phase::Persisted, 900, 2_100, &[("resourceVersion", "412")]),
        r(Scheduler, Phase::Queued, 2_300, 2_900, &[("priority", "0")]),
        r(
            Scheduler,
            Phase::NodesFiltered,
            2_900,
            3_050,
            &[
                ("nodes", "4"),
                ("feasible", "3"),
                ("node/edge-7", "TaintToleration: node(s) had untolerated taint {edge: true}"),
            ],
        ),
        r(
            Scheduler,
            Phase::NodesScored,
            3_050,
            3_200,
            &[
                ("chosen", "podway-0"),
                ("margin", "27"),
                (
                    "score/podway-0",
                    "318 (NodeResourcesFit=91x1 ImageLocality=100x1 NodeResourcesBalancedAllocation=27x1 PodTopologySpread=50x2)",
                ),
                (
                    "score/podway-1",
                    "291 (NodeResourcesFit=88x1 ImageLocality=76x1 NodeResourcesBalancedAllocation=27x1 PodTopologySpread=50x2)",
                ),
                (
                    "score/podway-2",
                    "204 (NodeResourcesFit=77x1 ImageLocality=0x1 NodeResourcesBalancedAllocation=27x1 PodTopologySpread=50x2)",
                ),
            ],
        ),
        r(Scheduler, Phase::Bound, 3_200, 5_400, &[("node", "podway-0")]),
        r(Agent, Phase::Observed, 5_000, 5_450, &[]),
        r(Agent, Phase::Admitted, 5_450, 5_500, &[]),
        r(Agent, Phase::VolumesMounted, 5_500, 7_700, &[("kind", "projected")]),
        r(
            Runtime,
            Phase::SandboxCreated,
            7_800,
            10_900,
            &[("sandboxId", "3f2a9c51d0"), ("netns", "4026532301")],
        ),
        r(Runtime, Phase::NetworkConfigured, 10_900, 21_300, &[("ips", "10.88.0.7")]),
        r(
            Runtime,
            Phase::ImagesPulled,
            7_800,
            pulled,
            &[
                ("image", "registry.local/web:v3"),
                ("digest", "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"),
            ],
        ),
        after(Runtime, Phase::RootfsPrepared, 0, 600, &[("layers", "3")]),
        after(Runtime, Phase::SpecGenerated, 600, 680, &[]),
        after(
            Runtime,
            Phase::ContainersCreated,
            700,
            26_800,
            &[
                (
                    "argv",
                    "/usr/sbin/runc --root /run/podway/runc create --bundle /run/podway/containers/web web",
                ),
                ("pid", "4242"),
            ],
        ),
        after(Runtime, Phase::ContainersStarted, 26_800, 30_000, &[("pid", "4242")]),
        after(Agent, Phase::StatusReported, 30_000, 33_000, &[("resourceVersion", "418")]),
        after(Agent, Phase::Ready, 33_000, 36_000, &[]),
    ];
    records[12].queued_micros = 300;
    records
}

/// Puts a Ready pod and its flow there.
pub fn ready(api: &FakeApi, namespace: &str, name: &str, app: &str, slow: i64, pull: i64) {
    let status = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
    let pod = pod(namespace, name, &json!({"app": app}), &status);
    let t0 = Micros(now().0 - 600_000_000);
    let flow = Flow { pod: reference(&pod, "podway-0"), records: start(t0, slow, pull) };
    api.pod(&pod);
    api.flow(&PodFlow::from_flow(&flow));
}

/// Puts a whole cluster there: 24 that are Ready, one stuck at its image, one of a stock node, one hostile.
pub fn fill(api: &FakeApi) {
    for i in 0..24_i64 {
        let (app, pull) = if i % 3 == 0 { ("api", 48_000 + 900 * i) } else { ("web", 200) };
        ready(api, "default", &format!("{app}-{i}"), app, (i * 7) % 40, pull);
    }
    stuck(api);
    stock(api);
    hostile(api);
}

/// Puts a pod there that waits for its image, and has its node tell how far it is.
pub fn pulling(api: &FakeApi, name: &str, received_bytes: u64) {
    let mut pod = pod("default", name, &json!({"app": "web"}), &json!({"phase": "Pending"}));
    pod.spec.as_mut().unwrap().containers =
        vec![Container { name: "app".to_owned(), image: Some(IMAGE.to_owned()), ..Container::default() }];
    let t0 = Micros(now().0 - 800_000);
    let mut records = start(t0, 0, 200);
    records.retain(|r| r.phase < Phase::ImagesPulled);
    records.push(record(t0, Writer::Runtime, Phase::ImagesPulled, 7_800, None, &[("image", IMAGE)]));
    api.pod(&pod);
    api.flow(&PodFlow::from_flow(&Flow { pod: reference(&pod, "podway-0"), records }));
    let layer = |n: u8, received_bytes, phase| Layer {
        digest: format!("sha256:{}", format!("{n:02x}").repeat(32)),
        size_bytes: 40 << 20,
        received_bytes,
        phase,
    };
    let of = |image: &str| Pull {
        image: image.to_owned(),
        phase: State::Fetching,
        total_bytes: 40 << 20,
        received_bytes,
        bytes_per_second: 5 << 20,
        eta_milliseconds: Some(6_000),
        layers: vec![
            layer(0xa1, received_bytes, LayerState::Downloading),
            layer(0xb2, 0, LayerState::AlreadyThere),
        ],
        ..Pull::default()
    };
    api.pulls(vec![of(IMAGE), of("registry.local/of-another:v1")]);
}

fn stuck(api: &FakeApi) {
    let pod = pod("default", "web-stuck", &json!({"app": "web"}), &json!({"phase": "Pending"}));
    let t0 = Micros(now().0 - 95_000_000);
    let mut records = start(t0, 0, 200);
    records.retain(|r| r.phase < Phase::ImagesPulled);
    for (attempt, start, end) in
        [(1, 7_800, 1_207_800), (2, 11_200_000, 12_000_000), (3, 32_000_000, 33_000_000)]
    {
        let mut failed = record(
            t0,
            Writer::Runtime,
            Phase::ImagesPulled,
            start,
            Some(end),
            &[("image", "registry.local/web:v9")],
        );
        failed.subject = Some("app".to_owned());
        (failed.outcome, failed.attempt, failed.reason) =
            (Outcome::Failed, attempt, "ErrImagePull".to_owned());
        failed.message = "pull registry.local/web:v9: 404 manifest unknown; next try in 40 s".to_owned();
        records.push(failed);
    }
    api.pod(&pod);
    api.flow(&PodFlow::from_flow(&Flow { pod: reference(&pod, "podway-1"), records }));
}

fn stock(api: &FakeApi) {
    let status = json!({"phase": "Running", "startTime": "2026-11-24T05:31:12Z", "podIP": "10.0.0.7",
        "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-24T05:31:12Z"},
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-24T05:31:16Z"}],
        "containerStatuses": [{"name": "c", "image": "i", "imageID": "i", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-11-24T05:31:15Z"}}}]});
    let stock = pod("default", "kubelet-0", &json!({"app": "stock"}), &status);
    for (reason, at) in
        [("Pulling", "2026-11-24T05:31:13.000100Z"), ("Pulled", "2026-11-24T05:31:14.250100Z")]
    {
        let event: Event = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": reason.to_lowercase(), "uid": reason}, "reason": reason, "eventTime": at,
            "involvedObject": {"kind": "Pod", "uid": stock.metadata.uid, "fieldPath": "spec.containers{c}"}}))
        .unwrap();
        api.event(&event);
    }
    api.pod(&stock);
}

fn hostile(api: &FakeApi) {
    let pod = pod("default", &format!("evil{EVIL}"), &json!({"app": "evil"}), &json!({"phase": "Pending"}));
    let t0 = Micros(now().0 - 3_000_000);
    let mut failed = record(t0, Writer::Runtime, Phase::SandboxCreated, 0, Some(20_000), &[(EVIL, EVIL)]);
    (failed.subject, failed.reason, failed.message) = (Some(EVIL.into()), EVIL.into(), EVIL.repeat(3));
    failed.outcome = Outcome::Failed;
    let scored = record(
        t0,
        Writer::Scheduler,
        Phase::NodesScored,
        0,
        Some(1),
        &[(&format!("score/{EVIL}"), EVIL), ("chosen", EVIL)],
    );
    api.pod(&pod);
    api.flow(&PodFlow::from_flow(&Flow { pod: reference(&pod, EVIL), records: vec![scored, failed] }));
}
