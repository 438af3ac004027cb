//! Bounds on what a server says, below the driver, which keeps whatever comes.
//!
//! Nobody knows who answers on PostgreSQL's port before it has logged the agent in, and afterwards
//! it may be broken. The driver buffers a message of any announced length and collects any number
//! of rows. So a stream between it and the socket reads the framing of each message (a byte for its
//! kind, its length as `int32`), and counts what it costs: its bytes, and what the driver makes of
//! it. What is over the allowance is an error before the driver has it, and the connection is of no
//! use any more. Where TLS is spoken it stands inside: the first byte is that of a message.
//!
//! Source: "Message Formats" of the PostgreSQL manual, protocol 3.0.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The longest message. A row of a collector's statement has 1 KiB or so, an error some KiB.
const MESSAGE_BYTES_MAX: u64 = 64 << 10;
/// What the driver keeps of a message beside its bytes, roughly.
const MESSAGE_COST: u64 = 128;
/// What it keeps of each column of a row: where it begins and ends.
const COLUMN_COST: u64 = 24;

/// Until the session is ready. An honest server needs some KiB: its parameters and its key; the
/// rest is for what triggers say at a login.
const LOGIN_COST_MAX: u64 = 256 << 10;
/// The description of a statement: 44 columns cost 2 KiB. The driver asks for each type that it
/// does not know, and for the types that this one is made of, one inside the other: a server that
/// invents them ends here, and not at the end of the stack. The collectors' statements have none.
const DESCRIPTION_COST_MAX: u64 = 16 << 10;
/// Beside the rows of an answer: an error, notices, the ends of several statements.
const ANSWER_COST_MAX: u64 = 64 << 10;
/// One row. The widest has 44 columns, and two names of 63 bytes each: 1,850.
const ROW_COST_MAX: u64 = 2_048;
/// Parameters that the server reports over the life of a connection: the driver keeps them. There
/// are fifteen at a login, and few afterwards.
const PARAMETERS_COST_MAX: u64 = 256 << 10;

const AUTHENTICATION: u8 = b'R';
const DATA_ROW: u8 = b'D';
const PARAMETER_STATUS: u8 = b'S';
/// `AuthenticationCleartextPassword`.
const CLEAR_TEXT: [u8; 4] = [0, 0, 0, 3];

/// Why a server is not listened to any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::collect) enum Refusal {
    #[error("what answers there does not speak PostgreSQL's protocol")]
    Framing,
    #[error("the server announces a message of {0} bytes; at most {MESSAGE_BYTES_MAX} are read")]
    Message(u64),
    #[error("the server sends more than the answer to what was asked may have")]
    Answer,
    #[error(
        "the server asks for the password in clear text, which is not sent over a network to \
             whom TLS has not shown to be that server"
    )]
    ClearText,
}

/// Whether the password may be sent as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClearText {
    Allowed,
    Refused,
}

/// What is waited for, and so what it may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Login,
    Description,
    /// At most so many rows.
    Rows(u32),
}

/// What the server may still send. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Allowance(Arc<AtomicU64>);

/// A connection to a server that is not trusted.
#[derive(Debug)]
pub(super) struct Guarded<S> {
    socket: S,
    framing: Framing,
}

/// Where the next byte stands in its message.
#[derive(Debug)]
struct Framing {
    /// The beginning of a message, as far as it has come.
    head: Vec<u8>,
    /// What is still to come of a message that was let through.
    body_left: u64,
    allowance: Allowance,
    parameters_left: u64,
    clear_text: ClearText,
}

impl Refusal {
    /// The refusal that `error` carries.
    pub(super) fn of(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref::<Self>().copied()
    }

    /// What to look at.
    pub(in crate::collect) fn hint(self) -> &'static str {
        match self {
            Self::ClearText => {
                "let pg_hba.conf ask this role for scram-sha-256, set postgres.sslmode to \
                 \"verify-full\", or connect over the Unix socket"
            }
            Self::Framing | Self::Message(_) | Self::Answer => {
                "is it PostgreSQL that answers there? check postgres.host and postgres.port"
            }
        }
    }
}

impl Allowance {
    /// What comes from now on is the answer to another question.
    pub(super) fn renew(&self, expected: Expected) {
        let cost = match expected {
            Expected::Login => LOGIN_COST_MAX,
            Expected::Description => DESCRIPTION_COST_MAX,
            Expected::Rows(rows) => ANSWER_COST_MAX + u64::from(rows) * ROW_COST_MAX,
        };
        self.0.store(cost, Ordering::Relaxed);
    }

    fn spend(&self, cost: u64) -> Result<(), Refusal> {
        let left = |left: u64| left.checked_sub(cost);
        let spent = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
        spent.map(|_| ()).map_err(|_| Refusal::Answer)
    }
}

