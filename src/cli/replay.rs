//! `agent replay`: sends what is queued, kept or refused, now or again.

mod direct; // without an agent, and from the directory of another host
mod former; // what was delivered while this host was another collector
mod live; // by the running agent
mod plan; // what would be sent
mod report; // the bar, and how it ended

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use jiff::civil::{Date, DateTime};
use jiff::{Timestamp, tz::TimeZone};

use super::local;
use crate::config::Config;
use crate::control::{Client, ClientError, Part, ReplayRequest, Selection};
use crate::{clock, units};

/// What `agent replay` sends, and how.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of a command line")]
pub struct Args {
    /// What waits; the same as no selection.
    #[arg(long, group = "part")]
    pub all: bool,

    /// One segment, whether it waits or is delivered and kept.
    #[arg(long, value_name = "N", group = "part")]
    pub segment: Option<u64>,

    /// What the backend has refused; what it takes now leaves the dead letters.
    #[arg(long, group = "part")]
    pub dead: bool,

    /// What is delivered and was kept (`queue.retain_delivered`), for a backend that has lost it.
    #[arg(long, group = "part")]
    pub delivered: bool,

    /// Only windows that end at this time or later, waiting or kept: 2026-01-31T10:00:00Z,
    /// 2026-01-31 10:00 (UTC), or 6h for six hours ago.
    #[arg(long, value_name = "TIME", value_parser = time,
        conflicts_with_all = ["all", "segment", "dead"])]
    pub from: Option<Timestamp>,

    /// Only windows that begin at this time or earlier.
    #[arg(long, value_name = "TIME", value_parser = time,
        conflicts_with_all = ["all", "segment", "dead"])]
    pub to: Option<Timestamp>,

    /// The queue directory of another host, which is only read; its records are pushed with this
    /// host's identity.
    #[arg(long, value_name = "PATH")]
    pub dir: Option<PathBuf>,

    /// The host that the records of --dir are about; without it, this one.
    #[arg(long, value_name = "NAME", requires = "dir")]
    pub hostname: Option<String>,

    /// Send also what was delivered while this host was another collector, to a backend that has
    /// lost it: one that has it stores it once more, for this collector.
    #[arg(long, conflicts_with = "dir")]
    pub twice: bool,

    /// Say what would be sent, and send nothing.
    #[arg(long)]
    pub dry_run: bool,

    /// Bytes of JSON per second at most, such as 1MiB.
    #[arg(long, value_name = "SIZE", value_parser = rate)]
    pub rate: Option<u64>,

    /// End after this many records; batches are sent whole.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,

    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,

    /// End a replay that is under way, or that was interrupted and would go on.
    #[arg(long, conflicts_with_all = ["part", "from", "to", "dry_run", "rate", "limit"])]
    pub stop: bool,

    /// Give up when the backend has taken nothing for so long.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub wait: Duration,
}

