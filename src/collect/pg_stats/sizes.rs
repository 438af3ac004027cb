//! Sizes are dear and change slowly: they are asked for seldom and kept with their age. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::metric::Status;

/// PostgreSQL's name for a row of a catalog.
pub(super) type Oid = u32;

/// The last known sizes of one kind of object in one database.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    known: HashMap<Oid, Known>,
}

/// What the server answered for one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Size(u64),
    /// Locked, and so not asked.
    Locked,
}

/// What to show for one object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) bytes: Option<u64>,
    pub(super) age_s: Option<u64>,
    /// Absent when the size is there and fresh.
    pub(super) status: Option<Status>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    size: Option<(u64, Instant)>,
    asked: Instant,
    status: Status,
}

impl Sizes {
    /// Those of `objects` to ask now: never measured ones, and ones measured `every` or longer
    /// ago; the longest unmeasured first, at most `limit`. What is no object any more is
    /// forgotten.
    pub(super) fn due(&mut self, objects: &[Oid], plan: &Plan) -> Vec<Oid> {
        let listed: std::collections::HashSet<Oid> = objects.iter().copied().collect();
        self.known.retain(|oid, _| listed.contains(oid));
        let fresh = |oid: &Oid| {
            self.known.get(oid).is_some_and(|known| {
                let wait = if known.status == Status::Ok { plan.every } else { plan.retry };
                plan.now.saturating_duration_since(known.asked) < wait
            })
        };
        let mut due: Vec<Oid> = objects.iter().copied().filter(|oid| !fresh(oid)).collect();
        due.sort_by_key(|oid| self.known.get(oid).map(|known| known.asked));
        due.truncate(plan.limit);
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
    }

    /// Notes that the question for `asked` failed; the last sizes stay, with their age.
    pub(super) fn failed(&mut self, asked: &[Oid], status: Status, now: Instant) {
        for oid in asked {
            let size = self.known.get(oid).and_then(|known| known.size);
            self.known.insert(*oid, Known { size, asked: now, status });
        }
    }

    /// What is known of `oid` at `now`.
    pub(super) fn show(&self, oid: Oid, now: Instant) -> Shown {
        let Some(known) = self.known.get(&oid) else { return Shown::default() };
        let age = known.size.map(|(_, at)| now.saturating_duration_since(at).as_secs());
        Shown {
            bytes: known.size.map(|(bytes, _)| bytes),
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
        assert_eq!(sizes.due(&[1, 2, 3], &plan(0)), [1, 2]);
        let answers = HashMap::from([(1, Answer::Size(10)), (2, Answer::Locked)]);
        sizes.answered(&[1, 2], &answers, Status::Error, plan(0).now);
        assert_eq!(sizes.due(&[1, 2, 3], &plan(1)), [3]);
        sizes.answered(&[3], &HashMap::new(), Status::Permission, plan(1).now);

        let shown = |bytes, age_s, status| Shown { bytes, age_s, status };
        assert_eq!(sizes.show(1, plan(0).now), shown(Some(10), None, None));
        assert_eq!(sizes.show(1, plan(70).now), shown(Some(10), Some(70), None));
        assert_eq!(sizes.show(2, plan(70).now), shown(None, None, Some(Status::Locked)));
        assert_eq!(sizes.show(3, plan(70).now), shown(None, None, Some(Status::Permission)));
        assert_eq!(sizes.show(4, plan(70).now), Shown::default());

        // Refused ones are tried again sooner; a failure keeps the last size.
        assert_eq!(sizes.due(&[1, 2, 3], &plan(61)), [2, 3]);
        sizes.failed(&[1], Status::Timeout, plan(61).now);
        assert_eq!(sizes.show(1, plan(61).now), shown(Some(10), Some(61), Some(Status::Timeout)));
        // What is listed no more is forgotten.
        assert_eq!(sizes.due(&[2], &plan(61)), [2]);
        assert_eq!(sizes.show(1, plan(61).now), Shown::default());
    }
}
