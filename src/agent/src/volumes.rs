//! Volumes of a pod on the node: made in parallel, each recorded as `VolumesMounted` under its name.
//!
//! Layout, as the kubelet's: `<root>/pods/<uid>/volumes/kubernetes.io~<kind>/<name>`. The directories
//! are the journal: what is below a pod's directory was made for it, and [`VolumeManager::teardown`]
//! unmounts and removes all of it, however often it is called and after any crash. What CSI drivers have mounted is
//! theirs to unmount: their volumes go first, and nothing of the directory is removed before.

pub mod api;
pub mod atomic_writer;
mod claim;
pub mod csi;
pub mod follow;
mod mounts;
mod ownership;
mod payload;
mod subpath;
mod tokens;

use crate::env::fields::{Addresses, FieldError};
use crate::env::{ObjectError, Objects};
use crate::pod::actions::chain;
use async_trait::async_trait;
use atomic_writer::WriteError;
use k8s_openapi::api::core::v1::{Container, HostPathVolumeSource, Pod, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use payload::Sources;
use podway_cri::v1;
use podway_flow::{Phase, Recorder};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// A token to ask for, bound to a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TokenRequest {
    /// The pod's namespace.
    pub namespace: String,
    /// The account.
    pub service_account: String,
    /// The pod's name.
    pub pod_name: String,
    /// The pod's UID.
    pub pod_uid: String,
    /// The audience; the API server's own if `None`.
    pub audience: Option<String>,
    /// How long it is to live, in seconds.
    pub seconds: i64,
}

/// A token. No `Debug`: it is a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The token itself.
    pub text: String,
    /// When it ends.
    pub expires: jiff::Timestamp,
}

/// Who gives tokens: `TokenRequest` of the API server.
#[async_trait]
pub trait Tokens: Send + Sync {
    /// A token.
    ///
    /// # Errors
    /// [`ObjectError`] when the API server refuses or does not answer.
    async fn token(&self, request: &TokenRequest) -> Result<Token, ObjectError>;
}

/// Why a volume cannot be given: the message of the event `FailedMount`.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The object is missing.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object does not have the key.
    #[error("{problem}: {key}")]
    Key {
        /// Upstream's words for it.
        problem: &'static str,
        /// The key.
        key: String,
    },
    /// A downward API field.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The API server.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The files.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The host path is not what its type says.
    #[error("hostPath type check failed: {path} is not a {expected}")]
    HostPath {
        /// The path.
        path: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A UID or volume name that cannot be a directory's name.
    #[error("invalid name {0:?} of a pod or volume: it must be one path component")]
    Name(String),
    /// The kernel refused.
    #[error("cannot {verb} {path}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// Read-only in depth.
    #[error("volume {0:?} requested recursive read-only mode, but {1}")]
    ReadOnly(String, String),
    /// A kind of volume that this agent does not have.
    #[error("not supported: volume {0}")]
    Unsupported(String),
    /// A subPath that is not below its volume.
    #[error("subPath {path:?} of the volume at {volume} cannot be used: it must stay within the volume")]
    SubPath {
        /// The path.
        path: String,
        /// The volume's directory.
        volume: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A volume of a CSI driver.
    #[error(transparent)]
    Csi(Box<csi::Failure>),
    /// A claim without a volume.
    #[error("claim {0} is not bound to a volume")]
    Unbound(String),
    /// The image of an image volume cannot be had.
    #[error("{reason}: {message}")]
    Image {
        /// As of a container's image, e.g. `ErrImagePull`.
        reason: String,
        /// Why.
        message: String,
    },
    /// A mount names a volume that is not there.
    #[error("volume {0} of a volumeMount was not set up")]
    Missing(String),
}

impl From<csi::Failure> for VolumeError {
    fn from(failure: csi::Failure) -> Self {
        VolumeError::Csi(Box::new(failure))
    }
}

fn io_at(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Io { verb, path, source }
}

/// A volume that stands on the node.
#[derive(Debug, Clone, PartialEq)]
pub struct MountedVolume {
    /// Where.
    pub path: PathBuf,
    /// Whether its kind forbids writing.
    pub read_only: bool,
    /// The image that it is, which the runtime mounts: then there is no path.
    pub image: Option<v1::ImageSpec>,
    /// Whether it is the pod's own, to be labelled for it where SELinux is on.
    pub managed: bool,
}

/// What a mount can be on this node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernel {
    /// The runtime makes all below a mount read-only, too.
    pub recursive_read_only: bool,
    /// SELinux is on.
    pub selinux: bool,
}

