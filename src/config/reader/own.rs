//! What only the host's own file has: variables of the environment, and commands.

use std::ops::Range;
use std::path::PathBuf;

use toml::de::DeValue;

use super::{Document, Layer, Mistake, Origin, Section, mark_of};

/// What an undefined variable is told with.
const UNDEFINED: &str = "names a variable that is not set";

impl Document<'_> {
    /// Puts variables of the environment into the texts of a section of the host's own file:
    /// `${NAME}` is the variable's value, `$${NAME}` is `${NAME}`. One that is not set is a
    /// mistake.
    pub fn with_variables(&mut self, section: &str, variable: impl Fn(&str) -> Option<String>) {
        let Some(layer) = self.layers.iter_mut().find(|layer| layer.origin == Origin::File) else {
            return;
        };
        let mut unset = Vec::new();
        if let Some(value) = layer.root.get_mut(section) {
            let at = value.span();
            expand(value.get_mut(), &at, &variable, &mut unset);
        }
        for (at, name) in unset {
            let problem = layer.unset(section, &at, &name);
            self.problems.push(problem);
        }
    }
}

impl Layer<'_> {
    fn unset(&self, section: &str, at: &Range<usize>, name: &str) -> super::Problem {
        let message = format!("[{section}]: ${{{name}}} {UNDEFINED}");
        let hint = format!(
            "set {name} for the agent (Environment= or EnvironmentFile= of its \
                            unit); `$${{` stands for `${{`"
        );
        self.problem(at, (section, UNDEFINED), message, hint)
    }
}

impl Section<'_, '_> {
    /// A program and its arguments; only the host's own file may set it. Arguments may hold
    /// secrets, and are not shown.
    pub fn command(&mut self, key: &'static str) -> Vec<String> {
        self.next.remote = None;
        let known = self.know(key, "[]".to_owned());
        let Some((_, value)) = self.document.get(&self.name, key) else {
            self.note(known, None, mark_of("[]"));
            return Vec::new();
        };
        let words = match value.get_ref() {
            DeValue::Array(items) => {
                items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect()
            }
            _ => None,
        };
        let is_sound = words.is_some();
        let words: Vec<String> = words.unwrap_or_default();
        if !is_sound {
            let (kind, hint) = ("is not a command", "[\"/path/to/program\", \"argument\"]");
            self.problem(key, None, Mistake { kind, detail: kind, hint });
        }
        let told = if words.is_empty() { "[]" } else { "[\"(not shown)\"]" };
        self.note(known, Some(told), mark_of(&format!("{words:?}")));
        words
    }

    /// The host's own file.
    pub fn own_file(&self) -> PathBuf {
        let own = self.document.layers.iter().find(|layer| layer.origin == Origin::File);
        own.map(|layer| layer.file.clone()).unwrap_or_default()
    }
}

fn expand(
    value: &mut DeValue<'_>,
    at: &Range<usize>,
    variable: &impl Fn(&str) -> Option<String>,
    unset: &mut Vec<(Range<usize>, String)>,
) {
    match value {
        DeValue::String(text) if text.contains("${") => {
            let expanded = expanded(text, variable, &mut |name| {
                unset.push((at.clone(), name.to_owned()));
            });
            *text = expanded.into();
        }
        DeValue::Array(items) => {
            for item in items.iter_mut() {
                let at = item.span();
                expand(item.get_mut(), &at, variable, unset);
            }
        }
        DeValue::Table(table) => {
            for (_, item) in table.iter_mut() {
                let at = item.span();
                expand(item.get_mut(), &at, variable, unset);
            }
        }
        _ => {}
    }
}

/// `text` with its variables. What only looks like one stays as it is.
fn expanded(
    text: &str,
    variable: &impl Fn(&str) -> Option<String>,
    unset: &mut impl FnMut(&str),
) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        out.push_str(before);
        rest = after;
        if let Some(escaped) = before.strip_suffix('$') {
            out.truncate(out.len() - (before.len() - escaped.len()));
            out.push_str("${");
            continue;
        }
        let name = after.split_once('}').map(|(name, _)| name).filter(|name| is_name(name));
        let Some(name) = name else {
            out.push_str("${");
            continue;
        };
        match variable(name) {
            Some(value) => out.push_str(&value),
            None => unset(name),
        }
        rest = after.get(name.len() + 1..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|first: char| first.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_put_into_texts() {
        let check = |text: &str, expected: &str, missing: &[&str]| {
            let mut unset = Vec::new();
            let variable = |name: &str| match name {
                "USER_1" => Some("mon".to_owned()),
                "ODD" => Some("${USER_1} \"".to_owned()),
                "EMPTY" => Some(String::new()),
                _ => None,
            };
            let expanded = expanded(text, &variable, &mut |name| unset.push(name.to_owned()));
            assert_eq!(
                (expanded.as_str(), unset),
                (expected, missing.iter().map(ToString::to_string).collect()),
                "{text}"
            );
        };
        check("${USER_1}", "mon", &[]);
        check("a${USER_1}b${USER_1}", "amonbmon", &[]);
        check("${ODD}", "${USER_1} \"", &[]);
        check("${EMPTY}", "", &[]);
        check("$USER_1 $ {USER_1} ${", "$USER_1 $ {USER_1} ${", &[]);
        check("${} ${1A} ${a-b} ${USER_1", "${} ${1A} ${a-b} ${USER_1", &[]);
        check("$${USER_1}", "${USER_1}", &[]);
        check("$$${USER_1}", "$${USER_1}", &[]);
        check("${NONE}${USER_1}", "mon", &["NONE"]);
    }
}
