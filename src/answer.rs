//! What an answer of the backend means: one table. Everything that depends on an answer is derived
//! from its [`Meaning`]: what the forwarder does next, which of several backends is asked, and the
//! name that a failure has in counters. Pure.
//!
//! The table is `Meaning::of`, from the status, what the request was for ([`Purpose`]) and, where
//! a status leaves it open, the body.

mod receipt; // what the answer to a push says beside its status

use std::time::Duration;

use crate::metric::{error_body::ErrorBody, members};
use bytes::Bytes;
use http::HeaderMap;

pub use receipt::Receipt;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It brings this host's data. A 2xx has to say that they are taken.
    Data,
    /// It asks for a sign of life only.
    Probe,
    /// It asks whether the store takes metrics. A 2xx has a JSON object for a body.
    Health,
    /// It asks for this host's configuration, which comes with 200.
    Config,
    /// It is about the agent itself: registration, token, certificate. Who reads a 2xx checks it.
    Other,
}

/// The backend's whole answer to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status; 3xx is not followed.
    pub status: u16,
    /// How long the backend asks to wait.
    pub retry_after: Option<Duration>,
    /// All headers.
    pub headers: HeaderMap,
    /// The body, not decoded.
    pub body: Bytes,
    /// The URL of the backend that was asked.
    pub backend: String,
    purpose: Purpose,
    meaning: Meaning,
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Meaning {
    /// It is done; of a push: every record is taken, but for those that the body names.
    Success,
    /// The batch was taken before.
    KnownBatch,
    /// The asker has the newest version.
    Unchanged,
    /// Something that is not the backend answers in its place: a portal, a proxy, another server.
    Stranger,
    /// The backend is another one, or of a version that does not have this path.
    NotHere,
    /// The token is not accepted, or the collector is deleted.
    Unauthorized,
    /// The certificate is not the one that is registered for the collector.
    CertificateMismatch,
    /// The certificate has ended.
    CertificateExpired,
    /// The backend has not seen a certificate of this host.
    CertificateRequired,
    /// The envelope names another collector than the token.
    CollectorMismatch,
    /// The backend does not take anything from this host, for another reason.
    Forbidden,
    /// The backend wants to be asked later.
    Later,
    /// The backend, or a proxy before it, says that it cannot work now.
    Unavailable,
    /// The backend fails in another way.
    Failing,
    /// The body is too large.
    TooLarge,
    /// The body cannot be read, which may be for its encoding.
    Malformed,
    /// The body's encoding is not known.
    UnknownEncoding,
    /// What was sent contradicts what the backend has.
    Conflict,
    /// The backend does not take what was sent, for another reason.
    Refused,
}

impl Answer {
    /// An answer to a request for `purpose`.
    pub fn new(purpose: Purpose, status: u16, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let meaning = Meaning::of(purpose, status, &body);
        let (headers, backend) = (HeaderMap::new(), String::new());
        Self { status, retry_after: None, headers, body, backend, purpose, meaning }
    }

    /// What the request was for.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// Whether another token could bring another answer: this one is not accepted, or is of another
    /// collector than the envelope or the certificate.
    pub fn is_about_the_token(&self) -> bool {
        matches!(
            self.meaning,
            Meaning::Unauthorized | Meaning::CertificateMismatch | Meaning::CollectorMismatch
        )
    }

    /// The answer's row of the table.
    pub fn meaning(&self) -> Meaning {
        self.meaning
    }

    /// What it says, for a person: the `message` of an error body, else the beginning of the text.
    pub fn message(&self) -> String {
        ErrorBody::excerpt(&self.body)
    }

    /// The status, and beside it what is said, in one line; of a success only the status, because
    /// its body says what was taken and not why.
    pub fn shown(&self) -> String {
        match self.meaning {
            Meaning::Success => self.status.to_string(),
            _ => format!("{} {}", self.status, self.message()).trim_end().to_owned(),
        }
    }
}

impl Meaning {
    /// Every meaning.
    pub const ALL: [Self; 19] = [
        Self::Success,
        Self::KnownBatch,
        Self::Unchanged,
        Self::Stranger,
        Self::NotHere,
        Self::Unauthorized,
        Self::CertificateMismatch,
        Self::CertificateExpired,
        Self::CertificateRequired,
        Self::CollectorMismatch,
        Self::Forbidden,
        Self::Later,
        Self::Unavailable,
        Self::Failing,
        Self::TooLarge,
        Self::Malformed,
        Self::UnknownEncoding,
        Self::Conflict,
        Self::Refused,
    ];