impl MountedVolume {
    /// An image that is present.
    #[must_use]
    pub fn of_image(image: v1::ImageSpec) -> Self {
        MountedVolume { path: PathBuf::new(), read_only: true, image: Some(image), managed: true }
    }
}

/// Sets up and tears down the volumes of this node's pods.
#[derive(Clone)]
pub struct VolumeManager {
    root: PathBuf,
    objects: Arc<dyn Objects>,
    tokens: tokens::Cache,
    allocatable: BTreeMap<String, Quantity>,
    csi: Arc<csi::Csi>,
}

impl VolumeManager {
    /// A manager of a node that `parts` tell of, whose root is the kubelet's `--root-dir`; `allocatable` is the node's.
    #[must_use]
    pub fn new(
        parts: csi::Parts,
        objects: Arc<dyn Objects>,
        tokens: Arc<dyn Tokens>,
        allocatable: BTreeMap<String, Quantity>,
    ) -> Self {
        let (root, tokens) = (parts.root.clone(), tokens::Cache::new(tokens));
        let csi = Arc::new(csi::Csi::new(parts, Arc::clone(&objects), tokens.clone()));
        VolumeManager { root, objects, tokens, allocatable, csi }
    }

    /// The directory of a pod.
    ///
    /// # Errors
    /// [`VolumeError::Name`] for a UID that is not one path component.
    pub fn pod_dir(&self, uid: &str) -> Result<PathBuf, VolumeError> {
        pod_dir(&self.root, uid)
    }

    /// Follows the config maps and secrets that the pod's volumes show: `notify` is woken when one of
    /// them changes, for as long as what is returned lives.
    #[must_use]
    pub fn follow(&self, pod: &Pod, notify: &Arc<tokio::sync::Notify>) -> follow::Following {
        let (maps, secrets) = follow::named(pod);
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        self.objects.follow(namespace, &maps, &secrets, notify)
    }

    /// When the first of a pod's tokens is to be renewed, or a driver asked again: `setup` does so.
    #[must_use]
    pub fn refresh(&self, uid: &str) -> Option<jiff::Timestamp> {
        [self.tokens.refresh(uid), self.csi.refresh(uid)].into_iter().flatten().min()
    }

    /// Sets up every volume of `pod`, in parallel; those that stand are brought up to date. What is waited for that may
    /// never come is given up with `quit`.
    ///
    /// # Errors
    /// The first [`VolumeError`] by the order of the spec; each is in the recorder as well.
    pub async fn setup(
        &self,
        pod: &Pod,
        addresses: &Addresses,
        recorder: &Recorder,
        quit: &CancellationToken,
    ) -> Result<BTreeMap<String, MountedVolume>, VolumeError> {
        let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
        if volumes.is_empty() {
            let _ = recorder.begin(Phase::VolumesMounted).skip("NoVolumes");
            return Ok(BTreeMap::new());
        }
        let dir = self.pod_dir(pod.metadata.uid.as_deref().unwrap_or_default())?;
        make_dir(&self.root, 0o700)?;
        make_dir(&dir, 0o750)?;
        // Images are the runtime's: pulled by whoever has it (`actions::mount`).
        let each = volumes.iter().filter(|v| v.image.is_none()).map(|volume| async {
            let mut span = recorder.begin_for(Phase::VolumesMounted, &volume.name);
            let made = self.one(pod, volume, &dir, addresses, quit).await;
            match &made {
                Ok(m) => {
                    span.note("path", m.path.display());
                    let _ = span.succeed("Mounted");
                }
                Err(error) => {
                    let _ = span.fail("FailedMount", &chain(error));
                }
            }
            made.map(|m| (volume.name.clone(), m))
        });
        futures::future::join_all(each).await.into_iter().collect()
    }

