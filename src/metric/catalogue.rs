//! Every field of every document that is declared, for people and for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use super::agent_health::AgentHealth;
use super::declare::{Clock, Declared, Field, Kind, Role};
use super::disk_usage::DiskUsage;
use super::pg_log::PgLog;
use super::pg_stats::PgStats;
use super::sysstat::Sysstat;

/// A type of document.
#[derive(Debug, Clone, Copy)]
pub struct Document {
    /// Its `type` on the wire.
    pub name: &'static str,
    /// What it is.
    about: &'static str,
    /// Its fields.
    fields: &'static [Field],
}

/// A field and where it stands.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The way to it: `[]` stands for every element of a list, `*` for every name of a map.
    pub path: String,
    /// What is declared of it.
    pub field: &'static Field,
}

/// All documents but those of users' own programs.
pub const DOCUMENTS: [Document; 5] = [
    Document::new::<Sysstat>("sysstat"),
    Document::new::<DiskUsage>("disk_usage"),
    Document::new::<PgStats>("pg_stats"),
    Document::new::<PgLog>("pg_log"),
    Document::new::<AgentHealth>("agent"),
];

impl Document {
    const fn new<T: Declared>(name: &'static str) -> Self {
        Self { name, about: T::ABOUT, fields: T::FIELDS }
    }

    /// What it is, in one line.
    pub fn about(&self) -> String {
        sentence(self.about)
    }

    /// Its fields, those of a part behind it.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        add("", self.fields, &mut entries);
        entries
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let fields: Vec<Value> = self.entries().iter().map(Entry::json).collect();
        json!({"type": self.name, "about": self.about(), "fields": fields})
    }
}

impl Entry {
    /// What it says, in one line.
    pub fn meaning(&self) -> String {
        sentence(self.field.meaning)
    }

    /// Its role in a word or a few.
    pub fn role(&self) -> String {
        match self.field.role {
            Role::Key => "key".to_owned(),
            Role::Text => "text".to_owned(),
            Role::State => "state".to_owned(),
            Role::Time(Clock::Host) => "time, host's clock".to_owned(),
            Role::Time(Clock::Server) => "time, server's clock".to_owned(),
            Role::Gauge => "gauge".to_owned(),
            Role::Counter(since) => format!("counter since {since}"),
            Role::Part => match self.field.kind {
                Kind::Array(_) => "list".to_owned(),
                Kind::Map(_) => format!("by {}", self.field.by),
                _ => "object".to_owned(),
            },
        }
    }

    /// The majors of PostgreSQL that have it, where not all do.
    pub fn majors(&self) -> Option<String> {
        let (first, last) = self.field.majors;
        (self.field.majors != Field::MAJORS).then(|| format!("PostgreSQL {first} to {last}"))
    }

    fn json(&self) -> Value {
        let field = self.field;
        let (role, since, clock) = match field.role {
            Role::Key => ("key", None, None),
            Role::Text => ("text", None, None),
            Role::State => ("state", None, None),
            Role::Time(Clock::Host) => ("time", None, Some("host")),
            Role::Time(Clock::Server) => ("time", None, Some("server")),
            Role::Gauge => ("gauge", None, None),
            Role::Counter(since) => ("counter", Some(since), None),
            Role::Part => ("part", None, None),
        };
        let mut entry = json!({
            "path": self.path, "role": role, "required": field.required,
            "meaning": self.meaning(), "source": field.source,
        });
        let filled = |text: &'static str| Some(text).filter(|text| !text.is_empty());
        let more = [("unit", filled(field.unit)), ("since", since), ("clock", clock)];
        for (key, value) in more.into_iter().chain([("by", filled(field.by))]) {
            if let Some(value) = value {
                entry[key] = value.into();
            }
        }
        if self.majors().is_some() {
            entry["majors"] = json!([field.majors.0, field.majors.1]);
        }
        entry
    }
}

/// `docs/METRICS.md`.
pub fn markdown() -> String {
    let mut text = INTRODUCTION.to_owned();
    for document in &DOCUMENTS {
        let about = document.about();
        let head = "| field | unit | is a | meaning | from |\n|---|---|---|---|---|\n";
        let _ = write!(text, "\n## `{}`\n\n{about}\n\n{head}", document.name);
        for entry in document.entries() {
            let meaning = entry.meaning();
            let majors = entry.majors().map(|majors| format!(" {majors}.")).unwrap_or_default();
            let (path, role) = (&entry.path, entry.role());
            let (unit, source) = (entry.field.unit, entry.field.source);
            let _ = writeln!(text, "| `{path}` | {unit} | {role} | {meaning}{majors} | {source} |");
        }
    }
    text
}