    /// The table: section 7 of the contract, and what other requests are answered.
    fn of(purpose: Purpose, status: u16, body: &[u8]) -> Self {
        match status {
            200..=299 if is_the_backends(purpose, status, body) => Self::Success,
            304 if purpose == Purpose::Config => Self::Unchanged,
            200..=399 => Self::Stranger,
            400 => Self::Malformed,
            401 => Self::Unauthorized,
            403 => match ErrorBody::read(body).error.as_deref() {
                Some("certificate_mismatch") => Self::CertificateMismatch,
                Some("certificate_expired") => Self::CertificateExpired,
                Some("certificate_required") => Self::CertificateRequired,
                Some("collector_mismatch") => Self::CollectorMismatch,
                _ => Self::Forbidden,
            },
            404 | 405 | 410 | 501 => Self::NotHere,
            408 | 425 | 429 => Self::Later,
            409 if purpose == Purpose::Data && ErrorBody::read(body).names_known_batch() => {
                Self::KnownBatch
            }
            409 => Self::Conflict,
            413 => Self::TooLarge,
            415 => Self::UnknownEncoding,
            402..=499 => Self::Refused,
            502..=504 => Self::Unavailable,
            _ => Self::Failing,
        }
    }

    /// The name of a failure in metrics and JSON; `None` of what is not a failure.
    pub fn reason(self) -> Option<&'static str> {
        Some(match self {
            Self::Success | Self::KnownBatch | Self::Unchanged => return None,
            Self::Stranger | Self::NotHere => "wrong_url",
            Self::Unauthorized => "unauthorized",
            Self::CertificateMismatch => "certificate_mismatch",
            Self::CertificateExpired => "certificate_expired",
            Self::CertificateRequired => "certificate_required",
            Self::CollectorMismatch => "collector_mismatch",
            Self::Forbidden => "forbidden",
            Self::Later => "later",
            Self::Unavailable | Self::Failing => "unavailable",
            Self::TooLarge => "too_large",
            Self::Malformed | Self::UnknownEncoding | Self::Conflict | Self::Refused => "refused",
        })
    }

    /// Whether the backend that answers so is there and does its work, as far as one can see: a
    /// refusal says so, too.
    pub fn is_alive(self) -> bool {
        !matches!(self, Self::Later | Self::Unavailable | Self::Failing)
    }
}

