//! Decoding blocks: whatever the bytes, an answer, and never one that contradicts the header.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pganalytics_agent_fuzz::{
    frames,
    queue::{
        block::{FrameHead, decode},
        group,
    },
};

fuzz_target!(|input: &[u8]| {
    check(&[input]);
    let frames = frames(input);
    for frame in &frames {
        check(&[frame]);
    }
    check(&frames);
});

fn check(frames: &[impl AsRef<[u8]>]) {
    let _ = group::decode(frames);
    let Ok(body) = decode(frames) else { return };
    let head = FrameHead::read(frames[0].as_ref()).expect("a block that decodes has a head");
    assert_eq!(body.records.len(), head.records as usize);
    for (n, record) in (0..).zip(&body.records) {
        assert_eq!(record.seq, head.first_seq + n);
    }
}
