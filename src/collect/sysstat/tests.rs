use serde_json::{Value, json};

use super::*;
use crate::metric::validate;

const NOW: &str = "2026-03-01T12:00:00Z";

/// A host of two CPUs, two disks and one interface, as captured, shortened.
const BEFORE: &[(&str, &str)] = &[
    (
        "stat",
        "cpu  1000 100 500 8000 200 0 100 100 300 50\n\
         cpu0 500 50 250 4000 100 0 50 50 150 25\n\
         cpu1 500 50 250 4000 100 0 50 50 150 25\n\
         intr 5 1 2\nctxt 10000\nbtime 1700000000\nprocesses 500\nprocs_running 2\n\
         procs_blocked 1\nsoftirq 5 1 2\n",
    ),
    ("loadavg", "0.15 1.20 2.05 2/371 4242\n"),
    (
        "meminfo",
        "MemTotal:        8388608 kB\nMemFree:         1048576 kB\nMemAvailable:    6291456 kB\n\
         Buffers:          102400 kB\nCached:          3145728 kB\nSwapCached:         2048 kB\n\
         Active:                0 kB\nInactive:              0 kB\nSwapTotal:       2097152 kB\n\
         SwapFree:        1048576 kB\nDirty:             10240 kB\nWriteback:             0 kB\n\
         AnonPages:             0 kB\nMapped:                0 kB\nShmem:            524288 kB\n\
         Slab:                  0 kB\nSReclaimable:     204800 kB\nPageTables:            0 kB\n\
         CommitLimit:           0 kB\nCommitted_AS:          0 kB\nVmallocTotal:          0 kB\n\
         VmallocUsed:           0 kB\nVmallocChunk:          0 kB\nHugePages_Total:      10\n\
         HugePages_Free:        4\nHugePages_Rsvd:        1\nHugePages_Surp:        0\n\
         Hugepagesize:       2048 kB\n",
    ),
    ("uptime", "1000.50 1500.25\n"),
    (
        "diskstats",
        "   7       0 loop0 9 0 9 0 0 0 0 0 0 0 0\n\
         \x20  8       0 sda 100 0 2048 500 50 0 4096 4294967200 0 4294967000 1000 0 0 0 0 0 0\n\
         \x20  8       1 sda1 100 0 2048 500 50 0 4096 900 0 800 1000 0 0 0 0 0 0\n\
         \x20 259       0 nvme0n1 5 0 8 1 0 0 0 0 0 1 1\n",
    ),
    (
        "net/dev",
        "Inter-|   Receive                                                |  Transmit\n \
         face |bytes    packets errs drop fifo frame compressed multicast|\
         bytes    packets errs drop fifo colls carrier compressed\n    \
         lo: 999 9 0 0 0 0 0 0 999 9 0 0 0 0 0 0\n  \
         eth0: 1000 10 1 2 0 0 0 0 2000 20 3 4 0 0 0 0\n\
         veth1: 5 5 0 0 0 0 0 0 5 5 0 0 0 0 0 0\n",
    ),
    (
        "pressure/io",
        "some avg10=1.50 avg60=0.50 avg300=0.00 total=1000000\n\
         full avg10=0.10 avg60=0.05 avg300=0.00 total=500000\n",
    ),
    (
        "vmstat",
        "nr_free_pages 9\npgpgin 3\npgpgout 4\npswpin 5\npswpout 6\npgmajfault 7\noom_kill 0\n",
    ),
    ("pressure/cpu", "some avg10=2.00 avg60=0.00 avg300=0.00 total=0\n"),
];

/// Ten seconds later.
const AFTER: &[(&str, &str)] = &[
    (
        "stat",
        "cpu  1400 200 600 9300 250 0 110 140 400 80\n\
         cpu0 700 100 300 4650 125 0 55 70 150 25\n\
         cpu1 700 100 300 4650 125 0 55 70 150 25\n\
         ctxt 30000\nbtime 1700000000\nprocesses 500\nprocs_running 3\nprocs_blocked 0\n",
    ),
    (
        "diskstats",
        "   8       0 sda 200 0 22528 1500 150 0 24576 204 0 2704 6000 0 0 0 0 0 0\n\
         \x20 259       0 nvme0n1 5 0 8 1 0 0 0 0 0 1 1\n\
         \x20 8       16 sdb 7 0 70 1 1 0 10 1 0 1 1\n",
    ),
    (
        "net/dev",
        "h\nh\n  eth0: 11000 110 1 2 0 0 0 0 22000 120 3 4 0 0 0 0\n\
         \x20 eth1: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n",
    ),
    (
        "pressure/io",
        "some avg10=1.50 avg60=0.50 avg300=0.00 total=3000000\n\
         full avg10=0.10 avg60=0.05 avg300=0.00 total=1500000\n",
    ),
];

struct Host {
    root: tempfile::TempDir,
    notices: Notices,
}

impl Host {
    fn new(files: &[(&str, &str)]) -> Self {
        let host =
            Self { root: tempfile::tempdir().expect("a directory"), notices: Notices::new() };
        host.write(files);
        host
    }

