//! The id that the backend knows a batch by. Pure.

use uuid::Uuid;

use crate::queue::format::{
    record::{self, Record},
    segment::{BatchPlan, Origin},
};

/// The id of a batch as its segment plans it.
pub(in crate::queue) fn planned(queue_id: Uuid, plan: &BatchPlan) -> Uuid {
    id(queue_id, plan.origin, (plan.first_seq, plan.last_seq, plan.records), plan.content)
}

/// The id of a batch of which these records were read: for ever the same for the same ones, and
/// another one for fewer of them or for others, because who has taken an id takes nothing under it
/// any more. Fewer are read of a damaged copy, of a window that another process still writes, and
/// after thinning; others have the same numbers where two hosts go on from one memory.
pub(in crate::queue) fn of_read(queue_id: Uuid, plan: &BatchPlan, records: &[Record]) -> Uuid {
    let [first, last] = [records.first(), records.last()].map(|r| r.map_or(0, |r| r.seq));
    let count = records.len() as u64;
    let read = (first, last, count);
    if read == (plan.first_seq, plan.last_seq, plan.records) {
        return planned(queue_id, plan); // checksums say that they are what was planned
    }
    let id = id(queue_id, plan.origin, read, plan.content.map(|_| record::content(records)));
    // What thinning takes is always the same; what damage takes is not. A file that somebody has
    // changed may hold its blocks in any order.
    let whole = plan.origin.thinned > 0 || last.checked_sub(first) == count.checked_sub(1);
    if whole || plan.content.is_some() {
        return id;
    }
    let numbers: Vec<u8> = records.iter().flat_map(|record| record.seq.to_be_bytes()).collect();
    Uuid::new_v5(&id, &numbers)
}

fn id(
    queue_id: Uuid,
    origin: Origin,
    (first, last, records): (u64, u64, u64),
    content: Option<u64>,
) -> Uuid {
    let Origin { segment, batch, thinned } = origin;
    let content = content.map(|content| format!("/{content:016x}")).unwrap_or_default();
    let name = format!("{segment}/{batch}/{thinned}/{first}-{last}/{records}{content}");
    Uuid::new_v5(&queue_id, name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin { segment: 7, batch: 0, thinned: 0 };

    fn records(numbers: &[u64], payload: &'static [u8]) -> Vec<Record> {
        let record = |seq: &u64| Record {
            seq: *seq,
            kind: "custom.x".into(),
            at_ms: 0,
            payload: bytes::Bytes::from_static(payload),
        };
        numbers.iter().map(record).collect()
    }

    fn plan(origin: Origin, records: &[Record], content: Option<u64>) -> BatchPlan {
        BatchPlan {
            number: 3,
            first_seq: records.first().map_or(0, |record| record.seq),
            last_seq: records.last().map_or(0, |record| record.seq),
            records: records.len() as u64,
            raw_bytes: 0,
            window_ms: (0, 0),
            origin,
            content,
        }
    }

    /// With a sum of the content and, in batches of earlier versions, without.
    #[test]
    fn an_id_is_of_its_records() {
        let queue = Uuid::from_u128(1);
        let whole = records(&[10, 11, 12, 13], b"{}");
        for content in [Some(record::content(&whole)), None] {
            let plan = plan(ORIGIN, &whole, content);
            let of = |numbers: &[u64]| of_read(queue, &plan, &records(numbers, b"{}"));
            let id = of(&[10, 11, 12, 13]);
            assert_eq!(id, planned(queue, &plan), "merged into another place it keeps its id");
            let parts =
                [&[10, 11, 12][..], &[10, 11, 13], &[10, 12, 13], &[11, 12, 13], &[10], &[13]];
            let mut ids: Vec<Uuid> = parts.into_iter().map(of).collect();
            ids.push(id);
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), parts.len() + 1);
            // Numbers that no agent has written do not panic.
            assert_ne!(of(&[13, 10]), of(&[0, u64::MAX]));
            assert_ne!(of(&[]), id);
        }
        let (thinned, left) = (Origin { thinned: 1, ..ORIGIN }, records(&[10, 13], b"{}"));
        for content in [Some(record::content(&left)), None] {
            let plan = plan(thinned, &left, content);
            assert_eq!(of_read(queue, &plan, &left), planned(queue, &plan));
        }
    }

    /// Q4: two hosts that go on from one memory add to one window under the same numbers.
    #[test]
    fn an_id_is_of_what_its_records_say() {
        let queue = Uuid::from_u128(1);
        let (one, other) = (records(&[10, 11], b"1"), records(&[10, 11], b"2"));
        let plan = |records: &[Record]| plan(ORIGIN, records, Some(record::content(records)));
        assert_ne!(planned(queue, &plan(&one)), planned(queue, &plan(&other)));
        // The same of what can be read of it when one record is lost.
        assert_ne!(
            of_read(queue, &plan(&one), &one[..1]),
            of_read(queue, &plan(&other), &other[..1])
        );
    }
}
