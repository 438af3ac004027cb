//! Blocks on disk: self-describing frames that can be found and trusted without anything else.
//!
//! A block is the records that were made durable together, at most about
//! [`BLOCK_RAW_BYTES_MAX`] of them before compression. It is stored as one frame, or as several
//! (*parts*) when its compressed body is larger than [`FRAME_PAYLOAD_BYTES_MAX`]. All integers are
//! little endian. `docs/FORMAT.md` holds the same table.

use std::{cell::RefCell, io};

use bytes::Bytes;
use uuid::Uuid;
use zstd::bulk::{Compressor, Decompressor};

use super::record::{self, Body, Position, Record};

/// Marks a frame's first byte. The line feeds and the high byte make it unlikely in text.
pub const MAGIC: [u8; 8] = *b"pgaB\x89\r\n\x1a";
/// The version of this layout. A reader knows the first one too: its blocks had no content sum.
pub const VERSION: u16 = 2;
const FIRST_VERSION: u16 = 1;
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 96;
/// The largest payload of a frame. Values near 128 KiB would leave the log for a blob file, which
/// is never synced.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 112 << 10;
/// Where an append starts a new block: the body of one, before compression.
pub const BLOCK_RAW_BYTES_MAX: usize = 256 << 10;
/// The largest block a reader accepts: a bound on memory when a header lies.
pub const BODY_BYTES_MAX: usize = 256 << 20;
/// The largest record that [`encode`] can carry in one block.
pub const RECORD_BYTES_MAX: usize = 64 << 20;

/// The largest number of a segment, a frame or a record that a reader accepts: counts can be added
/// to it without a thought.
const NUMBER_MAX: u64 = u64::MAX / 2;

const ZSTD_LEVEL: i32 = 1;

mod offset {
    pub(super) const VERSION: usize = 8;
    pub(super) const CODEC: usize = 10;
    pub(super) const CHAIN: usize = 11;
    pub(super) const PART: usize = 12;
    pub(super) const PARTS: usize = 14;
    pub(super) const QUEUE: usize = 16;
    pub(super) const SEGMENT: usize = 32;
    pub(super) const NUMBER: usize = 40;
    pub(super) const FIRST_SEQ: usize = 48;
    pub(super) const RECORDS: usize = 56;
    pub(super) const BATCH: usize = 60;
    pub(super) const RAW_BYTES: usize = 64;
    pub(super) const PAYLOAD_BYTES: usize = 68;
    pub(super) const TIME_MIN: usize = 72;
    pub(super) const TIME_MAX: usize = 80;
    pub(super) const PAYLOAD_CRC: usize = 88;
    pub(super) const HEADER_CRC: usize = 92;
}

/// What a payload holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// The records of one batch, compressed with zstd.
    Records,
    /// The batches of a merged segment; see [`super::group`].
    Group,
}

const CODEC_RECORDS: u8 = 1;
const CODEC_GROUP: u8 = 2;

/// Whether a block is a part of something larger that counts only as a whole: the blocks that
/// became durable together, with the position in the last of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Chain {
    /// The block before belongs to it.
    pub begun: bool,
    /// The block after belongs to it.
    pub goes_on: bool,
}

/// What a frame says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    /// The layout that it was written in.
    pub version: u16,
    /// What the payload holds.
    pub codec: Codec,
    /// What the block is a part of. Earlier versions did not say it.
    pub chain: Chain,
    /// This part of the block, from 0.
    pub part: u16,
    /// How many parts the block has.
    pub parts: u16,
    /// The queue that wrote it.
    pub queue: Uuid,
    /// The segment it belongs to.
    pub segment: u64,
    /// The frame's number in its segment, from 0 without a gap.
    pub number: u64,
    /// The sequence number of the block's first record.
    pub first_seq: u64,
    /// How many records the block has; every part repeats it.
    pub records: u32,
    /// The batch that carries the block, fixed when it was written.
    pub batch: u32,
    /// Bytes of the block's body before compression.
    pub raw_bytes: u32,
    /// Bytes of this frame's payload.
    pub payload_bytes: u32,
    /// The earliest and the latest time of the block's records, milliseconds since 1970 UTC.
    pub time_ms: (i64, i64),
    payload_crc: u32,
}

