//! A pod as the core sees it: read once from the API object, narrow and checked.

use crate::probe::spec::Care;
use k8s_openapi::api::core::v1 as api;
use podway_flow::Micros;
use std::sync::Arc;
use std::time::Duration;

/// Why a pod from the API server is not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ModelError {
    /// A field without which nothing can be done is missing.
    #[error("pod has no {0}: it did not come from an API server")]
    Missing(&'static str),
    /// A name that would leave its place in a path.
    #[error("{field} {value:?} is not a DNS label or subdomain")]
    Name {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: String,
    },
    /// A word outside the field's closed set.
    #[error("{field} {value:?} is not supported")]
    Value {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: String,
    },
}

/// `restartPolicy` of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever the exit code.
    Always,
    /// After a non-zero exit.
    OnFailure,
    /// Never.
    Never,
}

/// `imagePullPolicy` of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// Ask the registry at each start.
    Always,
    /// Pull only what is absent.
    IfNotPresent,
    /// Never pull.
    Never,
}

impl PullPolicy {
    /// Reads a policy; without one, that of the reference's tag.
    ///
    /// # Errors
    /// [`ModelError::Value`] for an unknown word.
    pub fn of(word: Option<&str>, image: &str) -> Result<Self, ModelError> {
        Ok(match word {
            Some("Always") => PullPolicy::Always,
            Some("IfNotPresent") => PullPolicy::IfNotPresent,
            Some("Never") => PullPolicy::Never,
            // The API server defaults the field; the default is repeated for objects that skipped it.
            None | Some("") if latest(image) => PullPolicy::Always,
            None | Some("") => PullPolicy::IfNotPresent,
            Some(other) => return Err(value("imagePullPolicy", other)),
        })
    }
}

/// What a container is in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to exit 0 before the next one.
    Init,
    /// An init container with `restartPolicy: Always`: started before the next one, kept running.
    Sidecar,
    /// A regular container.
    App,
    /// One that `kubectl debug` added: started once, beside all else, and never again.
    Ephemeral,
}

/// A rule of `restartPolicyRules`: on which exit codes a container starts again whatever its policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartRule {
    /// Whether the codes are those that count, or those that do not.
    pub within: bool,
    /// The codes.
    pub codes: Vec<i32>,
}

impl RestartRule {
    /// Whether it speaks of this exit code.
    #[must_use]
    pub fn covers(&self, code: i32) -> bool {
        self.codes.contains(&code) == self.within
    }
}

/// One container.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// Its name, a DNS label.
    pub name: String,
    /// Its image reference as written.
    pub image: String,
    /// When to pull.
    pub pull: PullPolicy,
    /// What it is in its pod.
    pub role: Role,
    /// fnv32a of name and image: a change means a new container.
    pub hash: u32,
    /// Its own `restartPolicy`, which goes before the pod's.
    pub restart: Option<RestartPolicy>,
    /// Its `restartPolicyRules`, which go before both.
    pub rules: Vec<RestartRule>,
    /// Its probes and hooks.
    pub care: Care,
}

/// An ephemeral container.
#[derive(Clone, Debug, PartialEq)]
pub struct Debugger {
    /// As any other.
    pub model: Container,
    /// Its fields, which are those of any other.
    pub given: api::Container,
    /// `targetContainerName`: whose processes it sees.
    pub target: Option<String>,
}

/// That the pod is being deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// `deletionTimestamp`: request time plus grace.
    pub at: Micros,
    /// `deletionGracePeriodSeconds`.
    pub grace: Duration,
}

/// A pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// UID: the identity of the pod and of its owner task.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// Present when the pod is being deleted.
    pub deletion: Option<Deletion>,
    /// `restartPolicy`.
    pub restart: RestartPolicy,
    /// `activeDeadlineSeconds`.
    pub deadline: Option<Duration>,
    /// `terminationGracePeriodSeconds`, 30 s by default.
    pub grace: Duration,
    /// `hostNetwork`.
    pub host_network: bool,
    /// Init containers and sidecars, in order.
    pub init: Vec<Container>,
    /// Regular containers.
    pub apps: Vec<Container>,
    /// Ephemeral containers, in the order in which they were added.
    pub debug: Vec<Debugger>,
    /// The phase that the API server holds, which is final when terminal.
    pub stored_phase: String,
    /// The object itself, for what the core does not decide on.
    pub object: Arc<api::Pod>,
}

