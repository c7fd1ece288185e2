//! Kubernetes quantities as exact integers: `500m`, `1Gi`, `2e3`, `1.5`.

/// A quantity in thousandths of its unit, rounded up as upstream's `MilliValue` does; `None` when
/// the text is not a quantity or does not fit.
#[must_use]
pub fn milli(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (negative, digits) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let mut numerator = mantissa.checked_mul(1000)?;
    let mut denominator = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    match suffix {
        "" => {}
        "n" => denominator = denominator.checked_mul(1_000_000_000)?,
        "u" => denominator = denominator.checked_mul(1_000_000)?,
        "m" => denominator = denominator.checked_mul(1000)?,
        other => {
            if let Some(exponent) = other.strip_prefix(['e', 'E']).and_then(|e| e.parse::<i32>().ok()) {
                let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
                if exponent < 0 {
                    denominator = denominator.checked_mul(power)?;
                } else {
                    numerator = numerator.checked_mul(power)?;
                }
            } else {
                let factor = ["k", "M", "G", "T", "P", "E"]
                    .iter()
                    .position(|s| *s == other)
                    .map(|i| 1000_i128.pow(u32::try_from(i).unwrap_or(0) + 1))
                    .or_else(|| {
                        ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]
                            .iter()
                            .position(|s| *s == other)
                            .map(|i| 1024_i128.pow(u32::try_from(i).unwrap_or(0) + 1))
                    })?;
                numerator = numerator.checked_mul(factor)?;
            }
        }
    }
    let value = ceil_div(numerator, denominator);
    Some(if negative { -value } else { value })
}

/// A quantity in whole units, rounded up as upstream's `Value` does.
#[must_use]
pub fn value(text: &str) -> Option<i128> {
    milli(text).map(|m| ceil_div(m, 1000))
}

/// `a / b` rounded up, for a positive `b`.
#[must_use]
pub fn ceil_div(a: i128, b: i128) -> i128 {
    let down = a.div_euclid(b);
    if a.rem_euclid(b) == 0 { down } else { down + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_upstream_reads_them() {
        for (text, expected) in [
            ("0", Some(0)),
            ("500m", Some(500)),
            ("1.5", Some(1500)),
            ("1Ki", Some(1_024_000)),
            ("2e3", Some(2_000_000)),
            ("1E", Some(1_000_000_000_000_000_000_000)),
            ("1n", Some(1)),
            ("-1", Some(-1000)),
            ("", None),
            ("x", None),
            ("1Kb", None),
        ] {
            assert_eq!(milli(text), expected, "{text}");
        }
        assert_eq!(value("1500m"), Some(2));
    }
}
