//! Reads a log file: from its last lines on, to its end, and then on as it grows.
//!
//! To follow is to wait for inotify of the log's directory, never to look again after some time. A
//! log that was rotated (its name belongs to a new file) is read to its end before the new one is
//! begun; one that was truncated is read from its beginning. The end comes when the container has
//! ended and all that it wrote has been read.

use super::decode::{Decoder, Filter};
use futures::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchMask};
use std::future::Future;
use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

/// How much is read at once.
const PIECE: usize = 64 << 10;

/// Why a log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file.
    #[error("cannot read the log {0}")]
    File(PathBuf, #[source] io::Error),
    /// Its directory can't be watched.
    #[error("cannot watch {0}; fs.inotify.max_user_watches or max_user_instances may be too low")]
    Watch(PathBuf, #[source] io::Error),
}

/// Completes when the container has ended.
pub type Ended = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A log being read.
pub struct LogStream {
    path: PathBuf,
    file: File,
    at: u64,
    decoder: Decoder,
    piece: Vec<u8>,
    follow: Option<Follow>,
    over: bool,
}

impl std::fmt::Debug for LogStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogStream").field("path", &self.path).field("at", &self.at).finish_non_exhaustive()
    }
}

struct Follow {
    events: EventStream<Vec<u8>>,
    ended: Ended,
    has_ended: bool,
}

impl LogStream {
    /// Opens the log at `path`, from its last `tail` lines on; with `ended`, follows it until then.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn open(
        path: &Path,
        filter: Filter,
        tail: Option<u64>,
        ended: Option<Ended>,
    ) -> Result<Self, ReadError> {
        // The watch is there before the first byte is read, so that no change goes unseen.
        let follow = match ended {
            Some(ended) => Some(Follow { events: watch(path)?, ended, has_ended: false }),
            None => None,
        };
        let err = |e| ReadError::File(path.to_owned(), e);
        let mut file = File::open(path).await.map_err(err)?;
        let at = match tail {
            Some(lines) => last_lines(&mut file, lines).await.map_err(err)?,
            None => 0,
        };
        file.seek(SeekFrom::Start(at)).await.map_err(err)?;
        // The tail was counted at this moment; what comes later belongs to it only when followed.
        let filter = Filter { lines: tail.filter(|_| follow.is_none()), ..filter };
        Ok(LogStream {
            path: path.to_owned(),
            file,
            at,
            decoder: Decoder::new(filter),
            piece: vec![0; PIECE],
            follow,
            over: false,
        })
    }

    /// The next part of the answer; none at its end.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        loop {
            if self.over || self.decoder.done() {
                return Ok(None);
            }
            let path = &self.path;
            let err = |e| ReadError::File(path.clone(), e);
            let n = self.file.read(&mut self.piece).await.map_err(err)?;
            if n > 0 {
                self.at += n as u64;
                let mut out = Vec::new();
                self.decoder.feed(&self.piece[..n], &mut out);
                if !out.is_empty() {
                    return Ok(Some(out));
                }
                continue;
            }
            self.at_end().await?;
        }
    }

    /// At the end of the file: goes to the next file, waits, or is over.
    async fn at_end(&mut self) -> Result<(), ReadError> {
        let err = |e| ReadError::File(self.path.clone(), e);
        let Some(follow) = &mut self.follow else {
            self.over = true;
            return Ok(());
        };
        let here = self.file.metadata().await.map_err(err)?;
        if here.len() < self.at {
            self.at = 0;
            self.file.seek(SeekFrom::Start(0)).await.map_err(err)?;
            return Ok(());
        }
        match File::open(&self.path).await {
            Ok(mut new) => {
                let there = new.metadata().await.map_err(err)?;
                if (there.dev(), there.ino()) != (here.dev(), here.ino()) {
                    // The writer has gone over to the new file, so the old one is whole now; what it
                    // got between our last read and that moment comes first.
                    if self.file.metadata().await.map_err(err)?.len() == self.at {
                        std::mem::swap(&mut self.file, &mut new);
                        self.at = 0;
                    }
                    return Ok(());
                }
            }
            // Between the rename and the new file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(err(error)),
        }
        if follow.has_ended {
            self.over = true;
            return Ok(());
        }
        tokio::select! {
            () = &mut follow.ended => follow.has_ended = true,
            event = follow.events.next() => match event {
                Some(Ok(event)) if event.mask.contains(EventMask::IGNORED) => self.over = true,
                Some(Ok(_)) => {}
                Some(Err(e)) => return Err(ReadError::Watch(self.path.clone(), e)),
                None => self.over = true,
            },
        }
        Ok(())
    }
}

