//! Parses counts and sizes: `500M`, `1.5B`, `8GB`, `512MiB`.

use crate::error::{Error, Result};

/// Parses a parameter count: a decimal number with K, M, B or T for thousand, million, billion or trillion, in either
/// case. Digits may be grouped with `_`.
///
/// # Errors
/// `invalid_argument`, quoting the text, for anything else and for less than 1.
pub fn parse_params(text: &str) -> Result<u64> {
    let units =
        [("", 0), ("k", 3), ("m", 6), ("b", 9), ("t", 12)].map(|(name, zeros)| (name, 10u64.pow(zeros)));
    parse(text, &units).ok_or_else(|| {
        Error::invalid_argument(format!(
            "expected a parameter count such as 500M, 1.5B or 260000 but found {text:?}"
        ))
    })
}

/// Parses a number of bytes: a decimal number, an optional space, and a unit in either case. Units are B or none; KB,
/// MB, GB, TB (powers of 1000); KiB, MiB, GiB, TiB (powers of 1024).
///
/// # Errors
/// `invalid_argument`, quoting the text, for anything else and for less than 1.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let units = [
        ("", 1),
        ("b", 1),
        ("kb", 1000),
        ("mb", 1000u64.pow(2)),
        ("gb", 1000u64.pow(3)),
        ("tb", 1000u64.pow(4)),
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
        ("tib", 1 << 40),
    ];
    parse(text, &units).ok_or_else(|| {
        Error::invalid_argument(format!("expected a size such as 8GB, 512MiB or 1000000 but found {text:?}"))
    })
}

/// `number * unit`, rounded. `None` for an invalid number, an unknown unit, or a value below 1 or above 64 bits.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.trim_start();
    let (_, factor) = *units.iter().find(|(name, _)| unit.eq_ignore_ascii_case(name))?;
    let number = number.replace('_', "");
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).filter(|&value| value >= 1);
    }
    // Rust's parser also accepts `inf` and exponents, but only digits and points get here.
    let value = (number.parse::<f64>().ok()? * factor as f64).round();
    (1.0..u64::MAX as f64).contains(&value).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parameter_counts() {
        for (text, expected) in [
            ("500M", 500_000_000),
            ("500m", 500_000_000),
            ("1.5B", 1_500_000_000),
            ("0.66M", 660_000),
            ("260K", 260_000),
            ("1.1 b", 1_100_000_000),
            ("2T", 2_000_000_000_000),
            ("1_000_000", 1_000_000),
            (" 42 ", 42),
        ] {
            assert_eq!(parse_params(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("8GB", 8_000_000_000),
            ("8 GB", 8_000_000_000),
            ("512MiB", 512 << 20),
            ("1.5gib", 3 << 29),
            ("64kb", 64_000),
            ("64KiB", 65_536),
            ("1TB", 1_000_000_000_000),
            ("1TiB", 1 << 40),
            ("1024", 1024),
            ("1024B", 1024),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn anything_else_is_quoted() {
        let senseless =
            ["", " ", "M", "-5M", "1e9", "inf", "NaN", "0", "0.0M", "1.2.3M", "5X", "5MM", "0x10", "९M", "."];
        for text in senseless {
            for error in [parse_params(text).unwrap_err(), parse_bytes(text).unwrap_err()] {
                assert!(error.message().contains(&format!("{text:?}")), "{error}");
            }
        }
        for text in ["99999999999999999999", "18446744073709551615K", "999999999999999999999.5B"] {
            assert!(parse_params(text).is_err(), "{text}");
        }
        assert!(parse_params("8GB").is_err() && parse_bytes("8G").is_err(), "8G could be 8GB or 8GiB");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,12}") {
            let _ = parse_params(&text);
            let _ = parse_bytes(&text);
        }
    }
}
