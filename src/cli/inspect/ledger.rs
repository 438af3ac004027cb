//! `inspect ledger`: records that were numbered and will not be delivered, with the reason.

use std::collections::BTreeMap;

use comfy_table::Cell;
use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::Shown;
use super::tables::limited;
use crate::cli::screen::{Screen, count, counted, right};
use crate::queue::{Loss, LossReason, QueueStatus};

/// The ledger.
#[derive(Debug, Serialize)]
pub(super) struct Ledger {
    /// Its entries, oldest first.
    #[serde(serialize_with = "entries")]
    pub(super) losses: Vec<Loss>,
    /// Rows of the table.
    #[serde(skip)]
    pub(super) limit: usize,
}

/// An entry as programs read it.
#[derive(Debug, Serialize)]
struct Entry {
    id: u64,
    reason: LossReason,
    records: u64,
    first_seq: u64,
    last_seq: u64,
    oldest_at: Option<Timestamp>,
    newest_at: Option<Timestamp>,
    noticed_at: Option<Timestamp>,
    acknowledged: bool,
}

/// Losses of one reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Sum {
    /// Records.
    pub(super) records: u64,
    /// Entries of the ledger.
    pub(super) entries: u64,
    /// Entries that the backend does not know yet.
    pub(super) unacknowledged: u64,
}

/// The losses by reason.
pub(super) fn sums(losses: &[Loss]) -> BTreeMap<LossReason, Sum> {
    let mut sums: BTreeMap<LossReason, Sum> = BTreeMap::new();
    for loss in losses {
        let sum = sums.entry(loss.reason).or_default();
        sum.records += loss.records;
        sum.entries += 1;
        sum.unacknowledged += u64::from(!loss.acknowledged);
    }
    sums
}

impl Shown for Ledger {
    fn page(&self, screen: &Screen, _queue: &QueueStatus) -> String {
        if self.losses.is_empty() {
            return "the ledger is empty: no record was lost\n".to_owned();
        }
        let (list, rest) = limited(&self.losses, self.limit);
        let mut table = screen.table(&[
            ">entry",
            "reason",
            ">records",
            "sequence numbers",
            "of UTC",
            ">noticed",
            "backend",
        ]);
        for loss in list {
            table.add_row(vec![
                right(loss.id),
                Cell::new(loss.reason),
                right(count(loss.records)),
                Cell::new(format!("{}-{}", loss.from, loss.to)),
                Cell::new(span(screen, loss)),
                right(time(loss.at_ms).map(|at| screen.age(at)).unwrap_or_default()),
                Cell::new(if loss.acknowledged { "knows" } else { "not told" }),
            ]);
        }
        let words = sums(&self.losses)
            .into_iter()
            .map(|(reason, sum)| format!("{reason} {}", counted(sum.records, "record")));
        let mut text = format!("{}\n\n", words.collect::<Vec<_>>().join(", "));
        text.push_str(&screen.print(table));
        text.push_str(&super::tables::rest_of(rest));
        text
    }

    fn facts(&self, _queue: &QueueStatus) -> Vec<(String, String)> {
        let fact = |loss: &Loss| {
            let known = if loss.acknowledged { ", the backend knows" } else { "" };
            let Loss { reason, records, from, to, .. } = loss;
            (format!("loss {}", loss.id), format!("{reason} {records} of {from}-{to}{known}"))
        };
        self.losses.iter().map(fact).collect()
    }

    fn is_damaged(&self) -> bool {
        false
    }
}

fn span(screen: &Screen, loss: &Loss) -> String {
    let Some((from, to)) = time(loss.time_ms.0).zip(time(loss.time_ms.1)) else {
        return String::new();
    };
    let format = if screen.is_narrow() { "%m-%d %H:%M" } else { "%Y-%m-%d %H:%M:%S" };
    let seconds = to.duration_since(from).as_secs().max(0).unsigned_abs();
    let length = crate::cli::screen::one_unit(std::time::Duration::from_secs(seconds));
    format!("{} +{length}", from.strftime(format))
}

fn time(ms: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(ms).ok()
}

fn entries<S: Serializer>(losses: &[Loss], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(losses.iter().map(|loss| Entry {
        id: loss.id,
        reason: loss.reason,
        records: loss.records,
        first_seq: loss.from,
        last_seq: loss.to,
        oldest_at: time(loss.time_ms.0),
        newest_at: time(loss.time_ms.1),
        noticed_at: time(loss.at_ms),
        acknowledged: loss.acknowledged,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::screen::Look;

    fn ledger() -> Ledger {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time").as_millisecond();
        let loss = |id, from, to, reason, acknowledged| Loss {
            id,
            from,
            to,
            records: to - from + 1,
            reason,
            time_ms: (at("2026-11-20T10:00:00Z"), at("2026-11-20T11:00:00Z")),
            at_ms: at("2026-11-21T11:50:00Z"),
            acknowledged,
        };
        let losses = vec![
            loss(0, 0, 99_999, LossReason::Evict, true),
            loss(1, 100_000, 100_099, LossReason::Corrupt, false),
            loss(2, 123_456, 123_456, LossReason::Refuse, false),
        ];
        Ledger { losses, limit: 0 }
    }

    #[test]
    fn ledger_fits_the_screen() {
        let queue = crate::cli::status::tests::healthy().queue;
        for width in [80, 120] {
            let now = "2026-11-21T12:00:00Z".parse().expect("a time");
            let screen = Screen { width: Some(width), look: Look::Plain, now };
            let text = ledger().page(&screen, &queue);
            assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
            insta::assert_snapshot!(format!("ledger_{width}"), text);
        }
    }

    #[test]
    fn losses_are_summed_by_reason() {
        let sums = sums(&ledger().losses);
        let evicted = Sum { records: 100_000, entries: 1, unacknowledged: 0 };
        assert_eq!((sums.len(), sums[&LossReason::Evict]), (3, evicted));
        assert_eq!(sums[&LossReason::Corrupt].unacknowledged, 1);
    }

    #[test]
    fn programs_read_times() {
        let json = serde_json::to_value(ledger()).expect("JSON");
        let first = &json["losses"][0];
        assert_eq!(first["reason"], "evict");
        assert_eq!(first["oldest_at"], "2026-11-20T10:00:00Z");
    }
}
