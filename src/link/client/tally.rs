//! What requests come to: counted, and the latest trouble remembered for `agent status`.

use std::sync::{Mutex, PoisonError};

use crate::answer::{Answer, Meaning, Purpose};
use crate::link::{SendError, SendErrorKind};
use crate::telemetry::counter;

/// Why the newest request failed that was about this host's data.
#[derive(Debug, Default)]
pub(super) struct Tally {
    reason: Mutex<Option<&'static str>>,
}

impl Tally {
    /// Shows every reason at 0, so that the first failure is a step that an alert can see.
    pub(super) fn new() -> Self {
        metrics::counter!(counter::BACKEND_CHANGES).increment(0);
        for reason in reasons() {
            metrics::counter!(counter::SEND_FAILURES, "reason" => reason).increment(0);
        }
        Self::default()
    }

    /// Counts what has come of a request, and remembers why it failed.
    pub(super) fn count(&self, purpose: Purpose, outcome: &Result<Answer, SendError>) {
        let reason = counted(outcome);
        let tells = match purpose {
            Purpose::Data => true,
            Purpose::Probe => reason.is_some(),
            Purpose::Health | Purpose::Config | Purpose::Other => false,
        };
        if tells {
            *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason;
        }
    }

    /// Counts what one backend has answered to a request that goes on to the next one.
    pub(super) fn passed_over(outcome: &Result<Answer, SendError>) {
        counted(outcome);
    }

    /// Counts that another backend is in use.
    pub(super) fn changed() {
        metrics::counter!(counter::BACKEND_CHANGES).increment(1);
    }

    /// The reason of the latest failure; `None` when the latest push went well.
    pub(super) fn reason(&self) -> Option<&'static str> {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn counted(outcome: &Result<Answer, SendError>) -> Option<&'static str> {
    let reason = match outcome {
        Ok(answer) => {
            // A status has three digits, so the series are few whatever a backend answers.
            let status = answer.status.to_string();
            metrics::counter!(counter::ANSWERS, "status" => status).increment(1);
            answer.meaning().reason()
        }
        Err(error) => Some(error.kind.as_str()),
    };
    if let Some(reason) = reason {
        metrics::counter!(counter::SEND_FAILURES, "reason" => reason).increment(1);
    }
    reason
}

/// Every reason there is.
pub(crate) fn reasons() -> impl Iterator<Item = &'static str> {
    let errors = SendErrorKind::ALL.into_iter().map(SendErrorKind::as_str);
    let mut of_answers: Vec<_> = Meaning::ALL.into_iter().filter_map(Meaning::reason).collect();
    of_answers.sort_unstable();
    of_answers.dedup();
    errors.chain(of_answers)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn reasons_are_distinct() {
        assert_eq!(reasons().collect::<BTreeSet<_>>().len(), reasons().count());
    }

    #[test]
    fn only_what_the_data_meets_is_the_reason() {
        let tally = Tally::new();
        let check = |purpose, status, expected| {
            tally.count(purpose, &Ok(Answer::new(purpose, status, r#"{"status":"success"}"#)));
            assert_eq!(tally.reason(), expected);
        };
        check(Purpose::Data, 403, Some("forbidden"));
        check(Purpose::Probe, 200, Some("forbidden"));
        check(Purpose::Other, 200, Some("forbidden"));
        check(Purpose::Probe, 502, Some("unavailable"));
        check(Purpose::Data, 200, None);
        check(Purpose::Other, 403, None);
        check(Purpose::Data, 204, Some("wrong_url"));
    }
}
