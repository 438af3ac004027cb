//! Salvage: every sound frame of a file is found, whatever lies between, before and after it and
//! however the file is read; and what is found makes a row and batches.

#![no_main]

use std::io::{self, Read};

use libfuzzer_sys::fuzz_target;
use pganalytics_agent_fuzz::{
    frames,
    queue::{
        block::{Codec, FrameHead},
        salvage::{Scan, scan},
        segment::{SegmentRow, plans_of},
    },
};

/// Around the length of the salvage's window, so that frames lie across its end.
const PADDING_AROUND: usize = 256 << 10;

fuzz_target!(|input: &[u8]| {
    check(input, 1);
    let Some((&[low, high, pieces], rest)) = input.split_first_chunk() else { return };
    let padding = usize::from(u16::from_le_bytes([low, high]));
    let mut file = vec![b'p'; if low % 2 == 0 { 0 } else { PADDING_AROUND - padding }];
    let frames = frames(rest);
    for frame in &frames {
        file.extend_from_slice(frame);
        // Rubbish between frames, at times the beginning of one.
        file.extend_from_slice(&rest[..rest.len().min(usize::from(pieces))]);
    }
    let found = check(&file, usize::from(pieces) + 1);
    // A frame that is cut off by the rubbish of another cannot be missed: frames come first.
    let first = frames.first().and_then(|frame| FrameHead::read(frame).ok());
    // A group counts only when its directory can be read.
    let ours =
        |head: &FrameHead| head.queue.is_nil() && head.segment == 1 && head.codec == Codec::Records;
    if let Some(head) = first.filter(ours) {
        assert!(found.found.iter().any(|frame| frame.head.number == head.number));
    }
});

fn check(file: &[u8], piece: usize) -> Scan {
    let queue = uuid::Uuid::nil();
    let whole = scan(file, queue, 1).expect("memory can be read");
    let pieces = Pieces { rest: file, piece: piece * 257 };
    assert_eq!(scan(pieces, queue, 1).expect("memory can be read"), whole);
    for frame in &whole.found {
        let bytes = &file[usize::try_from(frame.offset).expect("in the file")..];
        assert_eq!(FrameHead::read(bytes), Ok(frame.head));
        assert!(frame.head.payload(bytes).is_ok());
    }
    assert!(whole.found.is_sorted_by(|a, b| a.head.number < b.head.number));
    let row = SegmentRow::recovered(1, &whole.found, None);
    let _ = plans_of(&whole.found, &row);
    whole
}

/// A file that is read in small pieces.
struct Pieces<'a> {
    rest: &'a [u8],
    piece: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.piece.min(into.len());
        self.rest.read(&mut into[..length])
    }
}