    fn write(&self, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = self.root.path().join(name);
            fs_err::create_dir_all(path.parent().expect("has a parent")).expect("a directory");
            fs_err::write(path, text).expect("a file");
        }
    }

    fn read(&mut self) -> Reading {
        Reading::take(self.root.path(), &mut self.notices)
    }
}

fn json_of(previous: Option<&Reading>, current: &Reading) -> Value {
    let now = NOW.parse().expect("a time");
    let value = document(&metric(now, previous, current)).expect("encodes");
    validate(&value, now).unwrap_or_else(|invalid| panic!("{invalid} in {value}"));
    value
}

fn two_readings(change: &[(&str, &str)]) -> Value {
    let mut host = Host::new(BEFORE);
    let before = host.read();
    host.write(AFTER);
    host.write(change);
    let mut after = host.read();
    after.at = before.at + Duration::from_secs(10);
    json_of(Some(&before), &after)
}

/// C44: each number from two readings, against numbers worked out by hand.
#[test]
fn rates_come_from_two_readings() {
    let metric = two_readings(&[]);
    // 2000 ticks passed: 400 user (guest inside), 100 nice, 100 system, 1300 idle, 50 iowait,
    // 0 irq, 10 softirq, 40 steal.
    assert_eq!(
        metric["cpu"],
        json!({
            "user": 20.0, "nice": 5.0, "system": 5.0, "idle": 65.0, "iowait": 2.5, "irq": 0.0,
            "softirq": 0.5, "steal": 2.0, "load_1m": 0.15, "load_5m": 1.2, "load_15m": 2.05,
            "cores": 2, "user_s": 14.0, "nice_s": 2.0, "system_s": 6.0, "idle_s": 93.0,
            "iowait_s": 2.5, "irq_s": 0.0, "softirq_s": 1.1, "steal_s": 1.4,
        })
    );
    assert_eq!(metric["boot_at"], "2023-11-14T22:13:20.000Z");
    assert_eq!(
        metric["paging"],
        json!({
            "in_bytes": 3_072, "out_bytes": 4_096, "swap_in_pages": 5, "swap_out_pages": 6,
            "major_faults": 7, "oom_kills": 0,
        })
    );
    assert_eq!(metric["context_switches_s"], 2000.0);
    assert_eq!(metric["processes"], json!({"running": 3, "blocked": 0, "total": 371}));
    assert_eq!(metric["uptime_s"], 1000.5);
    assert_eq!(
        metric["memory"],
        json!({
            "total_mb": 8192, "free_mb": 1024, "cached_mb": 3072, "used_mb": 2048,
            "available_mb": 6144, "buffers_mb": 100, "swap_total_mb": 2048, "swap_used_mb": 1024,
            "dirty_mb": 10, "huge_pages_total": 10, "huge_pages_free": 4,
            "huge_pages_reserved": 1, "huge_page_size_bytes": 2_097_152,
        })
    );
}

/// C44 for what there are several of: disks, interfaces, resources.
#[test]
fn rates_of_every_disk_and_interface_come_from_two_readings() {
    let metric = two_readings(&[]);
    // The write time and the busy time wrapped at 2^32 ms: 300 ms and 3000 ms passed.
    assert_eq!(
        metric["disk_io"],
        json!([
            {
                "device": "sda", "read_iops": 10.0, "write_iops": 10.0, "read_mb_s": 1.0,
                "write_mb_s": 1.0, "read_await_ms": 10.0, "write_await_ms": 3.0,
                "queue_depth": 0.5, "busy_percent": 30.0,
                "read_ops": 200, "write_ops": 150, "read_sectors": 22528, "write_sectors": 24576,
                "read_bytes": 11_534_336, "write_bytes": 12_582_912, "read_ms": 1500,
                "write_ms": 204, "busy_ms": 2704,
            },
            {
                "device": "nvme0n1", "read_iops": 0.0, "write_iops": 0.0, "read_mb_s": 0.0,
                "write_mb_s": 0.0, "queue_depth": 0.0, "busy_percent": 0.0,
                "read_ops": 5, "write_ops": 0, "read_sectors": 8, "write_sectors": 0,
                "read_bytes": 4096, "write_bytes": 0, "read_ms": 1, "write_ms": 0, "busy_ms": 1,
            },
            // A disk that appeared in between has counters and no rates.
            {
                "device": "sdb", "read_ops": 7, "write_ops": 1, "read_sectors": 70,
                "write_sectors": 10, "read_bytes": 35840, "write_bytes": 5120, "read_ms": 1,
                "write_ms": 1, "busy_ms": 1,
            },
        ])
    );
    assert_eq!(
        metric["network"],
        json!([
            {
                "interface": "eth0", "rx_bytes_s": 1000.0, "tx_bytes_s": 2000.0,
                "rx_packets_s": 10.0, "tx_packets_s": 10.0, "rx_bytes": 11000,
                "tx_bytes": 22000, "rx_packets": 110, "tx_packets": 120,
                "rx_errors": 1, "tx_errors": 3, "rx_drops": 2, "tx_drops": 4,
            },
            {
                "interface": "eth1", "rx_bytes": 1, "tx_bytes": 1, "rx_packets": 1,
                "tx_packets": 1, "rx_errors": 0, "tx_errors": 0, "rx_drops": 0, "tx_drops": 0,
            },
        ])
    );
    assert_eq!(
        metric["pressure"],
        json!({
            "cpu": {"some_percent": 0.0, "some_avg10": 2.0, "some_avg60": 0.0, "some_us": 0},
            "io": {
                "some_percent": 20.0, "full_percent": 10.0, "some_avg10": 1.5, "some_avg60": 0.5,
                "some_us": 3_000_000, "full_us": 1_500_000,
            },
        })
    );
}

