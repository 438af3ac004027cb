//! A line of the dead letters: a record with the reason why it was refused.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use uuid::Uuid;

use crate::{
    forward::{Outgoing, Refused},
    queue::{DeadLetter, Settled},
};

/// A refused record as its line tells it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Letter<'a> {
    /// When it was refused for the last time.
    pub(super) at: Timestamp,
    /// When it was refused for the first time.
    pub(super) first_at: Timestamp,
    /// How many requests with it were refused.
    pub(super) attempts: u32,
    /// The queue that numbered it; absent from letters of earlier versions: the one they lie in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) queue: Option<Uuid>,
    /// The batch that it was in.
    pub(super) batch: Uuid,
    pub(super) seq: u64,
    /// The HTTP status.
    pub(super) status: u16,
    /// The field that is wrong; empty when the backend did not name one.
    #[serde(borrow)]
    pub(super) path: Cow<'a, str>,
    /// What the backend said.
    #[serde(borrow)]
    pub(super) message: Cow<'a, str>,
    pub(super) metric: Cow<'a, RawValue>,
}

impl Letter<'_> {
    /// The queue that numbered the record, and its number; the letter lies in the directory of the
    /// queue `queue_id`.
    pub(super) fn record(&self, queue_id: Uuid) -> (Uuid, u64) {
        (self.queue.unwrap_or(queue_id), self.seq)
    }
}

/// What has become of a batch: what the backend has refused of it is for the dead letters, but for
/// what it does not know of the agent itself.
pub(super) fn settled<K>(batch: &Outgoing<K>, refused: &[Refused]) -> Settled {
    let (unknown, kept): (Vec<&Refused>, Vec<_>) =
        refused.iter().partition(|refused| batch.is_unknown(refused));
    let record = |refused: &Refused| batch.records.get(refused.index).copied();
    let unknown = unknown.into_iter().filter_map(record);
    Settled {
        records: batch.count() as u64,
        refused: kept.into_iter().filter_map(|refused| letter(batch, refused)).collect(),
        not_kept: unknown.chain(batch.left_out.iter().copied()).collect(),
    }
}

fn letter<K>(batch: &Outgoing<K>, refused: &Refused) -> Option<DeadLetter> {
    let payload = batch.metrics.get(refused.index)?;
    let (seq, at_ms) = *batch.records.get(refused.index)?;
    // What the backend found no JSON is kept as the text that it is.
    let raw = serde_json::from_slice::<&RawValue>(payload).map(Cow::Borrowed);
    let as_text = |_| to_raw_value(&String::from_utf8_lossy(payload)).map(Cow::Owned);
    let letter = Letter {
        at: refused.at,
        first_at: refused.first_at,
        attempts: refused.attempts,
        queue: Some(batch.queue_id),
        batch: batch.id,
        seq,
        status: refused.status,
        path: refused.path.as_str().into(),
        message: refused.message.as_str().into(),
        metric: raw.or_else(as_text).ok()?,
    };
    Some(DeadLetter { seq, at_ms, line: serde_json::to_string(&letter).ok()? })
}

/// The line of a letter of `queue` that was sent again and refused once more.
pub(super) fn refused_again(letter: &Letter<'_>, queue: Uuid, again: &Refused) -> Option<String> {
    let letter = Letter {
        queue: Some(queue),
        at: again.at,
        attempts: letter.attempts.saturating_add(again.attempts),
        status: again.status,
        path: again.path.as_str().into(),
        message: again.message.as_str().into(),
        metric: Cow::Borrowed(&letter.metric),
        ..*letter
    };
    serde_json::to_string(&letter).ok()
}

/// Reads a line; `None` when it is no dead letter.
pub(super) fn read(line: &str) -> Option<Letter<'_>> {
    serde_json::from_str(line).ok()
}
