//! Images on disk: `<root>/images.json`, `<root>/layers/<diff id>/`, `<root>/staging/`.
//!
//! Readers take an immutable index; writers replace it under one lock, after the file. A layer
//! directory is renamed into place whole, and is known only once an index on disk or a running
//! pull names it: after a crash, what the file does not name is deleted. Layers that a pin or an
//! image names are never removed.

use super::reference::{Digest, ImageRef};
use super::registry::ImageConfig;
use super::unpack::Unpacked;
use crate::rootfs::{self, Layer};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

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

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
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
struct Stored {
    id: Digest,
    repo_tags: Vec<String>,
    repo_digests: Vec<String>,
    config: ImageConfig,
    layers: Vec<Digest>,
    size: u64,
    /// By layer directory: what lower layers have to say on (see [`rootfs::implicit`]).
    #[serde(default)]
    stack: Vec<Layer>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct StoredLayer {
    bytes: u64,
    inodes: u64,
    /// See [`rootfs::implicit`]; the shallowest ones of too many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    implicit: Vec<PathBuf>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    version: u32,
    images: Vec<Stored>,
    layers: BTreeMap<Digest, StoredLayer>,
}

type Index = BTreeMap<Digest, Arc<Image>>;

#[derive(Debug, Default)]
struct State {
    layers: BTreeMap<Digest, StoredLayer>,
    pins: HashMap<Digest, usize>,
}

/// What the images take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all layers, each counted once.
    pub bytes: u64,
    /// Inodes of all layers.
    pub inodes: u64,
}

/// The store.
#[derive(Debug)]
pub struct ImageStore {
    me: Weak<ImageStore>,
    root: PathBuf,
    index: RwLock<Arc<Index>>,
    state: Mutex<State>,
    sequence: AtomicU64,
}

/// Keeps layers from being removed while it lives: of a running pull, or of a container.
#[derive(Debug)]
pub struct LayerPin {
    store: Arc<ImageStore>,
    layers: Vec<Digest>,
}

impl Drop for LayerPin {
    fn drop(&mut self) {
        let mut state = self.store.lock();
        for layer in &self.layers {
            if let Some(count) = state.pins.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(layer);
                }
            }
        }
    }
}

