//! What the entries of `pg_stat_statements` have counted since the last collection. Pure.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::metric::Time;
use crate::metric::pg_statements::StatementCounts;

/// The counters of an entry, in the order of the columns.
pub(super) const COUNTERS: usize = 18;

const CALLS: usize = 0;
const EXEC_US: usize = 1;
const ROWS: usize = 4;
const SHARED_HIT: usize = 5;
const SHARED_READ: usize = 6;
const TEMP_READ: usize = 11;
const TEMP_WRITTEN: usize = 12;
const WAL_BYTES: usize = 17;

/// What statements are listed by: each the sum of some counters.
const ORDERS: [&[usize]; 6] = [
    &[EXEC_US],
    &[CALLS],
    &[ROWS],
    &[SHARED_HIT, SHARED_READ],
    &[TEMP_READ, TEMP_WRITTEN],
    &[WAL_BYTES],
];

/// What an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) user: u32,
    pub(super) database: u32,
    /// Absent: the role may not see it. Such entries of one role and database are one.
    pub(super) query: Option<i64>,
    pub(super) is_top: Option<bool>,
}

/// Counters by their number; times in microseconds. Absent: this version does not have it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts([Option<i64>; COUNTERS]);

/// An entry of the extension.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) counters: [Option<i64>; COUNTERS],
}

/// What was read at one collection.
#[derive(Debug)]
pub(super) struct Since {
    at: Instant,
    stats_reset: Option<Time>,
    entries: HashMap<Key, Counts>,
}

/// What has happened between two collections.
#[derive(Debug)]
pub(super) struct Deltas {
    pub(super) interval: Duration,
    entries: Vec<Listed>,
}

/// An entry's part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) key: Key,
    pub(super) counts: Counts,
}

/// Some entries, and the sums.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Picked {
    pub(super) entries: Vec<Listed>,
    pub(super) total: Counts,
    /// Of those that were not picked.
    pub(super) other: Counts,
}

impl Since {
    /// What is kept for the next collection, and what has happened since `before`.
    pub(super) fn next(
        before: Option<&Self>,
        read: Vec<Entry>,
        stats_reset: Option<Time>,
        at: Instant,
    ) -> (Self, Option<Deltas>) {
        let mut entries: HashMap<Key, Counts> = HashMap::with_capacity(read.len());
        for Entry { key, counters } in read {
            entries.entry(key).or_default().add(&Counts(counters));
        }
        let deltas = before.map(|before| {
            let is_reset = before.stats_reset != stats_reset;
            let known = |key: &Key| before.entries.get(key).filter(|_| !is_reset);
            let changed = entries.iter().filter_map(|(key, now)| {
                let counts = known(key).map_or(*now, |old| now.since(old, *key));
                counts.is_something().then_some(Listed { key: *key, counts })
            });
            Deltas { interval: at.saturating_duration_since(before.at), entries: changed.collect() }
        });
        (Self { at, stats_reset, entries }, deltas)
    }
}

impl Counts {
    fn add(&mut self, other: &Self) {
        for (sum, other) in self.0.iter_mut().zip(other.0) {
            *sum = match (*sum, other) {
                (Some(sum), Some(other)) => Some(sum.saturating_add(other)),
                (sum, other) => sum.or(other),
            };
        }
    }

    /// The counters since `old`. An entry that counts less than it did was given up in between and
    /// has begun anew; of hidden ones, which are several, that part is not known.
    fn since(&self, old: &Self, key: Key) -> Self {
        let fell = |(now, old): (&Option<i64>, &Option<i64>)| now < old;
        let has_begun_anew = self.0.iter().zip(&old.0).any(fell);
        if has_begun_anew && key.query.is_some() {
            return *self;
        }
        let mut counts = *self;
        for (now, old) in counts.0.iter_mut().zip(old.0) {
            *now = now.map(|now| now.saturating_sub(old.unwrap_or(0)).max(0));
        }
        counts
    }

    fn is_something(&self) -> bool {
        self.0.iter().flatten().any(|count| *count > 0)
    }

    fn rank(&self, order: &[usize]) -> i64 {
        let counters = order.iter().filter_map(|at| self.0.get(*at).copied().flatten());
        counters.fold(0, i64::saturating_add)
    }

    /// The same as the document has it.
    pub(super) fn as_part(&self) -> StatementCounts {
        let count = |at: usize| {
            self.0.get(at).copied().flatten().and_then(|count| u64::try_from(count).ok())
        };
        let seconds = |at: usize| count(at).map(|us| Duration::from_micros(us).as_secs_f64());
        StatementCounts {
            calls: count(CALLS),
            exec_s: seconds(EXEC_US),
            plans: count(2),
            plan_s: seconds(3),
            rows: count(ROWS),
            shared_blocks_hit: count(SHARED_HIT),
            shared_blocks_read: count(SHARED_READ),
            shared_blocks_dirtied: count(7),
            shared_blocks_written: count(8),
            local_blocks_read: count(9),
            local_blocks_written: count(10),
            temp_blocks_read: count(TEMP_READ),
            temp_blocks_written: count(TEMP_WRITTEN),
            read_s: seconds(13),
            write_s: seconds(14),
            wal_records: count(15),
            wal_full_page_images: count(16),
            wal_bytes: count(WAL_BYTES),
        }
    }
}

