//! Many agents and one backend: what comes when it is back, and when all start at once.

#[path = "../benches/common/fleet/mod.rs"]
mod model;

use model::{PERCENT_MAX, SCENARIOS, Trouble, drawing::draw, simulate};

/// A fifth of the fleet that `cargo bench --bench fleet` simulates: chance makes a second of it
/// fuller, measured in percent.
const AGENTS: u32 = 2_000;

/// C36: after an hour without the backend, whatever it has said meanwhile, and after a power cut of
/// the whole fleet, no second brings more than 2 % of the agents.
#[test]
fn a_fleet_does_not_return_in_one_second() {
    let mut loads = Vec::new();
    for scenario in SCENARIOS {
        let load = simulate(scenario, AGENTS, 1);
        let (worst, name) = (load.worst_second_percent(), scenario.name);
        assert!(worst <= PERCENT_MAX, "{name}: {worst} % in one second");
        let arrived: u32 = load.arrivals.iter().sum();
        // Pauses end within 300 s, what was asked for adds 120 s at most; a few are still waiting.
        let expected = if scenario.trouble == Trouble::Seconds(120) { 95 } else { 100 };
        assert!(arrived >= AGENTS / 100 * expected, "{name}: {arrived} have arrived");
        loads.push(load);
    }
    let drawing = draw(&loads);
    assert!(drawing.starts_with("<svg ") && drawing.ends_with("</svg>\n"));
    assert_eq!(drawing.matches("class=\"arrivals\"").count(), SCENARIOS.len());
}
