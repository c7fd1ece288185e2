//! What the runtime says of itself over CRI, and what of it makes a node not ready.

use async_trait::async_trait;
use podway_cri::v1;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tonic::transport::Channel;

/// How long the runtime may be silent before the node says so (`baseRuntimeSyncThreshold`).
pub const SILENCE: Duration = Duration::from_secs(30);
/// How long one call may take.
const CALL: Duration = Duration::from_secs(10);

/// What one look at the runtime gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// `name://version`.
    pub version: String,
    /// The conditions of its status.
    pub conditions: Vec<v1::RuntimeCondition>,
    /// Its handlers (RuntimeClass).
    pub handlers: Vec<v1::RuntimeHandler>,
    /// Its features; none where it does not say.
    pub features: Option<v1::RuntimeFeatures>,
    /// The images that it has.
    pub images: Vec<v1::Image>,
    /// Where they lie.
    pub image_dir: Option<PathBuf>,
}

/// Looks at the runtime.
#[async_trait]
pub trait Probe: Send + Sync {
    /// One look.
    ///
    /// # Errors
    /// The CRI status of the call that failed.
    async fn observe(&self) -> Result<Observation, tonic::Status>;
}

/// Looks over CRI.
#[derive(Clone, Debug)]
pub struct CriProbe(pub Channel);

#[async_trait]
impl Probe for CriProbe {
    async fn observe(&self) -> Result<Observation, tonic::Status> {
        let mut runtime = podway_cri::client::runtime(self.0.clone());
        let mut other = runtime.clone();
        let mut images = podway_cri::client::image(self.0.clone());
        let mut room = images.clone();
        let calls = async {
            tokio::join!(
                runtime.version(v1::VersionRequest { version: "0.1.0".to_owned() }),
                other.status(v1::StatusRequest { verbose: false }),
                images.list_images(v1::ListImagesRequest::default()),
                room.image_fs_info(v1::ImageFsInfoRequest {}),
            )
        };
        let late = |_| tonic::Status::deadline_exceeded("the runtime does not answer");
        let (version, status, images, room) = tokio::time::timeout(CALL, calls).await.map_err(late)?;
        let (version, status) = (version?.into_inner(), status?.into_inner());
        let room = room?.into_inner().image_filesystems.into_iter().find_map(|fs| fs.fs_id);
        Ok(Observation {
            version: format!("{}://{}", version.runtime_name, version.runtime_version),
            conditions: status.status.map(|s| s.conditions).unwrap_or_default(),
            handlers: status.runtime_handlers,
            features: status.features,
            images: images?.into_inner().images,
            image_dir: room.map(|fs| PathBuf::from(fs.mountpoint)),
        })
    }
}

/// What is known of the runtime, over time.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The last look that succeeded.
    pub last: Option<Observation>,
    synced: Option<Instant>,
    network_error: Option<String>,
    runtime_error: Option<String>,
}

impl Known {
    /// Takes what a look gave at `now`.
    pub fn take(&mut self, result: Result<Observation, tonic::Status>, now: Instant) {
        let seen = match result {
            Ok(seen) => seen,
            Err(status) => {
                tracing::warn!(code = ?status.code(), message = status.message(), "the runtime cannot be looked at");
                return;
            }
        };
        // The texts are the kubelet's, with Go's form of a missing condition.
        let missing = |kind: &str| {
            let found = seen.conditions.iter().find(|c| c.r#type == kind);
            match found {
                Some(c) if c.status => None,
                Some(c) => Some(format!("{kind}=false reason:{} message:{}", c.reason, c.message)),
                None => Some("<nil>".to_owned()),
            }
        };
        self.network_error =
            missing("NetworkReady").map(|c| format!("container runtime network not ready: {c}"));
        self.runtime_error = missing("RuntimeReady").map(|c| format!("container runtime not ready: {c}"));
        if self.runtime_error.is_none() {
            self.synced = Some(now);
        }
        self.last = Some(seen);
    }

    /// What keeps the node from being ready at `now`: the runtime's part, then the network's, in
    /// the kubelet's words.
    #[must_use]
    pub fn errors(&self, now: Instant) -> [Option<String>; 2] {
        let mut runtime = Vec::new();
        match self.synced {
            None => runtime.push("container runtime status check may not have completed yet".to_owned()),
            Some(at) if now.saturating_duration_since(at) >= SILENCE => {
                runtime.push("container runtime is down".to_owned());
            }
            Some(_) => {}
        }
        runtime.extend(self.runtime_error.clone());
        let network = match (&self.last, &self.network_error) {
            (None, _) => Some("network state unknown".to_owned()),
            (Some(_), error) => error.clone(),
        };
        [joined(&runtime), network]
    }
}

/// Several errors as one text, as apimachinery's `NewAggregate` has it.
#[must_use]
pub fn joined(errors: &[String]) -> Option<String> {
    match errors {
        [] => None,
        [one] => Some(one.clone()),
        many => Some(format!("[{}]", many.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(kind: &str, status: bool) -> v1::RuntimeCondition {
        let (reason, message) =
            if status { ("", "") } else { ("NetworkPluginNotReady", "cni plugin not initialized") };
        v1::RuntimeCondition {
            r#type: kind.to_owned(),
            status,
            reason: reason.to_owned(),
            message: message.to_owned(),
        }
    }

    #[test]
    fn the_kubelets_words() {
        let start = Instant::now();
        let mut known = Known::default();
        assert_eq!(
            known.errors(start),
            [
                Some("container runtime status check may not have completed yet".to_owned()),
                Some("network state unknown".to_owned())
            ]
        );
        let seen = |network| Observation {
            conditions: vec![condition("RuntimeReady", true), condition("NetworkReady", network)],
            ..Observation::default()
        };
        known.take(Ok(seen(false)), start);
        assert_eq!(
            known.errors(start)[1].as_deref(),
            Some(
                "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
                 message:cni plugin not initialized"
            )
        );
        known.take(Ok(seen(true)), start);
        assert_eq!(known.errors(start), [None, None]);
        // Silence is borne for 30 s.
        known.take(Err(tonic::Status::unavailable("gone")), start + Duration::from_secs(29));
        assert_eq!(known.errors(start + Duration::from_secs(29)), [None, None]);
        let down = known.errors(start + SILENCE);
        assert_eq!(down, [Some("container runtime is down".to_owned()), None]);
        known.take(Ok(Observation::default()), start + SILENCE);
        assert_eq!(
            known.errors(start + SILENCE)[0].as_deref(),
            Some("[container runtime is down, container runtime not ready: <nil>]")
        );
    }
}
