//! How numbers, times and names are written, in every file alike.

use time::OffsetDateTime;
use time::macros::format_description;

use crate::set::Moment;

/// What stands where there is no value.
pub(super) const ABSENT: &str = "-";

/// A moment in RFC 3339, UTC. Always with its thousandths, so that moments sort as text.
pub(super) fn moment(moment: Moment) -> String {
    let form =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(moment.0) * 1_000_000)
        .ok()
        .and_then(|time| time.format(form).ok())
        .unwrap_or_else(|| ABSENT.to_owned())
}

/// The moment in RFC 3339 or, when it has not come yet, a dash.
pub(super) fn maybe_moment(at: Option<Moment>) -> String {
    at.map_or_else(|| ABSENT.to_owned(), moment)
}

/// The value, or a dash.
pub(super) fn maybe<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| ABSENT.to_owned(), |v| v.to_string())
}

/// Hundredths of a percent, rounded down: 10000 means all, and so does a part of nothing.
pub(super) fn hundredths(part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 10_000;
    }
    let share = u128::from(part.min(whole)) * 10_000 / u128::from(whole);
    u64::try_from(share).unwrap_or(10_000)
}

/// A percentage such as `12.34`.
pub(super) fn percent(part: u64, whole: u64) -> String {
    let share = hundredths(part, whole);
    format!("{}.{:02}", share / 100, share % 100)
}

/// The text on one line: control characters are escaped, nothing becomes a dash.
pub(super) fn line(text: &str) -> String {
    if text.is_empty() {
        return ABSENT.to_owned();
    }
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Bytes for people, with one digit behind the point.
pub(super) fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    let mut scale = 1u64;
    while unit + 1 < UNITS.len() && bytes / scale >= 1024 {
        scale *= 1024;
        unit += 1;
    }
    if unit == 0 {
        return format!("{bytes} bytes");
    }
    let tenths = u128::from(bytes) * 10 / u128::from(scale);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_in_utc_and_sort_as_text() {
        assert_eq!(moment(Moment(0)), "1970-01-01T00:00:00.000Z");
        let later = Moment(1_790_000_000_250);
        assert_eq!(moment(later), "2026-09-21T14:13:20.250Z");
        assert_eq!(moment(Moment(u64::MAX)), "-");
    }

    #[test]
    fn percentages_have_two_digits_and_reach_100_only_at_the_end() {
        assert_eq!(percent(1, 3), "33.33");
        assert_eq!(percent(u64::MAX - 1, u64::MAX), "99.99");
        assert_eq!(percent(0, 0), "100.00");
        assert_eq!(percent(5, 1000), "0.50");
    }

    #[test]
    fn a_value_is_one_line() {
        assert_eq!(line("a\nb\u{7}"), "a\\nb\\u{7}");
        assert_eq!(line(""), "-");
        assert_eq!(line("/srv/\u{fc} x"), "/srv/\u{fc} x");
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!(human(1023), "1023 bytes");
        assert_eq!(human(1 << 30), "1.0 GiB");
        assert_eq!(human(u64::MAX), "15.9 EiB");
    }
}
