//! What the fuzz targets share: the files that they test, and inputs that get past the checksums of
//! the queue's blocks.
//!
//! A fuzzer does not guess a CRC, so most of its inputs would end at the first check. [`frames`]
//! reads an input as a list of frames whose headers are the fuzzer's in every field but the magic
//! number, the lengths and the two checksums, which are set right.

pub mod pg_log;
pub mod queue;

use queue::block::{FRAME_PAYLOAD_BYTES_MAX, HEADER_BYTES, MAGIC, VERSION};

/// Offsets in a frame's header that are set right; the same numbers as in `docs/FORMAT.md`.
const AT_VERSION: usize = 8;
const AT_CODEC: usize = 10;
const AT_RAW_BYTES: usize = 64;
const AT_PAYLOAD_BYTES: usize = 68;
const AT_PAYLOAD_CRC: usize = 88;
const AT_HEADER_CRC: usize = 92;
/// The codecs that the reader knows, from this one on, and the versions.
const CODEC_FIRST: u8 = 1;
const CODECS: u8 = 2;
const VERSION_FIRST: u16 = 1;

/// What stands before each frame of an input: the payload's length in two bytes, and how the
/// payload is to be understood.
const PREFIX_BYTES: usize = 3;

/// Reads `input` as frames, each `[length u16, kind u8, header, payload]`, and repairs them. With
/// an odd kind the payload is a body that is compressed first.
pub fn frames(mut input: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some((prefix, rest)) = input.split_at_checked(PREFIX_BYTES)
        && let Some((header, rest)) = rest.split_at_checked(HEADER_BYTES)
    {
        let length = usize::from(u16::from_le_bytes([prefix[0], prefix[1]])).min(rest.len());
        let (payload, rest) = rest.split_at(length);
        let mut header = header.to_vec();
        if prefix[2] % 2 == 1 {
            set(&mut header, AT_RAW_BYTES, u32::try_from(length).unwrap());
            // Blocks of this version's records begin with what they add up to.
            let sum = if header[AT_VERSION] % 2 == 0 { &[0; 8][..] } else { &[] };
            let packed = zstd::bulk::compress(payload, 1).unwrap();
            frames.push(frame(header, &[sum, &packed].concat()));
        } else {
            frames.push(frame(header, payload));
        }
        input = rest;
    }
    frames
}

/// The input that [`frames`] reads as `frames`.
pub fn input_of(frames: &[Vec<u8>]) -> Vec<u8> {
    let input = |frame: &Vec<u8>| {
        let length = u16::try_from(frame.len() - HEADER_BYTES).expect("seeds are small");
        [&length.to_le_bytes()[..], &[0], frame].concat()
    };
    frames.iter().flat_map(input).collect()
}

fn frame(mut header: Vec<u8>, payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(FRAME_PAYLOAD_BYTES_MAX)];
    header[..MAGIC.len()].copy_from_slice(&MAGIC);
    let version = VERSION_FIRST + (u16::from(header[AT_VERSION]) + VERSION_FIRST) % VERSION;
    header[AT_VERSION..AT_VERSION + 2].copy_from_slice(&version.to_le_bytes());
    header[AT_CODEC] = CODEC_FIRST + (header[AT_CODEC].wrapping_sub(CODEC_FIRST)) % CODECS;
    set(&mut header, AT_PAYLOAD_BYTES, u32::try_from(payload.len()).unwrap());
    set(&mut header, AT_PAYLOAD_CRC, crc32c::crc32c(payload));
    let crc = crc32c::crc32c(&header[..AT_HEADER_CRC]);
    set(&mut header, AT_HEADER_CRC, crc);
    header.extend_from_slice(payload);
    header
}

fn set(header: &mut [u8], at: usize, value: u32) {
    header[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
