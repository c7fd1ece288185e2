//! One record: one phase, of one thing, at one attempt.

use crate::{Micros, Phase};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Who wrote a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Writer {
    /// The API server, read from its audit log or from the object's metadata.
    ApiServer,
    /// `podway scheduler`, or another scheduler read from conditions and events.
    Scheduler,
    /// `podway agent`, or a kubelet read from conditions and events.
    Agent,
    /// The CRI runtime.
    Runtime,
}

impl Writer {
    /// As people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Writer::ApiServer => "API server",
            Writer::Scheduler => "scheduler",
            Writer::Agent => "agent",
            Writer::Runtime => "runtime",
        }
    }
}

/// How fine a record's times are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Resolution {
    /// One microsecond.
    #[default]
    Micros,
    /// One second: the time comes from a condition or from `creationTimestamp`.
    Second,
}

/// How a phase ended, or that it has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
pub enum Outcome {
    /// Not ended yet.
    Running,
    /// Done.
    Succeeded,
    /// Failed; `reason` and `message` say how.
    Failed,
    /// There was nothing to do (an image that is present, a pod without volumes).
    Skipped,
}

/// One phase, of one thing (a pod, or one of its containers, volumes, images), at one attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The phase.
    pub phase: Phase,
    /// What of the pod: a container, volume or image name; `None` for the pod as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Who wrote it.
    pub writer: Writer,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// When it began, waiting in a queue included.
    pub start: Micros,
    /// When it ended; `None` while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Micros>,
    /// Of that time, what was spent waiting in a queue or for a lock, in µs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub queued_micros: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// A CamelCase word of a closed set.
    pub reason: String,
    /// For people; at most [`Record::MESSAGE_LIMIT`] bytes; never a secret.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// How fine `start` and `end` are.
    #[serde(default)]
    pub resolution: Resolution,
    /// Facts that show that it happened: ids, digests, pids, inodes. Keys are camelCase.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub evidence: BTreeMap<String, String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Record {
    /// The longest message kept, in bytes.
    pub const MESSAGE_LIMIT: usize = 512;

    /// The duration in µs; `None` while it runs.
    #[must_use]
    pub fn duration(&self) -> Option<u64> {
        self.end.map(|end| end.since(self.start))
    }
}

/// `text` cut to `limit` bytes at a character boundary, with an ellipsis where it was cut.
#[must_use]
pub fn bounded(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let mut end = limit.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::bounded;

    #[test]
    fn a_message_is_cut_at_a_character_and_never_exceeds_its_limit() {
        let text = "é".repeat(400);
        for limit in 3..20 {
            let cut = bounded(&text, limit);
            assert!(cut.len() <= limit && cut.ends_with('…'), "{limit}: {cut}");
        }
        assert_eq!(bounded("short", 10), "short");
    }
}
