//! A CRI log as a client wants it: bytes of the file in, bytes of the answer out. Pure.
//!
//! A line is `RFC3339Nano stdout|stderr P|F text`. It is never held as a whole: once its head is
//! read, the text goes through piece by piece, so that a line of any length costs the same memory.
//! A line that has no such head is left out.

use jiff::Timestamp;

/// The longest head: a time of 35 bytes, a stream, tags, three spaces, with room.
const MAX_HEAD: usize = 128;

/// Which of the two streams are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Streams {
    /// Both.
    #[default]
    All,
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What of the log is wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only lines at or after this time.
    pub since: Option<Timestamp>,
    /// Whether each line begins with its time.
    pub timestamps: bool,
    /// The most bytes of the answer.
    pub limit: Option<u64>,
    /// The most lines of the log that are read.
    pub lines: Option<u64>,
    /// Which stream.
    pub streams: Streams,
}

#[derive(Debug)]
enum Place {
    /// In the head of a line, of which this much was read.
    Head(Vec<u8>),
    /// In the text of a line.
    Text { wanted: bool, partial: bool },
    /// In a line that is no CRI log.
    Skip,
}

/// Reads one log.
#[derive(Debug)]
pub struct Decoder {
    filter: Filter,
    place: Place,
    /// Whether what goes out next begins a line of the program's.
    fresh: bool,
    done: bool,
}

impl Decoder {
    /// A decoder at the beginning of a line.
    #[must_use]
    pub fn new(filter: Filter) -> Self {
        let done = filter.limit == Some(0) || filter.lines == Some(0);
        Decoder { filter, place: Place::Head(Vec::new()), fresh: true, done }
    }

    /// Whether no more is wanted.
    #[must_use]
    pub fn done(&self) -> bool {
        self.done
    }

    /// Takes `input`, the next bytes of the file, and appends to `out` what the client is to have.
    pub fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() && !self.done {
            let end = input.iter().position(|b| *b == b'\n');
            match &mut self.place {
                Place::Head(head) => {
                    // A head ends with its third space; the text may be in this input already.
                    let window = &input[..end.unwrap_or(input.len())];
                    let mut spaces = head.iter().filter(|b| **b == b' ').count();
                    let third = window.iter().position(|b| {
                        spaces += usize::from(*b == b' ');
                        spaces == 3
                    });
                    let took = third.map_or(window.len(), |at| at + 1);
                    head.extend_from_slice(&window[..took]);
                    input = &input[took..];
                    if third.is_some() {
                        let head = std::mem::take(head);
                        self.place = self.enter(&head, out);
                    } else if end.is_some() {
                        input = &input[1..];
                        self.end();
                    } else if head.len() > MAX_HEAD {
                        self.place = Place::Skip;
                    }
                }
                Place::Text { wanted, partial } => {
                    let (wanted, partial) = (*wanted, *partial);
                    let text = &input[..end.unwrap_or(input.len())];
                    if wanted {
                        self.put(text, out);
                        if end.is_some() && !partial {
                            self.put(b"\n", out);
                        }
                    }
                    input = &input[text.len()..];
                    if end.is_some() {
                        input = &input[1..];
                        self.fresh = !partial;
                        self.end();
                    }
                }
                Place::Skip => {
                    input = end.map_or(&[], |at| &input[at + 1..]);
                    if end.is_some() {
                        self.end();
                    }
                }
            }
        }
    }

    /// A line of the log has ended.
    fn end(&mut self) {
        self.place = Place::Head(Vec::new());
        if let Some(lines) = &mut self.filter.lines {
            *lines -= 1;
            self.done |= *lines == 0;
        }
    }

    fn enter(&mut self, head: &[u8], out: &mut Vec<u8>) -> Place {
        let parsed = std::str::from_utf8(head).ok().and_then(|head| {
            let mut words = head.split(' ');
            let (time, stream, tags) = (words.next()?, words.next()?, words.next()?);
            let streams = match stream {
                "stdout" => Streams::Stdout,
                "stderr" => Streams::Stderr,
                _ => return None,
            };
            let at: Timestamp = time.parse().ok()?;
            Some((time, at, streams, tags.split(':').next() == Some("P")))
        });
        let Some((time, at, stream, partial)) = parsed else { return Place::Skip };
        let of_stream = self.filter.streams == Streams::All || self.filter.streams == stream;
        let wanted = of_stream && self.filter.since.is_none_or(|since| at >= since);
        if wanted && self.filter.timestamps && self.fresh {
            let prefix = format!("{} ", nanoseconds(time));
            self.put(prefix.as_bytes(), out);
        }
        Place::Text { wanted, partial }
    }

    fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let Some(left) = &mut self.filter.limit else { return out.extend_from_slice(bytes) };
        let n = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
        out.extend_from_slice(&bytes[..n]);
        *left -= n as u64;
        self.done |= *left == 0;
    }
}

