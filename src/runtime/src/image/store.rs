//! Images on disk: `<root>/images.json`, `<root>/layers/<diff id>/`, `<root>/staging/`.
//!
//! Readers take an immutable index; writers replace it under one lock, after the file. A layer
//! directory is renamed into place whole, and is known only once an index on disk or a running
//! pull names it: after a crash, what the file does not name is deleted. Layers that a pin or an
//! image names are never removed.

mod index;

use super::reference::{Digest, ImageRef};
use super::registry::ImageConfig;
use super::unpack::Unpacked;
use crate::points::{self, Point};
use crate::rootfs::{self, Layer};
use index::{File, Stored, StoredLayer, directories, io_error};
pub use index::{Image, StoreError};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

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
        let file = File::read(root)?;
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
        points::at(Point::LayersSynced);
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
        points::at(Point::ImageEntered);
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
        points::at(Point::ImageForgotten);
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
                points::at(Point::LayerBuried);
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

    fn write(&self, state: &State, index: &Index) -> Result<(), StoreError> {
        let images = index.values().map(|i| Stored::of(i)).collect();
        File { version: 1, images, layers: state.layers.clone() }.write(&self.root)
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

#[cfg(test)]
mod tests;
