//! A node's certificates from a real control plane: asked for with a credential that may do nothing else,
//! signed by the controller manager, renewed, and used without a restart.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test: a panic is its failure")]

mod common;

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use podway_agent::certificates::request::{Name, Purpose};
use podway_agent::certificates::store::Store;
use podway_agent::certificates::{bootstrap, request, rotate, swapping};
use podway_cluster::pki::{Authority, Identity};
use podway_cluster::{Cluster, kubeconfig};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

const NODE: &str = "late";

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_and_renews_its_certificates() {
    common::on_control_plane("csr-", whole).await;
}

/// As kubeadm has them: who may ask for a first certificate and a next one, and gets it.
async fn allow(client: &Client) {
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    let requests = "system:certificates.k8s.io:certificatesigningrequests";
    for (name, role, group) in [
        ("bootstrap", "system:node-bootstrapper".to_owned(), "system:bootstrappers"),
        ("first", format!("{requests}:nodeclient"), "system:bootstrappers"),
        ("next", format!("{requests}:selfnodeclient"), "system:nodes"),
    ] {
        let binding = json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}]});
        let binding = serde_json::from_value(binding).unwrap();
        bindings.create(&PostParams::default(), &binding).await.unwrap();
    }
}

async fn who(client: &Client) -> String {
    let api: Api<SelfSubjectReview> = Api::all(client.clone());
    let review = api.create(&PostParams::default(), &SelfSubjectReview::default()).await.unwrap();
    review.status.unwrap().user_info.unwrap().username.unwrap()
}

async fn whole(cluster: &Cluster, dir: &Path) {
    allow(&cluster.client).await;
    let authority = Authority::open(&cluster.layout).unwrap();
    authority
        .issue(&Identity::client("joiner", "system:bootstrap:abcdef", &["system:bootstrappers"]))
        .unwrap();
    let (from, to, pki) = (dir.join("bootstrap"), dir.join("kubeconfig"), dir.join("pki"));
    kubeconfig::write(&cluster.layout, &from, "joiner", &cluster.server).unwrap();

    common::within("a first certificate", bootstrap(&from, &to, &pki, NODE)).await.unwrap();
    let swap = swapping(&to).await.unwrap();
    let client = swap.client();
    assert_eq!(who(&client).await, format!("system:node:{NODE}"));
    let store = Store::new(&pki, Purpose::Client.pair());
    let first = std::fs::canonicalize(store.path()).unwrap();
    let text = std::fs::read(&first).unwrap();

    // One that is valid is left alone.
    bootstrap(&from, &to, &pki, NODE).await.unwrap();
    assert_eq!(std::fs::read(store.path()).unwrap(), text);

    // The next one has another key, and is what the same client uses.
    common::within("the next one", rotate::renew(&swap, &store, NODE)).await.unwrap();
    assert_ne!(std::fs::read(store.path()).unwrap(), text);
    assert_eq!(who(&client).await, format!("system:node:{NODE}"));
    let node = json!({"metadata": {"name": NODE}});
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
    let requests: Api<CertificateSigningRequest> = Api::all(cluster.client.clone());
    let all = requests.list(&ListParams::default()).await.unwrap().items;
    let mut users: Vec<_> = all.iter().filter_map(|r| r.spec.username.clone()).collect();
    users.sort();
    assert_eq!(users, ["system:bootstrap:abcdef", &format!("system:node:{NODE}")]);

    // What the kubelet API serves is approved by a person; what is denied is told with the reason.
    let names = [Name::Dns(NODE.to_owned()), Name::Ip([10, 0, 0, 9].into())];
    let serving = Store::new(&pki, Purpose::Serving.pair());
    let ask =
        || request::certificate(&client, &serving, Purpose::Serving, NODE, &names, Duration::from_secs(60));
    let judge = |verdict: &'static str| {
        let requests = requests.clone();
        async move {
            let mut events = std::pin::pin!(
                watcher(requests.clone(), watcher::Config::default()).default_backoff().applied_objects()
            );
            while let Some(seen) = futures::StreamExt::next(&mut events).await {
                let Ok(seen) = seen else { continue };
                let open = seen.status.as_ref().is_none_or(|s| s.conditions.is_none());
                if seen.spec.signer_name == "kubernetes.io/kubelet-serving" && open {
                    let condition =
                        json!({"type": verdict, "status": "True", "reason": "Asked", "message": "by hand"});
                    let patch = Patch::Merge(json!({"status": {"conditions": [condition]}}));
                    let name = seen.metadata.name.unwrap();
                    requests.patch_approval(&name, &PatchParams::default(), &patch).await.unwrap();
                    return;
                }
            }
        }
    };
    let (denied, ()) = futures::future::join(ask(), judge("Denied")).await;
    let denied = denied.map(drop).unwrap_err().to_string();
    assert!(denied.contains("is denied, reason: Asked, message: by hand"), "{denied}");
    let (signed, ()) = futures::future::join(ask(), judge("Approved")).await;
    serving.update(&signed.unwrap()).unwrap();
    let pem = std::fs::read(serving.path()).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
    let parsed = pem.parse_x509().unwrap();
    assert_eq!(parsed.subject().to_string(), format!("O=system:nodes, CN=system:node:{NODE}"));
    let names = parsed.subject_alternative_name().unwrap().unwrap().value.general_names.len();
    assert_eq!(names, 2);
}
