//! A run as a file: what changed in the cache, and each decision, in the order in which they came.
//!
//! A decision is a function of the snapshot, the pod, the profile and what the last cycle left (`cycle.rs`); the
//! snapshot is a function of the changes. So that a file of the changes is enough for `replay.rs` to come to
//! the same decisions, bit for bit, scores and generations included: a report of a wrong decision is a test.
//!
//! One JSON object per line. The objects are whole, as the API server has them: whoever may read the file may read
//! every pod's specification, so that it is of mode 0600.

use crate::explain::ring::Outcome;
use crate::framework::{Candidate, Preemption};
use crate::model::Original;
use k8s_openapi::api::core::v1::{Node, Pod};
use podway_api::profile::ProfileSpec;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The form of the file.
pub const VERSION: u32 = 1;

/// A line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Entry {
    /// The first: the form, and the profiles of the configuration.
    Began {
        /// [`VERSION`].
        version: u32,
        /// By name.
        profiles: Vec<(String, ProfileSpec)>,
    },
    /// A profile's object came or changed, or went.
    Profile {
        /// Whose.
        name: String,
        /// Which of its generations.
        generation: i64,
        /// What it says; absent when it went.
        spec: Option<Box<ProfileSpec>>,
    },
    /// A node came or changed.
    Node(Original<Node>),
    /// A node went.
    NodeGone(String),
    /// A pod is on a node.
    Placed {
        /// Which pod.
        pod: Original<Pod>,
        /// The node.
        node: String,
        /// Only assumed.
        assumed: bool,
    },
    /// A pod is on no node any more.
    PodGone(String),
    /// A pod is nominated to a node.
    Nominated {
        /// Which pod.
        pod: Original<Pod>,
        /// The node.
        node: String,
    },
    /// It no longer is.
    Unnominated(String),
    /// A namespace came or changed, or went.
    Namespace {
        /// Its name.
        name: String,
        /// Its labels; absent when it went.
        labels: Option<BTreeMap<String, String>>,
    },
    /// A step of another kind's watch.
    Object {
        /// Of which kind.
        kind: String,
        /// Which step.
        step: ObjectStep,
        /// Of which object.
        key: String,
        /// The object.
        object: Option<Value>,
    },
    /// What a pod's claims were taken to have they have not.
    VolumesReverted(String),
    /// A decision.
    Decided(Box<Decided>),
}

/// A step of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ObjectStep {
    /// A list begins.
    Begin,
    /// Part of it.
    Listed,
    /// It is complete.
    Done,
    /// Came or changed.
    Set,
    /// Went.
    Gone,
}

/// A decision.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Decided {
    /// The pod, as it was decided.
    pub pod: Original<Pod>,
    /// The node that it was nominated to; empty for none.
    pub nominated: String,
    /// What came of it.
    pub came: Value,
}

/// What came of a cycle, whole enough to tell two apart.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Came<'a> {
    /// Of the snapshot.
    pub(crate) generation: u64,
    /// Node and scores, or the message.
    #[serde(flatten)]
    pub(crate) outcome: &'a Outcome,
    /// The node, and the UIDs of whoever goes from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) evicts: Option<(String, Vec<String>)>,
}

impl Came<'_> {
    /// Who goes.
    pub(crate) fn evicts(preemption: Option<&Preemption>) -> Option<(String, Vec<String>)> {
        let Candidate { node, victims, .. } = &preemption?.best;
        Some((node.clone(), victims.iter().map(|v| v.uid.clone()).collect()))
    }
}

/// The file that is being written.
#[derive(Debug)]
pub struct Recorder {
    out: BufWriter<File>,
}

impl Recorder {
    /// Begins a file, which must not be there yet.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn begin(path: &Path, profiles: &[(String, ProfileSpec)]) -> io::Result<Self> {
        let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        let mut recorder = Recorder { out: BufWriter::new(file) };
        recorder.write(&Entry::Began { version: VERSION, profiles: profiles.to_vec() })?;
        Ok(recorder)
    }

    /// Writes a line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, entry: &Entry) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, entry)?;
        self.out.write_all(b"\n")
    }

    /// What was written so far is in the file, also if the process is killed.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
