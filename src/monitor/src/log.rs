//! The CRI log of a container: `RFC3339Nano stream P|F text`.
//!
//! Lines over [`MAX_LINE`] bytes are cut into P parts. What a stream leaves without a newline at
//! its end is written as a P part too, since the process did not end the line.
//! A log that cannot be written never stalls the container: the line is dropped and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

/// The most bytes of text in one log line (containerd's and CRI-O's figure is the same).
pub(crate) const MAX_LINE: usize = 16 * 1024;

/// One of the two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// The log and the unfinished line of each stream.
pub(crate) struct CriLog {
    path: Option<PathBuf>,
    file: Option<File>,
    lines: Lines,
    dropped: u64,
}

impl CriLog {
    /// Opens the log at `path`; without one everything is dropped.
    pub(crate) fn open(path: Option<PathBuf>) -> io::Result<CriLog> {
        let mut log = CriLog { path, file: None, lines: Lines::default(), dropped: 0 };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the path anew. If that fails the old file is kept.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
            self.file = Some(file);
        }
        Ok(())
    }

    /// Takes what was read from a stream at `now_ns`.
    pub(crate) fn feed(&mut self, stream: Stream, bytes: &[u8], now_ns: u64) {
        if self.file.is_some() {
            self.lines.feed(stream, bytes, now_ns);
            self.flush();
        }
    }

    /// The stream has ended: writes its unfinished line.
    pub(crate) fn end(&mut self, stream: Stream, now_ns: u64) {
        self.lines.end(stream, now_ns);
        self.flush();
    }

    fn flush(&mut self) {
        if let Some(file) = &mut self.file
            && let Err(e) = file.write_all(&self.lines.out)
        {
            if self.dropped == 0 {
                eprintln!("log lines are dropped: {e}");
            }
            self.dropped += 1;
        }
        self.lines.out.clear();
    }
}

/// Bytes in, log lines out.
#[derive(Default)]
struct Lines {
    unfinished: [Vec<u8>; 2],
    out: Vec<u8>,
}

impl Lines {
    fn feed(&mut self, stream: Stream, mut bytes: &[u8], now_ns: u64) {
        while let Some(first) = bytes.first() {
            if *first == b'\n' {
                self.emit(stream, b'F', now_ns);
                bytes = &bytes[1..];
                continue;
            }
            let line = &mut self.unfinished[stream as usize];
            if line.len() == MAX_LINE {
                self.emit(stream, b'P', now_ns);
                continue;
            }
            let end = bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len());
            let (head, rest) = bytes.split_at(end.min(MAX_LINE - line.len()));
            line.extend_from_slice(head);
            bytes = rest;
        }
    }

    fn end(&mut self, stream: Stream, now_ns: u64) {
        if !self.unfinished[stream as usize].is_empty() {
            self.emit(stream, b'P', now_ns);
        }
    }

    fn emit(&mut self, stream: Stream, tag: u8, now_ns: u64) {
        let name = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        self.out.extend_from_slice(rfc3339_nano(now_ns).as_bytes());
        self.out.push(b' ');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(&[b' ', tag, b' ']);
        self.out.append(&mut self.unfinished[stream as usize]);
        self.out.push(b'\n');
    }
}

/// Nanoseconds since the epoch as UTC text with nine decimals.
pub(crate) fn rfc3339_nano(ns: u64) -> String {
    let (seconds, nanos) = (ns / 1_000_000_000, ns % 1_000_000_000);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a civil date, after Howard Hinnant's chrono-compatible algorithms.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{nanos:09}Z",
        rest / 3_600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(chunks: &[&[u8]]) -> Vec<(char, usize)> {
        let mut lines = Lines::default();
        for chunk in chunks {
            lines.feed(Stream::Stdout, chunk, 0);
        }
        lines.end(Stream::Stdout, 0);
        let head = "1970-01-01T00:00:00.000000000Z stdout ".len();
        let text = String::from_utf8_lossy(&lines.out).into_owned();
        text.lines().map(|l| (char::from(l.as_bytes()[head]), l.len() - head - 2)).collect()
    }

    #[test]
    fn lines_are_cut_where_cri_cuts_them() {
        let full = vec![b'x'; MAX_LINE];
        assert_eq!(tags(&[b"a\nbc\n"]), [('F', 1), ('F', 2)]);
        assert_eq!(tags(&[b"a", b"b\n\n"]), [('F', 2), ('F', 0)]);
        assert_eq!(tags(&[b"no end"]), [('P', 6)]);
        assert_eq!(tags(&[&full, b"\n"]), [('F', MAX_LINE)]);
        assert_eq!(tags(&[&full, b"y\n"]), [('P', MAX_LINE), ('F', 1)]);
        assert_eq!(tags(&[&full, &full, b"y\n"]), [('P', MAX_LINE), ('P', MAX_LINE), ('F', 1)]);
    }

    #[test]
    fn time_is_written_as_go_writes_it() {
        assert_eq!(rfc3339_nano(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339_nano(951_782_400_000_000_001), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(rfc3339_nano(1_795_517_539_500_000_000), "2026-11-24T10:52:19.500000000Z");
    }
}
