//! What the forwarder does with an answer: the table of the contract's section 7, as a function.

use std::time::Duration;

/// What becomes of a batch after a try to deliver it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The backend has it.
    Delivered,
    /// The backend or the way to it is out of order: everything waits, at least this long.
    BackOff(Option<Duration>),
    /// The backend does not know this agent, or is not one: everything waits, with long pauses,
    /// and a person must look.
    Pause(Trouble),
    /// The backend does not take this batch; the others go on.
    Refused(Refusal),
}

/// Why everything waits for a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// 401 after the token was renewed.
    Unauthorised,
    /// 403.
    Forbidden,
    /// 3xx, 404, 405, 410, 501.
    WrongBackend,
    /// Every record of a batch was refused: the backend is more likely wrong than they are.
    TakesNothing,
}

/// Why one batch is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// 413.
    TooLarge,
    /// 400, 415, 422 and the other 4xx.
    Invalid,
}

impl Verdict {
    /// The verdict on an HTTP status; `known_batch` says that a 409 names a batch id that the
    /// backend has.
    pub fn on_status(status: u16, retry_after: Option<Duration>, known_batch: bool) -> Self {
        match status {
            200 | 201 | 202 | 204 | 208 => Self::Delivered,
            409 if known_batch => Self::Delivered,
            401 => Self::Pause(Trouble::Unauthorised),
            403 => Self::Pause(Trouble::Forbidden),
            300..=399 | 404 | 405 | 410 | 501 => Self::Pause(Trouble::WrongBackend),
            413 => Self::Refused(Refusal::TooLarge),
            408 | 425 | 429 => Self::BackOff(retry_after),
            400..=499 => Self::Refused(Refusal::Invalid),
            _ => Self::BackOff(retry_after),
        }
    }
}

impl Trouble {
    /// What a person can do; `slug` is the short name of the error in the answer's body.
    pub fn hint(self, slug: Option<&str>) -> &'static str {
        match (self, slug) {
            (Self::Unauthorised, _) => {
                "is this still its backend, and was the collector deleted there? register again: \
                 `agent register --force`"
            }
            (Self::Forbidden, Some("certificate_mismatch")) => {
                "the certificate in tls.cert_file was replaced at the backend by a newer one, or \
                 is another host's: put the registered one back, or `agent register --force`"
            }
            (Self::Forbidden, Some("certificate_required")) => {
                "something on the way ends TLS and drops the client certificate: let it pass TLS \
                 through, or connect to the backend itself"
            }
            (Self::Forbidden, Some("collector_mismatch")) => {
                "token and envelope are of two collectors: is backend.token_file another agent's?"
            }
            (Self::Forbidden, _) => {
                "the backend knows this agent under another id or certificate, or has removed it"
            }
            (Self::WrongBackend, _) => "check backend.url",
            (Self::TakesNothing, _) => "the backend refuses every record: is backend.url right?",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C32 to C36
    #[test]
    fn every_status_has_its_verdict() {
        let check = |statuses: &[u16], expected| {
            for status in statuses {
                assert_eq!(Verdict::on_status(*status, None, false), expected, "{status}");
            }
        };
        check(&[200, 201, 202, 204, 208], Verdict::Delivered);
        check(&[408, 425, 429, 500, 502, 503, 504, 599], Verdict::BackOff(None));
        check(&[401], Verdict::Pause(Trouble::Unauthorised));
        check(&[403], Verdict::Pause(Trouble::Forbidden));
        check(&[301, 302, 307, 404, 405, 410, 501], Verdict::Pause(Trouble::WrongBackend));
        check(&[413], Verdict::Refused(Refusal::TooLarge));
        check(&[400, 409, 415, 418, 422], Verdict::Refused(Refusal::Invalid));
        assert_eq!(Verdict::on_status(409, None, true), Verdict::Delivered);
        let slugs = ["certificate_mismatch", "certificate_required", "collector_mismatch", "other"];
        let hints = slugs.map(|slug| Trouble::Forbidden.hint(Some(slug)));
        assert_eq!(std::collections::BTreeSet::from(hints).len(), slugs.len());
        let wait = Some(Duration::from_secs(7));
        assert_eq!(Verdict::on_status(429, wait, false), Verdict::BackOff(wait));
        assert_eq!(Verdict::on_status(503, wait, false), Verdict::BackOff(wait));
    }
}
