//! `agent collect`.

use std::path::Path;
use std::process::ExitCode;

use comfy_table::Cell;
use serde_json::Value;

use super::screen::{Screen, right};
use super::{ConfigFile, EXIT_USAGE, owner, terminal};
use crate::clock;
use crate::collect::disk_usage::DiskUsageCollector;
use crate::collect::pg_log::{PgLogCollector, PgLogConfig, StartAt};
use crate::collect::pg_stats::PgStatsCollector;
use crate::collect::sysstat::SysstatCollector;
use crate::collect::{CollectError, Collected, Collector};
use crate::config::{Collectors, Config};
use crate::metric::declare::Role;
use crate::metric::exposition::exposition;
use crate::metric::points::{Point, points};

/// What to collect, and how it is shown.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The collector.
    #[arg(value_enum)]
    collector: Name,
    /// The documents as they would be queued.
    #[arg(long, conflicts_with = "points")]
    json: bool,
    /// The numbers in Prometheus' text format.
    #[arg(long)]
    points: bool,
}

/// A collector.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum Name {
    /// CPU, memory, disks and network.
    Sysstat,
    /// File systems.
    DiskUsage,
    /// PostgreSQL's statistics.
    PgStats,
    /// PostgreSQL's log, from its beginning, as much as one collection reads.
    PgLog,
    /// The agent's own health, which only a running agent knows: see `agent status`.
    Agent,
}

/// What is configured; without a file every key has its default. As root, this becomes the user
/// whose agent the file is of: what it says is read with that user's rights.
pub fn collectors(file: &ConfigFile) -> Result<Collectors, ExitCode> {
    let config = match &file.config {
        Some(path) => Config::load(path),
        None => Config::read(Path::new("the defaults"), ""),
    };
    let config = config.map_err(|error| {
        terminal::complain(&error.to_string());
        ExitCode::from(EXIT_USAGE)
    })?;
    if let Some(path) = &file.config {
        owner::of_host(path, &config).map_err(|error| super::refused_owner(&error))?;
    }
    Ok(config.collectors)
}

/// Runs the command.
pub async fn run(args: Args, collectors: Collectors) -> ExitCode {
    let Some(all) = collect(args.collector, collectors).await else {
        terminal::complain(
            "this collector is switched off in the configuration\n  hint: set its `enabled`",
        );
        return ExitCode::from(EXIT_USAGE);
    };
    let (mut collected, mut failed) = (Vec::new(), false);
    for one in all {
        match one {
            Ok(one) => collected.extend(one.metrics),
            Err(error) => {
                terminal::complain(&error.to_string().replace("; hint: ", "\n  hint: "));
                failed = true;
            }
        }
    }
    if failed && collected.is_empty() {
        return ExitCode::FAILURE;
    }
    let text = if args.json {
        format!("{:#}", Value::Array(collected))
    } else if args.points {
        exposition(&collected)
    } else {
        let screen = Screen::stdout(clock::now());
        collected.iter().map(|document| shown(document, &screen)).collect::<Vec<_>>().join("\n")
    };
    let told = terminal::told(&text);
    if failed { ExitCode::FAILURE } else { told }
}

/// One collection, of each server where there are several; `None`: it is switched off.
async fn collect(name: Name, from: Collectors) -> Option<Vec<Result<Collected, CollectError>>> {
    let now = clock::now();
    let mut all = Vec::new();
    match name {
        Name::Sysstat => all.push(SysstatCollector::new(from.sysstat?.1).collect(now).await),
        Name::DiskUsage => all.push(DiskUsageCollector::new(from.disk_usage?.1).collect(now).await),
        Name::PgStats => {
            for config in from.pg_stats?.1 {
                all.push(PgStatsCollector::new(config).collect(now).await);
            }
        }
        Name::PgLog => {
            for config in from.pg_log?.1 {
                let config = PgLogConfig { start_at: StartAt::Beginning, ..config };
                all.push(PgLogCollector::new(config, None).collect(now).await);
            }
        }
        Name::Agent => all.push(Err(CollectError::new(
            "only a running agent knows its own health; hint: `agent status --json`, or what it \
             has queued: `agent inspect export`",
        ))),
    }
    Some(all)
}

/// A document for people: its numbers one below the other.
fn shown(document: &Value, screen: &Screen) -> String {
    let mut table = screen.table(&["metric", "of", ">value", "unit"]);
    for point in points(document) {
        table.add_row(vec![
            Cell::new(point.path.join(".")),
            Cell::new(about(&point)),
            right(point.value),
            Cell::new(unit(&point)),
        ]);
    }
    let word = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default();
    format!("{} at {}\n\n{}", word("type"), word("timestamp"), screen.print(table))
}

/// The keys of a point, the innermost last.
fn about(point: &Point<'_>) -> String {
    point.keys.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(" ")
}

fn unit(point: &Point<'_>) -> String {
    match point.field.role {
        Role::Counter(_) => format!("{} in total", point.field.unit),
        _ => point.field.unit.to_owned(),
    }
}
