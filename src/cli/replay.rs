//! `agent replay`: delivers now what is queued now.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::local;
use super::run::identity;
use super::screen::{counted, cut};
use crate::agent::{LinkWire, QueueSource, forward_config};
use crate::clock;
use crate::config::Config;
use crate::control::{Client, ClientError, Replay};
use crate::forward::{Drained, Forwarder};
use crate::link::Link;
use crate::queue::{Queue, SegmentInfo};
use crate::{shutdown, units};

/// How often the progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How `agent replay` delivers.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Give up when nothing has been delivered for so long.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub wait: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    units::parse_duration(text).ok_or_else(|| "write it like 30s, 5min or 1h".to_owned())
}

/// Runs the command.
pub async fn run(args: Args, config: &Config) -> ExitCode {
    local::finish("replay", replay(&args, config).await)
}

async fn replay(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    let client = Client::new(&config.control_socket);
    let outcome = match client.replay().await {
        Ok(queued) => by_agent(&client, queued, args.wait).await?,
        Err(ClientError::NotRunning(_)) => by_itself(config, args.wait).await?,
        Err(error) => return Err(error.into()),
    };
    outcome.tell();
    Ok(ExitCode::from(outcome.exit_code()))
}

/// How a replay has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    queued: u64,
    delivered: u64,
    took: Duration,
    last_answer: Option<String>,
}

impl Outcome {
    fn exit_code(&self) -> u8 {
        match self.delivered {
            all if all >= self.queued => 0,
            0 => 1,
            _ => 2,
        }
    }

    fn tell(&self) {
        if self.queued == 0 {
            println!("nothing is queued");
            return;
        }
        let took = units::show_duration(self.took);
        println!("delivered {} of {} in {took}", self.delivered, counted(self.queued, "batch"));
        if self.exit_code() == 0 {
            return;
        }
        let answer = self.last_answer.as_deref().unwrap_or("none yet");
        let answer = answer.replace("; hint: ", "\n  hint: ");
        eprintln!("the rest stays queued; the last answer was: {answer}");
    }
}

/// The bar, and since when it has not moved.
struct Progress {
    bar: ProgressBar,
    queued: u64,
    begun: Instant,
    moved: Instant,
}

impl Progress {
    fn begin(queued: u64) -> Self {
        let style = "{bar:24} {pos}/{len} batches  {per_sec}  eta {eta}  {wide_msg}";
        // The template is a constant that every test reads.
        let style = ProgressStyle::with_template(style).expect("a good template");
        let bar = ProgressBar::new(queued).with_style(style);
        let now = clock::monotonic();
        Self { bar, queued, begun: now, moved: now }
    }

    fn show(&mut self, delivered: u64, answer: Option<&str>) {
        if delivered > self.bar.position() {
            self.moved = clock::monotonic();
            self.bar.set_position(delivered);
        }
        self.bar.set_message(cut(answer.unwrap_or_default(), 60));
        self.bar.tick();
    }

    fn stands(&self) -> Duration {
        clock::monotonic().duration_since(self.moved)
    }

    fn end(self, delivered: u64, last_answer: Option<String>) -> Outcome {
        self.bar.finish_and_clear();
        let took = clock::monotonic().duration_since(self.begun);
        Outcome { queued: self.queued, delivered, took, last_answer }
    }
}

/// Follows the agent while it delivers what was queued when it was asked.
async fn by_agent(client: &Client, queued: Replay, wait: Duration) -> anyhow::Result<Outcome> {
    let mut progress = Progress::begin(queued.batches);
    let Some(last) = queued.last_segment else {
        return Ok(progress.end(0, None));
    };
    loop {
        let left = waiting(&client.segments().await?, last);
        let delivered = queued.batches.saturating_sub(left);
        let answer = client.status().await?.agent.backend.last_answer;
        progress.show(delivered, answer.as_deref());
        if left == 0 || progress.stands() > wait {
            return Ok(progress.end(delivered, answer));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Batches to deliver in the segments up to `last`.
fn waiting(segments: &[SegmentInfo], last: u64) -> u64 {
    let older = segments.iter().filter(|segment| segment.id <= last);
    older.map(|segment| u64::from(segment.batches - segment.delivered)).sum()
}

/// Opens the queue and delivers from it, as the agent would.
async fn by_itself(config: &Config, wait: Duration) -> anyhow::Result<Outcome> {
    let identity = identity(config)?;
    let who = (identity.collector_id.clone(), config.agent.hostname.clone());
    let link = Arc::new(Link::new(&config.link, identity)?);
    let (queue, thread) = config.queue.start()?;
    let outcome = deliver(config, &queue, link, who, wait).await;
    queue.close().await.ok();
    tokio::task::spawn_blocking(move || thread.join()).await?;
    outcome
}

async fn deliver(
    config: &Config,
    queue: &Queue,
    link: Arc<Link>,
    who: (String, String),
    wait: Duration,
) -> anyhow::Result<Outcome> {
    let mut progress = Progress::begin(queue.status().await?.batches);
    let source = QueueSource { queue: queue.clone(), link: Arc::clone(&link) };
    let settings = forward_config(&config.forward, who);
    let (mut forwarder, status) = Forwarder::new(source, LinkWire(link), settings);
    let stopped = shutdown::signalled();
    tokio::pin!(stopped);
    'rounds: loop {
        let round = async {
            let drained = forwarder.drain().await;
            if let Drained::Waiting(pause) = drained {
                tokio::time::sleep(pause).await;
                queue.retry_now().await.ok();
            }
            drained
        };
        tokio::pin!(round);
        loop {
            tokio::select! {
                drained = &mut round => match drained {
                    Drained::Empty => break 'rounds,
                    Drained::Waiting(_) => break,
                },
                _ = &mut stopped => break 'rounds,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let seen = status.borrow().clone();
            progress.show(seen.delivered_batches, seen.last_answer.as_deref());
            if progress.stands() > wait {
                break 'rounds;
            }
        }
    }
    let seen = status.borrow().clone();
    Ok(progress.end(seen.delivered_batches, seen.last_answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_tells_all_from_nothing_from_a_part() {
        let check = |delivered, queued, expected| {
            let (took, last_answer) = (Duration::ZERO, None);
            let outcome = Outcome { queued, delivered, took, last_answer };
            assert_eq!(outcome.exit_code(), expected, "{delivered} of {queued}");
        };
        check(0, 0, 0);
        check(3, 3, 0);
        check(0, 3, 1);
        check(2, 3, 2);
    }

    #[test]
    fn bar_has_a_good_template() {
        let mut progress = Progress::begin(4);
        progress.show(3, Some("200"));
        let outcome = progress.end(3, Some("200".to_owned()));
        assert_eq!((outcome.queued, outcome.delivered), (4, 3));
    }
}
