//! `inspect dead`: records that the backend refused.

use std::fmt::Write as _;

use comfy_table::Cell;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Args, Shown};
use crate::cli::local::Reader;
use crate::cli::screen::{Screen, counted, cut, right};
use crate::queue::{DeadCount, QueueStatus};
use crate::units;

/// Letters of one page.
const PAGE_LETTERS: usize = 500;
/// What a message takes at most in the table.
const MESSAGE_WIDTH_MAX: usize = 60;

/// The dead letters.
#[derive(Debug, Serialize)]
pub(super) struct Dead {
    /// How many there are.
    #[serde(rename = "dead")]
    count: DeadCount,
    /// The letters as they were written, oldest first; a damaged line is a string.
    letters: Vec<Box<RawValue>>,
    #[serde(skip)]
    decode: bool,
}

/// What the table needs of a letter.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Letter {
    at: Option<Timestamp>,
    seq: Option<u64>,
    path: String,
    message: String,
    metric: Option<Value>,
}

/// Reads them: all for programs, else as many as the table shows.
pub(super) async fn look(reader: &Reader, args: &Args) -> anyhow::Result<Dead> {
    let wanted = if args.limit == 0 || args.json { usize::MAX } else { args.limit };
    let count = reader.dead_count().await?;
    let mut letters = Vec::new();
    let mut from = Some(0);
    while let Some(at) = from
        && letters.len() < wanted
    {
        let page = reader.dead(at, PAGE_LETTERS.min(wanted - letters.len())).await?;
        letters.extend(page.letters);
        from = page.next;
    }
    Ok(Dead { count, letters, decode: args.depth.decode })
}

impl Shown for Dead {
    fn page(&self, screen: &Screen, _queue: &QueueStatus) -> String {
        if self.count.letters + self.count.damaged == 0 {
            return "no dead letters\n".to_owned();
        }
        let newest = self.count.newest_at.map(|at| format!(", the newest {} ago", screen.age(at)));
        let mut text = format!(
            "{}, {}{}\n",
            counted(self.count.letters, "dead letter"),
            units::show_size(self.count.bytes),
            newest.unwrap_or_default(),
        );
        if self.count.damaged > 0 {
            let lines = counted(self.count.damaged, "damaged line");
            let _ = writeln!(text, "{lines} in the file, which `agent replay --dead` leaves there");
        }
        text.push('\n');
        let letters: Vec<Letter> = self.letters.iter().map(|letter| read(letter)).collect();
        if self.decode {
            for (letter, raw) in letters.iter().zip(&self.letters) {
                let at = letter.at.map(|at| format!("{at:.0}")).unwrap_or_default();
                let _ = writeln!(text, "{at} {}: {}", letter.path, letter.message);
                let metric = letter.metric.as_ref().map(ToString::to_string);
                let _ = writeln!(text, "{}\n", metric.unwrap_or_else(|| raw.to_string()));
            }
        } else {
            text.push_str(&table(screen, &letters));
        }
        let all = self.count.letters + self.count.damaged;
        let rest = all.saturating_sub(self.letters.len() as u64);
        if rest > 0 {
            let _ = writeln!(text, ".. and {rest} more; --limit 0 lists all");
        }
        text
    }

    fn facts(&self, _queue: &QueueStatus) -> Vec<(String, String)> {
        let fact = |(number, letter): (usize, Letter)| {
            let text = format!("{} {}: {}", kind(&letter), letter.path, letter.message);
            (format!("dead letter {}", number + 1), text)
        };
        self.letters.iter().map(|raw| read(raw)).enumerate().map(fact).collect()
    }

    fn is_damaged(&self) -> bool {
        self.count.damaged > 0
    }
}

fn table(screen: &Screen, letters: &[Letter]) -> String {
    let mut table = screen.table(&[">refused", ">record", "type", "path", "message"]);
    let room = screen.width.map_or(MESSAGE_WIDTH_MAX, |width| width.saturating_sub(50));
    for letter in letters {
        table.add_row(vec![
            right(letter.at.map(|at| screen.age(at)).unwrap_or_default()),
            right(letter.seq.map(|seq| seq.to_string()).unwrap_or_default()),
            Cell::new(kind(letter)),
            Cell::new(cut(&letter.path, 24)),
            Cell::new(cut(&letter.message, room.clamp(20, MESSAGE_WIDTH_MAX))),
        ]);
    }
    screen.print(table)
}

fn kind(letter: &Letter) -> &str {
    let kind = letter.metric.as_ref().and_then(|metric| metric.get("type"));
    kind.and_then(Value::as_str).unwrap_or("?")
}

/// A damaged line, and a letter of another version, are shown with what they have.
fn read(raw: &RawValue) -> Letter {
    let shown = |path: &str, text: &str| Letter {
        path: path.to_owned(),
        message: cut(text, MESSAGE_WIDTH_MAX),
        ..Letter::default()
    };
    match serde_json::from_str::<String>(raw.get()) {
        Ok(text) => shown("damaged on disk", &text),
        Err(_) => serde_json::from_str(raw.get()).unwrap_or_else(|_| shown("", raw.get())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::screen::Look;

    fn raw(text: &str) -> Box<RawValue> {
        serde_json::from_str(text).expect("JSON")
    }

    fn dead(decode: bool) -> Dead {
        let letters = vec![
            raw("{\"at\":\"2026-11-21T10:00:00Z\",\"batch\":\"x\",\"seq\":1234,\
                 \"path\":\"metrics[3].cpu.user\",\"message\":\"101 is over 100\",\
                 \"metric\":{\"type\":\"sysstat\",\"cpu\":{\"user\":101}}}"),
            raw("\"{\\\"at\\\":\\\"2026-11-21T10:00:00Z\\\",\\\"se\""),
            raw("{\"at\":\"2026-11-21T11:59:00Z\",\"path\":\"\",\"message\":\
                 \"Unknown metric type `custom.queue`, and the message goes on for a while\",\
                 \"metric\":{\"type\":\"custom.queue\"}}"),
        ];
        let newest_at = Some("2026-11-21T11:59:00Z".parse().expect("a time"));
        Dead {
            count: DeadCount { letters: 4, damaged: 1, bytes: 1_234, newest_at },
            letters,
            decode,
        }
    }

    #[test]
    fn letters_fit_the_screen() {
        let queue = crate::cli::status::tests::healthy().queue;
        for width in [80, 120] {
            let now = "2026-11-21T12:00:00Z".parse().expect("a time");
            let screen = Screen { width: Some(width), look: Look::Plain, now };
            let text = dead(false).page(&screen, &queue);
            assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
            insta::assert_snapshot!(format!("dead_{width}"), text);
        }
    }

    #[test]
    fn decoded_letters_show_their_metric() {
        let queue = crate::cli::status::tests::healthy().queue;
        let now = "2026-11-21T12:00:00Z".parse().expect("a time");
        let screen = Screen { width: None, look: Look::Plain, now };
        let text = dead(true).page(&screen, &queue);
        assert!(text.contains("{\"cpu\":{\"user\":101},\"type\":\"sysstat\"}"), "{text}");
        assert!(text.contains(" damaged on disk: {\"at\""), "{text}");
    }
}