/// The first entry by each of [`ORDERS`], then the second by each, and so on, up to `max`; and the
/// sums, so that those that are listed and the others are the total.
pub(super) fn pick(deltas: &Deltas, max: usize) -> Picked {
    let zero = Counts(
        deltas
            .entries
            .first()
            .map_or([None; COUNTERS], |entry| entry.counts.0.map(|count| count.map(|_| 0))),
    );
    let may_be_listed: Vec<&Listed> =
        deltas.entries.iter().filter(|entry| entry.key.query.is_some()).collect();
    let orders = ORDERS.map(|order| {
        let mut ranked: Vec<(i64, &Listed)> = may_be_listed
            .iter()
            .map(|entry| (entry.counts.rank(order), *entry))
            .filter(|(rank, _)| *rank > 0)
            .collect();
        ranked.sort_by_key(|(rank, entry)| (-rank, entry.key));
        ranked
    });
    let (mut seen, mut entries) = (HashSet::new(), Vec::new());
    for place in 0..may_be_listed.len() {
        for order in &orders {
            if let Some((_, entry)) = order.get(place)
                && entries.len() < max
                && seen.insert(entry.key)
            {
                entries.push(**entry);
            }
        }
    }
    let (mut total, mut other) = (zero, zero);
    for entry in &deltas.entries {
        total.add(&entry.counts);
        if !seen.contains(&entry.key) {
            other.add(&entry.counts);
        }
    }
    Picked { entries, total, other }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry of a version without plans.
    fn entry(query: Option<i64>, calls: i64, exec_us: i64, rows: i64) -> Entry {
        let mut counters = [Some(0); COUNTERS];
        counters[2] = None;
        (counters[CALLS], counters[EXEC_US], counters[ROWS]) =
            (Some(calls), Some(exec_us), Some(rows));
        Entry { key: Key { user: 10, database: 5, query, is_top: Some(true) }, counters }
    }

    fn since(before: &[Entry], now: &[Entry]) -> Deltas {
        let at = crate::clock::monotonic();
        let (before, none) = Since::next(None, before.to_vec(), None, at);
        assert!(none.is_none());
        let later = at + Duration::from_secs(60);
        Since::next(Some(&before), now.to_vec(), None, later).1.expect("an interval")
    }

    /// Entries and the sum of all others, as (query, calls, microseconds, rows).
    type Row = (Option<i64>, i64, i64, i64);

    fn check(before: &[Entry], now: &[Entry], max: usize, listed: &[Row], other: Row) {
        let row = |query, counts: &Counts| {
            let of = |at: usize| counts.0[at].unwrap_or(0);
            (query, of(CALLS), of(EXEC_US), of(ROWS))
        };
        let deltas = since(before, now);
        assert_eq!(deltas.interval, Duration::from_secs(60));
        let picked = pick(&deltas, max);
        let found: Vec<Row> =
            picked.entries.iter().map(|entry| row(entry.key.query, &entry.counts)).collect();
        assert_eq!(found, listed);
        assert_eq!(row(None, &picked.other), other);
        let mut sum = picked.other;
        picked.entries.iter().for_each(|entry| sum.add(&entry.counts));
        assert_eq!(sum, picked.total, "the total is exact");
    }

    #[test]
    fn entries_count_since_the_last_collection() {
        let before = [entry(Some(1), 5, 500, 5), entry(Some(2), 7, 700, 7)];
        // The first has gone on, the second has not, the third is new.
        let now = [entry(Some(1), 8, 900, 6), entry(Some(2), 7, 700, 7), entry(Some(3), 1, 50, 2)];
        let listed = [(Some(1), 3, 400, 1), (Some(3), 1, 50, 2)];
        check(&before, &now, 10, &listed, (None, 0, 0, 0));
        // It was given up and has come again.
        check(&before, &[entry(Some(1), 2, 20, 9)], 10, &[(Some(1), 2, 20, 9)], (None, 0, 0, 0));
    }

    #[test]
    fn each_order_has_its_turn_and_the_rest_is_in_other() {
        let slow = entry(Some(1), 1, 1_000, 1);
        let slower = entry(Some(2), 1, 900, 1);
        let often = entry(Some(3), 100, 10, 1);
        let many = entry(Some(4), 1, 10, 500);
        let now = [slow, slower, often, many];
        let all = [(Some(1), 1, 1_000, 1), (Some(3), 100, 10, 1), (Some(4), 1, 10, 500)];
        check(&[], &now, 3, &all, (None, 1, 900, 1));
        check(&[], &now, 1, &all[..1], (None, 102, 920, 502));
    }

    /// What the role may not see is counted, under no number.
    #[test]
    fn hidden_entries_are_in_other_together() {
        let before = [entry(None, 5, 50, 5), entry(None, 1, 10, 1)];
        let now = [entry(None, 6, 70, 5), entry(None, 1, 10, 1), entry(Some(1), 1, 1, 0)];
        check(&before, &now, 10, &[(Some(1), 1, 1, 0)], (None, 1, 20, 0));
        // One of them was given up.
        check(&before, &[entry(None, 5, 60, 5)], 10, &[], (None, 0, 0, 0));
    }

    #[test]
    fn a_reset_begins_anew() {
        let at = crate::clock::monotonic();
        let reset = |second| Some(Time(jiff::Timestamp::from_second(second).expect("a time")));
        let (before, _) = Since::next(None, vec![entry(Some(1), 5, 500, 5)], reset(1), at);
        let read = vec![entry(Some(1), 9, 900, 9)];
        let (_, deltas) = Since::next(Some(&before), read, reset(2), at);
        let picked = pick(&deltas.expect("an interval"), 1);
        assert_eq!(picked.total.as_part().calls, Some(9));
        assert_eq!(picked.total.as_part().plans, None, "not 0");
    }
}
