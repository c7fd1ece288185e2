//! Bytes to fields and back. Everything read is checked against what is there.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// The largest packet, in bytes: below the default socket buffer of Linux (208 KiB).
pub const MAX_MESSAGE: usize = 64 * 1024;

/// A packet that is not a message of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The packet ends before its last field, or its length field disagrees.
    #[error("packet is cut or its length is wrong")]
    Length,
    /// Bytes are left after the last field.
    #[error("packet has bytes after its last field")]
    Trailing,
    /// A kind, state or code that this version does not know.
    #[error("packet has the unknown kind {0}")]
    Kind(u8),
    /// A text is not UTF-8, or a flag is neither 0 nor 1.
    #[error("packet has a malformed field")]
    Field,
    /// Over [`MAX_MESSAGE`].
    #[error("packet is over {MAX_MESSAGE} bytes")]
    TooLarge,
}

pub(super) struct Encode(Vec<u8>);

impl Encode {
    pub(super) fn new(request_id: u64) -> Encode {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&request_id.to_le_bytes());
        Encode(bytes)
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Encode {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn kind(&mut self, kind: u8) -> &mut Encode {
        self.u8(kind)
    }

    pub(super) fn u8(&mut self, v: u8) -> &mut Encode {
        self.raw(&[v])
    }

    pub(super) fn u32(&mut self, v: u32) -> &mut Encode {
        self.raw(&v.to_le_bytes())
    }

    pub(super) fn i32(&mut self, v: i32) -> &mut Encode {
        self.raw(&v.to_le_bytes())
    }

    pub(super) fn u64(&mut self, v: u64) -> &mut Encode {
        self.raw(&v.to_le_bytes())
    }

    pub(super) fn flag(&mut self, v: bool) -> &mut Encode {
        self.u8(u8::from(v))
    }

    pub(super) fn bytes(&mut self, v: &[u8]) -> &mut Encode {
        self.u32(v.len() as u32).raw(v)
    }

    pub(super) fn text(&mut self, v: &str) -> &mut Encode {
        self.bytes(v.as_bytes())
    }

    pub(super) fn texts(&mut self, v: &[String]) -> &mut Encode {
        self.u32(v.len() as u32);
        for text in v {
            self.text(text);
        }
        self
    }

    pub(super) fn path(&mut self, v: &Path) -> &mut Encode {
        self.bytes(v.as_os_str().as_bytes())
    }

    pub(super) fn optional_path(&mut self, v: Option<&Path>) -> &mut Encode {
        match v {
            Some(path) => self.flag(true).path(path),
            None => self.flag(false),
        }
    }

    pub(super) fn finish(mut self) -> Result<Vec<u8>, DecodeError> {
        if self.0.len() > MAX_MESSAGE {
            return Err(DecodeError::TooLarge);
        }
        let rest = (self.0.len() - 4) as u32;
        self.0[..4].copy_from_slice(&rest.to_le_bytes());
        Ok(self.0)
    }
}

pub(super) struct Decode<'a>(&'a [u8]);

impl<'a> Decode<'a> {
    /// Checks the length; gives the request's id, the kind and the fields.
    pub(super) fn open(packet: &'a [u8]) -> Result<(u64, u8, Decode<'a>), DecodeError> {
        let mut d = Decode(packet);
        if d.u32()? as usize != packet.len() - 4 {
            return Err(DecodeError::Length);
        }
        let id = d.u64()?;
        let kind = d.u8()?;
        Ok((id, kind, d))
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(DecodeError::Length)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.take(N)?.try_into().map_err(|_| DecodeError::Length)
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn i32(&mut self) -> Result<i32, DecodeError> {
        Ok(i32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Field),
        }
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let n = self.u32()? as usize;
        self.take(n)
    }

    pub(super) fn text(&mut self) -> Result<String, DecodeError> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| DecodeError::Field)
    }

    pub(super) fn texts(&mut self) -> Result<Vec<String>, DecodeError> {
        let n = self.u32()?;
        (0..n).map(|_| self.text()).collect()
    }

    pub(super) fn path(&mut self) -> Result<PathBuf, DecodeError> {
        let bytes = self.bytes()?;
        if bytes.contains(&0) {
            return Err(DecodeError::Field);
        }
        Ok(OsString::from_vec(bytes.to_vec()).into())
    }

    pub(super) fn optional_path(&mut self) -> Result<Option<PathBuf>, DecodeError> {
        if self.flag()? { self.path().map(Some) } else { Ok(None) }
    }

    pub(super) fn end(&self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Trailing) }
    }
}
