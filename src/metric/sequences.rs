//! The records of a push: which queue numbered them, and their numbers.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{envelope::METRICS_MAX, object::at_most};

/// Sequence numbers of a push's records, in the order of its `metrics`.
///
/// A record is its queue and its number: two with the same document are two, and one that comes in
/// two batches is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequences {
    /// The queue that gave the numbers.
    pub queue_id: Uuid,
    /// Numbers without a hole between them: the first, and how many.
    #[serde(deserialize_with = "at_most::<METRICS_MAX, _, _>")]
    pub runs: Vec<(u64, u64)>,
}

impl Sequences {
    /// The numbers of a batch.
    pub fn of(queue_id: Uuid, numbers: impl IntoIterator<Item = u64>) -> Self {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for number in numbers {
            match runs.last_mut() {
                Some((first, count)) if first.checked_add(*count) == Some(number) => *count += 1,
                _ => runs.push((number, 1)),
            }
        }
        Self { queue_id, runs }
    }

    /// Whether there is a number for each of `metrics`, and no more; the error says what is wrong.
    pub fn check(&self, metrics: usize) -> Result<(), String> {
        let mut total: u64 = 0;
        for run in &self.runs {
            let Some(numbers) = numbers(*run) else {
                let (first, count) = run;
                return Err(format!("[{first}, {count}] is not a run of sequence numbers"));
            };
            let (first, last) = numbers.into_inner();
            // Too many numbers for a sum are too many for the metrics, which are in memory.
            total = total.saturating_add(last - first).saturating_add(1);
        }
        if usize::try_from(total) == Ok(metrics) {
            return Ok(());
        }
        Err(format!("{total} numbers, the array of metrics holds {metrics}"))
    }

    /// Every number. As many as there are metrics, once [`Sequences::check`] has passed.
    pub fn numbers(&self) -> impl Iterator<Item = u64> {
        self.runs.iter().filter_map(|run| numbers(*run)).flatten()
    }
}

/// The numbers of one run; `None` when it is empty or goes over the largest number.
fn numbers((first, count): (u64, u64)) -> Option<RangeInclusive<u64>> {
    Some(first..=first.checked_add(count.checked_sub(1)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = u64::MAX;

    #[test]
    fn numbers_become_runs_and_are_read_back() {
        let check = |numbers: &[u64], runs: &[(u64, u64)]| {
            let sequences = Sequences::of(Uuid::nil(), numbers.iter().copied());
            assert_eq!(sequences.runs, runs);
            assert_eq!(sequences.check(numbers.len()), Ok(()));
            assert_eq!(sequences.numbers().collect::<Vec<_>>(), numbers);
        };
        check(&[], &[]);
        check(&[0], &[(0, 1)]);
        check(&[5, 6, 7], &[(5, 3)]);
        check(&[5, 7, 8, 12], &[(5, 1), (7, 2), (12, 1)]);
        check(&[8, 7, 7], &[(8, 1), (7, 1), (7, 1)]);
        check(&[MAX - 1, MAX], &[(MAX - 1, 2)]);
        check(&[MAX, 0], &[(MAX, 1), (0, 1)]);
    }

    #[test]
    fn numbers_that_are_not_those_of_the_metrics_are_refused() {
        let check = |runs: &[(u64, u64)], metrics, expected: &str| {
            let sequences = Sequences { queue_id: Uuid::nil(), runs: runs.to_vec() };
            assert_eq!(sequences.check(metrics).unwrap_err(), expected, "{runs:?}");
        };
        check(&[], 1, "0 numbers, the array of metrics holds 1");
        check(&[(1, 2)], 1, "2 numbers, the array of metrics holds 1");
        check(&[(1, 2), (9, 1)], 4, "3 numbers, the array of metrics holds 4");
        check(&[(1, 0)], 0, "[1, 0] is not a run of sequence numbers");
        check(&[(MAX, 2)], 2, "[18446744073709551615, 2] is not a run of sequence numbers");
        check(&[(2, MAX)], 1, "[2, 18446744073709551615] is not a run of sequence numbers");
        check(
            &[(0, MAX), (0, MAX), (0, 2)],
            0,
            "18446744073709551615 numbers, the array of metrics holds 0",
        );
        check(&vec![(3, 1); 100_000], 3, "100000 numbers, the array of metrics holds 3");
    }
}
