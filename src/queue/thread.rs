//! The queue's thread: it owns the log, and does what the handles ask for, one command at a time.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    AppendError, COMMANDS_MAX, Loss, PositionError, Queue, Settled,
    dead::DeadChanges,
    format::record::{Group, Haste},
    log::{
        Appended, Batch, BatchKey, Log, LogLimits,
        age::Moment,
        look::{RecordFilter, RecordPage, SegmentCheck, SegmentDetail},
        reading::{Pick, Picked},
        view::{BatchInfo, QueueStatus, SegmentInfo},
    },
    store::{
        StoreError,
        disk::{ReadDisk, WriteDisk},
    },
    waiting,
};
use crate::clock;

/// What the thread is told.
pub(super) enum Command {
    Append(Group, Waiting),
    Seal(oneshot::Sender<()>),
    PickBatch(Pick, oneshot::Sender<Option<Picked>>),
    Settle(BatchKey, Settled, oneshot::Sender<Result<(), StoreError>>),
    ChangeDead(DeadChanges, oneshot::Sender<Result<(), StoreError>>),
    PutBack(BatchKey, String, i64),
    RetryNow,
    LossesToSend(oneshot::Sender<Vec<Loss>>),
    LossesAcknowledged(Vec<u64>),
    ConfirmClock,
    Change(Box<(Duration, LogLimits)>),
    Close(oneshot::Sender<()>),
    Ask(Ask),
}

/// What the thread is asked, and changes nothing for.
pub(super) enum Ask {
    Status(oneshot::Sender<QueueStatus>),
    Segments(oneshot::Sender<Vec<SegmentInfo>>),
    Batches(oneshot::Sender<Result<Vec<BatchInfo>, StoreError>>),
    BatchesOf(u64, oneshot::Sender<Result<Vec<BatchInfo>, StoreError>>),
    Read(BatchKey, oneshot::Sender<Result<Option<Batch>, StoreError>>),
    Losses(oneshot::Sender<Vec<Loss>>),
    Position(String, oneshot::Sender<Result<Option<Bytes>, PositionError>>),
    Segment(u64, oneshot::Sender<Result<Option<SegmentDetail>, StoreError>>),
    Records(RecordFilter, usize, oneshot::Sender<RecordPage>),
    Check(u64, u64, oneshot::Sender<SegmentCheck>),
}

/// Who waits for an append.
pub(super) type Waiting = oneshot::Sender<Result<Appended, AppendError>>;

/// The thread that owns the log.
#[derive(Debug)]
pub struct QueueThread(std::thread::JoinHandle<()>);

/// Groups that share one sync at most.
const GROUPS_MAX: usize = 256;
/// How often the log is asked whether it has something to do by itself.
const TEND_INTERVAL: Duration = Duration::from_secs(1);

impl QueueThread {
    /// Waits until the queue is closed.
    pub fn join(self) {
        if self.0.join().is_err() {
            tracing::error!("the queue's thread panicked");
        }
    }
}

/// Gives `log` to a thread of its own.
pub(super) fn start<D: WriteDisk + 'static>(
    log: Log<D>,
    commit_interval: Duration,
) -> Result<(Queue, QueueThread), StoreError> {
    let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
    let queue = Queue::new(commands, log.store.dir());
    Ok((queue, spawn(serve(log, receiver, commit_interval))?))
}

/// Gives a log that is only looked at to a thread of its own.
pub(super) fn start_looking<D: ReadDisk + 'static>(
    log: Log<D>,
) -> Result<(Queue, QueueThread), StoreError> {
    let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
    let queue = Queue::new(commands, log.store.dir());
    Ok((queue, spawn(serve_asks(log, receiver))?))
}

/// Starts the thread of a queue whose log cannot be opened yet.
pub(super) fn start_waiting<D: WriteDisk + 'static>(
    dir: &Path,
    (error, open): (StoreError, impl FnMut() -> Result<Log<D>, StoreError> + Send + 'static),
    (commit_interval, limits): (Duration, LogLimits),
) -> Result<(Queue, QueueThread), StoreError> {
    let (commands, mut receiver) = mpsc::channel(COMMANDS_MAX);
    let queue = Queue::new(commands, Some(dir));
    let life = async move {
        let opened =
            waiting::until_open((error, open), &mut receiver, (commit_interval, limits)).await;
        if let Some((log, commit_interval)) = opened {
            serve(log, receiver, commit_interval).await;
        }
    };
    Ok((queue, spawn(life)?))
}

