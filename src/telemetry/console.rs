//! Lines to standard error that hold nobody up: a pipe that nobody reads is full after a while, and
//! a write to it would then wait for ever, and with it whatever wanted to be told of.
//!
//! Lines are written where they are said, so none is lost to a kill, and only while the other end
//! takes them. When it does not, the first line waits a moment; from then on lines are left out,
//! and counted, until it takes one again.
//!
//! What others have said is in the lines, too: one event is one line, and a terminal obeys none of
//! it.

use std::{
    io::{self, Write},
    os::fd::AsFd,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing_subscriber::fmt::MakeWriter;

use crate::units::{escape, is_obeyed};

/// How long the first line waits for its reader.
const PATIENCE: Duration = Duration::from_millis(200);
/// What a pipe that can be written to takes without waiting (`PIPE_BUF`, `pipe(7)`).
const CHUNK_BYTES: usize = 4096;

/// The colours of the formatter, and their end.
const COLOURS: [&str; 9] = [
    "\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[3m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[34m",
    "\x1b[35m",
];

/// Where lines go.
#[derive(Debug)]
pub(super) struct Console<W> {
    lines: Mutex<Lines<W>>,
    /// Lines come with the formatter's colours.
    is_coloured: bool,
}

#[derive(Debug)]
struct Lines<W> {
    out: W,
    /// Lines that were left out since the last one that was taken.
    left_out: u64,
    /// A line was cut off, so that the next begins a new one.
    is_cut: bool,
}

impl<W: Write + AsFd> Console<W> {
    pub(super) fn new(out: W, is_coloured: bool) -> Self {
        let lines = Mutex::new(Lines { out, left_out: 0, is_cut: false });
        Self { lines, is_coloured }
    }
}

/// One line, which is written whole.
pub(super) struct Line<'a, W> {
    lines: MutexGuard<'a, Lines<W>>,
    is_coloured: bool,
}

impl<'a, W: Write + AsFd + 'a> MakeWriter<'a> for Console<W> {
    type Writer = Line<'a, W>;

    fn make_writer(&'a self) -> Line<'a, W> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        Line { lines, is_coloured: self.is_coloured }
    }
}

impl<W: Write + AsFd> Write for Line<'_, W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.put(obeyed_by_nobody(line, self.is_coloured).as_bytes());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write + AsFd> Lines<W> {
    fn put(&mut self, line: &[u8]) {
        // Only who was listening until now is waited for.
        let patience = if self.left_out == 0 { PATIENCE } else { Duration::ZERO };
        if self.left_out > 0 && self.takes(patience) {
            let (begin, lines) = (if self.is_cut { "\n" } else { "" }, self.left_out);
            let note = "WARN lines of this log left out";
            let note = format!("{begin} {note}: {lines}, nobody read it\n");
            if self.out.write_all(note.as_bytes()).is_ok() {
                (self.left_out, self.is_cut) = (0, false);
            }
        }
        if self.left_out > 0 {
            self.left_out += 1;
            return;
        }
        for (nth, chunk) in line.chunks(CHUNK_BYTES).enumerate() {
            if !self.takes(patience) || self.out.write_all(chunk).is_err() {
                (self.left_out, self.is_cut) = (1, nth > 0);
                return;
            }
        }
    }

    /// Whether the other end takes a chunk, within `patience`.
    fn takes(&self, patience: Duration) -> bool {
        let mut fds = [PollFd::new(&self.out, PollFlags::OUT)];
        let Ok(timeout) = Timespec::try_from(patience) else { return false };
        loop {
            match poll(&mut fds, Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => {}
                // A reader that has gone is an error of the write, at once.
                Ok(ready) => return ready > 0,
                // What cannot be asked is written to.
                Err(_) => return true,
            }
        }
    }
}

