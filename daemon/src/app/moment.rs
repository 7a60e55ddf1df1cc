//! A moment as Docker's filter `until` says it: how long ago, in seconds since 1970, or as a date. Pure.

/// Longest text that is read.
const MAX_TEXT: usize = 64;

/// It says no moment.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no moment; write how long ago, such as 24h or 1h30m, or a date in UTC, such as 2024-01-15 or \
     2024-01-15T10:30:00Z, or seconds since 1970"
)]
pub(super) struct MomentError(String);

/// Reads a moment, as seconds since 1970. A date without an offset is in UTC.
pub(super) fn parse(text: &str, now: i64) -> Result<i64, MomentError> {
    let known = (text.len() <= MAX_TEXT).then(|| {
        let ago = || Some(now - duration(text)?);
        seconds(text).or_else(ago).or_else(|| date(text))
    });
    known.flatten().ok_or_else(|| {
        MomentError(text.chars().take(MAX_TEXT).collect::<String>().escape_default().to_string())
    })
}

/// Seconds since 1970; a fraction is left out.
fn seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    all_digits(fraction).then_some(())?;
    (whole.len() <= 12).then(|| number(whole)).flatten()
}

/// A duration as Go writes it, `1h30m` or `1.5h`, in whole seconds.
fn duration(text: &str) -> Option<i64> {
    let (mut rest, mut nanoseconds) = (text, 0_i128);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (amount, after) = rest.split_at(end);
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (name, after) = after.split_at(end);
        let unit: i128 = match name {
            "h" => 3_600_000_000_000,
            "m" => 60_000_000_000,
            "s" => 1_000_000_000,
            "ms" => 1_000_000,
            "us" | "µs" => 1_000,
            "ns" => 1,
            _ => return None,
        };
        let (whole, fraction) = amount.split_once('.').unwrap_or((amount, "0"));
        if whole.len() > 9 || fraction.len() > 9 || fraction.is_empty() {
            return None;
        }
        let parts =
            i128::from(number(fraction)?) * unit / 10_i128.pow(u32::try_from(fraction.len()).ok()?);
        nanoseconds += i128::from(number(whole)?) * unit + parts;
        rest = after;
    }
    (!text.is_empty()).then(|| i64::try_from(nanoseconds / 1_000_000_000).ok()).flatten()
}

/// RFC 3339, of which minutes, seconds, the time or the offset may be left out, as Docker has it.
fn date(text: &str) -> Option<i64> {
    let (day, time) = text.split_once('T').unwrap_or((text, "00Z"));
    let [year, month, day] = fields(day, '-')?;
    let (time, offset) = match time.find(['Z', '+', '-']) {
        Some(at) => (&time[..at], offset(&time[at..])?),
        None => (time, 0),
    };
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    all_digits(fraction).then_some(())?;
    let given = time.split(':').count();
    let [hour, minute, second] =
        fields(&format!("{time}{}", ":00".repeat(3_usize.checked_sub(given)?)), ':')?;
    let is_valid = (1..=12).contains(&month)
        && (1..=days(year, month + 1, 1) - days(year, month, 1)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    is_valid.then(|| days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset)
}

/// `Z`, or `+02:00` in seconds.
fn offset(text: &str) -> Option<i64> {
    if text == "Z" {
        return Some(0);
    }
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = text.get(1..)?.split_once(':')?;
    let (hours, minutes) = (two_digits(hours)?, two_digits(minutes)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// Three numbers of two digits, the first of which may have four.
fn fields(text: &str, separator: char) -> Option<[i64; 3]> {
    let mut parts = text.split(separator);
    let first = parts.next()?;
    let first = if separator == '-' {
        (first.len() == 4).then(|| number(first)).flatten()?
    } else {
        two_digits(first)?
    };
    let fields = [first, two_digits(parts.next()?)?, two_digits(parts.next()?)?];
    parts.next().is_none().then_some(fields)
}

fn two_digits(text: &str) -> Option<i64> {
    (text.len() == 2).then(|| number(text)).flatten()
}

fn number(text: &str) -> Option<i64> {
    all_digits(text).then(|| text.parse().ok()).flatten()
}

fn all_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Days since 1970 in the Gregorian calendar. A month beyond the last begins the next year.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March, so that a leap day is the last of its year; five of their months have 153 days together.
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    365 * year + leap_days + (153 * month + 2) / 5 + day - 719_469
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_705_314_600;

    #[test]
    fn a_moment_is_a_date_a_number_or_so_long_ago() {
        for (text, expected) in [
            ("2024-01-15T10:30:00Z", NOW),
            ("2024-01-15T10:30:00", NOW),
            ("2024-01-15T10:30:00.123456789Z", NOW),
            ("2024-01-15T10:30", NOW),
            ("2024-01-15T12:30:00+02:00", NOW),
            ("2024-01-15T05:00:00-05:30", NOW),
            ("2024-01-15T10", NOW - 1800),
            ("2024-01-15", NOW - 37_800),
            ("1970-01-01", 0),
            ("1969-12-31T23:59:59Z", -1),
            ("2000-02-29", 951_782_400),
            ("1999-12-31", 946_598_400),
            ("0000-01-01", -62_167_219_200),
            ("2100-03-01", 4_107_542_400),
            ("1705314600", NOW),
            ("1705314600.5", NOW),
            ("0", 0),
            ("24h", NOW - 86_400),
            ("1h30m", NOW - 5400),
            ("1.5h", NOW - 5400),
            ("1500ms", NOW - 1),
            ("0s", NOW),
        ] {
            assert_eq!(parse(text, NOW), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused_with_examples() {
        for text in [
            "",
            "now",
            "yesterday",
            "-1h",
            "1x",
            "h",
            "1.h",
            "1..5h",
            "99999999999999h",
            "2024-13-01",
            "2023-02-29",
            "2100-02-29",
            "2024-01-15T24:00",
            "2024-01-15T10:60",
            "2024-01-15T10:30:00+2:00",
            "2024-1-5",
            "2024-01-15T10:30:00:00",
            "12024-01-15",
            "+024-01-15",
            "2024-01-15 10:30",
            "é",
            "2024-01-15Té",
        ] {
            let error = parse(text, NOW).unwrap_err().to_string();
            assert!(error.contains("such as 24h"), "{text}: {error}");
        }
        let long = parse(&"9".repeat(9000), NOW).unwrap_err().to_string();
        assert!(long.len() < 300, "{long}");
    }
}
