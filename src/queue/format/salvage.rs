//! Finds the frames in a raw file by their magic number, whatever else is in it.
//!
//! This is how a closed segment is read: it needs no free space, no lock and no trust in anything
//! but the frames' own checksums.

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

use memchr::memmem;
use uuid::Uuid;

use super::{
    block::{Codec, Damage, FRAME_PAYLOAD_BYTES_MAX, FrameHead, HEADER_BYTES, MAGIC},
    group::{self, GroupEntry},
};

/// A sound frame and where it starts in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// What the frame says of itself.
    pub head: FrameHead,
    /// Its first byte in the file.
    pub offset: u64,
    /// The content sum of its block; see [`FrameHead::content`].
    pub content: Option<u64>,
}

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// The sound frames of the segment, in order of their number, each number once.
    pub found: Vec<Found>,
    /// The directories of groups, by the number of their first frame.
    pub groups: BTreeMap<u64, Vec<GroupEntry>>,
    /// Places that look like the start of a frame and are not a sound one.
    pub broken: u64,
    /// Where the first sound frame belongs that is of another queue or another segment.
    pub stranger: Option<Stranger>,
    /// The layout of sound frames that a later version has written.
    pub unknown_version: Option<u16>,
}

/// Where a frame belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stranger {
    /// The queue that wrote it.
    pub queue: Uuid,
    /// The segment that it is of.
    pub segment: u64,
}

/// How much is read at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// A frame is complete in the window when this much follows its first byte.
const FRAME_BYTES_MAX: usize = HEADER_BYTES + FRAME_PAYLOAD_BYTES_MAX;

/// Reads `file` to its end and returns the sound frames of `queue` and `segment`.
pub fn scan(file: impl Read, queue: Uuid, segment: u64) -> io::Result<Scan> {
    scan_for(file, |head| head.queue == queue && head.segment == segment)
}

/// Where the first sound frame of a file belongs.
pub fn first_owner(file: impl Read) -> io::Result<Option<Stranger>> {
    Ok(scan_until(file, |_| true, 1)?.found.first().map(owner))
}

/// Where the sound frames of a file belong, if they agree.
pub fn owner_of(file: impl Read) -> io::Result<Option<Stranger>> {
    let scan = scan_for(file, |_| true)?;
    let first = scan.found.first().map(owner);
    Ok(first.filter(|first| scan.found.iter().all(|frame| owner(frame) == *first)))
}

fn owner(frame: &Found) -> Stranger {
    Stranger { queue: frame.head.queue, segment: frame.head.segment }
}

fn scan_for(file: impl Read, is_wanted: impl Fn(&FrameHead) -> bool) -> io::Result<Scan> {
    scan_until(file, is_wanted, usize::MAX)
}

