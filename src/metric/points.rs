//! The numbers of a document one by one, as an output to another system wants them.

use jiff::Timestamp;
use serde_json::{Map, Number, Value};

use super::MetricType;
use super::declare::{Field, Kind, Role};

/// One number of a document.
#[derive(Debug, Clone)]
pub struct Point<'a> {
    /// The names of the fields that lead to it, such as `disk_io`, `read_ops`.
    pub path: Vec<&'static str>,
    /// What it is about: the keys beside it and around it, the outermost first.
    pub keys: Vec<(&'static str, String)>,
    /// The number as it stands in the document.
    pub value: &'a Number,
    /// What is declared of it.
    pub field: &'static Field,
    /// When the document was taken.
    pub at: Timestamp,
    /// Of a counter: when it was 0, where that is known.
    pub since: Option<Timestamp>,
}

/// The gauges and counters of `document`, in the order of their declaration. A document that is not
/// sound has none, and one of a user's own program none that is declared.
pub fn points(document: &Value) -> impl Iterator<Item = Point<'_>> {
    let mut found = Vec::new();
    if let Some(members) = document.as_object()
        && let Some(name) = members.get("type").and_then(Value::as_str)
        && let Ok(metric_type) = name.parse::<MetricType>()
        && let Some(at) = time(members, "timestamp")
    {
        let mut walk = Walk { at, path: Vec::new(), keys: Vec::new(), around: Vec::new() };
        walk.object(members, metric_type.fields(), &mut found);
    }
    found.into_iter()
}

struct Walk<'a> {
    at: Timestamp,
    path: Vec<&'static str>,
    keys: Vec<(&'static str, String)>,
    /// The objects from the document to the one that is walked.
    around: Vec<&'a Map<String, Value>>,
}

impl<'a> Walk<'a> {
    fn object(
        &mut self,
        members: &'a Map<String, Value>,
        fields: &'static [Field],
        found: &mut Vec<Point<'a>>,
    ) {
        let outer_keys = self.keys.len();
        for field in fields.iter().filter(|field| field.role == Role::Key) {
            let text = match members.get(field.name) {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Number(number)) => number.to_string(),
                _ => continue,
            };
            self.keys.push((field.name, text));
        }
        self.around.push(members);
        for field in fields.iter().filter(|field| field.role != Role::Key) {
            if let Some(value) = members.get(field.name) {
                self.path.push(field.name);
                self.value(value, field, field.kind, found);
                self.path.pop();
            }
        }
        self.around.pop();
        self.keys.truncate(outer_keys);
    }

    /// The keys, each once: the inner one of two is what the number is about.
    fn keys(&self) -> Vec<(&'static str, String)> {
        let inner = |at: usize| self.keys.get(at + 1..).unwrap_or_default();
        let keys = self.keys.iter().enumerate();
        let is_last = |(at, (name, _)): &(usize, &(&str, String))| {
            !inner(*at).iter().any(|(other, _)| other == name)
        };
        keys.filter(is_last).map(|(_, key)| key.clone()).collect()
    }

    fn value(
        &mut self,
        value: &'a Value,
        field: &'static Field,
        kind: Kind,
        found: &mut Vec<Point<'a>>,
    ) {
        match (kind, value) {
            (Kind::Object(fields), Value::Object(members)) => self.object(members, fields, found),
            (Kind::Array(kind), Value::Array(elements)) => {
                for element in elements {
                    self.value(element, field, *kind, found);
                }
            }
            (Kind::Map(kind), Value::Object(members)) => {
                for (name, value) in members {
                    self.keys.push((field.by, name.clone()));
                    self.value(value, field, *kind, found);
                    self.keys.pop();
                }
            }
            (_, Value::Number(value)) => {
                let since = match field.role {
                    Role::Counter(since) => {
                        self.around.iter().rev().find_map(|members| time(members, since))
                    }
                    Role::Gauge => None,
                    _ => return,
                };
                found.push(Point {
                    path: self.path.clone(),
                    keys: self.keys(),
                    value,
                    field,
                    at: self.at,
                    since,
                });
            }
            _ => {}
        }
    }
}

