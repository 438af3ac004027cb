//! The tables of `inspect`. Pure: list and screen in, text out.

use std::time::Duration;

use comfy_table::{Cell, Color, Table};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::cli::screen::{Screen, count, counted, cut, one_unit, right};
use crate::queue::{BatchInfo, BatchState, SegmentInfo, SegmentState};

/// Less room than this tells nothing about an answer.
const ANSWER_WIDTH_MIN: usize = 6;
/// What an answer takes at most in a table; its full text stands below.
const ANSWER_WIDTH_MAX: usize = 40;

/// One row for each of the oldest `limit` segments (0: all), the last answer below.
pub(super) fn segments(screen: &Screen, list: &[SegmentInfo], limit: usize) -> String {
    let (list, rest) = limited(list, limit);
    let header = [
        ">id",
        "window UTC",
        ">records",
        ">raw",
        ">disk",
        ">age",
        ">sent",
        ">tries",
        ">next",
        "state",
    ];
    let rows = list.iter().map(|segment| {
        vec![
            right(segment.id),
            Cell::new(window(screen, segment)),
            right(count(segment.records)),
            right(screen.size(segment.raw_bytes)),
            right(screen.size(segment.disk_bytes)),
            right(segment.opened_at.map(|at| screen.age(at)).unwrap_or_default()),
            right(format!("{}/{}", segment.delivered, segment.batches)),
            right(tries(segment.attempts)),
            right(next(screen, segment.next_try_at)),
            segment_state(segment),
        ]
    });
    let answers: Vec<_> = list
        .iter()
        .map(|segment| Answered {
            name: format!("segment {}", segment.id),
            tries: segment.attempts,
            answer: segment.last_answer.as_deref(),
        })
        .collect();
    render(screen, &header, Listing { rows: rows.collect(), answers, rest })
}

/// One row for each of the oldest `limit` batches (0: all), the last answer below.
pub(super) fn batches(screen: &Screen, list: &[BatchInfo], limit: usize) -> String {
    let (list, rest) = limited(list, limit);
    let header = [">batch", "id", ">records", ">from", ">raw", ">tries", ">next", "state"];
    let rows = list.iter().map(|batch| {
        let id = batch.id.to_string();
        vec![
            right(batch_name(batch)),
            Cell::new(if screen.is_narrow() { cut(&id, 10) } else { id }),
            right(count(batch.records)),
            right(batch.first_seq),
            right(screen.size(batch.raw_bytes)),
            right(tries(batch.attempts)),
            right(next(screen, batch.next_try_at)),
            batch_state(batch.state),
        ]
    });
    let answers: Vec<_> = list
        .iter()
        .map(|batch| Answered {
            name: format!("batch {}", batch_name(batch)),
            tries: batch.attempts,
            answer: batch.last_answer.as_deref(),
        })
        .collect();
    render(screen, &header, Listing { rows: rows.collect(), answers, rest })
}

/// The rows of a table, and what is told besides.
struct Listing<'a> {
    rows: Vec<Vec<Cell>>,
    answers: Vec<Answered<'a>>,
    /// Entries that have no row.
    rest: usize,
}

/// The answer column of one row.
struct Answered<'a> {
    name: String,
    tries: u32,
    answer: Option<&'a str>,
}

pub(super) fn limited<T>(list: &[T], limit: usize) -> (&[T], usize) {
    let shown = if limit == 0 { list.len() } else { limit.min(list.len()) };
    (&list[..shown], list.len() - shown)
}

/// The table, with as much of the answers as there is room for, and one answer in full below.
fn render(screen: &Screen, header: &[&str], listing: Listing<'_>) -> String {
    let Listing { rows, answers, rest } = listing;
    if rows.is_empty() {
        return String::new();
    }
    let last = answers.iter().filter(|row| row.answer.is_some()).max_by_key(|row| row.tries);
    let below = rest_of(rest) + &in_full(last);
    // Columns as close together as they get, and the space before one more.
    let closest = Screen { width: Some(0), ..*screen };
    let used = closest.print(table(screen, header, rows.clone()));
    let used = used.lines().map(|line| line.chars().count()).max().unwrap_or(0) + 1;
    let room = screen.width.map_or(usize::MAX, |width| width.saturating_sub(used));
    let room = room.min(ANSWER_WIDTH_MAX);
    if room < ANSWER_WIDTH_MIN || last.is_none() {
        return screen.print(table(screen, header, rows)) + &below;
    }
    let header = [header, &["answer"]].concat();
    let rows = rows.into_iter().zip(&answers).map(|(mut row, answered)| {
        let answer = answered.answer.and_then(|answer| answer.split("; hint: ").next());
        row.push(Cell::new(answer.map(|answer| cut(answer, room)).unwrap_or_default()));
        row
    });
    screen.print(table(screen, &header, rows.collect())) + &below
}