pub(super) fn spawn(
    life: impl Future<Output = ()> + Send + 'static,
) -> Result<QueueThread, StoreError> {
    let failed = |error| StoreError::new("start the thread of", "the queue", error);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(failed)?;
    let run = move || {
        // Whoever waits for the thread learns from its channel that it has ended.
        if catch_unwind(AssertUnwindSafe(|| runtime.block_on(life))).is_err() {
            tracing::error!("the queue's thread panicked: the process must be started anew");
        }
    };
    let thread = std::thread::Builder::new().name("queue".to_owned()).spawn(run);
    Ok(QueueThread(thread.map_err(failed)?))
}

/// When the log does by itself what it has to do. Its times survive the commands between them:
/// however many come, it is never longer than that.
struct Upkeep {
    begun: Instant,
    tend_at: Instant,
    /// Whether there is more to do as soon as no command waits.
    busy: bool,
    sync_at: Option<Instant>,
}

impl Upkeep {
    fn new() -> Self {
        let begun = Instant::now();
        Self { begun, tend_at: begun + TEND_INTERVAL, busy: false, sync_at: None }
    }

    /// The next sync is due within `interval`.
    fn sync_within(&mut self, interval: Duration) {
        self.sync_at.get_or_insert_with(|| Instant::now() + interval);
    }

    /// Does what is due.
    fn keep_up<D: WriteDisk>(&mut self, log: &mut Log<D>) {
        let now = Instant::now();
        if self.sync_at.is_some_and(|at| at <= now) {
            log.sync(now_ms());
            self.sync_at = None;
        }
        if self.tend_at <= now {
            self.tend(log);
        }
    }

    fn tend<D: WriteDisk>(&mut self, log: &mut Log<D>) {
        let before = Instant::now();
        self.busy = log.tend(self.moment());
        let now = Instant::now();
        // Commands that come without a break leave it half of the time at most.
        self.tend_at = now + if self.busy { now - before } else { TEND_INTERVAL };
    }

    fn moment(&self) -> Moment {
        let running_ms = i64::try_from(self.begun.elapsed().as_millis()).unwrap_or(i64::MAX);
        Moment { wall_ms: now_ms(), running_ms }
    }

    /// Waits until something is due.
    async fn due(&self) {
        if !self.busy {
            let next = self.sync_at.map_or(self.tend_at, |at| at.min(self.tend_at));
            tokio::time::sleep_until(next).await;
        }
    }
}

/// The life of the queue's thread.
async fn serve<D: WriteDisk>(
    mut log: Log<D>,
    mut commands: mpsc::Receiver<Command>,
    mut commit_interval: Duration,
) {
    let mut held: Option<Command> = None;
    let mut upkeep = Upkeep::new();
    loop {
        upkeep.keep_up(&mut log);
        let next = if held.is_some() {
            held.take()
        } else {
            tokio::select! {
                biased;
                next = commands.recv() => next,
                () = upkeep.due() => {
                    if upkeep.busy {
                        upkeep.tend(&mut log);
                    }
                    continue;
                }
            }
        };
        match next {
            Some(Command::Append(group, reply)) => {
                let linger = match group.haste {
                    Haste::Linger => commit_interval,
                    Haste::Now => Duration::ZERO,
                };
                let (groups, replies, other) = gather(&mut commands, (group, reply), linger).await;
                held = other;
                commit(&mut log, groups, replies);
                upkeep.sync_within(commit_interval);
            }
            Some(command @ Command::Settle(..)) => {
                execute(&mut log, command);
                upkeep.sync_within(commit_interval);
            }
            Some(Command::Change(changed)) => {
                commit_interval = changed.0;
                log.change_limits(changed.1);
            }
            Some(Command::ConfirmClock) => log.confirm_clock(upkeep.moment()),
            Some(Command::Close(reply)) => {
                log.close(now_ms());
                reply.send(()).ok();
                return;
            }
            Some(command) => execute(&mut log, command),
            None => return log.close(now_ms()),
        }
    }
}

/// The life of the thread of a log that is only looked at. What would change something is not
/// answered: whoever asks for that finds the queue closed.
async fn serve_asks<D: ReadDisk>(mut log: Log<D>, mut commands: mpsc::Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        match command {
            Command::Ask(ask) => answer(&mut log, ask),
            Command::Close(reply) => {
                reply.send(()).ok();
                return;
            }
            _ => {}
        }
    }
}

