use super::*;
use crate::cache::Cache;
use crate::cycle::{CycleError, Trace, schedule_one};
use crate::framework::Framework;
use crate::model::{CsiDriver, Meta, NodeInfo, PodVolume, StorageCapacity, StorageClass};
use crate::objects::{Kept, Object};
use crate::plugins::default_framework;
use k8s_openapi::api::core::v1;
use podway_flow::Micros;
use serde_json::{Value, json};

fn volume(name: &str, size: &str, more: Value) -> (String, Object) {
    let mut object = json!({"metadata": {"name": name}, "status": {"phase": "Available"},
        "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": "wait"}});
    for (key, value) in more.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    let api: v1::PersistentVolume = serde_json::from_value(object).unwrap();
    let read = PersistentVolume::parse(Meta::of(&api), api).unwrap();
    (name.to_owned(), PersistentVolume::wrap(Arc::new(read)))
}

fn claim(name: &str, size: &str, annotations: Value, more: Value) -> (String, Object) {
    let mut object = json!({"metadata": {"name": name, "namespace": "d", "uid": name, "annotations": annotations},
        "spec": {"resources": {"requests": {"storage": size}}, "accessModes": ["ReadWriteOnce"],
            "storageClassName": "wait"}});
    for (key, value) in more.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    let api: v1::PersistentVolumeClaim = serde_json::from_value(object).unwrap();
    let read = PersistentVolumeClaim::parse(Meta::of(&api), api).unwrap();
    (format!("d/{name}"), PersistentVolumeClaim::wrap(Arc::new(read)))
}

fn class(name: &str, provisioner: &str, waits: bool) -> (String, Object) {
    let class = StorageClass { provisioner: provisioner.into(), waits, ..StorageClass::default() };
    (name.to_owned(), Object::StorageClass(Arc::new(class)))
}

fn on(node: &str) -> Value {
    json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}})
}

fn bound() -> Value {
    json!({"pv.kubernetes.io/bind-completed": "yes"})
}

/// Nodes a and b, and objects.
fn cluster(objects: &[(String, Object)]) -> Cache {
    let mut cache = Cache::default();
    for name in ["a", "b"] {
        let labels = [("kubernetes.io/hostname", name), ("topology.kubernetes.io/zone", name)];
        cache.set_node(Arc::new(NodeInfo {
            name: name.into(),
            allocatable_pods: 10,
            labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            ..NodeInfo::default()
        }));
    }
    for (key, object) in objects {
        cache.objects_mut().put(key.clone(), object.clone());
    }
    cache
}

fn pod(claims: &[&str]) -> PodInfo {
    let volumes = claims.iter().map(|c| PodVolume::Claim { name: (*c).to_owned(), ephemeral: false });
    PodInfo {
        namespace: "d".into(),
        name: "p".into(),
        uid: "p".into(),
        volumes: volumes.collect(),
        ..PodInfo::default()
    }
}

/// The nodes that take the pod, or the message.
fn outcome(cache: &mut Cache, pod: &PodInfo) -> String {
    let framework = Framework { post_filter: vec![], ..default_framework() };
    let snapshot = cache.snapshot();
    match schedule_one(None, &framework, &snapshot, pod, &|| Micros(1), &mut Trace::default()) {
        Ok(decision) => {
            let names = snapshot.nodes.iter().map(|n| &*n.info.name);
            names.filter(|n| decision.rejected.get(n).is_none()).collect::<Vec<_>>().join(" ")
        }
        Err(CycleError::Unfit(error)) => error.message(),
        Err(CycleError::Failed(failure)) => failure.to_string(),
    }
}

#[test]
fn claims_that_nothing_can_be_done_for() {
    let none = || json!({});
    for (what, objects, want) in [
        ("no claim", vec![], "persistentvolumeclaim \"c\" not found"),
        (
            "immediate",
            vec![class("wait", "x", false), claim("c", "1Gi", none(), none())],
            "pod has unbound immediate PersistentVolumeClaims",
        ),
        (
            "wants a certain volume",
            vec![class("wait", "x", true), claim("c", "1Gi", none(), json!({"volumeName": "v"}))],
            "pod has unbound immediate PersistentVolumeClaims",
        ),
        (
            "its volume is gone",
            vec![class("wait", "x", true), claim("c", "1Gi", bound(), json!({"volumeName": "v"}))],
            "persistentvolume \"v\" not found",
        ),
        (
            "no volume and nobody makes one",
            vec![class("wait", "kubernetes.io/no-provisioner", true), claim("c", "1Gi", none(), none())],
            "2 node(s) didn't find available persistent volumes to bind",
        ),
    ] {
        let want = format!("0/2 nodes are available: {want}.");
        assert_eq!(outcome(&mut cluster(&objects), &pod(&["c"])), want, "{what}");
    }
}

