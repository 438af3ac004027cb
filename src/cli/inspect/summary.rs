//! `inspect` alone: the queue in one screen.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use super::Shown;
use super::ledger::{self, Sum};
use crate::cli::local::{Local, Reader};
use crate::cli::screen::{Screen, count, counted, cut};
use crate::queue::{
    Budget, DeadCount, LossReason, OnFull, Quarantined, QueueStatus, Retain, SegmentInfo,
    SegmentState,
};
use crate::units;

/// The width of the names before the lines.
const INDENT: usize = 11;
/// Columns of the bar that shows how full the queue is.
const BAR_WIDTH: usize = 24;

/// What the summary tells beside the queue's own status.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    /// The queue's directory.
    dir: PathBuf,
    /// Segments by state.
    states: BTreeMap<&'static str, u64>,
    /// The delivery that was tried most often.
    tried: Option<Tried>,
    /// Losses by reason.
    losses: BTreeMap<LossReason, Sum>,
    /// Dead letters.
    dead: Part<DeadCount>,
    /// What is in quarantine.
    quarantine: Part<Aside>,
    /// The file system.
    file_system: Option<Space>,
    #[serde(skip)]
    budget: Budget,
    #[serde(skip)]
    retain: Retain,
}

/// A segment that was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Tried {
    segment: u64,
    attempts: u32,
    last_answer: Option<String>,
    next_try_at: Option<Timestamp>,
}

/// Entries of a directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct Aside {
    entries: u64,
    disk_bytes: u64,
}

/// What is told of one place in the directory; the others are told whatever is wrong with it.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Part<T> {
    Known(T),
    Unreadable { error: String },
}

/// Room on the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Space {
    total_bytes: u64,
    available_bytes: u64,
    total_inodes: u64,
    available_inodes: u64,
}

/// Asks for everything.
pub(super) async fn look(reader: &mut Reader, local: &Local) -> anyhow::Result<Summary> {
    let segments = reader.segments().await?;
    let mut states = BTreeMap::new();
    for segment in &segments {
        *states.entry(super::tables::segment_word(segment)).or_default() += 1;
    }
    let dead = reader.dead_count().await.into();
    let quarantine = reader.quarantine(crate::control::Scan::No).await;
    Ok(Summary {
        dir: local.queue.dir.clone(),
        states,
        tried: tried(&segments),
        losses: ledger::sums(&reader.losses().await?),
        dead,
        quarantine: quarantine.map(|entries| Aside::of(&entries)).into(),
        file_system: space(&local.queue.dir),
        budget: local.queue.limits.budget,
        retain: local.queue.limits.retain,
    })
}

fn tried(segments: &[SegmentInfo]) -> Option<Tried> {
    let waits = |segment: &&SegmentInfo| segment.last_answer.is_some();
    let segment = segments.iter().filter(waits).max_by_key(|segment| segment.attempts)?;
    Some(Tried {
        segment: segment.id,
        attempts: segment.attempts,
        last_answer: segment.last_answer.clone(),
        next_try_at: segment.next_try_at,
    })
}

fn space(dir: &Path) -> Option<Space> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(Space {
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        total_inodes: stat.f_files,
        available_inodes: stat.f_favail,
    })
}