impl<S> Guarded<S> {
    pub(super) fn new(socket: S, clear_text: ClearText, allowance: Allowance) -> Self {
        let parameters_left = PARAMETERS_COST_MAX;
        let head = Vec::new();
        let framing = Framing { head, body_left: 0, allowance, parameters_left, clear_text };
        Self { socket, framing }
    }
}

impl Framing {
    /// Takes what the server sent next.
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while let Some((first, rest)) = bytes.split_first() {
            if self.body_left > 0 {
                let here = usize::try_from(self.body_left)
                    .map_or(bytes.len(), |left| left.min(bytes.len()));
                self.body_left -= here as u64;
                bytes = bytes.get(here..).unwrap_or_default();
                continue;
            }
            self.head.push(*first);
            bytes = rest;
            self.judge()?;
        }
        Ok(())
    }

    /// Decides on a message when enough of it is there, and lets it through.
    fn judge(&mut self) -> Result<(), Refusal> {
        let Some((head, body)) = self.head.split_first_chunk::<5>() else { return Ok(()) };
        let [kind, length @ ..] = *head;
        let length = i32::from_be_bytes(length);
        // The length counts itself, and not the kind.
        let length = u64::try_from(length).map_err(|_| Refusal::Framing)?;
        let body_bytes = length.checked_sub(4).ok_or(Refusal::Framing)?;
        if length > MESSAGE_BYTES_MAX {
            return Err(Refusal::Message(length));
        }
        let wanted = match kind {
            AUTHENTICATION => 4,
            DATA_ROW => 2,
            _ => 0,
        };
        if (body.len() as u64) < body_bytes.min(wanted) {
            return Ok(());
        }
        let columns = match (kind, body) {
            (AUTHENTICATION, code) if code == CLEAR_TEXT => {
                if self.clear_text == ClearText::Refused {
                    return Err(Refusal::ClearText);
                }
                0
            }
            (DATA_ROW, [high, low]) => u64::from(u16::from_be_bytes([*high, *low])),
            _ => 0,
        };
        let cost = length + MESSAGE_COST + columns * COLUMN_COST;
        if kind == PARAMETER_STATUS {
            let left = self.parameters_left.checked_sub(cost);
            self.parameters_left = left.ok_or(Refusal::Answer)?;
        }
        self.allowance.spend(cost)?;
        self.body_left = body_bytes - body.len() as u64;
        self.head.clear();
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let this = &mut *self;
        ready!(Pin::new(&mut this.socket).poll_read(context, buffer))?;
        let came = buffer.filled().get(before..).unwrap_or_default();
        let taken = this.framing.take(came);
        Poll::Ready(taken.map_err(|refusal| io::Error::new(io::ErrorKind::InvalidData, refusal)))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = i32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[kind][..], &length, body].concat()
    }

    fn framing(expected: Expected, clear_text: ClearText) -> Framing {
        let allowance = Allowance::default();
        allowance.renew(expected);
        Guarded::new((), clear_text, allowance).framing
    }

    /// Feeds `bytes` in pieces of every length up to nine, which cut a head wherever it can be.
    fn check(expected: Expected, bytes: &[u8], outcome: Result<(), Refusal>) {
        for piece in [1, 2, 3, 4, 5, 6, 7, 8, 9, usize::MAX] {
            let mut framing = framing(expected, ClearText::Refused);
            let taken = bytes.chunks(piece.min(bytes.len())).try_for_each(|it| framing.take(it));
            assert_eq!(taken, outcome, "{expected:?} in pieces of {piece}");
        }
    }

    fn repeated(message: &[u8], cost: u64) -> Vec<u8> {
        message.repeat(usize::try_from(cost).unwrap() / message.len() + 1)
    }

    /// An honest server's words at a login and for a statement are let through.
    #[test]
    fn honest_answers_are_let_through() {
        let parameter = message(PARAMETER_STATUS, b"server_version\x0017.2\0");
        let login = [message(AUTHENTICATION, &[0; 4]), parameter.repeat(20), message(b'Z', b"I")];
        check(Expected::Login, &login.concat(), Ok(()));
        // A name of the greatest length, thrice, and forty counters.
        let columns = [&[0, 43][..], &[0xff; 43 * 4 + 3 * 63 + 40 * 8]].concat();
        let rows = message(DATA_ROW, &columns).repeat(20_000);
        assert_eq!(framing(Expected::Rows(20_000), ClearText::Refused).take(&rows), Ok(()));
        check(Expected::Rows(0), &message(b'E', &b"x".repeat(20_000)), Ok(()));
        check(Expected::Rows(0), &message(b'n', b""), Ok(()));
        check(Expected::Rows(0), &message(DATA_ROW, b"\0"), Ok(()));
    }

    /// Whatever a server repeats without end, it ends at the allowance of what was asked.
    #[test]
    fn endless_answers_end_at_the_allowance() {
        let kinds = [
            (message(b'N', b"SNOTICE\0\0"), "notices"),
            (message(PARAMETER_STATUS, b"a\0b\0"), "parameters"),
            (message(b'A', b"\0\0\0\0a\0\0"), "notifications"),
            (message(DATA_ROW, b"\0\0"), "empty rows"),
            (message(DATA_ROW, &[0xff].repeat(60_000)), "long rows"),
            (message(b'Z', b"I"), "ends"),
        ];
        for (message, what) in kinds {
            for expected in [Expected::Login, Expected::Description, Expected::Rows(100)] {
                let allowance = Allowance::default();
                allowance.renew(expected);
                let most = allowance.0.load(Ordering::Relaxed);
                let taken = framing(expected, ClearText::Allowed).take(&repeated(&message, most));
                assert_eq!(taken, Err(Refusal::Answer), "{what} for {expected:?}");
            }
        }
    }

    /// Rows of many columns cost the driver more than their bytes.
    #[test]
    fn wide_rows_count_their_columns() {
        let wide = message(DATA_ROW, &[&[0x13, 0x88][..], &[0xff].repeat(4 * 5_000)].concat());
        check(Expected::Rows(10), &wide, Err(Refusal::Answer));
        check(Expected::Rows(100), &wide, Ok(()));
    }

    /// A length is refused before anything of its message has come.
    #[test]
    fn a_length_is_judged_by_itself() {
        let head = |length: i32| [&[DATA_ROW][..], &length.to_be_bytes()].concat();
        for length in [65_537, 1 << 30, i32::MAX] {
            let refused = Refusal::Message(u64::try_from(length).unwrap());
            check(Expected::Rows(u32::MAX), &head(length), Err(refused));
        }
        for length in [3, 0, -1, i32::MIN] {
            check(Expected::Rows(u32::MAX), &head(length), Err(Refusal::Framing));
        }
        check(Expected::Login, b"HTTP/1.1 400 Bad Request", Err(Refusal::Message(0x5454_502f)));
    }

    /// A connection that lives for years does not collect parameters for years.
    #[test]
    fn parameters_count_over_the_life_of_a_connection() {
        let mut framing = framing(Expected::Login, ClearText::Refused);
        let parameter = message(PARAMETER_STATUS, b"a\0b\0");
        let taken = (0..10_000).try_for_each(|_| {
            framing.allowance.renew(Expected::Rows(1));
            framing.take(&parameter)
        });
        assert_eq!(taken, Err(Refusal::Answer));
    }

    /// The request for the password in clear text is refused wherever it comes; every other way to
    /// log in is the driver's to judge.
    #[test]
    fn clear_text_is_refused_where_it_must_be() {
        let code = |code: u8| message(AUTHENTICATION, &[0, 0, 0, code]);
        check(Expected::Login, &code(3), Err(Refusal::ClearText));
        check(Expected::Rows(1), &[message(b'Z', b"I"), code(3)].concat(), Err(Refusal::ClearText));
        for other in [0, 2, 5, 6, 7, 8, 9, 10, 11, 12] {
            check(Expected::Login, &code(other), Ok(()));
        }
        assert_eq!(framing(Expected::Login, ClearText::Allowed).take(&code(3)), Ok(()));
    }

    /// What is refused does not reach the reader, whatever came before it in the same piece.
    #[tokio::test]
    async fn the_stream_ends_at_a_refusal() {
        let (mut server, client) = tokio::io::duplex(1 << 20);
        let allowance = Allowance::default();
        allowance.renew(Expected::Login);
        let mut guarded = Guarded::new(client, ClearText::Refused, allowance);
        server.write_all(&message(b'Z', b"I")).await.unwrap();
        let mut read = [0; 16];
        assert_eq!(guarded.read(&mut read).await.unwrap(), 6);
        server.write_all(&message(AUTHENTICATION, &CLEAR_TEXT)).await.unwrap();
        let error = guarded.read(&mut read).await.expect_err("refused");
        assert_eq!(Refusal::of(&error), Some(Refusal::ClearText));
        guarded.write_all(b"heard").await.unwrap();
        server.read_exact(&mut read[..5]).await.unwrap();
        assert_eq!(&read[..5], b"heard");
    }

    proptest! {
        /// Whatever comes in whatever pieces: no panic, the same outcome, and never more than the
        /// allowance.
        #[test]
        fn pieces_do_not_matter(
            messages in proptest::collection::vec((any::<u8>(), 0..40_usize), 0..60),
            noise in proptest::collection::vec(any::<u8>(), 0..20),
            piece in 1..50_usize,
        ) {
            let mut bytes = Vec::new();
            for (kind, length) in messages {
                bytes.extend(message(kind, &vec![0; length]));
            }
            bytes.extend(noise);
            let mut whole = framing(Expected::Description, ClearText::Refused);
            let mut cut = framing(Expected::Description, ClearText::Refused);
            let taken = whole.take(&bytes);
            prop_assert_eq!(taken, bytes.chunks(piece).try_for_each(|it| cut.take(it)));
            prop_assert_eq!(whole.body_left, cut.body_left);
        }
    }
}
