//! A volume made ready for a pod.

use super::journal::{self, Use};
use super::policy::{Lifecycle, Policy, Proof};
use super::wanted::{SecretAt, Wanted, digest};
use super::*;
use crate::csi::driver::{Abilities, Driver};
use crate::volumes::{TokenRequest, blocking, make_dir, ownership};
use k8s_openapi::api::core::v1::Pod;
use podway_cri::csi::{NodePublishVolumeRequest, NodeStageVolumeRequest};
use std::collections::BTreeMap;

/// A token's life where nobody says, in seconds.
const TOKEN_SECONDS: i64 = 3600;
/// The key under which a driver finds the pod's tokens.
pub(super) const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// What both calls of a mount are made with.
struct Work<'a> {
    pod: &'a Pod,
    wanted: &'a Wanted,
    policy: &'a Policy,
    driver: Driver,
    can: Abilities,
    /// What attaching it came to.
    attached: BTreeMap<String, String>,
}

/// A pod's use, as it is written down.
fn used(wanted: &Wanted, attach: bool, published: bool) -> Use {
    let persistent = wanted.mode == Lifecycle::Persistent;
    Use {
        volume: wanted.name.clone(),
        driver: wanted.driver.clone(),
        handle: wanted.handle.clone(),
        persistent,
        published,
        attached: persistent && attach,
    }
}

impl Csi {
    /// Publishes a volume to a pod; one that stands is left, unless its driver wants to be asked again. Waiting, but no
    /// call to the driver, ends with `quit`.
    ///
    /// # Errors
    /// [`Failure`]; what was begun is written down.
    pub(in crate::volumes) async fn mount(
        &self,
        pod: &Pod,
        wanted: &Wanted,
        quit: &CancellationToken,
    ) -> Result<MountedVolume, Failure> {
        if let Some(mounted) = self.stands(wanted) {
            return Ok(mounted);
        }
        let at = |step: &'static str| move |why: Why| Failure::new(step, &wanted.name, why);
        let policy = self.objects.csi_driver(wanted.driver.as_str()).await;
        let policy = Policy::of(policy.map_err(|error| at(SETUP)(other(error)))?);
        if let Some(why) = policy.refuses(wanted.mode, wanted.driver.as_str()) {
            return Err(at(SETUP)(Why::Mode(why)));
        }
        let persistent = wanted.mode == Lifecycle::Persistent;
        let attached = if persistent && policy.attach {
            self.attach(wanted, quit).await.map_err(at(ATTACHING))?
        } else {
            BTreeMap::new()
        };
        let (step, what) = if persistent {
            (STAGING, "attacher.MountDevice failed to create newCsiDriverClient")
        } else {
            (SETUP, "mounter.SetUpAt failed to get CSI client")
        };
        let found = unless(quit, self.drivers.find(&wanted.driver)).await.map_err(at(step))?;
        let driver = found.ok_or_else(|| at(step)(Why::Absent(what, wanted.driver.clone())))?;
        let volume = (wanted.driver.clone(), wanted.handle.clone());
        let _turn = unless(quit, self.turn(&volume)).await.map_err(at(step))?;
        // A pod may have one volume twice.
        if let Some(mounted) = self.stands(wanted) {
            return Ok(mounted);
        }
        let can = driver.abilities().await.map_err(|error| at(step)(Why::Call(error)))?;
        let work = Work { pod, wanted, policy: &policy, driver, can, attached };
        let staged = if persistent && can.stage {
            Some(self.stage(&work, &volume).await.map_err(at(STAGING))?)
        } else {
            None
        };
        let mounted = self.publish(&work, staged).await.map_err(at(SETUP))?;
        let again =
            policy.republish.then(|| jiff::Timestamp::now() + jiff::SignedDuration::from_secs(REPUBLISH));
        let key = (wanted.uid.clone(), wanted.name.clone());
        lock(&self.stands).insert(key, Stand { mounted: mounted.clone(), again });
        Ok(mounted)
    }

    /// The volume, where it is published and its driver does not have to be asked again.
    fn stands(&self, wanted: &Wanted) -> Option<MountedVolume> {
        let stands = lock(&self.stands);
        let stand = stands.get(&(wanted.uid.clone(), wanted.name.clone()))?;
        let due = stand.again.is_some_and(|again| again <= jiff::Timestamp::now());
        (!due).then(|| stand.mounted.clone())
    }