    async fn one(
        &self,
        pod: &Pod,
        volume: &Volume,
        dir: &Path,
        addresses: &Addresses,
        quit: &CancellationToken,
    ) -> Result<MountedVolume, VolumeError> {
        let group = ownership::group(pod);
        if let Some(source) = &volume.persistent_volume_claim {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            let found = match claim::find(&*self.objects, namespace, source, group).await? {
                claim::Found::Here(mounted) => return Ok(mounted),
                claim::Found::Driver(found) => found,
            };
            let wanted = csi::Wanted::of_claim(pod, &found, source.read_only == Some(true))?;
            return Ok(self.csi.mount(pod, &wanted, quit).await?);
        }
        if let Some(source) = &volume.csi {
            let wanted = csi::Wanted::inline(pod, &volume.name, source)?;
            return Ok(self.csi.mount(pod, &wanted, quit).await?);
        }
        let sources = Sources {
            pod,
            addresses,
            allocatable: &self.allocatable,
            objects: &*self.objects,
            tokens: &self.tokens,
        };
        let files = sources.payload(volume).await?;
        let (volume, dir) = (volume.clone(), dir.to_owned());
        blocking("set up a volume", move || place(&volume, &dir, files.as_ref(), group)).await
    }

    /// Unmounts and removes all of a pod's directory; one that is gone is done.
    ///
    /// # Errors
    /// [`VolumeError::Io`] when something is still in use, [`VolumeError::Csi`] of a driver; call again.
    pub async fn teardown(&self, uid: &str) -> Result<(), VolumeError> {
        self.tokens.forget(uid);
        let dir = self.pod_dir(uid)?;
        let (below, drivers) = (dir.clone(), dir.join(csi::VOLUMES));
        // Paths in drivers' volumes among them, which would keep those busy.
        blocking("unmount volumes", move || mounts::unmount(&below, Some(&drivers))).await?;
        self.csi.unmount(uid).await?;
        blocking("tear volumes down", move || teardown(&dir)).await
    }

    /// The UIDs that have a directory here: what a crash may have left.
    ///
    /// # Errors
    /// [`VolumeError::Io`] when the directory cannot be listed.
    pub fn uids(&self) -> Result<Vec<String>, VolumeError> {
        let pods = self.root.join("pods");
        match std::fs::read_dir(&pods) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(io_at("list", &pods)(e)),
            Ok(list) => Ok(list.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect()),
        }
    }
}

/// Runs what may block on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    verb: &'static str,
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(VolumeError::Io { verb, path: PathBuf::new(), source: io::Error::other(e) }),
    }
}

fn place(
    volume: &Volume,
    dir: &Path,
    files: Option<&atomic_writer::Payload>,
    group: Option<u32>,
) -> Result<MountedVolume, VolumeError> {
    if let Some(source) = &volume.host_path {
        return host_path(source).map(|path| MountedVolume {
            path,
            read_only: false,
            image: None,
            managed: false,
        });
    }
    let path = dir.join("volumes").join(kind(volume)?).join(component(&volume.name)?);
    make_dir(&path, if volume.empty_dir.is_some() { 0o777 } else { 0o755 })?;
    if let Some(source) = &volume.empty_dir {
        match source.medium.as_deref().unwrap_or_default() {
            "" => {}
            "Memory" => tmpfs(&path, source.size_limit.as_ref())?,
            other => return Err(VolumeError::Unsupported(format!("emptyDir medium {other}"))),
        }
        if let Some(gid) = group {
            std::os::unix::fs::chown(&path, None, Some(gid)).map_err(io_at("chown", &path))?;
            // As `SetVolumeOwnership` has it: what is made in it is the group's, too; a tmpfs stays sticky.
            set_mode(&path, mode_of(&path)? | 0o2000)?;
        }
        return Ok(MountedVolume { path, read_only: false, image: None, managed: true });
    }
    let Some(files) = files else {
        return Err(VolumeError::Unsupported(volume.name.clone()));
    };
    if volume.secret.is_some() || volume.projected.is_some() {
        // Secrets never reach the disk.
        tmpfs(&path, None)?;
    }
    atomic_writer::write(&path, files, group)?;
    Ok(MountedVolume { path, read_only: true, image: None, managed: true })
}

