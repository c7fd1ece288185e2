use super::*;
use serde_json::json;

fn query(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|p| !p.is_empty())
        .map(|p| p.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap())
        .collect()
}

#[test]
fn queries_are_checked_as_the_kubelet_does() {
    let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
    let parse = |text: &str| Options::parse(&query(text), now);
    let options =
        parse("follow=true&previous=1&tailLines=3&sinceSeconds=60&timestamps=true&limitBytes=9").unwrap();
    assert!(options.follow && options.previous && options.filter.timestamps);
    assert_eq!((options.tail, options.filter.limit), (Some(3), Some(9)));
    assert_eq!(options.filter.since, Some("2026-01-01T00:00:00Z".parse().unwrap()));
    assert!(!parse("follow=false&tail=all").unwrap().follow);
    assert_eq!(parse("tail=4").unwrap().tail, Some(4));
    for (text, code) in [
        ("tailLines=x", 400),
        ("sinceTime=yesterday", 400),
        ("tailLines=-1", 422),
        ("limitBytes=0", 422),
        ("sinceSeconds=0", 422),
        ("sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z", 422),
        ("stream=Both", 422),
        ("stream=Stdout&tailLines=1", 422),
    ] {
        assert_eq!(parse(text).unwrap_err().0.as_u16(), code, "{text}");
    }
}

#[test]
fn which_container_has_the_log() {
    let choose = |state: serde_json::Value, last: serde_json::Value, previous: bool| {
        let status: PodStatus = serde_json::from_value(json!({"containerStatuses": [{
            "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "containerID": "podway://now", "state": state, "lastState": last,
        }]}))
        .unwrap();
        super::choose("p", &status, "c", previous)
    };
    let none = || json!({});
    let old = || json!({"terminated": {"exitCode": 1, "containerID": "podway://old"}});
    let ok = |id: &str| Ok(id.to_owned());
    assert_eq!(choose(json!({"running": {}}), old(), false), ok("now"));
    assert_eq!(choose(json!({"running": {}}), old(), true), ok("old"));
    assert_eq!(
        choose(json!({"terminated": {"exitCode": 0, "containerID": "podway://t"}}), none(), false),
        ok("t")
    );
    assert_eq!(choose(json!({"terminated": {"exitCode": 0}}), old(), false), ok("old"));
    assert_eq!(choose(json!({"waiting": {"reason": "CrashLoopBackOff"}}), old(), false), ok("old"));
    let says = |result: Result<String, String>| result.unwrap_err();
    assert_eq!(
        says(choose(json!({"running": {}}), none(), true)),
        "previous terminated container \"c\" in pod \"p\" not found"
    );
    assert_eq!(
        says(choose(json!({"waiting": {"reason": "ContainerCreating"}}), none(), false)),
        "container \"c\" in pod \"p\" is waiting to start: ContainerCreating"
    );
    assert_eq!(
        says(choose(json!({"waiting": {"reason": "ImagePullBackOff"}}), none(), false)),
        "container \"c\" in pod \"p\" is waiting to start: trying and failing to pull image"
    );
    assert_eq!(
        says(choose(none(), none(), false)),
        "container \"c\" in pod \"p\" is waiting to start - no logs yet"
    );
    assert_eq!(
        super::choose("p", &PodStatus::default(), "x", false).unwrap_err(),
        "container \"x\" in pod \"p\" is not available"
    );
}
