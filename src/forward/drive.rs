//! The forwarder's loop: what is started, what follows from an answer, and when everything waits.

use std::{collections::VecDeque, future::pending, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use super::{
    Choice, ForwardConfig, ForwardStatus, Lane, Order, Outgoing, Source, Wire, WireError,
    course::{Course, later},
    flight::{self, Done, Packed, Packer, Sent, Settled, Slot},
    pace,
    split::Refusing,
    verdict::{TAKES_NOTHING, UNNAMED_REFUSALS, Verdict},
};
use crate::{
    answer::{Answer, Receipt},
    clock,
    metric::envelope::Rejected,
    units,
};

/// How a drain has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Drained {
    /// Nothing that is due is left.
    Empty,
    /// Everything waits this long.
    Waiting(Duration),
}

/// Sends batches until told otherwise.
#[derive(Debug)]
pub struct Forwarder<S, W> {
    source: S,
    wire: W,
    wake: Arc<Notify>,
    settings: watch::Receiver<ForwardConfig>,
    course: Course,
}

/// A drain under way.
struct Drain<'a, S: Source, W> {
    source: &'a S,
    wire: &'a W,
    course: &'a mut Course,
    steps: FuturesUnordered<BoxFuture<'a, Done<S::Key>>>,
    /// Batches that are out, those of the backlog, and those of them whose size is not known yet.
    out: usize,
    backlog: usize,
    unweighed: usize,
    /// Whether the source is being asked, and how often it was to be looked at again by then.
    fetching: Option<u64>,
    looks: u64,
    left: Left,
    /// The batch that is being taken apart, and those that wait for their turn to be.
    apart: Option<Uuid>,
    held: VecDeque<Slot<S::Key>>,
    unreadable: bool,
}

/// What the source had when it was asked last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// A batch, or it was not asked since something has changed.
    Unknown,
    /// No fresh one.
    NoFresh,
    /// None at all.
    Nothing,
}

impl<S: Source, W: Wire> Forwarder<S, W>
where
    S::Key: 'static,
{
    /// A forwarder that has sent nothing yet, and where its status shows.
    pub fn new(
        source: S,
        wire: W,
        mut settings: watch::Receiver<ForwardConfig>,
    ) -> (Self, watch::Receiver<ForwardStatus>) {
        let config = settings.borrow_and_update().clone();
        let (course, shown) = Course::new(config);
        (Self { source, wire, wake: Arc::default(), settings, course }, shown)
    }

    /// A drain that is under way looks at the source again when `wake` is notified: a window has
    /// ended.
    #[must_use]
    pub fn woken_by(self, wake: Arc<Notify>) -> Self {
        Self { wake, ..self }
    }

    /// Batches of which something is remembered while everything waits.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.course.remembered()
    }

    /// Sends what is due until nothing is left or everything has to wait. A pause that has not
    /// ended ends now.
    pub async fn drain(&mut self) -> Drained {
        let Self { source, wire, wake, settings, course } = self;
        course.adopt(settings.borrow_and_update().clone());
        course.breaker.resume();
        course.status.send_modify(|status| status.next_try_at = None);
        course.show(0);
        if course.wants_probe() || wire.wants_time() {
            let answer = wire.probe().await;
            course.probed(answer);
        }
        let mut drain = Drain::new(source, wire, course);
        while drain.fill() {
            let rest = drain.rest();
            tokio::select! {
                Some(done) = drain.steps.next() => drain.done(done),
                () = rested(rest) => {}
                () = wake.notified() => drain.look_again(),
                config = changed(settings) => drain.course.adopt(config),
            }
        }
        drain.end()
    }
}

