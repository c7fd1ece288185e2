//! A layer, from compressed bytes to a directory, in one pass on one blocking thread:
//! channel → sha256(compressed) → gzip, zstd or none → sha256(diff) → tar → *at calls.
//!
//! The thread is fed by a bounded channel, so a slow disk holds back the socket and a layer costs
//! at most the channel's chunks plus the decoder's window in memory. Nothing is trusted before
//! both digests are right: the caller renames the staging directory only then.

mod extract;
mod reader;
mod whiteout;

pub use extract::{Limits, Unpacked};

use super::reference::Digest;
use bytes::{Buf as _, Bytes};
use sha2::Digest as _;
use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;
use tokio::sync::mpsc;

/// Why a layer was refused.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream ended early, is not a valid archive, or the disk failed.
    #[error("the layer could not be read")]
    Read(#[source] io::Error),
    /// A header is not valid tar.
    #[error("the layer's archive is not valid: {0}")]
    Archive(&'static str),
    /// An entry that no honest image has, or that is not supported.
    #[error("entry {path:?} of the layer is refused: {why}")]
    Entry {
        /// The entry's name, shortened.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A system call on an entry failed.
    #[error("entry {path:?} of the layer could not be made ({call})")]
    Make {
        /// The entry's name, shortened.
        path: String,
        /// The system call.
        call: &'static str,
        /// Its error.
        #[source]
        source: rustix::io::Errno,
    },
    /// More bytes or entries than are allowed: a decompression bomb, or a limit set too low.
    #[error("the layer has more than {limit} {what}: it is refused as a decompression bomb")]
    TooMuch {
        /// Bytes or entries.
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
}

/// What came of a layer's stream.
#[derive(Clone, Debug)]
pub struct LayerDone {
    /// sha256 of the blob as it came.
    pub compressed: Digest,
    /// sha256 of the tar stream.
    pub diff: Digest,
    /// Bytes of the blob.
    pub compressed_bytes: u64,
    /// What was written.
    pub unpacked: Unpacked,
}

/// Unpacks one layer into the empty directory `root`. Blocks: call it on a blocking thread.
///
/// # Errors
/// [`UnpackError`]; `root` is then to be deleted.
pub fn unpack(
    chunks: mpsc::Receiver<Bytes>,
    blob_size: u64,
    root: OwnedFd,
    limits: Limits,
) -> Result<LayerDone, UnpackError> {
    let mut source = Blob::new(chunks, blob_size);
    let kind = Compression::of(source.magic().map_err(UnpackError::Read)?);
    let (diff, unpacked, mut source) = match kind {
        Compression::None => through(source, root, limits)?,
        Compression::Gzip => {
            let (diff, unpacked, decoder) =
                through(flate2::bufread::MultiGzDecoder::new(source), root, limits)?;
            (diff, unpacked, decoder.into_inner())
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source).map_err(UnpackError::Read)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(UnpackError::Read)?;
            let (diff, unpacked, decoder) = through(decoder, root, limits)?;
            (diff, unpacked, decoder.finish())
        }
    };
    // A decoder may stop before the blob does; the blob's digest is over all of it.
    source.drain().map_err(UnpackError::Read)?;
    let compressed_bytes = source.tally.count;
    Ok(LayerDone { compressed: source.tally.digest(), diff, compressed_bytes, unpacked })
}

/// 128 MiB: what `zstd -19 --long=27` needs, and what containerd accepts.
const ZSTD_WINDOW_LOG: u32 = 27;

fn through<R: Read>(decoder: R, root: OwnedFd, limits: Limits) -> Result<(Digest, Unpacked, R), UnpackError> {
    // The archive itself is capped, so that padding after its end is no bomb either.
    let mut tar = HashReader::new(decoder, limits.bytes);
    let extracted = extract::extract(&mut tar, root, limits);
    let bomb = UnpackError::TooMuch { what: "bytes", limit: limits.bytes };
    let unpacked = match extracted {
        Err(_) if tar.tally.over() => return Err(bomb),
        other => other?,
    };
    let drained = io::copy(&mut tar, &mut io::sink());
    if tar.tally.over() {
        return Err(bomb);
    }
    drained.map_err(UnpackError::Read)?;
    Ok((tar.tally.digest(), unpacked, tar.inner))
}

/// RFC 8878, 3.1.1.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// By its magic, as containerd and Docker do: media types in the wild are wrong too often.
    fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            _ if start.starts_with(&ZSTD_MAGIC) => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

/// What came: hashed, counted and held against a limit.
struct Tally {
    hash: sha2::Sha256,
    count: u64,
    limit: u64,
}

impl Tally {
    fn new(limit: u64) -> Self {
        Tally { hash: sha2::Sha256::new(), count: 0, limit }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.count += bytes.len() as u64;
    }

    fn over(&self) -> bool {
        self.count > self.limit
    }

    fn digest(self) -> Digest {
        Digest::from_bytes(self.hash.finalize().into())
    }
}

/// The blob as it comes, hashed and counted chunk by chunk and read where it lies. The sender's end is the end of the
/// stream: a stream that was cut shows in the digest.
struct Blob {
    chunks: mpsc::Receiver<Bytes>,
    current: Bytes,
    tally: Tally,
}

impl Blob {
    fn new(chunks: mpsc::Receiver<Bytes>, limit: u64) -> Self {
        Blob { chunks, current: Bytes::new(), tally: Tally::new(limit) }
    }

    /// The next chunk; `None` at the end.
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let Some(chunk) = self.chunks.blocking_recv() else { return Ok(None) };
        self.tally.add(&chunk);
        if self.tally.over() {
            let why =
                format!("the blob is longer than the {} bytes that the manifest gives", self.tally.limit);
            return Err(io::Error::other(why));
        }
        Ok(Some(chunk))
    }

    /// The first bytes, as many as [`Compression::of`] looks at if there are so many; none is consumed.
    fn magic(&mut self) -> io::Result<&[u8]> {
        while self.current.len() < ZSTD_MAGIC.len()
            && let Some(chunk) = self.next()?
        {
            self.current =
                if self.current.is_empty() { chunk } else { [&self.current[..], &chunk].concat().into() };
        }
        Ok(&self.current)
    }

    /// Reads to the end, for the digest.
    fn drain(&mut self) -> io::Result<()> {
        while self.next()?.is_some() {}
        Ok(())
    }
}

impl BufRead for Blob {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty()
            && let Some(chunk) = self.next()?
        {
            self.current = chunk;
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}

/// Hashes and counts what passes; fails once more than `limit` bytes came.
struct HashReader<R> {
    inner: R,
    tally: Tally,
}

impl<R: Read> HashReader<R> {
    fn new(inner: R, limit: u64) -> Self {
        HashReader { inner, tally: Tally::new(limit) }
    }
}

impl<R: Read> Read for HashReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.tally.add(&buffer[..n]);
        if self.tally.over() {
            return Err(io::Error::other("more bytes than allowed"));
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
