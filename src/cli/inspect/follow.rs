//! `--follow`: looks again each second, until Ctrl-C.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use super::{Args, Form, Sight, look};
use crate::cli::local::Local;
use crate::cli::screen::{Screen, cut};
use crate::cli::terminal;
use crate::{clock, shutdown};

/// How often the queue is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Lines of a terminal that does not say how many it has.
const HEIGHT: usize = 24;

/// Runs the command. Its exit code is that of the last look.
pub(super) async fn run(args: &Args, local: &Local) -> anyhow::Result<ExitCode> {
    let stopped = shutdown::signalled();
    tokio::pin!(stopped);
    let mut sight = Sight::of(args);
    // What fails from the start is an error; an agent that ends later is something to see.
    let mut last = Some(look(args, local, &mut sight).await?);
    loop {
        let exit = last.as_ref().map_or(ExitCode::FAILURE, |look| look.exit);
        if let Some(look) = last.take()
            && !show(&sight, &look.text)?
        {
            return Ok(exit);
        }
        tokio::select! {
            _ = &mut stopped => return Ok(exit),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        sight.screen = Screen { now: clock::now(), ..Screen::stdout(clock::now()) };
        match look(args, local, &mut sight).await {
            Ok(seen) => last = Some(seen),
            Err(error) => terminal::complain(&format!("agent inspect: {error:#}")),
        }
    }
}

/// Prints what a look has given; `false` when nobody reads it any more.
fn show(sight: &Sight, text: &str) -> std::io::Result<bool> {
    let terminal = std::io::stdout().is_terminal();
    if sight.form == Form::Page && terminal {
        let (width, height) = (sight.screen.width.unwrap_or(usize::MAX), height());
        let mut frame = String::from("\x1b[H");
        for line in text.lines().take(height.saturating_sub(1)) {
            frame.push_str(&fit(&terminal::visible(line), width));
            // To the end of the line: what stood there before was longer, perhaps.
            frame.push_str("\x1b[K\n");
        }
        frame.push_str("\x1b[J");
        let mut out = std::io::stdout().lock();
        out.write_all(frame.as_bytes())?;
        out.flush()?;
        return Ok(true);
    }
    if text.is_empty() {
        return Ok(true);
    }
    terminal::tell_while_read(text)
}

/// A line that does not wrap. Lines with colours are as wide as their table, which fits.
fn fit(line: &str, width: usize) -> String {
    if line.contains('\x1b') { line.to_owned() } else { cut(line, width) }
}

fn height() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    size.map_or(HEIGHT, |size| usize::from(size.ws_row)).max(2)
}

/// What is new, different or gone since `before`, a line each; nothing is new at the first look
/// but everything.
pub(super) fn changes(
    before: Option<&[(String, String)]>,
    now: &[(String, String)],
) -> Vec<String> {
    let known: BTreeMap<&str, &str> = before
        .unwrap_or_default()
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    let left: BTreeMap<&str, &str> =
        now.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let gone =
        before.unwrap_or_default().iter().filter(|(name, _)| !left.contains_key(name.as_str()));
    let gone = gone.map(|(name, _)| format!("{name} gone"));
    let new = now.iter().filter(|(name, text)| known.get(name.as_str()) != Some(&text.as_str()));
    gone.chain(new.map(|(name, text)| format!("{name} {text}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn only_what_changes_is_told() {
        let first = facts(&[("segment 1", "sealed"), ("segment 2", "open")]);
        assert_eq!(changes(None, &first), ["segment 1 sealed", "segment 2 open"]);
        assert_eq!(changes(Some(&first), &first), Vec::<String>::new());
        let second = facts(&[("segment 2", "sealed"), ("segment 3", "open")]);
        let expected = ["segment 1 gone", "segment 2 sealed", "segment 3 open"];
        assert_eq!(changes(Some(&first), &second), expected);
    }
}
