//! What a backend gets to do when it is back after an hour without it, or when a whole fleet starts
//! in the same second: 10,000 agents in simulated time. Draws the load into `docs/fleet.svg`, or
//! where `BENCH_FLEET_SVG` says. `BENCH_ROUNDS` sets the number of fleets; the first is drawn.

#![allow(clippy::cast_precision_loss, reason = "measurements")]

mod common;
#[path = "common/fleet/mod.rs"]
mod fleet;

use common::{median, result, setting};
use fleet::{SCENARIOS, drawing::draw, simulate};

const AGENTS: u32 = 10_000;

fn main() {
    let rounds = setting("BENCH_ROUNDS", 20);
    let drawn: Vec<_> = SCENARIOS.iter().map(|scenario| simulate(*scenario, AGENTS, 0)).collect();
    let path = std::env::var("BENCH_FLEET_SVG")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/docs/fleet.svg").to_owned());
    fs_err::write(path, draw(&drawn)).expect("write the drawing");
    for load in &drawn {
        let percent = |seed| simulate(load.scenario, AGENTS, seed).worst_second_percent();
        let all: Vec<f64> = (0..rounds).map(percent).collect();
        let name = load.scenario.name;
        result(&format!("fleet_median_percent_{name}"), median(all.clone()), "%");
        let worst = all.into_iter().fold(0.0, f64::max);
        result(&format!("fleet_rounds_worst_percent_{name}"), worst, "%");
        result(&format!("fleet_worst_second_percent_{name}"), load.worst_second_percent(), "%");
    }
    let worst = drawn.iter().map(fleet::Load::worst_second_percent).fold(0.0, f64::max);
    result("fleet_worst_second_percent", worst, "%");
}
