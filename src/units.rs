//! Durations and sizes as people write them: `"30s"`, `"5min"`, `"64MiB"`.

use std::time::Duration;

/// Durations, from the unit's name to its milliseconds.
const DURATION_UNITS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1_000), ("min", 60_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Sizes, from the unit's name to its bytes.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1_000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
];

/// Reads a duration such as `500ms`, `30s`, `5min`, `2h`, `1d`; a bare number is seconds.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let millis = match text.trim().parse::<u64>() {
        Ok(seconds) => seconds.checked_mul(1_000)?,
        Err(_) => parse_with_units(text, &DURATION_UNITS)?,
    };
    Some(Duration::from_millis(millis))
}

/// Reads a size such as `64MiB`, `1GB`, `512B`; a bare number is bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    text.trim().parse().ok().or_else(|| parse_with_units(text, &SIZE_UNITS))
}

fn parse_with_units(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit.trim_start())?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// A size for people, in binary units: `1.5 MiB`.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn show_size(bytes: u64) -> String {
    let (name, factor) = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
        .into_iter()
        .find(|(_, factor)| bytes >= *factor)
        .unwrap_or(("B", 1));
    if factor == 1 {
        format!("{bytes} B")
    } else {
        format!("{:.1} {name}", bytes as f64 / factor as f64)
    }
}

/// A duration for people, the two largest units: `2h 5min`, `12s`, `350ms`.
pub fn show_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 {
        return format!("{}ms", duration.as_millis());
    }
    let parts = [
        (seconds / 86_400, "d"),
        (seconds / 3_600 % 24, "h"),
        (seconds / 60 % 60, "min"),
        (seconds % 60, "s"),
    ];
    let first = parts.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    parts[first..]
        .iter()
        .take(2)
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether a terminal obeys it: control characters but for line ends and tabs, and those that set
/// the direction of text.
pub fn is_obeyed(c: char) -> bool {
    (c.is_control() && !matches!(c, '\n' | '\t'))
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{206f}'
                | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// Writes a character as JSON escapes it.
pub fn escape(c: char, out: &mut String) {
    use std::fmt::Write as _;
    for unit in c.encode_utf16(&mut [0; 2]) {
        // A string takes whatever is written.
        let _ = write!(out, "\\u{unit:04x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit() {
        let check = |text, expected| {
            let read = parse_duration(text).map(|d| u64::try_from(d.as_millis()).expect("small"));
            assert_eq!(read, expected, "{text:?}");
        };
        check("30s", Some(30_000));
        check("500ms", Some(500));
        check("5min", Some(300_000));
        check("5m", Some(300_000));
        check("2h", Some(7_200_000));
        check("1d", Some(86_400_000));
        check("60", Some(60_000));
        check(" 10 s ", Some(10_000));
        check("", None);
        check("s", None);
        check("-1s", None);
        check("1.5s", None);
        check("10 parsecs", None);
        check("99999999999999999999d", None);
    }

    #[test]
    fn sizes_are_read_with_their_unit() {
        let check = |text, expected| assert_eq!(parse_size(text), expected, "{text:?}");
        check("64MiB", Some(64 << 20));
        check("1GiB", Some(1 << 30));
        check("1GB", Some(1_000_000_000));
        check("10", Some(10));
        check("10 KiB", Some(10 << 10));
        check("10mib", None);
        check("99999999999999999999GiB", None);
    }

    #[test]
    fn sizes_and_durations_are_shown_short() {
        assert_eq!(show_size(0), "0 B");
        assert_eq!(show_size(1536), "1.5 KiB");
        assert_eq!(show_size(3 << 30), "3.0 GiB");
        assert_eq!(show_duration(Duration::from_millis(350)), "350ms");
        assert_eq!(show_duration(Duration::from_secs(12)), "12s");
        assert_eq!(show_duration(Duration::from_secs(7_500)), "2h 5min");
        assert_eq!(show_duration(Duration::from_secs(86_400)), "1d");
    }
}
