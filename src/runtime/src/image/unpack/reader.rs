//! Tar headers from a stream: ustar, GNU long names, pax. Sizes of metadata are capped before a
//! byte of it is read. Sparse files are refused (bomb CVE-2025-58183; image builders make none).

use super::UnpackError;
use std::collections::BTreeMap;
use std::io::{self, Read};

/// The most that a long name or a pax header may take.
const METADATA_LIMIT: u64 = 1024 * 1024;
const BLOCK: usize = 512;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// An entry's header, with pax and GNU extensions applied.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds, clamped to what every file system can hold.
    pub mtime: (i64, u32),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Reads entries; the data of one must be read or skipped before the next.
pub(super) struct TarReader<R> {
    inner: R,
    /// Bytes of the current entry that were not read, padding included.
    pending: u64,
    padding: u64,
}

impl<R: Read> TarReader<R> {
    pub(super) fn new(inner: R) -> Self {
        TarReader { inner, pending: 0, padding: 0 }
    }

    /// Reads of the current entry's data.
    pub(super) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, UnpackError> {
        if self.pending == 0 {
            return Ok(0);
        }
        let want = usize::try_from(self.pending).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.inner.read(&mut buffer[..want]).map_err(UnpackError::Read)?;
        if n == 0 {
            return Err(UnpackError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        self.pending -= n as u64;
        Ok(n)
    }

    /// The next entry; `None` at the archive's end.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut long_name = None;
        let mut long_link = None;
        let mut pax = BTreeMap::new();
        loop {
            self.skip()?;
            let mut block = [0; BLOCK];
            if !self.fill(&mut block)? || block.iter().all(|&b| b == 0) {
                // One zero block ends it, as Go's reader has it; so does a clean end of the stream.
                if long_name.is_some() || long_link.is_some() || !pax.is_empty() {
                    return Err(UnpackError::Archive("it ends after an extension header"));
                }
                return Ok(None);
            }
            let header = tar::Header::from_byte_slice(&block);
            let stored = header.cksum().map_err(|_| UnpackError::Archive("a header has no checksum"))?;
            let sum: u32 = block
                .iter()
                .enumerate()
                .map(|(i, &b)| if (148..156).contains(&i) { 32 } else { u32::from(b) })
                .sum();
            if stored != sum {
                return Err(UnpackError::Archive("a header's checksum is wrong"));
            }
            // An empty number is 0, as Go's reader has it: builders leave fields that are of no use empty.
            for field in [100..108, 108..116, 116..124, 124..136, 136..148, 329..337, 337..345] {
                if block[field.clone()].iter().all(|&b| b == 0 || b == b' ') {
                    block[field.start] = b'0';
                }
            }
            let header = tar::Header::from_byte_slice(&block);
            let size = header.entry_size().map_err(|_| UnpackError::Archive("a header has no size"))?;
            match header.as_ustar().map_or(block[156], |_| block[156]) {
                b'L' => long_name = Some(until_nul(self.metadata(size)?)),
                b'K' => long_link = Some(until_nul(self.metadata(size)?)),
                b'x' => pax = parse_pax(&self.metadata(size)?)?,
                b'g' => {
                    // Global records are git's commit ids in practice: read past, as containerd does.
                    self.metadata(size)?;
                }
                flag => return self.entry(header, flag, long_name, long_link, pax).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: &tar::Header,
        flag: u8,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        pax: BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> Result<Entry, UnpackError> {
        let number = |key: &str| pax_number(&pax, key);
        let path = pax
            .get(b"path".as_slice())
            .cloned()
            .or(long_name)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let refuse = |why| UnpackError::Entry { path: shown(&path), why };
        if pax.keys().any(|k| k.starts_with(b"GNU.sparse.")) {
            return Err(refuse("sparse files are not supported"));
        }
        let link = || {
            pax.get(b"linkpath".as_slice())
                .cloned()
                .or(long_link)
                .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
                .unwrap_or_default()
        };
        let device = || -> Result<(u32, u32), UnpackError> {
            let major = header.device_major().ok().flatten();
            let minor = header.device_minor().ok().flatten();
            major.zip(minor).ok_or_else(|| refuse("its device numbers are not valid"))
        };
        let kind = match flag {
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::HardLink(link()),
            b'2' => Kind::Symlink(link()),
            b'3' => device().map(|(major, minor)| Kind::CharDevice { major, minor })?,
            b'4' => device().map(|(major, minor)| Kind::BlockDevice { major, minor })?,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err(refuse("sparse files are not supported")),
            _ => return Err(refuse("its type is not known")),
        };
        let size = match number("size")? {
            Some(size) => size,
            None => header.entry_size().map_err(|_| UnpackError::Archive("a header has no size"))?,
        };
        // Only files carry data; a size on anything else is a confusion that readers resolve differently.
        let size = if kind == Kind::File { size } else { 0 };
        self.pending = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        let id = |key: &str, field: io::Result<u64>| -> Result<u32, UnpackError> {
            let value = match number(key)? {
                Some(value) => value,
                None => field.map_err(|_| refuse("its owner is not a number"))?,
            };
            // u32::MAX means "leave it" to chown(2), and is no owner.
            u32::try_from(value)
                .ok()
                .filter(|&v| v != u32::MAX)
                .ok_or_else(|| refuse("its owner is out of range"))
        };
        let uid = id("uid", header.uid())?;
        let gid = id("gid", header.gid())?;
        let mode = header.mode().map_err(|_| refuse("its mode is not a number"))? & 0o7777;
        let mtime = match pax.get(b"mtime".as_slice()) {
            Some(text) => parse_time(text).ok_or_else(|| refuse("its mtime is not a number"))?,
            None => (i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(i64::MAX), 0),
        };
        let mtime = (mtime.0.clamp(0, MAX_TIME), mtime.1);
        let xattrs = pax
            .into_iter()
            .filter_map(|(k, v)| k.strip_prefix(b"SCHILY.xattr.".as_slice()).map(|k| (k.to_vec(), v)))
            .collect();
        Ok(Entry { path, kind, mode, uid, gid, mtime, xattrs })
    }

    fn metadata(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        if size > METADATA_LIMIT {
            return Err(UnpackError::Archive("an extension header is longer than 1 MiB"));
        }
        self.pending = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
        let mut filled = 0;
        while filled < data.len() {
            filled += self.read_data(&mut data[filled..])?;
        }
        Ok(data)
    }

    fn skip(&mut self) -> Result<(), UnpackError> {
        let total = self.pending.saturating_add(self.padding);
        let skipped =
            io::copy(&mut self.inner.by_ref().take(total), &mut io::sink()).map_err(UnpackError::Read)?;
        if skipped < total {
            return Err(UnpackError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        (self.pending, self.padding) = (0, 0);
        Ok(())
    }

    /// Fills a block; `false` at a clean end.
    fn fill(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, UnpackError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]).map_err(UnpackError::Read)? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(UnpackError::Read(io::ErrorKind::UnexpectedEof.into())),
                n => filled += n,
            }
        }
        Ok(true)
    }
}

/// The year 2514: within ext4's and xfs' range.
const MAX_TIME: i64 = 1 << 34;

fn until_nul(mut data: Vec<u8>) -> Vec<u8> {
    if let Some(end) = data.iter().position(|&b| b == 0) {
        data.truncate(end);
    }
    data
}

/// A path for a message: lossy and short.
pub(super) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(120).collect()
}

/// `"%d key=value\n"` records, the length counting itself.
fn parse_pax(mut data: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, UnpackError> {
    const BAD: UnpackError = UnpackError::Archive("a pax header is not valid");
    let mut records = BTreeMap::new();
    while !data.is_empty() && data.iter().any(|&b| b != 0) {
        let space = data.iter().position(|&b| b == b' ').ok_or(BAD)?;
        let length: usize =
            std::str::from_utf8(&data[..space]).ok().and_then(|t| t.parse().ok()).ok_or(BAD)?;
        let record = data.get(space + 1..length).ok_or(BAD)?;
        let record = record.strip_suffix(b"\n").ok_or(BAD)?;
        let equals = record.iter().position(|&b| b == b'=').ok_or(BAD)?;
        records.insert(record[..equals].to_vec(), record[equals + 1..].to_vec());
        data = &data[length..];
    }
    Ok(records)
}

fn pax_number(pax: &BTreeMap<Vec<u8>, Vec<u8>>, key: &str) -> Result<Option<u64>, UnpackError> {
    pax.get(key.as_bytes())
        .map(|value| {
            std::str::from_utf8(value)
                .ok()
                .and_then(|t| t.parse().ok())
                .ok_or(UnpackError::Archive("a number in a pax header is not valid"))
        })
        .transpose()
}

fn parse_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some((seconds, digits.parse().ok()?))
}
