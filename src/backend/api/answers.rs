//! Room for answers: those with documents while they are made, and all large ones until they are
//! read. Who reads slowly, or not at all, holds a part of its own and for a time only.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hyper::body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Shared;
use super::access::{Channel, Peer};
use super::divided::{Divided, Taken};
use super::error::ApiError;
use crate::backend::config::Limits;
use crate::backend::network::Network;
use crate::backend::serve::until_read;

/// An answer of at most so many bytes takes no room.
const SMALL_BYTES_MAX: u64 = 16 << 10;
/// Documents of one answer, bytes, and the room that it has while it is made.
pub(in crate::backend) const DOCUMENTS_BYTES_MAX: usize = 32 << 20;
/// The room of answers with documents, and one asker's part, bytes. What is read so slowly that
/// it fills a part leaves room for two others to be made.
const DOCUMENTS_ROOM: u64 = 96 << 20;
const DOCUMENTS_PART: u64 = 48 << 20;
/// The room of other large answers, and one asker's part: lists, configurations, what a push is
/// told of refused metrics.
const OTHERS_ROOM: u64 = 32 << 20;
const OTHERS_PART: u64 = 8 << 20;
/// Room is counted in pieces of this size.
const PIECE_BYTES: u64 = 1 << 10;
/// Answers with documents that are made at a time: each takes a few times its bytes.
const MADE_AT_ONCE_MAX: usize = 2;
/// A peer that takes nothing of an answer for so long loses it.
const UNREAD_MAX: Duration = Duration::from_secs(15);
/// How long a request waits for its turn to read: longer than others may keep their room unread.
const TURN_PATIENCE: Duration = Duration::from_secs(20);

/// The room of all answers.
pub(in crate::backend) struct Answers {
    documents: Divided<Asker>,
    others: Divided<Asker>,
    turns: Arc<Semaphore>,
    unread_max: Duration,
}

/// Who has a part of the room.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::backend) enum Asker {
    /// A user who has logged in, from wherever.
    User(i64),
    /// The certificate of a collector.
    Certificate(Arc<str>),
    /// Anybody else, by the address.
    Address(Network),
}

/// The right to make an answer with documents, and the room for it.
pub(in crate::backend) struct Turn {
    /// Given back when it is made.
    _making: OwnedSemaphorePermit,
    room: Taken,
    unread_max: Duration,
}

/// Marks an answer that holds room until it is read.
#[derive(Clone)]
struct HasRoom;

impl From<&Peer> for Asker {
    fn from(peer: &Peer) -> Self {
        match &peer.channel {
            Channel::Mutual(thumbprint) => Self::Certificate(Arc::clone(thumbprint)),
            Channel::Plain | Channel::Tls => Self::Address(peer.address.into()),
        }
    }
}

impl Answers {
    pub(super) fn new(limits: &Limits) -> Self {
        let room = |all, part| Divided::new(pieces(all) as usize, pieces(part) as usize);
        Self {
            documents: room(DOCUMENTS_ROOM, DOCUMENTS_PART),
            others: room(OTHERS_ROOM, OTHERS_PART),
            turns: Arc::new(Semaphore::new(MADE_AT_ONCE_MAX)),
            unread_max: limits.write_timeout.min(UNREAD_MAX),
        }
    }

    /// The turn of an answer with documents; 503 when it does not come in time. Its room comes
    /// first: who waits for its own part keeps no turn from others.
    pub(in crate::backend) async fn turn(&self, of: Asker) -> Result<Turn, ApiError> {
        let turn = async {
            let room = self.documents.take(Some(of), pieces(DOCUMENTS_BYTES_MAX as u64)).await?;
            let making = Arc::clone(&self.turns).acquire_owned().await?;
            Ok::<_, tokio::sync::AcquireError>(Turn {
                _making: making,
                room,
                unread_max: self.unread_max,
            })
        };
        match tokio::time::timeout(TURN_PATIENCE, turn).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(ApiError::busy()),
        }
    }

    /// The answer to a push, which is stored: it is never sent away for want of room, but holds
    /// the turn of its push then.
    pub(super) fn of_push(&self, answer: Response, turn: Taken, peer: &Peer) -> Response {
        let bytes = length(&answer);
        if bytes <= SMALL_BYTES_MAX {
            return answer;
        }
        let held = self.room_for(bytes, Asker::from(peer)).unwrap_or(turn);
        with_room(answer, held, self.unread_max)
    }

    /// An answer that has room already, or is small, or finds room now; else 503.
    fn admit(&self, answer: Response, of: impl FnOnce() -> Option<Asker>) -> Response {
        let bytes = length(&answer);
        if bytes <= SMALL_BYTES_MAX || answer.extensions().get::<HasRoom>().is_some() {
            return answer;
        }
        match of().and_then(|of| self.room_for(bytes, of)) {
            Some(held) => with_room(answer, held, self.unread_max),
            None => ApiError::busy().into_response(),
        }
    }

    /// Room for an answer that is made. One that is larger than a part takes all of the part.
    fn room_for(&self, bytes: u64, of: Asker) -> Option<Taken> {
        let part = u32::try_from(self.others.part_max()).unwrap_or(u32::MAX);
        self.others.try_take(Some(of), pieces(bytes).min(part)).ok()
    }
}

