//! Quantiles by nearest rank: each is a value that was measured, none is interpolated.

use serde::Serialize;

/// Quantiles of a sample, in µs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Quantiles {
    /// How many values.
    pub count: usize,
    /// The smallest.
    pub min_micros: u64,
    /// Half of them are not above it.
    pub p50_micros: u64,
    /// 95 of 100.
    pub p95_micros: u64,
    /// 99 of 100.
    pub p99_micros: u64,
    /// The largest.
    pub max_micros: u64,
    /// The mean.
    pub mean_micros: u64,
}

impl Quantiles {
    /// Of a sample in any order; `None` for an empty one.
    #[must_use]
    pub fn of(mut sample: Vec<u64>) -> Option<Self> {
        sample.sort_unstable();
        let sum: u128 = sample.iter().map(|&v| u128::from(v)).sum();
        Some(Quantiles {
            count: sample.len(),
            min_micros: *sample.first()?,
            p50_micros: rank(&sample, 50)?,
            p95_micros: rank(&sample, 95)?,
            p99_micros: rank(&sample, 99)?,
            max_micros: *sample.last()?,
            mean_micros: u64::try_from(sum / sample.len() as u128).unwrap_or(u64::MAX),
        })
    }
}

/// The nearest-rank percentile of a sorted sample: the ⌈percent·n/100⌉-th value.
fn rank(sorted: &[u64], percent: usize) -> Option<u64> {
    sorted.get((percent * sorted.len()).div_ceil(100).saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_quantile_is_a_value_that_was_measured() {
        assert_eq!(Quantiles::of(vec![]), None);
        let one = Quantiles::of(vec![7]).unwrap();
        assert_eq!((one.min_micros, one.p50_micros, one.p99_micros, one.max_micros), (7, 7, 7, 7));
        let hundred = Quantiles::of((1..=100).rev().collect()).unwrap();
        assert_eq!((hundred.p50_micros, hundred.p95_micros, hundred.p99_micros), (50, 95, 99));
        assert_eq!((hundred.max_micros, hundred.mean_micros, hundred.count), (100, 50, 100));
        let two = Quantiles::of(vec![u64::MAX, 0]).unwrap();
        assert_eq!((two.p50_micros, two.p95_micros), (0, u64::MAX));
    }
}
