//! The static pods' directory (`staticPodPath`), which may also be a single file: listed whenever inotify
//! tells of a change, and never polled. What is not there yet is waited for by watching the nearest
//! directory above it that is.
//!
//! A file whose last content was a pod and whose new one is none keeps its pod until it is gone: it may be
//! half written, and a slip of the pen is no reason to take a control plane down.

use super::file::{self, FileError};
use futures::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The directory and what its files said.
#[derive(Debug)]
pub struct Dir {
    path: PathBuf,
    node: String,
    /// By file: what it stands for, and what was wrong with it last.
    known: BTreeMap<PathBuf, (Option<Arc<Pod>>, Option<String>)>,
}

impl Dir {
    /// The directory at `path`, for the node `node`. Nothing is read yet.
    #[must_use]
    pub fn new(path: &Path, node: &str) -> Self {
        Dir { path: path.to_owned(), node: node.to_owned(), known: BTreeMap::new() }
    }

    /// The files that may be pods: not those that begin with a dot, and not what lies in directories.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let meta = match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        if !meta.is_dir() {
            return Ok(vec![self.path.clone()]);
        }
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            if !hidden && !entry.path().is_dir() {
                files.push(entry.path());
            }
        }
        files.sort();
        Ok(files)
    }

    /// What the files say now, of two of one name the first.
    ///
    /// # Errors
    /// When the directory is there and cannot be listed: what it held is then not known to be gone.
    pub fn read(&mut self) -> io::Result<Vec<Arc<Pod>>> {
        let files = self.files()?;
        self.known.retain(|path, _| files.contains(path));
        for path in files {
            let (pod, told) = self.known.remove(&path).unwrap_or_default();
            let entry = match file::read(&path, &self.node) {
                Ok(new) => {
                    // When it was first seen is no change.
                    let same = pod.filter(|old| old.metadata.uid == new.metadata.uid);
                    (Some(same.unwrap_or_else(|| Arc::new(new))), None)
                }
                // It went between the listing and the reading.
                Err(FileError::Read(error)) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    let why = crate::pod::actions::chain(&error);
                    if told.as_ref() != Some(&why) {
                        tracing::error!(path = %path.display(), error = why, "a static pod's file is not taken");
                    }
                    (pod, Some(why))
                }
            };
            self.known.insert(path, entry);
        }
        let mut named: HashMap<(Option<String>, Option<String>), &Path> = HashMap::new();
        let mut pods = Vec::new();
        for (path, (pod, _)) in &self.known {
            let Some(pod) = pod else { continue };
            let name = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
            match named.get(&name) {
                None => pods.push(Arc::clone(pod)),
                Some(first) => {
                    tracing::error!(path = %path.display(), first = %first.display(), "two files have one pod's name");
                }
            }
            named.entry(name).or_insert(path);
        }
        Ok(pods)
    }

    /// A watch on the directory, or on the nearest one above it that is there.
    ///
    /// # Errors
    /// When inotify refuses it.
    pub fn watch(&self) -> io::Result<EventStream<[u8; 4096]>> {
        let inotify = Inotify::init()?;
        let mask = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_FROM
            | WatchMask::MOVED_TO
            | WatchMask::DELETE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        for dir in self.path.ancestors() {
            match inotify.watches().add(dir, mask) {
                Ok(_) => return inotify.into_event_stream([0; 4096]),
                // A file, or nothing: what is above it is watched.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from(io::ErrorKind::NotFound))
    }

    /// Tells what the files say, whenever that may have changed; ends when inotify does not work.
    pub async fn follow(mut self, tell: impl Fn(Vec<Arc<Pod>>)) {
        loop {
            let mut changes = match self.watch() {
                Ok(changes) => changes,
                Err(error) => {
                    tracing::error!(path = %self.path.display(), %error, "static pods cannot be watched");
                    return;
                }
            };
            // Read after the watch stands: what came in between is not missed.
            let read = tokio::task::spawn_blocking(move || {
                let pods = self.read();
                (self, pods)
            });
            let Ok((dir, pods)) = read.await else { return };
            self = dir;
            match pods {
                Ok(pods) => tell(pods),
                Err(error) => {
                    tracing::error!(path = %self.path.display(), %error, "static pods cannot be listed");
                }
            }
            if let Some(Err(error)) = changes.next().await {
                tracing::error!(path = %self.path.display(), %error, "static pods cannot be watched");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    fn text(name: &str, image: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: {image}}}]}}\n"
        )
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<String> {
        pods.iter().filter_map(|p| p.metadata.name.clone()).collect()
    }

    #[test]
    fn broken_hidden_and_doubled_files() {
        let tmp = tempfile::tempdir().unwrap();
        let at = |name: &str| tmp.path().join(name);
        let mut dir = Dir::new(tmp.path(), "n");
        std::fs::write(at("a.yaml"), text("a", "i")).unwrap();
        std::fs::write(at("b.yaml"), text("a", "j")).unwrap();
        std::fs::write(at(".hidden"), text("h", "i")).unwrap();
        std::fs::write(at("broken"), "kind: [").unwrap();
        std::fs::create_dir(at("dir")).unwrap();
        let first = dir.read().unwrap();
        assert_eq!(names(&first), ["a-n"]);
        let again = dir.read().unwrap();
        assert!(Arc::ptr_eq(&first[0], &again[0]), "nothing new is nothing new");
        std::fs::write(at("a.yaml"), "kind: [").unwrap();
        assert_eq!(dir.read().unwrap()[0].metadata.uid, first[0].metadata.uid, "a slip keeps the pod");
        std::fs::remove_file(at("a.yaml")).unwrap();
        let other = dir.read().unwrap();
        assert_eq!(names(&other), ["a-n"], "the second of the name comes when the first is gone");
        assert_ne!(other[0].metadata.uid, first[0].metadata.uid);
        let mut single = Dir::new(&at("b.yaml"), "n");
        assert_eq!(names(&single.read().unwrap()), ["a-n"]);
        assert!(Dir::new(&at("absent"), "n").read().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_directory_that_comes_late_and_goes_is_followed() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("etc/manifests");
        let (tell, mut told) = mpsc::unbounded_channel();
        let dir = Dir::new(&path, "n");
        let follow = tokio::spawn(dir.follow(move |pods| drop(tell.send(names(&pods)))));
        let mut until = async |expected: &[&str]| {
            let wait = async { while told.recv().await.unwrap() != expected {} };
            tokio::time::timeout(std::time::Duration::from_secs(20), wait).await.unwrap();
        };
        until(&[]).await;
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("a"), text("a", "i")).unwrap();
        until(&["a-n"]).await;
        // Renamed into its place, as those do who replace a file whole.
        std::fs::write(path.join(".next"), text("b", "i")).unwrap();
        std::fs::rename(path.join(".next"), path.join("b")).unwrap();
        until(&["a-n", "b-n"]).await;
        std::fs::remove_file(path.join("a")).unwrap();
        until(&["b-n"]).await;
        std::fs::remove_dir_all(&path).unwrap();
        until(&[]).await;
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("c"), text("c", "i")).unwrap();
        until(&["c-n"]).await;
        follow.abort();
    }
}
