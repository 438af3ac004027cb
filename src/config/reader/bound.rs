//! What the backend may set, and how far.

use std::{path::PathBuf, time::Duration};

use toml::{Spanned, de::DeValue};

use super::{Document, Origin, Problem, Section, line_of, list_of, short};

/// How far a value of the backend may go; what the host itself has set is always allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// No shorter duration.
    AtLeast(Duration),
    /// No larger number or size, and no more names.
    AtMost(u64),
    /// `false` at the host stays so.
    NotOn,
}

/// What the backend has set and does not get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withheld {
    /// Why not.
    pub kind: WithheldKind,
    /// For a person.
    pub problem: Problem,
}

/// Why the backend does not get what it has set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithheldKind {
    /// The key is the host's alone.
    Forbidden,
    /// The value is beyond what the host allows.
    Limited,
}

impl Document<'_> {
    /// What the backend has set and does not get, once every key has been asked for.
    pub fn take_withheld(&mut self) -> Vec<Withheld> {
        std::mem::take(&mut self.withheld)
    }

    /// Takes a key out of what the backend says, which has no right to it. Returns its line.
    pub(super) fn forbid(&mut self, section: &str, key: &str) -> Option<(PathBuf, usize)> {
        let layer = self.layers.iter_mut().find(|layer| layer.origin == Origin::Remote)?;
        let DeValue::Table(table) = layer.root.get_mut(section)?.get_mut() else { return None };
        let value = table.remove(key)?;
        Some((layer.file.clone(), line_of(layer.text, &value.span())))
    }
}

impl<'t> Section<'_, 't> {
    /// The backend may set the next key, too, for the reason `why`.
    #[must_use]
    pub fn remote(&mut self, why: &'static str) -> &mut Self {
        self.next.remote = Some(why);
        self
    }

    /// How far the backend may go with the next key.
    #[must_use]
    pub fn within(&mut self, bound: Bound) -> &mut Self {
        self.next.bound = Some(bound);
        self
    }

    /// `value`, or what the host allows of it.
    pub(super) fn at_most(
        &mut self,
        known: usize,
        bound: Option<Bound>,
        value: u64,
        default: u64,
        take: impl Fn(&DeValue<'_>) -> Option<u64>,
    ) -> u64 {
        let key = self.document.keys.get(known).map_or("", |key| key.name);
        let own = self.own(key).and_then(take).unwrap_or(default);
        match bound {
            Some(Bound::AtMost(most)) if value > most.max(own) => {
                let most = most.max(own);
                self.limit(known, &most.to_string());
                most
            }
            _ => value,
        }
    }

    /// `names`, or as many of them as the host allows.
    pub(super) fn no_longer(
        &mut self,
        known: usize,
        bound: Option<Bound>,
        mut names: Vec<String>,
    ) -> Vec<String> {
        let key = self.document.keys.get(known).map_or("", |key| key.name);
        let own = self.own(key).and_then(list_of).map_or(0, |own| own.len());
        if let Some(Bound::AtMost(most)) = bound {
            let most = usize::try_from(most).unwrap_or(usize::MAX).max(own);
            if names.len() > most {
                names.truncate(most);
                self.limit_to(known, &format!("{names:?}"), &format!("the first {most}"));
            }
        }
        names
    }

    /// What the host itself has set.
    pub(super) fn own(&self, key: &str) -> Option<&DeValue<'t>> {
        let own = self.document.layers.iter().find(|layer| layer.origin == Origin::File)?;
        own.get(&self.name, key).map(Spanned::get_ref)
    }

    /// The backend gets `value` in place of what it has set.
    pub(super) fn limit(&mut self, known: usize, value: &str) {
        self.limit_to(known, value, value);
    }

    /// The same for a value that is too long to be told: `allowed` says what it is.
    fn limit_to(&mut self, known: usize, value: &str, allowed: &str) {
        let Some(key) = self.document.keys.get_mut(known) else { return };
        value.clone_into(&mut key.value);
        value.clone_into(&mut key.meaning);
        let (section, name) = (key.section.clone(), key.name);
        let Some((layer, found)) = self.document.get(&section, name) else { return };
        let (file, line) = (layer.file.clone(), Some(line_of(layer.text, &found.span())));
        let set = short(layer.source_of(found));
        let message = format!("{section}.{name} = {set}: the host allows {allowed}");
        let hint = "[remote] in the host's own file says how far a backend may go".to_owned();
        let problem = Problem { file, line, message, hint, report: None };
        self.document.withheld.push(Withheld { kind: WithheldKind::Limited, problem });
    }
}