impl Shown for Summary {
    fn page(&self, screen: &Screen, queue: &QueueStatus) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<INDENT$}{value}");
        };
        line("directory", self.dir.display().to_string());
        line("waiting", super::totals(screen, queue, INDENT));
        if !self.states.is_empty() {
            let states =
                self.states.iter().map(|(state, number)| format!("{} {state}", count(*number)));
            line("segments", states.collect::<Vec<_>>().join(", "));
        }
        line("budget", fill(queue));
        line("", self.rules());
        if queue.kept_segments > 0 || self.retain != Retain::Off {
            line(
                "delivered",
                format!(
                    "{} kept ({})",
                    counted(queue.kept_segments, "segment"),
                    retain(self.retain)
                ),
            );
        }
        line("disk", self.disk(queue));
        if let Some(tried) = &self.tried {
            line("delivery", delivery(screen, tried));
        }
        line("ring", format!("{} in memory", units::show_size(queue.ring_bytes)));
        line("lost", self.lost());
        line("dead", self.dead.show(|dead| dead_letters(dead, screen)));
        line("quarantine", self.quarantine.show(Aside::show));
        line("records", format!("the next one is {}", queue.next_seq));
        text
    }

    fn facts(&self, queue: &QueueStatus) -> Vec<(String, String)> {
        let states = self.states.iter().map(|(state, number)| format!("{number} {state}"));
        let states = states.collect::<Vec<_>>().join(", ");
        let mut facts = vec![
            (
                "queue".to_owned(),
                format!(
                    "{} segments ({states}), {} batches, {} records, {} on disk",
                    queue.segments,
                    queue.batches,
                    queue.records,
                    units::show_size(queue.disk_bytes),
                ),
            ),
            ("disk".to_owned(), queue.disk_error.clone().unwrap_or_else(|| "ok".to_owned())),
            ("dead letters".to_owned(), self.dead.show(|dead| dead.letters.to_string())),
            (
                "quarantine".to_owned(),
                self.quarantine.show(|aside| format!("{} entries", aside.entries)),
            ),
        ];
        facts.extend(
            self.losses.iter().map(|(reason, sum)| {
                (format!("lost ({reason})"), format!("{} records", sum.records))
            }),
        );
        facts.extend(self.tried.iter().map(|tried| {
            let answer = cut(tried.last_answer.as_deref().unwrap_or_default(), 60);
            ("last answer".to_owned(), format!("{answer}, {} tries", tried.attempts))
        }));
        facts
    }

    fn is_damaged(&self) -> bool {
        let damaged = SegmentState::Damaged;
        self.states.contains_key(super::tables::state_word(damaged))
            || self.quarantine.wants_a_look(|aside| aside.entries > 0)
            || self.dead.wants_a_look(|dead| dead.damaged > 0)
    }
}

impl Summary {
    fn rules(&self) -> String {
        let age = self.budget.age_max.map(|age| format!(", age_max {}", units::show_duration(age)));
        let full = match self.budget.on_full {
            OnFull::EvictOldest => "the oldest go",
            OnFull::EvictNewest => "what comes is not taken",
            OnFull::Block => "the collectors wait",
            OnFull::Thin => "the oldest are thinned",
        };
        format!("when it is full, {full}{}", age.unwrap_or_default())
    }

    fn disk(&self, queue: &QueueStatus) -> String {
        let health = match &queue.disk_error {
            None => "takes records".to_owned(),
            Some(error) => format!("takes no records, they are in memory: {error}"),
        };
        let Some(space) = self.file_system.filter(|space| space.total_bytes > 0) else {
            return health;
        };
        let percent = u128::from(space.available_bytes) * 100 / u128::from(space.total_bytes);
        let free = units::show_size(space.available_bytes);
        let min = self.budget.disk_free_min_percent;
        let low = if percent < u128::from(min) { ": too little" } else { "" };
        let inodes = match (space.total_inodes, space.available_inodes) {
            (0, _) => String::new(),
            (_, free) => format!(", {} inodes free", count(free)),
        };
        format!("{health}\n{:INDENT$}{free} free ({percent} %, at least {min} %{low}){inodes}", "")
    }

    fn lost(&self) -> String {
        if self.losses.is_empty() {
            return "nothing".to_owned();
        }
        let words = self.losses.iter().map(|(reason, sum)| {
            let records = counted(sum.records, "record");
            match sum.unacknowledged {
                0 => format!("{reason} {records}"),
                some => format!("{reason} {records} ({} not told yet)", counted_entries(some)),
            }
        });
        words.collect::<Vec<_>>().join(&format!("\n{:INDENT$}", ""))
    }
}

impl<T> Part<T> {
    fn show(&self, show: impl FnOnce(&T) -> String) -> String {
        match self {
            Self::Known(part) => show(part),
            Self::Unreadable { error } => error.replace('\n', &format!("\n{:INDENT$}", "")),
        }
    }

