//! What a connection does and how long it may: every phase has a limit of time, in both protocols.
//!
//! TLS handshake, first request's head, requests in the works, answers that the peer does not
//! read, idleness. Bytes alone prove nothing: a peer that only answers pings, or sends a head one
//! byte at a time, is as idle as one that is silent. What counts are requests, and answers read.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::super::config::Limits;
use crate::clock;

/// A peer that reads an answer takes at least so much of it in the time to write.
const TAKEN_BYTES_MIN: u64 = 32 << 10;
/// A peer that has sent nothing for so long is silent; before, its first bytes may be on the way.
const SILENCE: Duration = Duration::from_secs(1);
/// What a request may take beyond its timeout: the rest of a refused body is read, see `drain`.
const DRAIN: Duration = Duration::from_secs(6);

/// How long each phase may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    handshake: Duration,
    head: Duration,
    request: Duration,
    write: Duration,
    /// Also of a head, from the moment that the connection is free for it.
    pub(super) idle: Duration,
}

impl From<&Limits> for Patience {
    fn from(limits: &Limits) -> Self {
        Self {
            handshake: limits.handshake_timeout,
            head: limits.head_timeout,
            request: limits.request_timeout.saturating_add(DRAIN),
            write: limits.write_timeout,
            idle: limits.idle_timeout,
        }
    }
}

/// Which limit a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    Handshake,
    Head,
    Request,
    Write,
    Idle,
}

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Handshake => "the TLS handshake took too long",
            Self::Head => "the first request did not come",
            Self::Request => "a request took too long",
            Self::Write => "its answers are not read",
            Self::Idle => "it was idle for too long",
        })
    }
}

/// How much a connection is worth keeping when places are short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Worth {
    /// Nothing was ever read from it, and it is not new.
    Silent,
    /// No request is in the works.
    Idle,
    /// A request is in the works.
    Busy,
}

/// The state of one connection, shared by its socket, its requests and its watch.
pub(super) struct Progress {
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    has_spoken: bool,
    /// The end of the last request, or of the phase before the first.
    since: Instant,
    /// Requests whose answer is not handed over yet, oldest first, and the number of the next.
    requests: Vec<(u64, Instant)>,
    next: u64,
    written: u64,
    /// Since when the peer keeps an answer waiting, and how much was written until then.
    stalled: Option<(Instant, u64)>,
    /// The socket takes nothing just now.
    is_full: bool,
    waiting: Vec<Waker>,
}

/// What comes next while no request is in the works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Handshake,
    FirstRequest,
    NextRequest,
}

/// A request in the works; its end is the end of its answer.
pub(super) struct Work {
    progress: Arc<Progress>,
    number: u64,
}

/// An answer that ends its [`Work`] when it is handed over, or given up.
struct Answer {
    body: Body,
    _work: Work,
}

