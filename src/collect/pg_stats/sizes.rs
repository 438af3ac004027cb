//! Sizes are dear and change slowly: they are asked for seldom and kept with their age. Pure.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::metric::Status;

/// So often is the limit halved at most: from 300 to 2.
const HALVED_MAX: u32 = 7;
/// After so many statements that were answered the limit is doubled again.
const ANSWERS_TO_DOUBLE: u32 = 16;

/// PostgreSQL's name for a row of a catalog.
pub(super) type Oid = u32;

/// The last known sizes of one kind of object in one database.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    known: HashMap<Oid, Known>,
    /// How often the limit is halved, because statements ran into theirs.
    halved: u32,
    /// Statements that were answered since it was last changed.
    answered: u32,
}

/// A size and its parts, where it has parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bytes {
    pub(super) total: u64,
    pub(super) indexes: Option<u64>,
    pub(super) toast: Option<u64>,
}

/// What the server answered for one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Size(Bytes),
    /// Locked, and so not asked.
    Locked,
}

/// What to show for one object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) bytes: Option<Bytes>,
    /// By pages, where there is no size.
    pub(super) estimate: Option<u64>,
    pub(super) age_s: Option<u64>,
    /// Absent when the size is there and fresh.
    pub(super) status: Option<Status>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    size: Option<(Bytes, Instant)>,
    asked: Instant,
    status: Status,
}

impl Sizes {
    /// Those of `all` to ask now: never measured ones, and ones measured `every` or longer ago; the
    /// longest unmeasured first, at most `limit`. `shown` are some of them, which get half of the
    /// places at least, and the others what they leave. What is not there any more is forgotten.
    pub(super) fn due(&mut self, shown: &[Oid], all: &[Oid], plan: &Plan) -> Vec<Oid> {
        let listed: HashSet<Oid> = all.iter().copied().collect();
        self.known.retain(|oid, _| listed.contains(oid));
        let first: HashSet<Oid> = shown.iter().copied().collect();
        let mut due = self.not_fresh(shown.iter().copied(), plan);
        let others = all.iter().copied().filter(|oid| !first.contains(oid));
        let others = self.not_fresh(others, plan);
        let limit = (plan.limit >> self.halved).max(1);
        due.truncate(limit.saturating_sub(others.len()).max(limit.div_ceil(2)));
        due.extend(others.into_iter().take(limit.saturating_sub(due.len())));
        due
    }

    fn not_fresh(&self, objects: impl Iterator<Item = Oid>, plan: &Plan) -> Vec<Oid> {
        let fresh = |oid: &Oid| {
            self.known.get(oid).is_some_and(|known| {
                let wait = if known.status == Status::Ok { plan.every } else { plan.retry };
                plan.now.saturating_duration_since(known.asked) < wait
            })
        };
        let mut due: Vec<Oid> = objects.filter(|oid| !fresh(oid)).collect();
        due.sort_by_key(|oid| self.known.get(oid).map(|known| known.asked));
        due
    }

    /// Notes the answers to a question for `asked`; `unanswered` is what the server means by
    /// none.
    pub(super) fn answered(
        &mut self,
        asked: &[Oid],
        answers: &HashMap<Oid, Answer>,
        unanswered: Status,
        now: Instant,
    ) {
        for oid in asked {
            let last = self.known.get(oid).and_then(|known| known.size);
            let (size, status) = match answers.get(oid) {
                Some(Answer::Size(bytes)) => (Some((*bytes, now)), Status::Ok),
                Some(Answer::Locked) => (last, Status::Locked),
                None => (None, unanswered),
            };
            self.known.insert(*oid, Known { size, asked: now, status });
        }
        self.answered += 1;
        if self.answered >= ANSWERS_TO_DOUBLE {
            (self.answered, self.halved) = (0, self.halved.saturating_sub(1));
        }
    }

    /// Notes that the question for `asked` failed; the last sizes stay, with their age. After a
    /// timeout fewer are asked at once.
    pub(super) fn failed(&mut self, asked: &[Oid], status: Status, now: Instant) {
        for oid in asked {
            let size = self.known.get(oid).and_then(|known| known.size);
            self.known.insert(*oid, Known { size, asked: now, status });
        }
        if status == Status::Timeout {
            (self.answered, self.halved) = (0, (self.halved + 1).min(HALVED_MAX));
        }
    }

    /// The last known size of `oid`, however old.
    pub(super) fn last(&self, oid: Oid) -> Option<Bytes> {
        self.known.get(&oid)?.size.map(|(bytes, _)| bytes)
    }

    /// How many of `objects` were not asked for since `since`.
    pub(super) fn not_asked_since(&self, objects: &[Oid], since: Option<Instant>) -> usize {
        let asked = |oid: &Oid| self.known.get(oid).map(|known| known.asked);
        objects.iter().filter(|oid| asked(oid).is_none_or(|asked| Some(asked) < since)).count()
    }

