//! The journal's bytes: notes that change the state's rows, each with a number and checksums, one
//! after the other in a file. The same notes are in two files, so that what one has lost the other
//! has. `docs/FORMAT.md` holds the same table.

use std::collections::BTreeMap;

use memchr::memmem;
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteBuf, Bytes};
use uuid::Uuid;

use super::rows::StateChange;

/// Marks a note's first byte.
pub const MAGIC: [u8; 8] = *b"pgaJ\x89\r\n\x1a";
/// The version of this layout. Every version has the magic number, its own number, and the
/// header's checksum where this one has them.
pub const VERSION: u16 = 1;
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 56;

mod offset {
    pub(super) const VERSION: usize = 8;
    pub(super) const KIND: usize = 10;
    pub(super) const PAYLOAD_BYTES: usize = 12;
    pub(super) const QUEUE: usize = 16;
    pub(super) const NUMBER: usize = 32;
    pub(super) const AFTER: usize = 40;
    pub(super) const PAYLOAD_CRC: usize = 48;
    pub(super) const HEADER_CRC: usize = 52;
}

/// What a note does to the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is all of them.
    Snapshot,
    /// It sets some and deletes others.
    Change,
}

const KIND_SNAPSHOT: u8 = 1;
const KIND_CHANGE: u8 = 2;

/// The number of a note, and that of the note before it: those between them were never written to
/// the end, and do not count even where they can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number {
    /// Its own; grows from note to note.
    pub own: u64,
    /// That of the note before it.
    pub after: u64,
}

/// One write of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// What it does.
    pub kind: Kind,
    /// The queue that wrote it.
    pub queue: Uuid,
    /// Which one it is; a snapshot has the number of the last note that it includes.
    pub number: Number,
    /// Rows that are set, or deleted.
    pub rows: Vec<StateChange>,
}

/// What a file of notes holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NotesRead {
    /// The sound ones, in the order of the file.
    pub notes: Vec<Note>,
    /// Bytes up to the end of the last sound note.
    pub sound_bytes: u64,
    /// Bytes that are part of no sound note, but for those at the end of the file.
    pub damaged: bool,
    /// The file ends with bytes that are not a sound note: an unfinished write, or damage.
    pub torn: bool,
    /// The number of a later version that wrote some of the notes.
    pub unknown_version: Option<u16>,
}

/// The rows that several files of notes agree on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merged {
    /// The rows.
    pub rows: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The number of the last note.
    pub number: u64,
    /// Whether a note is in none of the files.
    pub incomplete: bool,
}

#[derive(Serialize, Deserialize)]
struct WireRow<'a>(#[serde(borrow)] &'a Bytes, Option<ByteBuf>);

/// Encodes a note, header included.
pub fn encode(kind: Kind, queue: Uuid, number: Number, rows: &[StateChange]) -> Vec<u8> {
    let wire: Vec<WireRow<'_>> = rows
        .iter()
        .map(|(key, value)| WireRow(Bytes::new(key), value.clone().map(ByteBuf::from)))
        .collect();
    // Writing plain data into memory cannot fail: the types have no custom serialisers.
    let payload = rmp_serde::to_vec(&wire).expect("plain data encodes");
    let mut note = vec![0; HEADER_BYTES];
    note[..MAGIC.len()].copy_from_slice(&MAGIC);
    put(&mut note, offset::VERSION, VERSION.to_le_bytes());
    note[offset::KIND] = match kind {
        Kind::Snapshot => KIND_SNAPSHOT,
        Kind::Change => KIND_CHANGE,
    };
    let payload_bytes = u32::try_from(payload.len()).expect("rows are small and few");
    put(&mut note, offset::PAYLOAD_BYTES, payload_bytes.to_le_bytes());
    put(&mut note, offset::QUEUE, queue.into_bytes());
    put(&mut note, offset::NUMBER, number.own.to_le_bytes());
    put(&mut note, offset::AFTER, number.after.to_le_bytes());
    put(&mut note, offset::PAYLOAD_CRC, crc32c::crc32c(&payload).to_le_bytes());
    let crc = crc32c::crc32c(&note[..offset::HEADER_CRC]);
    put(&mut note, offset::HEADER_CRC, crc.to_le_bytes());
    note.extend_from_slice(&payload);
    note
}

/// Finds the sound notes of a file, whatever else is in it.
pub fn read(file: &[u8]) -> NotesRead {
    let finder = memmem::Finder::new(&MAGIC);
    let mut read = NotesRead::default();
    let (mut at, mut end) = (0, 0);
    while let Some(start) = finder.find(&file[at..]).map(|n| at + n) {
        match decode(&file[start..]) {
            Ok((note, bytes)) => {
                read.damaged |= start != end;
                read.notes.push(note);
                end = start + bytes;
                at = end;
            }
            Err(unknown_version) => {
                read.unknown_version = read.unknown_version.max(unknown_version);
                at = start + 1;
            }
        }
    }
    read.sound_bytes = end as u64;
    read.torn = end < file.len();
    read
}

