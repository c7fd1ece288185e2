//! Durations as Go writes them and Kubernetes' configuration files have them: `15s`, `1m30s`, `250ms`.

use serde::Deserialize;
use std::str::FromStr;
use std::time::Duration;

/// A duration, not negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct GoDuration(pub(crate) Duration);

/// Longer ones are not taken: a year.
const LONGEST: u128 = 365 * 86_400 * 1_000_000_000;

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is not a duration such as 15s, 1m30s or 250ms");
        if text == "0" {
            return Ok(GoDuration(Duration::ZERO));
        }
        let (mut rest, mut nanos) = (text, 0_u128);
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = &rest[digits..];
            let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let factor = match &rest[..unit] {
                "ns" => 1_u128,
                "us" | "µs" => 1_000,
                "ms" => 1_000_000,
                "s" => 1_000_000_000,
                "m" => 60_000_000_000,
                "h" => 3_600_000_000_000,
                _ => return Err(wrong()),
            };
            rest = &rest[unit..];
            nanos += u128::from(number) * factor;
        }
        if text.is_empty() || nanos > LONGEST {
            return Err(wrong());
        }
        Ok(GoDuration(Duration::from_nanos(u64::try_from(nanos).map_err(|_| wrong())?)))
    }
}

impl TryFrom<String> for GoDuration {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_writes_is_read_and_nothing_else() {
        for (text, millis) in
            [("15s", 15_000), ("1m30s", 90_000), ("250ms", 250), ("0", 0), ("1h0m0s", 3_600_000)]
        {
            assert_eq!(text.parse(), Ok(GoDuration(Duration::from_millis(millis))), "{text}");
        }
        for text in ["", "15", "s", "-1s", "1.5s", "1d", "15 s", "99999999999h", "99999999999999999999s"] {
            assert!(text.parse::<GoDuration>().is_err(), "{text}");
        }
    }
}