fn teardown(dir: &Path) -> Result<(), VolumeError> {
    mounts::unmount(dir, None)?;
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_at("remove", dir)(e)),
        _ => Ok(()),
    }
}

fn pod_dir(root: &Path, uid: &str) -> Result<PathBuf, VolumeError> {
    Ok(root.join("pods").join(component(uid)?))
}

fn component(name: &str) -> Result<&str, VolumeError> {
    let bad = name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']);
    if bad { Err(VolumeError::Name(name.to_owned())) } else { Ok(name) }
}

fn kind(volume: &Volume) -> Result<&'static str, VolumeError> {
    Ok(match volume {
        v if v.empty_dir.is_some() => "kubernetes.io~empty-dir",
        v if v.config_map.is_some() => "kubernetes.io~configmap",
        v if v.secret.is_some() => "kubernetes.io~secret",
        v if v.downward_api.is_some() => "kubernetes.io~downward-api",
        v if v.projected.is_some() => "kubernetes.io~projected",
        v => return Err(VolumeError::Unsupported(v.name.clone())),
    })
}

fn make_dir(path: &Path, mode: u32) -> Result<(), VolumeError> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().mode(0o750).recursive(true).create(path).map_err(io_at("make", path))?;
    set_mode(path, mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), VolumeError> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(io_at("chmod", path))
}

fn mode_of(path: &Path) -> Result<u32, VolumeError> {
    Ok(std::fs::metadata(path).map_err(io_at("stat", path))?.permissions().mode() & 0o7777)
}

/// With the mode that the kernel gives a tmpfs, 1777: a kubelet's has it, and a subPath takes it over.
fn tmpfs(path: &Path, limit: Option<&Quantity>) -> Result<(), VolumeError> {
    if mounts::has(path)? {
        return Ok(());
    }
    let size = limit.and_then(|q| crate::env::quantity::value(&q.0)).filter(|v| *v > 0);
    let options = size.map_or_else(|| "mode=1777".to_owned(), |s| format!("mode=1777,size={s}"));
    nix::mount::mount(
        Some("tmpfs"),
        path,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some(options.as_str()),
    )
    .map_err(|e| io_at("mount tmpfs on", path)(e.into()))
}