    /// Writes down that a pod uses a persistent volume, unless it is known to have gone further.
    async fn want(&self, wanted: &Wanted, attach: bool) -> Result<(), Why> {
        let place = self.place(&wanted.uid, &wanted.name).map_err(other)?;
        let (used, node) = (used(wanted, attach, false), self.node.clone());
        let written = blocking("write a volume down", move || match journal::read(&place)? {
            Some(before) if before.published || before == used => Ok(()),
            _ => used.write(&place, &node),
        });
        written.await.map_err(other)
    }

    /// Waits until the Node says that the volume is in use and attached; what its driver says of that.
    async fn attach(
        &self,
        wanted: &Wanted,
        quit: &CancellationToken,
    ) -> Result<BTreeMap<String, String>, Why> {
        let name = unique_name(&wanted.driver, &wanted.handle);
        {
            // Written down and told together: who forgets the volume meanwhile sees this use.
            let _turn = unless(quit, self.turn(&(wanted.driver.clone(), wanted.handle.clone()))).await?;
            self.want(wanted, true).await?;
            self.in_use.send_if_modified(|all| all.insert(name.clone()));
        }
        let mut known = self.known.clone();
        let ready = known.wait_for(|state| {
            let status = state.node.as_ref().and_then(|node| node.status.as_ref());
            status.is_some_and(|status| {
                let attached = status.volumes_attached.iter().flatten().any(|v| v.name == name);
                attached && status.volumes_in_use.iter().flatten().any(|v| *v == name)
            })
        });
        let ready = unless(quit, tokio::time::timeout(ATTACH, async { ready.await.is_ok() })).await?;
        if ready != Ok(true) {
            return Err(Why::Attach(wanted.driver.clone(), wanted.handle.clone()));
        }
        let attachment = digest(&[&wanted.handle, wanted.driver.as_str(), &self.node]);
        let found = self.objects.attachment(&attachment).await.map_err(other)?.ok_or(Why::NoAttachment)?;
        Ok(found.status.and_then(|status| status.attachment_metadata).unwrap_or_default())
    }

    /// Stages the volume for the node, once; its path.
    async fn stage(&self, work: &Work<'_>, volume: &Volume) -> Result<PathBuf, Why> {
        let Work { wanted, policy, driver, can, attached, .. } = work;
        let place = self.stage_place(volume);
        let target = place.join("globalmount");
        if lock(&self.staged).contains(volume) {
            self.want(wanted, policy.attach).await?;
            return Ok(target);
        }
        let secrets = self.secrets("NodeStageSecretRef", wanted.stage_secret.as_ref()).await?;
        // Whoever uses it is known before it is there to be unstaged.
        self.want(wanted, policy.attach).await?;
        let (name, handle, dirs) =
            (wanted.driver.clone(), wanted.handle.clone(), (place.clone(), target.clone()));
        let made = blocking("write a stage down", move || {
            make_dir(&dirs.1, 0o750)?;
            journal::write_stage(&dirs.0, &name, &handle)
        });
        made.await.map_err(other)?;
        let request = NodeStageVolumeRequest {
            volume_id: wanted.handle.clone(),
            publish_context: attached.clone().into_iter().collect(),
            staging_target_path: target.display().to_string(),
            volume_capability: Some(wanted.capability(*can)),
            secrets: secrets.into_iter().collect(),
            volume_context: wanted.attributes().into_iter().collect(),
        };
        if let Err(error) = driver.stage(request).await {
            if error.is_final() {
                self.not_staged(volume, place, target.clone()).await;
            }
            return Err(Why::Call(error));
        }
        lock(&self.staged).insert(volume.clone());
        Ok(target)
    }

    /// Nothing was staged. What another pod uses was staged before, whatever its driver says now.
    async fn not_staged(&self, volume: &Volume, place: PathBuf, target: PathBuf) {
        let (root, (driver, handle)) = (self.root.clone(), volume.clone());
        let forgotten = blocking("forget a stage", move || {
            let uses = journal::uses(&root)?;
            let used = |u: &Use| u.published && u.driver == driver && u.handle == handle;
            if uses.iter().any(|(_, u)| used(u)) {
                return Ok(());
            }
            journal::remove_target(&target)?;
            journal::forget(&place)
        });
        if let Err(error) = forgotten.await {
            // It is unstaged with the pod, then.
            tracing::debug!(%error, "what was to be staged is still there");
        }
    }

