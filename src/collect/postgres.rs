//! How the collectors talk to PostgreSQL: where it is, and a session with every limit set.

mod connection;
mod dial; // the addresses
mod failure; // why not
mod guard; // what a server may say, in bytes
mod line; // the way there, encrypted or not
mod password; // where a password comes from
mod session;
mod tls;

pub use connection::{PgConnection, quoted};
pub use password::PasswordFrom;
pub use session::Timeouts;
pub use tls::{ChannelBinding, PgTls, Roots, SslMode};

pub(super) use failure::Failure;
pub(super) use session::{Query, Recovery, Session};
