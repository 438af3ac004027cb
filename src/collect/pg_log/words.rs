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

/// `ERROR:  text`, `INSTRUCTION :  text`: what the word means, and the text.
pub(super) fn read(rest: &str) -> Option<(Word, &str)> {
    TABLE.iter().find_map(|(word, means)| {
        let after = rest.strip_prefix(word)?;
        // French puts a space before the colon; it may be one that does not break.
        let after = after.strip_prefix([' ', '\u{a0}']).unwrap_or(after);
        let text = after.strip_prefix([':', '\u{ff1a}'])?;
        let text = text.strip_prefix([' ', '\u{a0}'])?;
        Some((*means, text.strip_prefix(' ').unwrap_or(text)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let levels: std::collections::BTreeSet<&str> = TABLE
            .iter()
            .filter_map(|(_, means)| match means {
                Word::Level(level) => Some(*level),
                Word::Part(_) => None,
            })
            .collect();
        assert_eq!(levels.len(), 13, "{levels:?}");
    }
}
