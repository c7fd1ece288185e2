//! The images of the local registry, built from programs of this machine: nothing is downloaded.
//!
//! An image is reproducible: the same programs give the same bytes (times are 0, entries are in a
//! fixed order), so that a second `up` finds them there and pushes nothing.

pub mod archive;
pub mod e2e;
mod podway;
mod recipe;
mod sbom;
pub mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

pub use self::podway::{PODWAY, Programs, podway};
pub use self::recipe::Recipe;
pub use self::sbom::sbom;

/// The images' names, as pods name them.
pub const BUSYBOX: &str = "docker.io/library/busybox:latest";
/// The image that does nothing.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.1";
/// Kubernetes' test server.
pub const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A program could not be read, or not be put into a layer.
    #[error("cannot read {path} for an image")]
    Read {
        /// The program.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A layer could not be written, which is a defect of ours.
    #[error("cannot write a layer")]
    Layer(#[from] io::Error),
    /// busybox does not tell its applets.
    #[error("{path} --list failed; is it a busybox?")]
    Applets {
        /// The program.
        path: String,
    },
    /// The loader does not tell what a program is linked to.
    #[error("{loader} --list {program} failed: {said}")]
    Loader {
        /// The dynamic loader that the program names.
        loader: String,
        /// The program.
        program: String,
        /// What it said.
        said: String,
    },
    /// A program is linked to a library that this machine does not have.
    #[error("{program} needs {library}, which is not found; install it")]
    Library {
        /// The program.
        program: String,
        /// The library's name.
        library: String,
    },
}

/// Bytes with their digest (`sha256:…`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:` and hexadecimal.
    pub digest: String,
    /// The media type.
    pub media_type: &'static str,
    /// The content.
    pub bytes: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { digest: digest(&bytes), media_type, bytes }
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// An image, ready to be pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The repository in the registry: `library/busybox`.
    pub repository: String,
    /// The tag.
    pub tag: String,
    /// Layers and config.
    pub blobs: Vec<Blob>,
    /// The manifest of this machine's platform.
    pub manifest: Blob,
    /// The index that the tag names.
    pub index: Blob,
}

/// How an image is run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Run {
    /// ENTRYPOINT.
    pub entrypoint: &'static [&'static str],
    /// CMD.
    pub cmd: &'static [&'static str],
    /// User and group; root where it is empty.
    pub user: &'static str,
}

/// A layer, uncompressed digest and all.
#[derive(Debug, Clone)]
pub struct Layer {
    diff: String,
    blob: Blob,
}

/// Writes a layer's entries.
pub struct LayerBuilder {
    tar: tar::Builder<Vec<u8>>,
}

impl std::fmt::Debug for LayerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerBuilder").finish_non_exhaustive()
    }
}

impl Default for LayerBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl LayerBuilder {
    /// An empty one.
    pub fn new() -> Self {
        Self { tar: tar::Builder::new(Vec::new()) }
    }

    fn header(kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header
    }

    /// A directory, root's; `path` is relative.
    pub fn dir(&mut self, path: &str, mode: u32) -> io::Result<()> {
        let mut header = Self::header(EntryType::Directory, mode, 0);
        self.tar.append_data(&mut header, format!("{path}/"), io::empty())
    }

    /// A file, root's.
    pub fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let mut header = Self::header(EntryType::Regular, mode, size);
        self.tar.append_data(&mut header, path, bytes)
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, to: &str) -> io::Result<()> {
        let mut header = Self::header(EntryType::Symlink, 0o777, 0);
        self.tar.append_link(&mut header, path, to)
    }

    /// A program at `place` (absolute) with every library that this machine's loader gives it.
    pub fn program(&mut self, program: &Path, place: &str) -> Result<(), ImageError> {
        Ok(self.files(&podway::with_libraries(&[(program, place)])?, |_| 0o755)?)
    }

    /// Files by their absolute path, each of the mode that it is to have, and the directories that they are in.
    fn files(&mut self, files: &BTreeMap<PathBuf, Vec<u8>>, mode: impl Fn(&Path) -> u32) -> io::Result<()> {
        for dir in podway::directories(files.keys()) {
            self.dir(&dir, 0o755)?;
        }
        for (path, bytes) in files {
            self.file(&podway::within(path), mode(path), bytes)?;
        }
        Ok(())
    }

    /// The layer, packed.
    pub fn finish(self) -> io::Result<Layer> {
        let tar = self.tar.into_inner()?;
        let diff = digest(&tar);
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&tar)?;
        let blob = Blob::new("application/vnd.oci.image.layer.v1.tar+gzip", gzip.finish()?);
        Ok(Layer { diff, blob })
    }
}

