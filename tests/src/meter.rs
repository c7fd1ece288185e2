//! Times of pods as an outside watcher sees them, and the memory of processes.

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// What the watcher saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The pod is Ready.
    Ready(String),
    /// The pod is gone.
    Gone(String),
}

/// A watch on the pods of a namespace.
pub struct Watcher {
    seen: mpsc::UnboundedReceiver<(Instant, Seen)>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watcher {
    /// Begins to watch.
    #[must_use]
    pub fn new(api: Api<Pod>) -> Self {
        let (send, seen) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let mut ready = HashSet::new();
            let mut stream = std::pin::pin!(watcher(api, watcher::Config::default()));
            while let Some(Ok(event)) = stream.next().await {
                let now = Instant::now();
                let seen = match event {
                    watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => {
                        let name = pod.name_any();
                        let is = crate::namespace::condition(&pod, "Ready") == Some("True");
                        // The first time only.
                        (is && ready.insert(name.clone())).then_some(Seen::Ready(name))
                    }
                    watcher::Event::Delete(pod) => {
                        ready.remove(&pod.name_any());
                        Some(Seen::Gone(pod.name_any()))
                    }
                    watcher::Event::Init | watcher::Event::InitDone => None,
                };
                if seen.is_some_and(|seen| send.send((now, seen)).is_err()) {
                    return;
                }
            }
        });
        Watcher { seen, task }
    }

    /// Waits until each of `wanted` was seen; returns when the last one was.
    ///
    /// # Errors
    /// After `limit`, or when the watch broke off.
    pub async fn all(&mut self, wanted: &[Seen], limit: Duration) -> anyhow::Result<Instant> {
        let mut left: Vec<&Seen> = wanted.iter().collect();
        let mut last = Instant::now();
        let wait = async {
            while !left.is_empty() {
                let Some((at, seen)) = self.seen.recv().await else { bail!("the watch broke off") };
                if let Some(found) = left.iter().position(|w| **w == seen) {
                    left.swap_remove(found);
                    last = at;
                }
            }
            Ok(())
        };
        let ended = tokio::time::timeout(limit, wait).await;
        ended.with_context(|| {
            format!("{} of {} not seen in {limit:?}: {left:?}", left.len(), wanted.len())
        })??;
        Ok(last)
    }
}

/// Memory of processes, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// How many processes.
    pub processes: u64,
    /// Resident.
    pub rss: u64,
    /// Resident, shared pages divided among those who share them.
    pub pss: u64,
}

/// The `/proc` directories of all processes whose command line has one of `patterns` in it, but for this one.
pub fn processes(patterns: &[impl AsRef<str>]) -> impl Iterator<Item = PathBuf> {
    let own = std::process::id().to_string();
    let named = move |path: &PathBuf| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        name.bytes().all(|b| b.is_ascii_digit())
            && name != own
            && patterns.iter().any(|p| line.contains(p.as_ref()))
    };
    std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|e| e.path()).filter(named)
}

/// The memory of all processes whose command line has `pattern` in it.
#[must_use]
pub fn memory(pattern: &str) -> Memory {
    processes(&[pattern]).filter_map(|path| rollup(&path)).fold(Memory::default(), |sum, (rss, pss)| Memory {
        processes: sum.processes + 1,
        rss: sum.rss + rss,
        pss: sum.pss + pss,
    })
}

/// The memory of one process; `None` where it has ended.
#[must_use]
pub fn of(pid: u32) -> Option<Memory> {
    let (rss, pss) = rollup(&Path::new("/proc").join(pid.to_string()))?;
    Some(Memory { processes: 1, rss, pss })
}

/// `Rss` and `Pss` of a process; `None` for one that has ended.
fn rollup(proc: &Path) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(proc.join("smaps_rollup")).ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some((field("Rss:")?, field("Pss:")?))
}

/// The kernel's clock tick in /proc (`USER_HZ`, 100 on every architecture that we run on).
const TICK_MICROS: u64 = 10_000;

/// µs of CPU that all processes with one of `patterns` in their command line have used.
#[must_use]
pub fn cpu_micros(patterns: &[String]) -> u64 {
    let of = |path: PathBuf| ticks(&std::fs::read_to_string(path.join("stat")).ok()?);
    processes(patterns).filter_map(of).sum::<u64>() * TICK_MICROS
}

/// `utime` and `stime` of /proc/PID/stat, the 14th and 15th field; the 2nd, in brackets, may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ticks_of_a_process() {
        assert_eq!(ticks("1 (a) b) S 0 1 1 0 -1 4194560 1 2 3 4 70 30 5 6 20 0 1"), Some(100));
        assert_eq!(ticks("nothing"), None);
        assert_eq!(cpu_micros(&["no such command line anywhere".to_owned()]), 0);
    }

    #[test]
    fn this_process_has_memory() {
        let (rss, pss) = rollup(Path::new("/proc/self")).unwrap();
        assert!(rss >= pss && pss > 0);
        assert_eq!(memory("no such command line anywhere"), Memory::default());
    }
}
