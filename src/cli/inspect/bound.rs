//! Where a range of records begins or ends: a sequence number, a time, or an age.

use std::time::Duration;

use jiff::Timestamp;

use crate::units;

/// One end of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// A sequence number.
    Seq(u64),
    /// A time.
    At(Timestamp),
    /// So long ago.
    Ago(Duration),
}

/// Reads `1234`, `2026-11-21T10:00:00Z` or `2h`.
pub(super) fn parse(text: &str) -> Result<Bound, String> {
    if let Ok(seq) = text.parse() {
        return Ok(Bound::Seq(seq));
    }
    if let Ok(at) = text.parse() {
        return Ok(Bound::At(at));
    }
    units::parse_duration(text).map(Bound::Ago).ok_or_else(|| {
        "write a sequence number (1234), a time (2026-11-21T10:00:00Z) or how long ago (2h)"
            .to_owned()
    })
}

impl Bound {
    /// The sequence number, if it is one.
    pub(super) fn seq(self) -> Option<u64> {
        match self {
            Bound::Seq(seq) => Some(seq),
            Bound::At(_) | Bound::Ago(_) => None,
        }
    }

    /// The time in milliseconds since 1970 UTC, if it is one.
    pub(super) fn ms(self, now: Timestamp) -> Option<i64> {
        match self {
            Bound::Seq(_) => None,
            Bound::At(at) => Some(at.as_millisecond()),
            Bound::Ago(ago) => {
                let ago = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
                Some(now.as_millisecond().saturating_sub(ago))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_numbers_times_or_ages() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().expect("a time");
        let check = |text, seq, at: Option<&str>| {
            let bound = parse(text).expect("a bound");
            let at = at.map(|at| at.parse::<Timestamp>().expect("a time").as_millisecond());
            assert_eq!((bound.seq(), bound.ms(now)), (seq, at), "{text}");
        };
        check("0", Some(0), None);
        check("1234", Some(1234), None);
        check("2026-11-21T10:00:00Z", None, Some("2026-11-21T10:00:00Z"));
        check("2h", None, Some("2026-11-21T10:00:00Z"));
        assert!(parse("yesterday").is_err());
        assert!(parse("-1").is_err());
    }
}
