//! `agent inspect`: what is queued.

mod tables;

use std::process::ExitCode;

use super::local::{self, Local, Seen, Source};
use super::screen::{Screen, counted, tell};
use crate::clock;
use crate::config::Config;
use crate::queue::{QueueStatus, SegmentState};
use crate::units;

/// What `agent inspect` shows.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to list.
    #[arg(value_enum, default_value_t = What::Segments)]
    pub what: What,

    /// Print JSON, for programs; all entries, times in UTC, sizes in bytes.
    #[arg(long)]
    pub json: bool,

    /// List only the oldest N entries in the table; 0 lists all.
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub limit: usize,
}

/// What can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// The records of one push window each.
    Segments,
    /// What one push carries each.
    Batches,
}

/// Runs the command.
pub async fn run(args: Args, config: &Config) -> ExitCode {
    local::finish("inspect", show(&args, &Local::of(config)).await)
}

async fn show(args: &Args, local: &Local) -> anyhow::Result<ExitCode> {
    let screen = Screen::stdout(clock::now());
    let mut damaged = false;
    let text = match args.what {
        What::Segments => {
            let seen = local.segments().await?;
            let list = &seen.parts.segments;
            damaged = list.iter().any(|segment| segment.state == SegmentState::Damaged);
            if args.json {
                serde_json::to_string_pretty(&seen)?
            } else {
                page(&screen, &seen, &tables::segments(&screen, list, args.limit))
            }
        }
        What::Batches => {
            let seen = local.batches().await?;
            if args.json {
                serde_json::to_string_pretty(&seen)?
            } else {
                page(&screen, &seen, &tables::batches(&screen, &seen.parts.batches, args.limit))
            }
        }
    };
    tell(&text)?;
    Ok(ExitCode::from(if damaged { 2 } else { 0 }))
}

/// Heading and table.
fn page<T>(screen: &Screen, seen: &Seen<T>, table: &str) -> String {
    let queue = &seen.queue;
    let by = match seen.source {
        Source::Agent => "told by the running agent",
        Source::Directory => "no agent runs; read from its directory",
    };
    let mut text = format!("queue {} ({by})\n", queue.queue_id);
    text.push_str(&totals(screen, queue, 0));
    if let Some(error) = &queue.disk_error {
        text = format!("{text}\nthe disk takes no records, they are in memory: {error}");
    }
    format!("{text}\n\n{table}")
}

/// The queue in one line, or in two where there is less room; the second is indented by `indent`.
pub(super) fn totals(screen: &Screen, queue: &QueueStatus, indent: usize) -> String {
    if queue.records == 0 {
        return "nothing is queued".to_owned();
    }
    let counts = [
        counted(queue.segments, "segment"),
        counted(queue.batches, "batch"),
        counted(queue.records, "record"),
    ];
    let oldest = queue.oldest_at.map(|at| format!(", oldest {}", screen.age(at)));
    let gap = if screen.is_narrow() { format!(",\n{:indent$}", "") } else { ", ".to_owned() };
    format!(
        "{}{gap}{} raw, {} on disk{}",
        counts.join(", "),
        units::show_size(queue.raw_bytes),
        units::show_size(queue.disk_bytes),
        oldest.unwrap_or_default()
    )
}
