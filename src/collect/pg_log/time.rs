//! The time of a log line. A time that cannot be known for sure is not given. Pure.

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

/// `%m` or `%t`: civil time and the abbreviation of its zone.
///
/// The abbreviation alone does not name a zone (IST is three), so it only has to agree with
/// `zone`, the server's `log_timezone`, and decides the hour that a clock change repeats. `UTC`,
/// `GMT` and numbers need no zone.
pub(super) fn civil(text: &str, zone: Option<&TimeZone>) -> Option<Timestamp> {
    let (civil, abbreviation) = text.rsplit_once(' ')?;
    let civil: DateTime = civil.parse().ok()?;
    if let Some(offset) = fixed(abbreviation) {
        return offset.to_timestamp(civil).ok();
    }
    let zone = zone?;
    let offsets = match zone.to_ambiguous_timestamp(civil).offset() {
        AmbiguousOffset::Unambiguous { offset } => [Some(offset), None],
        AmbiguousOffset::Fold { before, after } => [Some(before), Some(after)],
        // No clock of the zone shows this time.
        AmbiguousOffset::Gap { .. } => [None, None],
    };
    offsets.into_iter().flatten().find_map(|offset| {
        let at = offset.to_timestamp(civil).ok()?;
        (zone.to_offset_info(at).abbreviation() == abbreviation).then_some(at)
    })
}

/// `%n`: seconds since 1970 with milliseconds.
pub(super) fn epoch(text: &str) -> Option<Timestamp> {
    let (seconds, millis) = text.split_once('.')?;
    let millis: u16 = millis.parse().ok().filter(|_| millis.len() == 3)?;
    let since = SignedDuration::from_secs(seconds.parse().ok()?)
        .checked_add(SignedDuration::from_millis(i64::from(millis)))?;
    Timestamp::from_duration(since).ok()
}

/// `UTC`, `GMT`, `+03`, `-0330`, `<+0545>`: offsets that need no zone.
fn fixed(abbreviation: &str) -> Option<Offset> {
    if matches!(abbreviation, "UTC" | "GMT" | "Z") {
        return Some(Offset::UTC);
    }
    let digits = abbreviation.trim_start_matches('<').trim_end_matches('>');
    let (sign, digits) = match digits.split_at_checked(1)? {
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    let number = |text: Option<&str>| text?.parse::<i32>().ok();
    let (hours, minutes) = match digits.len() {
        2 => (number(Some(digits))?, 0),
        4 => (number(digits.get(..2))?, number(digits.get(2..))?),
        _ => return None,
    };
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C46: real times, whatever the zone; none where it would be a guess.
    #[test]
    fn times_are_exact_or_absent() {
        let check = |text: &str, zone: &str, expected: Option<&str>| {
            let zone = TimeZone::get(zone).ok();
            let expected = expected.map(|at| at.parse().expect(at));
            assert_eq!(civil(text, zone.as_ref()), expected, "{text}");
        };
        check("2024-05-01 10:00:00.123 UTC", "", Some("2024-05-01T10:00:00.123Z"));
        check("2024-05-01 10:00:00 GMT", "Europe/London", Some("2024-05-01T10:00:00Z"));
        check("2024-05-01 10:00:00.123 +0330", "", Some("2024-05-01T06:30:00.123Z"));
        check("2024-05-01 10:00:00 -03", "America/Sao_Paulo", Some("2024-05-01T13:00:00Z"));
        check("2024-05-01 10:00:00.5 CEST", "Europe/Berlin", Some("2024-05-01T08:00:00.500Z"));
        check("2024-12-01 10:00:00 CET", "Europe/Berlin", Some("2024-12-01T09:00:00Z"));
        // The hour that comes twice is told apart by the abbreviation.
        check("2024-10-27 02:30:00 CEST", "Europe/Berlin", Some("2024-10-27T00:30:00Z"));
        check("2024-10-27 02:30:00 CET", "Europe/Berlin", Some("2024-10-27T01:30:00Z"));
        // An hour that does not come, another zone's abbreviation, and no zone at all.
        check("2024-03-31 02:30:00 CET", "Europe/Berlin", None);
        check("2024-05-01 10:00:00 IST", "Europe/Berlin", None);
        check("2024-05-01 10:00:00 CEST", "No/Where", None);
        check("2024-13-01 10:00:00 UTC", "", None);
        check("nonsense", "", None);
        assert_eq!(epoch("1714557600.123"), "2024-05-01T10:00:00.123Z".parse().ok());
        assert_eq!((epoch("1714557600"), epoch("x.123"), epoch("1.5")), (None, None, None));
    }
}