fn table(screen: &Screen, header: &[&str], rows: Vec<Vec<Cell>>) -> Table {
    let mut table = screen.table(header);
    table.add_rows(rows);
    table
}

pub(super) fn rest_of(rest: usize) -> String {
    if rest == 0 {
        return String::new();
    }
    format!(".. and {} more; --limit 0 lists all\n", count(rest as u64))
}

fn in_full(last: Option<&Answered<'_>>) -> String {
    let Some(Answered { name, tries, answer: Some(answer) }) = last else {
        return String::new();
    };
    let tries = counted(u64::from(*tries), "attempt");
    let answer = answer.trim_end().replace("; hint: ", "\n  hint: ");
    format!("\nlast answer ({name}, {tries}): {answer}\n")
}

fn batch_name(batch: &BatchInfo) -> String {
    format!("{}/{}", batch.segment, batch.number)
}

fn tries(attempts: u32) -> String {
    if attempts == 0 { String::new() } else { attempts.to_string() }
}

fn next(screen: &Screen, at: Option<Timestamp>) -> String {
    at.map(|at| screen.until(at)).unwrap_or_default()
}

/// When the window began and how long it was.
fn window(screen: &Screen, segment: &SegmentInfo) -> String {
    let Some(opened) = segment.opened_at else { return String::new() };
    let length = segment.sealed_at.map_or(Duration::ZERO, |end| {
        Duration::try_from(end.duration_since(opened)).unwrap_or_default()
    });
    let date = |at: Timestamp| at.to_zoned(TimeZone::UTC).date();
    let format = match (screen.is_narrow(), date(opened) == date(screen.now)) {
        (false, _) => "%m-%d %H:%M:%S",
        (true, true) => "%H:%M:%S",
        (true, false) => return opened.strftime("%m-%d %H:%M").to_string(),
    };
    format!("{} +{}", opened.strftime(format), one_unit(length))
}

/// The state of a segment as everybody reads it.
pub(super) fn segment_word(segment: &SegmentInfo) -> &'static str {
    match segment.state {
        SegmentState::Damaged => state_word(SegmentState::Damaged),
        _ if segment.memory_only => "memory",
        state => state_word(state),
    }
}

/// The same, wherever the segment is.
pub(super) fn state_word(state: SegmentState) -> &'static str {
    match state {
        SegmentState::Damaged => "damaged",
        SegmentState::Sending => "sending",
        SegmentState::Open => "open",
        SegmentState::Sealed => "sealed",
        SegmentState::Kept => "delivered",
    }
}

/// The state of a batch as everybody reads it.
pub(super) fn batch_word(state: BatchState) -> &'static str {
    match state {
        BatchState::Open => "open",
        BatchState::Pending => "pending",
        BatchState::Sending => "sending",
        BatchState::Delivered | BatchState::Kept => "delivered",
    }
}

fn segment_state(segment: &SegmentInfo) -> Cell {
    let colour = match segment.state {
        SegmentState::Damaged => Some(Color::Red),
        _ if segment.memory_only => Some(Color::Yellow),
        SegmentState::Sending => Some(Color::Green),
        SegmentState::Kept => Some(Color::DarkGrey),
        SegmentState::Open | SegmentState::Sealed => None,
    };
    coloured(segment_word(segment), colour)
}

fn batch_state(state: BatchState) -> Cell {
    let colour = match state {
        BatchState::Sending => Some(Color::Green),
        BatchState::Delivered | BatchState::Kept => Some(Color::DarkGrey),
        BatchState::Open | BatchState::Pending => None,
    };
    coloured(batch_word(state), colour)
}

