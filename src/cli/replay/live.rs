//! A replay by the running agent: its forwarder for what waits, its replay lane for the rest.

use std::time::Duration;

use anyhow::bail;

use super::Args;
use super::report::{Bar, Outcome};
use crate::cli::local::known;
use crate::cli::terminal;
use crate::clock;
use crate::control::{Client, Replay, ReplayProgress, ReplayRequest, ReplayState};
use crate::queue::SegmentInfo;

/// How often the progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Has the agent replay, or joins the replay that is under way, and follows it.
pub(super) async fn replay(
    client: &Client,
    args: &Args,
    request: ReplayRequest,
    last: Option<ReplayProgress>,
) -> anyhow::Result<Outcome> {
    known(&client.status().await?.queue)?;
    let under_way = last.filter(|last| last.state == ReplayState::Running);
    let replay = match under_way {
        Some(other) if other.request.selection == request.selection || request.is_plain() => {
            terminal::complain(&format!(
                "a replay of {} is under way: this follows it",
                other.request.selection
            ));
            // Ends a pause after a failure, and has what waits pushed besides.
            client.replay().await?;
            other
        }
        None if request.is_plain() => return push_now(client, args, request).await,
        _ => client.start_replay(&request).await?,
    };
    follow(client, args.wait, replay).await
}

/// Follows a replay to its end, or until the backend has taken nothing for `wait`.
async fn follow(client: &Client, wait: Duration, begun: ReplayProgress) -> anyhow::Result<Outcome> {
    let rest = "the agent goes on with the rest, `agent replay --stop` ends that";
    let bar = Bar::begin();
    loop {
        let Some(now) = client.replay_progress().await?.filter(|now| now.id == begun.id) else {
            bail!("the agent does not know of this replay any more\n  hint: look at its log");
        };
        bar.show(&now);
        if now.state != ReplayState::Running {
            return Ok(bar.end(now, "the rest stays where it is"));
        }
        let failing = now.failing_since.map(|since| clock::now().duration_since(since));
        let failing = failing.and_then(|failing| Duration::try_from(failing).ok());
        if failing.is_some_and(|failing| failing > wait) {
            return Ok(bar.end(now, rest));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Has the agent push at once what is queued, and follows that.
async fn push_now(client: &Client, args: &Args, request: ReplayRequest) -> anyhow::Result<Outcome> {
    let queued = client.replay().await?;
    let bar = Bar::begin();
    let mut progress = ReplayProgress::new(request, clock::now());
    (progress.total.batches, progress.total.records) = (queued.batches, queued.records);
    let mut moved = clock::monotonic();
    while let Some(last) = queued.last_segment {
        let (batches, records) = waiting(&client.segments().await?, last);
        let delivered = queued.batches.saturating_sub(batches);
        if delivered > progress.done.batches {
            moved = clock::monotonic();
        }
        progress.done.batches = delivered;
        progress.done.records = queued.records.saturating_sub(records);
        progress.last_answer = client.status().await?.agent.backend.last_answer;
        bar.show(&progress);
        if batches == 0 {
            break;
        }
        if clock::monotonic().duration_since(moved) > args.wait {
            return Ok(bar.end(progress, "the rest stays queued"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    note_end(&mut progress, &queued);
    Ok(bar.end(progress, "the rest stays queued"))
}

fn note_end(progress: &mut ReplayProgress, queued: &Replay) {
    progress.state = ReplayState::Done;
    progress.ended_at = Some(clock::now());
    progress.done.records = queued.records;
}

/// Batches to deliver in the segments up to `last`, and the records of those segments.
fn waiting(segments: &[SegmentInfo], last: u64) -> (u64, u64) {
    let older = segments.iter().filter(|segment| segment.id <= last);
    let older = older.filter(|segment| segment.delivered < segment.batches);
    older.fold((0, 0), |(batches, records), segment| {
        let left = u64::from(segment.batches - segment.delivered);
        (batches + left, records + segment.records)
    })
}
