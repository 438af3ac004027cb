//! The id that the backend knows a batch by. Pure.

use uuid::Uuid;

use crate::queue::format::{
    record::Record,
    segment::{BatchPlan, Origin},
};

/// The id of a batch as its segment plans it.
pub(in crate::queue) fn planned(queue_id: Uuid, plan: &BatchPlan) -> Uuid {
    id(queue_id, plan.origin, (plan.first_seq, plan.last_seq, plan.records))
}

/// The id of a batch of which these records were read: for ever the same for the same ones, and
/// another one for fewer of them, because who has taken an id takes nothing under it any more.
/// Fewer are read of a damaged copy, of a window that another process still writes, and after
/// thinning.
pub(in crate::queue) fn of_read(queue_id: Uuid, origin: Origin, records: &[Record]) -> Uuid {
    let [first, last] = [records.first(), records.last()].map(|r| r.map_or(0, |r| r.seq));
    let count = records.len() as u64;
    let id = id(queue_id, origin, (first, last, count));
    // What thinning takes is always the same; what damage takes is not. A file that somebody has
    // changed may hold its blocks in any order.
    if origin.thinned > 0 || last.checked_sub(first) == count.checked_sub(1) {
        return id;
    }
    let numbers: Vec<u8> = records.iter().flat_map(|record| record.seq.to_be_bytes()).collect();
    Uuid::new_v5(&id, &numbers)
}

fn id(queue_id: Uuid, origin: Origin, (first, last, records): (u64, u64, u64)) -> Uuid {
    let Origin { segment, batch, thinned } = origin;
    let name = format!("{segment}/{batch}/{thinned}/{first}-{last}/{records}");
    Uuid::new_v5(&queue_id, name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(numbers: &[u64]) -> Vec<Record> {
        let record = |seq: &u64| Record {
            seq: *seq,
            kind: "custom.x".into(),
            at_ms: 0,
            payload: bytes::Bytes::from_static(b"{}"),
        };
        numbers.iter().map(record).collect()
    }

    #[test]
    fn an_id_is_of_its_records() {
        let (queue, origin) = (Uuid::from_u128(1), Origin { segment: 7, batch: 0, thinned: 0 });
        let of = |numbers: &[u64]| of_read(queue, origin, &records(numbers));
        let plan = BatchPlan {
            number: 3,
            first_seq: 10,
            last_seq: 13,
            records: 4,
            raw_bytes: 0,
            window_ms: (0, 0),
            origin,
        };
        let whole = of(&[10, 11, 12, 13]);
        assert_eq!(whole, planned(queue, &plan), "merged into another place it keeps its id");
        let parts = [&[10, 11, 12][..], &[10, 11, 13], &[10, 12, 13], &[11, 12, 13], &[10], &[13]];
        let mut ids: Vec<Uuid> = parts.into_iter().map(of).collect();
        ids.push(whole);
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), parts.len() + 1);
        // Numbers that no agent has written are no panic.
        assert_ne!(of(&[13, 10]), of(&[0, u64::MAX]));
        assert_ne!(of(&[]), whole);
        let thinned = Origin { thinned: 1, ..origin };
        let plan = BatchPlan { origin: thinned, records: 2, ..plan };
        assert_eq!(of_read(queue, thinned, &records(&[10, 13])), planned(queue, &plan));
    }
}
