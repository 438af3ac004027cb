//! The word before a line's text: its level, or the part of an entry that it goes on with. Pure.

use std::sync::LazyLock;

/// Levels and parts in the languages of the server's messages.
const WORDS: &str = include_str!("words.txt");

/// What a word means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// An entry begins; its level in English.
    Level(&'static str),
    /// The open entry goes on.
    Part(Part),
}

/// A part of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Message,
    Detail,
    Hint,
    Context,
    Statement,
    /// Comes with verbose messages only.
    Location,
    /// `QUERY`, `BACKTRACE`: of no use to the backend.
    Other,
}

/// The longest first, so that no word hides one that it is the beginning of.
static TABLE: LazyLock<Vec<(&'static str, Word)>> = LazyLock::new(|| {
    let lines = WORDS.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once(' '));
    let mut table: Vec<_> = pairs.map(|(means, word)| (word, meaning(means))).collect();
    table.sort_by_key(|(word, _)| std::cmp::Reverse(word.len()));
    table
});

fn meaning(english: &'static str) -> Word {
    match english {
        "DETAIL" => Word::Part(Part::Detail),
        "HINT" => Word::Part(Part::Hint),
        "CONTEXT" => Word::Part(Part::Context),
        "STATEMENT" => Word::Part(Part::Statement),
        "LOCATION" => Word::Part(Part::Location),
        "QUERY" | "BACKTRACE" => Word::Part(Part::Other),
        level => Word::Level(level),
    }
}

/// The blanks beside a colon; French has one before it, too, and it may be one that does not break.
const BLANKS: [char; 2] = [' ', '\u{a0}'];
/// The colon of Chinese and Japanese, which needs no blank after it.
const WIDE_COLON: char = '\u{ff1a}';

/// `ERROR:  text`, `INSTRUCTION :  text`: what the word means, and the text.
pub(super) fn read(rest: &str) -> Option<(Word, &str)> {
    TABLE.iter().find_map(|(word, means)| {
        let after = rest.strip_prefix(word)?;
        let colon = after.strip_prefix(BLANKS).unwrap_or(after);
        Some((*means, after_colon(colon)?))
    })
}

/// Where the first colon is that may stand between a level and its text, known or not.
pub(super) fn first_colon(line: &str) -> Option<usize> {
    let colons = line.match_indices([':', WIDE_COLON]).map(|(at, _)| at);
    colons.into_iter().find(|at| after_colon(&line[*at..]).is_some())
}