fn host_path(source: &HostPathVolumeSource) -> Result<PathBuf, VolumeError> {
    let path = PathBuf::from(&source.path);
    let wanted = source.type_.as_deref().unwrap_or_default();
    let found = match std::fs::metadata(&path) {
        Ok(meta) => Some(meta.file_type()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(io_at("stat", &path)(e)),
    };
    let wrong = |expected| VolumeError::HostPath { path: source.path.clone(), expected };
    let (ok, expected) = match (wanted, found) {
        ("", _) => (true, ""),
        ("DirectoryOrCreate", None) => {
            make_dir(&path, 0o755)?;
            (true, "")
        }
        ("FileOrCreate", None) => {
            std::fs::File::create_new(&path).map_err(io_at("make", &path))?;
            set_mode(&path, 0o644)?;
            (true, "")
        }
        ("Directory" | "DirectoryOrCreate", f) => (f.is_some_and(|f| f.is_dir()), "directory"),
        ("File" | "FileOrCreate", f) => (f.is_some_and(|f| f.is_file()), "file"),
        ("Socket", f) => (f.is_some_and(|f| f.is_socket()), "socket file"),
        ("CharDevice", f) => (f.is_some_and(|f| f.is_char_device()), "character device"),
        ("BlockDevice", f) => (f.is_some_and(|f| f.is_block_device()), "block device"),
        (other, _) => return Err(VolumeError::Unsupported(format!("hostPath type {other}"))),
    };
    if ok { Ok(path) } else { Err(wrong(expected)) }
}

/// The CRI mounts of `container` on volumes that stand. `expand` puts the container's variables into
/// a `subPathExpr`; a subPath is bound below `pod_dir`, so that teardown finds it. May block.
///
/// # Errors
/// [`VolumeError::Missing`] for a volume that was not set up, [`VolumeError::SubPath`] for a path that
/// leaves its volume, [`VolumeError::ReadOnly`] for a mode that cannot be had.
pub fn container_mounts(
    container: &Container,
    volumes: &BTreeMap<String, MountedVolume>,
    pod_dir: &Path,
    expand: &dyn Fn(&str) -> String,
    kernel: Kernel,
) -> Result<Vec<v1::Mount>, VolumeError> {
    let mut out = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = volumes.get(&mount.name).ok_or_else(|| VolumeError::Missing(mount.name.clone()))?;
        let given = |s: &Option<String>| s.clone().filter(|s| !s.is_empty());
        let recursive_read_only = recursive_read_only(mount, kernel)?;
        let selinux_relabel = kernel.selinux && volume.managed;
        let sub = given(&mount.sub_path).or_else(|| given(&mount.sub_path_expr).map(|e| expand(&e)));
        if let Some(image) = &volume.image {
            out.push(v1::Mount {
                container_path: mount.mount_path.clone(),
                readonly: true,
                image: Some(image.clone()),
                image_sub_path: sub.unwrap_or_default(),
                recursive_read_only,
                selinux_relabel,
                ..v1::Mount::default()
            });
            continue;
        }
        let host_path = match sub {
            None => volume.path.clone(),
            Some(sub) => {
                let place = pod_dir.join("volume-subpaths").join(component(&mount.name)?);
                let place = place.join(component(&container.name)?).join(index.to_string());
                subpath::bind(&volume.path, &sub, volume.read_only, &place)?;
                place
            }
        };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => v1::MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => v1::MountPropagation::PropagationBidirectional,
            _ => v1::MountPropagation::PropagationPrivate,
        };
        let readonly = volume.read_only || mount.read_only == Some(true);
        out.push(v1::Mount {
            container_path: mount.mount_path.clone(),
            host_path: host_path.to_string_lossy().into_owned(),
            readonly,
            propagation: propagation.into(),
            recursive_read_only,
            selinux_relabel,
            ..v1::Mount::default()
        });
    }
    Ok(out)
}

