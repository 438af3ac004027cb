//! The memory for bodies: what all requests together may hold while their bodies are read and
//! worked on.
//!
//! Room is taken before a body is read: as much as it announces, or step by step as it comes.
//! Small bodies have a part of their own, so that a few large ones, which may come slowly, do not
//! keep every host waiting; and a collector has a part of each, whatever it sends.

use std::time::Duration;

use uuid::Uuid;

use super::divided::{Divided, Taken};
use super::error::ApiError;
use crate::backend::config::Limits;

/// A body of at most so many bytes is a small one: it has hundreds of ordinary metrics, packed.
const SMALL_BYTES_MAX: u64 = 256 << 10;
/// The part of the room that small bodies have to themselves.
const SMALL_PART: u64 = 4;
/// One collector's part of the room for small bodies, and of that for large ones: more than an
/// agent sends at a time, as it is set by default.
const COLLECTORS_PART_OF_SMALL: u64 = 4;
const COLLECTORS_PART_OF_LARGE: u64 = 2;
/// How much more room a body takes at a time that did not announce its length.
const STEP_BYTES: u64 = 64 << 10;
/// Room is counted in pieces of this size.
const PIECE_BYTES: u64 = 1 << 10;
/// How long a request waits for room.
const PATIENCE: Duration = Duration::from_secs(5);

/// The room for bodies.
#[derive(Debug)]
pub(in crate::backend) struct Room {
    small: Divided,
    large: Divided,
}

/// A body's share of the room, given back when it is dropped.
#[derive(Debug)]
pub(in crate::backend) struct Share(Taken);

impl Room {
    /// The largest body always fits, if it is alone.
    pub(super) fn new(limits: &Limits) -> Self {
        let small = limits.bodies_bytes_max / SMALL_PART;
        let large = limits.bodies_bytes_max - small;
        let room = |bytes: u64, part: u64, largest: u64| {
            let (all, part) = (bytes.max(largest), (bytes / part).max(largest));
            Divided::new(pieces(all) as usize, pieces(part) as usize)
        };
        let largest = limits.body_bytes_max;
        Self {
            small: room(small, COLLECTORS_PART_OF_SMALL, largest.min(SMALL_BYTES_MAX)),
            large: room(large, COLLECTORS_PART_OF_LARGE, largest),
        }
    }

    /// Room for a body that announces its length, or the beginning of one that does not: a
    /// collector's, or that of somebody else who may send one.
    pub(super) async fn share(
        &self,
        of: Option<Uuid>,
        announced: Option<u64>,
    ) -> Result<Share, ApiError> {
        let is_small = announced.is_some_and(|bytes| bytes <= SMALL_BYTES_MAX);
        let room = if is_small { &self.small } else { &self.large };
        let taken = room.take(of, pieces(announced.unwrap_or(STEP_BYTES)));
        match tokio::time::timeout(PATIENCE, taken).await {
            Ok(Ok(taken)) => Ok(Share(taken)),
            _ => Err(ApiError::busy()),
        }
    }
}

impl Share {
    /// Makes sure that the share has room for `bytes`. It does not wait: the others that hold part
    /// of a body could wait for this one.
    pub(super) fn grow_to(&mut self, bytes: u64) -> Result<(), ApiError> {
        let held = self.0.count() as u64 * PIECE_BYTES;
        if bytes <= held {
            return Ok(());
        }
        self.0.grow(pieces((bytes - held).max(STEP_BYTES))).map_err(|_| ApiError::busy())
    }
}

fn pieces(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(PIECE_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::BackendConfig;

    const MIB: u64 = 1 << 20;

    fn room(bodies_bytes_max: u64, body_bytes_max: u64) -> Room {
        let limits = BackendConfig::default().limits;
        Room::new(&Limits { body_bytes_max, bodies_bytes_max, ..limits })
    }

    async fn is_free(room: &Room, announced: Option<u64>) -> bool {
        room.share(None, announced).await.is_ok()
    }

    /// Large bodies wait for each other and then are sent away; small ones go on.
    #[tokio::test(start_paused = true)]
    async fn large_bodies_leave_room_for_small_ones() {
        let room = room(64 * MIB, 16 * MIB);
        let held = [
            room.share(None, Some(16 * MIB)).await.expect("the first"),
            room.share(None, Some(16 * MIB)).await.expect("the second"),
            room.share(None, Some(16 * MIB)).await.expect("the third"),
        ];
        assert!(!is_free(&room, Some(16 * MIB)).await && !is_free(&room, None).await);
        assert!(is_free(&room, Some(SMALL_BYTES_MAX)).await && is_free(&room, Some(0)).await);
        let (waits, ()) = tokio::join!(room.share(None, Some(16 * MIB)), async {
            tokio::time::sleep(PATIENCE / 2).await;
            drop(held);
        });
        waits.expect("room in time");
    }

    /// A body that does not say how long it is takes room as it comes, and all of it goes back.
    #[tokio::test(start_paused = true)]
    async fn unannounced_bodies_take_room_as_they_come() {
        let room = room(4 * MIB, 3 * MIB);
        let mut first = room.share(None, None).await.expect("its beginning");
        first.grow_to(2 * MIB).expect("room");
        let mut second = room.share(None, None).await.expect("its beginning");
        second.grow_to(2 * MIB).expect_err("no room");
        assert!(!is_free(&room, Some(2 * MIB)).await);
        drop(second);
        first.grow_to(3 * MIB).expect("room");
        drop(first);
        assert!(is_free(&room, Some(3 * MIB)).await);
    }

    /// Whatever the settings, the largest body fits when it is alone.
    #[tokio::test(start_paused = true)]
    async fn the_largest_body_fits() {
        for (bodies, body) in [(MIB, 16 * MIB), (MIB, MIB), (MIB, 2 << 10), (16 * MIB, 16 * MIB)] {
            let room = room(bodies, body);
            assert!(is_free(&room, Some(body)).await, "{body} of {bodies}");
            let mut share = room.share(None, None).await.expect("its beginning");
            share.grow_to(body).expect("room");
        }
    }
    /// One collector holds its part of either room, over however many requests, and all others
    /// still have theirs.
    #[tokio::test(start_paused = true)]
    async fn a_collector_has_its_part_of_the_room() {
        let room = room(64 * MIB, 16 * MIB);
        let (greedy, other) = (Some(Uuid::from_u128(1)), Some(Uuid::from_u128(2)));
        let mut held = Vec::new();
        for bytes in [SMALL_BYTES_MAX, 8 * MIB] {
            while let Ok(share) = room.share(greedy, Some(bytes)).await {
                held.push(share);
                assert!(held.len() < 64, "it has all");
            }
        }
        assert_eq!(held.len(), 16 + 3);
        let mut unannounced = room.share(greedy, None).await;
        assert!(unannounced.is_err(), "its part is full");
        for bytes in [SMALL_BYTES_MAX, 16 * MIB] {
            room.share(other, Some(bytes)).await.expect("the other's room");
        }
        held.pop();
        unannounced = room.share(greedy, None).await;
        let mut unannounced = unannounced.expect("room again");
        unannounced.grow_to(8 * MIB).expect("its part");
        unannounced.grow_to(9 * MIB).expect_err("over its part");
    }
}
