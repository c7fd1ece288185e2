use super::*;
use crate::headers::{Headers, MAX_INFLATED};
use bytes::Bytes;
use proptest::prelude::*;
use tokio_util::codec::{Decoder as _, Encoder as _};

fn encoded(frames: &[Frame]) -> BytesMut {
    let (mut encoder, mut wire) = (Encoder::default(), BytesMut::new());
    for frame in frames {
        encoder.encode(frame.clone(), &mut wire).unwrap();
    }
    wire
}

/// All frames of `wire` as they come when it arrives `step` bytes at a time; the pieces of a data
/// frame are joined.
fn decoded(wire: &[u8], step: usize) -> Result<Vec<Frame>, SpdyError> {
    let (mut decoder, mut src, mut all) = (Decoder::default(), BytesMut::new(), Vec::<Frame>::new());
    let mut open = false;
    let mut take = |frame: Frame, all: &mut Vec<Frame>| {
        if let (Frame::Data { id, fin, data }, Some(Frame::Data { id: of, fin: end, data: sofar })) =
            (&frame, all.last_mut())
            && open
            && id == of
        {
            *sofar = Bytes::from([sofar.as_ref(), data.as_ref()].concat());
            *end = *fin;
        } else {
            all.push(frame.clone());
        }
        open = matches!(frame, Frame::Data { fin: false, .. });
    };
    for piece in wire.chunks(step) {
        src.extend_from_slice(piece);
        while let Some(frame) = decoder.decode(&mut src)? {
            take(frame, &mut all);
        }
    }
    while let Some(frame) = decoder.decode_eof(&mut src)? {
        take(frame, &mut all);
    }
    Ok(all)
}

fn headers(pairs: &[(&str, &str)]) -> Headers {
    pairs.iter().copied().collect()
}

#[test]
fn a_header_is_found_in_any_case() {
    let headers = headers(&[("streamType", "data"), ("port", "80")]);
    assert_eq!(
        (headers.get("StreamType"), headers.get("PORT"), headers.get("x")),
        (Some("data"), Some("80"), None)
    );
}

#[test]
fn hostile_frames_are_refused_by_name() {
    let control = |kind: u16, flags: u8, payload: &[u8]| {
        let mut wire = BytesMut::new();
        super::control(&mut wire, kind, false, &[payload]);
        wire[4] = flags;
        wire.to_vec()
    };
    let version = {
        let mut wire = control(6, 0, &[0, 0, 0, 1]);
        wire[1] = 2;
        wire
    };
    let huge = [0x80, 3, 0, 6, 0, 0xff, 0xff, 0xff];
    for (wire, expected) in [
        (version, "version 2"),
        (control(5, 0, &[]), "unknown type 5"),
        (huge.to_vec(), "too large"),
        (control(6, 0, &[0; 5]), "type 6 is malformed"),
        (control(6, 1, &[0; 4]), "type 6 is malformed"),
        (control(3, 0, &[0, 0, 0, 1, 0, 0, 0, 0]), "type 3 is malformed"),
        (control(3, 0, &[0, 0, 0, 0, 0, 0, 0, 1]), "type 3 is malformed"),
        (control(4, 0, &[0xff; 4]), "type 4 is malformed"),
        (control(4, 0, &[0, 0]), "type 4 is malformed"),
        (control(1, 0, &[0, 0, 0, 1]), "type 1 is malformed"),
        (control(1, 0, &[0; 10]), "type 1 is malformed"),
        (control(1, 4, &[0; 10]), "type 1 is malformed"),
        (control(2, 0, &[0, 0, 0, 1, 1, 2, 3]), "inflated"),
        (control(9, 0, &[0; 7]), "type 9 is malformed"),
        (vec![0, 0, 0, 0, 0, 0, 0, 1, b'x'], "malformed"),
        (vec![0, 0, 0, 1, 0, 0, 0, 9, b'x'], "ended inside"),
        (vec![0x80, 3, 0], "ended inside"),
    ] {
        for step in [1, 3, 4096] {
            let error = decoded(&wire, step).unwrap_err().to_string();
            assert!(error.contains(expected), "{wire:?}: {error}");
        }
    }
}

/// A header block as a hostile peer makes it, on a fresh stream.
fn raw_block(block: &[u8]) -> Vec<u8> {
    let mut compress = flate2::Compress::new(flate2::Compression::best(), true);
    compress.set_dictionary(crate::dictionary::DICTIONARY).unwrap();
    let mut out = Vec::with_capacity(block.len() + 1024);
    compress.compress_vec(block, &mut out, flate2::FlushCompress::Sync).unwrap();
    let mut wire = BytesMut::new();
    super::control(&mut wire, 2, false, &[&7u32.to_be_bytes(), &out]);
    wire.to_vec()
}