/// The platform's name of this machine's processor.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Puts layers together; `name` is `registry/repository:tag`.
pub fn image(name: &str, layers: &[Layer], run: &Run) -> Result<Image, ImageError> {
    let (_, rest) = name.split_once('/').unwrap_or(("", name));
    let (repository, tag) = rest.rsplit_once(':').unwrap_or((rest, "latest"));
    let written = |value: &Value| serde_json::to_vec(value).map_err(|e| ImageError::Layer(e.into()));
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Entrypoint": run.entrypoint,
            "Cmd": run.cmd,
            "User": run.user,
        },
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| l.diff.as_str()).collect::<Vec<_>>()},
    });
    let config = Blob::new("application/vnd.oci.image.config.v1+json", written(&config)?);
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": config.descriptor(),
        "layers": layers.iter().map(|l| l.blob.descriptor()).collect::<Vec<_>>(),
    });
    let manifest = Blob::new(manifest_type, written(&manifest)?);
    let index_type = "application/vnd.oci.image.index.v1+json";
    let mut entry = manifest.descriptor();
    entry["platform"] = json!({"os": "linux", "architecture": architecture()});
    let index = json!({"schemaVersion": 2, "mediaType": index_type, "manifests": [entry]});
    let index = Blob::new(index_type, written(&index)?);
    let blobs = layers.iter().map(|l| l.blob.clone()).chain([config]).collect();
    Ok(Image { repository: repository.to_owned(), tag: tag.to_owned(), blobs, manifest, index })
}

/// busybox with all its applets, and the few files that programs expect.
pub fn busybox_layer(busybox: &Path) -> Result<Layer, ImageError> {
    let name = busybox.display().to_string();
    let bytes = fs::read(busybox).map_err(|source| ImageError::Read { path: name.clone(), source })?;
    let output = Command::new(busybox).arg("--list").output();
    let output = output.map_err(|source| ImageError::Read { path: name.clone(), source })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let applets: BTreeSet<&str> = text
        .lines()
        .map(str::trim)
        .filter(|a| !a.is_empty() && *a != "busybox" && !a.contains('/'))
        .collect();
    if !output.status.success() || !applets.contains("sh") {
        return Err(ImageError::Applets { path: name });
    }
    let mut layer = LayerBuilder::new();
    for (dir, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("sys", 0o755),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("usr/bin", 0o755),
        ("usr/sbin", 0o755),
        ("var", 0o755),
    ] {
        layer.dir(dir, mode)?;
    }
    layer.file("bin/busybox", 0o755, &bytes)?;
    for applet in applets {
        layer.link(&format!("bin/{applet}"), "busybox")?;
    }
    layer.link("usr/bin/env", "../../bin/env")?;
    layer.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
    )?;
    layer.file("etc/group", 0o644, b"root:x:0:\nnobody:x:65534:\n")?;
    layer.file("etc/os-release", 0o644, b"NAME=busybox\nID=busybox\n")?;
    Ok(layer.finish()?)
}

/// `docker.io/library/busybox:latest`.
pub fn busybox(layer: &Layer) -> Result<Image, ImageError> {
    image(BUSYBOX, std::slice::from_ref(layer), &Run { cmd: &["sh"], ..Run::default() })
}

/// `registry.k8s.io/pause:3.10.1`: the one program and nothing else.
pub fn pause(program: &Path) -> Result<Image, ImageError> {
    let read = |source| ImageError::Read { path: program.display().to_string(), source };
    let mut layer = LayerBuilder::new();
    layer.file("pause", 0o755, &fs::read(program).map_err(read)?)?;
    image(PAUSE, &[layer.finish()?], &Run { entrypoint: &["/pause"], ..Run::default() })
}

/// `registry.k8s.io/e2e-test-images/agnhost:2.63.0`, with a shell.
pub fn agnhost(program: &Path, busybox: &Layer) -> Result<Image, ImageError> {
    let read = |source| ImageError::Read { path: program.display().to_string(), source };
    let mut layer = LayerBuilder::new();
    layer.file("agnhost", 0o755, &fs::read(program).map_err(read)?)?;
    layer.link("bin/bash", "sh")?;
    let layers = [busybox.clone(), layer.finish()?];
    image(AGNHOST, &layers, &Run { entrypoint: &["/agnhost"], cmd: &["pause"], ..Run::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_the_same_each_time_and_its_digests_are_right() {
        let Some(program) = crate::busybox::installed() else {
            eprintln!("skipped: no busybox-static");
            return;
        };
        let layer = busybox_layer(&program).unwrap();
        let first = busybox(&layer).unwrap();
        assert_eq!(first, busybox(&busybox_layer(&program).unwrap()).unwrap());
        assert_eq!((first.repository.as_str(), first.tag.as_str()), ("library/busybox", "latest"));
        let manifest: Value = serde_json::from_slice(&first.manifest.bytes).unwrap();
        assert_eq!(manifest["layers"][0]["digest"], first.blobs[0].digest.as_str());
        assert_eq!(manifest["config"]["digest"], first.blobs[1].digest.as_str());
        let index: Value = serde_json::from_slice(&first.index.bytes).unwrap();
        assert_eq!(index["manifests"][0]["digest"], first.manifest.digest.as_str());
        let pause = pause(&program).unwrap();
        assert_eq!((pause.repository.as_str(), pause.tag.as_str()), ("pause", "3.10.1"));
        assert_eq!(pause.blobs.len(), 2);
    }
}
