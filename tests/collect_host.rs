//! `sysstat` and `disk_usage` on this host; the second sources are `df`, `/sys` and `/proc`.

#![allow(clippy::cast_precision_loss, reason = "tolerances are wide")]

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pganalytics::clock;
use pganalytics::collect::Collector;
use pganalytics::collect::disk_usage::{DiskUsageCollector, DiskUsageConfig};
use pganalytics::collect::pg_log::{PgLogCollector, PgLogConfig, StartAt};
use pganalytics::collect::pg_stats::{PgStatsCollector, PgStatsConfig};
use pganalytics::collect::postgres::PgConnection;
use pganalytics::collect::sysstat::{SysstatCollector, SysstatConfig};
use pganalytics::metric::envelope::{EnvelopeHead, PushRequest};
use pganalytics::metric::{admit, validate};
use serde_json::Value;

use crate::support::postgres::shared;

async fn one(collector: &mut impl Collector) -> Value {
    let collected = collector.collect(clock::now()).await.expect("collects");
    let [metric] = collected.metrics.as_slice() else { panic!("one metric: {collected:?}") };
    validate(metric, clock::now()).unwrap_or_else(|invalid| panic!("{invalid} in {metric}"));
    metric.clone()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

fn read(path: &str) -> String {
    fs_err::read_to_string(path).expect("read").trim().to_owned()
}

/// What df prints for a mount: size, used, available, percent, inodes.
fn df() -> BTreeMap<String, Vec<u64>> {
    let columns = "--output=size,used,avail,pcent,itotal,target";
    let output = Command::new("df").args(["-B1", columns]).output().expect("run df");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let row = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (mount, numbers) = fields.split_last()?;
        let number = |field: &&str| field.trim_end_matches('%').parse().unwrap_or(0);
        Some(((*mount).to_owned(), numbers.iter().map(number).collect()))
    };
    text.lines().skip(1).filter_map(row).collect()
}

/// C44: sizes are those of df, exactly; what is used may change in between by a little.
#[tokio::test]
async fn file_systems_are_those_of_df() {
    let mut collector = DiskUsageCollector::new(DiskUsageConfig::default());
    let metric = one(&mut collector).await;
    let df = df();
    let filesystems = metric["filesystems"].as_array().expect("a list");
    assert!(filesystems.iter().any(|f| f["mount"] == "/"), "{filesystems:?}");
    for filesystem in filesystems {
        let mount = filesystem["mount"].as_str().expect("text");
        // Mounts of other tests may come and go.
        let Some([size, used, available, percent, inodes]) = df.get(mount).map(Vec::as_slice)
        else {
            continue;
        };
        assert_eq!(filesystem["total_bytes"], *size, "{filesystem}");
        let slack = *size as f64 * 0.02 + 1e8;
        assert!((number(&filesystem["used_bytes"]) - *used as f64).abs() < slack, "{filesystem}");
        let ours = number(&filesystem["available_bytes"]);
        assert!((ours - *available as f64).abs() < slack, "{filesystem}");
        let ours = number(&filesystem["percent_used"]);
        // df rounds up.
        assert!((ours.ceil() - *percent as f64).abs() <= 2.0, "{ours} {percent}");
        if *inodes > 0 {
            assert_eq!(filesystem["inodes_total"], *inodes, "{filesystem}");
        }
        let gib = number(&filesystem["total_gb"]);
        assert!((gib - *size as f64 / f64::from(1 << 30)).abs() <= 0.051, "{filesystem}");
    }
}

