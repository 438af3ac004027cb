//! Names that nobody has asked for, what may have been meant, and sections of another program.

use std::{collections::BTreeMap, ops::Range};

use super::{Document, Key, Layer, PROBLEMS_MAX, Problem};

/// Characters of a name or a value that are told.
const SHOWN_MAX: usize = 200;
/// A longer name is not a slip of the pen.
const NAME_MAX: usize = 64;

impl Document<'_> {
    /// Takes out the sections with these names, which another program reads from the same file.
    /// Returns what to say of each.
    pub fn pass_over(&mut self, names: &[&str]) -> Vec<Problem> {
        let mut passed = Vec::new();
        for layer in &mut self.layers {
            let sections = layer.root.iter().filter(|(name, value)| {
                names.contains(&name.get_ref().as_ref()) && value.get_ref().is_table()
            });
            let mut found: Vec<_> =
                sections.map(|(name, _)| (name.span(), name.get_ref().to_string())).collect();
            found.sort_by_key(|(at, _)| at.start);
            for (at, name) in found {
                layer.root.remove(name.as_str());
                let message = format!("[{name}]: this agent does not collect it");
                let hint = "the section is passed over; leave it for other collectors, or take it \
                            out";
                let subject = (name.as_str(), "not collected by this agent");
                passed.push(layer.problem(&at, subject, message, hint.to_owned()));
            }
        }
        passed
    }
}

/// Adds the first sections and keys that nobody has asked for; how many more there are.
pub(super) fn report_unknown(
    layer: &Layer<'_>,
    keys: &[Key],
    problems: &mut Vec<Problem>,
) -> usize {
    let mut known: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for key in keys {
        known.entry(&key.section).or_default().push(key.name);
    }
    let mut unknown: Vec<(Range<usize>, Option<&str>, &str)> = Vec::new();
    for (section, value) in &layer.root {
        let name: &str = section.get_ref();
        let Some(keys) = known.get(name) else {
            unknown.push((section.span(), None, name));
            continue;
        };
        for key in value.get_ref().as_table().into_iter().flat_map(|table| table.keys()) {
            let key_name: &str = key.get_ref();
            if !keys.contains(&key_name) {
                unknown.push((key.span(), Some(name), key_name));
            }
        }
    }
    unknown.sort_by_key(|(at, ..)| at.start);
    for (at, section, name) in unknown.iter().take(PROBLEMS_MAX) {
        let (message, near) = match section {
            None => {
                (format!("[{}]: unknown section", short(name)), known.keys().copied().collect())
            }
            Some(section) => {
                let message = format!("{section}.{}: unknown key", short(name));
                (message, known.get(section).cloned().unwrap_or_default())
            }
        };
        let hint = near_hint(nearest(name, near.iter().copied()), &near);
        // The name is not told: a value that has lost its quotes looks like one.
        let what = match section {
            None => ("", "unknown section"),
            Some(section) => (*section, "unknown key"),
        };
        problems.push(layer.problem(at, what, message, hint));
    }
    unknown.len().saturating_sub(PROBLEMS_MAX)
}

/// The beginning of a text that may be as long as the file.
pub(super) fn short(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_MAX).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    shown
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > NAME_MAX {
        return None;
    }
    known
        .map(|candidate| (strsim::normalized_damerau_levenshtein(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

fn near_hint(near: Option<&str>, all: &[&str]) -> String {
    match near {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("known here: {}", all.join(", ")),
    }
}
