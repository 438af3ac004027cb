//! Keys of requests, which must be known as long as their records are anywhere.

use super::*;

/// Records that come with the key of a request.
fn keyed(name: &str, numbers: std::ops::Range<u64>) -> Group {
    let position = Position {
        collector: format!("intake/{name}"),
        bytes: Bytes::from_static(b"receipt"),
        keep_until_ms: Some(i64::MAX),
    };
    Group { position: Some(position), ..group(numbers) }
}

/// A client with a key: it sends its records again as long as the queue does not know the key.
fn send(log: &mut Log<MemoryDisk>, name: &str, n: u64, now_ms: i64) {
    if log.position(&format!("intake/{name}")).is_none() {
        log.append(vec![keyed(name, n..n + 1)], now_ms);
    }
}

/// Q7: records that are only in memory are not delivered before their key is on disk. Delivered
/// earlier, a kill would leave a key that nobody knows, and the repeated request would be stored
/// a second time. Windows without keys are delivered meanwhile.
#[test]
fn a_key_that_only_memory_has_keeps_its_records_back() {
    for killed in [false, true] {
        let (disk, mut backend) = (MemoryDisk::new(), Backend::default());
        let mut log = open(&disk);
        log.append(vec![group(0..2)], 1_000);
        disk.fill_after(0);
        send(&mut log, "a", 2, 2_000);
        assert!(log.disk_error().is_some());
        log.seal(3_000);
        log.append(vec![group(3..5)], 4_000);
        log.seal(5_000);
        drain(&mut log, &mut backend);
        assert!(!backend.payloads().contains(&&payload(2)), "its key is not on disk");
        assert!(backend.payloads().contains(&&payload(4)), "no key waits with this one");
        if killed {
            drop(log);
            disk.heal();
            log = open(&disk);
        }
        disk.heal();
        send(&mut log, "a", 2, 90_000);
        log.append(vec![group(5..6)], 90_001);
        log.seal(90_002);
        assert_eq!(log.disk_error(), None);
        drain(&mut log, &mut backend);
        assert_all(&backend, 0..6);
    }
}

/// Q7: the key of records that memory had no room for is forgotten with them: the repeated request
/// is a new one, and not a duplicate of what is lost.
#[test]
fn a_key_goes_with_records_that_are_evicted_from_memory() {
    for sealed in [false, true] {
        let disk = MemoryDisk::new();
        let limits = LogLimits { volatile_bytes_max: 4 << 10, ..LIMITS };
        let mut log = Log::open(disk.open(), limits).unwrap();
        disk.fill_after(0);
        log.append(vec![keyed("a", 0..1)], 1_000);
        if sealed {
            log.seal(2_000);
        }
        log.append(vec![group(1..30)], 3_000);
        assert!(log.counts().evicted_records > 0);
        assert_eq!(log.position("intake/a"), None);
        disk.heal();
        log.seal(90_000);
        drop(log);
        assert_eq!(open(&disk).position("intake/a"), None);
    }
}
