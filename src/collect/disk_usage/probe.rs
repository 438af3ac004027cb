//! `statvfs` with a deadline.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Threads that may hang at the same time; beyond that a mount is not asked.
const STUCK_MAX: usize = 4;

/// What `statvfs(2)` says, in the units the collector needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statvfs {
    /// The unit of the three counts of blocks.
    pub block_bytes: u64,
    /// The size.
    pub blocks: u64,
    /// Free, root's reserve included.
    pub blocks_free: u64,
    /// Free for ordinary users.
    pub blocks_available: u64,
    /// Inodes; 0 where the file system has no fixed number.
    pub inodes: u64,
    /// Inodes free.
    pub inodes_free: u64,
}

/// What came of asking one mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Known(Statvfs),
    /// The call returned an error.
    Failed,
    /// The call has not returned in time, now or in an earlier collection.
    Stuck,
    /// Too many threads hang already.
    NotAsked,
}

type Call = fn(&Path) -> io::Result<Statvfs>;
type Reply = io::Result<Statvfs>;

/// Asks mounts, and remembers those that hang.
#[derive(Debug)]
pub(super) struct Probes {
    timeout: Duration,
    call: Call,
    /// The reply of a call that did not return in time comes here one day.
    hanging: HashMap<PathBuf, Receiver<Reply>>,
    /// The walk that a dropped `ask` left behind.
    walk: Option<Walk>,
}

/// A thread that works through a list, one reply for each path.
#[derive(Debug)]
struct Walk {
    /// The path whose reply is the next to come.
    at: PathBuf,
    replies: Receiver<Reply>,
    abandoned: Arc<AtomicBool>,
}

impl Probes {
    pub(super) fn new(timeout: Duration, call: Call) -> Self {
        Self { timeout, call, hanging: HashMap::new(), walk: None }
    }

    /// One answer for each path, in their order.
    ///
    /// When the future is dropped its thread ends with the call it is in.
    pub(super) async fn ask(&mut self, paths: Vec<PathBuf>) -> Vec<Answer> {
        self.take_back();
        let mut answers = vec![Answer::NotAsked; paths.len()];
        let mut waiting: Vec<usize> = Vec::new();
        for (index, path) in paths.iter().enumerate() {
            if self.hanging.contains_key(path) {
                answers[index] = Answer::Stuck;
            } else {
                waiting.push(index);
            }
        }
        let mut waiting = waiting.as_slice();
        while !waiting.is_empty() && self.hanging.len() < STUCK_MAX {
            let list: Vec<PathBuf> = waiting.iter().map(|index| paths[*index].clone()).collect();
            let Ok(walk) = Walk::start(list, self.call) else { break };
            let walk = self.walk.insert(walk);
            let mut hangs = false;
            while let [index, rest @ ..] = waiting
                && !hangs
            {
                walk.at.clone_from(&paths[*index]);
                let reply = tokio::time::timeout(self.timeout, walk.replies.recv()).await;
                answers[*index] = match reply {
                    Ok(Some(Ok(statvfs))) => Answer::Known(statvfs),
                    Ok(Some(Err(_)) | None) => Answer::Failed,
                    Err(_) => Answer::Stuck,
                };
                hangs = reply.is_err();
                waiting = rest;
            }
            if hangs {
                self.take_back();
            } else {
                self.walk = None;
            }
        }
        answers
    }

    /// Counts the call that the last walk is in as one that hangs, and forgets the calls that
    /// have returned.
    fn take_back(&mut self) {
        if let Some(Walk { at, replies, abandoned }) = self.walk.take() {
            abandoned.store(true, Ordering::Relaxed);
            self.hanging.insert(at, replies);
        }
        self.hanging.retain(|_, reply| matches!(reply.try_recv(), Err(TryRecvError::Empty)));
    }
}

impl Walk {
    fn start(paths: Vec<PathBuf>, call: Call) -> io::Result<Self> {
        let (sender, replies) = channel(paths.len().max(1));
        let abandoned = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&abandoned);
        thread::Builder::new()
            .name("statvfs".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || walk(&paths, call, &sender, &seen))?;
        Ok(Self { at: PathBuf::new(), replies, abandoned })
    }
}

fn walk(paths: &[PathBuf], call: Call, replies: &Sender<Reply>, abandoned: &AtomicBool) {
    for path in paths {
        // The channel holds one reply for each path, so that sending never waits.
        if replies.try_send(call(path)).is_err() || abandoned.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// The system's own answer.
pub(super) fn statvfs(path: &Path) -> io::Result<Statvfs> {
    let raw = rustix::fs::statvfs(path)?;
    Ok(Statvfs {
        block_bytes: if raw.f_frsize == 0 { raw.f_bsize } else { raw.f_frsize },
        blocks: raw.f_blocks,
        blocks_free: raw.f_bfree,
        blocks_available: raw.f_bavail,
        inodes: raw.f_files,
        inodes_free: raw.f_ffree,
    })
}