/// The text after a colon that separates a level from it.
fn after_colon(colon: &str) -> Option<&str> {
    let text = match colon.strip_prefix(WIDE_COLON) {
        Some(text) => text.strip_prefix(BLANKS).unwrap_or(text),
        None => colon.strip_prefix(':')?.strip_prefix(BLANKS)?,
    };
    Some(text.strip_prefix(' ').unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::PathBuf;

    use super::*;

    /// The languages that `docs/SECURITY.md` names, as PostgreSQL calls their translations.
    const LANGUAGES: [&str; 14] =
        ["de", "es", "fr", "it", "ja", "ka", "ko", "pl", "pt_BR", "ru", "sv", "tr", "uk", "zh_CN"];
    /// Those that every PostgreSQL package of Debian has; not every one has the others.
    const COMPLETE: [&str; 5] = ["de", "es", "fr", "ja", "ru"];

    #[test]
    fn words_of_every_language_are_read() {
        let check = |line: &str, expected: Option<(Word, &str)>| {
            assert_eq!(read(line), expected, "{line}");
        };
        check("ERROR:  x", Some((Word::Level("ERROR"), "x")));
        check("DEBUG2:  x", Some((Word::Level("DEBUG2"), "x")));
        check("ERREUR:  x", Some((Word::Level("ERROR"), "x")));
        check("FEHLER:  x", Some((Word::Level("ERROR"), "x")));
        check("INSTRUCTION :  x", Some((Word::Part(Part::Statement), "x")));
        check("D\u{c9}TAIL\u{a0}: x", Some((Word::Part(Part::Detail), "x")));
        check("\u{8a73}\u{7d30}:  x", Some((Word::Part(Part::Detail), "x")));
        check("\u{9519}\u{8bef}:  x", Some((Word::Level("ERROR"), "x")));
        check("ERROR:", None);
        check("ERRORS:  x", None);
        check("error:  x", None);
        check("sh: 1: x", None);
    }

    /// No word means two things, and each line of the table is read.
    #[test]
    fn the_table_is_sound() {
        let lines = WORDS.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(TABLE.len(), lines);
        for (at, (word, _)) in TABLE.iter().enumerate() {
            assert!(
                !word.is_empty() && TABLE[..at].iter().all(|(other, _)| other != word),
                "{word}"
            );
        }
        let levels: BTreeSet<&str> = TABLE
            .iter()
            .filter_map(|(_, means)| match means {
                Word::Level(level) => Some(*level),
                Word::Part(_) => None,
            })
            .collect();
        assert_eq!(levels.len(), 13, "{levels:?}");
    }

    /// The translations of the servers of this host: the language, and its messages by the English
    /// ones. Debian has them below `share/locale` of the system; the servers of `servers.txt` bring
    /// none today.
    fn translations() -> Vec<(String, BTreeMap<String, String>)> {
        let cache = std::env::var_os("PGANALYTICS_TEST_CACHE").map(PathBuf::from);
        let servers = cache.map(|cache| entries(cache.join("servers"))).unwrap_or_default();
        let servers = servers.into_iter();
        let shares = servers.map(|server| server.join("native/share")).chain(["/usr/share".into()]);
        let mut found = Vec::new();
        for language in shares.flat_map(|share| entries(share.join("locale"))) {
            let name = language.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for file in entries(language.join("LC_MESSAGES")) {
                let stem = file.file_stem().unwrap_or_default().to_string_lossy();
                let is_compiled = file.extension().is_some_and(|extension| extension == "mo");
                if is_compiled && stem.starts_with("postgres-") {
                    let bytes = std::fs::read(&file).expect("a translation");
                    found.push((name.clone(), messages(&bytes).expect("a file of gettext")));
                }
            }
        }
        found
    }

    fn entries(folder: impl AsRef<std::path::Path>) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
    }

    /// The pairs of a `.mo` file: two tables of lengths and offsets, of the English texts and the
    /// translations (GNU gettext's manual, "The Format of GNU MO Files"), little endian.
    fn messages(bytes: &[u8]) -> Option<BTreeMap<String, String>> {
        let number = |at: usize| {
            let field: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
            usize::try_from(u32::from_le_bytes(field)).ok()
        };
        let text = |at: usize| {
            let (length, offset) = (number(at)?, number(at + 4)?);
            Some(String::from_utf8_lossy(bytes.get(offset..offset + length)?).into_owned())
        };
        assert_eq!(number(0), Some(0x9504_12de), "the magic number");
        let (count, english, translated) = (number(8)?, number(12)?, number(16)?);
        (0..count).map(|n| Some((text(english + 8 * n)?, text(translated + 8 * n)?))).collect()
    }

    /// Every word that an installed server's translations put before a text is read as what it is,
    /// or as nothing: then the line is foreign and stays on the host. Levels of the languages that
    /// are named as known are known. Without a translated server nothing would be held against
    /// anything: that is a failure, too.
    #[test]
    fn words_are_those_of_the_servers_translations() {
        const LEVELS: [&str; 8] =
            ["DEBUG", "LOG", "INFO", "NOTICE", "WARNING", "ERROR", "FATAL", "PANIC"];
        const PARTS: [&str; 6] =
            ["DETAIL:  ", "HINT:  ", "QUERY:  ", "CONTEXT:  ", "STATEMENT:  ", "BACKTRACE:  "];
        let levels = LEVELS.map(|word| (word, word.to_owned(), ":  "));
        let parts = PARTS.map(|part| (part.trim_end_matches(":  "), part.to_owned(), ""));
        let location = ("LOCATION", "LOCATION:  %s:%d\n".to_owned(), "");
        let words: Vec<_> = levels.into_iter().chain(parts).chain([location]).collect();
        let (mut wrong, mut unknown) = (Vec::new(), Vec::new());
        let mut checked = BTreeSet::new();
        for (language, messages) in translations() {
            if messages.contains_key("ERROR") {
                checked.insert(language.clone());
            }
            for (english, message, end) in &words {
                let Some(translated) = messages.get(message) else { continue };
                let line = format!("{translated}{end}text");
                // A language may have one word for two levels.
                let same =
                    words.iter().filter(|(_, other, _)| messages.get(other) == Some(translated));
                let mut meanings = same.map(|(english, ..)| meaning(english));
                match read(&line) {
                    Some((word, _)) if meanings.any(|meant| meant == word) => {}
                    Some((word, _)) => wrong.push(format!("{language}: {line:?} is no {word:?}")),
                    None if LEVELS.contains(english) && LANGUAGES.contains(&language.as_str()) => {
                        unknown.push(format!("{language}: {english} is {translated:?}"));
                    }
                    None => {}
                }
            }
        }
        assert!(wrong.is_empty() && unknown.is_empty(), "{wrong:#?} {unknown:#?}");
        assert!(
            COMPLETE.iter().all(|language| checked.contains(*language)),
            "of {COMPLETE:?} only {checked:?} are installed; hint: tests/run installs them"
        );
    }
}
