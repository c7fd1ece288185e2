//! A namespace for one case: made, used, and gone again, whatever happens in it.

use crate::cluster::{Answer, Cluster};
use crate::{dump, wait};
use anyhow::{Context as _, bail, ensure};
use futures::{AsyncBufReadExt as _, FutureExt as _, TryStreamExt as _};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ContainerStatus, Namespace, Pod, ServiceAccount};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, LogParams, ObjectMeta, PostParams};
use podway_api::PodFlow;
use serde_json::{Value, json};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

/// How long a thing of a pod may take. Many pods start at once on two cores.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The image of all test pods.
pub const BUSYBOX: &str = "docker.io/library/busybox:latest";

/// The namespace of a case.
#[derive(Clone)]
pub struct Ns {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// The namespace's name.
    pub name: String,
}

/// Runs `test` in a fresh namespace. On failure the state is printed; at the end the namespace
/// goes, and that it goes is part of the test.
///
/// # Errors
/// The test's, or that the namespace did not come or go.
pub async fn with_temp_ns<F, Fut>(cluster: Arc<Cluster>, name: &str, test: F) -> anyhow::Result<()>
where
    F: FnOnce(Ns) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let object = Namespace {
        metadata: ObjectMeta { generate_name: Some(format!("{name}-")), ..ObjectMeta::default() },
        ..Namespace::default()
    };
    let name = api.create(&PostParams::default(), &object).await.context("creating a namespace")?.name_any();
    let ns = Ns { cluster: cluster.clone(), name: name.clone() };
    // A pod cannot be created before its service account is there.
    let accounts: Api<ServiceAccount> = ns.api();
    wait::until(accounts, "metadata.name=default", "the service account", LIMIT, |_| true).await?;

    let result = AssertUnwindSafe(test(ns.clone())).catch_unwind().await.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        bail!("{text}")
    });
    if result.is_err() {
        dump::namespace(&ns).await;
    }
    api.delete(&name, &DeleteParams::default()).await.context("deleting the namespace")?;
    let gone = wait::until_gone(api, &name, None, LIMIT).await;
    if gone.is_err() && result.is_ok() {
        dump::namespace(&ns).await;
    }
    result.and(gone)
}

impl Ns {
    /// The API of a kind in this namespace.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.cluster.client.clone(), &self.name)
    }

    /// kubectl in this namespace; an exit code that is not 0 is an error.
    ///
    /// # Errors
    /// With what it wrote to standard error.
    pub async fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        let answer = self.kubectl_any(args, "").await?;
        ensure!(answer.code == 0, "kubectl {args:?} ended with {}: {}", answer.code, answer.err);
        Ok(answer.out)
    }

    /// kubectl in this namespace, whatever it answers.
    ///
    /// # Errors
    /// When it cannot be run.
    pub async fn kubectl_any(&self, args: &[&str], stdin: &str) -> anyhow::Result<Answer> {
        let mut all = vec!["-n", &self.name];
        all.extend(args);
        self.cluster.kubectl(&all, stdin).await
    }

    /// Creates an object from JSON.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn create<K>(&self, object: Value) -> anyhow::Result<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
        K::DynamicType: Default,
    {
        let object: K = serde_json::from_value(object).context("the test's own object")?;
        self.api().create(&PostParams::default(), &object).await.context("creating an object")
    }

    /// Waits for a pod to be as `wanted`.
    ///
    /// # Errors
    /// After [`LIMIT`].
    pub async fn pod(&self, name: &str, what: &str, wanted: impl Fn(&Pod) -> bool) -> anyhow::Result<Pod> {
        wait::until(self.api(), &format!("metadata.name={name}"), what, LIMIT, wanted).await
    }

    /// Waits for a pod to be Ready.
    ///
    /// # Errors
    /// After [`LIMIT`].
    pub async fn ready(&self, name: &str) -> anyhow::Result<Pod> {
        self.pod(name, "Ready", |p| condition(p, "Ready") == Some("True")).await
    }

    /// Waits for a pod to have run to its end.
    ///
    /// # Errors
    /// After [`LIMIT`].
    pub async fn ended(&self, name: &str) -> anyhow::Result<Pod> {
        self.pod(name, "its end", |p| ["Succeeded", "Failed"].contains(&phase(p))).await
    }

    /// Waits for a pod's PodFlow to tell of the whole start: it is written after the pod is Ready.
    ///
    /// # Errors
    /// After [`LIMIT`].
    pub async fn whole_flow(&self, pod: &str) -> anyhow::Result<PodFlow> {
        let whole = |f: &PodFlow| f.status.as_ref().is_some_and(|s| s.phase == "Ready");
        wait::until(self.api(), &format!("metadata.name={pod}"), "the whole flow", LIMIT, whole).await
    }

    /// Waits until a container has written a line that is `line`, by following its log.
    ///
    /// # Errors
    /// When the log ends before, or after [`LIMIT`].
    pub async fn until_log(&self, pod: &str, container: &str, line: &str) -> anyhow::Result<()> {
        let params =
            LogParams { container: Some(container.to_owned()), follow: true, ..LogParams::default() };
        let follow = async {
            let mut lines = self.api::<Pod>().log_stream(pod, &params).await?.lines();
            while let Some(found) = lines.try_next().await? {
                if found == line {
                    return Ok(());
                }
            }
            bail!("the log of {pod}/{container} ended without the line {line:?}")
        };
        let late = || format!("the log of {pod}/{container} has no line {line:?} after {LIMIT:?}");
        tokio::time::timeout(LIMIT, follow).await.with_context(late)?
    }

    /// Waits until a pod is gone.
    ///
    /// # Errors
    /// After [`LIMIT`].
    pub async fn gone(&self, pod: &Pod) -> anyhow::Result<()> {
        let (name, uid) = (pod.name_any(), pod.uid());
        wait::until_gone(self.api::<Pod>(), &name, uid.as_deref(), LIMIT).await
    }
}

/// A pod with one busybox container `main` that runs `script`; `spec` is laid over it.
#[must_use]
pub fn pod(name: &str, script: &str, spec: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "schedulerName": "podway",
            "terminationGracePeriodSeconds": 1,
            "containers": [container("main", script)]}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        if key == "main" {
            for (key, value) in value.as_object().into_iter().flatten() {
                pod["spec"]["containers"][0][key] = value.clone();
            }
        } else {
            pod["spec"][key] = value.clone();
        }
    }
    pod
}

/// A busybox container that runs `script`.
#[must_use]
pub fn container(name: &str, script: &str) -> Value {
    json!({"name": name, "image": BUSYBOX, "command": ["sh", "-c", script]})
}

/// A script that stays, and ends at once when it is told to.
pub const STAY: &str = "trap 'exit 0' TERM; sleep 3600 & wait $!";

/// The status of a condition.
#[must_use]
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a str> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    Some(&conditions.iter().find(|c| c.type_ == kind)?.status)
}

/// The phase.
#[must_use]
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// The node; empty before it is bound.
#[must_use]
pub fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

/// The status of a container.
#[must_use]
pub fn status<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    all.into_iter().find(|s| s.name == container)
}

/// Why a container waits: reason and message; empty when it does not.
#[must_use]
pub fn waiting<'a>(pod: &'a Pod, container: &str) -> (&'a str, &'a str) {
    let state = status(pod, container).and_then(|s| s.state.as_ref()?.waiting.as_ref());
    let word = |text: &'a Option<String>| text.as_deref().unwrap_or_default();
    state.map_or(("", ""), |w| (word(&w.reason), word(&w.message)))
}
