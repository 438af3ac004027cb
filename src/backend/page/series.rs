//! Stored metrics as the lines of the page's charts.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backend::store::StoredMetric;
use crate::metric::disk_usage::{DiskUsage, Filesystem};
use crate::metric::pg_stats::PgStats;
use crate::metric::sysstat::{Cpu, Memory, Sysstat};

/// All lines and tables of one host.
#[derive(Debug, Default, Serialize)]
pub(super) struct Charts {
    cpu: Vec<Line>,
    load: Vec<Line>,
    memory: Vec<Line>,
    disk_io: Vec<Line>,
    filesystems: Vec<Line>,
    databases: Vec<Line>,
    /// The newest state of each file system.
    mounts: Vec<Mount>,
    cores: Option<f64>,
}

/// One line: points of `[milliseconds since 1970, value]`, oldest first.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Line {
    name: String,
    points: Vec<(i64, f64)>,
}

/// A file system as last seen.
#[derive(Debug, Clone, Serialize)]
struct Mount {
    path: String,
    device: String,
    fstype: Option<String>,
    total: f64,
    used: f64,
    percent: f64,
}

/// Lines of a chart, and rows of a table.
const LINES_MAX: usize = 1_000;
const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1024.0 * MIB;

/// Lines by name, in the order of their first point or by name.
#[derive(Default)]
struct Lines(BTreeMap<String, BTreeMap<i64, f64>>);

impl Lines {
    fn add(&mut self, name: &str, at: i64, value: Option<f64>) {
        // A unit may be more than a number can hold, which JSON cannot say.
        let Some(value) = value.filter(|value| value.is_finite()) else { return };
        let has_room = self.0.len() < LINES_MAX;
        match self.0.get_mut(name) {
            Some(points) => drop(points.insert(at, value)),
            None if has_room => {
                self.0.insert(name.to_owned(), BTreeMap::from([(at, value)]));
            }
            None => {}
        }
    }

    fn take(&mut self, name: &str) -> Option<Line> {
        let points = self.0.remove(name)?;
        Some(Line { name: name.to_owned(), points: points.into_iter().collect() })
    }

    /// The named lines, in this order.
    fn in_order(mut self, names: &[&str]) -> Vec<Line> {
        names.iter().filter_map(|name| self.take(name)).collect()
    }

    /// All lines, those with the largest sum first.
    fn largest_first(self) -> Vec<Line> {
        let mut lines: Vec<(f64, Line)> = self
            .0
            .into_iter()
            .map(|(name, points)| {
                (points.values().sum(), Line { name, points: points.into_iter().collect() })
            })
            .collect();
        lines.sort_by(|a, b| b.0.total_cmp(&a.0));
        lines.into_iter().map(|(_, line)| line).collect()
    }
}

/// Makes the lines. A document that lacks a number leaves a gap, never a zero.
pub(super) fn charts(metrics: &[StoredMetric]) -> Charts {
    let (mut cpu, mut load, mut memory) = (Lines::default(), Lines::default(), Lines::default());
    let (mut disk_io, mut filesystems) = (Lines::default(), Lines::default());
    let mut databases = Lines::default();
    let mut mounts = BTreeMap::new();
    let mut cores = None;
    for metric in metrics {
        let at = metric.at.as_millisecond();
        match metric.kind.as_str() {
            "sysstat" => {
                let Some(read) = read::<Sysstat>(metric) else { continue };
                if let Some(read) = read.cpu {
                    cores = float(read.cores).or(cores);
                    add_cpu(&mut cpu, &mut load, at, &read);
                }
                if let Some(read) = read.memory {
                    add_memory(&mut memory, at, &read);
                }
                for device in read.disk_io.into_iter().flatten() {
                    disk_io.add(&format!("{} read", device.device), at, device.read_mb_s);
                    disk_io.add(&format!("{} write", device.device), at, device.write_mb_s);
                }
            }
            "disk_usage" => {
                let Some(read) = read::<DiskUsage>(metric) else { continue };
                mounts.clear();
                for filesystem in read.filesystems.into_iter().flatten() {
                    filesystems.add(&filesystem.mount, at, filesystem.percent_used);
                    if mounts.len() < LINES_MAX
                        && let Some(mount) = mount(filesystem)
                    {
                        mounts.insert(mount.path.clone(), mount);
                    }
                }
            }
            "pg_stats" => {
                let Some(read) = read::<PgStats>(metric) else { continue };
                for database in read.databases.into_iter().flatten() {
                    databases.add(&database.name, at, float(database.stats.size_bytes));
                }
                databases.add(&read.database, at, float(read.own.size_bytes));
            }
            _ => {}
        }
    }
    Charts {
        cpu: cpu.in_order(&["user", "system", "irq", "steal", "iowait"]),
        load: load.in_order(&["1 min", "5 min", "15 min"]),
        memory: memory.in_order(&["used", "cache", "free"]),
        disk_io: disk_io.largest_first(),
        filesystems: filesystems.largest_first(),
        databases: databases.largest_first(),
        mounts: mounts.into_values().collect(),
        cores,
    }
}

