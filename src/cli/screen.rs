//! How numbers, times and sizes look on a terminal. Pure.

use std::io::IsTerminal;
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, LineStyle, Table, TableStyle};
use jiff::Timestamp;

use crate::units;

/// Where something is shown, and when.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    /// Columns; `None` when it is no terminal, and lines may be of any length.
    pub width: Option<usize>,
    /// Whether states are coloured.
    pub look: Look,
    /// The time that ages are counted to.
    pub now: Timestamp,
}

/// With or without colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Text only.
    Plain,
    /// ANSI colours.
    Coloured,
}

impl Screen {
    /// Standard output as it is now.
    pub fn stdout(now: Timestamp) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let plain = !terminal || std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
        Self {
            width: Table::new().width().filter(|_| terminal).map(usize::from),
            look: if plain { Look::Plain } else { Look::Coloured },
            now,
        }
    }

    /// Too narrow for the long forms of sizes and times.
    pub fn is_narrow(&self) -> bool {
        self.width.is_some_and(|width| width < 110)
    }

    /// An empty table: no borders, a line below the header. Names of columns whose content stands
    /// at the right begin with `>`.
    pub fn table(&self, header: &[&str]) -> Table {
        let line = LineStyle::none().fill('\u{2500}').junction('\u{2500}');
        let mut table = Table::new();
        table.load_style(TableStyle::new().header_separator(line));
        table.set_header(header.iter().map(|name| match name.strip_prefix('>') {
            Some(name) => right(name),
            None => Cell::new(name),
        }));
        match self.look {
            Look::Plain => table.force_no_tty(),
            Look::Coloured => table.enforce_styling(),
        };
        table
    }

    /// The table's text; columns are two spaces apart where there is room, else one.
    pub fn print(&self, mut table: Table) -> String {
        let mut text = String::new();
        for padding in [1, 0] {
            for column in table.column_iter_mut() {
                column.set_padding((0, padding));
            }
            text.clear();
            for line in table.lines() {
                text.push_str(line.trim_end());
                text.push('\n');
            }
            let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
            if self.width.is_none_or(|width| widest <= width) {
                break;
            }
        }
        text
    }

    /// How long ago, in one unit: `12s`, `5min`, `2h`, `3d`.
    pub fn age(&self, at: Timestamp) -> String {
        let age = self.now.duration_since(at);
        one_unit(Duration::try_from(age).unwrap_or_default())
    }

    /// How long until, in one unit; `now` when it is past.
    pub fn until(&self, at: Timestamp) -> String {
        match Duration::try_from(at.duration_since(self.now)) {
            Ok(wait) if wait >= Duration::from_secs(1) => one_unit(wait),
            _ => "now".to_owned(),
        }
    }

    /// A size, short where there is little room: `1.2M` instead of `1.2 MiB`.
    pub fn size(&self, bytes: u64) -> String {
        let long = units::show_size(bytes);
        if self.is_narrow() { long.replace("iB", "").replace(' ', "") } else { long }
    }
}

/// A duration in its largest unit.
pub fn one_unit(duration: Duration) -> String {
    let text = units::show_duration(Duration::from_secs(duration.as_secs().max(1)));
    let first = text.split(' ').next().unwrap_or_default();
    if duration.as_secs() == 0 { "0s".to_owned() } else { first.to_owned() }
}

/// A count with its thousands apart: `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count and its noun, which takes an `s` unless the count is 1.
pub fn counted(number: u64, noun: &str) -> String {
    let plural = match (number, noun.strip_suffix("ch")) {
        (1, _) => "",
        (_, Some(_)) => "es",
        _ => "s",
    };
    format!("{} {noun}{plural}", count(number))
}

/// The first line of `text`, at most `width` characters, `..` where it was cut.
pub fn cut(text: &str, width: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= width {
        return line.to_owned();
    }
    let kept: String = line.chars().take(width.saturating_sub(2)).collect();
    format!("{}..", kept.trim_end())
}

/// A cell whose content stands at the right.
pub fn right(text: impl Into<Cell>) -> Cell {
    text.into().set_alignment(CellAlignment::Right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_sizes_and_times_are_short() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(12_345_678), "12,345,678");
        assert_eq!(counted(1, "batch"), "1 batch");
        assert_eq!(counted(2, "batch"), "2 batches");
        assert_eq!(counted(0, "record"), "0 records");
        assert_eq!(one_unit(Duration::from_millis(900)), "0s");
        assert_eq!(one_unit(Duration::from_secs(59)), "59s");
        assert_eq!(one_unit(Duration::from_secs(7_500)), "2h");
        assert_eq!(cut("one\ntwo", 10), "one");
        assert_eq!(cut("a long answer", 13), "a long answer");
        assert_eq!(cut("a long answer", 9), "a long..");
    }

    #[test]
    fn narrow_screens_get_short_sizes() {
        let check = |width, bytes, expected: &str| {
            let screen = Screen { width, look: Look::Plain, now: Timestamp::UNIX_EPOCH };
            assert_eq!(screen.size(bytes), expected);
        };
        check(Some(80), 1_258_291, "1.2M");
        check(Some(80), 12, "12B");
        check(Some(120), 1_258_291, "1.2 MiB");
        check(None, 12, "12 B");
    }
}
