//! Which of several backends gets a request: the rule, without a wire.
//!
//! - The backend in use is the first to be asked, as long as it stands.
//! - It is down when it cannot be reached at all (address, connection, proxy, TLS, no answer in
//!   time), or has been ailing [`STRIKES_MAX`] times in a row (502, 503, 504, a broken connection).
//!   Any other answer, a refusal too, is the word of a backend that stands.
//! - A request that finds its backend down goes on to the next one that stands, in the order of the
//!   configuration; when none stands, to all of them, the one that failed longest ago first. The
//!   first that answers is then the one in use.
//! - A backend that is earlier in the configuration than the one in use is asked for a sign of life
//!   some time after its last failure, and is in use again when it gives one.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::answer::{Answer, Meaning, Purpose};
use crate::link::{SendError, SendErrorKind};

/// So many times in a row an ailing backend is asked before it counts as down: a restart behind a
/// load balancer is over by then.
pub const STRIKES_MAX: u8 = 3;

/// What a request says about its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It does its work.
    Answers,
    /// It answers, but was not asked to do anything.
    Lives,
    /// It answers that it cannot work, or breaks off.
    Ails,
    /// It is not there.
    Gone,
    /// Nothing: the request did not come so far.
    Unknown,
}

/// What has changed with an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The backend counts as down from now on.
    Down,
    /// It is now the one in use.
    InUse,
}

/// The backends in the order of the configuration, and how they do.
#[derive(Debug)]
pub struct Routes {
    health: Vec<Health>,
    in_use: usize,
    since: Timestamp,
    /// The time between a backend's last failure and the next sign of life that is asked of it.
    return_after: Duration,
}

#[derive(Debug, Clone, Copy, Default)]
struct Health {
    strikes: u8,
    failed_at: Option<Instant>,
}

impl Health {
    fn stands(self) -> bool {
        self.strikes < STRIKES_MAX
    }
}

impl Outcome {
    /// What has come of a request.
    pub fn of(result: &Result<Answer, SendError>) -> Self {
        match result {
            Ok(answer) if answer.meaning() == Meaning::Unavailable => Self::Ails,
            Ok(answer) if answer.purpose() == Purpose::Probe => Self::Lives,
            Ok(_) => Self::Answers,
            Err(error) => match error.kind {
                SendErrorKind::Token => Self::Unknown,
                SendErrorKind::AnswerTooLarge => Self::Lives,
                SendErrorKind::Reset | SendErrorKind::Partial | SendErrorKind::Protocol => {
                    Self::Ails
                }
                _ => Self::Gone,
            },
        }
    }
}

impl Routes {
    /// `count` backends of which the first is in use since `now`.
    pub fn new(count: usize, return_after: Duration, now: Timestamp) -> Self {
        Self { health: vec![Health::default(); count], in_use: 0, since: now, return_after }
    }

    /// The backend in use, and since when.
    pub fn in_use(&self) -> (usize, Timestamp) {
        (self.in_use, self.since)
    }

    /// The backends that a request may go to, in this order, as long as the one before is down.
    pub fn order(&self) -> Vec<usize> {
        let mut standing: Vec<usize> =
            (0..self.health.len()).filter(|route| self.stands(*route)).collect();
        standing.sort_by_key(|route| *route != self.in_use);
        if !standing.is_empty() {
            return standing;
        }
        let mut all: Vec<usize> = (0..self.health.len()).collect();
        all.sort_by_key(|route| self.health.get(*route).and_then(|health| health.failed_at));
        all
    }

    /// Whether a request may go to this backend before all others are down.
    pub fn stands(&self, route: usize) -> bool {
        self.health.get(route).is_some_and(|health| health.stands())
    }

    /// Notes what a request to `route` has come to.
    pub fn note(
        &mut self,
        route: usize,
        outcome: Outcome,
        (now, at): (Instant, Timestamp),
    ) -> Option<Change> {
        let health = self.health.get_mut(route)?;
        let stood = health.stands();
        match outcome {
            Outcome::Unknown => return None,
            Outcome::Answers => *health = Health::default(),
            // A sign of life does not wipe out what its work looked like.
            Outcome::Lives => health.strikes = health.strikes.min(STRIKES_MAX - 1),
            Outcome::Ails => health.strikes = health.strikes.saturating_add(1).min(STRIKES_MAX),
            Outcome::Gone => health.strikes = STRIKES_MAX,
        }
        if !health.stands() {
            health.failed_at = Some(now);
            return stood.then_some(Change::Down);
        }
        let replaces = route != self.in_use && !self.stands(self.in_use);
        (replaces && outcome != Outcome::Ails).then(|| self.put_in_use(route, at))
    }

    /// The first backend before the one in use whose last failure is long enough ago.
    pub fn due(&self, now: Instant) -> Option<usize> {
        let long_ago = |at: Instant| now.saturating_duration_since(at) >= self.return_after;
        let earlier = self.health.iter().take(self.in_use);
        let mut due = earlier.map(|health| health.failed_at.is_none_or(long_ago));
        due.position(|due| due)
    }

    /// Notes a sign of life that was asked of an earlier backend.
    pub fn returned(&mut self, route: usize, at: Timestamp) -> Option<Change> {
        // What lies behind it now has time to recover; it is asked when it is needed.
        self.health.iter_mut().skip(route).for_each(|health| *health = Health::default());
        (route < self.in_use).then(|| self.put_in_use(route, at))
    }

    /// Notes that an earlier backend gave none.
    pub fn still_down(&mut self, route: usize, now: Instant) {
        if let Some(health) = self.health.get_mut(route) {
            *health = Health { strikes: STRIKES_MAX, failed_at: Some(now) };
        }
    }

