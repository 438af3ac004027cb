//! `--dry-run`: what would be sent.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::Args;
use crate::agent::replay::{Asked, Job, amount, count_dead};
use crate::cli::local::Local;
use crate::cli::screen::counted;
use crate::cli::terminal::tell;
use crate::config::Config;
use crate::control::{Amount, Client, ClientError, ReplayProgress, ReplayRequest, Selection};
use crate::queue::{BatchInfo, BatchState, dead_letters};
use crate::{clock, units};

/// What would be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Plan {
    selection: Selection,
    segments: u64,
    #[serde(flatten)]
    amount: Amount,
    /// Dead letters that are damaged on disk.
    damaged: u64,
    /// The begin of the first window and the end of the last.
    span: (Option<Timestamp>, Option<Timestamp>),
}

/// Looks through the queue that would be replayed, and changes nothing.
pub(super) async fn make(args: &Args, config: &Config, client: &Client) -> anyhow::Result<Plan> {
    let request = args.request();
    let dir = args.dir.as_deref().unwrap_or(&config.queue.dir);
    let job = Job::new(ReplayProgress::new(request, clock::now()));
    if job.is_of_dead() {
        return of_dead(request, dir);
    }
    let mut local = Local::of(config);
    let batches = match client.batches().await {
        Ok(mut batches) if args.dir.is_none() => {
            // The agent ends the window before it replays.
            let open = batches.iter_mut().filter(|batch| batch.state == BatchState::Open);
            open.for_each(|batch| batch.state = BatchState::Pending);
            batches
        }
        Ok(_) | Err(ClientError::NotRunning(_)) => {
            dir.clone_into(&mut local.queue.dir);
            local.view()?.batches()?
        }
        Err(error) => return Err(error.into()),
    };
    Ok(of_batches(&job, &batches))
}

fn of_dead(request: ReplayRequest, dir: &Path) -> anyhow::Result<Plan> {
    // Letters of earlier versions do not name their queue: to count them, any name for it will do.
    let asked = Asked { next_seq: u64::MAX, at: clock::now() };
    let count = count_dead(&dead_letters(dir), Uuid::nil(), asked)?;
    let selection = request.selection;
    let (amount, damaged) = (count.amount, count.unreadable);
    Ok(Plan { selection, segments: 0, amount, damaged, span: (None, None) })
}

fn of_batches(job: &Job, batches: &[BatchInfo]) -> Plan {
    let items = job.select(batches);
    let chosen: BTreeSet<u64> = items.iter().map(|item| item.first_seq).collect();
    let chosen = || batches.iter().filter(|batch| chosen.contains(&batch.first_seq));
    let segments: BTreeSet<u64> = items.iter().map(|item| item.key.segment).collect();
    Plan {
        selection: job.progress.request.selection,
        segments: segments.len() as u64,
        amount: amount(&items),
        damaged: 0,
        span: (
            chosen().filter_map(|batch| batch.window.0).min(),
            chosen().filter_map(|batch| batch.window.1).max(),
        ),
    }
}

impl Plan {
    /// Prints it.
    pub(super) fn tell(&self, json: bool) -> anyhow::Result<ExitCode> {
        tell(&if json { serde_json::to_string_pretty(self)? } else { self.text() })?;
        Ok(ExitCode::SUCCESS)
    }

    fn text(&self) -> String {
        let damaged = match self.damaged {
            0 => String::new(),
            some => format!("\n{}: damaged on disk", counted(some, "record")),
        };
        self.sound() + &damaged
    }

    fn sound(&self) -> String {
        let Amount { batches, records, bytes } = self.amount;
        if records == 0 {
            return format!("nothing would be sent: {} holds no records", self.selection);
        }
        let segments = match self.segments {
            0 => String::new(),
            segments => format!(" of {}", counted(segments, "segment")),
        };
        let span = match self.span {
            (Some(begin), Some(end)) => {
                format!(", {} to {}", clock::rfc3339(begin), clock::rfc3339(end))
            }
            _ => String::new(),
        };
        format!(
            "would send {}{segments}: {}, {} before compression{span}",
            counted(batches, "batch"),
            counted(records, "record"),
            units::show_size(bytes),
        )
    }
}
