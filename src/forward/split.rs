//! A batch that the backend refuses, taken apart: which records to send next. Pure.
//!
//! Halves are sent until the records are found that are refused by themselves. A half that must
//! hold one, because the other was taken, is halved without being sent: with `k` bad records of
//! `n`, the backend is asked about `2 k log2(n / k)` times at most, and half as often when they are
//! few.

use std::ops::Range;

use jiff::Timestamp;

use super::{encodings::Plain, verdict::Refusal};
use crate::metric::envelope::Rejected;

/// What is left of a batch to be sent, and what was refused of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// The next one last.
    open: Vec<Part>,
    refused: Vec<Refused>,
    first_at: Option<Timestamp>,
    /// Whether the backend has taken a part, be it for its form.
    took_part: bool,
    /// How what is left is packed.
    pub plain: Plain,
}

/// A record that the backend has refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its place in the batch, from 0.
    pub index: usize,
    /// The field that is wrong; empty when the backend did not name one.
    pub path: String,
    /// What the backend said.
    pub message: String,
    /// The HTTP status.
    pub status: u16,
    /// How often a request with it was refused.
    pub attempts: u32,
    /// When that was for the first time.
    pub first_at: Timestamp,
    /// When that was for the last time.
    pub at: Timestamp,
}

/// An answer that takes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusing {
    /// What it means for the batch.
    pub refusal: Refusal,
    /// The HTTP status.
    pub status: u16,
    /// The body, or its beginning.
    pub message: String,
    /// When it came.
    pub at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    records: Range<usize>,
    refusals: u32,
    /// It holds a bad record if no more than so many are refused when its turn comes.
    bad_if: Option<usize>,
}

impl Split {
    /// A batch of so many records, whole.
    pub fn of(records: usize) -> Self {
        let whole = Part { records: 0..records, refusals: 0, bad_if: None };
        let open = if records == 0 { Vec::new() } else { vec![whole] };
        let (refused, first_at, plain) = (Vec::new(), None, Plain::No);
        Self { open, refused, first_at, took_part: false, plain }
    }

    /// The records to send next; `None` when every record is taken or refused.
    pub fn next_part(&mut self) -> Option<Range<usize>> {
        loop {
            let part = self.open.last()?;
            if part.records.len() == 1 || part.bad_if != Some(self.refused.len()) {
                return Some(part.records.clone());
            }
            if let Some(part) = self.open.pop() {
                self.halve(part.records, part.refusals, Refusal::Invalid);
            }
        }
    }

    /// Whether nothing has been answered yet.
    pub fn is_whole(&self) -> bool {
        self.first_at.is_none() && self.refused.is_empty()
    }

    /// The backend has what [`Split::next_part`] named, apart from what it `rejected`.
    pub fn taken(&mut self, rejected: Vec<Rejected>, status: u16, at: Timestamp) {
        let Some(part) = self.open.pop() else { return };
        self.took_part = true;
        self.plain = self.plain.answered();
        let first_at = self.first_at.unwrap_or(at);
        let attempts = part.refusals + 1;
        let within = rejected.into_iter().filter(|rejected| rejected.index < part.records.len());
        self.refused.extend(within.map(|Rejected { index, path, message }| {
            let index = part.records.start + index;
            Refused { index, path, message, status, attempts, first_at, at }
        }));
    }

    /// The backend has refused what [`Split::next_part`] named.
    pub fn refused(&mut self, answer: &Refusing) {
        let Some(mut part) = self.open.pop() else { return };
        part.refusals += 1;
        self.plain = self.plain.answered();
        let (at, first_at) = (answer.at, *self.first_at.get_or_insert(answer.at));
        if part.records.len() > 1 {
            return self.halve(part.records, part.refusals, answer.refusal);
        }
        self.refused.push(Refused {
            index: part.records.start,
            path: String::new(),
            message: answer.message.clone(),
            status: answer.status,
            attempts: part.refusals,
            first_at,
            at,
        });
    }

    /// Whether every request was refused, and there were several records to take.
    pub fn took_nothing(&self) -> bool {
        !self.took_part && self.refused.len() > 1
    }

    /// Records that are refused, in the order of the batch.
    pub fn into_refused(self) -> Vec<Refused> {
        self.refused
    }

