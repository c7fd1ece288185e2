//! The index as it is on disk, and an image as it is read from it.

use super::super::reference::Digest;
use super::super::registry::ImageConfig;
use crate::points::{self, Point};
use crate::rootfs::Layer;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("the image store could not {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// The index is not readable.
    #[error("{} is not a valid image index; move it away to start with an empty store", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: serde_json::Error,
    },
}

pub(super) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { what, path, source }
}

/// An image that is whole and on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// `sha256:<configuration digest>`, CRI's image id.
    pub id: Digest,
    /// `registry/repository:tag`, each of one image at most.
    pub repo_tags: Vec<String>,
    /// `registry/repository@digest`.
    pub repo_digests: Vec<String>,
    /// What to run.
    pub config: ImageConfig,
    /// Diff ids bottom to top.
    pub layers: Vec<Digest>,
    /// Their directories bottom to top: overlayfs wants them in reverse.
    pub layer_dirs: Vec<PathBuf>,
    /// The same directories, each with what must be known to put them above one another.
    pub stack: Vec<Layer>,
    /// Bytes on disk, and of the configuration; over 0.
    pub size: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) id: Digest,
    pub(super) repo_tags: Vec<String>,
    pub(super) repo_digests: Vec<String>,
    pub(super) config: ImageConfig,
    pub(super) layers: Vec<Digest>,
    pub(super) size: u64,
    /// By layer directory: what lower layers have to say on (see [`rootfs::implicit`]).
    #[serde(default)]
    pub(super) stack: Vec<Layer>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct StoredLayer {
    pub(super) bytes: u64,
    pub(super) inodes: u64,
    /// See [`rootfs::implicit`]; the shallowest ones of too many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) implicit: Vec<PathBuf>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct File {
    pub(super) version: u32,
    pub(super) images: Vec<Stored>,
    pub(super) layers: BTreeMap<Digest, StoredLayer>,
}

impl File {
    /// The index of the store under `root`; an empty one where there is none.
    pub(super) fn read(root: &Path) -> Result<Self, StoreError> {
        let path = root.join("images.json");
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| StoreError::Index { path, source }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(File::default()),
            Err(e) => Err(io_error("read", &path)(e)),
        }
    }

    /// Atomic and durable: a temporary file, fsync, rename, fsync of the directory.
    pub(super) fn write(&self, root: &Path) -> Result<(), StoreError> {
        let (path, temporary) = (root.join("images.json"), root.join("images.json.new"));
        let bytes = serde_json::to_vec(self).map_err(|e| io_error("encode", &path)(e.into()))?;
        let write = || {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            points::at(Point::IndexStaged);
            std::fs::rename(&temporary, &path)?;
            std::fs::File::open(root)?.sync_all()
        };
        write().map_err(io_error("write", &path))
    }
}

/// overlayfs refuses a directory that is named twice; of a layer that occurs twice, the upper one
/// covers all of the lower.
pub(super) fn directories(layers: &[Digest], root: &Path) -> Vec<PathBuf> {
    let last = |(i, l): &(usize, &Digest)| !layers[i + 1..].contains(l);
    layers.iter().enumerate().filter(last).map(|(_, l)| root.join("layers").join(l.hex())).collect()
}

impl Stored {
    pub(super) fn of(image: &Image) -> Self {
        Stored {
            id: image.id,
            repo_tags: image.repo_tags.clone(),
            repo_digests: image.repo_digests.clone(),
            config: image.config.clone(),
            layers: image.layers.clone(),
            size: image.size,
            stack: image.stack.clone(),
        }
    }

    pub(super) fn image(self, root: &Path) -> Image {
        let layer_dirs = directories(&self.layers, root);
        // By name: the root may have been moved since.
        let implicit = |dir: &PathBuf| self.stack.iter().find(|l| l.dir.file_name() == dir.file_name());
        let layer = |dir: &PathBuf| Layer {
            dir: dir.clone(),
            implicit: implicit(dir).map(|l| l.implicit.clone()).unwrap_or_default(),
        };
        Image {
            stack: layer_dirs.iter().map(layer).collect(),
            layer_dirs,
            id: self.id,
            repo_tags: self.repo_tags,
            repo_digests: self.repo_digests,
            config: self.config,
            layers: self.layers,
            size: self.size,
        }
    }
}