#[test]
fn a_bound_claims_volume_decides_the_node() {
    let at_b = json!({"nodeAffinity": on("b"), "claimRef": {"namespace": "d", "name": "c", "uid": "c"}});
    let objects = [claim("c", "1Gi", bound(), json!({"volumeName": "v"})), volume("v", "1Gi", at_b)];
    assert_eq!(outcome(&mut cluster(&objects), &pod(&["c"])), "b");
    let nowhere = json!({"nodeAffinity": on("c")});
    let objects = [claim("c", "1Gi", bound(), json!({"volumeName": "v"})), volume("v", "1Gi", nowhere)];
    assert_eq!(
        outcome(&mut cluster(&objects), &pod(&["c"])),
        "0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity."
    );
}

#[test]
fn a_waiting_claim_gets_the_smallest_volume_that_fits_and_nobody_else_gets_it() {
    let objects = [
        class("wait", "kubernetes.io/no-provisioner", true),
        volume("tiny", "1Gi", json!({"nodeAffinity": on("a")})),
        volume("big", "10Gi", json!({"nodeAffinity": on("a")})),
        volume("right", "5Gi", json!({"nodeAffinity": on("a")})),
        volume("block", "3Gi", json!({"nodeAffinity": on("a"), "volumeMode": "Block"})),
        volume("many", "3Gi", json!({"nodeAffinity": on("a"), "accessModes": ["ReadOnlyMany"]})),
        volume("taken", "3Gi", json!({"claimRef": {"namespace": "d", "name": "other"}})),
        claim("c", "2Gi", json!({}), json!({})),
        claim("e", "2Gi", json!({}), json!({})),
        claim("f", "2Gi", json!({}), json!({})),
    ];
    let mut cache = cluster(&objects);
    let plan = |cache: &mut Cache, claims: &[&str]| {
        let snapshot = cache.snapshot();
        VolumePlan::of(&pod(claims), &snapshot.node("a").unwrap().info, &snapshot)
    };
    let names = |plan: &VolumePlan| -> Vec<String> {
        plan.binds.iter().map(|(v, c)| format!("{}={}", c.meta.name, v.meta.name)).collect()
    };
    let first = plan(&mut cache, &["c"]).unwrap();
    assert_eq!(names(&first), ["c=right"]);
    let assumed = first.assume(cache.objects_mut());
    assert_eq!(names(&plan(&mut cache, &["e"]).unwrap()), ["e=big"]);
    assert_eq!(
        outcome(&mut cache, &pod(&["e", "f"])),
        "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind."
    );
    assert_eq!(assumed.revert(cache.objects_mut()).len(), 1);
    assert_eq!(names(&plan(&mut cache, &["e", "f"]).unwrap()), ["e=right", "f=big"]);
}

#[test]
fn a_volume_is_made_where_the_class_and_the_room_allow() {
    let room = |nodes: &str, limit: i64| {
        let selector = json!({"matchLabels": {"kubernetes.io/hostname": nodes}});
        let nodes = crate::model::LabelSelector::parse(serde_json::from_value(selector).ok().as_ref());
        let capacity = StorageCapacity { class: "wait".into(), nodes, limit: Some(limit) };
        ("d/room".to_owned(), Object::StorageCapacity(Arc::new(capacity)))
    };
    let driver = |capacity| ("csi".to_owned(), Object::CsiDriver(Arc::new(CsiDriver { capacity })));
    let mut objects = vec![class("wait", "csi", true), claim("c", "2Gi", json!({}), json!({}))];
    assert_eq!(outcome(&mut cluster(&objects), &pod(&["c"])), "a b");
    objects.push(driver(true));
    assert_eq!(
        outcome(&mut cluster(&objects), &pod(&["c"])),
        "0/2 nodes are available: 2 node(s) did not have enough free storage."
    );
    objects.push(room("b", 2 << 30));
    assert_eq!(outcome(&mut cluster(&objects), &pod(&["c"])), "b");
    let at = |node: &str| claim("c", "2Gi", json!({"volume.kubernetes.io/selected-node": node}), json!({}));
    objects.push(at("a"));
    let mixed = "0/2 nodes are available: 1 node(s) did not have enough free storage, \
                 1 node(s) didn't find available persistent volumes to bind.";
    assert_eq!(outcome(&mut cluster(&objects), &pod(&["c"])), mixed);
    objects.push(at("b"));
    assert_eq!(outcome(&mut cluster(&objects), &pod(&["c"])), "b");
}