impl Progress {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: Mutex::new(State {
                phase: Phase::Handshake,
                has_spoken: false,
                since: now,
                requests: Vec::new(),
                next: 0,
                written: 0,
                stalled: None,
                is_full: false,
                waiting: Vec::new(),
            }),
        }
    }

    /// The handshake is through, where there is one.
    pub(super) fn greeted(&self) {
        let mut state = self.lock();
        (state.phase, state.since) = (Phase::FirstRequest, clock::monotonic());
    }

    /// A request's head has come.
    pub(super) fn begin(self: &Arc<Self>) -> Work {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.phase = Phase::NextRequest;
        state.requests.push((number, clock::monotonic()));
        Work { progress: Arc::clone(self), number }
    }

    /// Waits until the peer has taken what was written: who does not read is not answered more.
    pub(super) async fn writable(&self) {
        std::future::poll_fn(|context| self.poll_writable(context)).await;
    }

    /// Ready unless the socket is full.
    pub(super) fn poll_writable(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if !state.is_full {
            return Poll::Ready(());
        }
        if !state.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            state.waiting.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// Bytes of the peer were read.
    pub(super) fn note_read(&self) {
        self.lock().has_spoken = true;
    }

    /// The socket took `bytes`.
    pub(super) fn note_written(&self, bytes: usize) {
        let mut state = self.lock();
        state.written += bytes as u64;
        if state.stalled.is_some_and(|(_, until)| state.written - until >= TAKEN_BYTES_MIN) {
            state.stalled = None;
        }
        state.is_full = false;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// The socket takes nothing.
    pub(super) fn note_full(&self) {
        let mut state = self.lock();
        state.is_full = true;
        let written = state.written;
        state.stalled.get_or_insert_with(|| (clock::monotonic(), written));
    }

    /// Everything is written.
    pub(super) fn note_flushed(&self) {
        let mut state = self.lock();
        if !state.is_full {
            state.stalled = None;
        }
    }

    /// What the connection is worth.
    pub(super) fn worth(&self, now: Instant) -> Worth {
        let state = self.lock();
        if !state.requests.is_empty() {
            return Worth::Busy;
        }
        let is_new = now.saturating_duration_since(state.since) < SILENCE;
        if state.has_spoken || is_new { Worth::Idle } else { Worth::Silent }
    }

    /// Ends when the connection is over a limit.
    pub(super) async fn watch(&self, patience: &Patience) -> Overdue {
        loop {
            let (at, overdue) = self.lock().deadline(patience);
            if at <= clock::monotonic() {
                return overdue;
            }
            tokio::time::sleep_until(at.into()).await;
        }
    }

    fn end(&self, number: u64) {
        let mut state = self.lock();
        state.requests.retain(|(other, _)| *other != number);
        state.since = clock::monotonic();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The first limit that the connection will be over, unless something happens.
    fn deadline(&self, patience: &Patience) -> (Instant, Overdue) {
        let first = match (self.requests.first(), self.phase) {
            (Some((_, began)), _) => (*began + patience.request + patience.write, Overdue::Request),
            (None, Phase::Handshake) => (self.since + patience.handshake, Overdue::Handshake),
            (None, Phase::FirstRequest) => (self.since + patience.head, Overdue::Head),
            (None, Phase::NextRequest) => (self.since + patience.idle, Overdue::Idle),
        };
        match self.stalled {
            Some((since, _)) if since + patience.write < first.0 => {
                (since + patience.write, Overdue::Write)
            }
            _ => first,
        }
    }
}

impl Work {
    /// The body of the answer, which ends this.
    pub(super) fn until_the_end_of(self, body: Body) -> Body {
        Body::new(Answer { body, _work: self })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.progress.end(self.number);
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        handshake: Duration::from_secs(10),
        head: Duration::from_secs(20),
        request: Duration::from_secs(30),
        write: Duration::from_secs(5),
        idle: Duration::from_secs(90),
    };

    #[test]
    fn every_phase_has_an_end() {
        let began = clock::monotonic();
        let progress = Arc::new(Progress::new(began));
        let check = |seconds: u64, overdue: Overdue, worth: Worth| {
            let state = progress.lock();
            let (at, found) = state.deadline(&PATIENCE);
            let since = state.stalled.map_or(state.since, |(since, _)| since);
            drop(state);
            assert_eq!((found, progress.worth(began + SILENCE)), (overdue, worth));
            let left = at.saturating_duration_since(since).as_secs();
            assert!((seconds..=seconds + 1).contains(&left), "{left} {overdue}");
        };
        check(10, Overdue::Handshake, Worth::Silent);
        progress.greeted();
        progress.note_read();
        check(20, Overdue::Head, Worth::Idle);
        let one = progress.begin();
        check(35, Overdue::Request, Worth::Busy);
        progress.note_full();
        check(5, Overdue::Write, Worth::Busy);
        // A drop of the answer now and then is not an answer that is read.
        progress.note_written(100);
        check(5, Overdue::Write, Worth::Busy);
        progress.note_written(32 << 10);
        check(35, Overdue::Request, Worth::Busy);
        let two = progress.begin();
        drop(one);
        drop(two);
        check(90, Overdue::Idle, Worth::Idle);
        progress.note_full();
        progress.note_flushed();
        check(5, Overdue::Write, Worth::Idle);
        progress.note_written(1);
        progress.note_flushed();
        check(90, Overdue::Idle, Worth::Idle);
    }
}
