//! Flows for the tests of the renderers.

use crate::{Flow, Micros, Outcome, Phase, PodRef, Record, Resolution, Writer};

const T0: i64 = 1_795_498_272_104_123;

fn record(writer: Writer, phase: Phase, start: i64, end: i64, facts: &[(&str, &str)]) -> Record {
    Record {
        phase,
        subject: None,
        writer,
        attempt: 1,
        start: Micros(T0 + start),
        end: Some(Micros(T0 + end)),
        queued_micros: 0,
        outcome: Outcome::Succeeded,
        reason: "Done".to_owned(),
        message: String::new(),
        resolution: Resolution::Micros,
        evidence: facts.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    }
}

fn of(subject: &str, mut record: Record) -> Record {
    record.subject = Some(subject.to_owned());
    record
}

fn pod() -> PodRef {
    PodRef { namespace: "default".into(), name: "web-0".into(), uid: "u-1".into(), node: "podway-0".into() }
}

/// A pod of two containers that went well.
pub(crate) fn whole() -> Flow {
    use Writer::{Agent, ApiServer, Runtime, Scheduler};
    let digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let mut records = vec![
        record(
            ApiServer,
            Phase::Requested,
            0,
            900,
            &[("user", "kubernetes-admin"), ("verb", "create"), ("decision", "allow")],
        ),
        record(ApiServer, Phase::Persisted, 900, 2_100, &[("resourceVersion", "412"), ("code", "201")]),
        record(Scheduler, Phase::Queued, 2_300, 2_900, &[("queue", "active")]),
        record(Scheduler, Phase::NodesFiltered, 2_900, 3_050, &[("feasible", "2/2")]),
        record(Scheduler, Phase::NodesScored, 3_050, 3_200, &[("winner", "podway-0"), ("margin", "12")]),
        record(Scheduler, Phase::Bound, 3_200, 5_400, &[("resourceVersion", "413")]),
        record(Agent, Phase::Observed, 5_000, 5_450, &[]),
        record(Agent, Phase::Admitted, 5_450, 5_500, &[]),
        of("token", record(Agent, Phase::VolumesMounted, 5_500, 7_700, &[("kind", "projected")])),
        record(
            Runtime,
            Phase::SandboxCreated,
            7_800,
            10_900,
            &[("sandboxId", "3f2a9c"), ("netns", "4026532301")],
        ),
        record(Runtime, Phase::NetworkConfigured, 10_900, 21_300, &[("ip", "10.88.0.7")]),
        of(
            "docker.io/library/busybox:latest",
            record(Agent, Phase::ImagesPulled, 7_800, 8_000, &[("digest", digest)]),
        ),
        of("web", record(Runtime, Phase::RootfsPrepared, 21_400, 22_000, &[])),
        of("log", record(Runtime, Phase::RootfsPrepared, 22_100, 22_600, &[])),
        of("web", record(Runtime, Phase::SpecGenerated, 22_000, 22_080, &[("sha256", &digest[7..])])),
        of(
            "web",
            record(
                Runtime,
                Phase::ContainersCreated,
                22_700,
                40_000,
                &[
                    (
                        "argv",
                        "/usr/sbin/runc --root /run/podway/runc create --bundle /run/podway/containers/web --pid-file pid web",
                    ),
                    ("pid", "4242"),
                ],
            ),
        ),
        of("log", record(Runtime, Phase::ContainersCreated, 40_000, 48_800, &[("pid", "4243")])),
        of("web", record(Runtime, Phase::ContainersStarted, 48_800, 52_000, &[])),
        record(Agent, Phase::StatusReported, 52_000, 55_000, &[("resourceVersion", "418")]),
        record(Agent, Phase::Ready, 55_000, 84_213, &[]),
    ];
    records[12].queued_micros = 300;
    records[11].outcome = Outcome::Skipped;
    records[11].reason = "Present".to_owned();
    Flow { pod: pod(), records }
}

/// A pod whose image came at the second attempt and whose network is being configured.
pub(crate) fn stuck() -> Flow {
    let mut failed = of("app", record(Writer::Runtime, Phase::ImagesPulled, 5_000, 25_000, &[]));
    (failed.outcome, failed.reason) = (Outcome::Failed, "ErrImagePull".to_owned());
    failed.message = "pull registry.example/app:v1: connection refused; next try in 10 s".to_owned();
    let mut second = of("app", record(Writer::Runtime, Phase::ImagesPulled, 60_000, 90_000, &[]));
    second.attempt = 2;
    let mut running = record(Writer::Runtime, Phase::NetworkConfigured, 80_000, 0, &[]);
    (running.end, running.outcome, running.reason) = (None, Outcome::Running, "Running".to_owned());
    Flow { pod: pod(), records: vec![failed, second, running] }
}

/// A pod of a stock node: times of a second.
pub(crate) fn coarse() -> Flow {
    let records = [
        (Phase::Persisted, 0, 0),
        (Phase::Bound, 0, 1),
        (Phase::ContainersStarted, 1, 2),
        (Phase::Ready, 2, 3),
    ]
    .into_iter()
    .map(|(phase, start, end)| {
        let mut record = record(Writer::Agent, phase, start * 1_000_000, end * 1_000_000, &[]);
        record.resolution = Resolution::Second;
        record
    });
    Flow { pod: pod(), records: records.collect() }
}

/// Text that tries to leave its place, in each field that comes from outside.
pub(crate) fn hostile() -> Flow {
    let evil = "\u{1b}[2J\u{202e}<script>alert(1)</script>\r\n\u{7}&\"' 名前";
    let mut first = of(evil, record(Writer::Runtime, Phase::ImagesPulled, 0, 10, &[(evil, evil)]));
    first.reason = evil.to_owned();
    first.message = evil.repeat(9);
    first.outcome = Outcome::Failed;
    let mut second = first.clone();
    second.queued_micros = u64::MAX;
    second.start = Micros(i64::MIN);
    second.end = Some(Micros(i64::MAX));
    second.attempt = u32::MAX;
    let evil = evil.to_owned();
    Flow {
        pod: PodRef { namespace: evil.clone(), name: evil.repeat(20), uid: evil.clone(), node: evil },
        records: vec![first, second],
    }
}
