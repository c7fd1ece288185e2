//! What an extender is configured to be: upstream's `Extender` of KubeSchedulerConfiguration v1, valid.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// Upstream's `DefaultExtenderTimeout`.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// An extender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Where it is; the verbs are appended.
    pub url: String,
    /// How it is asked which nodes pass.
    pub filter: Option<String>,
    /// How it is asked which are better, and what that counts; at least 1.
    pub prioritize: Option<(String, i64)>,
    /// How it is asked about victims.
    pub preempt: Option<String>,
    /// How it is told to bind.
    pub bind: Option<String>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// It knows the nodes, and is sent their names alone.
    pub knows_nodes: bool,
    /// It has a say about pods that ask for one of these; empty: about all.
    pub managed: BTreeSet<String>,
    /// Those of them that NodeResourcesFit does not look at.
    pub ignored: BTreeSet<String>,
    /// Decisions go on without it when it fails.
    pub ignorable: bool,
    /// The server's certificate is not checked where there is no authority to go by (upstream's enableHTTPS).
    pub https: bool,
    /// Whom to trust and what to show.
    pub tls: Tls,
}

/// How the connection is kept safe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The server's certificate is not checked.
    pub insecure: bool,
    /// The name that it is to have.
    pub server_name: Option<String>,
    /// Whom to trust.
    pub authority: Option<Pem>,
    /// What to show, with its key.
    pub identity: Option<(Pem, Pem)>,
}

/// Certificates or a key.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    /// In a file.
    File(PathBuf),
    /// Here.
    Data(Vec<u8>),
}

/// A key is never shown.
impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Pem::File(path) => f.debug_tuple("File").field(path).finish(),
            Pem::Data(data) => write!(f, "Data({} bytes)", data.len()),
        }
    }
}

impl Spec {
    /// One at `url` that does nothing yet.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Spec {
            url: url.into(),
            filter: None,
            prioritize: None,
            preempt: None,
            bind: None,
            timeout: TIMEOUT,
            knows_nodes: false,
            managed: BTreeSet::new(),
            ignored: BTreeSet::new(),
            ignorable: false,
            https: false,
            tls: Tls::default(),
        }
    }
}
