//! backend
pub mod store;
