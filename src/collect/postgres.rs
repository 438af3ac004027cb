//! How the collectors talk to PostgreSQL: where it is, and a session with every limit set.

mod connection;
mod session;

pub use connection::PgConnection;
pub use session::Timeouts;

pub(super) use session::{Failure, Query, Recovery, Session};
