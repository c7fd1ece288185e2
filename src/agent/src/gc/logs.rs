//! Rotation of container logs (`pkg/kubelet/logs/container_log_manager.go`): a log over 10 MiB is
//! renamed to `<log>.<time>` and the runtime opens a new one; older ones are compressed, at most 5
//! files are kept. Whoever follows a log follows it over the change (`server/logs/read.rs`).
//!
//! Killed between rename and reopen, the container goes on into the renamed file: the next round finds
//! no log under the name and has it opened.

use crate::cri::CallError;
use std::io;
use std::path::{Path, PathBuf};

/// When a log is rotated, and how many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `containerLogMaxSize`.
    pub max_size: u64,
    /// `containerLogMaxFiles`, the one that is written to included.
    pub max_files: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Policy { max_size: 10 << 20, max_files: 5 }
    }
}

/// Why a log was not rotated.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// A file.
    #[error("cannot {0} {1}")]
    File(&'static str, PathBuf, #[source] io::Error),
    /// The runtime did not open it anew.
    #[error("failed to reopen container log {0:?}: {1}")]
    Reopen(String, #[source] CallError),
}

const COMPRESSED: &str = ".gz";
const TEMPORARY: &str = ".tmp";

/// The rotated files of `log`, oldest first: the time in their names sorts.
fn rotated(log: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|n| n.to_str())) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{name}.");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|n| n.starts_with(&prefix)) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn ends(path: &Path, suffix: &str) -> bool {
    path.to_str().is_some_and(|p| p.ends_with(suffix))
}

/// What is to be done with the rotated files: which go, which of the rest are compressed.
fn plan(files: &[PathBuf], policy: Policy) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let unused = |f: &PathBuf| ends(f, TEMPORARY) || files.contains(&with(f, COMPRESSED));
    let (mut gone, used): (Vec<PathBuf>, Vec<PathBuf>) = files.iter().cloned().partition(unused);
    // Beside these there will be the one just rotated and the one written to.
    let excess = used.len().saturating_sub(policy.max_files.saturating_sub(2));
    let (old, kept) = used.split_at(excess);
    gone.extend_from_slice(old);
    (gone, kept.iter().filter(|f| !ends(f, COMPRESSED)).cloned().collect())
}

fn compress(path: &Path) -> io::Result<()> {
    let (temporary, done) = (with(path, TEMPORARY), with(path, COMPRESSED));
    let mut from = std::fs::File::open(path)?;
    let to = std::fs::File::create(&temporary)?;
    to.set_permissions(from.metadata()?.permissions())?;
    let mut writer = flate2::write::GzEncoder::new(to, flate2::Compression::default());
    io::copy(&mut from, &mut writer)?;
    writer.finish()?.sync_all()?;
    std::fs::rename(&temporary, &done)?;
    std::fs::remove_file(path)
}

/// Makes room among the rotated files of `log`. Blocks.
fn tidy(log: &Path, policy: Policy) -> Result<(), RotateError> {
    let files = rotated(log).map_err(|e| RotateError::File("list the logs beside", log.to_owned(), e))?;
    let (gone, plain) = plan(&files, policy);
    for file in gone {
        std::fs::remove_file(&file).map_err(|e| RotateError::File("remove", file, e))?;
    }
    for file in plain {
        compress(&file).map_err(|e| RotateError::File("compress", file, e))?;
    }
    Ok(())
}

/// Whether `log` is due: over the limit, or (true) not there at all though its container runs.
fn due(log: &Path, policy: Policy) -> Option<bool> {
    match std::fs::metadata(log) {
        Ok(found) => (found.len() >= policy.max_size).then_some(false),
        Err(error) => (error.kind() == io::ErrorKind::NotFound).then_some(true),
    }
}

