//! Who asked the API server for what, from its audit log: the figure that no client can flatter.

use anyhow::Context as _;
use serde::Deserialize;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::Path;

/// A request, as far as it matters here.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// create, update, patch, delete, get.
    pub verb: String,
    /// The path and what was asked with it.
    #[serde(default, rename = "requestURI")]
    pub request_uri: String,
    /// Who.
    pub user: User,
    /// To what.
    #[serde(default)]
    pub object_ref: Object,
}

/// Who asked.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct User {
    /// The user's name.
    pub username: String,
}

/// What was asked for.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Object {
    /// pods, events, podflows.
    pub resource: String,
    /// status, binding, token.
    pub subresource: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name; empty for a create with a generated name.
    pub name: String,
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Object { resource, subresource, name, .. } = &self.object_ref;
        let slash = if subresource.is_empty() { "" } else { "/" };
        write!(f, "{} {resource}{slash}{subresource} {name} by {}", self.verb, self.user.username)
    }
}

impl Request {
    /// True for what changes something in etcd. A token that is asked for is stored nowhere.
    #[must_use]
    pub fn is_write(&self) -> bool {
        self.verb != "get" && self.object_ref.subresource != "token"
    }

    /// True for what the namespace itself causes, whatever runs in it.
    #[must_use]
    pub fn is_of_namespace(&self) -> bool {
        ["serviceaccounts", "configmaps", "namespaces"].contains(&self.object_ref.resource.as_str())
            && self.object_ref.subresource.is_empty()
    }
}

/// The end of the log: what comes after it is new.
///
/// # Errors
/// When the log cannot be read.
pub fn mark(log: &Path) -> anyhow::Result<u64> {
    Ok(std::fs::metadata(log).with_context(|| format!("the audit log {}", log.display()))?.len())
}

/// The requests about a namespace that were logged since `mark`, in order.
///
/// # Errors
/// When the log cannot be read.
pub fn since(log: &Path, mark: u64, namespace: &str) -> anyhow::Result<Vec<Request>> {
    let mut file = File::open(log).with_context(|| format!("the audit log {}", log.display()))?;
    file.seek(SeekFrom::Start(mark))?;
    let mut out = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        // The last line may be half written; it is of something later then.
        let Ok(request) = serde_json::from_slice::<Request>(&line?) else { continue };
        if request.object_ref.namespace == namespace {
            out.push(request);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_a_namespace_are_counted_from_the_mark() {
        let line = |verb: &str, resource: &str, ns: &str| {
            format!(
                "{{\"verb\":\"{verb}\",\"user\":{{\"username\":\"u\"}},\"objectRef\":{{\"resource\":\"{resource}\",\
                 \"namespace\":\"{ns}\",\"name\":\"x\"}}}}\n"
            )
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), line("create", "pods", "a")).unwrap();
        let at = mark(file.path()).unwrap();
        let later =
            [line("patch", "pods", "a"), line("patch", "pods", "b"), line("get", "pods", "a")].concat();
        let all = line("create", "pods", "a") + &later + "{\"verb\":\"pa";
        std::fs::write(file.path(), all).unwrap();
        let found = since(file.path(), at, "a").unwrap();
        assert_eq!(
            found.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["patch pods x by u", "get pods x by u"]
        );
        assert_eq!(found.iter().filter(|r| r.is_write()).count(), 1);
    }
}
