//! The fuzz targets of `fuzz/` over their corpus and over blind mutations of it, a fixed few of them: so that the
//! targets build, the corpus holds, and what once was found stays fixed. Guided by coverage they are run by
//! `just fuzz`. `PODWAY_FUZZ_SECONDS=300 cargo test -p podway-runtime --test fuzz -- --nocapture` goes on longer,
//! from another seed each time, and prints how many it tried.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

#[path = "../../../fuzz/bodies.rs"]
mod bodies;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// How many mutations each target has in CI.
const MUTATIONS: u64 = 400;
/// The longest input, in bytes.
const LONGEST: usize = 64 * 1024;

/// xorshift64*: the same numbers each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }
}

const WORDS: [&[u8]; 14] = [
    b"",
    b"\0",
    b"..",
    b"/",
    b"../../",
    b"-1",
    b"0",
    b"4294967295",
    b"9223372036854775807",
    b"\xff\xff\xff\xff",
    b"null",
    b"{}",
    b"[]",
    b"\"",
];

/// One change: a bit, a byte, a word put in or over, a stretch cut, doubled or of another seed.
fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let to = (at + random.below(64)).min(bytes.len());
    match random.below(7) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 if at < bytes.len() => bytes[at] = u8::try_from(random.below(256)).unwrap(),
        2 => drop(bytes.splice(at..at, WORDS[random.below(WORDS.len())].iter().copied())),
        3 => drop(bytes.splice(at..to, WORDS[random.below(WORDS.len())].iter().copied())),
        4 => drop(bytes.drain(at..to)),
        5 => {
            let stretch = bytes[at..to].to_vec();
            drop(bytes.splice(at..at, stretch));
        }
        _ => {
            let other = &seeds[random.below(seeds.len())];
            let from = random.below(other.len() + 1);
            let end = (from + random.below(1024)).min(other.len());
            drop(bytes.splice(at..to, other[from..end].iter().copied()));
        }
    }
    bytes.truncate(LONGEST);
}

/// Makes the checksums of tar headers right again: else nothing behind them is ever reached.
fn checksums(bytes: &mut [u8]) {
    for header in bytes.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

fn run(target: &str, body: fn(&[u8]), repair: fn(&mut [u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let seeds: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert!(!seeds.is_empty());
    let seconds: Option<u64> = std::env::var("PODWAY_FUZZ_SECONDS").ok().map(|text| text.parse().unwrap());
    let began = Instant::now();
    let seed = seconds.map_or(1, |_| u64::from(std::process::id()) << 32 | 1);
    let mut random = Random(seed);
    let mut tried = 0;
    let attempt = |input: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| body(input))).is_err() {
            panic!("{target} fails on these bytes: {}", input.escape_ascii());
        }
    };
    seeds.iter().for_each(|seed| attempt(seed));
    loop {
        let mut input = seeds[random.below(seeds.len())].clone();
        for _ in 0..=random.below(6) {
            change(&mut input, &seeds, &mut random);
        }
        if random.below(4) > 0 {
            repair(&mut input);
        }
        attempt(&input);
        tried += 1;
        if seconds.map_or(tried >= MUTATIONS, |limit| began.elapsed() >= Duration::from_secs(limit)) {
            break;
        }
    }
    println!("{target}: {tried} mutations of {} seeds", seeds.len());
}

fn as_it_is(_: &mut [u8]) {}

#[test]
fn cni() {
    run("cni", bodies::cni, as_it_is);
}

#[test]
fn hosts() {
    run("hosts", bodies::hosts, as_it_is);
}

#[test]
fn journal() {
    run("journal", bodies::journal, as_it_is);
}

/// Else the target would never get behind the first key.
#[test]
fn the_journals_seeds_are_entries() {
    let seed = |name: &str| {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/journal").join(name))
            .unwrap()
    };
    serde_json::from_slice::<podway_runtime::state::Sandbox>(&seed("sandbox")).unwrap();
    serde_json::from_slice::<podway_runtime::state::Container>(&seed("container")).unwrap();
    podway_monitor::ExitRecord::parse(&String::from_utf8(seed("exit")).unwrap()).unwrap();
}

#[test]
fn manifest() {
    run("manifest", bodies::manifest, as_it_is);
}

#[test]
fn request() {
    run("request", bodies::request, as_it_is);
}

#[test]
fn unpack() {
    // Devices and owners are root's to make.
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: needs root");
    }
    run("unpack", bodies::unpack, checksums);
}

#[test]
fn users() {
    run("users", bodies::users, as_it_is);
}
