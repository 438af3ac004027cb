//! The steps of one batch on its way. Each is a future that ends in a [`Done`]; [`super::drive`]
//! has several of them under way and decides what follows.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::{
    Body, Choice, ForwardConfig, Lane, Outgoing, Refused, Source, Wire, WireError,
    batch::{self, Packing},
    breaker::Ticket,
    split::Split,
};
use crate::{
    answer::{Answer, Meaning},
    clock,
    encoding::Encoding,
    metric::{
        envelope::{AgentInfo, EnvelopeHead, ReplayOf},
        sequences::Sequences,
    },
};

/// A batch on its way.
#[derive(Debug)]
pub(super) struct Slot<K> {
    pub(super) batch: Outgoing<K>,
    pub(super) split: Split,
}

/// A step has ended.
pub(super) enum Done<K> {
    /// The source was asked for a batch.
    Fetched(Choice, Result<Option<Outgoing<K>>, String>),
    /// A part of a batch is a body.
    Packed(Slot<K>, Packed),
    /// The backend, or the way to it, has answered.
    Answered(Slot<K>, Sent, Result<Answer, WireError>),
    /// Every record of a batch is taken or refused, and that is noted.
    Settled(Settled),
    /// A batch is back at its source.
    PutBack(Lane),
}

/// A part of a batch, ready to be sent.
pub(super) struct Packed {
    pub(super) id: Uuid,
    pub(super) body: Body,
    pub(super) agent: Option<AgentInfo>,
}

/// What was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) ticket: Ticket,
    pub(super) encoding: Encoding,
    /// Bytes before and after compression.
    pub(super) bytes: (u64, u64),
}

/// A batch of which nothing is left to send.
pub(super) struct Settled {
    pub(super) lane: Lane,
    /// Records that the backend has.
    pub(super) taken: usize,
    /// Records that it has refused, but for what it does not know of the agent itself.
    pub(super) refused: usize,
}

type Step<'a, K> = BoxFuture<'a, Done<K>>;

pub(super) fn fetch<S: Source>(source: &S, choice: Choice) -> Step<'_, S::Key> {
    Box::pin(async move { Done::Fetched(choice, source.next(choice).await) })
}

/// How a batch is packed: by whose leave, as whom and how.
pub(super) struct Packer {
    pub(super) turns: Arc<Semaphore>,
    pub(super) config: Arc<ForwardConfig>,
    pub(super) packing: Packing,
}

pub(super) fn pack<'a, S: Source>(
    source: &'a S,
    slot: Slot<S::Key>,
    part: &Outgoing<S::Key>,
    packer: Packer,
) -> Step<'a, S::Key>
where
    S::Key: 'static,
{
    let (id, metrics) = (part.id, part.metrics.clone());
    let numbers = part.records.iter().map(|(seq, _)| *seq);
    let queue_id = part.queue_id;
    let sequences = Some(Sequences::of(queue_id, numbers));
    Box::pin(async move {
        let agent = source.agent_info().await;
        let Packer { turns, config, packing } = packer;
        let replay_of = config.brings_other.then_some(ReplayOf { queue_id });
        let agent = agent.map(|agent| AgentInfo { sequences, replay_of, ..agent });
        // Never closed; without a turn there would only be more at once.
        let _turn = turns.acquire().await.ok();
        let encode = move || {
            let head = EnvelopeHead {
                collector_id: &config.collector_id,
                hostname: &config.hostname,
                timestamp: clock::now(),
                agent: agent.as_ref(),
            };
            let body = batch::encode(&head, &metrics, packing);
            Packed { id, body, agent }
        };
        // Compression of a full batch takes tens of milliseconds: not on the runtime's threads.
        let body = tokio::task::spawn_blocking(encode).await;
        Done::Packed(slot, body.expect("compression does not panic"))
    })
}

pub(super) fn push<'a, S: Source, W: Wire>(
    (source, wire): (&'a S, &'a W),
    slot: Slot<S::Key>,
    packed: Packed,
    ticket: Ticket,
) -> Step<'a, S::Key> {
    let Packed { id, body, agent } = packed;
    let bytes = (body.raw_bytes, body.bytes.len() as u64);
    let sent = Sent { ticket, encoding: body.encoding, bytes };
    Box::pin(async move {
        let answer = wire.push(body, id).await;
        // Of a batch that was known, only the id may have been read.
        let is_read = answer.as_ref().is_ok_and(|answer| answer.meaning() == Meaning::Success);
        if let Some(agent) = agent.filter(|_| is_read) {
            source.heard(&agent).await;
        }
        Done::Answered(slot, sent, answer)
    })
}

pub(super) fn settle<S: Source>(
    source: &S,
    batch: Outgoing<S::Key>,
    refused: Vec<Refused>,
) -> Step<'_, S::Key> {
    Box::pin(async move {
        if let Err(error) = source.delivered(&batch, &refused).await {
            // The batch may come again, under the same id, and the backend will know it.
            tracing::warn!(%error, "a delivery could not be noted in the queue");
        }
        let kept: Vec<&Refused> = refused.iter().filter(|it| !batch.is_unknown(it)).collect();
        if let Some(first) = kept.first() {
            tracing::error!(
                batch = %batch.id,
                records = kept.len(),
                of = batch.metrics.len(),
                first = format!("{}: {}", first.path, first.message),
                "the backend refused records; they go to the dead letters"
            );
        }
        let taken = batch.metrics.len().saturating_sub(refused.len());
        Done::Settled(Settled { lane: batch.lane, taken, refused: kept.len() })
    })
}

pub(super) fn put_back<'a, S: Source>(
    source: &'a S,
    batch: &Outgoing<S::Key>,
    answer: String,
    next_at: jiff::Timestamp,
) -> Step<'a, S::Key>
where
    S::Key: 'static,
{
    let (key, lane) = (batch.key, batch.lane);
    Box::pin(async move {
        source.put_back(key, answer, next_at).await;
        Done::PutBack(lane)
    })
}
