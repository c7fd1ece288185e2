//! An extender that both schedulers ask: about pods that want an extended resource of the generator. What it says
//! hangs on the node's name alone.

use super::generate::{GPU, JUDGED};
use super::profiles;
use axum::Router;
use axum::extract::{Json, Path};
use podway_scheduler::extender::http::HttpExtender;
use podway_scheduler::extender::{Extender, Spec};
use serde_json::{Value, json};
use std::path::Path as File;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// What its score counts.
pub const WEIGHT: i64 = 2;
/// What stands for its URL where scores are compared.
pub const NAME: &str = podway_scheduler::extender::NAME;

/// The extender; it ends with this.
pub struct Judge {
    url: String,
    server: JoinHandle<()>,
}

impl Drop for Judge {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn hash(node: &str) -> u64 {
    node.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)) >> 9
}

fn answer(verb: &str, args: &Value) -> Value {
    let nodes = || args["NodeNames"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let by = |rest: u64| nodes().filter(move |n| hash(n) % 5 == rest);
    match verb {
        "filter" => {
            let failed: serde_json::Map<_, _> = by(0).map(|n| (n.to_owned(), json!("judge: busy"))).collect();
            let broken: serde_json::Map<_, _> =
                by(1).map(|n| (n.to_owned(), json!("judge: broken"))).collect();
            let passed: Vec<&str> = nodes().filter(|n| hash(n) % 5 > 1).collect();
            json!({"NodeNames": passed, "FailedNodes": failed, "FailedAndUnresolvableNodes": broken})
        }
        "prioritize" => nodes().map(|n| json!({"Host": n, "Score": hash(n) / 5 % 11})).collect(),
        _ => {
            let all = args["NodeNameToMetaVictims"].as_object().into_iter().flatten();
            let kept: serde_json::Map<_, _> = all
                .filter(|(n, _)| !hash(n).is_multiple_of(3))
                .map(|(n, v)| (n.clone(), v.clone()))
                .collect();
            json!({"NodeNameToMetaVictims": kept})
        }
    }
}

impl Judge {
    /// Starts it.
    ///
    /// # Errors
    /// When there is no port to be had.
    pub async fn start() -> anyhow::Result<Self> {
        let handle =
            |Path(verb): Path<String>, Json(args): Json<Value>| async move { Json(answer(&verb, &args)) };
        let router = Router::new().route("/{verb}", axum::routing::post(handle));
        let router = router.layer(axum::extract::DefaultBodyLimit::disable());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                eprintln!("the extender ended: {error}");
            }
        });
        Ok(Judge { url, server })
    }

    /// It, as the stock scheduler is told of it.
    #[must_use]
    pub fn configuration(&self, kubeconfig: &File) -> Value {
        json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
            "clientConnection": {"kubeconfig": kubeconfig, "qps": 5000, "burst": 5000},
            "leaderElection": {"leaderElect": false}, "profiles": profiles::configuration(),
            "extenders": [{"urlPrefix": self.url, "filterVerb": "filter", "prioritizeVerb": "prioritize",
                "preemptVerb": "preempt", "weight": WEIGHT, "nodeCacheCapable": true,
                "managedResources": [{"name": GPU}, {"name": JUDGED, "ignoredByScheduler": true}]}]})
    }

    /// It, as ours is told of it.
    ///
    /// # Errors
    /// When no client can be made.
    pub fn extender(&self) -> anyhow::Result<Arc<dyn Extender>> {
        Ok(Arc::new(HttpExtender::new(Spec {
            filter: Some("filter".into()),
            prioritize: Some(("prioritize".into(), WEIGHT)),
            preempt: Some("preempt".into()),
            knows_nodes: true,
            managed: [GPU.to_owned(), JUDGED.to_owned()].into(),
            ignored: [JUDGED.to_owned()].into(),
            ..Spec::new(self.url.clone())
        })?))
    }
}
