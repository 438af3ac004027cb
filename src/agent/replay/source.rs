//! What a replay hands to its forwarder, and what it notes of the answers.

use std::{
    collections::{BTreeSet, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    dead,
    job::{self, Item, Job, JobFile, Standing},
};
use crate::{
    agent::{QueueSource, letter, seams},
    clock,
    control::ReplayProgress,
    forward::{Choice, ForwardStatus, Lane, Outgoing, Refused, Source, rate::Rate},
    link::Link,
    metric::envelope::AgentInfo,
    queue::{Batch, BatchInfo, Queue, QueueError},
};

/// Whose queue is replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// This host's: what is delivered is noted in it.
    Own,
    /// Another host's, which is only read.
    Foreign,
}

/// A replay under way. Clones share it.
#[derive(Debug, Clone)]
pub struct ReplaySource(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    place: Place,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    job: Job,
    items: VecDeque<Item>,
    /// What is being sent.
    out: Option<Out>,
    /// What was being sent and was not taken.
    put_back: Option<Out>,
    rate: Rate,
    begun: Instant,
    begun_bytes: u64,
    begun_duplicates: u64,
    saved: Instant,
    /// Why the replay cannot go on.
    failure: Option<String>,
}

#[derive(Debug, Clone)]
enum Out {
    Batch(Item),
    Dead(dead::Group),
}

/// What has been found where a batch should be.
enum Found {
    Here(Batch),
    /// It is elsewhere and the next, or is gone.
    Moved,
    /// It is there, and nothing of it is left to read.
    Corrupt,
    /// The disk does not give it now.
    NotGiven,
}

/// How often a job's place is written down: what was sent since is sent again after a crash, under
/// the same ids.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// What a replay works on.
#[derive(Debug, Clone)]
pub struct Place {
    /// The queue; another host's is only looked at.
    pub queue: Queue,
    /// Its identity.
    pub queue_id: Uuid,
    /// Its dead letters.
    pub dead_letters: PathBuf,
    /// Whose it is.
    pub origin: Origin,
    /// Where the job is kept, if it is.
    pub file: Option<JobFile>,
    /// Knows the state of the agent, in its own process.
    pub reporter: Option<QueueSource>,
    /// For the clock's offset.
    pub link: Arc<Link>,
}

impl ReplaySource {
    /// A replay that sends `items`, or the dead letters, for `job`.
    pub fn new(place: Place, job: Job, items: Vec<Item>) -> Self {
        let now = clock::monotonic();
        let state = Mutex::new(State {
            rate: Rate::new(job.progress.request.rate),
            begun_bytes: job.progress.done.bytes,
            begun_duplicates: job.progress.duplicates,
            items: items.into(),
            out: None,
            put_back: None,
            begun: now,
            saved: now,
            failure: None,
            job,
        });
        Self(Arc::new(Shared { place, state }))
    }

    /// What was put back is tried again; without this it counts as refused.
    pub fn try_again(&self) {
        let mut state = self.state();
        if let Some(Out::Batch(item)) = state.put_back.take() {
            state.items.push_front(item);
        }
    }

    /// How far the replay is, with what its forwarder has seen.
    pub fn progress(&self, status: &ForwardStatus) -> ReplayProgress {
        let mut state = self.state();
        state.job.progress.duplicates = state.begun_duplicates + status.duplicate_batches;
        if status.last_answer.is_some() {
            state.job.progress.last_answer.clone_from(&status.last_answer);
        }
        let mut progress = state.job.progress.clone();
        let millis = clock::monotonic().saturating_duration_since(state.begun).as_millis();
        let sent = progress.done.bytes.saturating_sub(state.begun_bytes);
        let bytes_s = u128::from(sent) * 1_000 / millis.max(1);
        progress.bytes_s = u64::try_from(bytes_s).unwrap_or(u64::MAX);
        let left = progress.total.bytes.saturating_sub(progress.done.bytes);
        progress.eta_s = left.checked_div(progress.bytes_s);
        progress
    }

