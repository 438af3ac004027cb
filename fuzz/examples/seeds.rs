//! Writes the seeds, from which a fuzzer starts, into `fuzz/seeds/<target>/`:
//! `cargo run --manifest-path fuzz/Cargo.toml --example seeds`.

use std::{fs, io, path::Path};

use bytes::Bytes;
use pganalytics_agent_fuzz::{
    input_of,
    queue::{
        block::{Chain, HEADER_BYTES, Place, encode},
        record::{Position, Record},
    },
};
use uuid::Uuid;

fn main() -> io::Result<()> {
    let large: Vec<u8> = noise().take(600).collect();
    let blocks: [(&str, Vec<Record>, usize); 5] = [
        ("empty", vec![], 0),
        ("position", vec![], 2),
        ("one", vec![record(100, b"{}")], 0),
        ("several", (100..110).map(|n| record(n, br#"{"type":"sysstat"}"#)).collect(), 1),
        ("parts", vec![record(100, &large)], 1),
    ];
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for target in ["decode", "salvage"] {
        fs::create_dir_all(seeds.join(target))?;
    }
    let mut all = Vec::new();
    for (name, records, positions) in blocks {
        let number = all.len() as u64;
        let chain = Chain::default();
        let (queue, first_seq) = (Uuid::nil(), 100);
        let place = Place { queue, segment: 1, number, batch: 0, first_seq, chain };
        let mut frames = encode(place, &records, &vec![position(); positions]).frames;
        if name == "parts" {
            frames = in_two(&frames[0]);
        }
        fs::write(seeds.join("decode").join(name), input_of(&frames))?;
        all.extend(frames);
    }
    fs::write(seeds.join("salvage/file"), all.concat())?;
    fs::write(seeds.join("salvage/frames"), [&[0, 0, 9][..], &input_of(&all)].concat())?;
    fs::write(seeds.join("salvage/window"), [&[1, 1, 200][..], &input_of(&all)].concat())
}

/// A frame as the two parts of a block. The queue makes parts of large blocks only; a seed that
/// large would make the fuzzer slow. The checksums are set right by `frames`.
fn in_two(frame: &[u8]) -> Vec<Vec<u8>> {
    let (header, payload) = frame.split_at(HEADER_BYTES);
    let (first, second) = payload.split_at(payload.len() / 2);
    let part = |part: u8, payload: &[u8]| {
        let mut header = header.to_vec();
        (header[12], header[14]) = (part, 2);
        header[40] += part;
        [&header, payload].concat()
    };
    vec![part(0, first), part(1, second)]
}

fn record(seq: u64, payload: &[u8]) -> Record {
    let payload = Bytes::copy_from_slice(payload);
    Record { seq, kind: "sysstat".to_owned(), at_ms: 1_700_000_000_000, payload }
}

fn position() -> Position {
    let bytes = Bytes::from_static(b"\0\x01\xff");
    Position { collector: "pg_log".to_owned(), bytes, keep_until_ms: None }
}

/// Bytes that do not compress, the same in every run.
fn noise() -> impl Iterator<Item = u8> {
    std::iter::successors(Some(1_u64), |state| {
        Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407))
    })
    .map(|state| state.to_be_bytes()[0])
}
