//! The sub-commands, and what they share: output that heeds a closed pipe, errors with a hint.

pub(crate) mod agent;
pub(crate) mod completions;
pub(crate) mod crds;
pub(crate) mod down;
pub(crate) mod explain;
pub(crate) mod flow;
pub(crate) mod image;
pub(crate) mod man;
pub(crate) mod replay;
pub(crate) mod runtime;
pub(crate) mod scheduler;
pub(crate) mod ui;
pub(crate) mod up;
pub(crate) mod version;
pub(crate) mod whatif;
pub(crate) mod why;

use std::io::{self, Write as _};

/// An error that knows what to do about it.
#[derive(Debug)]
pub(crate) struct Hinted {
    message: String,
    /// What the user can do.
    pub(crate) hint: String,
}

impl Hinted {
    /// An error of `message` with a `hint`.
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Hinted { message: message.into(), hint: hint.into() }
    }
}

impl std::fmt::Display for Hinted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hinted {}

/// Writes to standard output; a reader that has gone (`| head`) is not an error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// The name of `NAME`, `pod/NAME` (as kubectl prints it), `pods/NAME` or `po/NAME`.
pub(crate) fn pod_name(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        None => Ok(text.to_owned()),
        Some(("pod" | "pods" | "po", name)) => Ok(name.to_owned()),
        Some((kind, _)) => Err(format!("not supported: a {kind}; give NAME or pod/NAME")),
    }
}

/// The form of an answer.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

impl Output {
    /// Prints `answer`: in the words of `text`, or as JSON.
    pub(crate) fn print<T: serde::Serialize>(
        self,
        answer: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        print(&match self {
            Output::Text => text(answer),
            Output::Json => format!("{}\n", serde_json::to_string_pretty(answer)?),
        })
    }
}

/// `text` as one line that is safe on a terminal.
pub(crate) fn one_line(text: &str) -> String {
    let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
    podway_flow::waterfall::escaped(&joined, false)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_pod_is_named_as_kubectl_names_it() {
        for text in ["x", "pod/x", "pods/x", "po/x"] {
            assert_eq!(super::pod_name(text).as_deref(), Ok("x"));
        }
        assert!(super::pod_name("node/x").is_err_and(|error| error.contains("a node")));
    }
}