    fn halve(&mut self, Range { start, end }: Range<usize>, refusals: u32, refusal: Refusal) {
        let middle = start.midpoint(end);
        // Two halves may each be small enough where the whole was too large.
        let bad_if = (refusal == Refusal::Invalid).then_some(self.refused.len());
        self.open.push(Part { records: middle..end, refusals, bad_if });
        self.open.push(Part { records: start..middle, refusals, bad_if: None });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const AT: Timestamp = Timestamp::UNIX_EPOCH;

    fn refusing(refusal: Refusal) -> Refusing {
        Refusing { refusal, status: 422, message: "no".to_owned(), at: AT }
    }

    /// Sends everything to a backend with these bad records and a size limit: what was taken, what
    /// was refused, and the number of requests.
    fn send(records: usize, bad: &BTreeSet<usize>, max: usize) -> (Vec<usize>, Vec<usize>, usize) {
        let (mut split, mut taken, mut requests) = (Split::of(records), Vec::new(), 0);
        while let Some(part) = split.next_part() {
            requests += 1;
            if part.len() > max {
                split.refused(&refusing(Refusal::TooLarge));
            } else if bad.range(part.clone()).next().is_some() {
                split.refused(&refusing(Refusal::Invalid));
            } else {
                taken.extend(part);
                split.taken(Vec::new(), 200, AT);
            }
        }
        (taken, split.into_refused().iter().map(|refused| refused.index).collect(), requests)
    }

    /// C35: a bad record costs about log2 requests, and each record alone is asked about at most.
    #[test]
    fn few_bad_records_cost_few_requests() {
        let requests = |bad: &[usize]| send(1024, &bad.iter().copied().collect(), 1024).2;
        assert_eq!(requests(&[]), 1);
        assert_eq!(requests(&[1023]), 1 + 10 + 1, "whole, a half each, the record");
        assert_eq!(requests(&[0]), 1 + 10 + 10);
        assert!(requests(&[0, 1023]) <= 2 * 21);
        let all: Vec<usize> = (0..1024).collect();
        assert_eq!(requests(&all), 2 * 1024 - 1);
        assert_eq!(send(1, &BTreeSet::from([0]), 1), (vec![], vec![0], 1));
        assert_eq!(send(0, &BTreeSet::new(), 1), (vec![], vec![], 0));
    }

    proptest! {
        #[test]
        fn exactly_the_bad_are_refused(
            records in 0..300_usize,
            bad in proptest::collection::btree_set(0..300_usize, 0..20),
            max in 1..400_usize,
        ) {
            let bad: BTreeSet<usize> = bad.into_iter().filter(|index| *index < records).collect();
            let (taken, refused, requests) = send(records, &bad, max);
            let good: Vec<usize> = (0..records).filter(|index| !bad.contains(index)).collect();
            prop_assert_eq!(taken, good);
            prop_assert_eq!(refused, bad.iter().copied().collect::<Vec<_>>());
            let depth = records.next_power_of_two().ilog2() as usize;
            let pieces = 4 * records.div_ceil(max);
            prop_assert!(requests <= 1 + pieces + 2 * depth * bad.len(), "{} requests", requests);
        }
    }

    #[test]
    fn what_a_part_rejects_has_its_place_in_the_batch() {
        let mut split = Split::of(8);
        split.next_part();
        split.refused(&refusing(Refusal::TooLarge));
        split.next_part();
        split.taken(Vec::new(), 200, AT);
        assert_eq!(split.next_part(), Some(4..8));
        let rejected = |index| Rejected { index, path: "p".to_owned(), message: "m".to_owned() };
        split.taken(vec![rejected(1), rejected(9)], 200, AT);
        assert_eq!(split.next_part(), None);
        let refused = split.into_refused();
        assert_eq!(refused.iter().map(|r| (r.index, r.attempts)).collect::<Vec<_>>(), [(5, 2)]);
    }

    /// A record that is too large by itself is refused; the others are not.
    #[test]
    fn a_record_that_is_too_large_by_itself_is_refused() {
        let mut split = Split::of(4);
        while let Some(part) = split.next_part() {
            if part.contains(&2) {
                split.refused(&refusing(Refusal::TooLarge));
            } else {
                split.taken(Vec::new(), 200, AT);
            }
        }
        let refused = split.into_refused();
        assert_eq!(refused.iter().map(|r| (r.index, r.attempts)).collect::<Vec<_>>(), [(2, 3)]);
    }
}