    /// The job as it stands, and why it could not go on, if it could not.
    pub fn end(&self) -> (Job, Option<String>) {
        let state = self.state();
        (state.job.clone(), state.failure.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the rate allows the next batch.
    async fn paced(&self) {
        let wait = {
            let state = self.state();
            state.rate.wait(since(state.begun))
        };
        tokio::time::sleep(wait).await;
    }

    /// The next batch, unless nothing is left.
    async fn next_batch(&self) -> Result<Option<Outgoing<()>>, String> {
        loop {
            let Some(item) = self.state().items.pop_front() else { return Ok(None) };
            match self.look_up(item).await? {
                Found::Here(batch) => {
                    let missing = item.records.saturating_sub(batch.records.len() as u64);
                    let mut state = self.state();
                    state.job.progress.corrupt += missing;
                    state.out = Some(Out::Batch(item));
                    let queue_id = self.0.place.queue_id;
                    return Ok(Some(seams::outgoing(batch, queue_id, (), Lane::Backlog)));
                }
                Found::Moved => {}
                Found::Corrupt => {
                    self.put_away(&item).await;
                    self.state().job.note_corrupt(item);
                }
                Found::NotGiven => self.state().job.note_corrupt(item),
            }
        }
    }

    /// Of a batch with nothing left to read the ledger has every record: it does not wait any more.
    async fn put_away(&self, item: &Item) {
        let Place { queue, origin, .. } = &self.0.place;
        if *origin == Origin::Own
            && item.standing == Standing::Waits
            && let Err(error) = queue.delivered(item.key, 0, Vec::new()).await
        {
            tracing::warn!(%error, "an empty batch could not be put away");
        }
    }

    /// Reads a batch. When the queue does not have it there any more, it is looked for elsewhere:
    /// batches move when their segments are merged.
    async fn look_up(&self, item: Item) -> Result<Found, String> {
        let queue = &self.0.place.queue;
        match queue.read(item.key).await {
            Ok(Some(batch)) => return Ok(Found::Here(batch)),
            Ok(None) => {}
            Err(QueueError::Store(error)) => {
                tracing::warn!(%error, "a replay passes over what cannot be read");
                return Ok(Found::NotGiven);
            }
            Err(error) => return Err(error.to_string()),
        }
        let selection = self.state().job.progress.request.selection;
        let looked = job::look_through(queue, &selection).await;
        let (_, batches) = looked.map_err(|error| error.to_string())?;
        Ok(self.refresh(item, &batches))
    }

    /// Brings what is left to send up to date, of which `item` was the first.
    fn refresh(&self, item: Item, batches: &[BatchInfo]) -> Found {
        let mut state = self.state();
        let state = &mut *state;
        let mut items: VecDeque<Item> = state.job.select(batches).into();
        let there: BTreeSet<u64> = items.iter().map(|item| item.first_seq).collect();
        let known = std::iter::once(&item).chain(&state.items);
        for gone in known.filter(|known| !there.contains(&known.first_seq)) {
            state.job.note_gone(gone);
        }
        let found = match items.front().filter(|first| first.first_seq == item.first_seq) {
            Some(same) if same.key == item.key => Found::Corrupt,
            _ => Found::Moved,
        };
        if matches!(found, Found::Corrupt) {
            items.pop_front();
        }
        state.items = items;
        found
    }

    async fn next_dead(&self) -> Result<Option<Outgoing<()>>, String> {
        let (path, queue_id) = (self.0.place.dead_letters.clone(), self.0.place.queue_id);
        let (next, asked) = {
            let job = &self.state().job;
            ((job.next_queue, job.next_seq), job.asked())
        };
        let read = move || dead::next_group(&path, queue_id, next, asked);
        let read = tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?;
        let Some(group) = read.map_err(|error| error.to_string())? else { return Ok(None) };
        let (id, queue_id) = (group.id(), group.queue_id());
        let (records, metrics) = (group.records(), group.metrics());
        self.state().out = Some(Out::Dead(group));
        let (lane, health, left_out) = (Lane::Backlog, Vec::new(), Vec::new());
        Ok(Some(Outgoing { key: (), id, lane, queue_id, records, metrics, health, left_out }))
    }

    /// Notes in the queue what the backend has taken.
    async fn note(
        &self,
        out: &Out,
        batch: &Outgoing<()>,
        refused: &[Refused],
    ) -> Result<(), String> {
        let (queue, origin) = (&self.0.place.queue, self.0.place.origin);
        let noted = match out {
            Out::Batch(item) if origin == Origin::Own && item.standing == Standing::Waits => {
                queue.settle(item.key, letter::settled(batch, refused)).await
            }
            Out::Dead(group) if origin == Origin::Own => {
                queue.change_dead(group.settled(refused)).await
            }
            Out::Batch(_) | Out::Dead(_) => Ok(()),
        };
        noted.map_err(|error| error.to_string())
    }

    /// Writes the job down, if it is time to.
    async fn save(&self) {
        let Some(file) = self.0.place.file.clone() else { return };
        let job = {
            let mut state = self.state();
            let now = clock::monotonic();
            // A group of dead letters is made anew from where the job stands, so that must be kept.
            if !state.job.is_of_dead() && now.saturating_duration_since(state.saved) < SAVE_EVERY {
                return;
            }
            state.saved = now;
            state.job.clone()
        };
        let saved = tokio::task::spawn_blocking(move || file.save(&job)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, "a replay's place cannot be kept; it goes on");
        }
    }
}

impl Source for ReplaySource {
    /// One batch is out at a time.
    type Key = ();

