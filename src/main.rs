//! The program `agent`.

fn main() {}
