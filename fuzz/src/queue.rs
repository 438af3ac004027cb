//! The files of `src/queue` that read bytes from a disk.

#[path = "../../src/queue/format/block.rs"]
pub mod block;
#[path = "../../src/queue/format/group.rs"]
pub mod group;
#[path = "../../src/queue/format/record.rs"]
pub mod record;
#[path = "../../src/queue/format/salvage.rs"]
pub mod salvage;
#[path = "../../src/queue/format/segment.rs"]
pub mod segment;
