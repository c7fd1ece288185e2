use super::*;
use crate::pod::model::tests::pod;
use serde_json::{Value, json};

const S: i64 = 1_000_000;

fn at(seconds: i64) -> Micros {
    Micros(1_000 * S + seconds * S)
}

fn container(probes: Value) -> Container {
    let mut container = json!({"name": "c", "image": "i:1"});
    container.as_object_mut().unwrap().extend(probes.as_object().unwrap().clone());
    pod(json!({"containers": [container]})).apps.remove(0)
}

fn instance(id: &str) -> Instance {
    Instance {
        id: id.into(),
        sandbox: "s".into(),
        name: "c".into(),
        restarts: 0,
        hash: 0,
        created: at(0),
        started: at(0),
        state: State::Running,
        image_id: String::new(),
        waited: None,
    }
}

fn bad() -> Answer {
    Answer::Bad("no".into())
}

struct Run {
    container: Container,
    probes: Probes,
    instance: Instance,
}

impl Run {
    fn new(probes: Value) -> Run {
        let mut run =
            Run { container: container(probes), probes: Probes::default(), instance: instance("a") };
        run.probes.follow(&run.container, &run.instance);
        run
    }
    fn due(&mut self, now: Micros) -> (Vec<Kind>, Option<Micros>) {
        self.probes.due(&self.container, &self.instance, false, now)
    }
    fn take(&mut self, kind: Kind, answer: &Answer, now: Micros) -> News {
        self.probes.take(&self.container, "a", kind, answer, now).unwrap()
    }
    fn state(&self) -> (bool, bool) {
        (self.probes.started(&self.container, "a"), self.probes.ready(&self.container, "a"))
    }
}

#[test]
fn without_probes_what_runs_is_ready() {
    let mut run = Run::new(json!({}));
    assert_eq!(run.state(), (true, true));
    assert_eq!(run.due(at(100)), (vec![], None));
}

#[test]
fn readiness_comes_after_its_thresholds_and_goes_after_its() {
    let mut run = Run::new(json!({"readinessProbe": {"exec": {"command": ["x"]}, "initialDelaySeconds": 2,
        "periodSeconds": 3, "successThreshold": 2, "failureThreshold": 2}}));
    assert_eq!(run.due(at(0)), (vec![], Some(at(2))));
    // One answer per line: when, the answer, whether it is ready then, whether people are told.
    for (n, (answer, ready, tell)) in [
        (bad(), false, true),
        (bad(), false, true),
        (bad(), false, false),
        (Answer::Good, false, false),
        (Answer::Good, true, false),
        (bad(), true, true),
        (Answer::Error("e".into()), true, true),
        (Answer::Good, true, false),
        (bad(), true, true),
        (bad(), false, true),
    ]
    .into_iter()
    .enumerate()
    {
        let now = at(2 + 3 * i64::try_from(n).unwrap());
        assert_eq!(run.due(now), (vec![Kind::Readiness], None), "{n}");
        assert_eq!(run.due(now), (vec![], None), "it is being asked");
        let before = run.state().1;
        let news = run.take(Kind::Readiness, &answer, now);
        assert_eq!((run.state(), news.tell, news.kill), ((true, ready), tell, false), "{n}");
        // The first bad result is no news: it began as bad.
        assert_eq!(news.turned, before != ready, "{n}");
        assert_eq!(run.due(now), (vec![], Some(add(now, Duration::from_secs(3)))), "{n}");
    }
}

#[test]
fn startup_holds_the_others_back_and_is_over_once_it_has_succeeded() {
    let exec = json!({"command": ["x"]});
    let mut run = Run::new(json!({"startupProbe": {"exec": exec, "periodSeconds": 1},
        "readinessProbe": {"exec": exec, "initialDelaySeconds": 1}, "livenessProbe": {"exec": exec}}));
    assert_eq!(run.due(at(0)), (vec![Kind::Startup], None));
    assert!(run.probes.may_turn());
    run.take(Kind::Startup, &bad(), at(0));
    assert_eq!(run.due(at(0)), (vec![], Some(at(1))));
    assert_eq!(run.due(at(30)), (vec![Kind::Startup], None));
    assert!(run.take(Kind::Startup, &Answer::Good, at(30)).turned);
    assert_eq!(run.state(), (true, false));
    assert_eq!(run.due(at(30)), (vec![Kind::Readiness, Kind::Liveness], None));
    run.take(Kind::Readiness, &Answer::Good, at(30));
    run.take(Kind::Liveness, &Answer::Good, at(30));
    assert_eq!(run.state(), (true, true));
    assert_eq!(run.due(at(30)), (vec![], Some(at(40))), "a probe held back does not catch up");
}

#[test]
fn a_failed_liveness_or_startup_kills_once_and_rests_until_there_is_another_instance() {
    for (field, kind) in [("livenessProbe", Kind::Liveness), ("startupProbe", Kind::Startup)] {
        let mut run =
            Run::new(json!({field: {"exec": {"command": ["x"]}, "periodSeconds": 1, "failureThreshold": 2}}));
        for (n, kill) in [(0, false), (1, true)] {
            assert_eq!(run.due(at(n)).0, [kind]);
            assert_eq!(run.take(kind, &bad(), at(n)).kill, kill);
        }
        assert_eq!(run.due(at(100)), (vec![], None));
        assert!(run.probes.take(&run.container, "b", kind, &bad(), at(3)).is_none(), "another's answer");
        run.instance = Instance { started: at(200), ..instance("b") };
        run.probes.follow(&run.container, &run.instance);
        assert_eq!(run.due(at(200)), (vec![kind], None));
    }
}

#[test]
fn a_pod_that_goes_is_asked_only_whether_it_is_ready() {
    let exec = json!({"command": ["x"]});
    let mut run = Run::new(json!({"readinessProbe": {"exec": exec}, "livenessProbe": {"exec": exec}}));
    assert_eq!(run.probes.due(&run.container, &run.instance, true, at(0)).0, [Kind::Readiness]);
}

#[test]
fn what_another_agent_found_holds() {
    let exec = json!({"command": ["x"]});
    let container = container(json!({"startupProbe": {"exec": exec}, "readinessProbe": {"exec": exec}}));
    let mut probes = Probes::recalling([("a".to_owned(), true, true)]);
    probes.follow(&container, &instance("a"));
    assert!(probes.ready(&container, "a"));
    assert_eq!(probes.due(&container, &instance("a"), false, at(0)).0, [Kind::Readiness]);
    probes.follow(&container, &instance("b"));
    assert!(!probes.started(&container, "b"));
}

#[test]
fn an_answer_that_took_longer_than_a_period_is_followed_by_the_next_question() {
    let mut run = Run::new(json!({"livenessProbe": {"exec": {"command": ["x"]}, "periodSeconds": 1}}));
    run.due(at(0));
    run.take(Kind::Liveness, &Answer::Good, at(5));
    assert_eq!(run.due(at(5)).0, [Kind::Liveness]);
}
