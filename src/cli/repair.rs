//! `agent queue repair`: a plan, and what came of it.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

use super::local;
use super::screen::{Screen, counted};
use super::terminal::tell;
use crate::clock;
use crate::config::Config;
use crate::queue::{Plan, Repair, Repaired, Requeue, StepKind};
use crate::units;

/// How `agent queue repair` works.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Carry the plan out, and keep a backup of all that it changes.
    #[arg(long)]
    pub apply: bool,

    /// Queue segments of quarantine/ once more, as far as they can be read.
    ///
    /// What the backend has already it recognises by the ids of the batches.
    #[arg(long)]
    pub requeue: bool,

    /// Print JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// The queue's directory.
    dir: &'a Path,
    #[serde(flatten)]
    plan: &'a Plan,
    /// What was done; absent while it is a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    repaired: Option<&'a Repaired>,
}

/// Runs the command.
pub fn run(args: &Args, config: &Config) -> ExitCode {
    local::finish("queue repair", repair(args, &config.queue))
}

fn repair(args: &Args, queue: &crate::queue::QueueConfig) -> anyhow::Result<ExitCode> {
    let dir = &queue.dir;
    if matches!(dir.try_exists(), Ok(false)) {
        anyhow::bail!("no queue in {}: the directory does not exist", dir.display());
    }
    let requeue = if args.requeue { Requeue::Yes } else { Requeue::No };
    let repair = Repair::plan(dir, queue.limits, requeue).map_err(|error| {
        let in_use = error.source.kind() == std::io::ErrorKind::WouldBlock;
        let hint = if in_use { "; stop the agent first, and start it afterwards" } else { "" };
        anyhow::anyhow!("{error}{hint}")
    })?;
    let plan = repair.steps().clone();
    let repaired = if args.apply && !plan.steps.is_empty() {
        let failed = "what is not repaired is still there, or in a backup-*/ of the queue";
        Some(repair.apply(clock::now()).context(failed)?)
    } else {
        None
    };
    let report = Report { dir, plan: &plan, repaired: repaired.as_ref() };
    if args.json {
        tell(&serde_json::to_string_pretty(&report)?)?;
    } else {
        tell(&page(&Screen::stdout(clock::now()), &report))?;
    }
    let damage = plan.steps.iter().any(|step| step.kind.is_damage());
    Ok(ExitCode::from(if damage && repaired.is_none() { 2 } else { 0 }))
}

fn page(screen: &Screen, report: &Report<'_>) -> String {
    let steps = &report.plan.steps;
    let mut text = format!("queue in {}\n", report.dir.display());
    if steps.is_empty() {
        text.push_str("there is nothing to repair\n");
    } else {
        text.push('\n');
    }
    for (number, step) in steps.iter().enumerate() {
        let line = format!("{:>2}. {}: {}", number + 1, step.path.display(), step.what);
        let fix = format!("    {}{}", mark(step.kind), step.fix);
        text.push_str(&wrap(screen, &line, 4));
        text.push_str(&wrap(screen, &fix, 4));
    }
    if !report.plan.remarks.is_empty() {
        text.push('\n');
    }
    for remark in &report.plan.remarks {
        text.push_str(&wrap(screen, &format!("note {remark}"), 5));
    }
    match report.repaired {
        Some(Repaired { backup, records }) => {
            let _ = write!(
                text,
                "\ndone; {} wait for delivery\nas it was before: {}\n",
                counted(*records, "record"),
                backup.display(),
            );
        }
        None if steps.is_empty() => {}
        None => {
            let bytes: u64 = steps.iter().map(|step| step.backup_bytes).sum();
            let _ = write!(
                text,
                "\nnothing is changed yet: --apply does this, and keeps a backup ({})\n",
                units::show_size(bytes),
            );
        }
    }
    text
}

fn mark(kind: StepKind) -> &'static str {
    if kind.is_damage() { "repair: " } else { "tidy: " }
}

/// Breaks a line at spaces where the screen ends; what follows is indented by `indent`.
fn wrap(screen: &Screen, line: &str, indent: usize) -> String {
    let width = screen.width.unwrap_or(usize::MAX);
    let lead = line.len() - line.trim_start().len();
    let mut text = " ".repeat(lead);
    let mut used = lead;
    for (number, word) in line.split_whitespace().enumerate() {
        let length = word.chars().count();
        if number > 0 && used + 1 + length > width {
            let _ = write!(text, "\n{:indent$}", "");
            used = indent;
        } else if number > 0 {
            text.push(' ');
            used += 1;
        }
        text.push_str(word);
        used += length;
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::screen::Look;

    #[test]
    fn lines_break_where_the_screen_ends() {
        let screen = |width| Screen { width, look: Look::Plain, now: jiff::Timestamp::UNIX_EPOCH };
        let line = " 1. segments/7: 20 records cannot be read";
        let expected = " 1. segments/7: 20\n    records cannot\n    be read\n";
        assert_eq!(wrap(&screen(Some(18)), line, 4), expected);
        assert_eq!(wrap(&screen(None), line, 4), format!("{line}\n"));
        assert_eq!(wrap(&screen(Some(4)), "averylongword x", 2), "averylongword\n  x\n");
    }
}
