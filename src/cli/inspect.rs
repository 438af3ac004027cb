//! `agent inspect`: what is in the queue.

mod bound; // where an export begins and ends
mod dead; // refused records
mod detail; // a segment, a record
mod export; // records as NDJSON
mod follow; // what changes, until Ctrl-C
mod ledger; // records that are not delivered
mod lists; // segments and batches
mod quarantine; // what was put aside
mod summary; // the queue in one screen
mod tables;
mod verify; // every block, read and checked

use std::process::ExitCode;

use serde::Serialize;

use super::local::{self, Local, Reader, Source};
use super::screen::{Screen, counted};
use super::terminal::{self, tell};
use crate::clock;
use crate::config::Config;
use crate::queue::QueueStatus;
use crate::units;

/// What `agent inspect` shows.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = false)]
pub struct Args {
    /// What to look at; the queue in one screen when absent.
    #[command(subcommand)]
    pub what: Option<What>,

    /// Print JSON, for programs; all entries, times in UTC, sizes in bytes.
    #[arg(long, global = true)]
    pub json: bool,

    /// List only the oldest N entries in a table; 0 lists all.
    #[arg(long, global = true, value_name = "N", default_value_t = 200)]
    pub limit: usize,

    /// Show again what has changed, each second, until Ctrl-C.
    ///
    /// Without a terminal, and with --json, a line is printed for each change.
    #[arg(long, global = true)]
    pub follow: bool,

    /// How deep to look.
    #[command(flatten)]
    pub depth: Depth,
}

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct Depth {
    /// Read and check every block: of all segments, of one, or of those in quarantine.
    #[arg(long, global = true)]
    pub verify: bool,

    /// Show records as their JSON, too.
    #[arg(long, global = true)]
    pub decode: bool,
}

/// What can be looked at.
#[derive(Debug, clap::Subcommand)]
pub enum What {
    /// All segments; each holds the records of one push window.
    Segments,
    /// One segment from inside: its batches, its blocks, what is missing.
    Segment {
        /// Its number.
        id: u64,
    },
    /// All batches; each is what one push carries.
    Batches,
    /// One record.
    Record {
        /// Its sequence number.
        seq: u64,
    },
    /// Records that the backend refused.
    Dead,
    /// Records that will not be delivered, with the reason.
    Ledger,
    /// What was put aside because it is damaged.
    Quarantine,
    /// Records on standard output, a JSON document per line.
    Export(export::Args),
}

/// A queue as it was seen.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Seen<T> {
    /// By whom.
    source: Source,
    /// The queue in one screen.
    queue: QueueStatus,
    /// What was asked for.
    #[serde(flatten)]
    parts: T,
    /// The check, when one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    verify: Option<verify::Verification>,
}

/// Something that can be shown once, or followed.
trait Shown: Serialize {
    /// For a person.
    fn page(&self, screen: &Screen, queue: &QueueStatus) -> String;

    /// What it consists of, by name, without what changes by itself.
    fn facts(&self, queue: &QueueStatus) -> Vec<(String, String)>;

    /// Whether some of it is damaged.
    fn is_damaged(&self) -> bool;
}

/// Runs the command.
pub async fn run(args: Args, config: &Config) -> ExitCode {
    let local = Local::of(config);
    let result = match (&args.what, args.follow) {
        (Some(What::Export(_) | What::Record { .. }), true) => {
            terminal::complain(
                "agent inspect: a record does not change: --follow is of no use here",
            );
            return ExitCode::from(super::EXIT_USAGE);
        }
        (Some(What::Export(export)), false) => export::run(export, &local).await,
        (_, true) => follow::run(&args, &local).await,
        (_, false) => once(&args, &local).await,
    };
    local::finish("inspect", result)
}

async fn once(args: &Args, local: &Local) -> anyhow::Result<ExitCode> {
    let mut sight = Sight::of(args);
    let look = look(args, local, &mut sight).await?;
    tell(&look.text)?;
    Ok(look.exit)
}

/// How the answer is wanted, and what is kept from one look to the next.
struct Sight {
    screen: Screen,
    form: Form,
    facts: Option<Vec<(String, String)>>,
}

/// What a look prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Tables for a person.
    Page,
    /// A JSON document of several lines.
    Json,
    /// A JSON document in a line, when something has changed.
    JsonChange,
    /// A line for each change.
    Changes,
}

/// What one look has given.
struct Look {
    text: String,
    exit: ExitCode,
}

