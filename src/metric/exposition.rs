//! Documents in the text format that Prometheus and its kind read.
//!
//! Names and units follow the conventions there: base units, a counter ends in `_total`, a share is
//! a ratio. What a document has in two units is shown in the finer one.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

use super::declare::{Field, Role};
use super::points::{Point, points};
use crate::units::is_obeyed;

/// A field of the declarations as a family of samples.
struct Family {
    help: String,
    kind: &'static str,
    /// By their labels.
    samples: BTreeMap<String, String>,
}

/// How a unit is written there: what the names of its fields end in, what stands there instead, and
/// the factor, where there is one. `None`: such a field repeats another one.
fn unit(unit: &str) -> Option<(&'static str, &'static str, Option<f64>)> {
    Some(match unit {
        "GiB" => return None,
        "MiB" => ("_mb", "_bytes", Some(1_048_576.0)),
        "MiB/s" => ("_mb_s", "_bytes_per_second", Some(1_048_576.0)),
        "bytes" => ("_bytes", "_bytes", None),
        "bytes/s" => ("_bytes_s", "_bytes_per_second", None),
        "packets/s" => ("_packets_s", "_packets_per_second", None),
        "switches/s" => ("_s", "_per_second", None),
        "operations/s" => ("_iops", "_operations_per_second", None),
        "s" => ("_s", "_seconds", None),
        "ms" => ("_ms", "_seconds", Some(1e-3)),
        "us" => ("_us", "_seconds", Some(1e-6)),
        "%" => ("_percent", "_ratio", Some(1e-2)),
        _ => ("", "", None),
    })
}

/// `documents` as text, without times: what is read now. Of samples with equal labels, such as
/// entries of a log, the last is there.
pub fn exposition(documents: &[Value]) -> String {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for document in documents {
        let of = document.get("type").and_then(Value::as_str).unwrap_or_default();
        for point in points(document) {
            add(of, &point, &mut families);
        }
    }
    let mut text = String::new();
    for (name, family) in families {
        let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {}", family.help, family.kind);
        for (labels, value) in family.samples {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    }
    text.push_str("# EOF\n");
    text
}

fn add(of: &str, point: &Point<'_>, families: &mut BTreeMap<String, Family>) {
    let Some((name, factor)) = name(of, point) else { return };
    let family = families.entry(name).or_insert_with(|| Family {
        help: escaped(&help(point.field)),
        kind: if matches!(point.field.role, Role::Counter(_)) { "counter" } else { "gauge" },
        samples: BTreeMap::new(),
    });
    let keys = point.keys.iter();
    let labels: Vec<_> = keys
        .map(|(key, text)| format!("{key}=\"{}\"", escaped(text).replace('"', "\\\"")))
        .collect();
    let labels =
        if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let value = match (factor, point.value.as_f64()) {
        (Some(factor), Some(value)) => (value * factor).to_string(),
        _ => point.value.to_string(),
    };
    family.samples.insert(labels, value);
}

/// The name of the family and the factor of its values.
fn name(of: &str, point: &Point<'_>) -> Option<(String, Option<f64>)> {
    let (end, base, factor) = unit(point.field.unit)?;
    let path = point.path.join("_");
    let stem = path.strip_suffix(end).unwrap_or(&path);
    let is_counter = matches!(point.field.role, Role::Counter(_));
    let stem = if is_counter { stem } else { stem.strip_suffix("_total").unwrap_or(stem) };
    let total = if is_counter { "_total" } else { "" };
    Some((format!("{of}_{stem}{base}{total}"), factor))
}

fn help(field: &Field) -> String {
    field.meaning.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A control character has no escape there but a line end: it is written out, `\u0007`, as text.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            c if is_obeyed(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(escaped, "\\\\u{unit:04x}");
                }
            }
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_have_base_units() {
        let document = json!({
            "type": "sysstat", "timestamp": "2026-03-01T12:00:00Z",
            "boot_at": "2026-01-01T00:00:00Z",
            "cpu": {"user": 12.5, "user_s": 3.25, "load_1m": 0.5},
            "memory": {"total_mb": 2, "huge_pages_total": 4},
            "disk_io": [
                {"device": "a\"\\\n\u{7}", "read_ops": 7, "read_ms": 1500, "read_mb_s": 0.5}
            ],
            "pressure": {"cpu": {"some_us": 250_000}},
        });
        let text = exposition(&[document]);
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with("# HELP")).collect();
        let expected = [
            "# TYPE sysstat_cpu_load_1m gauge",
            "sysstat_cpu_load_1m 0.5",
            "# TYPE sysstat_cpu_user_ratio gauge",
            "sysstat_cpu_user_ratio 0.125",
            "# TYPE sysstat_cpu_user_seconds_total counter",
            "sysstat_cpu_user_seconds_total 3.25",
            "# TYPE sysstat_disk_io_read_bytes_per_second gauge",
            "sysstat_disk_io_read_bytes_per_second{device=\"a\\\"\\\\\\n\\\\u0007\"} 524288",
            "# TYPE sysstat_disk_io_read_ops_total counter",
            "sysstat_disk_io_read_ops_total{device=\"a\\\"\\\\\\n\\\\u0007\"} 7",
            "# TYPE sysstat_disk_io_read_seconds_total counter",
            "sysstat_disk_io_read_seconds_total{device=\"a\\\"\\\\\\n\\\\u0007\"} 1.5",
            "# TYPE sysstat_memory_bytes gauge",
            "sysstat_memory_bytes 2097152",
            "# TYPE sysstat_memory_huge_pages gauge",
            "sysstat_memory_huge_pages 4",
            "# TYPE sysstat_pressure_cpu_some_seconds_total counter",
            "sysstat_pressure_cpu_some_seconds_total 0.25",
            "# EOF",
        ];
        assert_eq!(samples, expected);
        assert!(
            text.contains("# HELP sysstat_disk_io_read_ops_total Reads completed.\n"),
            "{text}"
        );
    }
}
