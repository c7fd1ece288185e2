//! Runs the cases: a cluster after the other, a pod after the other, each decided by both.

use super::generate::{NAMESPACES, PRIORITIES, Round};
use super::oracle::Stock;
use super::ours::{Decided, Verdict, cluster, decide};
use super::profiles;
use super::random::Random;
use super::shadow::Shadowed;
use anyhow::{Context as _, anyhow, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use podway_scheduler::extender::Extender;
use podway_scheduler::framework::Framework;
use podway_scheduler::model::PodInfo;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How long either side may take for a pod.
const LIMIT: Duration = Duration::from_secs(30);
/// How often a case is put again when the two differ: the stock scheduler's informers may be behind what
/// the API server says, and it can only be asked again.
const TRIES: usize = 6;
/// Pods per cluster.
const PODS: usize = 12;

/// What came out.
#[derive(Default)]
pub struct Report {
    /// Cases that were compared.
    pub cases: usize,
    /// Cases that had to be put again.
    pub again: usize,
    /// Pods that the API server did not take.
    pub refused: usize,
    /// How often each plugin had a say, and which.
    pub by: BTreeMap<(String, &'static str), usize>,
    /// What the stock scheduler's /metrics said in the end.
    pub metrics: String,
    /// The differences, with what made them.
    pub differences: Vec<String>,
    /// What ours said as a shadow in the end.
    pub shadowed: Shadowed,
}

/// What the stock scheduler did.
#[derive(Debug, PartialEq)]
enum Seen {
    /// Bound, or on the way to it.
    Placed(String),
    /// Refused: reason, message, and where it is nominated to.
    Refused(String, String, String),
}

/// The API, the stock scheduler, and what was found.
pub struct Driver<'a> {
    client: Client,
    stock: &'a Stock,
    frameworks: BTreeMap<&'static str, Arc<Framework>>,
    report: Report,
}

impl<'a> Driver<'a> {
    /// Makes what every round needs.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn new(client: Client, stock: &'a Stock, extender: Arc<dyn Extender>) -> anyhow::Result<Self> {
        let frameworks = profiles::frameworks(&client, &extender)?;
        let driver = Driver { client, stock, frameworks, report: Report::default() };
        for name in NAMESPACES {
            driver.make("Namespace", &json!({"metadata": {"name": name, "labels": {"team": name}}})).await?;
            let account = json!({"metadata": {"name": "default", "namespace": name}});
            driver.make("ServiceAccount", &account).await?;
        }
        for (name, value, preempts) in PRIORITIES {
            let policy = if preempts { "PreemptLowerPriority" } else { "Never" };
            let class = json!({"metadata": {"name": name}, "value": value, "preemptionPolicy": policy});
            driver.make("PriorityClass", &class).await?;
        }
        Ok(driver)
    }

    /// Runs so many cases from a seed.
    ///
    /// # Errors
    /// When a side does not answer.
    pub async fn run(mut self, seed: u64, cases: usize) -> anyhow::Result<Report> {
        for number in 0.. {
            if self.report.cases >= cases {
                break;
            }
            // Each round has a seed of its own, so that one can be run alone.
            let round_seed = seed.wrapping_add(u64::try_from(number)?);
            let mut random = Random::new(round_seed);
            let round = Round::new(&mut random, number);
            self.build(&round).await.with_context(|| format!("round {number}"))?;
            for i in 0..PODS {
                let pod = round.pending(&mut random, i);
                self.case(&pod).await.with_context(|| format!("round {number}, pod {i}: {pod}"))?;
            }
            self.clear().await?;
            if number % 10 == 9 {
                let Report { cases, differences, .. } = &self.report;
                eprintln!("{cases} cases, {} differences", differences.len());
            }
        }
        Ok(self.report)
    }

    fn api(&self, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
        let (group, version) = match kind {
            "CSIDriver" | "CSINode" | "CSIStorageCapacity" | "StorageClass" => ("storage.k8s.io", "v1"),
            "PodDisruptionBudget" => ("policy", "v1"),
            "ReplicaSet" => ("apps", "v1"),
            "PriorityClass" => ("scheduling.k8s.io", "v1"),
            _ => ("", "v1"),
        };
        let mut resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        if kind == "CSIStorageCapacity" {
            resource.plural = "csistoragecapacities".to_owned();
        }
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// Makes an object, then its status.
    async fn make(&self, kind: &str, object: &Value) -> anyhow::Result<()> {
        let api = self.api(kind, object["metadata"]["namespace"].as_str());
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let whole: DynamicObject = serde_json::from_value(object.clone())?;
        match api.create(&PostParams::default(), &whole).await {
            Ok(_) => {}
            // A default service account, and what an earlier run has left.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error).with_context(|| format!("{kind} {object}")),
        }
        if object.get("status").is_some() {
            let patch = Patch::Merge(json!({"status": object["status"]}));
            api.patch_status(name, &PatchParams::default(), &patch)
                .await
                .with_context(|| format!("the status of {kind} {object}"))?;
        }
        Ok(())
    }

    async fn build(&self, round: &Round) -> anyhow::Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        futures::stream::iter(&round.nodes)
            .map(Ok::<_, anyhow::Error>)
            .try_for_each_concurrent(8, |node| {
                let nodes = &nodes;
                async move {
                    self.make("Node", node).await?;
                    // Admission taints what is not ready yet.
                    let taints = Patch::Merge(json!({"spec": {"taints": node["spec"]["taints"]}}));
                    let name = node["metadata"]["name"].as_str().unwrap_or_default();
                    nodes.patch(name, &PatchParams::default(), &taints).await?;
                    Ok(())
                }
            })
            .await?;
        for (kind, object) in &round.objects {
            self.make(kind, object).await?;
        }
        futures::stream::iter(&round.placed)
            .map(Ok::<_, anyhow::Error>)
            .try_for_each_concurrent(8, |pod| self.make("Pod", pod))
            .await
    }

    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Takes away what the next round must not see. Volumes and classes have names of the round.
    async fn clear(&self) -> anyhow::Result<()> {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        let all = ListParams::default();
        for namespace in NAMESPACES {
            for kind in ["Pod", "PodDisruptionBudget", "ReplicaSet"] {
                self.api(kind, Some(namespace)).delete_collection(&now, &all).await?;
            }
            let services = self.api("Service", Some(namespace));
            for service in services.list(&all).await?.items {
                services.delete(&service.metadata.name.unwrap_or_default(), &now).await?;
            }
        }
        self.api("Node", None).delete_collection(&now, &all).await?;
        Ok(())
    }

    /// One pod, by both, until they agree or have differed too often.
    async fn case(&mut self, pod: &Value) -> anyhow::Result<()> {
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        let base = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let mut difference = None;
        for attempt in 0..TRIES {
            let name = format!("{base}-{attempt}");
            let mut pod = pod.clone();
            pod["metadata"]["name"] = json!(name);
            let mut cache = cluster(&self.client).await?;
            let position = self.stock.position()?;
            let api = self.pods(&namespace);
            let made = match api.create(&PostParams::default(), &serde_json::from_value(pod.clone())?).await {
                Ok(made) => made,
                Err(kube::Error::Api(status)) if status.code == 422 || status.code == 400 => {
                    self.report.refused += 1;
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
            let pod_info = PodInfo::parse(&made)?.keeping(&made);
            let by = pod_info.scheduler_name.as_str();
            let framework = self.frameworks.get(by).with_context(|| format!("no profile {by}"))?;
            let ours = tokio::task::block_in_place(|| decide(&mut cache, &pod_info, framework));
            let seen = self.seen(&api, &name).await?;
            difference = self.compare(&namespace, &name, &ours, &seen, position).await?;
            self.forget(&api, &name).await?;
            if difference.is_none() {
                self.report.cases += 1;
                self.report.again += usize::from(attempt > 0);
                let profile = (format!("profile {}", pod_info.scheduler_name), "decided");
                for by in ours.by.into_iter().chain([profile]) {
                    *self.report.by.entry(by).or_insert(0) += 1;
                }
                return Ok(());
            }
        }
        self.report.cases += 1;
        let difference = format!("{}\n  of {pod}", difference.unwrap_or_default());
        eprintln!("{difference}");
        self.report.differences.push(difference);
        Ok(())
    }

    /// What the stock scheduler says first.
    async fn seen(&self, api: &Api<Pod>, name: &str) -> anyhow::Result<Seen> {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut stream = std::pin::pin!(watcher(api.clone(), config).default_backoff().applied_objects());
        let first = async {
            while let Some(pod) = stream.next().await {
                if let Some(seen) = pod.ok().as_ref().and_then(seen) {
                    return Ok(seen);
                }
            }
            bail!("the watch ended")
        };
        tokio::time::timeout(LIMIT, first).await.map_err(|_| anyhow!("no verdict on {name}"))?
    }

    async fn forget(&self, api: &Api<Pod>, name: &str) -> anyhow::Result<()> {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        api.delete(name, &now).await?;
        Ok(())
    }

    /// `None` when both agree.
    async fn compare(
        &self,
        namespace: &str,
        name: &str,
        ours: &Decided,
        seen: &Seen,
        position: u64,
    ) -> anyhow::Result<Option<String>> {
        match (&ours.verdict, seen) {
            (Verdict::Place { best, scores }, Seen::Placed(node)) => {
                let theirs = self.stock.scores(&format!("{namespace}/{name}"), position)?;
                if theirs != *scores {
                    return Ok(Some(format!("scores: ours {scores:?}\n  stock {theirs:?}")));
                }
                Ok((!best.contains(node)).then(|| format!("ours is one of {best:?}, stock took {node}")))
            }
            (Verdict::Refuse { unfit, message, evict }, Seen::Refused(reason, text, nominated)) => {
                if (reason == "Unschedulable") != *unfit || message != text {
                    return Ok(Some(format!("message: ours {message}\n  stock {reason}: {text}")));
                }
                if evict.is_empty() && nominated.is_empty() {
                    return Ok(None);
                }
                let Some(victims) = evict.get(nominated) else {
                    return Ok(Some(format!("nominated: ours {evict:?}, stock {nominated:?}")));
                };
                let gone = self.evicted(nominated, victims).await?;
                Ok((gone != *victims).then(|| format!("victims: ours {victims:?}, stock {gone:?}")))
            }
            (Verdict::Place { best, .. }, other) => {
                Ok(Some(format!("ours places on {best:?}, stock {other:?}")))
            }
            (Verdict::Refuse { message, .. }, other) => {
                Ok(Some(format!("ours refuses: {message}\n  stock {other:?}")))
            }
        }
    }

    /// The pods that an event of the stock scheduler names as preempted on the node, once `wanted` are
    /// all gone or it has had its time.
    async fn evicted(&self, node: &str, wanted: &BTreeSet<String>) -> anyhow::Result<BTreeSet<String>> {
        let gone = async {
            for key in wanted {
                let (namespace, name) = key.split_once('/').unwrap_or_default();
                let api = self.pods(namespace);
                kube::runtime::wait::await_condition(api, name, |pod: Option<&Pod>| {
                    pod.is_none_or(|p| p.metadata.deletion_timestamp.is_some())
                })
                .await?;
            }
            anyhow::Ok(())
        };
        // What has not gone is found by what is left.
        if let Ok(result) = tokio::time::timeout(Duration::from_secs(5), gone).await {
            result?;
        }
        let suffix = format!(" on node {node}");
        let mut out = BTreeSet::new();
        for namespace in NAMESPACES {
            let events = self.api("Event", Some(namespace));
            for event in events.list(&ListParams::default().fields("reason=Preempted")).await?.items {
                let object = &event.data["involvedObject"];
                let name = object["name"].as_str().unwrap_or_default();
                if event.data["message"].as_str().is_some_and(|m| m.ends_with(&suffix)) {
                    out.insert(format!("{namespace}/{name}"));
                }
            }
        }
        // Of an earlier case of the round.
        out.retain(|key| wanted.contains(key));
        Ok(out)
    }
}

fn seen(pod: &Pod) -> Option<Seen> {
    let status = pod.status.as_ref();
    let nominated = status.and_then(|s| s.nominated_node_name.clone()).unwrap_or_default();
    let refused = status.and_then(|s| {
        s.conditions.as_ref()?.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False")
    });
    if let Some(condition) = refused {
        let (reason, message) = (condition.reason.clone(), condition.message.clone());
        return Some(Seen::Refused(reason.unwrap_or_default(), message.unwrap_or_default(), nominated));
    }
    let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
    // A pod whose volumes are to be bound is nominated to its node first.
    [node, nominated].into_iter().find(|n| !n.is_empty()).map(Seen::Placed)
}