/// Where a block stands: what [`encode`] stamps into its frames.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The queue that writes.
    pub queue: Uuid,
    /// The segment written to.
    pub segment: u64,
    /// The number of the block's first frame.
    pub number: u64,
    /// The batch that the block belongs to.
    pub batch: u32,
    /// The sequence number of its first record, or of the next one when it has none.
    pub first_seq: u64,
    /// What the block is a part of.
    pub chain: Chain,
}

/// Why bytes are not a frame or frames not a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The bytes do not start with a sound header.
    #[error("no sound frame header")]
    Header,
    /// The header is sound and of a version of the layout, or of a codec, that this program does
    /// not know.
    #[error("written by another version of the agent (layout {0})")]
    Version(u16),
    /// The payload is cut short or its checksum is wrong.
    #[error("the payload's checksum is wrong")]
    Payload,
    /// Parts are missing, or the body does not unpack to what the header says.
    #[error("the body does not unpack")]
    Body,
}

/// What a block's frames say of its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyFacts {
    /// Its records.
    pub records: usize,
    /// Its bytes before compression.
    pub raw_bytes: usize,
    /// The time span of its records.
    pub time_ms: (i64, i64),
}

/// A block as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Whole frames, headers included: one or more.
    pub frames: Vec<Vec<u8>>,
    /// Its content sum; see [`FrameHead::content`].
    pub content: u64,
}

/// Encodes a block.
pub fn encode(place: Place, records: &[Record], positions: &[Position]) -> Encoded {
    let body = record::encode_body(records, positions);
    let content = crc32c::crc32c_append(crc32c::crc32c(&place.first_seq.to_le_bytes()), &body);
    pack(place, u64::from(content), records, &body)
}

/// Encodes a block of records that were written before, in blocks with this content sum.
pub fn encode_again(
    place: Place,
    content: u64,
    records: &[Record],
    positions: &[Position],
) -> Encoded {
    pack(place, content, records, &record::encode_body(records, positions))
}

fn pack(place: Place, content: u64, records: &[Record], body: &[u8]) -> Encoded {
    // Compression into memory fails only for want of memory, which aborts anyway.
    let packed = with_packer(|packer| packer.compress(body)).expect("compression into memory");
    let time_ms = record::time_span(records);
    let facts = BodyFacts { records: records.len(), raw_bytes: body.len(), time_ms };
    let frames = frames(place, Codec::Records, facts, (&content.to_le_bytes(), &packed));
    Encoded { frames, content }
}

/// Cuts a block's payload, the beginning and the rest, into frames.
pub fn frames(
    place: Place,
    codec: Codec,
    body: BodyFacts,
    (begins, packed): (&[u8], &[u8]),
) -> Vec<Vec<u8>> {
    let first = packed.len().min(FRAME_PAYLOAD_BYTES_MAX - begins.len());
    let (first, rest) = packed.split_at(first);
    let rest = rest.chunks(FRAME_PAYLOAD_BYTES_MAX);
    let mut head = FrameHead {
        version: VERSION,
        codec,
        chain: place.chain,
        part: 0,
        parts: u16::try_from(1 + rest.len()).expect("RECORD_BYTES_MAX bounds the parts"),
        queue: place.queue,
        segment: place.segment,
        number: place.number,
        first_seq: place.first_seq,
        records: u32::try_from(body.records).expect("blocks are small"),
        batch: place.batch,
        raw_bytes: u32::try_from(body.raw_bytes).expect("RECORD_BYTES_MAX bounds the body"),
        payload_bytes: 0,
        time_ms: body.time_ms,
        payload_crc: 0,
    };
    let mut frames = Vec::with_capacity(1 + rest.len());
    for (begins, chunk) in std::iter::once((begins, first)).chain(rest.map(|c| (&[][..], c))) {
        let payload_bytes = begins.len() + chunk.len();
        head.payload_bytes = u32::try_from(payload_bytes).expect("chunks are small");
        head.payload_crc = crc32c::crc32c_append(crc32c::crc32c(begins), chunk);
        let mut frame = Vec::with_capacity(HEADER_BYTES + payload_bytes);
        frame.extend_from_slice(&head.to_bytes());
        frame.extend_from_slice(begins);
        frame.extend_from_slice(chunk);
        frames.push(frame);
        head.part += 1;
        head.number += 1;
    }
    frames
}

