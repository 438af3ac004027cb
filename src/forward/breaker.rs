//! Whether batches may leave, and how many at once. Pure: it is told the time and the draws.
//!
//! While the backend is down nothing is sent; after each pause one cheap probe asks whether it is
//! back. Then one batch may leave, and with every round of deliveries twice as many, up to the
//! most. What failed before a pause began belongs to it, and counts once. A refusal that only a
//! person can change is not seen by a probe: after its pause one batch is sent instead.

use std::time::Duration;

use super::pace::Pace;
use crate::metric::agent_health::ForwarderState;

/// The breaker. Times are durations since any fixed moment.
#[derive(Debug)]
pub struct Breaker {
    pace: Pace,
    state: State,
    at_once_max: usize,
    /// Batches that may be out now.
    at_once: usize,
    /// Deliveries since that grew.
    delivered: usize,
    /// Counts the pauses.
    pauses: u64,
}

/// What the breaker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Batches leave.
    Flowing,
    /// The backend is down: nothing leaves until then.
    BackingOff {
        /// When a probe is due.
        until: Duration,
    },
    /// A probe asks whether the backend is back.
    Probing,
    /// A person must look: nothing leaves until then.
    Paused {
        /// When one batch is tried.
        until: Duration,
        /// What a person can do.
        hint: &'static str,
    },
    /// The pause is over, and one batch at a time asks whether it has helped.
    Trying {
        /// What a person can do.
        hint: &'static str,
    },
}

impl State {
    /// What it looks like. A try does not end a pause: what comes of it does.
    pub fn shown(self) -> ForwarderState {
        match self {
            Self::Flowing => ForwarderState::Flowing,
            Self::BackingOff { .. } => ForwarderState::BackingOff,
            Self::Probing => ForwarderState::Probing,
            Self::Paused { .. } | Self::Trying { .. } => ForwarderState::Paused,
        }
    }

    /// What a person can do.
    pub fn hint(self) -> Option<&'static str> {
        match self {
            Self::Paused { hint, .. } | Self::Trying { hint } => Some(hint),
            Self::Flowing | Self::BackingOff { .. } | Self::Probing => None,
        }
    }
}

/// Says before which pause a request was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// When, and a random number: what every failure needs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct At {
    /// The time.
    pub now: Duration,
    /// From 0 to 1.
    pub draw: f64,
}

impl Breaker {
    /// Sends one batch at first, and at most `at_once_max` at once later.
    pub fn new(pace: Pace, at_once_max: usize) -> Self {
        Self {
            pace,
            state: State::Flowing,
            at_once_max: at_once_max.max(1),
            at_once: 1,
            delivered: 0,
            pauses: 0,
        }
    }

