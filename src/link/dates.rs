//! What an answer's headers say about time.

use std::time::{Duration, Instant};

use http::{HeaderMap, header};
use jiff::{SignedDuration, Timestamp};

/// A longer `Retry-After` is cut to this: a backend's mistake must not silence a host for days.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// A wall clock that goes this much otherwise than the monotonic one has been set. Slewing and
/// rates that differ stay far below it.
const JUMP_MIN: SignedDuration = SignedDuration::from_mins(1);

/// Reads `Retry-After`, in seconds or as an HTTP date. The date is compared with the answer's own
/// `Date`, and with `server_now` when it has none: this host's clock has no say.
pub fn retry_after(headers: &HeaderMap, server_now: Timestamp) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if let Ok(seconds) = text.parse() {
        Duration::from_secs(seconds)
    } else {
        let until = http_date(text)?.duration_since(date(headers).unwrap_or(server_now));
        Duration::try_from(until).unwrap_or_default()
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// The `Date` of an answer.
pub fn date(headers: &HeaderMap) -> Option<Timestamp> {
    http_date(headers.get(header::DATE)?.to_str().ok()?)
}

/// RFC 9110 section 5.6.7, the form all servers send (`Sun, 06 Nov 1994 08:49:37 GMT`).
fn http_date(text: &str) -> Option<Timestamp> {
    static PARSER: jiff::fmt::rfc2822::DateTimeParser = jiff::fmt::rfc2822::DateTimeParser::new();
    PARSER.parse_timestamp(text).ok()
}

/// When a request left and its answer came, by this host's clock.
#[derive(Debug, Clone, Copy)]
pub struct Exchange {
    /// Before the first byte was sent.
    pub sent: Moment,
    /// After the head of the answer was read.
    pub received: Timestamp,
}

/// One moment by both clocks of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The wall clock.
    pub wall: Timestamp,
    /// The monotonic clock.
    pub monotonic: Instant,
}

impl Moment {
    /// Whether the wall clock was set between this moment and a `later` one. A host that slept
    /// looks the same.
    pub fn is_across_a_jump(self, later: Self) -> bool {
        let by_wall = later.wall.duration_since(self.wall);
        let by_monotonic = later.monotonic.saturating_duration_since(self.monotonic);
        let by_monotonic = SignedDuration::try_from(by_monotonic).unwrap_or(SignedDuration::MAX);
        by_wall.saturating_sub(by_monotonic).abs() >= JUMP_MIN
    }
}

/// The new clock offset (server minus host, in milliseconds) after an answer with this `Date`.
///
/// `Date` has whole seconds and was written at some moment of the exchange, so it gives an
/// interval, not a number. The old offset moves only as far as it must to lie in that interval:
/// equal clocks stay at 0, and with each answer the estimate can only get better.
pub fn next_offset_ms(offset_ms: i64, exchange: Exchange, date: Timestamp) -> i64 {
    let date = date.as_millisecond();
    let low = date.saturating_sub(exchange.received.as_millisecond());
    let high = date.saturating_add(999).saturating_sub(exchange.sent.wall.as_millisecond());
    // The interval is empty when this host's clock was set back during the exchange.
    if low <= high { offset_ms.clamp(low, high) } else { low }
}

/// `at` moved by `offset_ms`; times outside the calendar stay where they are.
pub fn shift(at: Timestamp, offset_ms: i64) -> Timestamp {
    at.checked_add(SignedDuration::from_millis(offset_ms)).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::clock;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).expect("in range")
    }

    #[test]
    fn retry_after_is_read_in_both_forms_and_capped() {
        let now = "1994-11-06T08:49:37Z".parse::<Timestamp>().expect("a time");
        let check = |text: &'static str, expected: Option<u64>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(text));
            let expected = expected.map(Duration::from_secs);
            assert_eq!(retry_after(&headers, now), expected, "{text:?}");
        };
        check("120", Some(120));
        check("0", Some(0));
        check("86400", Some(3600));
        check("Sun, 06 Nov 1994 08:50:37 GMT", Some(60));
        check("Sun, 06 Nov 1994 08:00:00 GMT", Some(0));
        check("Mon, 07 Nov 1994 08:49:37 GMT", Some(3600));
        check("soon", None);
        check("-5", None);
        check("1.5", None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn retry_after_as_a_date_is_compared_with_the_answers_own_date() {
        let mut headers = HeaderMap::new();
        let mut set = |name, text| headers.insert(name, HeaderValue::from_static(text));
        set(header::DATE, "Sun, 06 Nov 1994 08:49:37 GMT");
        set(header::RETRY_AFTER, "Sun, 06 Nov 1994 08:50:37 GMT");
        for host_now in ["1994-11-06T08:49:37Z", "2024-01-01T00:00:00Z", "1970-01-01T00:00:00Z"] {
            let host_now = host_now.parse().expect("a time");
            assert_eq!(retry_after(&headers, host_now), Some(Duration::from_secs(60)));
        }
    }

    #[test]
    fn clock_offset_follows_the_servers_date() {
        let check = |offset, sent, received, date, expected, why| {
            let sent = Moment { wall: at(sent), monotonic: clock::monotonic() };
            let exchange = Exchange { sent, received: at(received) };
            assert_eq!(next_offset_ms(offset, exchange, at(date)), expected, "{why}");
        };
        check(0, 10_400, 10_500, 10_000, 0, "equal clocks: Date is only cut to the second");
        check(0, 10_400, 10_500, 3_610_000, 3_599_500, "server an hour ahead");
        check(3_599_500, 20_400, 20_450, 3_620_000, 3_599_550, "each answer narrows it");
        check(3_599_550, 30_400, 30_500, 30_000, 599, "the host's clock was set right");
        check(0, 3_610_000, 3_610_100, 10_000, -3_599_001, "server an hour behind");
        check(5, 10_000, 40_000, 20_000, 5, "a slow answer says little");
        check(0, 40_000, 10_000, 10_000, 0, "the clock was set back meanwhile");
    }

    const DAY: i64 = 86_400_000;

    #[test]
    fn a_clock_that_was_set_is_told_from_one_that_drifts() {
        let begun = clock::monotonic();
        let check = |wall_ms: i64, monotonic_ms: u64, expected| {
            let before = Moment { wall: at(1_000_000), monotonic: begun };
            let monotonic = begun + Duration::from_millis(monotonic_ms);
            let later = Moment { wall: at(1_000_000 + wall_ms), monotonic };
            assert_eq!(before.is_across_a_jump(later), expected, "{wall_ms} {monotonic_ms}");
        };
        check(0, 0, false);
        check(DAY, 86_400_000, false);
        check(DAY + 50_000, 86_400_000, false);
        check(3 * DAY, 1_000, true);
        check(-3 * DAY, 1_000, true);
        check(60_000, 0, true);
        check(0, 60_000, true);
    }
}