#[test]
fn zones_limits_and_sole_use() {
    // A zone label of the volume.
    let (key, Object::PersistentVolume(mut v)) = volume("v", "1Gi", json!({})) else { panic!("a volume") };
    Arc::make_mut(&mut v).labels = BTreeMap::from([("topology.kubernetes.io/zone".into(), "b__c".into())]);
    let zoned = [claim("c", "1Gi", bound(), json!({"volumeName": "v"})), (key, Object::PersistentVolume(v))];
    assert_eq!(outcome(&mut cluster(&zoned), &pod(&["c"])), "b");

    // One volume per node.
    let csi = |name: &str| volume(name, "1Gi", json!({"csi": {"driver": "csi", "volumeHandle": name}}));
    let of = |claim_name: &str, v: &str| claim(claim_name, "1Gi", bound(), json!({"volumeName": v}));
    let limit = crate::model::CsiNode { limits: BTreeMap::from([("csi".to_owned(), 1)]) };
    let limits = ("a".to_owned(), Object::CsiNode(Arc::new(limit)));
    let mut cache = cluster(&[csi("v1"), csi("v2"), of("c1", "v1"), of("c2", "v2"), limits]);
    assert_eq!(outcome(&mut cache, &pod(&["c2"])), "a b");
    cache.assume(Arc::new(PodInfo { uid: "there".into(), ..pod(&["c1"]) }), "a");
    assert_eq!(outcome(&mut cache, &pod(&["c2"])), "b");
    assert_eq!(outcome(&mut cache, &pod(&["c1"])), "a b", "a volume that is there counts once");

    // A claim for one pod only.
    let sole = claim("s", "1Gi", bound(), json!({"volumeName": "v1", "accessModes": ["ReadWriteOncePod"]}));
    cache.objects_mut().put(sole.0, sole.1);
    assert_eq!(outcome(&mut cache, &pod(&["s"])), "a b");
    cache.assume(Arc::new(PodInfo { uid: "first".into(), ..pod(&["s"]) }), "b");
    assert_eq!(
        outcome(&mut cache, &pod(&["s"])),
        "0/2 nodes are available: 2 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod \
         access mode already in-use by another pod."
    );
}

#[test]
fn disks_of_a_node_conflict_unless_both_only_read() {
    use crate::model::Disk;
    let with = |disk: Disk| PodInfo { volumes: vec![PodVolume::Disk(disk)], ..pod(&[]) };
    let gce = |reads| Disk::Gce("d".into(), reads);
    for (own, there, want) in [
        (gce(false), gce(true), "b"),
        (gce(true), gce(true), "a b"),
        (Disk::Ebs("d".into()), Disk::Ebs("d".into()), "b"),
        (Disk::Ebs("d".into()), gce(false), "a b"),
        (
            Disk::Rbd(vec!["1".into(), "2".into()], "p".into(), "i".into(), false),
            Disk::Rbd(vec!["2".into()], "p".into(), "i".into(), true),
            "b",
        ),
    ] {
        let mut cache = cluster(&[]);
        cache.assume(Arc::new(PodInfo { uid: "there".into(), ..with(there.clone()) }), "a");
        assert_eq!(outcome(&mut cache, &with(own.clone())), want, "{own:?} beside {there:?}");
    }
}

#[test]
fn hints() {
    let waits = pod(&["c"]);
    let helps = |old: Option<Object>, new: Option<Object>| {
        let kind = crate::objects::Kind::PersistentVolume;
        VolumeBinding.may_help(&waits, &ClusterEvent::Object(crate::objects::Change { kind, old, new }))
    };
    assert!(helps(None, Some(volume("v", "1Gi", json!({})).1)));
    assert!(helps(None, Some(claim("c", "1Gi", json!({}), json!({})).1)));
    assert!(!helps(None, Some(claim("other", "1Gi", json!({}), json!({})).1)));
    assert!(!helps(Some(volume("v", "1Gi", json!({})).1), None));
    let capacity = |limit| {
        Some(Object::StorageCapacity(Arc::new(StorageCapacity { limit, ..StorageCapacity::default() })))
    };
    assert!(helps(capacity(Some(1)), capacity(Some(2))) && !helps(capacity(Some(2)), capacity(Some(1))));
}