    fn wants_a_look(&self, wants: impl FnOnce(&T) -> bool) -> bool {
        match self {
            Self::Known(part) => wants(part),
            Self::Unreadable { .. } => true,
        }
    }
}

impl<T> From<anyhow::Result<T>> for Part<T> {
    fn from(read: anyhow::Result<T>) -> Self {
        match read {
            Ok(part) => Self::Known(part),
            Err(error) => Self::Unreadable { error: format!("{error:#}") },
        }
    }
}

impl Aside {
    fn of(entries: &[Quarantined]) -> Self {
        let disk_bytes = entries.iter().map(|entry| entry.disk_bytes).sum();
        Self { entries: entries.len() as u64, disk_bytes }
    }

    fn show(&self) -> String {
        if self.entries == 0 {
            return "empty".to_owned();
        }
        let (entries, size) = (counted_entries(self.entries), units::show_size(self.disk_bytes));
        format!("{entries}, {size}; see `agent inspect quarantine`")
    }
}

fn dead_letters(dead: &DeadCount, screen: &Screen) -> String {
    if dead.letters + dead.damaged == 0 {
        return "no letters".to_owned();
    }
    let newest = dead.newest_at.map(|at| format!(", the newest {} ago", screen.age(at)));
    let damaged = match dead.damaged {
        0 => String::new(),
        some => format!(", {}", counted(some, "damaged line")),
    };
    format!(
        "{}{damaged}, {}{}; see `agent inspect dead`",
        counted(dead.letters, "letter"),
        units::show_size(dead.bytes),
        newest.unwrap_or_default(),
    )
}

/// How full the queue is.
fn fill(queue: &QueueStatus) -> String {
    if queue.bytes_max == u64::MAX || queue.bytes_max == 0 {
        return format!("{} used, no bound", units::show_size(queue.usage_bytes));
    }
    let percent = u128::from(queue.usage_bytes) * 100 / u128::from(queue.bytes_max);
    let full = usize::try_from(percent).unwrap_or(usize::MAX).min(100) * BAR_WIDTH / 100;
    format!(
        "{percent} % of {} [{}{}] {} used",
        units::show_size(queue.bytes_max),
        "#".repeat(full),
        ".".repeat(BAR_WIDTH - full),
        units::show_size(queue.usage_bytes),
    )
}

fn counted_entries(number: u64) -> String {
    if number == 1 { "1 entry".to_owned() } else { format!("{} entries", count(number)) }
}

fn retain(retain: Retain) -> String {
    match retain {
        Retain::Off => "retain_delivered is off: they go".to_owned(),
        Retain::Bytes(bytes) => format!("up to {}", units::show_size(bytes)),
        Retain::Age(age) => format!("for {}", units::show_duration(age)),
    }
}

