//! Probes and hooks as a pod has them, read once into what can be carried out. Pure.

use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::time::Duration;

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Whether the container has started: until then the other two wait.
    Startup,
    /// Whether it takes requests.
    Readiness,
    /// Whether it is to be killed.
    Liveness,
}

impl Kind {
    /// All three, the one that the others wait for first.
    pub const ALL: [Kind; 3] = [Kind::Startup, Kind::Readiness, Kind::Liveness];

    /// As events have it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Readiness => "Readiness",
            Kind::Liveness => "Liveness",
        }
    }
}

/// An HTTP GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpGet {
    /// `scheme: HTTPS`; the certificate is not verified.
    pub tls: bool,
    /// Instead of the pod's address.
    pub host: Option<String>,
    /// The port.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// Headers.
    pub headers: Vec<(String, String)>,
}

/// How something is asked or done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handler {
    /// A command in the container.
    Exec(Vec<String>),
    /// A request.
    Http(HttpGet),
    /// A connection.
    Tcp {
        /// Instead of the pod's address.
        host: Option<String>,
        /// The port.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// The port.
        port: u16,
        /// The service that is asked for; empty for the server.
        service: String,
    },
    /// Nothing, for so long.
    Sleep(Duration),
}

/// A probe with its defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// How it asks, or why it cannot.
    pub handler: Result<Handler, String>,
    /// From the container's start to the first question.
    pub delay: Duration,
    /// From one question to the next.
    pub period: Duration,
    /// For an answer.
    pub timeout: Duration,
    /// So many good answers in a row count.
    pub success: u32,
    /// So many bad answers in a row count.
    pub failure: u32,
    /// The grace of a container that it has killed; the pod's where there is none.
    pub grace: Option<Duration>,
}

/// A container's probes and hooks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Care {
    /// `startupProbe`.
    pub startup: Option<Probe>,
    /// `readinessProbe`.
    pub readiness: Option<Probe>,
    /// `livenessProbe`.
    pub liveness: Option<Probe>,
    /// `lifecycle.postStart`, or why it cannot be done.
    pub post_start: Option<Result<Handler, String>>,
    /// `lifecycle.preStop`, or why it cannot be done.
    pub pre_stop: Option<Result<Handler, String>>,
}

impl Care {
    /// Reads a container's.
    #[must_use]
    pub fn of(container: &api::Container) -> Care {
        let hook = |handler: Option<&api::LifecycleHandler>| {
            handler.map(|h| {
                let sleep = h.sleep.as_ref().map(|s| Handler::Sleep(seconds(Some(s.seconds), 0, 0)));
                let known = exec(h.exec.as_ref())
                    .map(Ok)
                    .or_else(|| h.http_get.as_ref().map(|get| http(get, container)))
                    .or(sleep.map(Ok));
                // A TCP socket as a hook is of no effect upstream, too, but refused when it runs.
                known.unwrap_or_else(|| Err("invalid handler: cannot run handler".to_owned()))
            })
        };
        let lifecycle = container.lifecycle.as_ref();
        Care {
            startup: container.startup_probe.as_ref().map(|p| probe(p, container)),
            readiness: container.readiness_probe.as_ref().map(|p| probe(p, container)),
            liveness: container.liveness_probe.as_ref().map(|p| probe(p, container)),
            post_start: hook(lifecycle.and_then(|l| l.post_start.as_ref())),
            pre_stop: hook(lifecycle.and_then(|l| l.pre_stop.as_ref())),
        }
    }

    /// The probe of a kind.
    #[must_use]
    pub fn probe(&self, kind: Kind) -> Option<&Probe> {
        match kind {
            Kind::Startup => self.startup.as_ref(),
            Kind::Readiness => self.readiness.as_ref(),
            Kind::Liveness => self.liveness.as_ref(),
        }
    }
}

fn seconds<T: Into<i64>>(given: Option<T>, default: u64, least: u64) -> Duration {
    let given = given.map(Into::into).filter(|s| *s != 0);
    Duration::from_secs(given.and_then(|s| u64::try_from(s).ok()).unwrap_or(default).max(least))
}

fn count(given: Option<i32>, default: u32) -> u32 {
    given.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(default)
}

fn exec(action: Option<&api::ExecAction>) -> Option<Handler> {
    action.map(|a| Handler::Exec(a.command.clone().unwrap_or_default()))
}