/// Stops after `enough` frames.
fn scan_until(
    mut file: impl Read,
    is_wanted: impl Fn(&FrameHead) -> bool,
    enough: usize,
) -> io::Result<Scan> {
    let finder = memmem::Finder::new(&MAGIC);
    let mut scan = Scan::default();
    let mut window = Vec::with_capacity(CHUNK_BYTES + FRAME_BYTES_MAX);
    let mut window_offset = 0_u64;
    loop {
        let read = file.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut window)?;
        let at_end = read == 0;
        // A magic number this close to the end may belong to a frame that is not yet complete.
        let sure = if at_end { window.len() } else { window.len().saturating_sub(FRAME_BYTES_MAX) };
        let mut at = 0;
        while let Some(next) = finder.find(&window[at..]).map(|n| at + n).filter(|n| *n < sure) {
            let bytes = &window[next..];
            let sound = FrameHead::read(bytes).and_then(|head| Ok((head, head.payload(bytes)?)));
            let (head, payload) = match sound {
                Ok(sound) => sound,
                Err(damage) => {
                    match damage {
                        Damage::Version(version) => scan.unknown_version = Some(version),
                        Damage::Header | Damage::Payload | Damage::Body => scan.broken += 1,
                    }
                    at = next + 1;
                    continue;
                }
            };
            if is_wanted(&head) {
                if head.codec == Codec::Group && head.part == 0 {
                    let Ok(directory) = group::directory(payload) else {
                        scan.broken += 1;
                        at = next + 1;
                        continue;
                    };
                    scan.groups.insert(head.number, directory);
                }
                let (offset, content) = (window_offset + next as u64, head.content(payload));
                scan.found.push(Found { head, offset, content });
            } else {
                let FrameHead { queue, segment, .. } = head;
                scan.stranger.get_or_insert(Stranger { queue, segment });
            }
            at = next + head.frame_bytes();
        }
        if at_end || scan.found.len() >= enough {
            scan.found.sort_by_key(|frame| frame.head.number);
            scan.found.dedup_by_key(|frame| frame.head.number);
            return Ok(scan);
        }
        let done = at.max(sure).min(window.len());
        window.drain(..done);
        window_offset += done as u64;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::queue::format::{
        block::{self, Chain, Place},
        record::Record,
    };

    fn frame(number: u64, bytes: usize) -> Vec<u8> {
        let record = Record {
            seq: number,
            kind: "x".to_owned(),
            at_ms: 0,
            payload: Bytes::from((0..=250_u8).cycle().take(bytes).collect::<Vec<_>>()),
        };
        let place = Place {
            queue: Uuid::nil(),
            segment: 1,
            number,
            batch: 0,
            first_seq: number,
            chain: Chain::default(),
        };
        block::encode(place, &[record], &[]).frames.remove(0)
    }

    fn numbers(file: &[u8]) -> Vec<u64> {
        let found = scan(file, Uuid::nil(), 1).unwrap().found;
        for frame in &found {
            let at = usize::try_from(frame.offset).unwrap();
            assert_eq!(FrameHead::read(&file[at..]), Ok(frame.head), "offset {at}");
        }
        found.iter().map(|frame| frame.head.number).collect()
    }

    #[test]
    fn frames_are_found_wherever_they_stand() {
        let mut file = vec![0; 1_000];
        for number in 0..200 {
            file.extend(frame(number, 100 + usize::try_from(number).unwrap() * 40));
            file.extend(vec![b'p'; usize::try_from(number).unwrap() % 97 * 53]);
            file.extend(&MAGIC[..4]);
        }
        assert_eq!(numbers(&file), (0..200).collect::<Vec<_>>());
    }

    #[test]
    fn a_damaged_frame_costs_only_itself() {
        let mut file = Vec::new();
        let mut starts = Vec::new();
        for number in 0..50 {
            starts.push(file.len());
            file.extend(frame(number, 5_000));
        }
        file[starts[20] + 3] ^= 1;
        file[starts[30] + HEADER_BYTES + 7] ^= 1;
        file[starts[40] + 70] ^= 1;
        let expected: Vec<u64> = (0..50).filter(|n| ![20, 30, 40].contains(n)).collect();
        assert_eq!(numbers(&file), expected);
        file.truncate(starts[49] + 200);
        assert_eq!(numbers(&file), expected[..expected.len() - 1]);
    }

    /// A later version keeps the header's checksum where it is, and so is known for what it is.
    #[test]
    fn frames_of_a_later_version_are_named_and_not_broken() {
        let mut later = frame(1, 10);
        later[8] = 3;
        assert_eq!(scan(&later[..], Uuid::nil(), 1).unwrap().broken, 1, "a flipped bit");
        let crc = crc32c::crc32c(&later[..92]);
        later[92..96].copy_from_slice(&crc.to_le_bytes());
        let scan = scan(&[frame(0, 10), later].concat()[..], Uuid::nil(), 1).unwrap();
        assert_eq!((scan.unknown_version, scan.broken, scan.found.len()), (Some(3), 0, 1));
    }

    #[test]
    fn a_frame_written_twice_counts_once() {
        let file = [frame(1, 10), frame(0, 10), frame(1, 10)].concat();
        assert_eq!(numbers(&file), [0, 1]);
    }

    #[test]
    fn frames_of_others_are_left_out() {
        let own = Stranger { queue: Uuid::nil(), segment: 1 };
        for (queue, segment) in [(Uuid::nil(), 2), (Uuid::from_u128(1), 1)] {
            let scan = scan(&frame(0, 10)[..], queue, segment).unwrap();
            assert_eq!((scan.found, scan.stranger), (vec![], Some(own)));
        }
        assert_eq!(owner_of(&frame(0, 10)[..]).unwrap(), Some(own));
        assert_eq!(owner_of(&b"nothing"[..]).unwrap(), None);
        assert_eq!(first_owner(&frame(0, 10)[..]).unwrap(), Some(own));
    }
}
