//! `resource.Quantity` to an integer, rounded up, as `Quantity.Value()` and `MilliValue()` do.

/// Why a quantity is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// No digits, or a stray character.
    #[error("{0:?} has no valid number")]
    Number(String),
    /// A suffix that is not one of Kubernetes'.
    #[error("{0:?} has an unknown suffix")]
    Suffix(String),
}

/// The value in whole units (bytes, pods), rounded up, saturating at the ends of i64.
///
/// # Errors
/// [`QuantityError`] for text that is not a quantity.
pub fn value(text: &str) -> Result<i64, QuantityError> {
    scaled(text, 0)
}

/// The value in thousandths (milli-CPU), rounded up, saturating at the ends of i64.
///
/// # Errors
/// [`QuantityError`] for text that is not a quantity.
pub fn milli(text: &str) -> Result<i64, QuantityError> {
    scaled(text, 3)
}

/// `text · 10^decimals`, rounded up (away from zero, as apimachinery's `ScaledValue`).
fn scaled(text: &str, decimals: i32) -> Result<i64, QuantityError> {
    let number = || QuantityError::Number(text.to_owned());
    let (negative, body) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let split = body.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(body.len());
    let (digits, suffix) = body.split_at(split);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(number());
    }
    let (power_of_two, power_of_ten) =
        exponents(suffix).ok_or_else(|| QuantityError::Suffix(text.to_owned()))?;
    // Digits beyond 30 places cannot change an i64 that was not saturated already, but for the ceil.
    let mantissa_text = format!("{whole}{fraction}");
    let mantissa_text = mantissa_text.trim_start_matches('0');
    if mantissa_text.len() > 30 {
        return Err(number());
    }
    let mantissa: u128 =
        if mantissa_text.is_empty() { 0 } else { mantissa_text.parse().map_err(|_| number())? };
    let ten = power_of_ten + decimals - i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let shifted = mantissa.saturating_mul(1u128 << power_of_two);
    let magnitude = if ten >= 0 {
        10u128
            .checked_pow(ten.unsigned_abs())
            .map_or(if shifted == 0 { 0 } else { u128::MAX }, |p| shifted.saturating_mul(p))
    } else {
        10u128.checked_pow(ten.unsigned_abs()).map_or(u128::from(shifted != 0), |p| shifted.div_ceil(p))
    };
    let magnitude = i64::try_from(magnitude).unwrap_or(i64::MAX);
    Ok(if negative { -magnitude } else { magnitude })
}

/// The suffix as (power of two, power of ten).
fn exponents(suffix: &str) -> Option<(u32, i32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            (0, exponent.parse::<i32>().ok().filter(|e| e.abs() <= 64)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("1", 1000, 1)]
    #[case("100m", 100, 1)]
    #[case("1500m", 1500, 2)]
    #[case("0.5", 500, 1)]
    #[case(".5", 500, 1)]
    #[case("1n", 1, 1)]
    #[case("1001u", 2, 1)]
    #[case("64Mi", 67_108_864_000, 67_108_864)]
    #[case("1.5Gi", 1_610_612_736_000, 1_610_612_736)]
    #[case("1e3", 1_000_000, 1000)]
    #[case("2E", i64::MAX, 2_000_000_000_000_000_000)]
    #[case("0", 0, 0)]
    #[case("-1", -1000, -1)]
    fn quantities_round_up(#[case] text: &str, #[case] as_milli: i64, #[case] as_value: i64) {
        assert_eq!((milli(text), value(text)), (Ok(as_milli), Ok(as_value)));
    }

    #[rstest]
    #[case("")]
    #[case("m")]
    #[case("1.2.3")]
    #[case("1 Gi")]
    #[case("1Kb")]
    #[case("1e")]
    #[case("é")]
    fn what_is_no_quantity_is_refused(#[case] text: &str) {
        assert!(value(text).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}") { let _ = (value(&text), milli(&text)); }

        #[test]
        fn integers_read_back(n in proptest::num::i32::ANY) {
            proptest::prop_assert_eq!(value(&n.to_string()), Ok(i64::from(n)));
        }
    }
}
