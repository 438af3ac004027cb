//! How a replay looks while it goes on and when it has ended.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::screen::{counted, cut};
use crate::cli::terminal::{self, tell};
use crate::clock;
use crate::control::{Part, ReplayProgress, ReplayState};
use crate::units;

/// How a replay has ended, as far as the command has followed it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Outcome {
    pub(super) progress: ReplayProgress,
    pub(super) took: Duration,
    /// What becomes of the rest.
    pub(super) rest: &'static str,
}

/// The bar of a replay that is being followed.
pub(super) struct Bar {
    bar: ProgressBar,
    begun: Instant,
}

impl Outcome {
    /// Prints it, and gives the exit code.
    pub(super) fn tell(&self, json: bool) -> anyhow::Result<ExitCode> {
        if json {
            tell(&serde_json::to_string_pretty(&self.progress)?)?;
        } else {
            tell(&self.text())?;
        }
        let code = self.exit_code();
        if code != 0 {
            terminal::complain(&self.trouble());
        }
        Ok(ExitCode::from(code))
    }

    fn exit_code(&self) -> u8 {
        let ReplayProgress { request, total, .. } = &self.progress;
        let asked_by_number = matches!(request.selection.part, Part::Segment(_));
        if asked_by_number && total.batches == 0 { 1 } else { self.progress.exit_code() }
    }

    fn text(&self) -> String {
        let ReplayProgress { request, done, total, duplicates, .. } = &self.progress;
        if total.batches == 0 && self.progress.corrupt == 0 {
            return match request.selection.part {
                Part::Pending => "nothing is queued".to_owned(),
                _ => format!("nothing to send: {} holds no records", request.selection),
            };
        }
        let mut text = format!(
            "delivered {} of {} ({}) in {}",
            done.batches,
            counted(total.batches, "batch"),
            counted(done.records, "record"),
            units::show_duration(self.took)
        );
        if *duplicates > 0 {
            text = format!("{text}; the backend had {} already", counted(*duplicates, "batch"));
        }
        text
    }

    fn trouble(&self) -> String {
        let progress = &self.progress;
        let counts = [
            (progress.corrupt, "record", "damaged on disk"),
            (progress.refused, "record", "refused by the backend"),
            (progress.refused_batches, "batch", "refused by the backend as a whole"),
            (progress.gone, "batch", "not kept any more"),
        ];
        let flaws = counts.into_iter().filter(|(count, ..)| *count > 0);
        let mut lines: Vec<String> =
            flaws.map(|(count, noun, what)| format!("{}: {what}", counted(count, noun))).collect();
        if progress.state != ReplayState::Done || progress.refused_batches > 0 {
            let answer = progress.last_answer.as_deref().unwrap_or("none yet");
            let answer = answer.replace("; hint: ", "\n  hint: ");
            lines.push(format!("{}; the last answer was: {answer}", self.rest));
        }
        lines.join("\n")
    }
}

/// Prints what has been ended.
pub(super) fn tell_stopped(
    stopped: Option<&ReplayProgress>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let text = match stopped {
        _ if json => serde_json::to_string_pretty(&stopped)?,
        None => "no replay is under way".to_owned(),
        Some(ReplayProgress { request, done, total, .. }) => format!(
            "ended the replay of {} after {} of {}",
            request.selection,
            done.batches,
            counted(total.batches, "batch")
        ),
    };
    tell(&text)?;
    Ok(ExitCode::SUCCESS)
}

impl Bar {
    /// A bar at its beginning; it shows on terminals only.
    pub(super) fn begin() -> Self {
        let style = "{bar:24} {pos}/{len} batches  {wide_msg}";
        // The template is a constant that every test reads.
        let style = ProgressStyle::with_template(style).expect("a good template");
        Self { bar: ProgressBar::new(0).with_style(style), begun: clock::monotonic() }
    }

    /// Shows how far it is.
    pub(super) fn show(&self, progress: &ReplayProgress) {
        self.bar.set_length(progress.total.batches);
        self.bar.set_position(progress.done.batches);
        self.bar.set_message(message(progress));
        self.bar.tick();
    }

    /// Removes the bar.
    pub(super) fn end(self, progress: ReplayProgress, rest: &'static str) -> Outcome {
        self.bar.finish_and_clear();
        let took = clock::monotonic().duration_since(self.begun);
        Outcome { progress, took, rest }
    }
}

fn message(progress: &ReplayProgress) -> String {
    let answer = cut(progress.last_answer.as_deref().unwrap_or_default(), 60);
    let rate = units::show_size(progress.bytes_s);
    match progress.eta_s {
        Some(left) => {
            let left = units::show_duration(Duration::from_secs(left));
            format!("{rate}/s  eta {left}  {answer}")
        }
        None => format!("{rate}/s  {answer}"),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::control::{Amount, ReplayRequest};

    fn outcome(change: impl FnOnce(&mut ReplayProgress)) -> Outcome {
        let mut progress = ReplayProgress::new(ReplayRequest::default(), Timestamp::UNIX_EPOCH);
        change(&mut progress);
        Outcome { progress, took: Duration::from_secs(2), rest: "the rest stays queued" }
    }

    fn amount(batches: u64) -> Amount {
        Amount { batches, records: batches * 10, bytes: batches * 1_000 }
    }

    #[test]
    fn what_happened_is_told_in_a_line() {
        let check = |change: fn(&mut ReplayProgress), code, text: &str, trouble: &str| {
            let outcome = outcome(change);
            assert_eq!((outcome.exit_code(), outcome.text().as_str()), (code, text));
            assert_eq!(outcome.trouble(), trouble);
        };
        check(|p| p.state = ReplayState::Done, 0, "nothing is queued", "");
        check(
            |p| {
                (p.state, p.done, p.total) = (ReplayState::Done, amount(3), amount(3));
                p.duplicates = 1;
            },
            0,
            "delivered 3 of 3 batches (30 records) in 2s; the backend had 1 batch already",
            "",
        );
        check(
            |p| {
                (p.state, p.done, p.total) = (ReplayState::Done, amount(2), amount(3));
                (p.corrupt, p.gone) = (4, 1);
            },
            2,
            "delivered 2 of 3 batches (20 records) in 2s",
            "4 records: damaged on disk\n1 batch: not kept any more",
        );
        check(
            |p| (p.total, p.last_answer) = (amount(1), Some("503 down; hint: wait".to_owned())),
            1,
            "delivered 0 of 1 batch (0 records) in 2s",
            "the rest stays queued; the last answer was: 503 down\n  hint: wait",
        );
        check(
            |p| {
                p.state = ReplayState::Done;
                p.request.selection.part = Part::Segment(7);
            },
            1,
            "nothing to send: segment 7 holds no records",
            "",
        );
    }

    #[test]
    fn bar_has_a_good_template() {
        let bar = Bar::begin();
        let outcome = outcome(|progress| progress.eta_s = Some(61));
        bar.show(&outcome.progress);
        assert_eq!(message(&outcome.progress), "0 B/s  eta 1min 1s  ");
        assert_eq!(bar.end(outcome.progress.clone(), "").progress, outcome.progress);
    }
}
