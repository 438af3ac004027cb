//! Stage 1, beside the collectors: metrics of other programs on this host.
//!
//! `POST /api/v1/metrics/push` on a Unix socket or a loopback address takes
//! `{"metrics": [...]}` or one metric per line, and answers 200 only when what it took is durable.
//! `docs/INTAKE.md` is the promise, with every answer.
//!
//! A client costs what its limits say and no collector waits for it: bodies, connections and times
//! are bounded ([`IntakeConfig`]), all bodies in the works together take at most
//! [`BODIES_AT_ONCE`] times the largest, and only one that is large or packed is worked on at a
//! time, away from the threads that the collectors run on.
//!
//! The stage knows no queue: it hands what is sound to a [`Sink`].

mod answer; // what is said, and how
mod body; // bytes off the wire, up to a limit
mod decode; // bytes -> metrics and rejects
mod keys; // two requests with one idempotency key
mod places; // who has a connection
mod receipt; // what is remembered of a request
mod server; // connections and their limits
mod service; // one request
mod stall; // clients that do not read
mod tally; // what the intake has done

use std::{
    fmt,
    future::Future,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use bytes::Bytes;

pub use crate::metric::envelope::{METRICS_MAX, REJECTED_NAMED_MAX};

pub use self::{
    server::Intake,
    tally::{IntakeCounts, IntakeView},
};

/// Bodies of all requests in the works, in units of the largest body.
pub const BODIES_AT_ONCE: u64 = 4;
/// How long an idempotency key is known.
pub const KEY_KEPT: Duration = Duration::from_secs(24 * 3_600);
/// The longest idempotency key, bytes.
pub const KEY_BYTES_MAX: usize = 128;
/// The one path.
pub const PUSH_PATH: &str = "/api/v1/metrics/push";

/// `[intake]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntakeConfig {
    /// Where it listens.
    pub listen: Listen,
    /// The group that may use the Unix socket, as a name or a number; else the agent's.
    pub group: Option<String>,
    /// A body, as it comes and inflated.
    pub body_bytes_max: u64,
    /// Open connections. A new one takes the place of one that is idle for two seconds; while
    /// none is, more wait in the kernel's queue.
    pub connections_max: usize,
    /// For a request's head, for its body, for a client to read its answer, and for an idle
    /// connection.
    pub timeout: Duration,
}

/// Where the intake listens: always on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket.
    Unix(PathBuf),
    /// A loopback address.
    Tcp(SocketAddr),
}

/// A sound metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metric {
    /// Its type.
    pub kind: String,
    /// When it was taken, milliseconds since 1970 UTC.
    pub at_ms: i64,
    /// Its JSON as it came, on one line.
    pub payload: Bytes,
}

/// What must become durable together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// Sound metrics; not none.
    pub metrics: Vec<Metric>,
    /// The request's idempotency key.
    pub key: Option<Key>,
}

/// An idempotency key and what is remembered with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// As the client gave it.
    pub name: String,
    /// For [`Sink::receipt`].
    pub receipt: Bytes,
    /// When it may be forgotten, milliseconds since 1970 UTC.
    pub keep_until_ms: i64,
}

/// What has become of a [`Push`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is on disk, synced.
    Durable,
    /// The disk takes nothing at present: it is in memory, and written when the disk is back.
    InMemory,
    /// There is no room and the newest have to go: nothing of it is kept.
    Evicted,
    /// There is no room: nothing was taken.
    Full,
    /// The queue's state cannot be read yet: nothing was taken.
    NotReady,
    /// The agent stops: nothing was taken.
    Closed,
}

/// Where sound metrics go. Clones share it.
pub trait Sink: Clone + Send + Sync + 'static {
    /// Takes metrics and their key, all or none.
    fn take(&self, push: Push) -> impl Future<Output = Taken> + Send;

    /// What was remembered with `key`, when it is known.
    fn receipt(&self, key: &str) -> impl Future<Output = Option<Bytes>> + Send;

    /// Whether everything that was ever taken is on disk.
    fn is_durable(&self) -> impl Future<Output = bool> + Send;
}

/// Why a text says no place to listen at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoListen {
    /// What is wrong with it.
    pub what: &'static str,
    /// What would be right.
    pub hint: &'static str,
}

impl Listen {
    /// Reads `unix:/path` or a loopback address with a port.
    pub fn parse(text: &str) -> Result<Self, NoListen> {
        const HINT: &str = "`unix:/run/pganalytics/intake.sock`, or `127.0.0.1:9187` or another \
                            loopback address with a port";
        if let Some(path) = text.strip_prefix("unix:") {
            let what = "the path of a Unix socket begins with /";
            let path = PathBuf::from(path);
            return if path.is_absolute() { Ok(Self::Unix(path)) } else { fail(what, HINT) };
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if is_loopback(address.ip()) => Ok(Self::Tcp(address)),
            Ok(_) => fail("is not a loopback address: the intake asks nobody who they are", HINT),
            Err(_) => fail("is not an address", HINT),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

fn fail<T>(what: &'static str, hint: &'static str) -> Result<T, NoListen> {
    Err(NoListen { what, hint })
}

/// Whether only this host can reach `address`.
fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_places_on_this_host_are_listened_at() {
        let check = |text: &str, expected: Option<&str>| {
            let shown = Listen::parse(text).map(|listen| listen.to_string());
            assert_eq!(shown.ok().as_deref(), expected, "{text}");
        };
        check("unix:/run/a.sock", Some("unix:/run/a.sock"));
        check("127.0.0.1:9187", Some("127.0.0.1:9187"));
        check("127.1.2.3:0", Some("127.1.2.3:0"));
        check("[::1]:9187", Some("[::1]:9187"));
        check("[::ffff:127.0.0.1]:1", Some("[::ffff:127.0.0.1]:1"));
        for text in [
            "unix:",
            "unix:a.sock",
            "0.0.0.0:9187",
            "[::]:9187",
            "10.0.0.1:9187",
            "127.0.0.1",
            "localhost:9187",
            "9187",
            "http://127.0.0.1:1",
            "192.168.1.1:9187",
            "/run/a.sock",
        ] {
            check(text, None);
        }
    }
}
