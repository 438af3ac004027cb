//! The queue's thread: what it does by itself however many commands come, what it does while the
//! state cannot be read, and what its end looks like from outside.

use std::io;

use super::*;
use crate::queue::thread;

/// Longer than anything here takes, shorter than a person waits.
const LIMIT: Duration = Duration::from_secs(60);

/// Pushes every 20 ms until the queue is as `reached` says: the pauses between two are far shorter
/// than those between two rounds of upkeep.
async fn push_until(queue: &Queue, records: u64, what: &str, reached: fn(&QueueStatus) -> bool) {
    let pushing = async {
        for n in 0.. {
            let record = |n| NewRecord { payload: noise(n), ..new_record(n) };
            let records = (n * records..(n + 1) * records).map(record).collect();
            let group = Group { haste: Haste::Now, ..Group::of(records) };
            queue.append(group).await.unwrap();
            if n % 10 == 9 {
                queue.seal().await.unwrap();
            }
            if reached(&queue.status().await.unwrap()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, pushing).await.expect(what);
}

fn new_record(n: u64) -> NewRecord {
    let at_ms = i64::try_from(n).unwrap();
    NewRecord { kind: "sysstat".to_owned(), at_ms, payload: Bytes::new() }
}

/// What does not compress.
fn noise(n: u64) -> Bytes {
    let mut random = fastrand::Rng::with_seed(n);
    (0..200).map(|_| random.u8(..)).collect()
}

async fn end(queue: Queue, thread: QueueThread) {
    queue.close().await.unwrap();
    tokio::task::spawn_blocking(|| thread.join()).await.unwrap();
}

/// Age, merging and syncs do not wait for a pause between two pushes.
#[tokio::test]
async fn upkeep_goes_on_under_load() {
    let budget = Budget { age_max: Some(Duration::from_secs(1)), ..Budget::UNBOUNDED };
    let log = Log::open(MemoryDisk::new().open(), LogLimits { budget, ..LIMITS }).unwrap();
    let (queue, thread) = Queue::start(log, Duration::ZERO).unwrap();
    push_until(&queue, 1, "the old go", |status| status.counts.evicted_records > 0).await;
    end(queue, thread).await;
    let (queue, thread) = Queue::start(open(&MemoryDisk::new()), Duration::ZERO).unwrap();
    push_until(&queue, 1, "windows are merged", |status| status.counts.merged_segments > 0).await;
    end(queue, thread).await;
}

/// `on_full = "thin"` thins, whatever comes meanwhile: nothing is evicted before.
#[tokio::test]
async fn thinning_keeps_up_with_the_load() {
    let budget = Budget { on_full: OnFull::Thin, ..Budget::UNBOUNDED };
    let limits = LogLimits { budget, segment_bytes_max: 16 << 10, ..LIMITS };
    let bytes_max = limits.reserve_bytes() + (64 << 10);
    let limits = LogLimits { budget: Budget { bytes_max, ..budget }, ..limits };
    let log = Log::open(MemoryDisk::new().open(), limits).unwrap();
    let (queue, thread) = Queue::start(log, Duration::ZERO).unwrap();
    push_until(&queue, 40, "it thins", |status| status.counts.thinned_records > 500).await;
    let counts = queue.status().await.unwrap().counts;
    assert_eq!(counts.evicted_records, counts.thinned_records, "nothing else went");
    end(queue, thread).await;
}

/// Q12: while the state cannot be read, collectors go on into memory and programs are told to come
/// again; then everything goes on where it was, with numbers after those that were given.
#[tokio::test]
async fn a_state_that_cannot_be_read_is_waited_for_by_the_thread() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    log.append(vec![group(0..5)], 10);
    log.seal(20);
    drop(log);
    disk.make_unreadable("state", io::ErrorKind::PermissionDenied);
    let error = Log::open(disk.open(), LIMITS).unwrap_err();
    let opened = disk.open();
    let again = move || Log::open(opened.open(), LIMITS);
    let limits = (Duration::ZERO, LIMITS);
    let (queue, thread) =
        thread::start_waiting(std::path::Path::new("q"), (error, again), limits).unwrap();
    let linger = queue.append(group(5..8)).await.unwrap();
    assert_eq!((linger.home, linger.records), (Home::MemoryOnly, 3));
    let now = Group { haste: Haste::Now, ..group(90..91) };
    assert_eq!(queue.append(now).await, Err(AppendError::NotReady));
    assert_eq!(queue.position("pg_log").await, Err(PositionError::NotReady));
    assert!(queue.next_batch().await.unwrap().is_none());
    let status = queue.status().await.unwrap();
    assert_eq!(status.records, 3);
    assert!(status.disk_error.unwrap().contains("cannot be read"));
    // More than memory may hold: the oldest go, and the ledger will have them.
    let many = group(8..2_000);
    queue.append(many).await.unwrap();
    disk.heal();
    let back = async {
        while queue.status().await.unwrap().disk_error.is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, back).await.expect("it goes on by itself");
    assert_eq!(queue.position("pg_log").await, Ok(None));
    queue.seal().await.unwrap();
    let mut seqs = BTreeSet::new();
    while let Some(batch) = queue.next_batch().await.unwrap() {
        seqs.extend(batch.records.iter().map(|record| record.seq));
        queue.delivered(batch.key, batch.records.len() as u64, vec![]).await.unwrap();
    }
    let losses = queue.losses().await.unwrap();
    let lost: BTreeSet<u64> = losses.iter().flat_map(|loss| loss.from..=loss.to).collect();
    assert!(losses.iter().all(|loss| loss.reason == LossReason::Evict));
    assert_eq!(&seqs | &lost, (0..2_000).collect(), "{losses:?}");
    assert_eq!(seqs.intersection(&lost).count(), 0);
    end(queue, thread).await;
}

/// Q7: a thread that panics is seen from outside, and answers nobody for ever.
#[tokio::test]
async fn the_end_of_the_thread_is_seen() {
    let (commands, receiver) = mpsc::channel(1);
    let queue = Queue::new(commands, None);
    let thread = thread::spawn(async move {
        let _held = receiver;
        tokio::task::yield_now().await;
        panic!("a mistake in the log");
    });
    tokio::time::timeout(LIMIT, queue.ended()).await.expect("it ends");
    assert!(queue.status().await.is_err());
    tokio::task::spawn_blocking(|| thread.unwrap().join()).await.unwrap();
}

/// `on_full = "evict_newest"`: a program that is told to come again still has its metrics; they are
/// not counted as lost.
#[tokio::test]
async fn a_refused_request_is_no_loss() {
    let budget = Budget { on_full: OnFull::EvictNewest, ..Budget::UNBOUNDED };
    let bytes_max = LIMITS.reserve_bytes();
    let limits = LogLimits { budget: Budget { bytes_max, ..budget }, ..LIMITS };
    let log = Log::open(MemoryDisk::new().open(), limits).unwrap();
    let (queue, thread) = Queue::start(log, Duration::ZERO).unwrap();
    queue.append(group(0..5)).await.unwrap();
    queue.seal().await.unwrap();
    for _ in 0..3 {
        let now = Group { haste: Haste::Now, ..group(5..6) };
        assert_eq!(queue.append(now).await, Err(AppendError::Full));
    }
    assert_eq!(queue.losses().await.unwrap(), []);
    assert_eq!(queue.append(group(6..7)).await.unwrap().home, Home::Evicted);
    assert_eq!(queue.losses().await.unwrap().len(), 1);
    end(queue, thread).await;
}
