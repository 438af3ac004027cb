//! The commands, one file each.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "commands talk to people")]

pub mod register; // enrols this host with a backend