impl Turn {
    /// The answer that was made in this turn: as much of the room as it needs is held until it is
    /// read.
    pub(in crate::backend) fn answered(self, answer: Response) -> Response {
        let Self { mut room, unread_max, .. } = self;
        room.shrink_to(pieces(length(&answer)) as usize);
        with_room(answer, room, unread_max)
    }
}

/// Gives every large answer its room.
pub(super) async fn bound(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<Peer>().cloned();
    let answer = next.run(request).await;
    shared.answers.admit(answer, || peer.as_ref().map(Asker::from))
}

fn with_room(mut answer: Response, held: Taken, unread_max: Duration) -> Response {
    answer.extensions_mut().insert(HasRoom);
    until_read(answer, held, unread_max)
}

/// The bytes of an answer; all are made as a whole.
fn length(answer: &Response) -> u64 {
    answer.body().size_hint().lower()
}

fn pieces(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(PIECE_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use axum::body::Body;
    use futures_util::FutureExt as _;
    use http::StatusCode;
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::backend::BackendConfig;

    const MIB: u64 = 1 << 20;

    fn answers() -> Answers {
        Answers::new(&BackendConfig::default().limits)
    }

    fn answer(bytes: u64) -> Response {
        Response::new(Body::from(vec![b'x'; usize::try_from(bytes).expect("small")]))
    }

    fn address(last: u8) -> Asker {
        Asker::Address(IpAddr::from([10, 0, 0, last]).into())
    }

    /// Bytes that the answers which are held now may have.
    fn held(answers: &Answers) -> u64 {
        let all = u64::from(pieces(DOCUMENTS_ROOM) + pieces(OTHERS_ROOM));
        let free = answers.documents.available() + answers.others.available();
        (all - free as u64) * PIECE_BYTES
    }

    /// One user who reads nothing holds its part, over however many requests, and the others are
    /// answered; when several do, the others are after the deadline at the latest.
    #[tokio::test(start_paused = true)]
    async fn unread_answers_with_documents_have_a_bound() {
        let answers = answers();
        let mut unread = Vec::new();
        for user in [1, 2, 3] {
            while let Some(turn) = answers.turn(Asker::User(user)).now_or_never() {
                unread.push(turn.expect("a turn").answered(answer(16 * MIB)));
                assert!(unread.len() < 9, "it has all");
            }
            assert!(held(&answers) <= DOCUMENTS_PART * user.unsigned_abs());
            let other = answers.turn(Asker::User(9)).now_or_never();
            assert_eq!(other.is_some(), user < 3, "beside {user}");
        }
        answers.turn(Asker::User(1)).await.map(drop).expect("its own room again");
        let turn = answers.turn(Asker::User(9)).await.expect("after the deadline");
        assert_eq!(
            turn.answered(answer(MIB)).into_body().collect().await.expect("all").to_bytes().len()
                as u64,
            MIB
        );
        assert_eq!(held(&answers), 0);
        for unread in unread {
            unread.into_body().collect().await.expect_err("it was not read in time");
        }
    }

    /// Lists and other answers find room or are sent away: they do not wait in memory.
    #[tokio::test(start_paused = true)]
    async fn other_large_answers_have_a_bound() {
        let answers = answers();
        let ask = |last, bytes| answers.admit(answer(bytes), || Some(address(last)));
        let mut unread = Vec::new();
        for last in 1..=9 {
            for _ in 0..10 {
                unread.push(ask(last, MIB));
            }
        }
        let served = unread.iter().filter(|answer| answer.status() == StatusCode::OK).count();
        assert_eq!((served, held(&answers)), (32, OTHERS_ROOM));
        assert_eq!(ask(1, SMALL_BYTES_MAX).status(), StatusCode::OK);
        tokio::time::sleep(UNREAD_MAX + Duration::from_millis(1)).await;
        assert_eq!(held(&answers), 0);
        // One that is larger than a part is answered by itself.
        let large = ask(1, 2 * OTHERS_PART);
        assert_eq!(
            (large.status(), ask(1, MIB).status()),
            (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE)
        );
        drop(large);
        assert_eq!(ask(1, MIB).status(), StatusCode::OK);
    }

    /// A push is stored: its answer holds the turn of the push where there is no room.
    #[tokio::test(start_paused = true)]
    async fn an_answer_to_a_push_is_never_sent_away() {
        let (answers, pushes) = (answers(), Divided::<u8>::new(1, 1));
        let peer = Peer {
            address: [10, 0, 0, 1].into(),
            channel: Channel::Mutual("one".into()),
            certificate_ends: None,
        };
        let push = |bytes| {
            let turn = pushes.try_take(None, 1).expect("a turn");
            let answer = answers.of_push(answer(bytes), turn, &peer);
            answers.admit(answer, || None)
        };
        let small = push(SMALL_BYTES_MAX);
        let full = push(OTHERS_PART);
        let more = push(MIB);
        assert_eq!((pushes.available(), held(&answers)), (0, OTHERS_PART));
        assert!([small, full].iter().all(|answer| answer.status() == StatusCode::OK));
        assert_eq!(more.into_body().collect().await.expect("all").to_bytes().len() as u64, MIB);
        assert_eq!((pushes.available(), held(&answers)), (1, 0));
    }
}