fn probe(p: &api::Probe, container: &api::Container) -> Probe {
    let tcp = |t: &api::TCPSocketAction| {
        port(&t.port, container).map(|port| Handler::Tcp { host: named(t.host.as_ref()), port })
    };
    let grpc = |g: &api::GRPCAction| {
        let port = u16::try_from(g.port).ok().filter(|p| *p > 0);
        port.map(|port| Handler::Grpc { port, service: g.service.clone().unwrap_or_default() })
            .ok_or_else(|| format!("invalid port number: {}", g.port))
    };
    let handler = exec(p.exec.as_ref())
        .map(Ok)
        .or_else(|| p.http_get.as_ref().map(|get| http(get, container)))
        .or_else(|| p.tcp_socket.as_ref().map(tcp))
        .or_else(|| p.grpc.as_ref().map(grpc))
        .unwrap_or_else(|| Err(format!("missing probe handler for {}", container.name)));
    Probe {
        handler,
        delay: seconds(p.initial_delay_seconds, 0, 0),
        period: seconds(p.period_seconds, 10, 1),
        timeout: seconds(p.timeout_seconds, 1, 1),
        success: count(p.success_threshold, 1),
        failure: count(p.failure_threshold, 3),
        grace: p
            .termination_grace_period_seconds
            .and_then(|s| u64::try_from(s).ok())
            .map(Duration::from_secs),
    }
}

fn named(host: Option<&String>) -> Option<String> {
    host.filter(|h| !h.is_empty()).cloned()
}

fn http(get: &api::HTTPGetAction, container: &api::Container) -> Result<Handler, String> {
    let path = get.path.clone().unwrap_or_default();
    let path = if path.starts_with('/') { path } else { format!("/{path}") };
    Ok(Handler::Http(HttpGet {
        tls: get.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
        host: named(get.host.as_ref()),
        port: port(&get.port, container)?,
        path,
        headers: get.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
    }))
}

/// A port by number or by the name that it has in its container.
fn port(port: &IntOrString, container: &api::Container) -> Result<u16, String> {
    let (number, shown) = match port {
        IntOrString::Int(n) => (Some(*n), n.to_string()),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_ref() == Some(name));
            let number = named.map(|p| p.container_port).or_else(|| name.parse().ok());
            match number {
                Some(_) => (number, name.clone()),
                None => return Err(format!("couldn't find port: {name} in container {}", container.name)),
            }
        }
    };
    number
        .and_then(|n| u16::try_from(n).ok())
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("invalid port number: {shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn care(container: serde_json::Value) -> Care {
        Care::of(&serde_json::from_value(container).unwrap())
    }

    #[test]
    fn what_a_pod_leaves_out_has_the_kubelets_defaults() {
        let care = care(json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}],
            "livenessProbe": {"httpGet": {"port": "web"}},
            "readinessProbe": {"exec": {"command": ["true"]}, "initialDelaySeconds": 3, "periodSeconds": 1,
                "timeoutSeconds": 2, "successThreshold": 4, "failureThreshold": 5},
            "startupProbe": {"grpc": {"port": 5000, "service": "s"}, "terminationGracePeriodSeconds": 7},
            "lifecycle": {"postStart": {"sleep": {"seconds": 0}}, "preStop": {"tcpSocket": {"port": 1}}}}));
        let live = care.liveness.unwrap();
        let get = HttpGet { tls: false, host: None, port: 8080, path: "/".into(), headers: vec![] };
        assert_eq!(live.handler, Ok(Handler::Http(get)));
        let secs = |d: Duration| d.as_secs();
        assert_eq!((secs(live.delay), secs(live.period), secs(live.timeout)), (0, 10, 1));
        assert_eq!((live.success, live.failure, live.grace), (1, 3, None));
        let ready = care.readiness.unwrap();
        assert_eq!((secs(ready.delay), secs(ready.period), secs(ready.timeout)), (3, 1, 2));
        assert_eq!((ready.success, ready.failure), (4, 5));
        let start = care.startup.unwrap();
        assert_eq!(start.handler, Ok(Handler::Grpc { port: 5000, service: "s".into() }));
        assert_eq!(start.grace, Some(Duration::from_secs(7)));
        assert_eq!(care.post_start, Some(Ok(Handler::Sleep(Duration::ZERO))));
        assert!(care.pre_stop.unwrap().is_err());
    }

    #[test]
    fn a_port_that_is_none_is_told_when_it_is_asked() {
        for (port, why) in [
            (json!("web"), "couldn't find port: web in container c"),
            (json!(0), "invalid port number: 0"),
            (json!(70000), "invalid port number: 70000"),
        ] {
            let care = care(json!({"name": "c", "livenessProbe": {"tcpSocket": {"port": port}}}));
            assert_eq!(care.liveness.unwrap().handler, Err(why.to_owned()));
        }
    }
}
