//! The ledger: every record that was numbered and will not be delivered, as ranges with a reason.
//! Pure: it decides what to write; the log writes it, before what is lost goes.

use std::collections::{BTreeMap, BTreeSet};

use crate::queue::format::{
    loss::{Loss, LossReason},
    rows::{self, StateChange},
};

/// A loss before it has a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewLoss {
    /// See [`Loss::from`], [`Loss::to`].
    pub range: (u64, u64),
    /// See [`Loss::records`].
    pub records: u64,
    /// See [`Loss::reason`].
    pub reason: LossReason,
    /// See [`Loss::time_ms`].
    pub time_ms: (i64, i64),
}

/// Entries that no push has offered to the backend yet may be at most so many: then neighbours
/// become one entry.
const OPEN_MAX: usize = 1_000;
/// Acknowledged entries that are kept for `inspect`.
const ACKNOWLEDGED_MAX: usize = 1_000;
/// Entries that one push carries.
const SEND_MAX: usize = 100;

/// All entries that are kept.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    losses: BTreeMap<u64, Loss>,
    next_id: u64,
    /// Entries that a push has carried: they do not change any more.
    offered: BTreeSet<u64>,
    /// Entries whose state row is not what they are, and entries that went.
    unsaved: BTreeSet<u64>,
}

impl Ledger {
    /// Takes an entry that was read from the state.
    pub fn insert(&mut self, loss: Loss) {
        self.next_id = self.next_id.max(loss.id + 1);
        // Whether it was offered is not known: as if it had been, it stays as it is.
        self.offered.insert(loss.id);
        self.losses.insert(loss.id, loss);
    }

    /// Adds a loss. Neighbours with the same reason become one entry.
    pub fn note(&mut self, new: NewLoss, now_ms: i64) {
        if new.records == 0 {
            return;
        }
        let last = self.losses.values_mut().next_back();
        if let Some(last) = last.filter(|last| !self.offered.contains(&last.id))
            && last.reason == new.reason
            && last.to + 1 == new.range.0
            && last.records == last.to - last.from + 1
            && new.records == new.range.1 - new.range.0 + 1
        {
            widen(last, &new, now_ms);
            self.unsaved.insert(last.id);
            return;
        }
        let id = self.next_id;
        self.next_id += 1;
        let NewLoss { range: (from, to), records, reason, time_ms } = new;
        let loss =
            Loss { id, from, to, records, reason, time_ms, at_ms: now_ms, acknowledged: false };
        self.losses.insert(id, loss);
        self.unsaved.insert(id);
        self.shrink();
    }

    /// Entries that the backend does not know yet, oldest first. They do not change any more.
    pub fn offer(&mut self) -> Vec<Loss> {
        let open = self.losses.values().filter(|loss| !loss.acknowledged);
        let send: Vec<Loss> = open.take(SEND_MAX).cloned().collect();
        self.offered.extend(send.iter().map(|loss| loss.id));
        send
    }

    /// The backend knows these entries.
    pub fn acknowledge(&mut self, ids: &[u64]) {
        for id in ids {
            if let Some(loss) = self.losses.get_mut(id).filter(|loss| !loss.acknowledged) {
                loss.acknowledged = true;
                self.unsaved.insert(*id);
            }
        }
        let known = self.losses.values().filter(|loss| loss.acknowledged).map(|loss| loss.id);
        let known: Vec<u64> = known.collect();
        for id in &known[..known.len().saturating_sub(ACKNOWLEDGED_MAX)] {
            self.forget(*id);
        }
    }

    /// Records of `from..=to` that entries within it hold.
    pub fn known_in(&self, from: u64, to: u64) -> u64 {
        let within = |loss: &&Loss| loss.from >= from && loss.to <= to;
        self.losses.values().filter(within).map(|loss| loss.records).sum()
    }

    /// Everything that is kept, oldest first.
    pub fn all(&self) -> impl Iterator<Item = &Loss> {
        self.losses.values()
    }

    /// The state rows that make the state say what the ledger says.
    pub fn unsaved(&self) -> Vec<StateChange> {
        let row = |id: &u64| match self.losses.get(id) {
            Some(loss) => rows::loss_row(loss),
            None => rows::drop_loss_row(*id),
        };
        self.unsaved.iter().map(row).collect()
    }

    /// Whether there are such rows.
    pub fn is_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// The rows of [`Ledger::unsaved`] are durable.
    pub fn saved(&mut self) {
        self.unsaved.clear();
    }