impl ImageStore {
    /// Opens or makes the store under `root` (0700); deletes what a crash left half made. Layers of
    /// removed images stay until [`ImageStore::collect`], so that containers can be pinned first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(root: &Path) -> Result<Arc<Self>, StoreError> {
        let staging = root.join("staging");
        match std::fs::remove_dir_all(&staging) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error("clear", &staging)(e)),
            _ => {}
        }
        for directory in [root.to_owned(), root.join("layers"), staging] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .and_then(|()| std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o700)))
                .map_err(io_error("make", &directory))?;
        }
        let path = root.join("images.json");
        let file: File = match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|source| StoreError::Index { path, source })?
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => File::default(),
            Err(e) => return Err(io_error("read", &path)(e)),
        };
        let layers = root.join("layers");
        let mut present = BTreeMap::new();
        for entry in std::fs::read_dir(&layers).map_err(io_error("list", &layers))? {
            let entry = entry.map_err(io_error("list", &layers))?;
            let known = entry.file_name().to_str().and_then(Digest::from_hex);
            match known.and_then(|d| Some((d, file.layers.get(&d)?.clone()))) {
                Some((digest, layer)) => drop(present.insert(digest, layer)),
                None => std::fs::remove_dir_all(entry.path()).map_err(io_error("remove", &entry.path()))?,
            }
        }
        let index: Index = file
            .images
            .into_iter()
            .filter(|s| s.layers.iter().all(|l| present.contains_key(l)))
            .map(|s| (s.id, Arc::new(s.image(root))))
            .collect();
        Ok(Arc::new_cyclic(|me| ImageStore {
            me: me.clone(),
            root: root.to_owned(),
            index: RwLock::new(Arc::new(index)),
            state: Mutex::new(State { layers: present, pins: HashMap::new() }),
            sequence: AtomicU64::new(0),
        }))
    }

    /// The store as its users hold it.
    #[must_use]
    pub fn me(&self) -> Option<Arc<Self>> {
        self.me.upgrade()
    }

    /// Where the store is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All images, by id.
    #[must_use]
    pub fn images(&self) -> Vec<Arc<Image>> {
        self.index().values().cloned().collect()
    }

    /// The image that `text` names: an id with or without `sha256:` (or 12 and more digits of one),
    /// a tag, or a digest.
    #[must_use]
    pub fn resolve(&self, text: &str) -> Option<Arc<Image>> {
        let index = self.index();
        let hex_digits = text.strip_prefix("sha256:").unwrap_or(text);
        if let Some(id) = Digest::from_hex(hex_digits) {
            return index.get(&id).cloned();
        }
        if let Ok(reference) = ImageRef::parse(text)
            && let Some(image) = find(&index, &reference)
        {
            return Some(image);
        }
        let short = hex_digits.len() >= 12 && hex_digits.bytes().all(|b| b.is_ascii_hexdigit());
        let mut fits = index.values().filter(|i| short && i.id.hex().starts_with(hex_digits));
        let first = fits.next().cloned();
        first.filter(|_| fits.next().is_none())
    }

    /// The image of a reference.
    #[must_use]
    pub fn find(&self, reference: &ImageRef) -> Option<Arc<Image>> {
        find(&self.index(), reference)
    }

    /// Keeps `layers` while the pin lives.
    #[must_use]
    pub fn pin(self: &Arc<Self>, layers: &[Digest]) -> LayerPin {
        let mut state = self.lock();
        for layer in layers {
            *state.pins.entry(*layer).or_insert(0) += 1;
        }
        LayerPin { store: self.clone(), layers: layers.to_vec() }
    }

    /// Is the layer on disk? Pin it before asking.
    #[must_use]
    pub fn has_layer(&self, layer: Digest) -> bool {
        self.lock().layers.contains_key(&layer)
    }

    /// A fresh directory (0755, as a layer's root is) to unpack into.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn staging(&self) -> Result<PathBuf, StoreError> {
        let number = self.sequence.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join("staging").join(number.to_string());
        std::fs::create_dir(&path)
            .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)))
            .map_err(io_error("make", &path))?;
        Ok(path)
    }

    /// Takes over a verified layer. One that another pull brought meanwhile stays; ours is dropped.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn commit_layer(&self, staging: &Path, layer: Digest, unpacked: Unpacked) -> Result<(), StoreError> {
        let mut state = self.lock();
        if state.layers.contains_key(&layer) {
            return Ok(());
        }
        let path = self.layer_dir(layer);
        std::fs::rename(staging, &path).map_err(io_error("rename a layer to", &path))?;
        let mut implicit = unpacked.implicit;
        implicit.sort_by_key(|p| p.components().count());
        implicit.truncate(rootfs::implicit::LIMIT);
        let stored = StoredLayer { bytes: unpacked.bytes, inodes: unpacked.inodes, implicit };
        state.layers.insert(layer, stored);
        Ok(())
    }

    /// Enters an image whose layers are all there, or adds names to one that is; a tag moves.
    /// Makes its layers durable first.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn put(
        &self,
        id: Digest,
        names: (Option<String>, String),
        config: ImageConfig,
        config_bytes: u64,
        layers: Vec<Digest>,
    ) -> Result<Arc<Image>, StoreError> {
        let directory = std::fs::File::open(&self.root).map_err(io_error("open", &self.root))?;
        rustix::fs::syncfs(&directory).map_err(|e| io_error("sync", &self.root)(e.into()))?;
        let state = self.lock();
        let mut index = (*self.index()).clone();
        let (tag, digest) = names;
        if let Some(tag) = &tag {
            for image in index.values_mut().filter(|i| i.id != id && i.repo_tags.contains(tag)) {
                Arc::make_mut(image).repo_tags.retain(|t| t != tag);
            }
        }
        let bytes: u64 = layers.iter().filter_map(|l| state.layers.get(l)).map(|l| l.bytes).sum();
        let stack: Vec<Layer> = directories(&layers, &self.root)
            .into_iter()
            .map(|dir| {
                let digest = dir.file_name().and_then(|n| Digest::from_hex(n.to_str()?));
                let stored = digest.and_then(|d| state.layers.get(&d));
                Layer { implicit: stored.map(|s| s.implicit.clone()).unwrap_or_default(), dir }
            })
            .collect();
        let stack = rootfs::implicit::relevant(&stack);
        let fresh = Stored {
            stack,
            id,
            repo_tags: vec![],
            repo_digests: vec![],
            config,
            layers,
            size: bytes + config_bytes,
        };
        let image = index.entry(id).or_insert_with(|| Arc::new(fresh.image(&self.root)));
        let changed = Arc::make_mut(image);
        if let Some(tag) = tag.filter(|t| !changed.repo_tags.contains(t)) {
            changed.repo_tags.push(tag);
        }
        if !changed.repo_digests.contains(&digest) {
            changed.repo_digests.push(digest);
        }
        let image = image.clone();
        self.replace(&state, index)?;
        Ok(image)
    }

    /// Removes the image that `text` names, with all its names, and the layers that nothing else
    /// needs; `false` where there is none.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn remove(&self, text: &str) -> Result<bool, StoreError> {
        let Some(image) = self.resolve(text) else { return Ok(false) };
        {
            let state = self.lock();
            let mut index = (*self.index()).clone();
            if index.remove(&image.id).is_none() {
                return Ok(false);
            }
            self.replace(&state, index)?;
        }
        self.collect()?;
        Ok(true)
    }

    /// Removes the layers that neither an image nor a pin names.
    ///
    /// # Errors
    /// [`StoreError::Io`]; what could not be deleted is tried again at the next opening.
    pub fn collect(&self) -> Result<(), StoreError> {
        let mut doomed = Vec::new();
        {
            let mut state = self.lock();
            let index = self.index();
            let unused: Vec<Digest> = state
                .layers
                .keys()
                .filter(|l| !state.pins.contains_key(l) && !index.values().any(|i| i.layers.contains(l)))
                .copied()
                .collect();
            for layer in unused {
                // A rename under the lock, the deletion outside of it: a pull may bring it anew meanwhile.
                let number = self.sequence.fetch_add(1, Ordering::Relaxed);
                let grave = self.root.join("staging").join(number.to_string());
                let path = self.layer_dir(layer);
                std::fs::rename(&path, &grave).map_err(io_error("remove", &path))?;
                state.layers.remove(&layer);
                doomed.push(grave);
            }
            if !doomed.is_empty() {
                self.write(&state, &index)?;
            }
        }
        for grave in doomed {
            std::fs::remove_dir_all(&grave).map_err(io_error("delete", &grave))?;
        }
        Ok(())
    }

    /// What all layers take.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let state = self.lock();
        let sum = |f: fn(&StoredLayer) -> u64| state.layers.values().map(f).sum();
        Usage { bytes: sum(|l| l.bytes), inodes: sum(|l| l.inodes) }
    }

    fn layer_dir(&self, layer: Digest) -> PathBuf {
        self.root.join("layers").join(layer.hex())
    }

    fn index(&self) -> Arc<Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, state: &State, index: Index) -> Result<(), StoreError> {
        self.write(state, &index)?;
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(index);
        Ok(())
    }

    /// Atomic and durable: a temporary file, fsync, rename, fsync of the directory.
    fn write(&self, state: &State, index: &Index) -> Result<(), StoreError> {
        let file = File {
            version: 1,
            images: index.values().map(|i| Stored::of(i)).collect(),
            layers: state.layers.clone(),
        };
        let (path, temporary) = (self.root.join("images.json"), self.root.join("images.json.new"));
        let bytes = serde_json::to_vec(&file).map_err(|e| io_error("encode", &path)(e.into()))?;
        let write = || {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            std::fs::File::open(&self.root)?.sync_all()
        };
        write().map_err(io_error("write", &path))
    }
}