/// A time with all nine digits of its nanoseconds, as the kubelet writes it.
fn nanoseconds(time: &str) -> String {
    let zone = time.rfind(['Z', 'z', '+', '-']).filter(|at| *at > 10).unwrap_or(time.len());
    let (clock, zone) = time.split_at(zone);
    let (seconds, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    format!("{seconds}.{fraction:0<9}{zone}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOG: &str = "\
2026-01-01T00:00:01.5Z stdout F one
2026-01-01T00:00:02.000000001Z stderr F two
rubbish
2026-01-01T00:00:03Z stdout P thr
2026-01-01T00:00:03Z stdout F ee
2026-01-01T01:00:04+01:00 stdout F four
";

    fn read(log: &str, filter: Filter, step: usize) -> String {
        let mut decoder = Decoder::new(filter);
        let mut out = Vec::new();
        for piece in log.as_bytes().chunks(step) {
            decoder.feed(piece, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_wanted_of_a_log() {
        let all = Filter::default;
        let cases = [
            (all(), "one\ntwo\nthree\nfour\n"),
            (Filter { streams: Streams::Stderr, ..all() }, "two\n"),
            (Filter { since: Some("2026-01-01T00:00:03Z".parse().unwrap()), ..all() }, "three\nfour\n"),
            (Filter { limit: Some(6), ..all() }, "one\ntw"),
            (Filter { limit: Some(0), ..all() }, ""),
            (Filter { lines: Some(2), ..all() }, "one\ntwo\n"),
            (Filter { lines: Some(0), ..all() }, ""),
            (
                Filter { timestamps: true, ..all() },
                "2026-01-01T00:00:01.500000000Z one\n2026-01-01T00:00:02.000000001Z two\n\
                 2026-01-01T00:00:03.000000000Z three\n2026-01-01T01:00:04.000000000+01:00 four\n",
            ),
        ];
        for (filter, expected) in cases {
            for step in [1, 7, 10_000] {
                assert_eq!(read(LOG, filter.clone(), step), expected, "{filter:?} by {step}");
            }
        }
    }

    #[test]
    fn text_goes_out_before_its_line_ends() {
        let mut out = Vec::new();
        Decoder::new(Filter::default()).feed(b"2026-01-01T00:00:01Z stdout F no end", &mut out);
        assert_eq!(out, b"no end");
    }

    #[test]
    fn a_head_without_end_is_left_out() {
        let log = format!("{}\n2026-01-01T00:00:01Z stdout F ok\n", "x".repeat(10_000));
        assert_eq!(read(&log, Filter::default(), 50), "ok\n");
    }

    proptest! {
        #[test]
        fn anything_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..500), step in 1_usize..50) {
            let filter = Filter { limit: Some(100), timestamps: true, ..Filter::default() };
            let mut decoder = Decoder::new(filter);
            let mut out = Vec::new();
            for piece in bytes.chunks(step) {
                decoder.feed(piece, &mut out);
            }
            prop_assert!(out.len() <= 100);
        }
    }
}