impl Sight {
    fn of(args: &Args) -> Self {
        let screen = Screen::stdout(clock::now());
        let form = match (args.json, args.follow, screen.width) {
            (true, false, _) => Form::Json,
            (true, true, _) => Form::JsonChange,
            (false, true, None) => Form::Changes,
            (false, ..) => Form::Page,
        };
        Self { screen, form, facts: None }
    }
}

/// Looks once; see [`What`].
async fn look(args: &Args, local: &Local, sight: &mut Sight) -> anyhow::Result<Look> {
    let (mut reader, queue) = local.open().await?;
    let (limit, depth) = (args.limit, args.depth);
    let check = match (&args.what, depth.verify) {
        (None | Some(What::Segments | What::Batches), true) => {
            Some(verify::run(&mut reader, None).await?)
        }
        (Some(What::Segment { id }), true) => Some(verify::run(&mut reader, Some(*id)).await?),
        _ => None,
    };
    let seen = (&reader.source(), queue, check);
    match &args.what {
        None => show(sight, seen, summary::look(&mut reader, local).await?),
        Some(What::Segments) => {
            show(sight, seen, lists::Segments { segments: reader.segments().await?, limit })
        }
        Some(What::Batches) => {
            show(sight, seen, lists::Batches { batches: reader.batches().await?, limit })
        }
        Some(What::Segment { id }) => {
            show(sight, seen, detail::segment(&mut reader, *id, args).await?)
        }
        Some(What::Record { seq }) => {
            let record = detail::record(&mut reader, *seq, &seen.1, args).await?;
            show(sight, seen, record)
        }
        Some(What::Dead) => show(sight, seen, dead::look(&reader, args).await?),
        Some(What::Ledger) => {
            show(sight, seen, ledger::Ledger { losses: reader.losses().await?, limit })
        }
        Some(What::Quarantine) => show(sight, seen, quarantine::look(&reader, args).await?),
        Some(What::Export(_)) => anyhow::bail!("an export is no page"),
    }
}

fn show<T: Shown>(
    sight: &mut Sight,
    (source, queue, verify): (&Source, QueueStatus, Option<verify::Verification>),
    parts: T,
) -> anyhow::Result<Look> {
    let damaged = parts.is_damaged() || verify.as_ref().is_some_and(|check| !check.is_sound());
    let seen = Seen { source: *source, queue, parts, verify };
    let text = match sight.form {
        Form::Page => page(&sight.screen, &seen),
        Form::Json => serde_json::to_string_pretty(&seen)?,
        Form::JsonChange | Form::Changes => {
            let mut facts = seen.parts.facts(&seen.queue);
            facts.extend(seen.verify.iter().flat_map(verify::Verification::facts));
            let changes = follow::changes(sight.facts.as_deref(), &facts);
            sight.facts = Some(facts);
            match sight.form {
                _ if changes.is_empty() => String::new(),
                Form::JsonChange => serde_json::to_string(&seen)?,
                _ => {
                    let at = clock::rfc3339(sight.screen.now);
                    changes.iter().flat_map(|change| [at.as_str(), " ", change, "\n"]).collect()
                }
            }
        }
    };
    Ok(Look { text, exit: ExitCode::from(if damaged { 2 } else { 0 }) })
}

/// Heading, what was asked for, and the check.
fn page<T: Shown>(screen: &Screen, seen: &Seen<T>) -> String {
    let by = match seen.source {
        Source::Agent => "told by the running agent",
        Source::Directory => "no agent runs; read from its directory",
    };
    let mut text = format!("queue {} ({by})\n", seen.queue.queue_id);
    text.push_str(&seen.parts.page(screen, &seen.queue));
    if let Some(check) = &seen.verify {
        text.push('\n');
        text.push_str(&check.page(screen));
    }
    text
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

/// A heading of two lines above a table.
fn heading(screen: &Screen, queue: &QueueStatus) -> String {
    let mut text = totals(screen, queue, 0);
    if let Some(error) = &queue.disk_error {
        text = format!("{text}\nthe disk takes no records, they are in memory: {error}");
    }
    text
}

/// Records that a reader gives, page by page, until `each` has had enough.
async fn pages(
    reader: &mut Reader,
    mut query: crate::control::RecordQuery,
    mut each: impl FnMut(crate::control::Records) -> anyhow::Result<std::ops::ControlFlow<()>>,
) -> anyhow::Result<()> {
    loop {
        let mut page = reader.records(&query).await?;
        let next = page.next.take();
        if each(page)?.is_break() {
            return Ok(());
        }
        match next {
            Some(next) => query.from = Some(next),
            None => return Ok(()),
        }
    }
}