fn find(index: &Index, reference: &ImageRef) -> Option<Arc<Image>> {
    let digest = reference.digest().map(|d| reference.repo_digest(d));
    let tag = reference.repo_tag();
    index
        .values()
        .find(|i| match &digest {
            Some(digest) => i.repo_digests.contains(digest),
            None => tag.as_ref().is_some_and(|t| i.repo_tags.contains(t)),
        })
        .cloned()
}

/// overlayfs refuses a directory that is named twice; of a layer that occurs twice, the upper one
/// covers all of the lower.
fn directories(layers: &[Digest], root: &Path) -> Vec<PathBuf> {
    let last = |(i, l): &(usize, &Digest)| !layers[i + 1..].contains(l);
    layers.iter().enumerate().filter(last).map(|(_, l)| root.join("layers").join(l.hex())).collect()
}

impl Stored {
    fn of(image: &Image) -> Self {
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

    fn image(self, root: &Path) -> Image {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn add(store: &Arc<ImageStore>, id: &[u8], tag: &str, layers: &[&[u8]]) -> Arc<Image> {
        let layers: Vec<Digest> = layers.iter().map(|l| Digest::of(l)).collect();
        for &layer in &layers {
            let staging = store.staging().unwrap();
            store
                .commit_layer(&staging, layer, Unpacked { bytes: 10, inodes: 1, ..Unpacked::default() })
                .unwrap();
        }
        let reference = ImageRef::parse(tag).unwrap();
        let names = (reference.repo_tag(), reference.repo_digest(Digest::of(id)));
        store.put(Digest::of(id), names, ImageConfig::default(), 5, layers).unwrap()
    }

    #[test]
    fn images_survive_a_restart_share_layers_and_leave_nothing() {
        let root = tempfile::tempdir().unwrap();
        let store = ImageStore::open(root.path()).unwrap();
        let a = add(&store, b"a", "a.io/a:1", &[b"base", b"x"]);
        add(&store, b"b", "a.io/b:1", &[b"base"]);
        assert_eq!((a.size, store.usage()), (25, Usage { bytes: 20, inodes: 2 }));
        std::fs::create_dir(root.path().join("layers/torn")).unwrap();
        drop(store);
        let store = ImageStore::open(root.path()).unwrap();
        assert!(!root.path().join("layers/torn").exists());
        for name in ["a.io/a:1", &a.id.to_string(), &a.id.hex(), &a.id.hex()[..12], &a.repo_digests[0]] {
            assert_eq!(store.resolve(name).as_deref(), Some(&*a), "{name}");
        }
        assert!(store.resolve("a.io/a:2").is_none() && store.resolve("").is_none());
        let pin = store.pin(&a.layers);
        assert!(store.remove("a.io/a:1").unwrap() && !store.remove("a.io/a:1").unwrap());
        assert!(a.layer_dirs[1].exists(), "pinned");
        drop(pin);
        store.collect().unwrap();
        assert!(!a.layer_dirs[1].exists() && a.layer_dirs[0].exists());
        assert!(store.remove("a.io/b:1").unwrap());
        assert_eq!(store.usage(), Usage { bytes: 0, inodes: 0 });
        assert_eq!(std::fs::read_dir(root.path().join("layers")).unwrap().count(), 0);
        let mode = std::fs::metadata(root.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_tag_moves_and_the_old_image_keeps_its_digest() {
        let root = tempfile::tempdir().unwrap();
        let store = ImageStore::open(root.path()).unwrap();
        let old = add(&store, b"old", "a.io/a:1", &[b"l"]);
        let new = add(&store, b"new", "a.io/a:1", &[b"l"]);
        assert_eq!(store.resolve("a.io/a:1").unwrap().id, new.id);
        assert!(store.resolve(&old.repo_digests[0]).unwrap().repo_tags.is_empty());
    }
}
