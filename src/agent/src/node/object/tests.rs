use super::*;
use crate::node::allocatable::Reserved;
use crate::node::machine::Fs;
use crate::node::runtime::Observation;
use podway_cri::v1;

fn machine() -> Machine {
    Machine { cpus: 2, memory: 4 << 30, huge_pages: [(2 << 20, 1)].into(), ..Machine::default() }
}

fn sample() -> Sample {
    Sample { nodefs: Fs { capacity: 100 << 30, ..Fs::default() }, ..Sample::default() }
}

fn ready() -> Known {
    let condition =
        |kind: &str| v1::RuntimeCondition { r#type: kind.to_owned(), status: true, ..Default::default() };
    let mut known = Known::default();
    known.take(
        Ok(Observation {
            version: "podway://0.1.0".to_owned(),
            conditions: vec![condition("RuntimeReady"), condition("NetworkReady")],
            images: vec![v1::Image {
                id: "a".to_owned(),
                size: 7,
                repo_tags: vec!["x:1".to_owned()],
                ..Default::default()
            }],
            ..Observation::default()
        }),
        Instant::now(),
    );
    known
}

fn with<T>(runtime: &Known, at: i64, pressures: Pressures, then: impl FnOnce(&Facts<'_>) -> T) -> T {
    kept(&Reservation::default(), runtime, at, pressures, then)
}

fn kept<T>(
    reservation: &Reservation,
    runtime: &Known,
    at: i64,
    pressures: Pressures,
    then: impl FnOnce(&Facts<'_>) -> T,
) -> T {
    let address = [NodeAddress { type_: "InternalIP".to_owned(), address: "10.0.0.1".to_owned() }];
    then(&Facts {
        name: "n",
        machine: Some(&machine()),
        sample: Some(&sample()),
        pressures,
        devices: Amounts::new(),
        volumes_in_use: BTreeSet::new(),
        shutting_down: false,
        runtime,
        addresses: Some(&address),
        port: 10250,
        max_pods: 110,
        thresholds: &Thresholds::default(),
        reservation,
        now: Timestamp::from_second(at).unwrap(),
        instant: Instant::now(),
    })
}

fn registered() -> Node {
    let taint = Taint { key: "t".to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
    with(&ready(), 1, Pressures::default(), |facts| {
        initial(facts, &[("a".into(), "b".into())].into(), std::slice::from_ref(&taint))
    })
}

#[test]
fn a_node_says_what_a_kubelets_does() {
    let node = registered();
    assert_eq!(node.metadata.labels.as_ref().unwrap()["a"], "b");
    assert_eq!(node.spec.as_ref().unwrap().taints.as_ref().unwrap()[0].key, "t");
    assert_eq!(node.metadata.labels.as_ref().unwrap()["kubernetes.io/hostname"], "n");
    let status = node.status.unwrap();
    let (capacity, allocatable) = (status.capacity.unwrap(), status.allocatable.unwrap());
    let both = |name: &str| (capacity[name].0.as_str(), allocatable[name].0.as_str());
    assert_eq!(both("cpu"), ("2", "2"));
    // 4 GiB less 100 MiB for eviction less 2 MiB of huge pages.
    assert_eq!(both("memory"), ("4Gi", "3994Mi"));
    // 10 % is a float32 in a kubelet, and a little more than a tenth.
    assert_eq!(both("ephemeral-storage"), ("100Gi", "96636764000"));
    assert_eq!(both("pods"), ("110", "110"));
    assert_eq!(both("hugepages-2Mi"), ("2Mi", "2Mi"));
    let info = status.node_info.unwrap();
    assert_eq!((info.kubelet_version.as_str(), info.operating_system.as_str()), ("v1.36.3+podway", "linux"));
    assert_eq!(info.container_runtime_version, "podway://0.1.0");
    let conditions = status.conditions.unwrap();
    let said: Vec<_> = conditions
        .iter()
        .map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_deref().unwrap()))
        .collect();
    assert_eq!(
        said,
        [
            ("MemoryPressure", "False", "KubeletHasSufficientMemory"),
            ("DiskPressure", "False", "KubeletHasNoDiskPressure"),
            ("PIDPressure", "False", "KubeletHasSufficientPID"),
            ("Ready", "True", "KubeletReady"),
        ]
    );
    assert_eq!(conditions[3].message.as_deref(), Some("kubelet is posting ready status"));
}

#[test]
fn what_is_reserved_is_not_offered() {
    let list = |of: &[(&str, &str)]| {
        Reserved::parse(&of.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()).unwrap()
    };
    let reservation = Reservation {
        system: list(&[("cpu", "250m"), ("memory", "1Gi"), ("ephemeral-storage", "10Gi"), ("pid", "100")]),
        kube: list(&[("cpu", "250m")]),
        enforce: true,
        ..Reservation::default()
    };
    let status =
        kept(&reservation, &ready(), 1, Pressures::default(), |facts| status(&NodeStatus::default(), facts));
    let (capacity, allocatable) = (status.capacity.unwrap(), status.allocatable.unwrap());
    let both = |name: &str| (capacity[name].0.as_str(), allocatable[name].0.as_str());
    assert_eq!(both("cpu"), ("2", "1500m"));
    assert_eq!(both("memory"), ("4Gi", "2970Mi"));
    assert_eq!(both("ephemeral-storage"), ("100Gi", "85899345760"));
    assert_eq!((both("pods"), capacity.get("pid")), (("110", "110"), None));
}

#[test]
fn nothing_new_is_no_patch_and_a_report_is_heartbeats_only() {
    let node = registered();
    let before = node.status.clone().unwrap();
    let after = with(&ready(), 100, Pressures::default(), |facts| status(&before, facts));
    assert_eq!(patch(&node, &after, "n", false), None);
    let report = patch(&node, &after, "n", true).unwrap();
    assert_eq!(report["status"].as_object().unwrap().keys().collect::<Vec<_>>(), ["conditions"]);
    let ready = &report["status"]["conditions"][3];
    assert_eq!(ready["lastHeartbeatTime"], "1970-01-01T00:01:40Z");
    assert_eq!(ready["lastTransitionTime"], "1970-01-01T00:00:01Z");
}

#[test]
fn a_flip_moves_the_transition_time_of_that_condition_only() {
    let node = registered();
    let short = Pressures { disk: true, ..Pressures::default() };
    let after = with(&Known::default(), 9, short, |facts| status(node.status.as_ref().unwrap(), facts));
    let conditions = after.conditions.as_ref().unwrap();
    let at = |i: usize| conditions[i].last_transition_time.clone().unwrap().0.as_second();
    assert_eq!([at(0), at(1), at(2), at(3)], [1, 9, 1, 9]);
    assert_eq!(conditions[1].reason.as_deref(), Some("KubeletHasDiskPressure"));
    assert_eq!(
        conditions[3].message.as_deref(),
        Some("[container runtime status check may not have completed yet, network state unknown]")
    );
    assert!(not_ready(&after).is_some());
    // A runtime that cannot be asked does not take the images off the node.
    assert_eq!(after.images, node.status.unwrap().images);
}

#[test]
fn what_others_wrote_is_kept() {
    let mut node = registered();
    let status_ = node.status.as_mut().unwrap();
    status_.capacity.as_mut().unwrap().insert("example.com/gpu".into(), Quantity("4".into()));
    status_.allocatable.as_mut().unwrap().insert("example.com/gone".into(), Quantity("1".into()));
    status_.conditions.as_mut().unwrap().insert(
        0,
        NodeCondition {
            type_: "NetworkUnavailable".into(),
            status: "False".into(),
            ..NodeCondition::default()
        },
    );
    node.metadata.labels.as_mut().unwrap().insert("mine".into(), "1".into());
    node.metadata.labels.as_mut().unwrap().insert("kubernetes.io/os".into(), "plan9".into());
    let before = node.status.clone().unwrap();
    let after = with(&ready(), 100, Pressures::default(), |facts| status(&before, facts));
    assert_eq!(after.conditions.as_ref().unwrap()[0].type_, "NetworkUnavailable");
    let patch = patch(&node, &after, "n", false).unwrap();
    assert_eq!(patch["metadata"], json!({"labels": {"kubernetes.io/os": "linux"}}));
    assert_eq!(patch["status"]["allocatable"], json!({"example.com/gpu": "4", "example.com/gone": null}));
    assert!(patch["status"].get("capacity").is_none());
    assert_eq!(patch["status"]["conditions"].as_array().unwrap().len(), 4);
}

#[test]
fn addresses_are_replaced_as_a_list() {
    let node = registered();
    let mut after = node.status.clone().unwrap();
    after.addresses = Some(vec![NodeAddress { type_: "InternalIP".into(), address: "10.0.0.2".into() }]);
    let patch = patch(&node, &after, "n", false).unwrap();
    assert_eq!(
        patch["status"]["addresses"],
        json!([{"type": "InternalIP", "address": "10.0.0.2"}, {"$patch": "replace"}])
    );
}

#[test]
fn quantities_are_canonical() {
    for (bytes, text) in [
        (0, "0"),
        (1, "1"),
        (1024, "1Ki"),
        (1536, "1536"),
        (25 << 30, "25Gi"),
        (24_683_656 << 10, "24683656Ki"),
    ] {
        assert_eq!(binary(bytes).0, text);
    }
}

#[test]
fn labels_that_a_node_may_not_take() {
    let labels = |key: &str| BTreeMap::from([(key.to_owned(), String::new())]);
    for key in [
        "a",
        "example.com/a",
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
        "node.kubernetes.io/x",
    ] {
        assert_eq!(forbidden_labels(&labels(key)), Vec::<&str>::new());
    }
    for key in [
        "node-restriction.kubernetes.io/a",
        "kubernetes.io/a",
        "x.k8s.io/a",
        "node-role.kubernetes.io/worker",
    ] {
        assert_eq!(forbidden_labels(&labels(key)), [key]);
    }
}

#[test]
fn what_plugins_have_is_offered_as_far_as_it_works() {
    use crate::devices::pool::Amount;
    let mut node = registered();
    let others = node.status.as_mut().unwrap();
    others.capacity.as_mut().unwrap().insert("other.org/x".to_owned(), Quantity("5".to_owned()));
    let mut says = |capacity: usize, allocatable: usize| {
        let amount = Amount { capacity, allocatable };
        with(&ready(), 1, Pressures::default(), |facts| {
            let devices = [("example.com/device".to_owned(), amount)].into();
            let new = status(node.status.as_ref().unwrap(), &Facts { devices, ..facts.clone() });
            let sent = patch(&node, &new, "n", false).unwrap()["status"].clone();
            node.status = Some(new);
            (sent["capacity"].clone(), sent["allocatable"].clone())
        })
    };
    let one = |count: &str| json!({"example.com/device": count});
    let both = json!({"example.com/device": "2", "other.org/x": "5"});
    assert_eq!(says(3, 2), (one("3"), both));
    assert_eq!(says(3, 0), (Value::Null, one("0")), "its plugin has left");
    assert_eq!(says(0, 0), (one("0"), Value::Null), "and 0 stays");
}

#[test]
fn volumes_in_use_are_told_until_they_are_not() {
    let used = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
    with(&ready(), 0, Pressures::default(), |facts| {
        let mut node = initial(facts, &BTreeMap::new(), &[]);
        for (names, told) in [(used(&["a", "b"]), json!(["a", "b"])), (used(&[]), Value::Null)] {
            let new =
                status(node.status.as_ref().unwrap(), &Facts { volumes_in_use: names, ..facts.clone() });
            assert_eq!(patch(&node, &new, "n", false).unwrap()["status"]["volumesInUse"], told);
            node.status = Some(new);
        }
    });
}