    /// Changes the pauses; one that is under way stays.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
    }

    /// Changes how many may be out at most.
    pub fn set_at_once_max(&mut self, at_once_max: usize) {
        self.at_once_max = at_once_max.max(1);
        self.at_once = self.at_once.min(self.at_once_max);
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        self.state
    }

    /// Batches that may be out now; 0 while nothing may leave.
    pub fn at_once(&self) -> usize {
        match self.state {
            State::Flowing => self.at_once,
            State::Trying { .. } => 1,
            State::BackingOff { .. } | State::Probing | State::Paused { .. } => 0,
        }
    }

    /// How long nothing may leave; `None` when something may.
    pub fn wait(&self, now: Duration) -> Option<Duration> {
        match self.state {
            State::Flowing | State::Probing | State::Trying { .. } => None,
            State::BackingOff { until } | State::Paused { until, .. } => {
                Some(until.saturating_sub(now))
            }
        }
    }

    /// For a request that is sent now.
    pub fn ticket(&self) -> Ticket {
        Ticket(self.pauses)
    }

    /// A pause is over, or somebody wants no more of it. Nothing is out.
    pub fn resume(&mut self) {
        self.state = match self.state {
            State::BackingOff { .. } | State::Probing => State::Probing,
            State::Paused { hint, .. } | State::Trying { hint } => State::Trying { hint },
            State::Flowing => State::Flowing,
        };
    }

    /// The probe got an answer that is a sign of life: one batch may leave.
    pub fn alive(&mut self) {
        if self.state == State::Probing {
            self.state = State::Flowing;
        }
    }

    /// A batch was delivered.
    pub fn delivered(&mut self, ticket: Ticket) {
        if !self.is_current(ticket) {
            return;
        }
        self.state = State::Flowing;
        self.pace.reset();
        self.delivered += 1;
        if self.delivered >= self.at_once {
            self.delivered = 0;
            self.at_once = (self.at_once * 2).min(self.at_once_max);
        }
    }

    /// The backend works, and does not take a batch.
    pub fn refused(&mut self, ticket: Ticket) {
        if self.is_current(ticket) {
            self.pace.reset();
        }
    }

    /// A request or a probe says that the backend or the way to it is down. Nothing leaves for the
    /// time that is returned, nor for `at_least`, which is what the backend asked for.
    pub fn down(&mut self, ticket: Ticket, at_least: Option<Duration>, at: At) -> Duration {
        if self.is_current(ticket) {
            let until = at.now + self.pace.after_failure(at.draw, at_least);
            self.shut(State::BackingOff { until });
        } else if let (State::BackingOff { until }, Some(asked)) = (&mut self.state, at_least) {
            // Others were asked the same: the random part is what keeps them from coming together.
            *until = (*until).max(at.now + self.pace.asked(at.draw, asked));
        }
        self.wait(at.now).unwrap_or_default()
    }

    /// An answer says that a person must look, and at what. Nothing leaves for the time that is
    /// returned.
    pub fn trouble(&mut self, hint: &'static str, at: At) -> Duration {
        if !matches!(self.state, State::Paused { .. }) {
            let until = at.now + self.pace.at_cap(at.draw);
            self.shut(State::Paused { until, hint });
        }
        self.wait(at.now).unwrap_or_default()
    }

    fn is_current(&self, ticket: Ticket) -> bool {
        let is_open = match self.state {
            State::Flowing | State::Probing | State::Trying { .. } => true,
            State::BackingOff { .. } | State::Paused { .. } => false,
        };
        is_open && ticket.0 == self.pauses
    }

    fn shut(&mut self, state: State) {
        self.state = state;
        self.pauses += 1;
        self.at_once = 1;
        self.delivered = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn at(seconds: u64) -> At {
        At { now: s(seconds), draw: 1.0 }
    }

    fn breaker(at_once_max: usize) -> Breaker {
        Breaker::new(Pace::default(), at_once_max)
    }

    /// Delivers whole rounds and returns how many were out in each.
    fn rounds(breaker: &mut Breaker, count: usize) -> Vec<usize> {
        let round = |_| {
            let out = breaker.at_once();
            (0..out).for_each(|_| breaker.delivered(breaker.ticket()));
            out
        };
        (0..count).map(round).collect()
    }

    /// C36: 1, 2, 4 and so on up to the bound, at the start and after every pause.
    #[test]
    fn concurrency_doubles_with_each_round() {
        assert_eq!(rounds(&mut breaker(4), 4), [1, 2, 4, 4]);
        assert_eq!(rounds(&mut breaker(6), 5), [1, 2, 4, 6, 6]);
        assert_eq!(rounds(&mut breaker(1), 3), [1, 1, 1]);
        let mut breaker = breaker(4);
        rounds(&mut breaker, 3);
        breaker.down(breaker.ticket(), None, at(0));
        breaker.resume();
        breaker.alive();
        assert_eq!(rounds(&mut breaker, 4), [1, 2, 4, 4]);
    }

    /// C36: nothing leaves during a pause, and after it one probe, until one is answered.
    #[test]
    fn a_backend_that_is_down_is_probed() {
        let mut breaker = breaker(4);
        assert_eq!(breaker.down(breaker.ticket(), None, at(10)), s(1));
        assert_eq!((breaker.at_once(), breaker.wait(s(10))), (0, Some(s(1))));
        for (now, wait) in [(11, 2), (13, 4), (17, 8)] {
            breaker.resume();
            assert_eq!((breaker.state(), breaker.at_once()), (State::Probing, 0));
            assert_eq!(breaker.down(breaker.ticket(), None, at(now)), s(wait));
        }
        breaker.resume();
        breaker.alive();
        assert_eq!(breaker.at_once(), 1);
        // A probe that is answered says nothing of the store behind the backend.
        assert_eq!(breaker.down(breaker.ticket(), None, at(25)), s(16));
        breaker.resume();
        breaker.alive();
        breaker.delivered(breaker.ticket());
        assert_eq!(breaker.down(breaker.ticket(), None, at(50)), s(1), "a delivery ends it");
    }

    /// Batches that were out when the first of them failed raise the ceiling once.
    #[test]
    fn failures_of_one_outage_count_once() {
        let mut breaker = breaker(4);
        rounds(&mut breaker, 2);
        let tickets = [breaker.ticket(); 4];
        for ticket in tickets {
            assert_eq!(breaker.down(ticket, None, at(5)), s(1));
        }
        let asked = breaker.down(tickets[0], Some(s(60)), At { now: s(5), draw: 0.5 });
        assert_eq!(asked, s(90), "what the backend asks for, and a draw");
        breaker.delivered(tickets[1]);
        assert_eq!(breaker.at_once(), 0, "a late delivery does not end the pause");
        breaker.resume();
        assert_eq!(breaker.down(breaker.ticket(), None, at(65)), s(2));
    }

    /// C34: what a probe cannot see is tried with one batch, after minutes.
    #[test]
    fn trouble_pauses_at_the_cap_and_is_tried_with_a_batch() {
        let mut breaker = breaker(4);
        rounds(&mut breaker, 3);
        let ticket = breaker.ticket();
        assert_eq!(breaker.down(ticket, None, at(0)), s(1));
        assert_eq!(breaker.trouble("ask", at(0)), s(300), "the longer one counts");
        assert_eq!(breaker.trouble("ask", at(100)), s(200), "once");
        assert_eq!(breaker.down(ticket, None, at(100)), s(200));
        breaker.resume();
        assert_eq!((breaker.state(), breaker.at_once()), (State::Trying { hint: "ask" }, 1));
        assert_eq!(breaker.state().shown(), ForwarderState::Paused, "until it has helped");
        breaker.alive();
        breaker.refused(breaker.ticket());
        assert_eq!(breaker.state().hint(), Some("ask"), "nothing was taken");
        assert_eq!(breaker.trouble("look", at(400)), s(300), "it has not");
        breaker.resume();
        breaker.resume();
        assert_eq!(rounds(&mut breaker, 4), [1, 2, 4, 4]);
        assert_eq!(
            (breaker.state().shown(), breaker.state().hint()),
            (ForwarderState::Flowing, None)
        );
    }

    #[test]
    fn a_changed_bound_counts_at_once() {
        let mut breaker = breaker(8);
        rounds(&mut breaker, 4);
        breaker.set_at_once_max(2);
        assert_eq!(breaker.at_once(), 2);
        breaker.set_at_once_max(16);
        assert_eq!(rounds(&mut breaker, 3), [2, 4, 8]);
    }
}