#[test]
fn hostile_header_blocks_are_refused() {
    let pair = |name: &str, value: &str| {
        let text = |t: &str| [&(t.len() as u32).to_be_bytes()[..], t.as_bytes()].concat();
        [text(name), text(value)].concat()
    };
    let block = |count: u32, pairs: &[u8]| raw_block(&[&count.to_be_bytes()[..], pairs].concat());
    let fine = block(1, &pair("port", "80"));
    assert!(matches!(&decoded(&fine, 7).unwrap()[..], [Frame::SynReply { id: 7, .. }]));
    for (wire, expected) in [
        // A bomb: 16 MiB in a frame of 16 KiB.
        (raw_block(&vec![0; 16 << 20]), "too large"),
        (raw_block(&vec![0; MAX_INFLATED + 1]), "too large"),
        (block(u32::MAX, &[]), "too large"),
        (block(65, &[]), "too large"),
        (block(2, &pair("port", "80")), "malformed"),
        (block(1, &[0xff, 0xff, 0xff, 0xff, b'x']), "malformed"),
        (block(1, &pair("Port", "80")), "malformed"),
        (block(1, &pair("", "80")), "malformed"),
        (block(2, &[pair("port", "80"), pair("port", "81")].concat()), "malformed"),
        (block(1, &[pair("port", "80"), vec![0]].concat()), "malformed"),
        (block(1, &[0, 0, 0, 1, b'a', 0, 0, 0, 1, 0xff]), "malformed"),
        (raw_block(&[]), "malformed"),
    ] {
        let error = decoded(&wire, 4096).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}, not {expected}");
    }
}

#[test]
fn blocks_share_one_compressed_stream() {
    let frames: Vec<Frame> = (1..40)
        .map(|n| Frame::SynStream {
            id: n,
            fin: n % 2 == 0,
            headers: headers(&[("streamtype", "data"), ("port", "8080"), ("requestid", &n.to_string())]),
        })
        .collect();
    let wire = encoded(&frames);
    assert_eq!(decoded(&wire, 5).unwrap(), frames);
    // The later ones are mostly references to what came before.
    assert!(wire.len() / frames.len() < 60, "{} bytes", wire.len());
    // Without the first one nothing can be read.
    let second = 8 + usize::from(wire[6]) * 256 + usize::from(wire[7]);
    assert!(decoded(&wire[second..], 4096).is_err());
}

fn any_headers() -> impl Strategy<Value = Headers> {
    proptest::collection::btree_map("[a-z-]{1,12}", "\\PC{0,40}", 0..6).prop_map(|m| m.into_iter().collect())
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let id = || 1..=0x7fff_ffffu32;
    prop_oneof![
        (id(), any::<bool>(), any_headers()).prop_map(|(id, fin, headers)| Frame::SynStream {
            id,
            fin,
            headers
        }),
        (id(), any::<bool>(), any_headers()).prop_map(|(id, fin, headers)| Frame::SynReply {
            id,
            fin,
            headers
        }),
        (id(), any::<bool>(), any_headers()).prop_map(|(id, fin, headers)| Frame::Headers {
            id,
            fin,
            headers
        }),
        (id(), 1..12u32).prop_map(|(id, s)| Frame::Reset { id, status: Status(s) }),
        any::<u32>().prop_map(|id| Frame::Ping { id }),
        (0..=0x7fff_ffffu32, any::<u32>()).prop_map(|(last, status)| Frame::GoAway { last, status }),
        (0..=0x7fff_ffffu32, 0..=0x7fff_ffffu32).prop_map(|(id, delta)| Frame::WindowUpdate { id, delta }),
        Just(Frame::Settings),
        // With its end, so that two of one stream are not taken for one in two pieces.
        (id(), proptest::collection::vec(any::<u8>(), 0..40_000)).prop_map(|(id, data)| Frame::Data {
            id,
            fin: true,
            data: data.into()
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn frames_are_read_as_they_were_written(
        frames in proptest::collection::vec(any_frame(), 1..12),
        step in 1..20_000usize,
    ) {
        let wire = encoded(&frames);
        prop_assert_eq!(decoded(&wire, step).unwrap(), frames);
    }

    #[test]
    fn no_bytes_are_too_strange(wire in proptest::collection::vec(any::<u8>(), 0..600), step in 1..64usize) {
        // Any outcome but a panic or memory beyond the bounds; the same one however it arrives.
        let whole = decoded(&wire, 4096).map_err(|e| e.to_string());
        prop_assert_eq!(decoded(&wire, step).map_err(|e| e.to_string()), whole);
    }

    #[test]
    fn a_flipped_bit_is_never_a_panic(
        frames in proptest::collection::vec(any_frame(), 1..6),
        at in any::<proptest::sample::Index>(),
        bit in 0..8u8,
    ) {
        let mut wire = encoded(&frames);
        let at = at.index(wire.len());
        wire[at] ^= 1 << bit;
        drop(decoded(&wire, 4096));
    }
}
