//! `--verify`: every block is read and checked, one segment after the other.

use std::io::IsTerminal;

use comfy_table::Cell;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::cli::local::Reader;
use crate::cli::screen::{Screen, count, counted, right};
use crate::queue::Damage;
use crate::units;

/// What a check has found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Verification {
    /// Segments that were read.
    pub(super) segments: u64,
    /// Sound blocks.
    pub(super) blocks: u64,
    /// Records in them.
    pub(super) records: u64,
    /// Bytes of their frames.
    pub(super) stored_bytes: u64,
    /// Records that cannot be read, at most.
    pub(super) lost_records: u64,
    /// Where.
    pub(super) damage: Vec<Damage>,
}

/// Checks all segments, or the one that is named.
pub(super) async fn run(reader: &mut Reader, only: Option<u64>) -> anyhow::Result<Verification> {
    let ids: Vec<u64> = match only {
        Some(id) => vec![id],
        None => reader.segments().await?.iter().map(|segment| segment.id).collect(),
    };
    let bar = progress(ids.len());
    let mut sum = Verification::default();
    for id in ids {
        let mut from = Some(0);
        while let Some(frame) = from {
            let check = reader.verify(id, frame).await?;
            sum.blocks += check.blocks;
            sum.records += check.records;
            sum.stored_bytes += check.stored_bytes;
            sum.lost_records += check.damage.iter().map(|damage| damage.records).sum::<u64>();
            sum.damage.extend(check.damage);
            from = check.next;
        }
        sum.segments += 1;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(sum)
}

fn progress(segments: usize) -> ProgressBar {
    let style = "{bar:24} {pos}/{len} segments checked  eta {eta}";
    let style = ProgressStyle::with_template(style);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    ProgressBar::with_draw_target(Some(segments as u64), target).with_style(style)
}

impl Verification {
    pub(super) fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }

    pub(super) fn page(&self, screen: &Screen) -> String {
        let read = format!(
            "{} in {} of {} ({})",
            counted(self.records, "record"),
            counted(self.blocks, "block"),
            counted(self.segments, "segment"),
            units::show_size(self.stored_bytes),
        );
        if self.is_sound() {
            return format!("checked: {read}: all sound\n");
        }
        let lost = counted(self.lost_records, "record");
        format!(
            "checked: {read} are sound, {lost} cannot be read:\n{}",
            table(screen, &self.damage)
        )
    }

    pub(super) fn facts(&self) -> Vec<(String, String)> {
        let facts = self.damage.iter().map(|damage| {
            let text = format!("{} records {}, {}", damage.records, seqs(damage), damage.what);
            (format!("damage in segment {} frames {}", damage.segment, frames(damage)), text)
        });
        facts.collect()
    }
}

/// One row for each damaged place.
pub(super) fn table(screen: &Screen, list: &[Damage]) -> String {
    let mut table =
        screen.table(&[">segment", ">frames", ">records", "sequence numbers", "what is wrong"]);
    for damage in list {
        table.add_row(vec![
            right(damage.segment),
            right(frames(damage)),
            right(count(damage.records)),
            Cell::new(seqs(damage)),
            Cell::new(&damage.what),
        ]);
    }
    screen.print(table)
}

fn frames(damage: &Damage) -> String {
    range(damage.first_frame.zip(damage.last_frame)).unwrap_or_else(|| "all".to_owned())
}

fn seqs(damage: &Damage) -> String {
    range(damage.first_seq.zip(damage.last_seq)).unwrap_or_else(|| "none".to_owned())
}

fn range(ends: Option<(u64, u64)>) -> Option<String> {
    ends.map(
        |(first, last)| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        },
    )
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::cli::screen::Look;

    fn damaged() -> Verification {
        let hole = |segment, frames: Option<(u64, u64)>, seqs: Option<(u64, u64)>| Damage {
            segment,
            first_frame: frames.map(|frames| frames.0),
            last_frame: frames.map(|frames| frames.1),
            first_seq: seqs.map(|seqs| seqs.0),
            last_seq: seqs.map(|seqs| seqs.1),
            records: seqs.map_or(0, |(first, last)| last - first + 1),
            what: "no sound frame with this number".to_owned(),
        };
        Verification {
            segments: 3,
            blocks: 41,
            records: 4_100,
            stored_bytes: 1_234_567,
            lost_records: 1_112,
            damage: vec![
                hole(1_795_251_832_103, Some((4, 4)), Some((1_000, 1_011))),
                hole(1_795_251_832_103, Some((7, 9)), None),
                hole(1_795_251_892_103, None, Some((2_000, 3_099))),
            ],
        }
    }

    #[test]
    fn damage_is_told_with_its_place() {
        for width in [80, 120] {
            let look = Look::Plain;
            let screen = Screen { width: Some(width), look, now: Timestamp::UNIX_EPOCH };
            insta::assert_snapshot!(format!("damage_{width}"), damaged().page(&screen));
        }
        assert!(!damaged().is_sound());
    }

    #[test]
    fn a_sound_queue_is_one_line() {
        let screen = Screen { width: None, look: Look::Plain, now: Timestamp::UNIX_EPOCH };
        let sound = Verification { damage: Vec::new(), lost_records: 0, ..damaged() };
        let text = sound.page(&screen);
        assert_eq!(
            text,
            "checked: 4,100 records in 41 blocks of 3 segments (1.2 MiB): all sound\n"
        );
        assert_eq!(sound.facts(), []);
    }
}