fn read<T: DeserializeOwned>(metric: &StoredMetric) -> Option<T> {
    serde_json::from_str(&metric.document).ok()
}

fn add_cpu(cpu: &mut Lines, load: &mut Lines, at: i64, read: &Cpu) {
    cpu.add("user", at, sum(read.user, read.nice));
    cpu.add("system", at, read.system);
    cpu.add("irq", at, sum(read.irq, read.softirq));
    cpu.add("steal", at, read.steal);
    cpu.add("iowait", at, read.iowait);
    load.add("1 min", at, read.load_1m);
    load.add("5 min", at, read.load_5m);
    load.add("15 min", at, read.load_15m);
}

fn add_memory(memory: &mut Lines, at: i64, read: &Memory) {
    let bytes = |mib: Option<f64>| mib.map(|mib| mib * MIB);
    let used = float(read.used_mb);
    let cache = sum(float(read.cached_mb), float(read.buffers_mb));
    memory.add("used", at, bytes(used));
    memory.add("cache", at, bytes(cache));
    let known = [used, cache].into_iter().flatten().sum::<f64>();
    // What is neither used nor cache: kernels count some memory as both or as none.
    let rest = float(read.total_mb).map(|total| (total - known).max(0.0));
    memory.add("free", at, bytes(rest.or(float(read.free_mb))));
}

/// A whole number as a point of a line.
#[expect(clippy::cast_precision_loss, reason = "lines are looked at")]
fn float(number: Option<u64>) -> Option<f64> {
    number.map(|number| number as f64)
}

fn sum(one: Option<f64>, more: Option<f64>) -> Option<f64> {
    one.map(|one| one + more.unwrap_or(0.0))
}

fn mount(read: Filesystem) -> Option<Mount> {
    let bytes = |bytes: Option<u64>, gib: Option<f64>| {
        float(bytes).or(gib.map(|gib| gib * GIB)).filter(|bytes| bytes.is_finite())
    };
    Some(Mount {
        total: bytes(read.total_bytes, read.total_gb)?,
        used: bytes(read.used_bytes, read.used_gb)?,
        percent: read.percent_used?,
        path: read.mount,
        device: read.device,
        fstype: read.fstype,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn metric(kind: &str, second: i64, document: &Value) -> StoredMetric {
        StoredMetric {
            kind: kind.to_owned(),
            database: None,
            at: jiff::Timestamp::from_second(second).expect("in range"),
            document: document.to_string(),
        }
    }

    #[test]
    fn absent_numbers_are_gaps_not_zeros() {
        let made = charts(&[
            metric("sysstat", 1, &json!({"cpu": {"user": 5.0, "nice": 1.0, "system": null}})),
            metric("sysstat", 2, &json!({"memory": null})),
            metric("sysstat", 3, &json!({"cpu": {"user": 7.5}})),
            metric("sysstat", 4, &json!("damaged")),
        ]);
        let user = Line { name: "user".into(), points: vec![(1000, 6.0), (3000, 7.5)] };
        assert_eq!(made.cpu, [user]);
        assert!(made.memory.is_empty());
    }

    /// A document may say what no chart can show.
    #[test]
    fn numbers_beyond_all_bounds_are_gaps() {
        let memory = json!({"memory": {"total_mb": u64::MAX, "used_mb": 1e308}});
        let filesystem = json!({
            "device": "d", "mount": "/", "total_gb": 1e308, "used_gb": 1e308, "percent_used": 1.0,
        });
        let made = charts(&[
            metric("sysstat", 1, &memory),
            metric("disk_usage", 1, &json!({"filesystems": [filesystem]})),
        ]);
        let json = serde_json::to_string(&made).expect("JSON");
        assert!(made.mounts.is_empty() && !json.contains(",null]"), "{json}");
    }

    #[test]
    fn the_newest_state_of_each_mount_is_shown() {
        let filesystem = |mount: &str, percent: f64| {
            json!({
                "device": "/dev/sda1", "mount": mount, "total_gb": 10.0, "used_gb": 2.0,
                "percent_used": percent,
            })
        };
        let made = charts(&[
            metric("disk_usage", 1, &json!({"filesystems": [filesystem("/gone", 1.0)]})),
            metric("disk_usage", 2, &json!({"filesystems": [filesystem("/", 20.0)]})),
        ]);
        let mounts: Vec<_> = made.mounts.iter().map(|m| (m.path.as_str(), m.percent)).collect();
        assert_eq!(mounts, [("/", 20.0)]);
        assert_eq!(made.filesystems.len(), 2);
    }

    #[test]
    fn databases_are_found_alone_and_in_lists_largest_first() {
        let list = json!([{"name": "small", "size_bytes": 5}, {"name": "large", "size_bytes": 50}]);
        let made = charts(&[
            metric("pg_stats", 1, &json!({"database": "postgres", "databases": list})),
            metric("pg_stats", 2, &json!({"database": "middle", "size_bytes": 20})),
        ]);
        let names: Vec<_> = made.databases.iter().map(|line| line.name.as_str()).collect();
        assert_eq!(names, ["large", "middle", "small"]);
    }
}