/// Decodes a block of records from its frames, in the order of their parts.
pub fn decode(frames: &[impl AsRef<[u8]>]) -> Result<Body, Damage> {
    let (first, packed) = join(frames)?;
    if first.codec != Codec::Records {
        return Err(Damage::Version(VERSION));
    }
    let packed = if first.version == FIRST_VERSION { &packed[..] } else { content(&packed)?.1 };
    let raw = with_unpacker(|unpacker| unpacker.decompress(packed, first.raw_bytes as usize))
        .map_err(|_| Damage::Body)?;
    let body = record::decode_body(&Bytes::from(raw), first.first_seq).map_err(|_| Damage::Body)?;
    if body.records.len() == first.records as usize { Ok(body) } else { Err(Damage::Body) }
}

thread_local! {
    // Making a context costs as much as packing a small block with it.
    static PACKER: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static UNPACKER: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

fn with_packer<T>(pack: impl FnOnce(&mut Compressor<'static>) -> io::Result<T>) -> io::Result<T> {
    PACKER.with_borrow_mut(|kept| match kept {
        Some(packer) => pack(packer),
        None => pack(kept.insert(Compressor::new(ZSTD_LEVEL)?)),
    })
}

fn with_unpacker<T>(
    unpack: impl FnOnce(&mut Decompressor<'static>) -> io::Result<T>,
) -> io::Result<T> {
    UNPACKER.with_borrow_mut(|kept| match kept {
        Some(unpacker) => unpack(unpacker),
        None => unpack(kept.insert(Decompressor::new()?)),
    })
}

/// The content sum of a block of records, and what comes after it.
fn content(packed: &[u8]) -> Result<(u64, &[u8]), Damage> {
    let (content, rest) = packed.split_first_chunk::<8>().ok_or(Damage::Body)?;
    Ok((u64::from_le_bytes(*content), rest))
}

/// The head of a block's first frame, and the payloads of all of them.
pub fn join(frames: &[impl AsRef<[u8]>]) -> Result<(FrameHead, Vec<u8>), Damage> {
    let first = FrameHead::read(frames.first().ok_or(Damage::Body)?.as_ref())?;
    if frames.len() != usize::from(first.parts) || first.raw_bytes as usize > BODY_BYTES_MAX {
        return Err(Damage::Body);
    }
    let mut packed = Vec::new();
    for (part, frame) in (0..).zip(frames) {
        let head = FrameHead::read(frame.as_ref())?;
        if head.part != part || head.first_seq != first.first_seq || head.parts != first.parts {
            return Err(Damage::Body);
        }
        packed.extend_from_slice(head.payload(frame.as_ref())?);
    }
    Ok((first, packed))
}

impl Chain {
    const GOES_ON: u8 = 1;
    const BEGUN: u8 = 2;

    fn of_bits(bits: u8) -> Self {
        Self { begun: bits & Self::BEGUN != 0, goes_on: bits & Self::GOES_ON != 0 }
    }

    fn bits(self) -> u8 {
        let bit = |is_set, bit| if is_set { bit } else { 0 };
        bit(self.goes_on, Self::GOES_ON) | bit(self.begun, Self::BEGUN)
    }
}

impl FrameHead {
    /// Whether what comes before this frame belongs to the same whole.
    pub fn is_begun(&self) -> bool {
        self.part > 0 || self.chain.begun
    }

    /// Whether what comes after this frame belongs to the same whole.
    pub fn goes_on(&self) -> bool {
        self.part + 1 < self.parts || self.chain.goes_on
    }

    /// Whether another frame has the same part of the same block.
    pub fn holds_the_same(&self, other: &Self) -> bool {
        let what = |head: &Self| (head.first_seq, head.records, head.part, head.parts);
        what(self) == what(other) && self.payload_crc == other.payload_crc
    }

    /// Reads the header at the start of `bytes`.
    pub fn read(bytes: &[u8]) -> Result<Self, Damage> {
        let header: &[u8; HEADER_BYTES] =
            bytes.get(..HEADER_BYTES).and_then(|b| b.try_into().ok()).ok_or(Damage::Header)?;
        let crc = u32::from_le_bytes(take(header, offset::HEADER_CRC));
        if header[..8] != MAGIC || crc != crc32c::crc32c(&header[..offset::HEADER_CRC]) {
            return Err(Damage::Header);
        }
        let version = u16::from_le_bytes(take(header, offset::VERSION));
        let codec = match header[offset::CODEC] {
            CODEC_RECORDS if is_known(version) => Codec::Records,
            CODEC_GROUP if is_known(version) => Codec::Group,
            _ => return Err(Damage::Version(version)),
        };
        let head = Self {
            version,
            codec,
            chain: Chain::of_bits(header[offset::CHAIN]),
            part: u16::from_le_bytes(take(header, offset::PART)),
            parts: u16::from_le_bytes(take(header, offset::PARTS)),
            queue: Uuid::from_bytes(take(header, offset::QUEUE)),
            segment: u64::from_le_bytes(take(header, offset::SEGMENT)),
            number: u64::from_le_bytes(take(header, offset::NUMBER)),
            first_seq: u64::from_le_bytes(take(header, offset::FIRST_SEQ)),
            records: u32::from_le_bytes(take(header, offset::RECORDS)),
            batch: u32::from_le_bytes(take(header, offset::BATCH)),
            raw_bytes: u32::from_le_bytes(take(header, offset::RAW_BYTES)),
            payload_bytes: u32::from_le_bytes(take(header, offset::PAYLOAD_BYTES)),
            time_ms: (
                i64::from_le_bytes(take(header, offset::TIME_MIN)),
                i64::from_le_bytes(take(header, offset::TIME_MAX)),
            ),
            payload_crc: u32::from_le_bytes(take(header, offset::PAYLOAD_CRC)),
        };
        if head.is_sane() { Ok(head) } else { Err(Damage::Header) }
    }

    /// The frame's length, header included.
    pub fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.payload_bytes as usize
    }

    /// The payload of the frame that starts at `bytes`, when its checksum is right.
    pub fn payload<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], Damage> {
        let payload = bytes.get(HEADER_BYTES..self.frame_bytes()).ok_or(Damage::Payload)?;
        if crc32c::crc32c(payload) == self.payload_crc { Ok(payload) } else { Err(Damage::Payload) }
    }

    /// The block's content sum, from the payload of its first frame: a number that other records
    /// do not have. Those of a batch's blocks add up to the batch's. `None` in blocks of earlier
    /// versions, and in groups, whose directory has it for each batch.
    pub fn content(&self, payload: &[u8]) -> Option<u64> {
        let says = self.version > FIRST_VERSION && self.codec == Codec::Records && self.part == 0;
        says.then(|| content(payload).ok()).flatten().map(|(content, _)| content)
    }

    /// Whether the numbers can be calculated with. A checksum says that nothing has changed, not
    /// that this program wrote it.
    fn is_sane(&self) -> bool {
        self.part < self.parts
            && self.payload_bytes as usize <= FRAME_PAYLOAD_BYTES_MAX
            && self.batch < u32::MAX
            && [self.segment, self.number, self.first_seq].into_iter().all(|n| n <= NUMBER_MAX)
    }

    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        put(&mut header, offset::VERSION, self.version.to_le_bytes());
        header[offset::CODEC] = match self.codec {
            Codec::Records => CODEC_RECORDS,
            Codec::Group => CODEC_GROUP,
        };
        header[offset::CHAIN] = self.chain.bits();
        put(&mut header, offset::PART, self.part.to_le_bytes());
        put(&mut header, offset::PARTS, self.parts.to_le_bytes());
        put(&mut header, offset::QUEUE, self.queue.into_bytes());
        put(&mut header, offset::SEGMENT, self.segment.to_le_bytes());
        put(&mut header, offset::NUMBER, self.number.to_le_bytes());
        put(&mut header, offset::FIRST_SEQ, self.first_seq.to_le_bytes());
        put(&mut header, offset::RECORDS, self.records.to_le_bytes());
        put(&mut header, offset::BATCH, self.batch.to_le_bytes());
        put(&mut header, offset::RAW_BYTES, self.raw_bytes.to_le_bytes());
        put(&mut header, offset::PAYLOAD_BYTES, self.payload_bytes.to_le_bytes());
        put(&mut header, offset::TIME_MIN, self.time_ms.0.to_le_bytes());
        put(&mut header, offset::TIME_MAX, self.time_ms.1.to_le_bytes());
        put(&mut header, offset::PAYLOAD_CRC, self.payload_crc.to_le_bytes());
        let crc = crc32c::crc32c(&header[..offset::HEADER_CRC]);
        put(&mut header, offset::HEADER_CRC, crc.to_le_bytes());
        header
    }
}

