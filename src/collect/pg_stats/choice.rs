//! Which relations of a database are shown: the largest, the most active and the oldest. Pure.

use std::collections::{HashMap, HashSet};

use super::sizes::Oid;

/// The relations with the oldest transaction ids that are shown.
const OLDEST_MAX: usize = 20;
/// What part of the places is for the most active ones, and again for the oldest.
const SHARE: usize = 4;

/// One relation of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) oid: Oid,
    /// The partitioned table that it is a part of.
    pub(super) root: Option<Oid>,
    /// Its size by the pages in the catalog, with what belongs to it.
    pub(super) estimate: u64,
    /// Tuples read and changed, and scans: as the server counts them, then those since the list
    /// before.
    pub(super) activity: u64,
    /// Transactions since its oldest unfrozen one.
    pub(super) age: Option<i64>,
}

/// The relations of one kind in one database.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    /// The largest by estimate first. A database may have more than are listed.
    pub(super) listed: Vec<Listed>,
    /// How many there are.
    pub(super) total: u64,
    /// Those of all by estimate.
    pub(super) total_bytes: u64,
}

/// The counters of the list before.
#[derive(Debug, Default)]
pub(super) struct Activity {
    last: HashMap<Oid, u64>,
}

impl Activity {
    /// Makes the counters of `listed` what was done since the last call. Counters of relations that
    /// were not there then, or that have fallen, count whole.
    pub(super) fn since_last(&mut self, listed: &mut [Listed]) {
        let now = listed.iter().map(|it| (it.oid, it.activity)).collect();
        let last = std::mem::replace(&mut self.last, now);
        for it in listed {
            let before = last.get(&it.oid).copied().unwrap_or(0);
            it.activity = it.activity.checked_sub(before).unwrap_or(it.activity);
        }
    }
}

impl Catalog {
    /// At most `max` of them, the largest first. A quarter of the places is for those that did the
    /// most, another one for the [`OLDEST_MAX`] oldest, and all others for the largest.
    pub(super) fn choose(&self, max: usize, size: impl Fn(&Listed) -> u64) -> Vec<Oid> {
        let mut by_size: Vec<(u64, &Listed)> =
            self.listed.iter().map(|it| (size(it), it)).collect();
        by_size.sort_by_key(|(bytes, it)| (std::cmp::Reverse(*bytes), it.oid));
        if by_size.len() > max {
            let mut chosen: HashSet<Oid> =
                self.first(max / SHARE, |it| Some(it.activity)).collect();
            let oldest = OLDEST_MAX.min(max / SHARE);
            chosen.extend(self.first(oldest, |it| it.age.and_then(|age| age.try_into().ok())));
            for (_, it) in &by_size {
                if chosen.len() >= max {
                    break;
                }
                chosen.insert(it.oid);
            }
            by_size.retain(|(_, it)| chosen.contains(&it.oid));
        }
        by_size.into_iter().map(|(_, it)| it.oid).collect()
    }

    /// The `count` with the highest `value`; those with none and those with 0 are left out.
    fn first(
        &self,
        count: usize,
        value: impl Fn(&Listed) -> Option<u64>,
    ) -> impl Iterator<Item = Oid> {
        let known = |it: &Listed| value(it).filter(|value| *value > 0).map(|value| (value, it.oid));
        let mut first: Vec<(u64, Oid)> = self.listed.iter().filter_map(known).collect();
        first.sort_by_key(|(value, oid)| (std::cmp::Reverse(*value), *oid));
        first.into_iter().take(count).map(|(_, oid)| oid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(oid: Oid, estimate: u64, activity: u64, age: i64) -> Listed {
        Listed { oid, root: None, estimate, activity, age: Some(age) }
    }

    /// A hundred relations: the first are the largest, the last are the oldest, and some in the
    /// middle are active.
    #[test]
    fn the_largest_the_most_active_and_the_oldest_are_chosen() {
        let all = (0..100_u32).map(|oid| {
            let activity = if (50..55).contains(&oid) { 1_000 } else { u64::from(oid == 60) };
            listed(oid, u64::from(1_000 - oid), activity, i64::from(oid))
        });
        let catalog = Catalog { listed: all.collect(), total: 100, total_bytes: 0 };
        let choose = |max| catalog.choose(max, |it| it.estimate);
        assert_eq!(choose(2), [0, 1]);
        assert_eq!(choose(8), [0, 1, 2, 3, 50, 51, 98, 99]);
        let of_forty = choose(40);
        assert_eq!(of_forty.len(), 40);
        let (largest, rest) = of_forty.split_at(24);
        assert!(largest.iter().copied().eq(0..24), "{largest:?}");
        assert_eq!(rest, [50, 51, 52, 53, 54, 60, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99]);
        assert_eq!(choose(100).len(), 100);
        let oldest = choose(99).into_iter().filter(|oid| *oid >= 80).count();
        assert_eq!(oldest, 20, "no more than the oldest twenty");
        // What was measured counts, not the estimate.
        assert_eq!(catalog.choose(2, |it| u64::from(it.oid)), [99, 98]);
    }

    #[test]
    fn activity_is_counted_from_the_list_before() {
        let mut activity = Activity::default();
        let mut check = |counters: &[(Oid, u64)], expected: &[u64]| {
            let mut all: Vec<Listed> =
                counters.iter().map(|(oid, count)| listed(*oid, 0, *count, 0)).collect();
            activity.since_last(&mut all);
            assert_eq!(all.iter().map(|it| it.activity).collect::<Vec<_>>(), expected);
        };
        check(&[(1, 10), (2, 20)], &[10, 20]);
        check(&[(1, 15), (2, 20), (3, 7)], &[5, 0, 7]);
        // A reset, and one that was left out before.
        check(&[(2, 3)], &[3]);
        check(&[(1, 15), (2, 4)], &[15, 1]);
    }
}