fn time(members: &Map<String, Value>, name: &str) -> Option<Timestamp> {
    members.get(name)?.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde::{Serialize, de::DeserializeOwned};
    use serde_json::json;

    use super::super::agent_health::AgentHealth;
    use super::super::catalogue::DOCUMENTS;
    use super::super::declare::Declared;
    use super::super::disk_usage::DiskUsage;
    use super::super::pg_log::PgLog;
    use super::super::pg_stats::PgStats;
    use super::super::sysstat::Sysstat;
    use super::*;

    const AT: &str = "2026-03-01T12:00:00Z";

    fn shown(document: &Value) -> Vec<String> {
        let line = |point: Point<'_>| {
            let keys: Vec<_> =
                point.keys.iter().map(|(key, text)| format!("{key}={text}")).collect();
            let since = point.since.map(|since| format!(" since {since}")).unwrap_or_default();
            format!("{}{{{}}} {}{since}", point.path.join("."), keys.join(","), point.value)
        };
        points(document).map(line).collect()
    }

    #[test]
    fn a_point_has_the_keys_around_it_and_the_start_of_its_counter() {
        let document = json!({
            "type": "pg_stats", "timestamp": AT, "database": "a", "stats_reset": "2026-01-01T00:00:00Z",
            "deadlocks": 3, "server": {"max_connections": 100, "in_recovery": false},
            "tables": [{"schema": "s", "name": "t", "seq_scans": 5, "last_vacuum": AT}],
            "databases": [{"name": "b", "deadlocks": 1}], "mine": 7,
        });
        let expected = [
            "tables.seq_scans{database=a,schema=s,name=t} 5 since 2026-01-01T00:00:00Z",
            "databases.deadlocks{database=a,name=b} 1 since 2026-01-01T00:00:00Z",
            "server.max_connections{database=a} 100",
            "deadlocks{database=a} 3 since 2026-01-01T00:00:00Z",
        ];
        assert_eq!(shown(&document), expected);
        let document = json!({
            "type": "agent", "timestamp": AT, "collectors": {"sysstat": {"runs": 2}},
        });
        assert_eq!(shown(&document), ["collectors.runs{collector=sysstat} 2"]);
    }

    #[test]
    fn what_is_not_declared_has_no_points() {
        assert_eq!(shown(&json!({"type": "custom.x", "timestamp": AT, "a": 1})), [""; 0]);
        assert_eq!(shown(&json!({"type": "odd", "timestamp": AT, "uptime_s": 1})), [""; 0]);
        assert_eq!(shown(&json!({"type": "sysstat", "uptime_s": 1})), [""; 0]);
        assert_eq!(shown(&json!([1])), [""; 0]);
    }

    /// Makes documents; no two texts or numbers of it are equal.
    struct Maker {
        state: u64,
        made: u64,
    }

    impl Maker {
        fn draw(&mut self) -> u64 {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            self.state >> 33
        }

        fn serial(&mut self) -> u64 {
            self.made += 1;
            self.made
        }

        /// Some of the fields, the keys always, and the gauges and counters among them.
        fn object(&mut self, fields: &'static [Field], numbers: &mut Vec<u64>) -> Value {
            let mut members = Map::new();
            for field in fields {
                if field.role == Role::Key || self.draw().is_multiple_of(3) {
                    let is_part = field.role == Role::Part;
                    let counts = matches!(field.role, Role::Gauge | Role::Counter(_)) || is_part;
                    let mut inside = Vec::new();
                    let value = self.value(field.kind, &mut inside);
                    numbers.extend(inside.into_iter().filter(|_| counts));
                    members.insert(field.name.to_owned(), value);
                }
            }
            Value::Object(members)
        }

        fn value(&mut self, kind: Kind, numbers: &mut Vec<u64>) -> Value {
            match kind {
                Kind::Object(fields) => self.object(fields, numbers),
                Kind::Array(kind) => {
                    (0..self.draw() % 4).map(|_| self.value(*kind, numbers)).collect()
                }
                Kind::Map(kind) => {
                    let members = (0..self.draw() % 4)
                        .map(|_| (format!("t{}", self.serial()), self.value(*kind, numbers)));
                    Value::Object(members.collect())
                }
                Kind::Count | Kind::Amount | Kind::Number | Kind::Percent => {
                    numbers.push(self.serial());
                    self.made.into()
                }
                Kind::Bool => true.into(),
                Kind::Time | Kind::Taken => AT.into(),
                Kind::OneOf(words) => {
                    let drawn = usize::try_from(self.draw()).unwrap_or_default();
                    words[drawn % words.len()].into()
                }
                Kind::Text | Kind::Name | Kind::Any => format!("t{}", self.serial()).into(),
            }
        }
    }

    /// The document as its struct writes it again.
    fn rewritten(name: &str, document: &Value) -> Value {
        fn of<T: Declared + DeserializeOwned + Serialize>(document: &Value) -> Value {
            let read: T = serde_json::from_value(document.clone()).expect("its struct reads it");
            serde_json::to_value(read).expect("JSON")
        }
        match name {
            "sysstat" => of::<Sysstat>(document),
            "disk_usage" => of::<DiskUsage>(document),
            "pg_stats" => of::<PgStats>(document),
            "pg_log" => of::<PgLog>(document),
            "agent" => of::<AgentHealth>(document),
            other => panic!("{other} has no struct here"),
        }
    }

    /// Whether all that `a` says stands in `b`, but lists and maps of nothing.
    fn is_kept(a: &Value, b: Option<&Value>) -> bool {
        match (a, b) {
            (Value::Array(a), None) => a.is_empty(),
            (Value::Object(a), None) => a.is_empty(),
            (Value::Array(a), Some(Value::Array(b))) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_kept(a, Some(b)))
            }
            (Value::Object(a), Some(Value::Object(b))) => {
                a.iter().all(|(name, value)| is_kept(value, b.get(name)))
            }
            (Value::Number(a), Some(Value::Number(b))) => a.as_f64() == b.as_f64(),
            (Value::String(a), Some(Value::String(b))) if a == AT => {
                a.parse::<Timestamp>().ok() == b.parse().ok()
            }
            (a, b) => Some(a) == b,
        }
    }

    /// Numbers that are whole may be written with a fraction; null is what is not there.
    #[test]
    fn a_struct_reads_all_that_is_admitted() {
        let document = json!({
            "type": "sysstat", "timestamp": AT, "cpu": {"cores": 8.0, "user": 1, "new": [1]},
            "memory": null, "disk_io": [{"device": "a", "read_ops": 1e3}],
        });
        let at = AT.parse().expect("a time");
        assert!(super::super::validate(&document, at).is_ok());
        let read: Sysstat = serde_json::from_value(document).expect("read");
        assert_eq!(read.cpu.map(|cpu| (cpu.cores, cpu.user)), Some((Some(8), Some(1.0))));
        assert_eq!(read.memory, None);
        assert_eq!(read.disk_io.map(|io| io[0].read_ops), Some(Some(1_000)));
        let list = json!({"filesystems": [{"device": "d", "mount": "/", "aliases": null}]});
        let read: DiskUsage = serde_json::from_value(list).expect("read");
        assert_eq!(read.filesystems.map(|list| list[0].aliases.clone()), Some(Vec::new()));
    }

    proptest! {
        /// Each number of a document is one point, and no two of them are about the same.
        #[test]
        fn every_number_is_one_point(state: u64, which in 0..DOCUMENTS.len()) {
            let name = DOCUMENTS[which].name;
            let metric_type: MetricType = name.parse().expect("a type");
            let mut numbers = Vec::new();
            let mut document = Maker { state, made: 0 }.object(metric_type.fields(), &mut numbers);
            document["type"] = name.into();
            document["timestamp"] = AT.into();
            let rewritten = rewritten(name, &document);
            prop_assert!(is_kept(&document, Some(&rewritten)), "{} became {}", document, rewritten);
            let mut found: Vec<_> = points(&document).filter_map(|p| p.value.as_u64()).collect();
            found.sort_unstable();
            numbers.sort_unstable();
            prop_assert_eq!(&found, &numbers, "{}", document);
            let about: BTreeSet<_> = points(&document).map(|point| (point.path, point.keys)).collect();
            prop_assert_eq!(about.len(), numbers.len(), "{}", document);
            for (path, keys) in about {
                let names: BTreeSet<_> = keys.iter().map(|(name, _)| name).collect();
                prop_assert_eq!(names.len(), keys.len(), "{:?}: {:?}", path, keys);
            }
        }
    }
}
