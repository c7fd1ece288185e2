//! `/metrics/probes`: how often each probe had which answer. Kept apart from the agent's metrics, as
//! the kubelet does: these have pods' names as labels, and go with their pods.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

/// Whose probe, and its answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    /// The pod.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// The container.
    pub container: String,
    /// `Liveness`, `Readiness`, `Startup`.
    pub kind: &'static str,
    /// `successful`, `failed`, `unknown`.
    pub result: &'static str,
}

/// The counts.
#[derive(Debug, Default)]
pub struct Probes(Mutex<BTreeMap<Series, u64>>);

impl Probes {
    /// One more answer.
    pub fn count(&self, series: Series) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(series).or_default() += 1;
    }

    /// The pod is gone.
    pub fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|series, _| series.uid != uid);
    }

    /// All of them in Prometheus' text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::from(
            "# HELP prober_probe_total [BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.\n# TYPE prober_probe_total counter\n",
        );
        for (s, n) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            // The names are DNS labels: nothing in them needs an escape.
            let _ = writeln!(
                text,
                "prober_probe_total{{container=\"{}\",namespace=\"{}\",pod=\"{}\",pod_uid=\"{}\",probe_type=\"{}\",result=\"{}\"}} {n}",
                s.container, s.namespace, s.pod, s.uid, s.kind, s.result
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_with_their_pod() {
        let probes = Probes::default();
        let series = |uid: &str, result| Series {
            uid: uid.into(),
            namespace: "n".into(),
            pod: "p".into(),
            container: "c".into(),
            kind: "Readiness",
            result,
        };
        probes.count(series("u", "failed"));
        probes.count(series("u", "failed"));
        probes.count(series("v", "successful"));
        let line = "prober_probe_total{container=\"c\",namespace=\"n\",pod=\"p\",pod_uid=\"u\",probe_type=\"Readiness\",result=\"failed\"} 2\n";
        assert!(probes.text().contains(line), "{}", probes.text());
        probes.forget("u");
        assert!(!probes.text().contains("pod_uid=\"u\"") && probes.text().contains("pod_uid=\"v\""));
    }
}