impl Pod {
    /// Every container that the pod consists of: init and sidecars in order, then apps.
    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        self.init.iter().chain(&self.apps)
    }

    /// Those, and the ephemeral ones.
    pub fn everyone(&self) -> impl Iterator<Item = &Container> {
        self.containers().chain(self.debug.iter().map(|d| &d.model))
    }

    /// A container by name.
    #[must_use]
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.everyone().find(|c| c.name == name)
    }

    /// Reads an API object.
    ///
    /// # Errors
    /// [`ModelError`] when a field is missing, is not a name, or holds an unknown word.
    pub fn read(object: Arc<api::Pod>) -> Result<Pod, ModelError> {
        let meta = &object.metadata;
        let spec = object.spec.as_ref().ok_or(ModelError::Missing("spec"))?;
        let uid = name("metadata.uid", meta.uid.as_deref())?;
        let restart = match spec.restart_policy.as_deref() {
            None | Some("Always") => RestartPolicy::Always,
            Some("OnFailure") => RestartPolicy::OnFailure,
            Some("Never") => RestartPolicy::Never,
            Some(other) => return Err(value("spec.restartPolicy", other)),
        };
        let init =
            spec.init_containers.iter().flatten().map(|c| container(c, true)).collect::<Result<_, _>>()?;
        let apps = spec.containers.iter().map(|c| container(c, false)).collect::<Result<Vec<_>, _>>()?;
        let debug = spec.ephemeral_containers.iter().flatten().map(debugger).collect::<Result<_, _>>()?;
        if apps.is_empty() {
            return Err(ModelError::Missing("spec.containers"));
        }
        let deletion = meta.deletion_timestamp.as_ref().map(|at| Deletion {
            at: Micros(at.0.as_microsecond()),
            grace: seconds(meta.deletion_grace_period_seconds).unwrap_or(Duration::from_secs(30)),
        });
        Ok(Pod {
            uid,
            namespace: name("metadata.namespace", meta.namespace.as_deref())?,
            name: name("metadata.name", meta.name.as_deref())?,
            generation: meta.generation.unwrap_or(0),
            deletion,
            restart,
            deadline: seconds(spec.active_deadline_seconds),
            grace: seconds(spec.termination_grace_period_seconds).unwrap_or(Duration::from_secs(30)),
            host_network: spec.host_network.unwrap_or(false),
            init,
            apps,
            debug,
            stored_phase: object.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default(),
            object: Arc::clone(&object),
        })
    }

    /// Whether the API server holds that it is over, which is final.
    #[must_use]
    pub fn stored_over(&self) -> bool {
        matches!(self.stored_phase.as_str(), "Succeeded" | "Failed")
    }
}

fn seconds(value: Option<i64>) -> Option<Duration> {
    value.map(|s| Duration::from_secs(u64::try_from(s).unwrap_or(0)))
}

fn value(field: &'static str, value: &str) -> ModelError {
    ModelError::Value { field, value: value.to_owned() }
}

/// A DNS subdomain: what the API server allows, checked again because it becomes part of paths.
fn name(field: &'static str, value: Option<&str>) -> Result<String, ModelError> {
    let value = value.ok_or(ModelError::Missing(field))?;
    let fine = !value.is_empty()
        && value.len() <= 253
        && value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        && !value.starts_with(['.', '-'])
        && !value.contains("..");
    if fine { Ok(value.to_owned()) } else { Err(ModelError::Name { field, value: value.to_owned() }) }
}

fn container(c: &api::Container, init: bool) -> Result<Container, ModelError> {
    let image = c.image.clone().unwrap_or_default();
    let pull = PullPolicy::of(c.image_pull_policy.as_deref(), &image)?;
    let restart = match c.restart_policy.as_deref() {
        None => None,
        Some("Always") => Some(RestartPolicy::Always),
        Some("OnFailure") => Some(RestartPolicy::OnFailure),
        Some("Never") => Some(RestartPolicy::Never),
        Some(other) => return Err(value("containers[].restartPolicy", other)),
    };
    let role = match (init, restart) {
        (true, Some(RestartPolicy::Always)) => Role::Sidecar,
        (true, _) => Role::Init,
        (false, _) => Role::App,
    };
    let rules = c.restart_policy_rules.iter().flatten().map(rule).collect::<Result<_, _>>()?;
    let identity = serde_json::json!({ "name": c.name, "image": image }).to_string();
    Ok(Container {
        name: name("containers[].name", Some(&c.name))?,
        hash: fnv32a(identity.as_bytes()),
        image,
        pull,
        role,
        restart,
        rules,
        care: Care::of(c),
    })
}

