//! Volumes of a driver that serves on a socket, for pods of a directory.

use super::*;
use crate::csi::Offer;
use crate::csi::tests::{Cluster, DRIVER, Fake, LIMIT};
use crate::env::fields::Addresses;
use crate::pod::actions::chain;
use crate::volumes::{Token, TokenRequest, Tokens, VolumeManager};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Volume,
};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use podway_cri::csi::node_service_capability::rpc::Type;
use podway_flow::{Clock, Recorder, Writer};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tonic::{Code, Status};

/// A node without drivers.
pub(crate) fn parts(root: &Path) -> Parts {
    let drivers = Drivers::with_limit(Arc::new(Cluster::default()), LIMIT);
    with_drivers(root, drivers, watch::Sender::default().subscribe())
}

fn with_drivers(root: &Path, drivers: Arc<Drivers>, known: watch::Receiver<State>) -> Parts {
    let in_use = watch::Sender::new(attached(root).unwrap());
    Parts { root: root.to_owned(), node: "n1".to_owned(), drivers, known, in_use }
}

/// Claim `c` of the volume `pv`, secret `s`, and an object of the driver, if there is to be one.
#[derive(Clone)]
struct Objects {
    volume: Value,
    driver: Value,
}

#[async_trait]
impl crate::env::Objects for Objects {
    async fn config_map(&self, _: &str, _: &str) -> Result<Option<ConfigMap>, ObjectError> {
        Ok(None)
    }
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, ObjectError> {
        let there = (namespace, name) == ("n", "s");
        Ok(there.then(|| serde_json::from_value(json!({"data": {"key": "dmFsdWU="}})).unwrap()))
    }
    async fn claim(&self, _: &str, _: &str) -> Result<Option<PersistentVolumeClaim>, ObjectError> {
        let claim = json!({"spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}});
        Ok(serde_json::from_value(claim).ok())
    }
    async fn persistent_volume(&self, _: &str) -> Result<Option<PersistentVolume>, ObjectError> {
        let mut csi = json!({"driver": DRIVER, "volumeHandle": "h"});
        csi.as_object_mut().unwrap().extend(self.volume.as_object().unwrap().clone());
        let spec = json!({"accessModes": ["ReadWriteOnce"], "mountOptions": ["noatime"], "csi": csi});
        Ok(serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": spec})).ok())
    }
    async fn csi_driver(&self, _: &str) -> Result<Option<CSIDriver>, ObjectError> {
        Ok(serde_json::from_value(json!({"metadata": {}, "spec": self.driver})).ok())
    }
    async fn attachment(&self, name: &str) -> Result<Option<VolumeAttachment>, ObjectError> {
        assert_eq!(name, wanted::digest(&["h", DRIVER, "n1"]));
        let of = json!({"metadata": {}, "spec": {"attacher": DRIVER, "nodeName": "n1", "source": {}},
            "status": {"attached": true, "attachmentMetadata": {"device": "/dev/x"}}});
        Ok(serde_json::from_value(of).ok())
    }
}

#[async_trait]
impl Tokens for Objects {
    async fn token(&self, request: &TokenRequest) -> Result<Token, ObjectError> {
        let text = format!("token for {}", request.audience.as_deref().unwrap_or_default());
        Ok(Token { text, expires: jiff::Timestamp::from_second(4_000_000_000).unwrap() })
    }
}

struct Bench {
    dir: tempfile::TempDir,
    fake: Arc<Fake>,
    endpoint: PathBuf,
    drivers: Arc<Drivers>,
    objects: Objects,
    node: watch::Sender<State>,
    quit: CancellationToken,
}

impl Bench {
    /// A driver that stages and wants no attachment, registered.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (fake, endpoint, _task) = Fake::serve(dir.path());
        fake.can.lock().unwrap().push(Type::StageUnstageVolume);
        let bench = Bench {
            drivers: Drivers::with_limit(Arc::new(Cluster::default()), LIMIT),
            objects: Objects { volume: json!({}), driver: json!({"attachRequired": false}) },
            dir,
            fake,
            endpoint,
            node: watch::Sender::default(),
            quit: CancellationToken::new(),
        };
        bench.drivers.register(&bench.offer()).await.unwrap();
        bench.drivers.settle().await;
        bench.fake.called();
        bench
    }

    fn offer(&self) -> Offer {
        let (name, versions) = (DRIVER.to_owned(), vec!["1.0.0".to_owned()]);
        Offer { socket: self.dir.path().join("r"), name, endpoint: self.endpoint.clone(), versions }
    }

    /// What an agent that has just begun has.
    fn agent(&self) -> VolumeManager {
        let parts = with_drivers(self.dir.path(), Arc::clone(&self.drivers), self.node.subscribe());
        let objects = Arc::new(self.objects.clone());
        VolumeManager::new(parts, objects.clone(), objects, BTreeMap::new())
    }

    async fn set_up(&self, agent: &VolumeManager, pod: &Pod) -> Result<MountedVolume, String> {
        let recorder = Recorder::new(Writer::Agent, Clock::new());
        let made = agent.setup(pod, &Addresses::default(), &recorder, &self.quit).await;
        made.map(|mut all| all.remove("v").unwrap()).map_err(|error| chain(&error))
    }

    fn refuse(&self, call: &'static str, code: Code) {
        self.fake.refuses.lock().unwrap().insert(call, Status::new(code, "no"));
    }

    fn allow(&self) {
        self.fake.refuses.lock().unwrap().clear();
    }

    /// All files that there are.
    fn left(&self) -> Vec<String> {
        let list =
            std::process::Command::new("find").current_dir(&self.dir).args(["-type", "f"]).output().unwrap();
        String::from_utf8(list.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

fn pod(uid: &str, volume: Value) -> Pod {
    let mut volume = volume;
    volume["name"] = json!("v");
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": uid},
        "spec": {"serviceAccountName": "sa", "containers": [], "volumes": [volume]}}))
    .unwrap()
}

fn claimed(uid: &str) -> Pod {
    pod(uid, json!({"persistentVolumeClaim": {"claimName": "c"}}))
}

fn inline(uid: &str) -> Pod {
    pod(
        uid,
        json!({"csi": {"driver": DRIVER, "volumeAttributes": {"a": "b"}, "nodePublishSecretRef": {"name": "s"}}}),
    )
}

#[tokio::test]
async fn a_volume_is_staged_once_published_to_each_pod_and_unstaged_with_the_last() {
    let mut bench = Bench::new().await;
    bench.objects.volume = json!({"fsType": "ext4", "volumeAttributes": {"a": "b"},
        "nodeStageSecretRef": {"namespace": "n", "name": "s"}});
    let agent = bench.agent();
    let made = bench.set_up(&agent, &claimed("u1")).await.unwrap();
    let target = bench.dir.path().join("pods/u1/volumes/kubernetes.io~csi/pv/mount");
    assert_eq!((made.path.as_path(), made.read_only, made.managed), (target.as_path(), false, true));
    let staged = bench.fake.staged.lock().unwrap().take().unwrap();
    let sha = wanted::hash(&["h"]);
    let at = bench.dir.path().join("plugins/kubernetes.io/csi").join(DRIVER).join(sha).join("globalmount");
    assert_eq!(staged.staging_target_path, at.display().to_string());
    assert_eq!(staged.secrets["key"], "value");
    let published = bench.fake.published.lock().unwrap().take().unwrap();
    assert_eq!(published.staging_target_path, staged.staging_target_path);
    assert_eq!((published.volume_context["a"].as_str(), published.secrets.len()), ("b", 0));
    assert_eq!(published.volume_capability, staged.volume_capability);
    // What stands is left as it is.
    bench.set_up(&agent, &claimed("u1")).await.unwrap();
    let mut twice = claimed("u2");
    let volumes = twice.spec.as_mut().unwrap().volumes.as_mut().unwrap();
    volumes.push(Volume { name: "w".to_owned(), ..volumes[0].clone() });
    bench.set_up(&agent, &twice).await.unwrap();
    assert_eq!(bench.fake.called(), ["stage h", "publish h", "publish h"]);
    agent.teardown("u1").await.unwrap();
    assert!(!bench.dir.path().join("pods/u1").exists());
    agent.teardown("u2").await.unwrap();
    agent.teardown("u2").await.unwrap();
    assert_eq!(bench.fake.called(), ["unpublish h", "unpublish h", "unstage h"]);
    assert_eq!(bench.left(), Vec::<String>::new());
}

#[tokio::test]
async fn an_agent_that_was_killed_leaves_what_the_next_one_takes_down() {
    let bench = Bench::new().await;
    for uid in ["u1", "u2"] {
        bench.set_up(&bench.agent(), &claimed(uid)).await.unwrap();
    }
    // Killed while the driver was asked: nobody knows what came of it.
    bench.fake.hangs.lock().unwrap().insert("publish");
    let late = bench.set_up(&bench.agent(), &claimed("u3")).await.unwrap_err();
    assert_eq!(
        late,
        "MountVolume.SetUp failed for volume \"pv\" : rpc error: code = DeadlineExceeded desc = context deadline exceeded"
    );
    bench.fake.called();
    for uid in ["u1", "u2", "u3"] {
        bench.agent().teardown(uid).await.unwrap();
    }
    assert_eq!(bench.fake.called(), ["unpublish h", "unpublish h", "unpublish h", "unstage h"]);
    assert_eq!(bench.left(), Vec::<String>::new());
}

#[tokio::test]
async fn what_failed_for_good_is_not_undone_and_what_may_have_been_done_is() {
    let bench = Bench::new().await;
    let agent = bench.agent();
    for (call, code, undone) in [
        ("stage", Code::NotFound, &[][..]),
        ("stage", Code::Aborted, &["unstage h"]),
        ("publish", Code::Internal, &["unstage h"]),
        ("publish", Code::Unavailable, &["unpublish h", "unstage h"]),
    ] {
        bench.refuse(call, code);
        let error = bench.set_up(&agent, &claimed("u")).await.unwrap_err();
        let step = if call == "stage" { "MountDevice" } else { "SetUp" };
        let words =
            format!("MountVolume.{step} failed for volume \"pv\" : rpc error: code = {code:?} desc = no");
        assert_eq!(error, words);
        bench.fake.called();
        agent.teardown("u").await.unwrap();
        assert_eq!(bench.fake.called(), undone, "{call} {code:?}");
        assert_eq!(bench.left(), Vec::<String>::new());
        bench.allow();
    }
}

#[tokio::test]
async fn a_volume_of_the_pods_own_is_published_with_what_its_driver_wants_to_know() {
    let mut bench = Bench::new().await;
    let refused = bench.set_up(&bench.agent(), &inline("u")).await.unwrap_err();
    assert_eq!(
        refused,
        "MountVolume.SetUp failed for volume \"v\" : kubernetes.io/csi: mounter.SetupAt failed to check volume \
         lifecycle mode: volume mode \"Ephemeral\" not supported by driver csi.example.com (only supports [\"Persistent\"])"
    );
    bench.objects.driver = json!({"volumeLifecycleModes": ["Ephemeral"], "podInfoOnMount": true,
        "requiresRepublish": true, "tokenRequests": [{"audience": "vault"}]});
    let agent = bench.agent();
    bench.set_up(&agent, &inline("u")).await.unwrap();
    let handle = wanted::digest(&["u", "v"]);
    let asked = bench.fake.published.lock().unwrap().take().unwrap();
    assert_eq!((asked.volume_id.as_str(), asked.staging_target_path.as_str()), (handle.as_str(), ""));
    assert_eq!(asked.volume_context["csi.storage.k8s.io/ephemeral"], "true");
    let tokens: Value = serde_json::from_str(&asked.volume_context[mount::TOKENS]).unwrap();
    assert_eq!(tokens["vault"]["token"], "token for vault");
    assert_eq!(asked.secrets["key"], "value");
    assert!(agent.refresh("u").is_some(), "it is to be published again");
    agent.teardown("u").await.unwrap();
    assert_eq!(agent.refresh("u"), None);
    assert_eq!(bench.fake.called(), [format!("publish {handle}"), format!("unpublish {handle}")]);
    assert_eq!(bench.left(), Vec::<String>::new());
}

#[tokio::test]
async fn without_its_driver_a_pod_waits_and_its_other_volumes_do_not() {
    let bench = Bench::new().await;
    let agent = bench.agent();
    let mut pod = claimed("u");
    let more = json!({"name": "e", "emptyDir": {"medium": "Memory"}});
    pod.spec.as_mut().unwrap().volumes.as_mut().unwrap().push(serde_json::from_value(more).unwrap());
    bench.set_up(&agent, &pod).await.unwrap();
    bench.drivers.deregister(&bench.offer()).await;
    let error = chain(&agent.teardown("u").await.unwrap_err());
    assert_eq!(
        error,
        "UnmountVolume.TearDown failed for volume \"pv\" : kubernetes.io/csi: Unmounter.TearDownAt failed to get CSI \
         client: driver name csi.example.com not found in the list of registered CSI drivers"
    );
    assert!(
        !crate::volumes::mounts::has(&bench.dir.path().join("pods/u/volumes/kubernetes.io~empty-dir/e"))
            .unwrap()
    );
    let absent = bench.set_up(&bench.agent(), &claimed("u2")).await.unwrap_err();
    assert!(
        absent.starts_with("MountVolume.MountDevice failed for volume \"pv\" : kubernetes.io/csi: attacher."),
        "{absent}"
    );
    bench.drivers.register(&bench.offer()).await.unwrap();
    agent.teardown("u").await.unwrap();
    agent.teardown("u2").await.unwrap();
    assert_eq!(bench.left(), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_still_mounted_or_not_empty_is_not_removed() {
    let bench = Bench::new().await;
    let agent = bench.agent();
    let made = bench.set_up(&agent, &claimed("u")).await.unwrap();
    // A driver that says it is done, and is not.
    bench.fake.keeps.store(true, std::sync::atomic::Ordering::Relaxed);
    std::fs::write(made.path.join("data"), "x").unwrap();
    let error = chain(&agent.teardown("u").await.unwrap_err());
    assert!(error.contains("cannot remove") && error.contains("not empty"), "{error}");
    assert_eq!(std::fs::read_to_string(made.path.join("data")).unwrap(), "x");
    bench.fake.keeps.store(false, std::sync::atomic::Ordering::Relaxed);
    agent.teardown("u").await.unwrap();
    assert_eq!(bench.left(), Vec::<String>::new());
}

#[tokio::test]
async fn a_volume_to_be_attached_is_told_to_be_in_use_before_it_is_waited_for() {
    let mut bench = Bench::new().await;
    bench.objects.driver = json!({});
    let name = format!("kubernetes.io/csi/{DRIVER}^h");
    let parts = with_drivers(bench.dir.path(), Arc::clone(&bench.drivers), bench.node.subscribe());
    let mut in_use = parts.in_use.subscribe();
    let objects = Arc::new(bench.objects.clone());
    let agent = VolumeManager::new(parts, objects.clone(), objects, BTreeMap::new());
    let pod = claimed("u");
    let attach = async {
        drop(in_use.wait_for(|all| all.contains(&name)).await.unwrap());
        let status = json!({"volumesInUse": [name], "volumesAttached": [{"name": name, "devicePath": ""}]});
        let node: Node = serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap();
        assert_eq!(bench.fake.called(), Vec::<String>::new(), "it waits");
        bench.node.send_modify(|state| state.node = Some(Arc::new(node)));
    };
    let (made, ()) = tokio::join!(bench.set_up(&agent, &pod), attach);
    made.unwrap();
    assert_eq!(bench.fake.staged.lock().unwrap().take().unwrap().publish_context["device"], "/dev/x");
    assert_eq!(attached(bench.dir.path()).unwrap(), [name.clone()].into(), "the next agent knows");
    agent.teardown("u").await.unwrap();
    assert!(in_use.borrow_and_update().is_empty() && attached(bench.dir.path()).unwrap().is_empty());

    // One that nobody attaches is given up with the pod.
    bench.node.send_modify(|state| state.node = None);
    let going = async {
        drop(in_use.wait_for(|all| all.contains(&name)).await.unwrap());
        bench.quit.cancel();
    };
    let (given_up, ()) = tokio::join!(bench.set_up(&agent, &pod), going);
    assert_eq!(
        given_up.unwrap_err(),
        "MountVolume.WaitForAttach failed for volume \"pv\" : the pod is going"
    );
    bench.fake.called();
    agent.teardown("u").await.unwrap();
    assert_eq!(bench.fake.called(), Vec::<String>::new());
    assert_eq!(bench.left(), Vec::<String>::new());
}
