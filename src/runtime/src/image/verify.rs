//! Image verifiers: programs that say whether an image may be used, by its digest.
//!
//! The protocol is containerd's (docs/image-verification.md there): each executable file of the
//! directory is run with `-name REF -digest DIGEST -stdin-media-type TYPE` and the descriptor on
//! stdin; exit 0 accepts, anything else refuses, and what it printed is the reason. All must accept.
//! Unlike containerd's, a configured directory that is missing or empty refuses every image: it
//! fails closed.

use super::reference::{Digest, ImageRef};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const MEDIA_TYPE: &str = "application/vnd.oci.descriptor.v1+json";
/// The most of a reason that is kept.
const REASON: u64 = 4096;

/// Why an image is not used.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is nobody to ask.
    #[error("[images] verifiers {} has no program that could accept an image", .0.display())]
    Nobody(PathBuf),
    /// The directory could not be read.
    #[error("[images] verifiers {} could not be read", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A verifier could not be run.
    #[error("the image verifier {} could not be run", .0.display())]
    Run(PathBuf, #[source] io::Error),
    /// A verifier took too long.
    #[error("the image verifier {} did not answer within {seconds} s", path.display())]
    Timeout {
        /// The program.
        path: PathBuf,
        /// What it was given.
        seconds: u64,
    },
    /// A verifier refused.
    #[error("image verifier {verifier:?} refused {digest}: {reason}")]
    Refused {
        /// Its name.
        verifier: String,
        /// Of what.
        digest: Digest,
        /// In its words.
        reason: String,
    },
}

/// Who must accept an image.
#[derive(Clone, Debug, Default)]
pub struct Verifiers {
    /// Where they are; nobody is asked without one.
    pub dir: Option<PathBuf>,
    /// How long each may take, in s.
    pub timeout: u64,
}

fn programs(dir: &Path) -> Result<Vec<PathBuf>, VerifyError> {
    let read = |e| VerifyError::Read(dir.to_owned(), e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let meta = std::fs::metadata(&path).map_err(read)?;
        if meta.is_file() && meta.permissions().mode() & 0o111 != 0 {
            found.push(path);
        }
    }
    found.sort();
    if found.is_empty() { Err(VerifyError::Nobody(dir.to_owned())) } else { Ok(found) }
}

impl Verifiers {
    /// Asks all; gives the names of those that accepted, none where none is configured.
    ///
    /// # Errors
    /// [`VerifyError`]: the image must then not be used.
    pub async fn accept(&self, reference: &ImageRef, digest: Digest) -> Result<Vec<String>, VerifyError> {
        let Some(dir) = self.dir.clone() else { return Ok(Vec::new()) };
        let mut accepted = Vec::new();
        for program in programs(&dir)? {
            let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let asked = ask(&program, reference, digest);
            let (accepts, reason) = tokio::time::timeout(Duration::from_secs(self.timeout), asked)
                .await
                .map_err(|_| VerifyError::Timeout { path: program.clone(), seconds: self.timeout })?
                .map_err(|e| VerifyError::Run(program.clone(), e))?;
            if !accepts {
                return Err(VerifyError::Refused { verifier: name, digest, reason });
            }
            accepted.push(name);
        }
        Ok(accepted)
    }
}

async fn ask(program: &Path, reference: &ImageRef, digest: Digest) -> io::Result<(bool, String)> {
    let mut child = tokio::process::Command::new(program)
        .args(["-name", &reference.to_string(), "-digest", &digest.to_string()])
        .args(["-stdin-media-type", MEDIA_TYPE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        let descriptor = serde_json::json!({ "digest": digest.to_string() }).to_string();
        // One that does not want it may close it: what it exits with counts.
        drop(stdin.write_all(descriptor.as_bytes()).await);
    }
    let mut text = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        (&mut stdout).take(REASON).read_to_end(&mut text).await?;
        // Drained, so that a talkative one does not wait for a reader for ever.
        tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await?;
    }
    let status = child.wait().await?;
    let said = String::from_utf8_lossy(&text).trim().replace(char::is_control, " ");
    let reason = if said.is_empty() { status.to_string() } else { said };
    Ok((status.success(), podway_flow::record::bounded(&reason, 512)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verifier(dir: &Path, name: &str, script: &str) {
        // By a process of its own: while this one forks for another test, no writer may be inherited.
        let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$2\" && chmod 755 \"$2\"";
        let made =
            std::process::Command::new("sh").args(["-c", write, "sh", script]).arg(dir.join(name)).status();
        assert!(made.unwrap().success());
    }

    #[tokio::test]
    async fn all_must_accept_and_nobody_is_a_refusal() {
        let dir = tempfile::tempdir().unwrap();
        let reference = ImageRef::parse("a.io/b:1").unwrap();
        let digest = Digest::of(b"x");
        let verifiers = Verifiers { dir: Some(dir.path().to_owned()), timeout: 5 };
        let none = Verifiers::default();
        assert!(none.accept(&reference, digest).await.unwrap().is_empty());
        std::fs::write(dir.path().join("README"), "not a program").unwrap();
        let error = verifiers.accept(&reference, digest).await.unwrap_err();
        assert!(matches!(error, VerifyError::Nobody(_)), "{error:?}");
        let script = format!(r#"[ "$1 $2 $3 $4" = "-name a.io/b:1 -digest {digest}" ] && grep -q {digest}"#);
        verifier(dir.path(), "a", &script);
        assert_eq!(verifiers.accept(&reference, digest).await.unwrap(), ["a"]);
        verifier(dir.path(), "b", "echo no signature by us; exit 1");
        let error = verifiers.accept(&reference, digest).await.unwrap_err().to_string();
        assert!(error.contains("\"b\"") && error.contains("no signature by us"), "{error}");
        verifier(dir.path(), "b", "exec sleep 1000");
        let hasty = Verifiers { timeout: 0, ..verifiers.clone() };
        assert!(matches!(hasty.accept(&reference, digest).await, Err(VerifyError::Timeout { .. })));
        let gone = Verifiers { dir: Some(dir.path().join("no")), timeout: 5 };
        assert!(matches!(gone.accept(&reference, digest).await, Err(VerifyError::Read(..))));
    }
}