/// A line with what a terminal would obey, and with breaks within it, as JSON escapes them. The
/// formatter's colours stay where it uses them: it hands on what it is told as it is.
fn obeyed_by_nobody(line: &[u8], is_coloured: bool) -> String {
    let colours: &[&str] = if is_coloured { &COLOURS } else { &[] };
    let text = String::from_utf8_lossy(line);
    let (mut rest, end) = text.strip_suffix('\n').map_or((&*text, ""), |text| (text, "\n"));
    let mut shown = String::with_capacity(line.len());
    while let Some(c) = rest.chars().next() {
        let colour = colours.iter().find(|colour| rest.starts_with(**colour));
        match c {
            _ if colour.is_some() => shown.push_str(colour.copied().unwrap_or_default()),
            '\n' => shown.push_str("\\n"),
            c if is_obeyed(c) => escape(c, &mut shown),
            c => shown.push(c),
        }
        rest = &rest[colour.map_or(c.len_utf8(), |colour| colour.len())..];
    }
    shown.push_str(end);
    shown
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, pipe},
        os::fd::OwnedFd,
    };

    use super::*;

    fn say(console: &Console<File>, line: &str) {
        console.make_writer().write_all(line.as_bytes()).expect("never an error");
    }

    fn console() -> (io::PipeReader, Console<File>) {
        let (reader, writer) = pipe().expect("a pipe");
        (reader, Console::new(File::from(OwnedFd::from(writer)), false))
    }

    /// More than a pipe holds, and nobody reads: who speaks goes on, and what was left out is said.
    #[test]
    fn a_reader_that_sleeps_holds_nobody_up() {
        for length in [60, 9_000] {
            let (reader, console) = console();
            let line = format!("{}\n", "x".repeat(length));
            for _ in 0..5_000 {
                say(&console, &line);
            }
            let (sender, read) = std::sync::mpsc::channel();
            let reading = std::thread::spawn(move || {
                let mut reader = io::BufReader::new(reader);
                let mut text = String::new();
                while io::BufRead::read_line(&mut reader, &mut text).expect("text") > 0 {
                    if text.ends_with("the last\n") {
                        sender.send(()).ok();
                    }
                }
                text
            });
            // It wakes up, and takes lines again.
            while read.try_recv().is_err() {
                say(&console, "the last\n");
            }
            drop(console);
            let text = reading.join().expect("no panic");
            let whole = text.lines().filter(|got| got.len() == length).count();
            assert!((1..5_000).contains(&whole), "{whole} whole lines of {length}");
            let note = text.lines().find_map(|line| {
                let count = line.strip_prefix(" WARN lines of this log left out: ")?;
                count.strip_suffix(", nobody read it")?.parse::<usize>().ok()
            });
            let note = note.expect("a note on a line of its own");
            assert!(note >= 5_000 - whole, "{note} left out, {whole} whole");
        }
    }

    /// C40: nothing is left out while somebody reads.
    #[test]
    fn every_line_reaches_a_reader() {
        let (mut reader, console) = console();
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).expect("text");
            text
        });
        let lines: Vec<String> = (0..2_000).map(|n| format!("{n} {}\n", "x".repeat(n))).collect();
        for line in &lines {
            say(&console, line);
        }
        drop(console);
        assert!(reading.join().expect("no panic") == lines.concat());
    }

    /// What a backend or a server has said is one line, and steers no terminal.
    #[test]
    fn a_terminal_obeys_nothing_of_a_line() {
        let check = |line: &str, expected: &str| {
            assert_eq!(obeyed_by_nobody(line.as_bytes(), false), expected, "{line:?}");
        };
        check("K\u{f6}ln\tx\n", "K\u{f6}ln\tx\n");
        check("it said: a\n2026 ERROR forged\n", "it said: a\\n2026 ERROR forged\n");
        check("\u{202e}exe.txt\u{9b}2J\r\n", "\\u202eexe.txt\\u009b2J\\u000d\n");
        check("\x1b[2Jx\n", "\\u001b[2Jx\n");
        let colours = "\x1b[32m INFO\x1b[0m x\n";
        assert_eq!(obeyed_by_nobody(colours.as_bytes(), true), colours);
        // What the formatter is told, it hands on.
        let (mut reader, console) = console();
        let console = Console { is_coloured: true, ..console };
        let lines = tracing_subscriber::fmt().with_ansi(true).with_writer(console).finish();
        tracing::subscriber::with_default(lines, || {
            let error = std::io::Error::other("\x1b[2J\u{202e}\n");
            tracing::warn!(%error, ?error, "it said {error}");
        });
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("text");
        assert!(!text.contains("\x1b[2J") && !text.contains('\u{202e}'), "{text:?}");
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
    }

    /// A reader that has gone is no error either.
    #[test]
    fn a_reader_that_has_gone_is_not_waited_for() {
        let (reader, console) = console();
        drop(reader);
        for _ in 0..100_000 {
            say(&console, "x\n");
        }
    }
}
