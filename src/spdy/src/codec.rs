//! Bytes to frames and back. The state of it is the header compression of each direction, and on the
//! way in the data frame that is being read: its bytes are passed on as they come.

use crate::frame::{Frame, SpdyError, Status};
use crate::headers::{Deflater, Inflater};
use bytes::{Buf as _, BufMut as _, BytesMut};

/// The largest control frame, in bytes.
pub const MAX_CONTROL: usize = 16 * 1024;
/// The most bytes in one piece of data, both ways.
pub const CHUNK: usize = 16 * 1024;

const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;
const ID: u32 = 0x7fff_ffff;

/// What is left of a data frame.
#[derive(Clone, Copy)]
struct Rest {
    id: u32,
    fin: bool,
    left: usize,
}

/// The way in.
pub struct Decoder {
    inflater: Inflater,
    data: Option<Rest>,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder { inflater: Inflater::new(), data: None }
    }
}

impl tokio_util::codec::Decoder for Decoder {
    type Item = Frame;
    type Error = SpdyError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
        if let Some(rest) = self.data {
            return Ok(self.piece(rest, src));
        }
        let Some((head, _)) = src.split_first_chunk::<8>() else { return Ok(None) };
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = head[4];
        let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        if first & !ID == 0 {
            if first == 0 {
                return Err(SpdyError::Malformed(0));
            }
            src.advance(8);
            return Ok(self.piece(Rest { id: first, fin: flags & FIN != 0, left: length }, src));
        }
        let (version, kind) = ((first >> 16 & 0x7fff) as u16, (first & 0xffff) as u16);
        if version != 3 {
            return Err(SpdyError::Version(version));
        }
        if length > MAX_CONTROL {
            return Err(SpdyError::TooLarge(length));
        }
        if src.len() < 8 + length {
            src.reserve(8 + length - src.len());
            return Ok(None);
        }
        src.advance(8);
        let payload = src.split_to(length);
        self.control(kind, flags, &payload).map(Some)
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
        match self.decode(src)? {
            Some(frame) => Ok(Some(frame)),
            None if src.is_empty() && self.data.is_none() => Ok(None),
            None => Err(SpdyError::Cut),
        }
    }
}

impl Decoder {
    /// As much of a data frame as is there, or none when nothing is; an empty frame is one piece.
    fn piece(&mut self, rest: Rest, src: &mut BytesMut) -> Option<Frame> {
        let length = rest.left.min(src.len()).min(CHUNK);
        if length == 0 && rest.left > 0 {
            self.data = Some(rest);
            return None;
        }
        let left = rest.left - length;
        self.data = (left > 0).then_some(Rest { left, ..rest });
        Some(Frame::Data { id: rest.id, fin: rest.fin && left == 0, data: src.split_to(length).freeze() })
    }

    fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> Result<Frame, SpdyError> {
        let malformed = || SpdyError::Malformed(kind);
        let number = |at: usize| {
            let bytes = payload.get(at..).and_then(|rest| rest.first_chunk::<4>());
            bytes.map(|b| u32::from_be_bytes(*b)).ok_or_else(malformed)
        };
        let stream = || Ok(number(0)? & ID).and_then(|id| if id == 0 { Err(malformed()) } else { Ok(id) });
        let plain = |length: usize| {
            if flags == 0 && payload.len() == length { Ok(()) } else { Err(malformed()) }
        };
        let only = |allowed: u8| if flags & !allowed == 0 { Ok(()) } else { Err(malformed()) };
        let fin = flags & FIN != 0;
        match kind {
            1 => {
                only(FIN | UNIDIRECTIONAL)?;
                let id = stream()?;
                let headers = self.inflater.read(payload.get(10..).ok_or_else(malformed)?)?;
                Ok(Frame::SynStream { id, fin, headers })
            }
            2 | 8 => {
                only(FIN)?;
                let id = stream()?;
                let headers = self.inflater.read(payload.get(4..).ok_or_else(malformed)?)?;
                match kind {
                    2 => Ok(Frame::SynReply { id, fin, headers }),
                    _ => Ok(Frame::Headers { id, fin, headers }),
                }
            }
            3 => {
                plain(8)?;
                let status = Status(number(4)?);
                if status.0 == 0 { Err(malformed()) } else { Ok(Frame::Reset { id: stream()?, status }) }
            }
            4 => {
                only(FIN)?;
                let count = usize::try_from(number(0)?).map_err(|_| malformed())?;
                let right = count.checked_mul(8).is_some_and(|n| n == payload.len() - 4);
                if right { Ok(Frame::Settings) } else { Err(malformed()) }
            }
            6 => {
                plain(4)?;
                Ok(Frame::Ping { id: number(0)? })
            }
            7 => {
                plain(8)?;
                Ok(Frame::GoAway { last: number(0)? & ID, status: number(4)? })
            }
            9 => {
                plain(8)?;
                Ok(Frame::WindowUpdate { id: number(0)? & ID, delta: number(4)? & ID })
            }
            other => Err(SpdyError::Type(other)),
        }
    }
}

/// The way out.
pub struct Encoder {
    deflater: Deflater,
}

impl Default for Encoder {
    fn default() -> Self {
        Encoder { deflater: Deflater::new() }
    }
}

fn control(dst: &mut BytesMut, kind: u16, fin: bool, parts: &[&[u8]]) {
    dst.put_u16(0x8003);
    dst.put_u16(kind);
    let length: usize = parts.iter().map(|p| p.len()).sum();
    dst.put_u32(u32::from(fin) << 24 | (length as u32 & 0x00ff_ffff));
    parts.iter().for_each(|p| dst.put_slice(p));
}

impl tokio_util::codec::Encoder<Frame> for Encoder {
    type Error = SpdyError;

    fn encode(&mut self, frame: Frame, dst: &mut BytesMut) -> Result<(), SpdyError> {
        match frame {
            Frame::SynStream { id, fin, headers } => {
                let block = self.deflater.write(&headers)?;
                // Associated with no stream, of the highest priority, in no slot.
                control(dst, 1, fin, &[&id.to_be_bytes(), &[0; 6], &block]);
            }
            Frame::SynReply { id, fin, headers } => {
                let block = self.deflater.write(&headers)?;
                control(dst, 2, fin, &[&id.to_be_bytes(), &block]);
            }
            Frame::Headers { id, fin, headers } => {
                let block = self.deflater.write(&headers)?;
                control(dst, 8, fin, &[&id.to_be_bytes(), &block]);
            }
            Frame::Reset { id, status } => {
                control(dst, 3, false, &[&id.to_be_bytes(), &status.0.to_be_bytes()]);
            }
            Frame::Settings => control(dst, 4, false, &[&[0; 4]]),
            Frame::Ping { id } => control(dst, 6, false, &[&id.to_be_bytes()]),
            Frame::GoAway { last, status } => {
                control(dst, 7, false, &[&last.to_be_bytes(), &status.to_be_bytes()]);
            }
            Frame::WindowUpdate { id, delta } => {
                control(dst, 9, false, &[&id.to_be_bytes(), &delta.to_be_bytes()]);
            }
            Frame::Data { id, fin, mut data } => loop {
                let piece = data.split_to(data.len().min(CHUNK));
                let last = fin && data.is_empty();
                dst.reserve(8 + piece.len());
                dst.put_u32(id & ID);
                dst.put_u32(u32::from(last) << 24 | piece.len() as u32);
                dst.put_slice(&piece);
                if data.is_empty() {
                    break;
                }
            },
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