    /// What is known of `oid` at `now`.
    pub(super) fn show(&self, oid: Oid, now: Instant) -> Shown {
        let Some(known) = self.known.get(&oid) else { return Shown::default() };
        let age = known.size.map(|(_, at)| now.saturating_duration_since(at).as_secs());
        Shown {
            bytes: known.size.map(|(bytes, _)| bytes),
            estimate: None,
            age_s: age.filter(|age| *age > 0),
            status: (known.status != Status::Ok).then_some(known.status),
        }
    }
}

/// How to ask.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) now: Instant,
    pub(super) every: Duration,
    /// After an answer that was no size.
    pub(super) retry: Duration,
    pub(super) limit: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(total: u64) -> Bytes {
        Bytes { total, ..Bytes::default() }
    }

    #[test]
    fn sizes_are_asked_seldom_and_kept_with_their_age() {
        let start = crate::clock::monotonic();
        let plan = |after: u64| Plan {
            now: start + Duration::from_secs(after),
            every: Duration::from_secs(300),
            retry: Duration::from_secs(60),
            limit: 2,
        };
        let mut sizes = Sizes::default();
        assert_eq!(sizes.due(&[1, 2, 3], &[1, 2, 3], &plan(0)), [1, 2]);
        let answers = HashMap::from([(1, Answer::Size(of(10))), (2, Answer::Locked)]);
        sizes.answered(&[1, 2], &answers, Status::Error, plan(0).now);
        assert_eq!(sizes.due(&[1, 2, 3], &[1, 2, 3], &plan(1)), [3]);
        sizes.answered(&[3], &HashMap::new(), Status::Permission, plan(1).now);

        let shown = |bytes: Option<u64>, age_s, status| Shown {
            bytes: bytes.map(of),
            estimate: None,
            age_s,
            status,
        };
        assert_eq!(sizes.show(1, plan(0).now), shown(Some(10), None, None));
        assert_eq!(sizes.show(1, plan(70).now), shown(Some(10), Some(70), None));
        assert_eq!(sizes.show(2, plan(70).now), shown(None, None, Some(Status::Locked)));
        assert_eq!(sizes.show(3, plan(70).now), shown(None, None, Some(Status::Permission)));
        assert_eq!(sizes.show(4, plan(70).now), Shown::default());

        // Refused ones are tried again sooner; a failure keeps the last size.
        assert_eq!(sizes.due(&[1, 2, 3], &[1, 2, 3], &plan(61)), [2, 3]);
        sizes.failed(&[1], Status::Timeout, plan(61).now);
        assert_eq!(sizes.show(1, plan(61).now), shown(Some(10), Some(61), Some(Status::Timeout)));
        // What is listed no more is forgotten.
        assert_eq!(sizes.due(&[2], &[2], &plan(61)), [2]);
        assert_eq!(sizes.show(1, plan(61).now), Shown::default());
    }

    /// What is shown goes first and leaves others their half; in the end all are measured.
    #[test]
    fn every_relation_has_its_turn() {
        let now = crate::clock::monotonic();
        let every = Duration::from_secs(300);
        let plan = Plan { now, every, retry: every, limit: 4 };
        let all: Vec<Oid> = (0..10).collect();
        let mut sizes = Sizes::default();
        let mut measure = |shown: &[Oid], expected: &[Oid]| {
            let due = sizes.due(shown, &all, &plan);
            assert_eq!(due, expected);
            let answers = due.iter().map(|oid| (*oid, Answer::Size(of(1)))).collect();
            sizes.answered(&due, &answers, Status::Error, now);
        };
        measure(&[7, 8, 9], &[7, 8, 0, 1]);
        measure(&[7, 8, 9], &[9, 2, 3, 4]);
        measure(&[7, 8, 9], &[5, 6]);
        measure(&[7, 8, 9], &[]);
    }

    /// A statement that ran into its limit asks for fewer the next time, and later for more again.
    #[test]
    fn after_a_timeout_fewer_are_asked_at_once() {
        let start = crate::clock::monotonic();
        let every = Duration::from_secs(1);
        let plan = |after: u64| Plan {
            now: start + Duration::from_secs(after),
            every,
            retry: every,
            limit: 8,
        };
        let all: Vec<Oid> = (0..100).collect();
        let mut sizes = Sizes::default();
        for (after, expected) in [(0, 8), (1, 4), (2, 2), (3, 1), (4, 1)] {
            let due = sizes.due(&all, &all, &plan(after));
            assert_eq!(due.len(), expected);
            sizes.failed(&due, Status::Timeout, plan(after).now);
        }
        for after in 5..5 + 16 * 8 {
            let due = sizes.due(&all, &all, &plan(after));
            sizes.answered(&due, &HashMap::new(), Status::Error, plan(after).now);
        }
        assert_eq!(sizes.due(&all, &all, &plan(1_000)).len(), 8);
        sizes.failed(&[], Status::Locked, plan(1_000).now);
        assert_eq!(sizes.due(&all, &all, &plan(1_000)).len(), 8, "a lock is not the size's fault");
    }
}