const INTRODUCTION: &str = "\
# Metrics

Every field of every document that agent and backend know. `agent metrics` prints this list; it
comes from the declarations in `src/metric/`.

A field that is absent, or null, is not known; it never stands for 0. `[]` is every element of a
list, `*` every name of a map. A *key* names what the numbers beside it are about. A *gauge* goes
up and down. A *counter* only grows, from 0 at the time that the field named behind it has, which
stands in the same object or in one around it; when that time changes, or the counter falls, it has
begun anew.
Documents of your own programs, `custom.<name>`, have a `timestamp` and whatever you put in.
";

fn add(place: &str, fields: &'static [Field], entries: &mut Vec<Entry>) {
    for field in fields {
        let path = format!("{place}{}", field.name);
        entries.push(Entry { path: path.clone(), field });
        if let Some((step, fields)) = part(field.kind) {
            add(&format!("{path}{step}"), fields, entries);
        }
    }
}

/// The fields of a part, and what leads into it.
fn part(kind: Kind) -> Option<(&'static str, &'static [Field])> {
    match kind {
        Kind::Object(fields) => Some((".", fields)),
        Kind::Array(Kind::Object(fields)) => Some(("[].", fields)),
        Kind::Map(Kind::Object(fields)) => Some((".*.", fields)),
        _ => None,
    }
}

/// The lines of a comment as one.
fn sentence(comment: &str) -> String {
    comment.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::declare::{self, UNITS};
    use super::*;

    /// What a declaration promises beyond its types.
    #[test]
    fn declarations_hold_together() {
        for document in &DOCUMENTS {
            check(document.fields, &mut Vec::new(), document.name);
        }
    }

    fn check(fields: &'static [Field], around: &mut Vec<&'static [Field]>, place: &str) {
        around.push(fields);
        let names: BTreeSet<&str> = fields.iter().map(|field| field.name).collect();
        assert_eq!(names.len(), fields.len(), "{place}: a name stands twice");
        assert!(declare::find(fields, "nothing").is_none() && declare::find(fields, "").is_none());
        let required = declare::up_to_required(fields).iter().filter(|field| field.required);
        assert_eq!(required.count(), fields.iter().filter(|field| field.required).count());
        for (index, field) in fields.iter().enumerate() {
            let found = declare::find(fields, field.name).map(|(index, _)| index);
            assert_eq!(found, Some(index), "{place}.{}", field.name);
            let place = format!("{place}.{}", field.name);
            let is_number = matches!(field.role, Role::Gauge | Role::Counter(_));
            assert_eq!(is_number, UNITS.contains(&field.unit), "{place}: {:?}", field.unit);
            let is_map = matches!(field.kind, Kind::Map(_));
            assert_eq!(is_map, !field.by.is_empty(), "{place}: what its names are");
            let (meaning, source) = (sentence(field.meaning), field.source);
            assert!(meaning.ends_with('.') && !meaning.contains('|'), "{place}: {meaning}");
            assert!(!source.is_empty() && !source.contains('|'), "{place}: {source}");
            let (first, last) = field.majors;
            assert!(first <= last && first >= Field::MAJORS.0 && last <= Field::MAJORS.1);
            if let Role::Counter(since) = field.role {
                let is_start =
                    |field: &Field| field.name == since && matches!(field.role, Role::Time(_));
                let found = around.iter().any(|fields| fields.iter().any(is_start));
                assert!(found, "{place}: nothing says since when it counts");
            }
            assert_eq!(part(field.kind).is_some(), field.role == Role::Part, "{place}");
            if let Some((_, inner)) = part(field.kind) {
                check(inner, around, &place);
            }
        }
        around.pop();
    }

    #[test]
    fn the_way_to_a_field_says_what_is_around_it() {
        let paths = |document: Document| -> Vec<String> {
            document.entries().into_iter().map(|entry| entry.path).collect()
        };
        let [sysstat, .., agent] = DOCUMENTS;
        let (host, agent) = (paths(sysstat), paths(agent));
        for path in ["timestamp", "cpu", "cpu.user", "disk_io[].device", "pressure.io.some_us"] {
            assert!(host.iter().any(|found| found == path), "{path} in {host:?}");
        }
        assert!(agent.iter().any(|found| found == "collectors.*.runs"), "{agent:?}");
    }
}
