//! `inspect segment N` and `inspect record SEQ`.

use std::fmt::Write as _;
use std::ops::ControlFlow;

use comfy_table::Cell;
use jiff::Timestamp;
use serde::Serialize;

use super::{Args, Shown, lists, pages, tables, verify};
use crate::cli::local::Reader;
use crate::cli::screen::{Screen, count, counted, right};
use crate::control::{RecordQuery, ShownRecord};
use crate::metric;
use crate::queue::{BlockInfo, Damage, QueueStatus, SegmentDetail};
use crate::units;

/// A segment from inside.
#[derive(Debug, Serialize)]
pub(super) struct Segment {
    #[serde(flatten)]
    detail: SegmentDetail,
    /// Its records, when they are to be decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<Vec<ShownRecord>>,
    /// Rows of a table.
    #[serde(skip)]
    limit: usize,
}

/// A record, or where it would be.
#[derive(Debug, Serialize)]
pub(super) struct Record {
    record: ShownRecord,
    #[serde(skip)]
    decode: bool,
}

/// Reads a segment, with its records when they are to be decoded.
pub(super) async fn segment(reader: &mut Reader, id: u64, args: &Args) -> anyhow::Result<Segment> {
    let Some(detail) = reader.segment(id).await? else {
        anyhow::bail!(
            "no segment {id} is queued\n  hint: `agent inspect segments` lists those that are"
        );
    };
    let records = if args.depth.decode { Some(decoded(reader, id, args).await?) } else { None };
    Ok(Segment { detail, records, limit: args.limit })
}

