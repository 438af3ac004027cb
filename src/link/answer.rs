//! What came back, and what its headers say about time.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, header};
use jiff::{SignedDuration, Timestamp};

use crate::metric::error_body::ErrorBody;

/// A longer `Retry-After` is cut to this: a backend's mistake must not silence a host for days.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// The backend's whole answer to one request.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status; 3xx is not followed.
    pub status: u16,
    /// How long the backend asks to wait, at most [`RETRY_AFTER_MAX`].
    pub retry_after: Option<Duration>,
    /// All headers.
    pub headers: HeaderMap,
    /// The body, not decoded.
    pub body: Bytes,
}

/// What is wrong with an answer, for counters and for what `agent status` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trouble {
    /// 401: the token is not accepted, or the collector is deleted.
    Unauthorized,
    /// 403: the certificate is not the one that is registered for the collector.
    CertificateMismatch,
    /// 403: the backend has not seen a certificate of this host.
    CertificateRequired,
    /// 403: the envelope names another collector than the token.
    CollectorMismatch,
    /// Any other 403.
    Forbidden,
    /// 3xx, 404, 405, 410, 501: something else than the backend, or another version of it.
    WrongUrl,
    /// 413.
    TooLarge,
    /// 408, 425, 429: the backend wants to be asked later.
    Later,
    /// Any other 4xx: the backend does not take what was sent.
    Refused,
    /// 5xx.
    Unavailable,
}

impl Trouble {
    /// Every trouble.
    pub const ALL: [Self; 10] = [
        Self::Unauthorized,
        Self::CertificateMismatch,
        Self::CertificateRequired,
        Self::CollectorMismatch,
        Self::Forbidden,
        Self::WrongUrl,
        Self::TooLarge,
        Self::Later,
        Self::Refused,
        Self::Unavailable,
    ];

    /// The name in metrics and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::CertificateMismatch => "certificate_mismatch",
            Self::CertificateRequired => "certificate_required",
            Self::CollectorMismatch => "collector_mismatch",
            Self::Forbidden => "forbidden",
            Self::WrongUrl => "wrong_url",
            Self::TooLarge => "too_large",
            Self::Later => "later",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
        }
    }
}

impl Answer {
    /// What is wrong with it. `None` for 2xx, 304, and a 409 about a batch that the backend has.
    pub fn trouble(&self) -> Option<Trouble> {
        Some(match self.status {
            200..=299 | 304 => return None,
            409 if ErrorBody::read(&self.body).names_known_batch() => return None,
            300..=399 | 404 | 405 | 410 | 501 => Trouble::WrongUrl,
            401 => Trouble::Unauthorized,
            403 => match ErrorBody::read(&self.body).error.as_deref() {
                Some("certificate_mismatch") => Trouble::CertificateMismatch,
                Some("certificate_required") => Trouble::CertificateRequired,
                Some("collector_mismatch") => Trouble::CollectorMismatch,
                _ => Trouble::Forbidden,
            },
            413 => Trouble::TooLarge,
            408 | 425 | 429 => Trouble::Later,
            400..=499 => Trouble::Refused,
            _ => Trouble::Unavailable,
        })
    }

    /// What it says, for a person: the `message` of an error body, else the beginning of the text.
    pub fn message(&self) -> String {
        ErrorBody::excerpt(&self.body)
    }
}

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
    pub sent: Timestamp,
    /// After the head of the answer was read.
    pub received: Timestamp,
}

/// The new clock offset (server minus host, in milliseconds) after an answer with this `Date`.
///
/// `Date` has whole seconds and was written at some moment of the exchange, so it gives an
/// interval, not a number. The old offset moves only as far as it must to lie in that interval:
/// equal clocks stay at 0, and with each answer the estimate can only get better.
pub fn next_offset_ms(offset_ms: i64, exchange: Exchange, date: Timestamp) -> i64 {
    let date = date.as_millisecond();
    let low = date.saturating_sub(exchange.received.as_millisecond());
    let high = date.saturating_add(999).saturating_sub(exchange.sent.as_millisecond());
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
    fn every_status_that_is_no_success_has_its_trouble() {
        let check = |status, slug: &str, expected: Option<Trouble>| {
            let body = format!(r#"{{"code":{status},"error":"{slug}","message":""}}"#);
            let (headers, body) = (HeaderMap::new(), Bytes::from(body));
            let answer = Answer { status, retry_after: None, headers, body };
            assert_eq!(answer.trouble(), expected, "{status} {slug}");
        };
        for fine in [200, 201, 202, 204, 208, 304] {
            check(fine, "", None);
        }
        check(409, "duplicate_batch", None);
        check(409, "name_taken", Some(Trouble::Refused));
        check(401, "unauthorized", Some(Trouble::Unauthorized));
        check(403, "certificate_mismatch", Some(Trouble::CertificateMismatch));
        check(403, "certificate_required", Some(Trouble::CertificateRequired));
        check(403, "collector_mismatch", Some(Trouble::CollectorMismatch));
        check(403, "role_too_low", Some(Trouble::Forbidden));
        for status in [301, 302, 404, 405, 410, 501] {
            check(status, "", Some(Trouble::WrongUrl));
        }
        check(413, "", Some(Trouble::TooLarge));
        check(429, "", Some(Trouble::Later));
        check(422, "", Some(Trouble::Refused));
        check(503, "", Some(Trouble::Unavailable));
    }

    #[test]
    fn clock_offset_follows_the_servers_date() {
        let check = |offset, sent, received, date, expected, why| {
            let exchange = Exchange { sent: at(sent), received: at(received) };
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
}
