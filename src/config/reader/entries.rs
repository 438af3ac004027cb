//! A section that may stand several times, each time with another name: `[[postgres]]`.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Document, Layer, Origin, Problem, Withheld, WithheldKind, line_of};

/// The longest name of an entry, characters.
const NAME_MAX: usize = 63;
/// The key of an entry's name.
const NAME: &str = "name";

/// One of the times that a section stands in the host's own file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, the default one where it gives none.
    pub name: String,
    /// What [`Document::section`] calls it: the section itself for the default name, else
    /// `section.name`.
    pub section: String,
}

/// A table of a text, and where it stands.
struct Found<'t> {
    at: Range<usize>,
    table: DeTable<'t>,
    /// Of an array, where a name says which entry is meant.
    is_one_of_many: bool,
}

impl Entry {
    fn new(section: &str, name: &str, default: &str) -> Self {
        let of = if name == default { section.to_owned() } else { format!("{section}.{name}") };
        Self { name: name.to_owned(), section: of }
    }
}

impl Document<'_> {
    /// The entries of the host's own file, in their order; one with the `default` name when it has
    /// none. A backend may speak of those, by their names, and of no others.
    pub fn entries(&mut self, section: &'static str, default: &str) -> Vec<Entry> {
        let mut entries: Option<Vec<Entry>> = None;
        for layer in &mut self.layers {
            let found = take(layer, section);
            let known = entries.clone();
            let mut here = Vec::new();
            for Found { at, mut table, is_one_of_many } in found {
                let name = name_of(&table).unwrap_or(default).to_owned();
                let entry = Entry::new(section, &name, default);
                if !is_name(&name) {
                    let kind = "is not a name of a to z, 0 to 9, _ and -, of 63 characters at most";
                    self.problems.push(mistake(layer, section, &at, kind));
                    continue;
                }
                if here.contains(&entry) {
                    let kind = "has a name that another one has";
                    self.problems.push(mistake(layer, section, &at, kind));
                    continue;
                }
                if layer.origin == Origin::Remote && is_one_of_many {
                    table.remove(NAME);
                }
                if known.as_ref().is_some_and(|known| !known.contains(&entry)) {
                    // A section without keys says nothing.
                    if table.is_empty() {
                        continue;
                    }
                    self.withheld.push(unknown(layer, section, &at, &name));
                    continue;
                }
                let key = Spanned::new(at.clone(), entry.section.clone().into());
                layer.root.insert(key, Spanned::new(at, DeValue::Table(table)));
                here.push(entry);
            }
            if here.is_empty() {
                here.push(Entry::new(section, default, default));
            }
            // The first text is the host's own.
            entries.get_or_insert(here);
        }
        entries.unwrap_or_default()
    }
}

/// Takes the section's tables out of a text. What is none of them stays, and is told as a mistake
/// when it is read.
fn take<'t>(layer: &mut Layer<'t>, section: &str) -> Vec<Found<'t>> {
    let is_tables = match layer.root.get(section).map(Spanned::get_ref) {
        Some(DeValue::Table(_)) => true,
        Some(DeValue::Array(items)) => items.iter().all(|item| item.get_ref().is_table()),
        _ => false,
    };
    if !is_tables {
        return Vec::new();
    }
    let Some(value) = layer.root.remove(section) else { return Vec::new() };
    let at = value.span();
    match value.into_inner() {
        DeValue::Table(table) => vec![Found { at, table, is_one_of_many: false }],
        DeValue::Array(items) => {
            let found = items.into_iter().filter_map(|item| {
                let at = item.span();
                let DeValue::Table(table) = item.into_inner() else { return None };
                Some(Found { at, table, is_one_of_many: true })
            });
            found.collect()
        }
        _ => Vec::new(),
    }
}

fn name_of<'a>(table: &'a DeTable<'_>) -> Option<&'a str> {
    table.get(NAME)?.get_ref().as_str()
}

/// Whether an entry can be called so.
pub fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(is_plain)
}

fn mistake(layer: &Layer<'_>, section: &str, at: &Range<usize>, kind: &'static str) -> Problem {
    let hint = format!("each [[{section}]] has a name of its own");
    layer.problem(at, (section, kind), format!("[[{section}]]: {kind}"), hint)
}

fn unknown(layer: &Layer<'_>, section: &str, at: &Range<usize>, name: &str) -> Withheld {
    let problem = Problem {
        file: layer.file.clone(),
        line: Some(line_of(layer.text, at)),
        message: format!("[[{section}]] {name:?}: the host's own file has none of that name"),
        hint: "leave it out; only the host's own file may add one".to_owned(),
        report: None,
    };
    Withheld { kind: WithheldKind::Forbidden, problem }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{super::Text, *};

    fn entries(own: &str, remote: Option<&str>) -> (Vec<String>, usize, Vec<String>) {
        let over = remote.map(|text| Text { file: Path::new("over"), text });
        let own = Text { file: Path::new("own"), text: own };
        let mut document = Document::layered(own, over).unwrap();
        let entries = document.entries("s", "main");
        let problems = document.problems.iter().map(ToString::to_string).collect();
        let sections = entries.into_iter().map(|entry| entry.section).collect();
        (sections, document.withheld.len(), problems)
    }

    #[test]
    fn a_section_stands_once_or_several_times() {
        let check = |own: &str, expected: &[&str]| {
            let (sections, _, problems) = entries(own, None);
            assert_eq!(
                (sections, problems),
                (expected.iter().map(ToString::to_string).collect(), Vec::new()),
                "{own}"
            );
        };
        check("", &["s"]);
        check("[s]\nx = 1", &["s"]);
        check("[s]\nname = \"b\"", &["s.b"]);
        check("[[s]]\nname = \"b\"\n[[s]]\nx = 1\n[[s]]\nname = \"c-1\"", &["s.b", "s", "s.c-1"]);
        for wrong in ["A", "", "a b", "a.b", &"x".repeat(64)] {
            let (_, _, problems) = entries(&format!("\n[[s]]\nname = {wrong:?}"), None);
            assert!(problems[0].starts_with("own:2: [[s]]: is not a name"), "{problems:?}");
        }
        let (_, _, problems) = entries("[[s]]\n[[s]]\nname = \"main\"", None);
        assert!(problems[0].starts_with("own:2: [[s]]: has a name that another"), "{problems:?}");
    }

    /// A backend speaks of what the host has, and adds nothing.
    #[test]
    fn a_backend_adds_none() {
        let both = "[[s]]\nname = \"a\"\n[[s]]\nname = \"main\"";
        let check = |own: &str, remote: &str, withheld: usize| {
            let (sections, found, problems) = entries(own, Some(remote));
            assert_eq!((found, problems.len()), (withheld, 0), "{own} {remote} {problems:?}");
            assert_eq!(sections, entries(own, None).0);
        };
        check("", "[s]\nx = 1", 0);
        check("", "[[s]]\nname = \"main\"", 0);
        check("", "[[s]]\nname = \"b\"\nx = 1", 1);
        check(both, "[[s]]\nname = \"a\"\nx = 1", 0);
        check(both, "[s]\nx = 1", 0);
        check(both, "[[s]]\nname = \"c\"\nx = 1\n[[s]]\nname = \"a\"", 1);
        check("[s]\nname = \"b\"", "[s]\nx = 1", 1);
        check("[s]\nname = \"b\"", "[s]", 0);
        let (_, _, problems) = entries(both, Some("[[s]]\nname = \"a\"\n[[s]]\nname = \"a\""));
        assert!(problems[0].starts_with("over:3: [[s]]: has a name"), "{problems:?}");
    }
}
