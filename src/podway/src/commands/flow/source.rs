//! Where flows are read from: one pod's, and those of many, with their events where a `PodFlow` is missing.

use crate::commands::Hinted;
use crate::commands::flow::text;
use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use podway_api::{PodFlow, join, stock};
use podway_flow::audit::{self, Collector};
use podway_flow::{Flow, Outcome, Phase};
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// How long a `PodFlow` may come after what it tells of: it is written after the status.
pub(super) const SETTLE: std::time::Duration = std::time::Duration::from_secs(2);
/// How many objects one page of a list has.
const PAGE: u32 = 500;

/// Where a pod's flow is read from.
pub(crate) struct Source {
    pub(super) client: Client,
    pub(super) namespace: String,
    pub(super) name: String,
    audit_log: Option<PathBuf>,
}

impl Source {
    /// The flow of a pod, with steps 1 to 3 from an audit log where there is one.
    pub(crate) fn new(client: Client, namespace: &str, name: &str, audit_log: Option<PathBuf>) -> Self {
        Source { client, namespace: namespace.to_owned(), name: name.to_owned(), audit_log }
    }

    /// The waterfall as it is once the pod's `PodFlow` is whole, or soon after.
    pub(crate) async fn picture(&self) -> anyhow::Result<String> {
        let flows: Api<PodFlow> = Api::namespaced(self.client.clone(), &self.namespace);
        let whole = |object: Option<&PodFlow>| {
            let flow = object.map(PodFlow::to_flow);
            flow.and_then(|f| Some(f.summary(Phase::Ready)?.outcome == Outcome::Succeeded)) == Some(true)
        };
        let wait = kube::runtime::wait::await_condition(flows, &self.name, whole);
        // Without it there is still the pod's own object to read.
        drop(tokio::time::timeout(SETTLE, wait).await);
        Ok(text(&self.flow().await?, None, false))
    }

    pub(super) async fn flow(&self) -> anyhow::Result<Flow> {
        self.flow_of(&self.pod().await?).await
    }

    /// The pod.
    pub(crate) async fn pod(&self) -> anyhow::Result<Pod> {
        let name = &self.name;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let pod = pods.get_opt(name).await.with_context(|| {
            Hinted::new(
                format!("reading pod {}/{name}", self.namespace),
                "is the API server up, and may you read pods?",
            )
        })?;
        pod.ok_or_else(|| {
            let hint = "kubectl get pods -A shows where it is; -n NS sets the namespace";
            anyhow::Error::new(Hinted::new(format!("pod {}/{name} does not exist", self.namespace), hint))
        })
    }

    /// The flow of a pod whose object is at hand.
    pub(crate) async fn flow_of(&self, pod: &Pod) -> anyhow::Result<Flow> {
        let mut flow = match self.recorded(pod).await? {
            Some(flow) => flow,
            None => stock::flow(pod, &self.events(pod).await?),
        };
        if let Some(path) = &self.audit_log {
            self.add_audit(&mut flow, path)?;
        }
        Ok(flow)
    }

    /// The pod's `PodFlow`, if there is one of this very pod with something in it.
    async fn recorded(&self, pod: &Pod) -> anyhow::Result<Option<Flow>> {
        let flows: Api<PodFlow> = Api::namespaced(self.client.clone(), &self.namespace);
        // A cluster without the CRD answers 404 too: the pod is shown from its own object.
        let object = flows.get_opt(&self.name).await.with_context(|| {
            Hinted::new(
                format!("reading podflow {}/{}", self.namespace, self.name),
                "may you read podflows.podway.dev?",
            )
        })?;
        Ok(join::recorded_of(pod, object.as_ref()))
    }

    async fn events(&self, pod: &Pod) -> anyhow::Result<Vec<Event>> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let of = format!("involvedObject.uid={}", pod.uid().unwrap_or_default());
        let list =
            events.list(&ListParams::default().fields(&of)).await.context("reading the pod's events")?;
        Ok(list.items)
    }

    fn add_audit(&self, flow: &mut Flow, path: &Path) -> anyhow::Result<()> {
        let hint = "podway up writes it to audit.log in its state directory";
        let file = File::open(path)
            .with_context(|| Hinted::new(format!("opening audit log {}", path.display()), hint))?;
        let mut collector = Collector::new(&self.namespace, &self.name);
        collector
            .log(BufReader::new(file))
            .with_context(|| format!("reading audit log {}", path.display()))?;
        audit::overlay(flow, collector.finish());
        Ok(())
    }
}

/// The flows of the pods that a label selector takes, in `namespace` or in all, by namespace and name.
pub(super) async fn many(
    client: &Client,
    namespace: Option<&str>,
    selector: Option<&str>,
) -> anyhow::Result<Vec<Flow>> {
    let scope = namespace.map_or_else(|| "-A".to_owned(), |ns| format!("-n {ns}"));
    let taken = ListParams::default().labels(selector.unwrap_or_default());
    let pods: Vec<Pod> = listed(api(client, namespace), &taken).await.with_context(|| {
        Hinted::new("listing pods", format!("kubectl auth can-i list pods {scope}; is the selector right?"))
    })?;
    let podflows: Vec<PodFlow> = match listed(api(client, namespace), &ListParams::default()).await {
        // A cluster without the CRD: the pods are shown from their own objects.
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        other => other.with_context(|| {
            Hinted::new("listing podflows", format!("kubectl auth can-i list podflows.podway.dev {scope}"))
        })?,
    };
    let told = |pod: &Pod| podflows.iter().any(|f| join::recorded_of(pod, Some(f)).is_some());
    let events: Vec<Event> = if pods.iter().all(told) {
        Vec::new()
    } else {
        let of = ListParams::default().fields("involvedObject.kind=Pod");
        listed(api(client, namespace), &of).await.context("listing events")?
    };
    Ok(join::flows(&pods, &podflows, &events))
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// A whole list, page by page.
async fn listed<K>(api: Api<K>, of: &ListParams) -> kube::Result<Vec<K>>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut of = of.clone().limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api.list(&of).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => of = of.continue_token(&token),
            None => return Ok(all),
        }
    }
}
