//! The files of `src/queue` that read bytes from a disk.

#[path = "../../src/queue/block.rs"]
pub mod block;
#[path = "../../src/queue/group.rs"]
pub mod group;
#[path = "../../src/queue/record.rs"]
pub mod record;
#[path = "../../src/queue/salvage.rs"]
pub mod salvage;
#[path = "../../src/queue/segment.rs"]
pub mod segment;