/// C44, C46: the host's numbers against other files of the kernel.
#[tokio::test]
async fn host_numbers_are_those_of_the_kernel() {
    let mut collector = SysstatCollector::new(SysstatConfig::default());
    let before = clock::now();
    let metric = one(&mut collector).await;
    let at: jiff::Timestamp = metric["timestamp"].as_str().expect("text").parse().expect("a time");
    assert!(at.as_millisecond() >= before.as_millisecond() && at <= clock::now(), "{metric}");

    let cpu = metric["cpu"].as_object().expect("an object");
    let modes = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];
    let sum: f64 = modes.iter().map(|mode| number(&cpu[*mode])).sum();
    assert!((sum - 100.0).abs() < 0.1, "{cpu:?}");
    let online = std::thread::available_parallelism().expect("known").get() as u64;
    assert!(cpu["cores"].as_u64() >= Some(online), "{cpu:?}");

    let system = rustix::system::sysinfo();
    let total = system.totalram as f64 * f64::from(system.mem_unit) / 1_048_576.0;
    let memory = &metric["memory"];
    let total_mb = number(&memory["total_mb"]);
    assert!((total_mb - total).abs() < 2.0, "{memory} {total}");
    assert!(number(&memory["used_mb"]) <= total_mb && number(&memory["free_mb"]) <= total_mb);

    let uptime: f64 =
        read("/proc/uptime").split(' ').next().expect("text").parse().expect("number");
    let ours = number(&metric["uptime_s"]);
    assert!(ours <= uptime && uptime - ours < 30.0, "{ours} {uptime}");

    for disk in metric["disk_io"].as_array().expect("a list") {
        let device = disk["device"].as_str().expect("text");
        // Another layout of the same counters.
        let stat = read(&format!("/sys/block/{device}/stat"));
        let counters: Vec<u64> = stat.split_whitespace().map(|f| f.parse().expect("n")).collect();
        let places = [("read_ops", 0), ("read_sectors", 2), ("write_ops", 4), ("write_sectors", 6)];
        for (name, place) in places {
            let ours = disk[name].as_u64().expect("a number");
            assert!(ours <= counters[place], "{name} of {disk}: {counters:?}");
        }
        assert!(disk["read_iops"].is_number(), "the first metric has rates: {disk}");
    }
    for interface in metric["network"].as_array().expect("a list") {
        let name = interface["interface"].as_str().expect("text");
        let errors = read(&format!("/sys/class/net/{name}/statistics/rx_errors"));
        assert!(interface["rx_errors"].as_u64() <= errors.parse().ok(), "{interface}");
        assert!(interface["rx_bytes_s"].is_number(), "{interface}");
    }
}

/// C44: a CPU that a thread keeps busy shows as busy.
#[tokio::test]
async fn busy_cpu_shows_as_busy() {
    let mut collector = SysstatCollector::new(SysstatConfig::default());
    one(&mut collector).await;
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    let burner = std::thread::spawn(move || {
        let mut n = 0_u64;
        while !seen.load(Ordering::Relaxed) {
            n = std::hint::black_box(n.wrapping_mul(31).wrapping_add(1));
        }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let metric = one(&mut collector).await;
    stop.store(true, Ordering::Relaxed);
    burner.join().expect("joins");
    let cpu = &metric["cpu"];
    let idle = number(&cpu["idle"]) + number(&cpu["iowait"]);
    let cores = number(&cpu["cores"]);
    // One of the CPUs was busy; half of it is enough on a host that others use too.
    assert!(idle < 100.0 - 50.0 / cores, "{cpu}");
}

/// C45: metrics of all four types travel in one push and are valid at the other end.
#[tokio::test]
async fn all_four_types_fit_in_one_push() {
    let server = shared(18);
    let host = server.socket_dir().display().to_string();
    let connection = PgConnection { host, ..PgConnection::default() };
    let mut pg_stats = PgStatsCollector::new(PgStatsConfig {
        connection: connection.clone(),
        ..PgStatsConfig::default()
    });
    let start_at = StartAt::Beginning;
    let config = PgLogConfig { connection, start_at, ..PgLogConfig::default() };
    let mut pg_log = PgLogCollector::new(config, None);
    let metrics = [
        one(&mut SysstatCollector::new(SysstatConfig::default())).await,
        one(&mut DiskUsageCollector::new(DiskUsageConfig::default())).await,
        one(&mut pg_stats).await,
        one(&mut pg_log).await,
    ];
    let encoded: Vec<String> = metrics.iter().map(Value::to_string).collect();
    let head =
        EnvelopeHead { collector_id: "c", hostname: "h", timestamp: clock::now(), agent: None };
    let mut body = Vec::new();
    head.encode(&encoded, &mut body);
    let push = PushRequest::parse(&body).expect("parses");
    let kinds: Vec<String> = push
        .metrics
        .iter()
        .map(|metric| admit(metric.get(), clock::now()).expect("valid"))
        .map(|sound| sound.metric_type.to_string())
        .collect();
    assert_eq!(kinds, ["sysstat", "disk_usage", "pg_stats", "pg_log"]);
}