/// `resolveRecursiveReadOnly` of pkg/kubelet/kubelet_pods.go.
fn recursive_read_only(mount: &VolumeMount, kernel: Kernel) -> Result<bool, VolumeError> {
    let wrong = |why: String| Err(VolumeError::ReadOnly(mount.name.clone(), why));
    let Some(mode) = mount.recursive_read_only.as_deref().filter(|m| *m != "Disabled") else {
        return Ok(false);
    };
    if mount.read_only != Some(true) {
        return wrong("it is not read-only".to_owned());
    }
    if let Some(propagation) = mount.mount_propagation.as_deref().filter(|p| *p != "None") {
        return wrong(format!("it is not compatible with propagation {propagation:?}"));
    }
    match mode {
        "IfPossible" => Ok(kernel.recursive_read_only),
        "Enabled" if kernel.recursive_read_only => Ok(true),
        "Enabled" => wrong("it is not supported by the runtime".to_owned()),
        other => wrong(format!("unknown recursive read-only mode {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::tests::Fake;
    use podway_flow::{Clock, Writer};
    use serde_json::json;

    #[async_trait]
    impl Tokens for Fake {
        async fn token(&self, request: &TokenRequest) -> Result<Token, ObjectError> {
            let expires = jiff::Timestamp::from_second(4_000_000_000).unwrap();
            Ok(Token { text: format!("token of {}", request.service_account), expires })
        }
    }

    fn pod(volumes: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u-1"},
            "spec": {"volumes": volumes, "containers": [{"name": "c", "volumeMounts": [{"name": "e", "mountPath": "/e"}]}]}}))
        .unwrap()
    }

    #[tokio::test]
    async fn volumes_stand_are_recorded_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let manager = VolumeManager::new(
            csi::tests::parts(&dir.path().join("r")),
            Arc::new(Fake),
            Arc::new(Fake),
            BTreeMap::new(),
        );
        let recorder = Recorder::new(Writer::Agent, Clock::new());
        let pod = pod(
            json!([{"name": "e", "emptyDir": {}}, {"name": "h", "hostPath": {"path": "/tmp", "type": "Directory"}},
            {"name": "cm", "configMap": {"name": "cm", "items": [{"key": "a", "path": "x/y"}]}},
            {"name": "d", "downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}}]),
        );
        let made =
            manager.setup(&pod, &Addresses::default(), &recorder, &CancellationToken::new()).await.unwrap();
        assert_eq!(std::fs::read_to_string(made["cm"].path.join("x/y")).unwrap(), "1");
        assert_eq!(std::fs::read_to_string(made["d"].path.join("n")).unwrap(), "p");
        assert_eq!(recorder.snapshot().len(), 4);
        let mounts = container_mounts(
            &pod.spec.as_ref().unwrap().containers[0],
            &made,
            &manager.pod_dir("u-1").unwrap(),
            &str::to_owned,
            Kernel { recursive_read_only: false, selinux: true },
        )
        .unwrap();
        assert!(mounts[0].selinux_relabel);
        assert_eq!((mounts[0].container_path.as_str(), mounts[0].readonly), ("/e", false));
        manager.teardown("u-1").await.unwrap();
        manager.teardown("u-1").await.unwrap();
        assert!(!manager.pod_dir("u-1").unwrap().exists());
        assert!(manager.pod_dir("../x").is_err());
    }

    #[test]
    fn read_only_in_depth_is_given_or_refused() {
        let mount = |more: serde_json::Value| {
            let mut all = json!({"name": "v", "mountPath": "/v", "readOnly": true});
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value::<VolumeMount>(all).unwrap()
        };
        let able = Kernel { recursive_read_only: true, selinux: false };
        let asked = |mode: &str| mount(json!({"recursiveReadOnly": mode}));
        let of = |mount: &VolumeMount, kernel| recursive_read_only(mount, kernel).map_err(|e| e.to_string());
        assert_eq!(of(&mount(json!({})), able), Ok(false));
        assert_eq!(of(&asked("Disabled"), able), Ok(false));
        assert_eq!(of(&asked("IfPossible"), able), Ok(true));
        assert_eq!(of(&asked("IfPossible"), Kernel::default()), Ok(false));
        assert_eq!(of(&asked("Enabled"), able), Ok(true));
        let refused = of(&asked("Enabled"), Kernel::default()).unwrap_err();
        let words = "volume \"v\" requested recursive read-only mode, but it is not supported by the runtime";
        assert_eq!(refused, words);
        let writes = mount(json!({"recursiveReadOnly": "Enabled", "readOnly": false}));
        assert!(of(&writes, able).unwrap_err().ends_with("it is not read-only"));
        let shared = mount(json!({"recursiveReadOnly": "Enabled", "mountPropagation": "Bidirectional"}));
        assert!(of(&shared, able).unwrap_err().contains("propagation"));
    }

    #[tokio::test]
    async fn a_missing_object_fails_its_own_volume_only() {
        let dir = tempfile::tempdir().unwrap();
        let manager = VolumeManager::new(
            csi::tests::parts(dir.path()),
            Arc::new(Fake),
            Arc::new(Fake),
            BTreeMap::new(),
        );
        let recorder = Recorder::new(Writer::Agent, Clock::new());
        let pod = pod(json!([{"name": "e", "emptyDir": {}}, {"name": "m", "configMap": {"name": "none"}}]));
        let error = manager
            .setup(&pod, &Addresses::default(), &recorder, &CancellationToken::new())
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "configmap \"none\" not found");
        assert_eq!(recorder.snapshot().len(), 2);
    }
}