impl<'a, S: Source, W: Wire> Drain<'a, S, W>
where
    S::Key: 'static,
{
    fn new(source: &'a S, wire: &'a W, course: &'a mut Course) -> Self {
        Self {
            source,
            wire,
            course,
            steps: FuturesUnordered::new(),
            out: 0,
            backlog: 0,
            unweighed: 0,
            fetching: None,
            looks: 0,
            left: Left::Unknown,
            apart: None,
            held: VecDeque::new(),
            unreadable: false,
        }
    }

    /// Starts what may be started; `false` when nothing is under way and nothing will be.
    fn fill(&mut self) -> bool {
        if self.course.breaker.at_once() == 0 {
            while let Some(slot) = self.held.pop_front() {
                self.put_back(slot, None);
            }
        }
        if let Some(choice) = self.choice() {
            self.fetching = Some(self.looks);
            self.steps.push(flight::fetch(self.source, choice));
        }
        self.course.show(self.out);
        !self.steps.is_empty() || self.rest().is_some()
    }

    /// What to ask the source for now.
    fn choice(&self) -> Option<Choice> {
        let at_once = self.course.breaker.at_once();
        if self.fetching.is_some()
            || self.unreadable
            || self.out >= at_once
            || self.left == Left::Nothing
        {
            return None;
        }
        let may_drain = self.course.rate.wait(self.course.now()).is_zero()
            && (self.unweighed == 0 || !self.course.rate.is_limited());
        match self.course.config.order {
            Order::OldestFirst => may_drain.then_some(Choice::OldestFirst),
            // One place stays free for a window that ends.
            Order::FreshFirst if may_drain && self.backlog < (at_once - 1).max(1) => {
                Some(Choice::FreshFirst)
            }
            Order::FreshFirst => (self.left == Left::Unknown).then_some(Choice::FreshOnly),
        }
    }

    /// How long the backlog has to rest, if that is all that keeps it.
    fn rest(&self) -> Option<Duration> {
        let sending = self.course.breaker.at_once() > 0;
        let wait = self.course.rate.wait(self.course.now());
        let some = self.left != Left::Nothing && !self.unreadable;
        (sending && some && !wait.is_zero()).then_some(wait)
    }

    fn look_again(&mut self) {
        self.looks += 1;
        self.left = Left::Unknown;
    }

    /// What follows from a step.
    fn done(&mut self, done: Done<S::Key>) {
        match done {
            Done::Fetched(choice, fetched) => self.fetched(choice, fetched),
            Done::Packed(slot, packed) => self.packed(slot, packed),
            Done::Answered(slot, sent, answer) => self.answered(slot, sent, answer),
            Done::Settled(settled) => self.settled(&settled),
            Done::PutBack(lane) => self.leave(lane),
        }
    }

    fn fetched(&mut self, choice: Choice, fetched: Result<Option<Outgoing<S::Key>>, String>) {
        // What has come since the question is not in the answer.
        let is_latest = self.fetching.take() == Some(self.looks);
        let batch = match fetched {
            Ok(Some(batch)) => batch,
            Ok(None) if !is_latest => return,
            Ok(None) => {
                let only_fresh = choice == Choice::FreshOnly;
                self.left = if only_fresh { Left::NoFresh } else { Left::Nothing };
                return;
            }
            Err(error) => {
                tracing::error!(%error, "cannot read the queue");
                self.unreadable = true;
                return;
            }
        };
        self.out += 1;
        self.backlog += usize::from(batch.lane == Lane::Backlog);
        let leaves_out = self.course.encodings.refuses_health();
        let batch = if leaves_out { batch.without_health() } else { batch };
        let split = self.course.take_split(batch.id, batch.metrics.len());
        self.go_on(Slot { batch, split });
    }

    /// Packs what is to be sent next of a batch; settles it when nothing is left.
    fn go_on(&mut self, mut slot: Slot<S::Key>) {
        let Some(part) = slot.split.next_part() else { return self.settle(slot) };
        if self.course.breaker.at_once() == 0 {
            return self.put_back(slot, None);
        }
        if !slot.split.is_whole() && *self.apart.get_or_insert(slot.batch.id) != slot.batch.id {
            // A backend that refuses everything gets one batch to refuse, not all that are out.
            return self.held.push_back(slot);
        }
        let packer = Packer {
            turns: Arc::clone(&self.course.packers),
            config: Arc::clone(&self.course.config),
            packing: self.course.packing(slot.split.plain),
        };
        let part = slot.batch.part(part);
        self.unweighed += usize::from(slot.batch.lane == Lane::Backlog);
        self.steps.push(flight::pack(self.source, slot, &part, packer));
    }

    fn packed(&mut self, slot: Slot<S::Key>, packed: Packed) {
        if slot.batch.lane == Lane::Backlog {
            self.unweighed -= 1;
            let (bytes, now) = (packed.body.bytes.len() as u64, self.course.now());
            self.course.rate.spend(bytes, now);
        }
        if self.course.breaker.at_once() == 0 {
            return self.put_back(slot, None);
        }
        let ticket = self.course.breaker.ticket();
        self.steps.push(flight::push((self.source, self.wire), slot, packed, ticket));
    }

    fn answered(&mut self, mut slot: Slot<S::Key>, sent: Sent, answer: Result<Answer, WireError>) {
        let course = &mut *self.course;
        let at = course.at();
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                course.breaker.down(sent.ticket, None, at);
                return self.failed(slot, error.message);
            }
        };
        match Verdict::on(answer.meaning()) {
            Verdict::Delivered => {
                let part = slot.split.next_part().unwrap_or_default();
                let receipt = match Receipt::of(&answer, part.len()) {
                    Ok(receipt) => receipt,
                    Err(why) => {
                        course.breaker.trouble(UNNAMED_REFUSALS, at);
                        let shown = format!("{}: {why}", answer.shown());
                        return self.failed(slot, hinted(&shown, UNNAMED_REFUSALS));
                    }
                };
                course.taken(&answer, &receipt, sent, slot.split.plain);
                let is_unknown =
                    |it: &Rejected| slot.batch.is_unknown_at(part.start + it.index, &it.message);
                if receipt.rejected.iter().any(is_unknown) {
                    course.refused_health(&answer);
                }
                slot.split.taken(receipt.rejected, answer.status, clock::now());
            }
            Verdict::BackOff => {
                course.breaker.down(sent.ticket, answer.retry_after, at);
                return self.failed(slot, answer.shown());
            }
            Verdict::Pause(hint) => {
                course.breaker.trouble(hint, at);
                return self.failed(slot, hinted(&answer.shown(), hint));
            }
            Verdict::Refused(refusal) => {
                course.breaker.refused(sent.ticket);
                let (split, encoding) = (&mut slot.split, sent.encoding);
                if let Some(plain) = course.encodings.refused(&answer, encoding, split.plain) {
                    split.plain = plain;
                } else {
                    let part = split.next_part().unwrap_or_default();
                    let message = answer.shown();
                    if part.len() == 1 && slot.batch.is_unknown_at(part.start, &message) {
                        course.refused_health(&answer);
                    }
                    let (status, at) = (answer.status, clock::now());
                    let answer = Refusing { refusal, status, message, at };
                    if split.is_whole() {
                        course.taking_apart(slot.batch.id, &answer);
                    }
                    split.refused(&answer);
                }
            }
        }
        self.go_on(slot);
    }

    /// A request has failed: everything waits.
    fn failed(&mut self, slot: Slot<S::Key>, answer: String) {
        self.course.note_failure("a batch was not delivered; it stays", &answer);
        self.put_back(slot, Some(answer));
    }

    /// A batch goes back, with the answer to it; without one it was not sent, or not to its end.
    fn put_back(&mut self, slot: Slot<S::Key>, answer: Option<String>) {
        let Slot { batch, split } = slot;
        self.release(batch.id);
        let course = &mut *self.course;
        let next_at = later(course.breaker.wait(course.now()).unwrap_or_default());
        let answer = answer.unwrap_or_else(|| {
            let last = course.status.borrow().last_answer.clone().unwrap_or_default();
            format!("not sent after: {last}")
        });
        course.keep_split(batch.id, split);
        self.steps.push(flight::put_back(self.source, &batch, answer, next_at));
    }

    /// Every record of a batch is taken or refused.
    fn settle(&mut self, slot: Slot<S::Key>) {
        let Slot { batch, split } = slot;
        let took_nothing = split.took_nothing();
        let refused = split.into_refused();
        let last = refused.iter().rfind(|refused| !batch.is_unknown(refused));
        if let Some(last) = last.filter(|_| took_nothing) {
            let (hint, at) = (TAKES_NOTHING, self.course.at());
            let wait = units::show_duration(self.course.breaker.trouble(hint, at));
            tracing::error!(wait, hint, "the backend takes nothing");
            let answer = hinted(&last.message, hint);
            self.course.status.send_modify(|status| status.last_answer = Some(answer));
        }
        self.release(batch.id);
        self.steps.push(flight::settle(self.source, batch, refused));
    }

    /// The batch that was taken apart leaves its place to the next that has to be.
    fn release(&mut self, id: Uuid) {
        if self.apart != Some(id) {
            return;
        }
        self.apart = None;
        if self.course.breaker.at_once() > 0
            && let Some(slot) = self.held.pop_front()
        {
            self.go_on(slot);
        }
    }

    fn settled(&mut self, settled: &Settled) {
        let taken = settled.taken as u64;
        if settled.lane == Lane::Backlog {
            self.course.recent.note(self.course.now());
        }
        let drain = self.course.recent.speed(self.course.now());
        self.course.status.send_modify(|status| {
            status.delivered_batches += u64::from(taken > 0);
            status.delivered_records += taken;
            status.refused_records += settled.refused as u64;
            status.drain = drain;
        });
        self.leave(settled.lane);
        self.look_again();
    }

    fn leave(&mut self, lane: Lane) {
        self.out -= 1;
        self.backlog -= usize::from(lane == Lane::Backlog);
    }

    fn end(self) -> Drained {
        let course = self.course;
        let down = course.breaker.wait(course.now());
        let wait = down.or_else(|| self.unreadable.then_some(pace::FIRST));
        course.status.send_modify(|status| {
            status.next_try_at = wait.map(later);
            status.drain = None;
        });
        wait.map_or(Drained::Empty, Drained::Waiting)
    }
}

/// Ends after `wait`; never without one.
async fn rested(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => pending().await,
    }
}

/// The settings, when they change.
async fn changed(settings: &mut watch::Receiver<ForwardConfig>) -> ForwardConfig {
    if settings.changed().await.is_err() {
        // Nobody can change them any more.
        return pending().await;
    }
    settings.borrow_and_update().clone()
}

/// An answer, and what a person can do about it: for logs, `inspect` and `status`.
fn hinted(answer: &str, hint: &str) -> String {
    format!("{answer}\n  hint: {hint}")
}