async fn decoded(reader: &mut Reader, id: u64, args: &Args) -> anyhow::Result<Vec<ShownRecord>> {
    let wanted = if args.limit == 0 || args.json { usize::MAX } else { args.limit };
    let query = RecordQuery { segment: Some(id), ..RecordQuery::default() };
    let mut records = Vec::new();
    pages(reader, query, |page| {
        records.extend(page.records.into_iter().take(wanted.saturating_sub(records.len())));
        let enough = records.len() >= wanted;
        Ok(if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })
    .await?;
    Ok(records)
}

/// Reads a record, or says why there is none.
pub(super) async fn record(
    reader: &mut Reader,
    seq: u64,
    queue: &QueueStatus,
    args: &Args,
) -> anyhow::Result<Record> {
    let query = RecordQuery { from: Some(seq), to: Some(seq), ..RecordQuery::default() };
    let page = reader.records(&query).await?;
    if let Some(record) = page.records.into_iter().next() {
        return Ok(Record { record, decode: args.depth.decode });
    }
    if seq >= queue.next_seq {
        anyhow::bail!("record {seq} does not exist: the next one will be {}", queue.next_seq);
    }
    let lost = reader.losses().await?.into_iter().find(|loss| (loss.from..=loss.to).contains(&seq));
    if let Some(loss) = lost {
        anyhow::bail!(
            "record {seq} is in the ledger: {} (entry {}, {} to {})\n  \
             hint: `agent inspect ledger` has the details{}",
            loss.reason,
            loss.id,
            loss.from,
            loss.to,
            if loss.reason == crate::queue::LossReason::Refuse {
                ", `agent inspect dead` the record, unless it is the agent's own health"
            } else {
                ""
            },
        );
    }
    if let Some(damage) = page.damage.first() {
        let Damage { segment, what, .. } = damage;
        anyhow::bail!("record {seq} is damaged on disk (segment {segment}): {what}");
    }
    anyhow::bail!("record {seq} is not queued any more: it has been delivered")
}

impl Shown for Segment {
    fn page(&self, screen: &Screen, _queue: &QueueStatus) -> String {
        let SegmentDetail { segment, batches, blocks, damage } = &self.detail;
        let mut text = format!("\nsegment    {}: {}\n", segment.id, tables::segment_word(segment));
        let times = segment.opened_at.zip(segment.sealed_at);
        if let Some((opened, sealed)) = times {
            let (opened, sealed) = (utc(opened), utc(sealed));
            let _ = writeln!(text, "window     {opened} to {sealed} UTC");
        }
        let range = format!(", {} to {}", segment.first_seq, segment.last_seq);
        let range = if segment.records == 0 { "" } else { &range };
        let _ = writeln!(text, "records    {}{range}", count(segment.records));
        let _ = writeln!(
            text,
            "size       {} raw, {} in frames, {} on disk",
            units::show_size(segment.raw_bytes),
            units::show_size(segment.stored_bytes),
            units::show_size(segment.disk_bytes),
        );
        if segment.windows > 0 || segment.thinned > 0 {
            let windows = counted(u64::from(segment.windows), "window");
            let _ = writeln!(text, "merged     from {windows}, thinned {} times", segment.thinned);
        }
        let _ = writeln!(
            text,
            "delivered  {} of {}",
            segment.delivered,
            counted(u64::from(segment.batches), "batch"),
        );
        let _ = writeln!(text, "\n{}", tables::batches(screen, batches, self.limit));
        text.push_str(&block_table(screen, blocks, self.limit));
        if !damage.is_empty() {
            let _ = writeln!(text, "\nmissing:\n{}", verify::table(screen, damage));
        }
        for record in self.records.iter().flatten() {
            let _ = writeln!(text, "\n{}\n{}", one_line(record), record.metric);
        }
        text
    }

    fn facts(&self, _queue: &QueueStatus) -> Vec<(String, String)> {
        vec![lists::segment_fact(&self.detail.segment)]
    }

    fn is_damaged(&self) -> bool {
        !self.detail.damage.is_empty()
    }
}

impl Shown for Record {
    fn page(&self, screen: &Screen, _queue: &QueueStatus) -> String {
        let record = &self.record;
        let mut text = format!("\nrecord     {}\ntype       {}\n", record.seq, record.kind);
        if let Some(at) = record.at {
            let _ = writeln!(text, "taken      {} UTC ({} ago)", utc(at), screen.age(at));
        }
        let _ = writeln!(text, "segment    {}, frame {}", record.segment, record.frame);
        let state = tables::batch_word(record.state);
        let _ = writeln!(text, "batch      {} ({state})", record.batch);
        let _ = writeln!(text, "size       {} of JSON", units::show_size(record.bytes));
        if self.decode {
            let value = metric::parse_value(record.metric.get().as_bytes());
            let pretty = value.and_then(|value| serde_json::to_string_pretty(&value));
            let _ = writeln!(text, "\n{}", pretty.unwrap_or_else(|_| record.metric.to_string()));
        } else {
            text.push_str("           --decode shows it\n");
        }
        text
    }

    fn facts(&self, _queue: &QueueStatus) -> Vec<(String, String)> {
        vec![(format!("record {}", self.record.seq), self.record.kind.clone())]
    }

    fn is_damaged(&self) -> bool {
        false
    }
}

fn block_table(screen: &Screen, blocks: &[BlockInfo], limit: usize) -> String {
    let (shown, rest) = tables::limited(blocks, limit);
    let header = [">frame", ">frames", ">batch", ">records", ">from", ">raw", ">stored", "of UTC"];
    let mut table = screen.table(&header);
    for block in shown {
        table.add_row(vec![
            right(block.frame),
            right(block.frames),
            right(block.batch),
            right(count(block.records)),
            right(block.first_seq),
            right(screen.size(block.raw_bytes)),
            right(screen.size(block.stored_bytes)),
            Cell::new(block.oldest_at.map(utc).unwrap_or_default()),
        ]);
    }
    if blocks.is_empty() {
        return "no block can be read\n".to_owned();
    }
    screen.print(table) + &tables::rest_of(rest)
}

fn one_line(record: &ShownRecord) -> String {
    let at = record.at.map(utc).unwrap_or_default();
    format!("{} {} {at} (batch {})", record.seq, record.kind, record.batch)
}

fn utc(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}
