//! A queue whose state cannot be read yet: a full disk, a wrong owner, a device in trouble. Nothing
//! of it is touched, no number is given and no delivery taken; what the collectors bring stays in
//! memory, and it goes on by itself as soon as the state can be read.

use std::{collections::VecDeque, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use uuid::Uuid;

use super::{
    AppendError, PositionError,
    format::record::{Group, Haste, NewRecord},
    log::{Appended, Counts, Log, LogLimits, ring::Home, view::QueueStatus},
    store::{StoreError, disk::WriteDisk},
    thread::{Ask, Command, Waiting, now_ms},
};

/// How often it is tried.
const RETRY: Duration = Duration::from_secs(1);

/// Records that memory had no room for, before they had numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) records: u64,
    /// The time that they are about, milliseconds since 1970 UTC, both ends.
    pub(super) time_ms: (i64, i64),
}

/// What came meanwhile.
#[derive(Debug)]
struct Held {
    groups: VecDeque<Group>,
    bytes: usize,
    bytes_max: usize,
    dropped: Option<Dropped>,
}

impl Held {
    fn new(bytes_max: usize) -> Self {
        Self { groups: VecDeque::new(), bytes: 0, bytes_max, dropped: None }
    }

    fn push(&mut self, group: Group) {
        self.bytes += bytes_of(&group);
        self.groups.push_back(group);
        while self.bytes > self.bytes_max
            && let Some(oldest) = self.groups.front_mut()
        {
            let records = std::mem::take(&mut oldest.records);
            if records.is_empty() {
                // Its position stays: what it had read is counted as lost, and not read again.
                let Some(spent) = self.groups.pop_front() else { return };
                self.keep_position(spent);
                continue;
            }
            self.bytes -= records.iter().map(memory_bytes).sum::<usize>();
            self.drop_records(&records);
        }
    }

    /// The position of a group without records goes with the next group of its collector.
    fn keep_position(&mut self, spent: Group) {
        let Some(position) = spent.position else { return };
        let of_same = |group: &&mut Group| {
            group.position.as_ref().is_some_and(|later| later.collector == position.collector)
        };
        if self.groups.iter_mut().find(of_same).is_none() {
            self.groups.push_back(Group { position: Some(position), ..Group::default() });
        }
    }

    fn drop_records(&mut self, records: &[NewRecord]) {
        let Some(first) = records.first() else { return };
        let dropped =
            self.dropped.get_or_insert(Dropped { records: 0, time_ms: (first.at_ms, first.at_ms) });
        dropped.records += records.len() as u64;
        for record in records {
            dropped.time_ms.0 = dropped.time_ms.0.min(record.at_ms);
            dropped.time_ms.1 = dropped.time_ms.1.max(record.at_ms);
        }
    }

    fn records(&self) -> u64 {
        self.groups.iter().map(|group| group.records.len() as u64).sum()
    }
}

fn bytes_of(group: &Group) -> usize {
    group.records.iter().map(memory_bytes).sum()
}

fn memory_bytes(record: &NewRecord) -> usize {
    record.payload.len() + record.kind.len() + 96
}

/// Waits until the log opens, and hands over what came meanwhile. `None` when the queue is closed
/// before that.
pub(super) async fn until_open<D: WriteDisk>(
    (mut error, mut open): (StoreError, impl FnMut() -> Result<Log<D>, StoreError>),
    commands: &mut mpsc::Receiver<Command>,
    (mut commit_interval, mut limits): (Duration, LogLimits),
) -> Option<(Log<D>, Duration)> {
    tracing::error!(
        %error,
        "the queue's state cannot be read: nothing of it is changed, and what is collected stays \
         in memory until it can be"
    );
    let mut held = Held::new(limits.volatile_bytes_max);
    let mut retry_at = Instant::now() + RETRY;
    loop {
        let next = tokio::select! {
            biased;
            () = tokio::time::sleep_until(retry_at) => {
                match open() {
                    Ok(log) => return Some((hand_over(log, held, limits), commit_interval)),
                    Err(again) => error = again,
                }
                retry_at = Instant::now() + RETRY;
                continue;
            }
            next = commands.recv() => next,
        };
        match next {
            Some(Command::Change(changed)) => (commit_interval, limits) = *changed,
            Some(Command::Append(group, reply)) => append(&mut held, group, reply),
            Some(Command::Close(reply)) => {
                told_of_end(&held, &error);
                reply.send(()).ok();
                return None;
            }
            Some(command) => answer(command, &held, (&error, &limits)),
            None => {
                told_of_end(&held, &error);
                return None;
            }
        }
    }
}

