//! How the collectors talk to PostgreSQL: where it is, and a session with every limit set.

mod connection;
mod dial; // the way there
mod guard; // what a server may say, in bytes
mod session;

pub use connection::{PgConnection, quoted};
pub use session::Timeouts;

pub(super) use session::{Failure, Query, Recovery, Session};
