//! `inspect export`: records on standard output, a JSON document per line. A page is in memory at a
//! time, however large the backlog.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::bound::{self, Bound};
use super::pages;
use crate::cli::local::Local;
use crate::cli::screen::counted;
use crate::cli::terminal;
use crate::clock;
use crate::control::{RecordQuery, Records, ShownRecord};
use crate::queue::Damage;

/// Records of one page.
const PAGE_RECORDS: usize = 1_000;

/// Which records are exported.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The first record: its sequence number, a time, or how long ago.
    #[arg(long, value_name = "SEQ|TIME|AGE", value_parser = bound::parse)]
    pub from: Option<Bound>,

    /// The last record, in the same ways.
    #[arg(long, value_name = "SEQ|TIME|AGE", value_parser = bound::parse)]
    pub to: Option<Bound>,

    /// Only records of this segment.
    #[arg(long, value_name = "ID")]
    pub segment: Option<u64>,
}

/// A line of an export.
#[derive(Debug, Serialize)]
struct Line<'a> {
    seq: u64,
    kind: &'a str,
    at: Option<Timestamp>,
    segment: u64,
    batch: Uuid,
    metric: &'a RawValue,
}

impl Args {
    fn query(&self, now: Timestamp) -> RecordQuery {
        RecordQuery {
            from: self.from.and_then(Bound::seq),
            to: self.to.and_then(Bound::seq),
            since_ms: self.from.and_then(|from| from.ms(now)),
            until_ms: self.to.and_then(|to| to.ms(now)),
            segment: self.segment,
            limit: Some(PAGE_RECORDS),
        }
    }
}

/// Runs the command.
pub(super) async fn run(args: &Args, local: &Local) -> anyhow::Result<ExitCode> {
    let (mut reader, _) = local.open().await?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut damage = Vec::new();
    let mut closed = false;
    let each = |page: Records| {
        damage.extend(page.damage);
        match write(&mut out, &page.records) {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                closed = true;
                Ok(ControlFlow::Break(()))
            }
            Err(error) => Err(anyhow::Error::new(error).context("write to standard output")),
        }
    };
    pages(&mut reader, args.query(clock::now()), each).await?;
    if closed {
        // What is left in the buffer would fail again, and nobody reads it.
        let _ = out.into_parts();
        return Ok(ExitCode::SUCCESS);
    }
    drop(out);
    Ok(ExitCode::from(complain(&damage)))
}

fn write(out: &mut impl Write, records: &[ShownRecord]) -> io::Result<()> {
    for record in records {
        let ShownRecord { seq, kind, at, segment, batch, metric, .. } = record;
        let line = Line { seq: *seq, kind, at: *at, segment: *segment, batch: *batch, metric };
        let line = serde_json::to_string(&line)?;
        writeln!(out, "{}", terminal::visible(&line))?;
    }
    out.flush()
}

fn complain(damage: &[Damage]) -> u8 {
    let records: u64 = damage.iter().map(|damage| damage.records).sum();
    if damage.is_empty() {
        return 0;
    }
    terminal::complain(&format!(
        "agent inspect: {} could not be read and {} not exported\n  \
         hint: `agent inspect --verify` says which",
        counted(records, "record"),
        if records == 1 { "is" } else { "are" }
    ));
    2
}
