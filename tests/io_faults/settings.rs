//! Which calls fail, on which files, how, and when.

use std::fmt;
use std::time::Duration;

use crate::support::shim::{Call, Fault, How};

/// What an agent does with delivered segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Removes,
    Keeps,
}

/// When the fault begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The agent is at work.
    AtWork,
    /// The agent is killed, and starts with the fault.
    AtStart,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub fault: Fault,
    pub moment: Moment,
    pub lasts: Duration,
    /// It is one of those that strike whatever comes.
    pub must_strike: bool,
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Removes, Self::Keeps];
}

/// What every run tries: the call, how it fails, on which files.
const ALWAYS: &[(Call, How, &str)] = &[
    (Call::Fdatasync, How::Error, "segments/*/db"),
    (Call::Fsync, How::Error, "segments/*"),
    (Call::Fsync, How::Error, "segments"),
    (Call::Fdatasync, How::Error, "state*"),
    (Call::Write, How::Half, "state*"),
    (Call::Write, How::Full, "state*"),
    (Call::Fsync, How::Error, "dead.ndjson*"),
    (Call::Fsync, How::Full, "*"),
    (Call::Pwrite, How::Error, "segments/*/db"),
    (Call::Pwrite, How::Full, "segments/*/db"),
    (Call::Pwrite, How::Half, "segments/*/db"),
    (Call::SyncFileRange, How::Error, "*"),
    (Call::Ftruncate, How::Error, "segments/*/db"),
    (Call::Fallocate, How::Full, "segments/*/db"),
    (Call::Open, How::Error, "segments/*"),
    (Call::Open, How::Full, "*"),
    (Call::Open, How::Error, "state*"),
    (Call::Mkdir, How::Full, "segments/*"),
    (Call::Rename, How::Error, "segments/*"),
    (Call::Write, How::Half, "dead.ndjson*"),
    (Call::Write, How::Error, "dead.ndjson*"),
];
/// Of those that remove delivered segments.
const REMOVES: &[(Call, How, &str)] =
    &[(Call::Rename, How::ReadOnly, "trash/*"), (Call::Unlink, How::Error, "trash/*")];
/// Of those that keep them.
const KEEPS: &[(Call, How, &str)] =
    &[(Call::Rename, How::Full, "delivered/*"), (Call::Fsync, How::Error, "delivered")];

/// What else a fault is drawn from: files, and calls that can be made on them.
const FILES: &[(&str, &[Call])] = &[
    ("*", &Call::ALL),
    ("segments/*", &Call::ALL),
    (".", &[Call::Fsync, Call::Open]),
    ("segments", &[Call::Fsync, Call::Open]),
    ("segments/????????????????????", &[Call::Mkdir, Call::Rename, Call::Fsync, Call::Open]),
    ("segments/*/db", SEGMENT),
    ("segments/*/db", SEGMENT),
    ("segments/*/conf", &[Call::Open, Call::Write, Call::Fsync]),
    ("segments/*/snap*", &[Call::Open, Call::Write, Call::Fsync, Call::Rename]),
    ("state*", STATE),
    ("state*", STATE),
    ("dead.ndjson*", &[Call::Open, Call::Write, Call::Fsync, Call::Ftruncate, Call::Rename]),
    ("QUEUE*", &[Call::Open]),
    ("lock", &[Call::Open]),
    ("delivered*", &[Call::Rename, Call::Fsync, Call::Unlink, Call::Mkdir]),
    ("trash*", &[Call::Rename, Call::Unlink, Call::Mkdir]),
    ("quarantine*", &[Call::Mkdir, Call::Rename, Call::Fsync]),
];
const SEGMENT: &[Call] = &[
    Call::Open,
    Call::Write,
    Call::Pwrite,
    Call::Fdatasync,
    Call::Fsync,
    Call::Ftruncate,
    Call::Fallocate,
    Call::SyncFileRange,
    Call::Unlink,
];
const STATE: &[Call] = &[
    Call::Open,
    Call::Write,
    Call::Pwrite,
    Call::Fdatasync,
    Call::Fsync,
    Call::Ftruncate,
    Call::Rename,
    Call::Link,
    Call::SyncFileRange,
    Call::Unlink,
    Call::Mkdir,
];
const HOW: [How; 4] = [How::Error, How::Full, How::ReadOnly, How::Half];

/// The settings of a run for each [`Kind`], the same for the same seed.
pub fn drawn(count: usize, seed: u64) -> [Vec<Setting>; 2] {
    let mut random = fastrand::Rng::with_seed(seed);
    let of = |number: usize| {
        let own = [REMOVES, KEEPS][number];
        let shared = ALWAYS.iter().enumerate().filter(move |(at, _)| at % 2 == number);
        own.iter().chain(shared.map(|(_, one)| one))
    };
    let mut drawn = [0, 1].map(|number| {
        let fixed = of(number).map(|(call, how, files)| Setting {
            fault: Fault { calls: vec![*call], how: *how, files },
            moment: Moment::AtWork,
            lasts: Duration::from_millis(random.u64(400..1_000)),
            must_strike: true,
        });
        fixed.collect::<Vec<_>>()
    });
    for (number, settings) in drawn.iter_mut().enumerate() {
        // Any of them, when there are to be fewer than are always tried.
        random.shuffle(settings);
        let share = (count + 1 - number) / 2;
        settings.truncate(share);
        let more = share - settings.len();
        settings.extend(std::iter::repeat_with(|| any(&mut random)).take(more));
    }
    drawn
}

fn any(random: &mut fastrand::Rng) -> Setting {
    let (files, calls) = FILES[random.usize(..FILES.len())];
    let mut calls = calls.to_vec();
    if random.u8(..3) > 0 {
        random.shuffle(&mut calls);
        calls.truncate(random.usize(1..=3));
    }
    let writes = calls.iter().any(|call| matches!(call, Call::Write | Call::Pwrite));
    let ways = if writes { &HOW[..] } else { &HOW[..3] };
    // These are touched when a queue is opened, if ever.
    let rare = matches!(files, "QUEUE*" | "lock" | "quarantine*");
    let moment = if rare || random.u8(..4) == 0 { Moment::AtStart } else { Moment::AtWork };
    Setting {
        fault: Fault { calls, how: ways[random.usize(..ways.len())], files },
        moment,
        lasts: Duration::from_millis(random.u64(300..1_200)),
        must_strike: false,
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { calls, how, files } = &self.fault;
        let calls = match &calls[..] {
            calls if calls.len() == Call::ALL.len() => "every call".to_owned(),
            calls => format!("{calls:?}"),
        };
        write!(f, "{calls} {how:?} on `{files}` {:?} for {:?}", self.moment, self.lasts)
    }
}
