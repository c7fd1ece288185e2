//! Header blocks: names and values, and the one compressed stream that all blocks of a direction are.

use crate::dictionary::DICTIONARY;
use crate::frame::SpdyError;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// The most bytes that one block may inflate to; Kubernetes' have a hundred.
pub const MAX_INFLATED: usize = 32 * 1024;
/// The most headers of one block.
const MAX_HEADERS: usize = 64;

/// Names (always lower case) and values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first value of a header; the name is of any case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name))?;
        value.split('\0').next()
    }

    fn parse(mut block: &[u8]) -> Result<Headers, SpdyError> {
        fn number(block: &mut &[u8]) -> Result<usize, SpdyError> {
            let (head, rest) = block.split_first_chunk::<4>().ok_or(SpdyError::Headers)?;
            *block = rest;
            usize::try_from(u32::from_be_bytes(*head)).map_err(|_| SpdyError::Headers)
        }
        fn text(block: &mut &[u8]) -> Result<String, SpdyError> {
            let length = number(block)?;
            let (head, rest) = block.split_at_checked(length).ok_or(SpdyError::Headers)?;
            *block = rest;
            String::from_utf8(head.to_vec()).map_err(|_| SpdyError::Headers)
        }
        let count = number(&mut block)?;
        if count > MAX_HEADERS {
            return Err(SpdyError::HeadersTooLarge);
        }
        let mut all: Vec<(String, String)> = Vec::with_capacity(count);
        for _ in 0..count {
            let (name, value) = (text(&mut block)?, text(&mut block)?);
            let lower = !name.is_empty() && !name.bytes().any(|b| b.is_ascii_uppercase());
            if !lower || all.iter().any(|(n, _)| *n == name) {
                return Err(SpdyError::Headers);
            }
            all.push((name, value));
        }
        if block.is_empty() { Ok(Headers(all)) } else { Err(SpdyError::Headers) }
    }

    fn block(&self) -> Vec<u8> {
        let mut block = Vec::new();
        let number = |block: &mut Vec<u8>, n: usize| block.extend_from_slice(&(n as u32).to_be_bytes());
        number(&mut block, self.0.len());
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            number(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
        block
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Headers {
    /// Headers to send: names become lower case.
    fn from_iter<T: IntoIterator<Item = (N, V)>>(all: T) -> Self {
        Headers(all.into_iter().map(|(n, v)| (n.into().to_ascii_lowercase(), v.into())).collect())
    }
}

/// The blocks that come in.
pub(crate) struct Inflater(Decompress);

impl Inflater {
    pub(crate) fn new() -> Self {
        Inflater(Decompress::new(true))
    }

    /// One block, whole: a bomb ends at [`MAX_INFLATED`].
    pub(crate) fn read(&mut self, mut compressed: &[u8]) -> Result<Headers, SpdyError> {
        let mut block = vec![0; MAX_INFLATED + 1];
        let mut filled = 0;
        loop {
            let (seen, made) = (self.0.total_in(), self.0.total_out());
            let outcome = self.0.decompress(compressed, &mut block[filled..], FlushDecompress::Sync);
            let taken = usize::try_from(self.0.total_in() - seen).map_err(|_| SpdyError::Inflate)?;
            compressed = compressed.get(taken..).ok_or(SpdyError::Inflate)?;
            filled += usize::try_from(self.0.total_out() - made).map_err(|_| SpdyError::Inflate)?;
            if filled > MAX_INFLATED {
                return Err(SpdyError::HeadersTooLarge);
            }
            match outcome {
                // It is asked for once, at the head of the stream.
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(DICTIONARY).map_err(|_| SpdyError::Inflate)?;
                }
                Ok(Status::Ok) if !compressed.is_empty() && taken > 0 => {}
                // No room is left to make progress in only if there is nothing more to make.
                Ok(Status::Ok | Status::BufError) if compressed.is_empty() => break,
                // A stream that ends leaves nothing for the blocks after it.
                Ok(_) | Err(_) => return Err(SpdyError::Inflate),
            }
        }
        block.truncate(filled);
        Headers::parse(&block)
    }
}

/// The blocks that go out.
pub(crate) struct Deflater(Option<Compress>);

impl Deflater {
    pub(crate) fn new() -> Self {
        let mut compress = Compress::new(Compression::fast(), true);
        // Without its dictionary it cannot write what a peer reads: each block fails instead.
        Deflater(compress.set_dictionary(DICTIONARY).is_ok().then_some(compress))
    }

    pub(crate) fn write(&mut self, headers: &Headers) -> Result<Vec<u8>, SpdyError> {
        let compress = self.0.as_mut().ok_or(SpdyError::Deflate)?;
        let block = headers.block();
        let mut out = Vec::with_capacity(block.len() + 64);
        let mut rest = block.as_slice();
        loop {
            let before = compress.total_in();
            let status = compress.compress_vec(rest, &mut out, FlushCompress::Sync);
            if !matches!(status, Ok(Status::Ok | Status::BufError)) {
                return Err(SpdyError::Deflate);
            }
            let taken = usize::try_from(compress.total_in() - before).map_err(|_| SpdyError::Deflate)?;
            rest = rest.get(taken..).ok_or(SpdyError::Deflate)?;
            // Room that is left says that the flush is complete.
            if rest.is_empty() && out.len() < out.capacity() {
                return Ok(out);
            }
            out.reserve(256);
        }
    }
}