fn is_known(version: u16) -> bool {
    (FIRST_VERSION..=VERSION).contains(&version)
}

fn take<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|n| header[at + n])
}

fn put<const N: usize>(header: &mut [u8; HEADER_BYTES], at: usize, bytes: [u8; N]) {
    header[at..at + N].copy_from_slice(&bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            queue: Uuid::from_u128(7),
            segment: 3,
            number: 5,
            batch: 2,
            first_seq: 100,
            chain: Chain::default(),
        }
    }

    fn records(count: u64, bytes: usize) -> Vec<Record> {
        let mut state = 1_u64;
        let mut noise = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        };
        (0..count)
            .map(|n| Record {
                seq: 100 + n,
                kind: "custom.noise".to_owned(),
                at_ms: 1_000 - i64::try_from(n).unwrap(),
                payload: (0..bytes).map(|_| noise()).collect(),
            })
            .collect()
    }

    #[test]
    fn a_block_survives_encoding() {
        let records = records(3, 100);
        let frames = encode(place(), &records, &[]).frames;
        assert_eq!(frames.len(), 1);
        let head = FrameHead::read(&frames[0]).unwrap();
        assert_eq!((head.number, head.first_seq, head.records, head.batch), (5, 100, 3, 2));
        assert_eq!(head.time_ms, (998, 1_000));
        assert_eq!(decode(&frames).unwrap().records, records);
    }

    #[test]
    fn a_large_record_is_stored_in_parts() {
        let records = records(1, 300 << 10);
        let frames = encode(place(), &records, &[]).frames;
        assert_eq!(frames.len(), 3);
        assert!(frames.iter().all(|f| f.len() <= HEADER_BYTES + FRAME_PAYLOAD_BYTES_MAX));
        assert_eq!(decode(&frames).unwrap().records, records);
        assert_eq!(decode(&frames[..2]), Err(Damage::Body));
        let swapped = [&frames[1], &frames[0], &frames[2]];
        assert_eq!(decode(&swapped), Err(Damage::Body));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let frame = encode(place(), &records(1, 40), &[]).frames.remove(0);
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&[damaged]).is_err(), "bit {bit}");
        }
    }

    /// Found by the fuzz target `salvage`: a header with a right checksum and a frame number to
    /// which nothing can be added.
    #[test]
    fn numbers_that_nothing_can_be_added_to_are_damage() {
        let far = u64::MAX - 1;
        let places = [
            Place { segment: far, ..place() },
            Place { number: far, ..place() },
            Place { first_seq: far, ..place() },
            Place { batch: u32::MAX, ..place() },
        ];
        for place in places {
            let frames = encode(place, &[], &[]).frames;
            assert_eq!(FrameHead::read(&frames[0]), Err(Damage::Header), "{place:?}");
        }
    }

    #[test]
    fn every_truncation_is_found() {
        let frame = encode(place(), &records(1, 40), &[]).frames.remove(0);
        for length in 0..frame.len() {
            assert!(decode(&[&frame[..length]]).is_err(), "{length} bytes");
        }
    }
}
