//! Sizes, counts and times as people write and read them.

use std::time::Duration;

use crate::set::geometry::Bytes;

const UNITS: [(char, u32); 5] = [('k', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

/// Reads a size: a number of bytes, or with k, M, G, T or P for powers of 1024.
///
/// Accepts either case, a fraction with a suffix (`1.5G`) and the endings `iB` and `B`.
pub(super) fn parse_size(text: &str) -> Result<Bytes, String> {
    let number = text.trim_end_matches('B').trim_end_matches('i');
    let shift = number.chars().last().and_then(|last| {
        UNITS
            .iter()
            .find(|(letter, _)| letter.eq_ignore_ascii_case(&last))
            .map(|(_, s)| *s)
    });
    let digits = if shift.is_some() {
        &number[..number.len() - 1]
    } else {
        number
    };
    let bytes = match (digits.split_once('.'), shift) {
        (None, _) => whole(digits).and_then(|n| n.checked_mul(1 << shift.unwrap_or(0))),
        (Some((whole_part, fraction)), Some(shift)) => scaled(whole_part, fraction, shift),
        (Some(_), None) => None,
    };
    bytes.map(Bytes).ok_or_else(|| {
        format!("`{text}` is not a size: a number of bytes, or with k, M, G or T, as in 512M")
    })
}

/// Reads digits only: no sign, no blank.
fn whole(digits: &str) -> Option<u64> {
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// `whole.fraction` times two to the power of `shift`; exact, or nothing.
fn scaled(whole_part: &str, fraction: &str, shift: u32) -> Option<u64> {
    let ten = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let value = u128::from(whole(whole_part)?).checked_mul(ten)?;
    let value = value.checked_add(u128::from(whole(fraction)?))?;
    let bytes = value.checked_mul(1 << shift)?;
    if bytes % ten == 0 {
        u64::try_from(bytes / ten).ok()
    } else {
        None
    }
}

/// Reads a time: seconds, or with s, m or h.
pub(super) fn parse_timeout(text: &str) -> Result<Duration, String> {
    let (digits, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(digits) => (digits, &text[digits.len()..]),
        None => (text, "s"),
    };
    let factor = match unit {
        "m" => 60.0,
        "h" => 3600.0,
        _ => 1.0,
    };
    let plain = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let seconds = digits.parse::<f64>().ok().filter(|_| plain);
    seconds
        .and_then(|s| Duration::try_from_secs_f64(s * factor).ok())
        .ok_or_else(|| format!("`{text}` is not a time: seconds, or with s, m or h, as in 90s"))
}

/// A number of bytes for people: three digits and a unit.
pub(super) fn human(bytes: u64) -> String {
    let Some((letter, shift)) = UNITS.iter().rev().find(|(_, shift)| bytes >> shift > 0) else {
        return format!("{bytes} B");
    };
    let unit = 1u128 << shift;
    let places = match bytes >> shift {
        0..10 => 2,
        10..100 => 1,
        _ => 0,
    };
    let ten = 10u128.pow(places);
    // Cut, not rounded: 1023.99 MiB must not read as 1024 MiB.
    let scaled = u128::from(bytes) * ten / unit;
    let letter = letter.to_ascii_uppercase();
    match usize::try_from(places) {
        Ok(width @ 1..) => {
            format!("{}.{:0width$} {letter}iB", scaled / ten, scaled % ten)
        }
        _ => format!("{scaled} {letter}iB"),
    }
}

/// A time span for people.
pub(super) fn human_seconds(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        let table = [
            ("0", 0),
            ("512", 512),
            ("4k", 4096),
            ("4K", 4096),
            ("512M", 512 << 20),
            ("1G", 1 << 30),
            ("1GiB", 1 << 30),
            ("1.5G", 3 << 29),
            ("0.5k", 512),
            ("2T", 2 << 40),
            ("17179869183G", 17_179_869_183 << 30),
        ];
        for (text, bytes) in table {
            assert_eq!(parse_size(text), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_an_example() {
        for text in [
            "",
            "G",
            "-1",
            "+1",
            "1X",
            "1.5",
            "1 G",
            "1.k",
            ".5k",
            "17179869184G",
            "0.3k",
            // More than 128 bits, before the fraction is divided off.
            "99.00000000000000000000000000000000000000G",
        ] {
            let error = parse_size(text).expect_err(text);
            assert!(error.contains(text) && error.contains("512M"), "{error}");
        }
    }

    #[test]
    fn times_have_a_unit_or_are_seconds() {
        assert_eq!(parse_timeout("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_timeout("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_timeout("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_timeout("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_timeout("1h"), Ok(Duration::from_secs(3600)));
        for text in ["", "m", "-1", "1d", "inf", "nan", "1e3"] {
            assert!(parse_timeout(text).is_err(), "{text}");
        }
    }

    #[test]
    fn people_read_three_digits() {
        let table = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (65_024, "63.5 KiB"),
            ((1 << 30) - 1, "1023 MiB"),
            (18 << 30, "18.0 GiB"),
            (u64::MAX, "16383 PiB"),
        ];
        for (bytes, text) in table {
            assert_eq!(human(bytes), text);
        }
        assert_eq!(human_seconds(59), "59s");
        assert_eq!(human_seconds(61), "1m01s");
        assert_eq!(human_seconds(7260), "2h01m");
    }
}