    /// Makes one entry of two neighbours, as long as there are too many that nobody has seen.
    fn shrink(&mut self) {
        let open: Vec<u64> = self
            .losses
            .values()
            .filter(|loss| !loss.acknowledged && !self.offered.contains(&loss.id))
            .map(|loss| loss.id)
            .collect();
        if open.len() <= OPEN_MAX {
            return;
        }
        let same = |pair: &&[u64]| {
            let reason = |id| self.losses.get(id).map(|loss: &Loss| loss.reason);
            matches!(pair, [a, b] if reason(a) == reason(b))
        };
        let Some([kept, gone]) = open.windows(2).find(same) else { return };
        let Some(gone) = self.losses.get(gone).cloned() else { return };
        if let Some(kept) = self.losses.get_mut(kept) {
            let Loss { from, to, records, reason, time_ms, .. } = gone;
            let new = NewLoss { range: (from, to), records, reason, time_ms };
            widen(kept, &new, gone.at_ms);
            self.unsaved.insert(kept.id);
        }
        self.forget(gone.id);
    }

    fn forget(&mut self, id: u64) {
        self.losses.remove(&id);
        self.offered.remove(&id);
        self.unsaved.insert(id);
    }
}

fn widen(loss: &mut Loss, new: &NewLoss, at_ms: i64) {
    loss.from = loss.from.min(new.range.0);
    loss.to = loss.to.max(new.range.1);
    loss.records += new.records;
    loss.time_ms.0 = loss.time_ms.0.min(new.time_ms.0);
    loss.time_ms.1 = loss.time_ms.1.max(new.time_ms.1);
    loss.at_ms = at_ms;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(from: u64, to: u64, reason: LossReason) -> NewLoss {
        let time = i64::try_from(from).unwrap();
        NewLoss { range: (from, to), records: to - from + 1, reason, time_ms: (time, time + 1) }
    }

    fn ranges(ledger: &Ledger) -> Vec<(u64, u64, u64)> {
        ledger.all().map(|loss| (loss.from, loss.to, loss.records)).collect()
    }

    #[test]
    fn neighbours_with_one_reason_are_one_entry_until_it_was_offered() {
        let mut ledger = Ledger::default();
        ledger.note(loss(0, 4, LossReason::Evict), 1);
        ledger.note(loss(5, 9, LossReason::Evict), 2);
        assert_eq!(ranges(&ledger), [(0, 9, 10)]);
        assert_eq!(ledger.offer()[0].time_ms, (0, 6));
        ledger.note(loss(10, 11, LossReason::Evict), 3);
        ledger.note(loss(12, 12, LossReason::Corrupt), 4);
        ledger.note(loss(20, 20, LossReason::Corrupt), 5);
        assert_eq!(ranges(&ledger), [(0, 9, 10), (10, 11, 2), (12, 12, 1), (20, 20, 1)]);
    }

    #[test]
    fn an_entry_is_sent_until_it_is_acknowledged() {
        let mut ledger = Ledger::default();
        ledger.note(loss(0, 4, LossReason::Refuse), 1);
        assert_eq!(ledger.offer().len(), 1);
        let again = ledger.offer();
        assert_eq!(again.len(), 1);
        ledger.acknowledge(&[again[0].id, 77]);
        assert!(ledger.offer().is_empty());
        assert!(ledger.all().all(|loss| loss.acknowledged), "it is kept for a person");
    }

    #[test]
    fn entries_are_bounded_and_no_record_is_forgotten() {
        let mut ledger = Ledger::default();
        for n in 0..5_000 {
            ledger.note(loss(n * 2, n * 2, LossReason::Evict), 1);
        }
        assert_eq!(ledger.all().count(), OPEN_MAX);
        assert_eq!(ledger.all().map(|loss| loss.records).sum::<u64>(), 5_000);
        loop {
            let ids: Vec<u64> = ledger.offer().iter().map(|loss| loss.id).collect();
            if ids.is_empty() {
                break;
            }
            assert!(ids.len() <= SEND_MAX);
            ledger.acknowledge(&ids);
        }
        for n in 0..ACKNOWLEDGED_MAX as u64 * 2 {
            ledger.note(loss(20_000 + n * 2, 20_000 + n * 2, LossReason::Evict), 1);
            let ids: Vec<u64> = ledger.offer().iter().map(|loss| loss.id).collect();
            ledger.acknowledge(&ids);
        }
        assert_eq!(ledger.all().count(), ACKNOWLEDGED_MAX);
    }

    #[test]
    fn what_is_unsaved_is_what_changed() {
        let mut ledger = Ledger::default();
        ledger.note(loss(0, 4, LossReason::Evict), 1);
        assert_eq!(ledger.unsaved().len(), 1);
        ledger.saved();
        assert!(ledger.unsaved().is_empty());
        let ids: Vec<u64> = ledger.offer().iter().map(|loss| loss.id).collect();
        ledger.acknowledge(&ids);
        assert_eq!(ledger.unsaved().len(), 1);
    }
}
