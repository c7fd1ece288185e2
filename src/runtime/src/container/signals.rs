//! Signals by the names that CRI and images use, and their numbers on Linux.

use podway_cri::v1::Signal;
use std::str::FromStr as _;

/// The first and the last real-time signal, as glibc and musl leave them to programs.
const REAL_TIME: (u8, u8) = (34, 64);

/// The number of a signal's name (`SIGTERM`, `TERM`, `SIGRTMIN+3`, `RTMAX-1`) or number.
#[must_use]
pub fn parse(text: &str) -> Option<u8> {
    if let Ok(number) = text.parse() {
        return Some(number).filter(|n| (1..=REAL_TIME.1).contains(n));
    }
    let upper = text.to_ascii_uppercase().replace("PLUS", "+").replace("MINUS", "-");
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let (base, offset) = match name.split_once(['+', '-']) {
        Some((base, offset)) => (base, offset.parse::<u8>().ok()?),
        None => (name, 0),
    };
    let number = match base {
        "RTMIN" => REAL_TIME.0.checked_add(offset)?,
        "RTMAX" => REAL_TIME.1.checked_sub(offset)?,
        _ if offset > 0 => return None,
        "CLD" => 17,
        "POLL" => 29,
        "IOT" => 6,
        "UNUSED" => 31,
        _ => u8::try_from(nix::sys::signal::Signal::from_str(&format!("SIG{name}")).ok()? as i32).ok()?,
    };
    let real_time = base.starts_with("RT");
    (!real_time || (REAL_TIME.0..=REAL_TIME.1).contains(&number)).then_some(number)
}

/// The number of a CRI signal; none for the runtime's default.
#[must_use]
pub fn number(signal: Signal) -> Option<u8> {
    parse(signal.as_str_name())
}

/// The CRI's name of a number; the runtime's default for one that has none.
#[must_use]
pub fn named(wanted: u8) -> Signal {
    (1..=i32::from(REAL_TIME.1) + 4)
        .filter_map(|value| Signal::try_from(value).ok())
        .find(|&signal| number(signal) == Some(wanted))
        .unwrap_or(Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_cri_has_a_number() {
        let mut known = 0;
        for value in 1..200 {
            if let Ok(signal) = Signal::try_from(value) {
                let n = number(signal).unwrap_or_else(|| unreachable!("{}", signal.as_str_name()));
                assert_eq!(number(named(n)), Some(n), "{}", signal.as_str_name());
                known += 1;
            }
        }
        assert!(known >= 60, "{known}");
    }

    #[test]
    fn names_are_taken_as_images_write_them() {
        for (text, number) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("37", Some(37)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMIN+99", None),
            ("0", None),
            ("65", None),
            ("SIGTERM+1", None),
            ("SIGNONE", None),
        ] {
            assert_eq!(parse(text), number, "{text}");
        }
    }
}
