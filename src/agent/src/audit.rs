//! Steps 1 to 3, 5 and 6 of a pod from the API server's audit log, where the agent may read it.
//!
//! The log is read only while a pod's start waits for its lines, from where the last reading ended:
//! a settled node reads nothing. New lines wake the reader through inotify; a log that was rotated
//! is begun anew.

use futures::StreamExt as _;
use inotify::{Inotify, WatchMask};
use memchr::memmem;
use podway_flow::audit::{Collector, LINE_LIMIT};
use podway_flow::{Phase, Record};
use serde::Deserialize;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How much of a log is read at most in one go, in bytes: what is older is nobody's news.
const READ_LIMIT: u64 = 16 * 1024 * 1024;
/// How many pods' lines are kept; the oldest go first.
const PODS: usize = 1024;

type Key = (String, String);

#[derive(Debug, Default)]
struct State {
    inode: u64,
    offset: u64,
    lines: BTreeMap<Key, Vec<Vec<u8>>>,
    order: VecDeque<Key>,
}

/// The log.
#[derive(Clone, Debug)]
pub struct AuditLog {
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Deserialize)]
struct Answer {
    metadata: Option<Named>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    object_ref: Named,
    response_object: Option<Answer>,
}

/// Whether a line may be of a pod's creation or binding: looked at before it is parsed.
fn of_interest(line: &[u8]) -> bool {
    let has = |what: &[u8]| memmem::find(line, what).is_some();
    // A server-side apply creates by PATCH; no other PATCH is answered with 201.
    let creates = has(br#""verb":"create""#) || (has(br#""verb":"patch""#) && has(br#""code":201"#));
    creates && has(br#""resource":"pods""#) && has(br#""stage":"ResponseComplete""#)
}

impl State {
    fn read(&mut self, path: &std::path::Path) -> io::Result<()> {
        let mut file = File::open(path)?;
        let meta = file.metadata()?;
        if meta.ino() != self.inode || meta.len() < self.offset {
            (self.inode, self.offset) = (meta.ino(), 0);
        }
        self.offset = self.offset.max(meta.len().saturating_sub(READ_LIMIT));
        file.seek(SeekFrom::Start(self.offset))?;
        let mut reader = BufReader::new(file.take(READ_LIMIT));
        let mut line = Vec::new();
        loop {
            line.clear();
            let n = (&mut reader).take(LINE_LIMIT).read_until(b'\n', &mut line)?;
            // A line that is still being written is read again next time.
            if line.last() != Some(&b'\n') && (n as u64) < LINE_LIMIT {
                return Ok(());
            }
            self.offset += n as u64;
            if of_interest(&line) {
                self.keep(&line);
            }
        }
    }

    fn keep(&mut self, line: &[u8]) {
        let Ok(event) = serde_json::from_slice::<Line>(line) else { return };
        let mut key = (event.object_ref.namespace, event.object_ref.name);
        if key.1.is_empty()
            && let Some(made) = event.response_object.and_then(|o| o.metadata)
        {
            key.1 = made.name;
        }
        if !self.lines.contains_key(&key) {
            self.order.push_back(key.clone());
            if self.order.len() > PODS
                && let Some(oldest) = self.order.pop_front()
            {
                self.lines.remove(&oldest);
            }
        }
        self.lines.entry(key).or_default().push(line.to_vec());
    }

    fn records(&self, namespace: &str, name: &str) -> Vec<Record> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut collector = Collector::new(namespace, name);
        for line in self.lines.get(&key).into_iter().flatten() {
            collector.line(line);
        }
        collector.finish()
    }
}

impl AuditLog {
    /// The log at `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        AuditLog { path, state: Arc::default() }
    }

    async fn read(&self) -> io::Result<()> {
        let (state, path) = (Arc::clone(&self.state), self.path.clone());
        tokio::task::spawn_blocking(move || state.lock().unwrap_or_else(PoisonError::into_inner).read(&path))
            .await
            .map_err(io::Error::other)?
    }

    fn records(&self, namespace: &str, name: &str, uid: &str) -> Vec<Record> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let records = state.records(namespace, name);
        // A pod of the same name that is not this one tells nothing of it.
        let other = records.iter().any(|r| r.evidence.get("uid").is_some_and(|u| !u.is_empty() && u != uid));
        if other { Vec::new() } else { records }
    }

    /// What the log says of a pod: as soon as request and binding are there, or whatever is there
    /// after `patience`.
    ///
    /// # Errors
    /// When the log cannot be read or watched.
    pub async fn find(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        patience: Duration,
    ) -> io::Result<Vec<Record>> {
        let whole = |records: &[Record]| {
            [Phase::Persisted, Phase::Bound].iter().all(|p| records.iter().any(|r| r.phase == *p))
        };
        self.read().await?;
        let records = self.records(namespace, name, uid);
        if whole(&records) {
            return Ok(records);
        }
        let watch = Inotify::init()?;
        watch.watches().add(&self.path, WatchMask::MODIFY)?;
        let mut changes = watch.into_event_stream([0u8; 1024])?;
        let end = tokio::time::Instant::now() + patience;
        loop {
            // Read again after the watch stands: what came in between is not missed.
            self.read().await?;
            let records = self.records(namespace, name, uid);
            if whole(&records) {
                return Ok(records);
            }
            match tokio::time::timeout_at(end, changes.next()).await {
                Ok(Some(change)) => drop(change?),
                Ok(None) | Err(_) => return Ok(records),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn line(sub: &str, uid: &str) -> String {
        format!(
            "{{\"kind\":\"Event\",\"auditID\":\"a\",\"stage\":\"ResponseComplete\",\"verb\":\"create\",\"user\":{{\"username\":\"u\"}},\"objectRef\":{{\"resource\":\"pods\",\"namespace\":\"n\",\"name\":\"p\",\"subresource\":\"{sub}\"}},\"responseStatus\":{{\"code\":201}},\"responseObject\":{{\"metadata\":{{\"name\":\"p\",\"uid\":\"{uid}\",\"resourceVersion\":\"7\"}}}},\"requestReceivedTimestamp\":\"2026-01-01T00:00:00.000001Z\",\"stageTimestamp\":\"2026-01-01T00:00:00.000005Z\"}}\n"
        )
    }

    #[tokio::test]
    async fn a_pods_lines_are_found_also_when_they_come_late() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        std::fs::write(&path, line("", "u-1")).unwrap();
        let log = AuditLog::new(path.clone());
        let late = tokio::spawn({
            let log = log.clone();
            async move { log.find("n", "p", "u-1", Duration::from_secs(10)).await.unwrap() }
        });
        tokio::time::sleep(Duration::from_millis(30)).await;
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"not\":\"of interest\"}\n").unwrap();
        file.write_all(line("binding", "").as_bytes()).unwrap();
        let phases: Vec<Phase> = late.await.unwrap().iter().map(|r| r.phase).collect();
        assert_eq!(phases, [Phase::Requested, Phase::Persisted, Phase::Bound]);
        let other = log.find("n", "p", "u-2", Duration::from_millis(1)).await.unwrap();
        assert!(other.is_empty(), "another pod of the name");
        let applied = line("", "u-4").replace("\"create\"", "\"patch\"").replace("\"p\"", "\"q\"");
        file.write_all(applied.replace("201", "200").as_bytes()).unwrap();
        file.write_all(applied.as_bytes()).unwrap();
        let records = log.find("n", "q", "u-4", Duration::ZERO).await.unwrap();
        let phases: Vec<Phase> = records.iter().map(|r| r.phase).collect();
        assert_eq!(phases, [Phase::Requested, Phase::Persisted], "a server-side apply");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, line("", "u-3") + &line("binding", "")).unwrap();
        assert_eq!(log.find("n", "p", "u-3", Duration::ZERO).await.unwrap().len(), 3, "a rotated log");
    }
}