    fn put_in_use(&mut self, route: usize, at: Timestamp) -> Change {
        (self.in_use, self.since) = (route, at);
        Change::InUse
    }
}

#[cfg(test)]
mod tests {
    use Outcome::{Ails, Answers, Gone, Lives, Unknown};

    use super::*;
    use crate::clock;

    struct World {
        routes: Routes,
        start: Instant,
        second: u32,
    }

    impl World {
        fn of(count: usize) -> Self {
            let routes = Routes::new(count, Duration::from_secs(60), Timestamp::UNIX_EPOCH);
            Self { routes, start: clock::monotonic(), second: 0 }
        }

        fn now(&self) -> (Instant, Timestamp) {
            let at = Timestamp::from_second(self.second.into()).expect("a time");
            (self.start + Duration::from_secs(self.second.into()), at)
        }

        /// A second later: what this outcome changes.
        fn note(&mut self, route: usize, outcome: Outcome) -> Option<Change> {
            self.second += 1;
            self.routes.note(route, outcome, self.now())
        }

        fn due(&self) -> Option<usize> {
            self.routes.due(self.now().0)
        }
    }

    #[test]
    fn a_backend_that_is_gone_is_replaced_by_the_next_that_answers() {
        let mut world = World::of(3);
        assert_eq!(world.routes.order(), [0, 1, 2]);
        assert_eq!(world.note(0, Gone), Some(Change::Down));
        assert_eq!((world.routes.in_use().0, world.routes.order()), (0, vec![1, 2]));
        assert_eq!(world.note(1, Gone), Some(Change::Down));
        assert_eq!(world.note(2, Answers), Some(Change::InUse));
        let since = Timestamp::from_second(3).expect("a time");
        assert_eq!((world.routes.in_use(), world.routes.order()), ((2, since), vec![2]));
    }

    #[test]
    fn an_ailing_backend_is_down_at_the_third_time_in_a_row() {
        let mut world = World::of(2);
        for outcome in [Ails, Ails, Answers, Ails, Lives, Unknown, Ails] {
            assert_eq!(world.note(0, outcome), None, "{outcome:?}");
        }
        assert_eq!(world.routes.order(), [0, 1]);
        assert_eq!(world.note(0, Ails), Some(Change::Down));
        assert_eq!(world.routes.order(), [1]);
        assert_eq!(world.note(1, Ails), None, "who ails replaces nobody");
        assert_eq!(world.note(1, Answers), Some(Change::InUse));
    }

    #[test]
    fn when_none_stands_all_are_asked_the_oldest_failure_first() {
        let mut world = World::of(3);
        for route in [0, 1, 2, 0] {
            world.note(route, Gone);
        }
        assert_eq!(world.routes.order(), [1, 2, 0]);
        assert_eq!(world.note(1, Gone), None, "it is not said twice");
        assert_eq!(world.routes.order(), [2, 0, 1]);
        assert_eq!(world.note(0, Lives), None, "in use again, as it was");
        assert_eq!((world.routes.in_use().0, world.routes.order()), (0, vec![0]));
        let mut alone = World::of(1);
        alone.note(0, Gone);
        assert_eq!((alone.routes.order(), alone.due()), (vec![0], None));
    }

    #[test]
    fn an_earlier_backend_is_asked_now_and_then_and_comes_back() {
        let mut world = World::of(3);
        world.note(0, Gone);
        world.note(1, Gone);
        world.note(2, Answers);
        world.second = 60;
        assert_eq!(world.due(), None);
        world.second = 61;
        assert_eq!(world.due(), Some(0));
        world.routes.still_down(0, world.now().0);
        assert_eq!(world.due(), None);
        world.second = 62;
        assert_eq!(world.due(), Some(1));
        assert_eq!(world.routes.returned(1, world.now().1), Some(Change::InUse));
        assert_eq!((world.routes.in_use().0, world.routes.order()), (1, vec![1, 2]));
        world.second = 121;
        assert_eq!(world.due(), Some(0));
        assert_eq!(world.routes.returned(0, world.now().1), Some(Change::InUse));
        assert_eq!((world.due(), world.routes.order()), (None, vec![0, 1, 2]));
    }

    /// An answer that was long on its way does not move the others' records.
    #[test]
    fn a_late_answer_of_a_backend_that_was_given_up_changes_nothing_at_once() {
        let mut world = World::of(2);
        world.note(0, Gone);
        world.note(1, Answers);
        assert_eq!(world.note(0, Answers), None);
        assert_eq!((world.routes.in_use().0, world.due()), (1, Some(0)));
    }

    #[test]
    fn only_what_is_the_backends_fault_is_held_against_it() {
        let of = |purpose, status| Outcome::of(&Ok(Answer::new(purpose, status, "")));
        for status in [200, 302, 400, 401, 403, 404, 409, 413, 422, 429, 500, 501] {
            assert_eq!(of(Purpose::Data, status), Answers, "{status}");
            assert_eq!(of(Purpose::Probe, status), Lives, "{status}");
        }
        for status in [502, 503, 504] {
            assert_eq!(of(Purpose::Data, status), Ails, "{status}");
        }
        for kind in SendErrorKind::ALL {
            let expected = match kind {
                SendErrorKind::Token => Unknown,
                SendErrorKind::AnswerTooLarge => Lives,
                SendErrorKind::Reset | SendErrorKind::Partial | SendErrorKind::Protocol => Ails,
                _ => Gone,
            };
            let error = SendError::new(kind, "", "");
            assert_eq!(Outcome::of(&Err(error)), expected, "{kind}");
        }
    }
}