/// The note at the start of `bytes` and its length; else the later version that wrote it, if so.
fn decode(bytes: &[u8]) -> Result<(Note, usize), Option<u16>> {
    let header = bytes.get(..HEADER_BYTES).ok_or(None)?;
    if u32::from_le_bytes(take(header, offset::HEADER_CRC))
        != crc32c::crc32c(&header[..offset::HEADER_CRC])
    {
        return Err(None);
    }
    let version = u16::from_le_bytes(take(header, offset::VERSION));
    if version != VERSION {
        return Err(Some(version));
    }
    let kind = match header[offset::KIND] {
        KIND_SNAPSHOT => Kind::Snapshot,
        KIND_CHANGE => Kind::Change,
        _ => return Err(Some(version.saturating_add(1))),
    };
    let payload_bytes = u32::from_le_bytes(take(header, offset::PAYLOAD_BYTES)) as usize;
    let end = HEADER_BYTES.checked_add(payload_bytes).ok_or(None)?;
    let payload = bytes.get(HEADER_BYTES..end).ok_or(None)?;
    if u32::from_le_bytes(take(header, offset::PAYLOAD_CRC)) != crc32c::crc32c(payload) {
        return Err(None);
    }
    let wire: Vec<WireRow<'_>> = rmp_serde::from_slice(payload).map_err(|_| None)?;
    let row = |WireRow(key, value): WireRow<'_>| (key.to_vec(), value.map(ByteBuf::into_vec));
    let note = Note {
        kind,
        queue: Uuid::from_bytes(take(header, offset::QUEUE)),
        number: Number {
            own: u64::from_le_bytes(take(header, offset::NUMBER)),
            after: u64::from_le_bytes(take(header, offset::AFTER)),
        },
        rows: wire.into_iter().map(row).collect(),
    };
    Ok((note, end))
}

/// Brings files of notes together: from the last note of any back to a snapshot, each note from
/// whichever file has it. `None` without a single note.
pub fn merge<'a>(notes: impl Iterator<Item = &'a Note>) -> Option<Merged> {
    let (mut snapshots, mut changes) = (BTreeMap::new(), BTreeMap::new());
    for note in notes {
        match note.kind {
            Kind::Snapshot => snapshots.insert(note.number.own, note),
            Kind::Change => changes.insert(note.number.own, note),
        };
    }
    let newest = |below: u64| {
        let last = |notes: &BTreeMap<u64, _>| notes.range(..=below).next_back().map(|(n, _)| *n);
        last(&snapshots).max(last(&changes))
    };
    let mut at = newest(u64::MAX)?;
    let mut merged = Merged { number: at, ..Merged::default() };
    let mut chain = Vec::new();
    loop {
        if let Some(snapshot) = snapshots.get(&at) {
            chain.push(*snapshot);
            break;
        }
        let change = changes.get(&at).copied();
        chain.extend(change);
        merged.incomplete |= change.is_none();
        let before = change.map_or(at, |change| change.number.after).min(at.saturating_sub(1));
        let has = snapshots.contains_key(&before) || changes.contains_key(&before);
        let Some(next) = (if has { Some(before) } else { newest(before) }) else {
            // A file begins with a snapshot, so there was one.
            merged.incomplete = true;
            break;
        };
        merged.incomplete |= !has;
        at = next;
    }
    for note in chain.into_iter().rev() {
        apply(&mut merged.rows, &note.rows);
    }
    Some(merged)
}

/// Sets and deletes rows.
pub fn apply(rows: &mut BTreeMap<Vec<u8>, Vec<u8>>, changes: &[StateChange]) {
    for (key, value) in changes {
        match value {
            Some(value) => rows.insert(key.clone(), value.clone()),
            None => rows.remove(key),
        };
    }
}

fn take<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|n| header.get(at + n).copied().unwrap_or_default())
}

