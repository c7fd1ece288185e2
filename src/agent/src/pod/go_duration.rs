//! Durations in messages, as people know them of a kubelet.

use std::time::Duration;

/// As Go's `time.Duration` is printed, to the millisecond: `87ms`, `1.2s`, `1m2.003s`.
#[must_use]
pub fn go_duration(took: Duration) -> String {
    let (all, millis) = (took.as_secs(), took.subsec_millis());
    let (hours, minutes, seconds) = (all / 3600, all / 60 % 60, all % 60);
    let fraction = format!(".{millis:03}");
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    match (hours, minutes, seconds) {
        (0, 0, 0) if millis > 0 => format!("{millis}ms"),
        (0, 0, s) => format!("{s}{fraction}s"),
        (0, m, s) => format!("{m}m{s}{fraction}s"),
        (h, m, s) => format!("{h}h{m}m{s}{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_prints_it() {
        for (millis, text) in [
            (0, "0s"),
            (87, "87ms"),
            (1_000, "1s"),
            (1_200, "1.2s"),
            (10_000, "10s"),
            (62_003, "1m2.003s"),
            (300_000, "5m0s"),
            (600_000, "10m0s"),
            (3_605_010, "1h0m5.01s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(millis)), text);
        }
    }
}
