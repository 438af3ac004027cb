//! Which batch comes next: fresh ones from memory, or the oldest.

use super::*;
use crate::queue::format::segment::SegmentRow;

/// The first number of what is picked, and from where.
fn pick<D: WriteDisk>(log: &mut Log<D>, pick: Pick) -> Option<(u64, Lane)> {
    let picked = log.pick_batch(pick, 1_000)?;
    Some((picked.batch.records.first()?.seq, picked.lane))
}

fn window<D: WriteDisk>(log: &mut Log<D>, records: std::ops::Range<u64>) {
    log.append(vec![group(records)], 10);
    log.seal(20);
}

/// What an earlier process left is backlog, oldest first; what this one has closed is fresh, newest
/// first, and within a window in its order.
#[test]
fn fresh_windows_come_before_the_backlog() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    window(&mut log, 0..1);
    window(&mut log, 1..2);
    log.close(30);
    let mut log = open(&disk);
    window(&mut log, 2..3);
    window(&mut log, 3..16);
    assert_eq!(pick(&mut log, Pick::FreshFirst), Some((3, Lane::Fresh)));
    assert_eq!(pick(&mut log, Pick::Oldest), Some((0, Lane::Backlog)));
    assert_eq!(pick(&mut log, Pick::FreshOnly), Some((13, Lane::Fresh)), "the rest of the window");
    assert_eq!(pick(&mut log, Pick::FreshOnly), Some((2, Lane::Fresh)));
    assert_eq!(pick(&mut log, Pick::FreshOnly), None);
    assert_eq!(pick(&mut log, Pick::FreshFirst), Some((1, Lane::Backlog)));
    assert_eq!(pick(&mut log, Pick::FreshFirst), None);
}

/// Windows that have left the ring are backlog, but the newest one, however large it is.
#[test]
fn windows_that_left_the_memory_are_backlog() {
    let mut log = Log::open(MemoryDisk::new().open(), LogLimits { ring_bytes_max: 0, ..LIMITS });
    let log = log.as_mut().expect("a memory disk opens");
    for n in 0..3 {
        window(log, n..n + 1);
    }
    assert_eq!(pick(log, Pick::FreshOnly), Some((2, Lane::Fresh)));
    assert_eq!(pick(log, Pick::FreshOnly), None);
    assert_eq!(pick(log, Pick::FreshFirst), Some((0, Lane::Backlog)));
}

/// Q2: batches are delivered in any order, over a restart too, and none comes again.
#[test]
fn both_lanes_deliver_every_record_once() {
    let disk = MemoryDisk::new();
    let mut backend = Backend::default();
    for start in 0..4 {
        let mut log = open(&disk);
        for n in 0..3 {
            let first = (start * 3 + n) * 25;
            window(&mut log, first..first + 25);
            for pick in [Pick::FreshFirst, Pick::Oldest] {
                let Some(Picked { batch, .. }) = log.pick_batch(pick, 1_000) else { continue };
                backend.take(&batch);
                log.delivered(batch.key, batch.records.len() as u64, &[]).unwrap();
            }
        }
        log.close(40);
    }
    let mut log = open(&disk);
    drain(&mut log, &mut backend);
    assert_all(&backend, 0..300);
    assert_eq!(log.status().segments, 0);
}

/// What a look for the next batch costs does not grow with the backlog.
#[test]
fn many_delivered_batches_are_stepped_over() {
    let mut row = SegmentRow { batches: 9, ..SegmentRow::empty(1, 0, 0) };
    for batch in [0, 1, 2, 5, 8] {
        row.deliver(batch);
    }
    assert_eq!(row.pending().collect::<Vec<_>>(), [3, 4, 6, 7]);
    let mut row = SegmentRow { batches: u32::MAX, ..row };
    row.delivered = vec![(0, u32::MAX - 2)];
    assert_eq!(row.pending().next(), Some(u32::MAX - 1));
    row.deliver(u32::MAX - 1);
    assert!(row.is_done());
}

/// A disk that gives no segment is asked for each of them once, also by a clock at its end.
#[test]
fn a_disk_that_gives_nothing_ends_the_look() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    window(&mut log, 0..1);
    window(&mut log, 1..2);
    log.close(30);
    let mut log = open(&disk);
    disk.make_unreadable("segments", std::io::ErrorKind::Other);
    assert_eq!(log.next_batch(i64::MAX), None);
    disk.heal();
    let mut backend = Backend::default();
    drain(&mut log, &mut backend);
    assert_all(&backend, 0..2);
}