fn put<const N: usize>(header: &mut [u8], at: usize, bytes: [u8; N]) {
    header[at..at + N].copy_from_slice(&bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: Uuid = Uuid::from_u128(7);

    fn row(key: u8, value: Option<u8>) -> StateChange {
        (vec![key], value.map(|value| vec![value; 3]))
    }

    fn snapshot(own: u64, rows: &[StateChange]) -> Vec<u8> {
        encode(Kind::Snapshot, QUEUE, Number { own, after: 0 }, rows)
    }

    fn change(own: u64, after: u64, rows: &[StateChange]) -> Vec<u8> {
        encode(Kind::Change, QUEUE, Number { own, after }, rows)
    }

    /// A snapshot with number 4, and changes 5 to 9 that set row 5 to 9.
    fn file() -> (Vec<u8>, Vec<usize>) {
        let mut file = snapshot(4, &[row(1, Some(1)), row(2, Some(2))]);
        let mut starts = vec![0];
        for n in 5..10_u8 {
            starts.push(file.len());
            file.extend(change(n.into(), u64::from(n) - 1, &[row(n, Some(n)), row(1, None)]));
        }
        (file, starts)
    }

    fn keys(files: &[&[u8]]) -> (Vec<u8>, u64, bool) {
        let read: Vec<NotesRead> = files.iter().map(|file| read(file)).collect();
        let merged = merge(read.iter().flat_map(|read| &read.notes)).unwrap_or_default();
        (merged.rows.keys().map(|key| key[0]).collect(), merged.number, merged.incomplete)
    }

    #[test]
    fn notes_are_read_back() {
        let (file, _) = file();
        let found = read(&file);
        assert_eq!((found.notes.len(), found.sound_bytes), (6, file.len() as u64));
        assert!(!found.damaged && !found.torn && found.unknown_version.is_none());
        assert!(found.notes.iter().all(|note| note.queue == QUEUE));
        assert_eq!(keys(&[&file]), (vec![2, 5, 6, 7, 8, 9], 9, false));
        assert_eq!(merge([].iter()), None);
    }

    /// Each bit of one file, and each length of it: with the other file nothing is missing, and by
    /// itself the damage is seen.
    #[test]
    fn one_sound_file_is_enough_and_damage_is_seen() {
        let (file, _) = file();
        let whole = keys(&[&file]);
        for bit in 0..file.len() * 8 {
            let mut damaged = file.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(keys(&[&damaged, &file]), whole, "bit {bit}");
            let found = read(&damaged);
            assert!(found.damaged || found.torn, "bit {bit}");
        }
        for length in 0..file.len() {
            assert_eq!(keys(&[&file[..length], &file]), whole, "{length} bytes");
        }
        assert_eq!(keys(&[&[], &file]), whole);
    }

    #[test]
    fn a_note_that_is_in_no_file_is_missed() {
        let (file, starts) = file();
        let mut damaged = file.clone();
        damaged[starts[3] + HEADER_BYTES] ^= 1;
        assert_eq!(keys(&[&damaged, &damaged]), (vec![2, 5, 6, 8, 9], 9, true));
        damaged[starts[0] + HEADER_BYTES] ^= 1;
        assert_eq!(keys(&[&damaged]), (vec![5, 6, 8, 9], 9, true));
    }

    /// A file that was written anew has a later snapshot; the other one may still be the old.
    #[test]
    fn the_newest_snapshot_counts() {
        let (old, _) = file();
        let mut new = snapshot(9, &[row(7, Some(7))]);
        assert_eq!(keys(&[&new, &old]), (vec![7], 9, false));
        new.extend(change(10, 9, &[row(8, Some(8))]));
        assert_eq!(keys(&[&old, &new]), (vec![7, 8], 10, false));
        assert_eq!(keys(&[&old, &new[..20]]), (vec![2, 5, 6, 7, 8, 9], 9, false));
    }

    /// A note that failed, and is in one file all the same, does not count once another came after
    /// the one before it.
    #[test]
    fn a_note_that_failed_does_not_count() {
        let (file, _) = file();
        let failed = [&file[..], &change(10, 9, &[row(2, None)])].concat();
        assert_eq!(keys(&[&file, &failed]), (vec![5, 6, 7, 8, 9], 10, false), "nobody can know");
        let next = [&file[..], &change(11, 9, &[row(3, Some(3))])].concat();
        assert_eq!(keys(&[&failed, &next]), (vec![2, 3, 5, 6, 7, 8, 9], 11, false));
        assert_eq!(keys(&[&next, &failed]), (vec![2, 3, 5, 6, 7, 8, 9], 11, false));
    }

    #[test]
    fn a_later_version_is_named() {
        let (mut file, starts) = file();
        let at = starts[2];
        put(&mut file, at + offset::VERSION, 9_u16.to_le_bytes());
        assert_eq!(read(&file).unknown_version, None, "a flipped bit is not a version");
        let crc = crc32c::crc32c(&file[at..at + offset::HEADER_CRC]);
        put(&mut file, at + offset::HEADER_CRC, crc.to_le_bytes());
        assert_eq!(read(&file).unknown_version, Some(9));
    }

    #[test]
    fn garbage_is_no_note() {
        for garbage in [&b""[..], b"x", &MAGIC, &[0xff; 200], &[MAGIC, MAGIC].concat()] {
            assert_eq!(read(garbage).notes, [], "{garbage:?}");
        }
    }
}