    /// Publishes the volume to the pod; its path.
    async fn publish(&self, work: &Work<'_>, staged: Option<PathBuf>) -> Result<MountedVolume, Why> {
        let Work { pod, wanted, policy, driver, can, attached } = work;
        let mut secrets = self.secrets("NodePublishSecretRef", wanted.publish_secret.as_ref()).await?;
        let mut context = wanted.context(pod, policy);
        if let Some(tokens) = self.tokens(pod, wanted, &policy.proofs).await? {
            let to = if policy.proofs_are_secret { &mut secrets } else { &mut context };
            to.insert(TOKENS.to_owned(), tokens);
        }
        let place = self.place(&wanted.uid, &wanted.name).map_err(other)?;
        let target = place.join("mount");
        let (used, node, at) = (used(wanted, policy.attach, true), self.node.clone(), place.clone());
        let written = blocking("write a volume down", move || {
            let before = journal::read(&at)?.is_some_and(|before| before.published);
            used.write(&at, &node)?;
            Ok(before)
        });
        let before = written.await.map_err(other)?;
        let is_staged = staged.is_some();
        let request = NodePublishVolumeRequest {
            volume_id: wanted.handle.clone(),
            publish_context: attached.clone().into_iter().collect(),
            staging_target_path: staged.map(|path| path.display().to_string()).unwrap_or_default(),
            target_path: target.display().to_string(),
            volume_capability: Some(wanted.capability(*can)),
            readonly: wanted.read_only,
            secrets: secrets.into_iter().collect(),
            volume_context: context.into_iter().collect(),
        };
        if let Err(error) = driver.publish(request).await {
            // One that stood before it may stand still: a pod may have it open.
            if error.is_final() && !before {
                self.not_published(work, place, target, is_staged).await;
            }
            return Err(Why::Call(error));
        }
        if let Some(gid) = wanted.group(policy, *can) {
            let (path, whole) = (target.clone(), wanted.whole);
            let given = blocking("give a volume to its group", move || ownership::give(&path, gid, whole));
            given.await.map_err(other)?;
        }
        let read_only = wanted.read_only;
        Ok(MountedVolume { path: target, read_only, image: None, managed: !read_only })
    }

    /// Nothing was published: what is left to undo is the stage.
    async fn not_published(&self, work: &Work<'_>, place: PathBuf, target: PathBuf, staged: bool) {
        let (used, node) = (used(work.wanted, work.policy.attach, false), self.node.clone());
        let forgotten = blocking("forget a volume", move || {
            journal::remove_target(&target)?;
            if staged || used.attached { used.write(&place, &node) } else { journal::forget(&place) }
        });
        if let Err(error) = forgotten.await {
            // It is unpublished with the pod, then.
            tracing::debug!(%error, "what was to be published is still there");
        }
    }

    /// The values of a secret, as a driver is given them.
    async fn secrets(
        &self,
        what: &'static str,
        at: Option<&SecretAt>,
    ) -> Result<BTreeMap<String, String>, Why> {
        let Some(SecretAt { namespace, name }) = at else { return Ok(BTreeMap::new()) };
        let text = |(key, value): (String, k8s_openapi::ByteString)| match String::from_utf8(value.0) {
            Ok(value) => Ok((key, value)),
            Err(_) => Err(NoSecret::NotText(key)),
        };
        let values = match self.objects.secret(namespace, name).await {
            Ok(Some(secret)) => secret.data.unwrap_or_default().into_iter().map(text).collect(),
            Ok(None) => Err(NoSecret::Missing),
            Err(error) => Err(error.into()),
        };
        values.map_err(|why| Why::Secret(what, namespace.clone(), name.clone(), Box::new(why)))
    }

    /// The pod's tokens, as a driver is given them: JSON by audience.
    async fn tokens(&self, pod: &Pod, wanted: &Wanted, proofs: &[Proof]) -> Result<Option<String>, Why> {
        let spec = pod.spec.as_ref();
        let mut all = BTreeMap::new();
        for proof in proofs {
            let request = TokenRequest {
                namespace: pod.metadata.namespace.clone().unwrap_or_default(),
                service_account: spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
                pod_name: pod.metadata.name.clone().unwrap_or_default(),
                pod_uid: wanted.uid.clone(),
                audience: Some(proof.audience.clone()).filter(|audience| !audience.is_empty()),
                seconds: proof.seconds.unwrap_or(TOKEN_SECONDS),
            };
            let token = self.tokens.get(&request, jiff::Timestamp::now()).await.map_err(other)?;
            let shown =
                serde_json::json!({"token": token.text, "expirationTimestamp": token.expires.to_string()});
            all.insert(proof.audience.clone(), shown);
        }
        Ok((!all.is_empty()).then(|| serde_json::json!(all).to_string()))
    }
}
