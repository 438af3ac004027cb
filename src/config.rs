//! The agent's configuration: TOML in, one validated part per stage out.

pub mod reader;