#[test]
fn counters_that_fall_give_no_rates() {
    // A CPU went away: idle is more than 3 s less than before.
    let metric = two_readings(&[(
        "stat",
        "cpu 1400 200 600 7000 250 0 110 140 400 80\nctxt 1\nbtime 1\nprocesses 1\n",
    )]);
    assert_eq!(metric["cpu"].get("user"), None);
    assert_eq!(metric["cpu"]["load_1m"], 0.15);
    assert_eq!(metric.get("context_switches_s"), None);
    // iowait may fall a little and counts as unchanged.
    let metric = two_readings(&[(
        "stat",
        "cpu 1100 100 500 8000 199 0 100 100 300 50\nctxt 1\nbtime 1\nprocesses 1\n",
    )]);
    assert_eq!((&metric["cpu"]["user"], &metric["cpu"]["iowait"]), (&json!(100.0), &json!(0.0)));
    // Another disk has taken the name.
    let metric = two_readings(&[("diskstats", "8 0 sda 1 0 1 1 1 0 1 1 0 1 1\n")]);
    assert_eq!(
        metric["disk_io"],
        json!([{
            "device": "sda", "read_ops": 1, "write_ops": 1, "read_sectors": 1, "write_sectors": 1,
            "read_bytes": 512, "write_bytes": 512, "read_ms": 1, "write_ms": 1, "busy_ms": 1,
        }])
    );
    let metric = two_readings(&[("net/dev", "h\nh\neth0: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n")]);
    assert_eq!(metric["network"][0].get("rx_bytes_s"), None);
}

#[test]
fn parts_that_cannot_be_read_are_absent() {
    let mut host =
        Host::new(&[("uptime", "5.00 1.00\n"), ("stat", "nonsense\n"), ("loadavg", "1\n")]);
    let reading = host.read();
    assert_eq!(
        json_of(None, &reading),
        json!({"type": "sysstat", "timestamp": "2026-03-01T12:00:00.000Z", "uptime_s": 5.0})
    );
    let mut empty = Host::new(&[]);
    assert!(empty.read().is_empty());
}

#[test]
fn only_whole_disks_count() {
    let check = |names: &[&str], whole: bool| {
        for name in names {
            assert_eq!(disk::is_whole(name), whole, "{name}");
        }
    };
    check(
        &["sda", "sdaa", "vda", "xvda", "hdb", "nvme0n1", "mmcblk0", "dm-0", "md127", "nbd0"],
        true,
    );
    check(
        &["sda1", "sdaa15", "vda2", "xvda1", "hdb3", "nvme0n1p1", "nvme10n1p12", "mmcblk0p1"],
        false,
    );
    check(&["loop0", "ram15", "zram0", "fd0", "sr0"], false);
}

#[test]
fn memory_without_available_is_what_free_counted() {
    let meminfo = BEFORE.iter().find(|(name, _)| *name == "meminfo").expect("there").1;
    let old: String = meminfo
        .lines()
        .filter(|l| !l.starts_with("MemAvailable"))
        .fold(String::new(), |text, line| text + line + "\n");
    let mut host = Host::new(&[("meminfo", &old)]);
    let metric = json_of(None, &host.read());
    // 8192 - 1024 - 100 - 3072 - 200 + 512
    assert_eq!(metric["memory"]["used_mb"], 4308);
    assert_eq!(metric["memory"].get("available_mb"), None);
}

/// C46: the first collection already carries rates, and the host's own time.
#[tokio::test(start_paused = true)]
async fn first_collection_waits_for_a_second_reading() {
    let host = Host::new(BEFORE);
    let config = SysstatConfig { proc_root: host.root.path().into(), ..SysstatConfig::default() };
    let mut collector = SysstatCollector::new(config);
    let now: Timestamp = NOW.parse().expect("a time");
    let before = tokio::time::Instant::now();
    let collected = collector.collect(now).await.expect("collects");
    assert_eq!(before.elapsed(), Duration::from_millis(500));
    assert_eq!(collected.metrics[0]["timestamp"], "2026-03-01T12:00:00.500Z");

    let missing = SysstatConfig { proc_root: "/nonexistent".into(), ..SysstatConfig::default() };
    let error = SysstatCollector::new(missing).collect(now).await.expect_err("nothing there");
    assert!(error.to_string().contains("hint:"), "{error}");
}