/// Rotates the log of the running container `id`, if that is due. `reopen` has the runtime open it.
///
/// # Errors
/// [`RotateError`].
pub async fn rotate(
    id: &str,
    log: &Path,
    policy: Policy,
    now: jiff::Zoned,
    reopen: impl AsyncFnOnce() -> Result<(), CallError>,
) -> Result<bool, RotateError> {
    let lost = match due(log, policy) {
        None => return Ok(false),
        Some(lost) => lost,
    };
    let failed = |error| RotateError::Reopen(id.to_owned(), error);
    if lost {
        reopen().await.map_err(failed)?;
        return Ok(true);
    }
    let path = log.to_owned();
    // Compressing takes a while: never on a thread of the executor.
    match tokio::task::spawn_blocking(move || tidy(&path, policy)).await {
        Ok(result) => result?,
        Err(_) => return Ok(false),
    }
    let moved = with(log, &now.strftime(".%Y%m%d-%H%M%S").to_string());
    std::fs::rename(log, &moved).map_err(|e| RotateError::File("rotate", log.to_owned(), e))?;
    if let Err(error) = reopen().await {
        // The runtime still writes there: under its own name, it is tried again next time.
        std::fs::rename(&moved, log).map_err(|e| RotateError::File("rename back", moved, e))?;
        return Err(failed(error));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use tonic::Code;

    fn at(text: &str) -> jiff::Zoned {
        text.parse::<jiff::Timestamp>().unwrap().to_zoned(jiff::tz::TimeZone::UTC)
    }

    const SMALL: Policy = Policy { max_size: 10, max_files: 4 };

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<String> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    #[tokio::test]
    async fn a_log_is_rotated_compressed_and_at_last_removed() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        std::fs::write(&log, "short").unwrap();
        let round = async |n: u32| {
            let reopen = async || {
                std::fs::write(&log, format!("of round {n}, long enough\n")).unwrap();
                Ok(())
            };
            rotate("c", &log, SMALL, at(&format!("2026-01-02T03:04:0{n}Z")), reopen).await.unwrap()
        };
        assert!(!round(0).await, "not due");
        std::fs::write(&log, "the first, long enough\n").unwrap();
        assert!(round(1).await);
        assert_eq!(names(dir.path()), ["0.log", "0.log.20260102-030401"]);
        assert!(round(2).await && round(3).await);
        assert_eq!(
            names(dir.path()),
            ["0.log", "0.log.20260102-030401.gz", "0.log.20260102-030402.gz", "0.log.20260102-030403"]
        );
        let mut text = String::new();
        let file = std::fs::File::open(dir.path().join("0.log.20260102-030401.gz")).unwrap();
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
        assert_eq!(text, "the first, long enough\n");
        std::fs::write(dir.path().join("0.log.20260102-030403.tmp"), "of a crash").unwrap();
        assert!(round(4).await);
        assert_eq!(
            names(dir.path()),
            ["0.log", "0.log.20260102-030402.gz", "0.log.20260102-030403.gz", "0.log.20260102-030404"]
        );
    }

    #[tokio::test]
    async fn a_runtime_that_does_not_reopen_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        std::fs::write(&log, "long enough to be due").unwrap();
        let refuse = async || Err(CallError { code: Code::Unavailable, message: "gone".into() });
        let error = rotate("c", &log, SMALL, at("2026-01-02T03:04:05Z"), refuse).await.unwrap_err();
        assert_eq!(error.to_string(), "failed to reopen container log \"c\": gone");
        assert_eq!(names(dir.path()), ["0.log"]);
        // A crash after the rename: the next round has it opened.
        std::fs::rename(&log, dir.path().join("0.log.20260102-030405")).unwrap();
        let reopen = async || {
            std::fs::write(&log, "").unwrap();
            Ok(())
        };
        assert!(rotate("c", &log, SMALL, at("2026-01-02T03:04:06Z"), reopen).await.unwrap());
        assert_eq!(names(dir.path()), ["0.log", "0.log.20260102-030405"]);
    }
}