fn rule(given: &api::ContainerRestartRule) -> Result<RestartRule, ModelError> {
    if given.action != "Restart" {
        return Err(value("containers[].restartPolicyRules[].action", &given.action));
    }
    let codes = given.exit_codes.as_ref().ok_or(ModelError::Missing("restartPolicyRules[].exitCodes"))?;
    let within = match codes.operator.as_str() {
        "In" => true,
        "NotIn" => false,
        other => return Err(value("containers[].restartPolicyRules[].exitCodes.operator", other)),
    };
    Ok(RestartRule { within, codes: codes.values.clone().unwrap_or_default() })
}

/// An ephemeral container has the fields of any other, and names whom it is for.
fn debugger(given: &api::EphemeralContainer) -> Result<Debugger, ModelError> {
    let fields = serde_json::to_value(given).and_then(serde_json::from_value::<api::Container>);
    let fields = fields.map_err(|_| ModelError::Missing("ephemeralContainers[]"))?;
    let model = Container { role: Role::Ephemeral, ..container(&fields, false)? };
    let target = given.target_container_name.clone().filter(|t| !t.is_empty());
    Ok(Debugger { model, given: fields, target })
}

/// Whether a reference means `:latest`: no tag and no digest, or that tag.
fn latest(image: &str) -> bool {
    let last = image.rsplit('/').next().unwrap_or(image);
    !last.contains('@') && last.rsplit_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// 32-bit FNV-1a: stable over releases, as restarted agents must find their containers again.
fn fnv32a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, b| (hash ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A pod from JSON of its spec.
    pub(crate) fn pod(spec: serde_json::Value) -> Pod {
        let object = serde_json::json!({
            "metadata": {"uid": "u-1", "namespace": "ns", "name": "p", "generation": 3}, "spec": spec,
        });
        Pod::read(Arc::new(serde_json::from_value(object).unwrap())).unwrap()
    }

    #[test]
    fn pull_policy_defaults_follow_the_tag() {
        for (image, expected) in [
            ("busybox", PullPolicy::Always),
            ("r:5000/busybox", PullPolicy::Always),
            ("busybox:latest", PullPolicy::Always),
            ("busybox:1", PullPolicy::IfNotPresent),
            ("busybox@sha256:00", PullPolicy::IfNotPresent),
        ] {
            let p = pod(serde_json::json!({"containers": [{"name": "c", "image": image}]}));
            assert_eq!(p.apps[0].pull, expected, "{image}");
        }
    }

    #[test]
    fn rules_and_ephemeral_containers_are_read() {
        let p = pod(serde_json::json!({"containers": [{"name": "c", "image": "i", "restartPolicy": "Never",
            "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}},
                {"action": "Restart", "exitCodes": {"operator": "NotIn", "values": [0, 1]}}]}],
            "ephemeralContainers": [{"name": "d", "image": "j", "targetContainerName": "c", "stdin": true}]}));
        let app = &p.apps[0];
        assert_eq!(app.restart, Some(RestartPolicy::Never));
        assert_eq!([42, 1, 3].map(|code| app.rules.iter().any(|r| r.covers(code))), [true, false, true]);
        let debug = &p.debug[0];
        assert_eq!((debug.model.role, debug.target.as_deref()), (Role::Ephemeral, Some("c")));
        assert_eq!(
            (debug.given.stdin, p.container("d").map(|c| c.hash)),
            (Some(true), Some(debug.model.hash))
        );
        assert_eq!(p.containers().count(), 1, "an ephemeral container is no part of its pod");
    }

    #[test]
    fn a_name_never_leaves_its_directory() {
        for bad in ["..", "a/b", "", "A", "-x", "a\0"] {
            assert!(matches!(name("f", Some(bad)), Err(ModelError::Name { .. })), "{bad:?}");
        }
        assert_eq!(name("f", Some("web-0.x")).unwrap(), "web-0.x");
        assert_eq!(fnv32a(b"foobar"), 0xbf9c_f968);
    }
}