fn watch(path: &Path) -> Result<EventStream<Vec<u8>>, ReadError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let err = |e| ReadError::Watch(dir.to_owned(), e);
    let inotify = Inotify::init().map_err(err)?;
    let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF;
    inotify.watches().add(dir, mask).map_err(err)?;
    inotify.into_event_stream(vec![0; 4096]).map_err(err)
}

/// Where the last `lines` whole lines begin. An unfinished line at the end is not counted.
async fn last_lines(file: &mut File, lines: u64) -> io::Result<u64> {
    let mut end = file.seek(SeekFrom::End(0)).await?;
    let mut block = vec![0; 16 << 10];
    let mut found = 0;
    while end > 0 {
        let len = end.min(block.len() as u64);
        let start = end - len;
        file.seek(SeekFrom::Start(start)).await?;
        let part = &mut block[..usize::try_from(len).unwrap_or(0)];
        file.read_exact(part).await?;
        for at in part.iter().enumerate().rev().filter(|(_, b)| **b == b'\n').map(|(at, _)| at) {
            // The newline before the first of the wanted lines, or the last newline for none of them.
            if found == lines {
                return Ok(start + at as u64 + 1);
            }
            found += 1;
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::time::Duration;

    fn line(n: usize) -> String {
        format!("2026-01-01T00:00:{:02}Z stdout F {n}\n", n % 60)
    }

    fn log(dir: &Path, lines: std::ops::Range<usize>) -> PathBuf {
        let path = dir.join("0.log");
        std::fs::write(&path, lines.map(line).collect::<String>()).unwrap();
        path
    }

    async fn all(mut stream: LogStream) -> String {
        let mut out = Vec::new();
        while let Some(part) = stream.next().await.unwrap() {
            out.extend(part);
        }
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn the_last_lines_over_many_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let path = log(dir.path(), 0..5000);
        for tail in [0_u64, 1, 7, 4999, 5000, 9000] {
            let stream = LogStream::open(&path, Filter::default(), Some(tail), None).await.unwrap();
            let first = 5000 - usize::try_from(tail).unwrap().min(5000);
            let expected: String = (first..5000).map(|n| format!("{n}\n")).collect();
            assert_eq!(all(stream).await, expected, "tail {tail}");
        }
    }

    async fn expect(stream: &mut LogStream, text: &str) {
        let mut got = String::new();
        while got.len() < text.len() {
            let part = tokio::time::timeout(Duration::from_secs(5), stream.next()).await;
            got.push_str(std::str::from_utf8(&part.expect("more").unwrap().unwrap()).unwrap());
        }
        assert_eq!(got, text);
    }

    #[tokio::test]
    async fn followed_through_growth_rotation_truncation_to_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = log(dir.path(), 0..3);
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let ended: Ended = Box::pin(async { drop(ended.await) });
        let mut stream = LogStream::open(&path, Filter::default(), Some(1), Some(ended)).await.unwrap();
        expect(&mut stream, "2\n").await;
        let mut file = std::fs::File::options().append(true).open(&path).unwrap();
        file.write_all(line(3).as_bytes()).unwrap();
        expect(&mut stream, "3\n").await;
        // In two writes, and the rest after the log was renamed away.
        file.write_all(&line(4).as_bytes()[..10]).unwrap();
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        file.write_all(&line(4).as_bytes()[10..]).unwrap();
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(line(5).as_bytes()).unwrap();
        expect(&mut stream, "4\n5\n").await;
        file.set_len(0).unwrap();
        let mut file = std::fs::File::options().append(true).open(&path).unwrap();
        // Read to the truncation before something is written again.
        assert!(tokio::time::timeout(Duration::from_millis(200), stream.next()).await.is_err());
        file.write_all(line(6).as_bytes()).unwrap();
        expect(&mut stream, "6\n").await;
        file.write_all(line(7).as_bytes()).unwrap();
        end.send(()).unwrap();
        assert_eq!(all(stream).await, "7\n");
    }
}