fn coloured(text: &str, colour: Option<Color>) -> Cell {
    let cell = Cell::new(text);
    match colour {
        Some(colour) => cell.fg(colour),
        None => cell,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::cli::screen::Look;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn screen(width: Option<usize>) -> Screen {
        Screen { width, look: Look::Plain, now: at("2026-11-21T12:00:00Z") }
    }

    fn segment(id: u64, opened: &str, state: SegmentState) -> SegmentInfo {
        SegmentInfo {
            id,
            state,
            opened_at: Some(at(opened)),
            sealed_at: Some(at(opened) + Duration::from_secs(60)),
            first_seq: id % 1_000 * 100,
            last_seq: 0,
            windows: 0,
            thinned: 0,
            corrupt: 0,
            records: 2_400 * (id % 1_000),
            raw_bytes: 13_000_000 * (id % 1_000),
            stored_bytes: 3_000_000 * (id % 1_000),
            disk_bytes: 4_096_000 * (id % 1_000),
            batches: 2,
            delivered: 0,
            memory_only: false,
            attempts: 0,
            last_answer: None,
            next_try_at: None,
        }
    }

    fn backlog() -> Vec<SegmentInfo> {
        let answer = "503 the store is down\n  hint: wait";
        let failed = SegmentInfo {
            delivered: 1,
            attempts: 12,
            last_answer: Some(answer.to_owned()),
            next_try_at: Some(at("2026-11-21T12:04:10Z")),
            ..segment(7, "2026-11-19T23:59:00Z", SegmentState::Sealed)
        };
        let memory = SegmentInfo {
            memory_only: true,
            ..segment(1_795_251_832_103, "2026-11-21T11:58:00Z", SegmentState::Sealed)
        };
        vec![
            failed,
            segment(8, "2026-11-20T04:00:00Z", SegmentState::Damaged),
            segment(9, "2026-11-21T09:30:00Z", SegmentState::Sending),
            memory,
            segment(1_795_251_892_103, "2026-11-21T11:59:01Z", SegmentState::Open),
        ]
    }

    fn batch(segment: u64, number: u32, state: BatchState) -> BatchInfo {
        BatchInfo {
            id: Uuid::from_u128(u128::from(segment) << 64 | u128::from(number)),
            origin: crate::queue::Origin { segment: 0, batch: 0, thinned: 0 },
            window: (None, None),
            segment,
            number,
            state,
            first_seq: segment % 10_000 * 1_000,
            records: 1_000,
            raw_bytes: 900_000,
            attempts: 0,
            last_answer: None,
            next_try_at: None,
        }
    }

    fn fits(text: &str, width: usize) {
        let table = text.lines().take_while(|line| !line.is_empty());
        for line in table {
            assert!(line.chars().count() <= width, "{line}");
        }
    }

    #[test]
    fn segments_fit_the_screen() {
        for width in [80, 120] {
            let text = segments(&screen(Some(width)), &backlog(), 0);
            fits(&text, width);
            insta::assert_snapshot!(format!("segments_{width}"), text);
        }
    }

    #[test]
    fn batches_fit_the_screen() {
        let failed = BatchInfo {
            attempts: 3,
            last_answer: Some(
                "no whole answer from 127.0.0.1:1 within 30s; hint: is it overloaded?".to_owned(),
            ),
            next_try_at: Some(at("2026-11-21T12:00:09Z")),
            ..batch(7, 1, BatchState::Pending)
        };
        let list = [
            batch(7, 0, BatchState::Delivered),
            failed,
            batch(1_795_251_832_103, 0, BatchState::Sending),
            batch(1_795_251_892_103, 0, BatchState::Open),
        ];
        for width in [80, 120] {
            let text = batches(&screen(Some(width)), &list, 0);
            fits(&text, width);
            insta::assert_snapshot!(format!("batches_{width}"), text);
        }
    }

    #[test]
    fn answers_take_no_room_where_there_are_none() {
        let list = [segment(1, "2026-11-21T11:59:00Z", SegmentState::Open)];
        assert!(!segments(&screen(None), &list, 0).contains("answer"));
        assert_eq!(segments(&screen(None), &[], 0), "");
    }

    #[test]
    fn long_lists_are_cut_and_say_so() {
        let text = segments(&screen(Some(120)), &backlog(), 2);
        assert!(text.contains(".. and 3 more; --limit 0 lists all"), "{text}");
        assert!(!text.contains("open"), "{text}");
    }

    #[test]
    fn states_have_colours_on_a_terminal_only() {
        let coloured = Screen { look: Look::Coloured, ..screen(Some(120)) };
        assert!(segments(&coloured, &backlog(), 0).contains("\u{1b}["));
        assert!(!segments(&screen(Some(120)), &backlog(), 0).contains('\u{1b}'));
    }
}
