//! What a forwarder remembers from one drain to the next, and what of it shows.

use std::{collections::VecDeque, sync::Arc, thread::available_parallelism, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use uuid::Uuid;

use super::{
    ForwardConfig, ForwardStatus, WireError,
    batch::Packing,
    breaker::{At, Breaker, State},
    encodings::{Encodings, Plain},
    flight::Sent,
    pace::Pace,
    rate::Rate,
    recent::Recent,
    split::{Refusing, Split},
    verdict::Refusal,
};
use crate::{
    answer::{Answer, Receipt},
    clock, units,
};

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Course {
    pub(super) config: Arc<ForwardConfig>,
    pub(super) breaker: Breaker,
    pub(super) rate: Rate,
    pub(super) recent: Recent,
    /// As many batches are packed at once as there are processors.
    pub(super) packers: Arc<Semaphore>,
    pub(super) status: watch::Sender<ForwardStatus>,
    /// What the backends take.
    pub(super) encodings: Encodings,
    /// Batches that were being taken apart when everything had to wait.
    apart: VecDeque<(Uuid, Split)>,
    troubled: bool,
    begun: Instant,
}

/// Batches whose taking apart is remembered. No more are out at once; one whose batch vanishes
/// meanwhile makes room for the next.
const APART_MAX: usize = 16;

impl Course {
    pub(super) fn new(config: ForwardConfig) -> (Self, watch::Receiver<ForwardStatus>) {
        let (status, shown) = watch::channel(ForwardStatus::default());
        let processors = available_parallelism().map_or(1, usize::from);
        let course = Self {
            breaker: Breaker::new(Pace::new(config.backoff.0, config.backoff.1), config.in_flight),
            rate: Rate::new(config.backlog_rate),
            recent: Recent::default(),
            packers: Arc::new(Semaphore::new(processors)),
            status,
            encodings: Encodings::default(),
            apart: VecDeque::new(),
            troubled: false,
            begun: Instant::now(),
            config: Arc::new(config),
        };
        (course, shown)
    }

    /// Goes on with these settings.
    pub(super) fn adopt(&mut self, config: ForwardConfig) {
        if *self.config == config {
            return;
        }
        if self.config.backoff != config.backoff {
            self.breaker.set_pace(Pace::new(config.backoff.0, config.backoff.1));
        }
        if self.config.backlog_rate != config.backlog_rate {
            self.rate.set(config.backlog_rate);
        }
        self.breaker.set_at_once_max(config.in_flight);
        self.config = Arc::new(config);
    }

    /// The time, for what is told the time.
    pub(super) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(super) fn at(&self) -> At {
        At { now: self.now(), draw: fastrand::f64() }
    }

    /// How the next body of a batch is packed.
    pub(super) fn packing(&self, plain: Plain) -> Packing {
        self.encodings.packing(&self.config, plain)
    }

    /// Whether a probe is due: to see whether the backend is back, or what it takes.
    pub(super) fn wants_probe(&self) -> bool {
        self.breaker.state() == State::Probing
            || self.encodings.wants_probe(self.config.encoding, self.now())
    }

    /// A probe has been answered, or not.
    pub(super) fn probed(&mut self, answer: Result<Answer, WireError>) {
        let ticket = self.breaker.ticket();
        let (failure, at_least) = match answer {
            Ok(answer) if answer.meaning().is_alive() => {
                self.encodings.probed(&answer, self.now());
                self.show_health();
                return self.breaker.alive();
            }
            Ok(answer) => (answer.shown(), answer.retry_after),
            Err(error) => (error.message, None),
        };
        self.breaker.down(ticket, at_least, self.at());
        self.note_failure("the backend does not answer", &failure);
    }

    /// Counts what the backend has taken with one request.
    pub(super) fn taken(&mut self, answer: &Answer, receipt: &Receipt, sent: Sent, plain: Plain) {
        self.breaker.delivered(sent.ticket);
        if self.breaker.state() == State::Flowing && std::mem::take(&mut self.troubled) {
            tracing::info!("the backend takes batches again");
        }
        if self.encodings.taken(answer, sent.encoding, plain) {
            let backend = &answer.backend;
            tracing::warn!(backend, "the backend takes no compressed bodies; it gets plain ones");
        }
        let now = clock::now();
        let breaker = self.breaker.state();
        let refuses_health = self.encodings.refuses_health();
        self.status.send_modify(|status| {
            status.refuses_health = refuses_health;
            // Answer and state change together: nobody reads the one without the other.
            status.show_breaker(breaker);
            status.duplicate_batches += u64::from(receipt.duplicate);
            status.sent_bytes += sent.bytes.1;
            status.raw_bytes += sent.bytes.0;
            status.last_batch_bytes = sent.bytes;
            status.last_answer = Some(answer.shown());
            status.last_answer_at = Some(now);
            status.last_delivery_at = Some(now);
            if receipt.next_config_version.is_some() {
                status.next_config_version = receipt.next_config_version;
            }
        });
    }

    /// The backend that has answered so does not know what the agent says of itself.
    pub(super) fn refused_health(&mut self, answer: &Answer) {
        if self.encodings.refused_health(answer) {
            let backend = &answer.backend;
            tracing::warn!(
                backend,
                "the backend does not know metrics of type `agent`; it gets none until its \
                 version changes"
            );
        }
        self.show_health();
    }

    fn show_health(&self) {
        let refuses = self.encodings.refuses_health();
        self.status.send_if_modified(|status| {
            std::mem::replace(&mut status.refuses_health, refuses) != refuses
        });
    }

    pub(super) fn taking_apart(&self, batch: Uuid, answer: &Refusing) {
        let what = match answer.refusal {
            Refusal::TooLarge => "the backend finds a batch too large; it is sent in halves",
            Refusal::Invalid => "the backend refuses a batch; it is sent in parts",
        };
        let answer = &answer.message;
        tracing::warn!(%batch, answer, "{what}");
        self.status.send_modify(|status| {
            status.split_batches += 1;
            status.last_answer = Some(answer.clone());
            status.last_answer_at = Some(clock::now());
        });
    }

    /// A request has failed, and everything waits.
    pub(super) fn note_failure(&mut self, what: &str, answer: &str) {
        let wait = self.breaker.wait(self.now()).unwrap_or_default();
        if !std::mem::replace(&mut self.troubled, true) {
            let wait = units::show_duration(wait);
            tracing::warn!(answer, wait, "{what}");
        }
        let breaker = self.breaker.state();
        self.status.send_modify(|status| {
            status.show_breaker(breaker);
            status.failures += 1;
            status.last_answer = Some(answer.to_owned());
            status.last_answer_at = Some(clock::now());
            status.next_try_at = Some(later(wait));
        });
    }

    /// What is left of a batch of so many records.
    pub(super) fn take_split(&mut self, batch: Uuid, records: usize) -> Split {
        let begun = self.apart.iter().position(|(id, _)| *id == batch);
        let begun = begun.and_then(|place| self.apart.remove(place));
        begun.map_or_else(|| Split::of(records), |(_, split)| split)
    }

    /// Remembers what was found out about a batch that goes back.
    pub(super) fn keep_split(&mut self, batch: Uuid, split: Split) {
        if split.is_whole() {
            return;
        }
        if self.apart.len() >= APART_MAX {
            self.apart.pop_front();
        }
        self.apart.push_back((batch, split));
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.apart.len()
    }

    /// Shows what is going on, with so many batches on their way.
    pub(super) fn show(&self, out: usize) {
        let (breaker, in_flight) = (self.breaker.state(), out as u64);
        self.status.send_if_modified(|status| {
            let shown = (status.state, status.hint.as_deref(), status.in_flight);
            let is_new = shown != (breaker.shown(), breaker.hint(), in_flight);
            if is_new {
                status.show_breaker(breaker);
                status.in_flight = in_flight;
            }
            is_new
        });
    }
}

impl ForwardStatus {
    fn show_breaker(&mut self, breaker: State) {
        self.state = breaker.shown();
        self.hint = breaker.hint().map(str::to_owned);
    }
}

/// The wall clock's time after `wait`.
pub(super) fn later(wait: Duration) -> Timestamp {
    clock::now().saturating_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever reads the status between two steps finds the state that goes with the answer.
    #[test]
    fn an_answer_and_the_state_change_together() {
        let (mut course, status) = Course::new(ForwardConfig::default());
        let ticket = course.breaker.ticket();
        course.breaker.down(ticket, None, At { now: Duration::ZERO, draw: 0.5 });
        course.note_failure("a batch was not delivered", "503");
        let shown = status.borrow();
        assert_eq!(shown.last_answer.as_deref(), Some("503"));
        assert_eq!(shown.state, crate::metric::agent_health::ForwarderState::BackingOff);
    }
}
