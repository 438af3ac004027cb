//! `inspect quarantine`: what was put aside because it is damaged.

use comfy_table::Cell;
use serde::Serialize;

use super::{Args, Shown};
use crate::cli::local::Reader;
use crate::cli::screen::{Screen, count, cut, right};
use crate::control::Scan;
use crate::queue::{Quarantined, QuarantinedKind, QueueStatus};
use crate::units;

/// What is in quarantine.
#[derive(Debug, Serialize)]
pub(super) struct Quarantine {
    /// Its entries, by name.
    quarantine: Vec<Quarantined>,
}

/// Lists them, and reads the segments when that is asked for.
pub(super) async fn look(reader: &Reader, args: &Args) -> anyhow::Result<Quarantine> {
    let scan = if args.depth.verify { Scan::Yes } else { Scan::No };
    Ok(Quarantine { quarantine: reader.quarantine(scan).await? })
}

impl Shown for Quarantine {
    fn page(&self, screen: &Screen, _queue: &QueueStatus) -> String {
        let list = &self.quarantine;
        if list.is_empty() {
            return "quarantine is empty: no damage was found\n".to_owned();
        }
        let bytes: u64 = list.iter().map(|entry| entry.disk_bytes).sum();
        let entries = match list.len() {
            1 => "1 entry".to_owned(),
            some => format!("{some} entries"),
        };
        let read = list.iter().any(|entry| entry.readable.is_some());
        let hint = if read { "" } else { "; --verify says how much of it can be read" };
        let mut text = format!("{entries}, {}{hint}\n\n", units::show_size(bytes));
        let mut table =
            screen.table(&["what", "name", ">since", ">disk", ">readable", "sequence numbers"]);
        for entry in list {
            let (records, seqs) = readable(entry);
            let name_width = if screen.is_narrow() { 24 } else { 48 };
            table.add_row(vec![
                Cell::new(kind(entry.kind)),
                Cell::new(cut(&entry.name, name_width)),
                right(entry.at.map(|at| screen.age(at)).unwrap_or_default()),
                right(screen.size(entry.disk_bytes)),
                right(records),
                Cell::new(seqs),
            ]);
        }
        text.push_str(&screen.print(table));
        text
    }

    fn facts(&self, _queue: &QueueStatus) -> Vec<(String, String)> {
        let fact = |entry: &Quarantined| {
            let text = format!("{}, {}", kind(entry.kind), units::show_size(entry.disk_bytes));
            (format!("quarantine {}", entry.name), text)
        };
        self.quarantine.iter().map(fact).collect()
    }

    fn is_damaged(&self) -> bool {
        !self.quarantine.is_empty()
    }
}

fn kind(kind: QuarantinedKind) -> &'static str {
    match kind {
        QuarantinedKind::Segment => "segment",
        QuarantinedKind::Stranger => "stranger",
        QuarantinedKind::State => "state",
        QuarantinedKind::Other => "unknown",
    }
}

fn readable(entry: &Quarantined) -> (String, String) {
    let Some(readable) = &entry.readable else { return Default::default() };
    if let Some(error) = &readable.error {
        return (String::new(), error.clone());
    }
    let seqs = readable.first_seq.zip(readable.last_seq);
    let seqs = seqs.map_or_else(|| "none".to_owned(), |(first, last)| format!("{first}-{last}"));
    (count(readable.records), seqs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::screen::Look;
    use crate::queue::Readable;

    #[test]
    fn quarantine_fits_the_screen() {
        let entry = |name: &str, kind, readable| Quarantined {
            name: name.to_owned(),
            kind,
            at: Some("2026-11-20T12:00:00Z".parse().expect("a time")),
            disk_bytes: 528_384,
            readable,
        };
        let read = Readable {
            blocks: 12,
            records: 1_188,
            first_seq: Some(2_000),
            last_seq: Some(3_199),
            error: None,
        };
        let list = Quarantine {
            quarantine: vec![
                entry("00000459264471040000", QuarantinedKind::Segment, Some(read)),
                entry("state-0b0e8f4c-0000-4000-8000-000000000001", QuarantinedKind::State, None),
                entry("notes.txt", QuarantinedKind::Other, None),
            ],
        };
        let queue = crate::cli::status::tests::healthy().queue;
        for width in [80, 120] {
            let now = "2026-11-21T12:00:00Z".parse().expect("a time");
            let screen = Screen { width: Some(width), look: Look::Plain, now };
            let text = list.page(&screen, &queue);
            assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
            insta::assert_snapshot!(format!("quarantine_{width}"), text);
        }
        assert!(list.is_damaged());
    }
}