/// Whether a 2xx is that of a backend: whatever stands on the way may answer 200.
fn is_the_backends(purpose: Purpose, status: u16, body: &[u8]) -> bool {
    match purpose {
        Purpose::Data => {
            let mut is_success = false;
            matches!(status, 200 | 201 | 202 | 208)
                && members::each_member(body, |name, value| {
                    if name == "status" {
                        is_success = members::text(value).as_deref() == Some("success");
                    }
                })
                && is_success
        }
        Purpose::Health => members::each_member(body, |_, _| {}),
        Purpose::Config => status == 200,
        Purpose::Probe | Purpose::Other => true,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const TAKEN: &str = r#"{"status":"success"}"#;

    fn meaning(purpose: Purpose, status: u16, body: &str) -> Meaning {
        Answer::new(purpose, status, body.to_owned()).meaning()
    }

    /// C32 to C36
    #[test]
    fn every_status_has_its_meaning() {
        let check = |statuses: &[u16], expected| {
            for status in statuses {
                assert_eq!(meaning(Purpose::Data, *status, TAKEN), expected, "{status}");
            }
        };
        check(&[200, 201, 202, 208], Meaning::Success);
        check(&[203, 204, 205, 206, 207, 226, 299], Meaning::Stranger);
        check(&[300, 301, 302, 303, 304, 307, 308, 399], Meaning::Stranger);
        check(&[400], Meaning::Malformed);
        check(&[401], Meaning::Unauthorized);
        check(&[403], Meaning::Forbidden);
        check(&[404, 405, 410, 501], Meaning::NotHere);
        check(&[408, 425, 429], Meaning::Later);
        check(&[413], Meaning::TooLarge);
        check(&[415], Meaning::UnknownEncoding);
        check(&[409], Meaning::Conflict);
        check(&[402, 406, 407, 411, 412, 414, 418, 422, 451, 499], Meaning::Refused);
        check(&[502, 503, 504], Meaning::Unavailable);
        check(&[500, 505, 507, 599, 600, 999], Meaning::Failing);
    }

    /// A portal's page with 200 is not the backend's word.
    #[test]
    fn only_a_backend_takes_a_push() {
        let check = |body: &str, expected| {
            for status in [200, 201, 202, 208] {
                assert_eq!(meaning(Purpose::Data, status, body), expected, "{status} {body}");
            }
        };
        let fine = [TAKEN, r#"{"rejected":[{"index":1}],"status": "success"}"#];
        for body in fine {
            check(body, Meaning::Success);
        }
        for stranger in [
            "",
            "<html><title>Log in</title></html>",
            "success",
            r#""success""#,
            r#"["status","success"]"#,
            r#"[{"status":"success"}]"#,
            "{}",
            "null",
            r#"{"status":"error"}"#,
            r#"{"status":"Success"}"#,
            r#"{"status":true}"#,
            r#"{"data":{"status":"success"}}"#,
            r#"{"status":"success""#,
        ] {
            check(stranger, Meaning::Stranger);
        }
    }

    #[test]
    fn other_requests_have_other_successes() {
        use Purpose::{Config, Health, Other, Probe};
        let check = |purpose, status, body: &str, expected| {
            assert_eq!(meaning(purpose, status, body), expected, "{purpose:?} {status} {body}");
        };
        for purpose in [Probe, Other] {
            for status in [200, 201, 204] {
                check(purpose, status, "", Meaning::Success);
            }
            check(purpose, 304, "", Meaning::Stranger);
        }
        check(Health, 200, r#"{"status":"ok"}"#, Meaning::Success);
        check(Health, 200, "<html>", Meaning::Stranger);
        check(Config, 200, "a = 1", Meaning::Success);
        check(Config, 201, "a = 1", Meaning::Stranger);
        check(Config, 304, "", Meaning::Unchanged);
        check(Config, 302, "", Meaning::Stranger);
        check(Config, 404, "", Meaning::NotHere);
    }

    #[test]
    fn a_body_says_what_a_status_leaves_open() {
        let check = |status, slug: &str, expected| {
            let body = format!(r#"{{"code":{status},"error":"{slug}","message":""}}"#);
            assert_eq!(meaning(Purpose::Data, status, &body), expected, "{status} {slug}");
        };
        check(409, "duplicate_batch", Meaning::KnownBatch);
        check(409, "name_taken", Meaning::Conflict);
        check(403, "certificate_mismatch", Meaning::CertificateMismatch);
        check(403, "certificate_expired", Meaning::CertificateExpired);
        check(403, "certificate_required", Meaning::CertificateRequired);
        check(403, "collector_mismatch", Meaning::CollectorMismatch);
        check(403, "role_too_low", Meaning::Forbidden);
        let known = r#"{"error":"already_exists"}"#;
        assert_eq!(meaning(Purpose::Other, 409, known), Meaning::Conflict, "a name, not a batch");
    }

    #[test]
    fn every_failure_has_a_reason() {
        let without = Meaning::ALL.iter().filter(|meaning| meaning.reason().is_none());
        let fine = [Meaning::Success, Meaning::KnownBatch, Meaning::Unchanged];
        assert_eq!(without.collect::<Vec<_>>(), fine.iter().collect::<Vec<_>>());
        let reasons: BTreeSet<_> = Meaning::ALL.iter().filter_map(|m| m.reason()).collect();
        assert_eq!(reasons.len(), 11);
    }

    #[test]
    fn an_answer_is_shown_in_one_line() {
        let shown = |status, body: &'static str| Answer::new(Purpose::Data, status, body).shown();
        assert_eq!(shown(503, r#"{"message":"the store is down"}"#), "503 the store is down");
        assert_eq!(shown(502, "<html>\n<h1>Bad gateway"), "502 <html> <h1>Bad gateway");
        assert_eq!(shown(200, "<html>Log in"), "200 <html>Log in");
        assert_eq!((&*shown(413, ""), &*shown(200, TAKEN)), ("413", "200"));
    }
}