/// Collects the groups that arrive within `interval`; another command ends the wait, and so does a
/// group in haste.
async fn gather(
    commands: &mut mpsc::Receiver<Command>,
    first: (Group, Waiting),
    interval: Duration,
) -> (Vec<Group>, Vec<Waiting>, Option<Command>) {
    let (mut groups, mut replies) = (vec![first.0], vec![first.1]);
    let mut deadline = std::pin::pin!(tokio::time::sleep(interval));
    let mut hurry = interval.is_zero();
    while groups.len() < GROUPS_MAX {
        let next = if hurry {
            commands.try_recv().ok()
        } else {
            tokio::select! {
                biased;
                next = commands.recv() => next,
                () = &mut deadline => None,
            }
        };
        match next {
            Some(Command::Append(group, reply)) => {
                hurry |= group.haste == Haste::Now;
                groups.push(group);
                replies.push(reply);
            }
            other => return (groups, replies, other),
        }
    }
    (groups, replies, None)
}

fn commit<D: WriteDisk>(log: &mut Log<D>, groups: Vec<Group>, replies: Vec<Waiting>) {
    if !log.takes_records(now_ms()) {
        for reply in replies {
            reply.send(Err(AppendError::Full)).ok();
        }
        return;
    }
    let (mut groups, mut replies) = (groups, replies);
    if groups.iter().any(|group| group.haste == Haste::Now) && log.would_evict(now_ms()) {
        // Programs are told to come again, and still have their metrics: nothing of them is lost.
        let all: Vec<(Group, Waiting)> = groups.into_iter().zip(replies).collect();
        let (told, taken): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(group, _)| group.haste == Haste::Now);
        for (_, reply) in told {
            reply.send(Err(AppendError::Full)).ok();
        }
        (groups, replies) = taken.into_iter().unzip();
        if groups.is_empty() {
            return;
        }
    }
    let counts: Vec<u64> = groups.iter().map(|group| group.records.len() as u64).collect();
    let all = log.append(groups, now_ms());
    let mut first_seq = all.first_seq;
    for (records, reply) in counts.into_iter().zip(replies) {
        // Who asked may have gone; the records stay.
        reply.send(Ok(Appended { first_seq, records, home: all.home })).ok();
        first_seq += records;
    }
}

fn execute<D: WriteDisk>(log: &mut Log<D>, command: Command) {
    // Whoever asked may have gone; what was asked for is done all the same.
    match command {
        Command::Seal(reply) => {
            log.seal(now_ms());
            reply.send(()).ok();
        }
        Command::PickBatch(pick, reply) => {
            reply.send(log.pick_batch(pick, now_ms())).ok();
        }
        Command::Settle(key, settled, reply) => {
            reply.send(log.settle(key, &settled)).ok();
        }
        Command::ChangeDead(changes, reply) => {
            reply.send(log.change_dead(&changes)).ok();
        }
        Command::PutBack(key, answer, next_at_ms) => log.put_back(key, answer, next_at_ms),
        Command::RetryNow => log.retry_now(),
        Command::LossesToSend(reply) => {
            reply.send(log.losses_to_send()).ok();
        }
        Command::LossesAcknowledged(ids) => log.losses_acknowledged(&ids),
        Command::Ask(ask) => answer(log, ask),
        // Handled by `serve`.
        Command::Append(..) | Command::Change(_) | Command::ConfirmClock | Command::Close(_) => {}
    }
}

fn answer<D: ReadDisk>(log: &mut Log<D>, ask: Ask) {
    match ask {
        Ask::Status(reply) => {
            reply.send(log.status()).ok();
        }
        Ask::Segments(reply) => {
            reply.send(log.segments()).ok();
        }
        Ask::Batches(reply) => {
            reply.send(log.batches()).ok();
        }
        Ask::BatchesOf(segment, reply) => {
            reply.send(log.batches_of(segment)).ok();
        }
        Ask::Read(key, reply) => {
            reply.send(log.read(key)).ok();
        }
        Ask::Losses(reply) => {
            reply.send(log.losses()).ok();
        }
        Ask::Position(collector, reply) => {
            reply.send(Ok(log.position(&collector))).ok();
        }
        Ask::Segment(id, reply) => {
            reply.send(log.look_segment(id)).ok();
        }
        Ask::Records(filter, limit, reply) => {
            reply.send(log.look_records(filter, limit)).ok();
        }
        Ask::Check(id, from, reply) => {
            reply.send(log.look_check(id, from)).ok();
        }
    }
}

pub(super) fn now_ms() -> i64 {
    clock::now().as_millisecond()
}
