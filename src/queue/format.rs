//! The bytes on disk, as `docs/FORMAT.md` has them. Pure: nothing here opens a file.

pub mod block;
pub mod group;
pub mod loss;
pub mod note;
pub mod record;
pub mod rows;
pub mod salvage;
pub mod segment;