fn append(held: &mut Held, group: Group, reply: Waiting) {
    let answer = match group.haste {
        Haste::Now => Err(AppendError::NotReady),
        Haste::Linger => {
            let records = group.records.len() as u64;
            held.push(group);
            Ok(Appended { first_seq: 0, records, home: Home::MemoryOnly })
        }
    };
    reply.send(answer).ok();
}

fn hand_over<D: WriteDisk>(mut log: Log<D>, held: Held, limits: LogLimits) -> Log<D> {
    log.change_limits(limits);
    tracing::warn!(records = held.records(), "the queue's state can be read now; it goes on");
    if let Some(dropped) = held.dropped {
        log.note_dropped(dropped, now_ms());
    }
    if !held.groups.is_empty() {
        log.append(held.groups.into(), now_ms());
    }
    log
}

fn told_of_end(held: &Held, error: &StoreError) {
    let records = held.records() + held.dropped.map_or(0, |dropped| dropped.records);
    if records > 0 {
        tracing::error!(records, %error, "records lost: the queue's state could not be read");
    }
}

fn answer(command: Command, held: &Held, (error, limits): (&StoreError, &LogLimits)) {
    match command {
        Command::Seal(reply) => {
            reply.send(()).ok();
        }
        Command::PickBatch(_, reply) => {
            reply.send(None).ok();
        }
        Command::LossesToSend(reply) | Command::Ask(Ask::Losses(reply)) => {
            reply.send(Vec::new()).ok();
        }
        Command::Ask(Ask::Status(reply)) => {
            reply.send(status(held, error, limits)).ok();
        }
        Command::Ask(Ask::Segments(reply)) => {
            reply.send(Vec::new()).ok();
        }
        Command::Ask(Ask::Position(_, reply)) => {
            reply.send(Err(PositionError::NotReady)).ok();
        }
        Command::Ask(Ask::Batches(reply) | Ask::BatchesOf(_, reply)) => {
            reply.send(Err(again(error))).ok();
        }
        Command::Ask(Ask::Read(_, reply)) => {
            reply.send(Err(again(error))).ok();
        }
        Command::Ask(Ask::Segment(_, reply)) => {
            reply.send(Err(again(error))).ok();
        }
        Command::Ask(Ask::Records(_, _, reply)) => {
            reply.send(<_>::default()).ok();
        }
        Command::Ask(Ask::Check(_, _, reply)) => {
            reply.send(<_>::default()).ok();
        }
        Command::ChangeDead(_, reply) | Command::Settle(_, _, reply) => {
            reply.send(Err(again(error))).ok();
        }
        Command::PutBack(..)
        | Command::RetryNow
        | Command::LossesAcknowledged(_)
        | Command::ConfirmClock
        | Command::Append(..)
        | Command::Change(_)
        | Command::Close(_) => {}
    }
}

fn again(error: &StoreError) -> StoreError {
    StoreError::new(error.action, &*error.path, std::io::Error::from(error.source.kind()))
}

fn status(held: &Held, error: &StoreError, limits: &LogLimits) -> QueueStatus {
    QueueStatus {
        queue_id: Uuid::nil(),
        segments: 0,
        batches: 0,
        records: held.records(),
        raw_bytes: held.bytes as u64,
        disk_bytes: 0,
        usage_bytes: 0,
        bytes_max: limits.budget.bytes_max,
        kept_segments: 0,
        oldest_at: None,
        next_seq: 0,
        ring_bytes: held.bytes as u64,
        ring_bytes_max: limits.ring_bytes_max as u64,
        ring_records: held.records(),
        disk_error: Some(format!("the queue's state cannot be read: {error}")),
        state_error: Some(error.to_string()),
        counts: Counts::default(),
    }
}
