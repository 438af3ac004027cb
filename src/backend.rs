//! backend
mod auth; // tokens, passwords, sealed secrets
mod config; // the backend's own TOML
mod pki; // the certificate authority
pub mod store; // where it keeps what it was told

pub use config::{BackendConfig, Lifetimes, Limits};
