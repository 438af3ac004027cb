//! What the forwarder does with an answer: the second column of the contract's table, derived from
//! what the answer means.

use crate::answer::Meaning;

/// What becomes of a batch after a try to deliver it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The backend has it.
    Delivered,
    /// The backend or the way to it is out of order: everything waits, for as long as the backend
    /// asks at least.
    BackOff,
    /// The backend does not know this agent, or is not one: everything waits, with long pauses,
    /// and a person must look. With what can be done.
    Pause(&'static str),
    /// The backend does not take this batch; the others go on.
    Refused(Refusal),
}

/// Why one batch is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its halves may be small enough.
    TooLarge,
    /// Something in it is bad.
    Invalid,
}

/// What can be done when every record of a batch was refused: the backend is more likely wrong than
/// they are.
pub const TAKES_NOTHING: &str = "the backend refuses every record: is backend.url right?";

/// What can be done when an answer says that records are refused, and not which.
pub const UNNAMED_REFUSALS: &str = "the backend has refused records and does not say which: \
     nothing of the batch is taken for delivered; update the backend, or what stands before it";

impl Verdict {
    /// The verdict on an answer to a push.
    pub fn on(meaning: Meaning) -> Self {
        match meaning {
            Meaning::Success | Meaning::KnownBatch => Self::Delivered,
            Meaning::Later | Meaning::Unavailable | Meaning::Failing => Self::BackOff,
            Meaning::Stranger | Meaning::Unchanged => Self::Pause(
                "something on the way answers in the backend's place, as the login page of a \
                 network does, or backend.url is another server's: check both",
            ),
            Meaning::NotHere => Self::Pause("check backend.url"),
            Meaning::Unauthorized => Self::Pause(
                "is this still its backend, and was the collector deleted there? `agent backend \
                 collector release NAME` at the backend brings it back, with `agent register \
                 --force`",
            ),
            Meaning::CertificateMismatch => Self::Pause(
                "the certificate in tls.cert_file was replaced at the backend by a newer one, or \
                 is another host's: put the registered one back, or `agent backend collector \
                 release NAME` at the backend, and `agent register --force`",
            ),
            Meaning::CertificateExpired => Self::Pause(
                "the certificate in tls.cert_file has ended: `agent register --force` shows it \
                 once more, and needs no secret; if the backend refuses that, with the secret of \
                 `agent backend collector release NAME`",
            ),
            Meaning::CertificateRequired => Self::Pause(
                "something on the way ends TLS and drops the client certificate: let it pass TLS \
                 through, or connect to the backend itself",
            ),
            Meaning::CollectorMismatch => Self::Pause(
                "token and envelope are of two collectors: is backend.token_file another agent's?",
            ),
            Meaning::Forbidden => Self::Pause(
                "the backend knows this agent under another id or certificate, or has removed it",
            ),
            Meaning::TooLarge => Self::Refused(Refusal::TooLarge),
            Meaning::Malformed
            | Meaning::UnknownEncoding
            | Meaning::Conflict
            | Meaning::Refused => Self::Refused(Refusal::Invalid),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::answer::{Answer, Purpose};

    /// C32 to C36: the contract's table, from status to verdict.
    #[test]
    fn every_answer_has_its_verdict() {
        let on = |status, body: &'static str| {
            Verdict::on(Answer::new(Purpose::Data, status, body).meaning())
        };
        let taken = r#"{"status":"success"}"#;
        let is_pause = |verdict| matches!(verdict, Verdict::Pause(_));
        for status in [200, 201, 202, 208] {
            assert_eq!(on(status, taken), Verdict::Delivered, "{status}");
            assert!(is_pause(on(status, "<html>")), "{status}");
        }
        assert_eq!(on(409, r#"{"error":"duplicate_batch"}"#), Verdict::Delivered);
        for status in [204, 206, 301, 304, 401, 403, 404, 405, 410, 501] {
            assert!(is_pause(on(status, taken)), "{status}");
        }
        for status in [408, 425, 429, 500, 502, 503, 504, 599] {
            assert_eq!(on(status, ""), Verdict::BackOff, "{status}");
        }
        assert_eq!(on(413, ""), Verdict::Refused(Refusal::TooLarge));
        for status in [400, 402, 409, 415, 418, 422, 451] {
            assert_eq!(on(status, ""), Verdict::Refused(Refusal::Invalid), "{status}");
        }
    }

    #[test]
    fn every_trouble_has_a_hint_of_its_own() {
        let hints = Meaning::ALL.into_iter().filter_map(|meaning| match Verdict::on(meaning) {
            Verdict::Pause(hint) => Some(hint),
            _ => None,
        });
        let hints: Vec<_> = hints.filter(|hint| !hint.is_empty()).collect();
        let distinct: BTreeSet<_> = hints.iter().collect();
        assert_eq!((hints.len(), distinct.len()), (9, 8), "one of them is two rows'");
    }
}