    async fn next(&self, _choice: Choice) -> Result<Option<Outgoing<()>>, String> {
        {
            let mut state = self.state();
            if let Some(refused) = state.put_back.take() {
                state.job.progress.refused_batches += 1;
                refused.passed_by(&mut state.job);
            }
            if state.failure.is_some() || state.job.is_at_limit() {
                return Ok(None);
            }
        }
        self.paced().await;
        let is_of_dead = self.state().job.is_of_dead();
        let next = if is_of_dead { self.next_dead().await } else { self.next_batch().await }?;
        let bytes = next.iter().flat_map(|batch| &batch.metrics).map(|json| json.len() as u64);
        let mut state = self.state();
        let now = since(state.begun);
        state.rate.spend(bytes.sum(), now);
        Ok(next)
    }

    async fn delivered(&self, batch: &Outgoing<()>, refused: &[Refused]) -> Result<(), String> {
        let Some(out) = self.state().out.take() else { return Ok(()) };
        let noted = self.note(&out, batch, refused).await;
        {
            let mut state = self.state();
            let state = &mut *state;
            if let Err(error) = &noted {
                state.failure = Some(error.clone());
            }
            let json: u64 = batch.metrics.iter().map(|json| json.len() as u64).sum();
            let bytes = if let Out::Batch(item) = &out { item.bytes } else { json };
            let progress = &mut state.job.progress;
            let records = batch.metrics.len().saturating_sub(refused.len()) as u64;
            progress.done.add(records, bytes);
            progress.total.batches = progress.total.batches.max(progress.done.batches);
            progress.refused += (refused.len() + batch.left_out.len()) as u64;
            progress.failing_since = None;
            out.passed_by(&mut state.job);
        }
        self.save().await;
        noted
    }

    async fn put_back(&self, _key: (), answer: String, _next_at: Timestamp) {
        let mut state = self.state();
        state.put_back = state.out.take();
        let progress = &mut state.job.progress;
        progress.failing_since.get_or_insert_with(clock::now);
        progress.last_answer = Some(answer);
    }

    /// The ledger goes with the agent's own pushes, which hear whether it has been taken.
    async fn agent_info(&self) -> Option<AgentInfo> {
        let report = match &self.0.place.reporter {
            Some(reporter) => reporter.agent_info().await,
            None => Some(AgentInfo::unknown(self.0.place.link.clock_offset_ms())),
        };
        report.map(|report| AgentInfo { lost: Vec::new(), ..report })
    }
}

impl Out {
    /// It has been tried: what comes next is after it.
    fn passed_by(&self, job: &mut Job) {
        match self {
            Self::Batch(item) => job.pass(item.first_seq + 1),
            Self::Dead(group) => job.pass_dead(group.end()),
        }
    }
}

fn since(begun: Instant) -> Duration {
    clock::monotonic().saturating_duration_since(begun)
}
