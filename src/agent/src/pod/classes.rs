//! RuntimeClasses: which handler of the runtime a pod is run with (pkg/kubelet/runtimeclass). By one watch, so that
//! no start asks the API server.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::runtime::reflector::{ObjectRef, Store};

/// The RuntimeClasses of the cluster.
#[derive(Clone)]
pub struct Classes(Store<RuntimeClass>);

impl Classes {
    /// Those that a watch keeps in `store`.
    #[must_use]
    pub fn new(store: Store<RuntimeClass>) -> Self {
        Classes(store)
    }

    /// The handler of the pod's class; the empty one, which is the runtime's default, where it names none.
    ///
    /// # Errors
    /// Upstream's word for a class that is not there.
    pub async fn handler(&self, pod: &Pod) -> Result<String, String> {
        let class = pod.spec.as_ref().and_then(|s| s.runtime_class_name.as_deref()).unwrap_or_default();
        if class.is_empty() {
            return Ok(String::new());
        }
        let ready = self.0.wait_until_ready().await;
        let found = self.0.get(&ObjectRef::new(class));
        match (found, ready) {
            (Some(found), _) => Ok(found.handler.clone()),
            (None, Ok(())) => Err(format!("runtimeclass.node.k8s.io {class:?} not found")),
            (None, Err(_)) => Err("the watch of RuntimeClasses has ended".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::runtime::{reflector, watcher};
    use serde_json::json;

    fn pod(class: Option<&str>) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [], "runtimeClassName": class}})).unwrap()
    }

    #[tokio::test]
    async fn a_class_is_not_its_handler() {
        let (store, mut writer) = reflector::store();
        let classes = Classes::new(store);
        assert_eq!(classes.handler(&pod(None)).await.unwrap(), "", "without a class nothing is waited for");
        let fast: RuntimeClass =
            serde_json::from_value(json!({"metadata": {"name": "fast"}, "handler": "crun"})).unwrap();
        for event in [watcher::Event::Init, watcher::Event::InitApply(fast), watcher::Event::InitDone] {
            writer.apply_watcher_event(&event);
        }
        assert_eq!(classes.handler(&pod(Some("fast"))).await.unwrap(), "crun");
        let error = classes.handler(&pod(Some("crun"))).await.unwrap_err();
        assert_eq!(error, "runtimeclass.node.k8s.io \"crun\" not found");
    }
}