impl Args {
    /// What is asked for.
    fn request(&self) -> ReplayRequest {
        let part = match self.segment {
            Some(segment) => Part::Segment(segment),
            None if self.dead => Part::Dead,
            None if self.delivered => Part::Delivered,
            None if self.from.is_some() || self.to.is_some() => Part::Stored,
            None => Part::Pending,
        };
        let selection = Selection { part, from: self.from, to: self.to };
        ReplayRequest { selection, rate: self.rate, limit: self.limit }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    units::parse_duration(text).ok_or_else(|| "write it like 30s, 5min or 1h".to_owned())
}

fn rate(text: &str) -> Result<u64, String> {
    let size = units::parse_size(text.trim_end_matches("/s"));
    size.filter(|size| *size > 0).ok_or_else(|| "write it like 500KiB or 1MiB".to_owned())
}

fn time(text: &str) -> Result<Timestamp, String> {
    time_at(text, clock::now())
        .ok_or_else(|| "write it like 2026-01-31T10:00:00Z, 2026-01-31 10:00 or 6h".to_owned())
}

/// A time with its zone, one in UTC, a day in UTC, or how long before `now`.
fn time_at(text: &str, now: Timestamp) -> Option<Timestamp> {
    let text = text.trim();
    let utc = |time: DateTime| TimeZone::UTC.to_timestamp(time).ok();
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    if let Ok(time) = text.parse::<DateTime>() {
        return utc(time);
    }
    if let Ok(day) = text.parse::<Date>() {
        return utc(day.into());
    }
    now.checked_sub(units::parse_duration(text)?).ok()
}

/// Runs the command.
pub async fn run(args: Args, config: &Config) -> ExitCode {
    local::finish("replay", replay(&args, config).await)
}

async fn replay(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    let (client, request) = (Client::new(&config.control_socket), args.request());
    if args.dir.is_none() && !args.stop {
        former::check(args, config).await?;
    }
    if args.dry_run {
        let plan = plan::make(args, config, &client).await?;
        return plan.tell(args.json);
    }
    if args.stop {
        let stopped = match &args.dir {
            Some(dir) => direct::stop(config, Some(dir))?,
            None => match client.stop_replay().await {
                Err(ClientError::NotRunning(_)) => direct::stop(config, None)?,
                stopped => stopped?,
            },
        };
        return report::tell_stopped(stopped.as_ref(), args.json);
    }
    if let Some(dir) = &args.dir {
        return direct::foreign(args, config, dir, request).await?.tell(args.json);
    }
    let outcome = match client.replay_progress().await {
        Ok(last) => live::replay(&client, args, request, last).await?,
        Err(ClientError::NotRunning(_)) => direct::own(args, config, request).await?,
        Err(error) => return Err(error.into()),
    };
    outcome.tell(args.json)
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    fn parse(line: &str) -> Result<ReplayRequest, clap::Error> {
        let command = Args::augment_args(clap::Command::new("replay").no_binary_name(true));
        let matches = command.try_get_matches_from(line.split_whitespace())?;
        Ok(Args::from_arg_matches(&matches)?.request())
    }

    #[test]
    fn arguments_become_a_request() {
        let check = |line: &str, part, rate, limit| {
            let request = parse(line).expect(line);
            assert_eq!((request.selection.part, request.rate, request.limit), (part, rate, limit));
        };
        check("", Part::Pending, None, None);
        check("--all", Part::Pending, None, None);
        check("--segment 12", Part::Segment(12), None, None);
        check("--dead --rate 1MiB", Part::Dead, Some(1 << 20), None);
        check("--delivered --limit 5", Part::Delivered, None, Some(5));
        check("--from 6h", Part::Stored, None, None);
        check("--delivered --to 2026-01-01", Part::Delivered, None, None);
        check("--dir x --hostname y --rate 10KiB/s", Part::Pending, Some(10 << 10), None);
    }

    #[test]
    fn arguments_that_contradict_each_other_are_refused() {
        let wrong = [
            "--all --dead",
            "--segment 1 --delivered",
            "--all --from 6h",
            "--dead --to 6h",
            "--hostname y",
            "--stop --dry-run",
            "--stop --dead",
            "--rate 0",
            "--rate fast",
            "--from yesterday",
        ];
        for line in wrong {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn times_are_read_in_utc_or_as_an_age() {
        let check = |text, expected: &str| {
            let now: Timestamp = "2026-03-02T12:00:00Z".parse().expect("a time");
            let time = time_at(text, now).map(|time| time.to_string());
            assert_eq!(time.unwrap_or_default(), expected, "{text}");
        };
        check("2026-01-31T10:00:00+02:00", "2026-01-31T08:00:00Z");
        check("2026-01-31 10:00", "2026-01-31T10:00:00Z");
        check("2026-01-31T10:00:30", "2026-01-31T10:00:30Z");
        check("2026-01-31", "2026-01-31T00:00:00Z");
        check("6h", "2026-03-02T06:00:00Z");
        check("soon", "");
    }
}
