//! How fast the queue appends durably, against the physical limit: an append-only file of zstd
//! blocks with CRC32C and one fdatasync per group. Both in turn, in one run.

#![allow(clippy::cast_precision_loss, reason = "measurements")]

mod common;

use std::io::Write;

use common::{device_bytes, directory, median, records, result, setting, timed};
use pganalytics::queue::{Group, NewRecord};

struct Case {
    group_records: u64,
    groups: u64,
}

fn main() {
    let rounds = setting("BENCH_ROUNDS", 5);
    for case in
        [Case { group_records: 100, groups: 400 }, Case { group_records: 1_000, groups: 60 }]
    {
        let groups: Vec<Vec<NewRecord>> = (0..case.groups)
            .map(|n| records(n * case.group_records..(n + 1) * case.group_records))
            .collect();
        let logical: usize = groups.iter().flatten().map(|record| record.payload.len()).sum();
        let mb_s = |seconds: f64| logical as f64 / 1e6 / seconds;
        let (mut queue, mut file, mut amplification) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            file.push(mb_s(append_to_file(&groups)));
            let before = device_bytes();
            queue.push(mb_s(append_to_queue(&groups)));
            amplification.push((device_bytes() - before) as f64 / logical as f64);
        }
        let ratios = queue.iter().zip(&file).map(|(queue, file)| queue / file).collect();
        let n = case.group_records;
        result(&format!("queue_append_mb_s_{n}"), median(queue), "MB/s");
        result(&format!("file_append_mb_s_{n}"), median(file), "MB/s");
        result(&format!("queue_append_ratio_{n}"), median(ratios), "1");
        result(&format!("queue_write_amplification_{n}"), median(amplification), "1");
    }
}

fn append_to_queue(groups: &[Vec<NewRecord>]) -> f64 {
    let dir = directory();
    let mut log = common::queue_config(dir.path()).open_log().expect("the queue opens");
    let groups: Vec<Group> = groups.iter().map(|records| Group::of(records.clone())).collect();
    let ((), took) = timed(|| {
        for group in groups {
            log.append(vec![group], 1_000);
        }
    });
    took.as_secs_f64()
}

fn append_to_file(groups: &[Vec<NewRecord>]) -> f64 {
    let dir = directory();
    let mut file = std::fs::File::create(dir.path().join("log")).expect("the file is made");
    let mut zstd1 = zstd::bulk::Compressor::new(1).expect("a compressor");
    let ((), took) = timed(|| {
        for group in groups {
            for block in group.chunks(240) {
                let mut raw = Vec::new();
                for record in block {
                    let length = u32::try_from(record.payload.len()).expect("small");
                    raw.extend_from_slice(&length.to_le_bytes());
                    raw.extend_from_slice(&record.payload);
                }
                let packed = zstd1.compress(&raw).expect("compression into memory");
                let crc = crc32c::crc32c(&packed);
                file.write_all(&crc.to_le_bytes()).expect("the file takes it");
                file.write_all(&packed).expect("the file takes it");
            }
            file.sync_data().expect("the file syncs");
        }
    });
    took.as_secs_f64()
}