fn delivery(screen: &Screen, tried: &Tried) -> String {
    let next = tried.next_try_at.map(|at| match screen.until(at).as_str() {
        "now" => ", next try now".to_owned(),
        wait => format!(", next try in {wait}"),
    });
    let attempts = counted(u64::from(tried.attempts), "attempt");
    let answer = tried.last_answer.as_deref().unwrap_or_default().trim_end();
    let answer = answer.replace("\n  hint:", "; hint:").replace("; hint: ", "\n  hint: ");
    let answer = answer.replace("\n  hint:", &format!("\n{:INDENT$}hint:", ""));
    format!("{attempts}{}\n{:INDENT$}{answer}", next.unwrap_or_default(), "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::screen::Look;
    use crate::cli::status::tests::healthy;

    fn summary() -> Summary {
        Summary {
            dir: PathBuf::from("/var/lib/pganalytics/queue"),
            states: BTreeMap::from([("open", 1), ("sealed", 4_319)]),
            tried: Some(Tried {
                segment: 7,
                attempts: 12,
                last_answer: Some("503 the store is down; hint: wait".to_owned()),
                next_try_at: Some("2026-11-21T12:04:10Z".parse().expect("a time")),
            }),
            losses: BTreeMap::from([
                (LossReason::Evict, Sum { records: 12_345, entries: 3, unacknowledged: 1 }),
                (LossReason::Refuse, Sum { records: 1, entries: 1, unacknowledged: 0 }),
            ]),
            dead: Part::Known(DeadCount {
                letters: 1,
                damaged: 0,
                bytes: 812,
                newest_at: Some("2026-11-21T11:00:00Z".parse().expect("a time")),
            }),
            quarantine: Part::Known(Aside { entries: 1, disk_bytes: 528_384 }),
            file_system: Some(Space {
                total_bytes: 100 << 30,
                available_bytes: 4 << 30,
                total_inodes: 1_000_000,
                available_inodes: 900_000,
            }),
            budget: Budget { on_full: OnFull::Thin, ..Budget::default() },
            retain: Retain::Off,
        }
    }

    fn busy() -> QueueStatus {
        QueueStatus {
            segments: 4_320,
            batches: 4_321,
            records: 123_456,
            usage_bytes: 300 << 20,
            bytes_max: 1 << 30,
            disk_bytes: 280 << 20,
            ..healthy().queue
        }
    }

    #[test]
    fn summary_fits_one_screen() {
        for width in [80, 120] {
            let now = "2026-11-21T12:00:00Z".parse().expect("a time");
            let screen = Screen { width: Some(width), look: Look::Plain, now };
            let text = summary().page(&screen, &busy());
            assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
            assert!(text.lines().count() <= 23, "{text}");
            insta::assert_snapshot!(format!("summary_{width}"), text);
        }
    }

    #[test]
    fn damage_and_quarantine_want_a_look() {
        let empty = || Part::Known(Aside::default());
        let clean = Summary { quarantine: empty(), ..summary() };
        assert!(!clean.is_damaged());
        assert!(summary().is_damaged());
        let states = BTreeMap::from([("damaged", 1)]);
        assert!(Summary { states, quarantine: empty(), ..summary() }.is_damaged());
        let dead = Part::Known(DeadCount { damaged: 1, ..DeadCount::default() });
        let damaged = Summary { dead, quarantine: empty(), ..summary() };
        assert!(damaged.is_damaged());
        let now = "2026-11-21T12:00:00Z".parse().expect("a time");
        let screen = Screen { width: Some(80), look: Look::Plain, now };
        let text = damaged.page(&screen, &busy());
        assert!(text.contains("0 letters, 1 damaged line, 0 B"), "{text}");
    }

    #[test]
    fn a_part_that_cannot_be_read_is_told_and_the_others_too() {
        let dead = Err(anyhow::anyhow!("cannot read dead.ndjson: Is a directory")).into();
        let summary = Summary { dead, quarantine: Part::Known(Aside::default()), ..summary() };
        assert!(summary.is_damaged());
        let now = "2026-11-21T12:00:00Z".parse().expect("a time");
        let screen = Screen { width: Some(80), look: Look::Plain, now };
        let text = summary.page(&screen, &busy());
        assert!(text.contains("dead       cannot read dead.ndjson: Is a directory\n"), "{text}");
        assert!(text.contains("quarantine empty\n"), "{text}");
        let document = serde_json::to_value(&summary).expect("JSON");
        assert_eq!(document["dead"]["error"], "cannot read dead.ndjson: Is a directory");
        assert_eq!(document["quarantine"]["entries"], 0);
    }

    #[test]
    fn the_bar_is_never_longer_than_itself() {
        let mut queue = busy();
        let width = |queue: &QueueStatus| {
            let text = fill(queue);
            text.chars().filter(|c| "#.".contains(*c)).count()
        };
        queue.usage_bytes = u64::MAX;
        assert!(fill(&queue).contains(&"#".repeat(BAR_WIDTH)));
        queue.usage_bytes = 0;
        assert!(width(&queue) >= BAR_WIDTH);
        queue.bytes_max = u64::MAX;
        assert!(fill(&queue).contains("no bound"));
    }
}
