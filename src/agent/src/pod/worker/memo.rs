//! What a worker must still know after the agent was killed and neither the runtime nor the API server
//! tells: the restart delays, the hooks that were begun, an end that the node decided.
//!
//! One small file beside the pod's volumes, replaced by rename whenever it changes: before the first
//! restart with a delay and before a stop, never on a pod's way to Ready. It goes with the pod's
//! directory. A file that cannot be read is as none: the pod goes on with what the runtime tells.

use super::*;
use crate::files;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The format; another one is not read.
const VERSION: u32 = 1;

/// Why an instance goes that was told to before the agent came.
const WHY: &str = "failed a probe or hook";

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Memo {
    version: u32,
    /// By container: the delay in µs, and the exit that it follows.
    restarts: BTreeMap<String, (u64, i64)>,
    /// Instances whose `preStop` was begun.
    pre_stopped: std::collections::BTreeSet<String>,
    /// Instances that a probe or a hook told to go, with the probe's grace in µs.
    killed: BTreeMap<String, (String, Option<u64>)>,
    stopping_since: Option<i64>,
    /// Failed, reason, message: only with a reason, as any other end is decided again.
    end: Option<(bool, String, String)>,
    grace: Option<u64>,
    disruption: Option<String>,
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

impl Memo {
    fn of(journal: &Journal, pre_stopped: &HashSet<String>) -> Self {
        let restarts = journal.containers.iter().filter_map(|(name, memory)| {
            let (delay, at) = memory.restart.filter(|(delay, _)| !delay.is_zero())?;
            Some((name.clone(), (micros(delay), at.0)))
        });
        let killed = journal.containers.iter().filter_map(|(name, memory)| {
            let killed = memory.killed.as_ref()?;
            Some((name.clone(), (killed.id.clone(), killed.grace.map(micros))))
        });
        let end = journal.terminal.as_ref().filter(|t| !t.reason.is_empty());
        Memo {
            version: VERSION,
            restarts: restarts.collect(),
            pre_stopped: pre_stopped.iter().cloned().collect(),
            killed: killed.collect(),
            stopping_since: journal.stopping_since.map(|at| at.0),
            end: end.map(|t| (t.failed, t.reason.clone(), t.message.clone())),
            grace: journal.grace.map(micros),
            disruption: journal.disruption.clone(),
        }
    }

    /// Puts what is remembered into a journal that has only what the API server told.
    fn recall(self, journal: &mut Journal, pre_stopped: &mut HashSet<String>) {
        for (name, (delay, at)) in self.restarts {
            journal.of_mut(&name).restart = Some((Duration::from_micros(delay), Micros(at)));
        }
        for (name, (id, grace)) in self.killed {
            let grace = grace.map(Duration::from_micros);
            journal.of_mut(&name).killed = Some(core::Killed { id, grace, why: WHY });
        }
        pre_stopped.extend(self.pre_stopped);
        journal.stopping_since = self.stopping_since.map(Micros).or(journal.stopping_since);
        if let Some((failed, reason, message)) = self.end {
            journal.terminal.get_or_insert(Terminal { failed, reason, message });
        }
        journal.grace = self.grace.map(Duration::from_micros);
        journal.disruption = self.disruption;
    }

    /// Whether there is anything that would be missed.
    fn says_nothing(&self) -> bool {
        *self == Memo { version: VERSION, ..Memo::default() }
    }
}

fn read(path: &Path) -> std::io::Result<Option<Memo>> {
    Ok(files::recall(path)?.filter(|m: &Memo| m.version == VERSION))
}

impl Worker {
    fn memo_path(&self) -> Option<PathBuf> {
        // A UID that is no name of a directory has no volumes either.
        Some(self.context.volumes.pod_dir(&self.pod.uid).ok()?.join("memo.json"))
    }

    /// Reads what an agent before this one left.
    pub(super) fn recall(&mut self) {
        let Some(path) = self.memo_path() else { return };
        match read(&path) {
            Ok(Some(memo)) => {
                self.memo = memo.clone();
                memo.recall(&mut self.journal, &mut self.pre_stopped);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(pod = %self.pod.uid, %error, "what was remembered of a pod cannot be read");
            }
        }
    }

    /// Writes down what changed, before anything is done about it.
    pub(super) fn remember(&mut self) {
        let memo = Memo::of(&self.journal, &self.pre_stopped);
        // Once its directory goes there is nothing left to forget.
        let going = self.unmounted || self.cleaned || self.removed || self.runs(&Key::Unmount);
        if memo == self.memo || (memo.says_nothing() && self.memo.version == 0) || going {
            return;
        }
        let Some(path) = self.memo_path() else { return };
        match files::keep(&path, 0o750, &memo) {
            Ok(()) => self.memo = memo,
            Err(error) => {
                tracing::warn!(pod = %self.pod.uid, %error, "what is remembered of a pod cannot be written");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_recalled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods/u/memo.json");
        assert_eq!(read(&path).unwrap(), None);
        let mut journal = Journal {
            stopping_since: Some(Micros(7)),
            terminal: Some(Terminal { failed: true, reason: "Evicted".into(), message: "m".into() }),
            grace: Some(Duration::from_secs(1)),
            disruption: Some("m".into()),
            ..Journal::default()
        };
        let memory = journal.of_mut("c");
        memory.restart = Some((Duration::from_secs(20), Micros(5_000_123)));
        memory.killed = Some(core::Killed { id: "c-1".into(), grace: None, why: WHY });
        let stopped = HashSet::from(["c-0".to_owned()]);
        let memo = Memo::of(&journal, &stopped);
        files::keep(&path, 0o750, &memo).unwrap();
        let (mut again, mut hooks) = (Journal::default(), HashSet::new());
        read(&path).unwrap().unwrap().recall(&mut again, &mut hooks);
        assert_eq!((&again, &hooks), (&journal, &stopped));
        std::fs::write(&path, "{\"version\": 1").unwrap();
        read(&path).unwrap_err();
        std::fs::write(&path, serde_json::to_string(&Memo { version: 9, ..memo }).unwrap()).unwrap();
        assert_eq!(read(&path).unwrap(), None, "of another version");
    }

    #[test]
    fn a_pod_that_simply_starts_has_nothing_to_remember() {
        let mut journal = Journal::default();
        journal.of_mut("c").restart = Some((Duration::ZERO, Micros(3)));
        journal.of_mut("c").image_ready = true;
        journal.terminal = Some(Terminal { failed: false, reason: String::new(), message: String::new() });
        assert!(Memo::of(&journal, &HashSet::new()).says_nothing());
    }
}
