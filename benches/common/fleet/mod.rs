//! A fleet of agents and the backend that it loses for an hour, in simulated time. Pauses and
//! windows are those of the crate; requests are points in time, and the backend is as fast as they
//! come.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "a simulation of small numbers"
)]

pub mod drawing;

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use jiff::Timestamp;
use pganalytics::{
    agent::windows::{found_pause, windows},
    collect::schedule::Schedule,
    forward::pace::Pace,
};
use uuid::Uuid;

/// No second may bring more of the agents, percent.
pub const PERCENT_MAX: f64 = 2.0;

const WINDOW: Duration = Duration::from_secs(60);
/// When the simulation begins, in the middle of a minute.
const BEGIN_MS: i64 = 1_767_225_617_000;
/// How long everything is well before the backend goes.
const BEFORE_MS: u64 = 120_000;
const OUTAGE_MS: u64 = 3_600_000;
/// From a request to its answer.
const ANSWER_MS: u64 = 50;
/// A longer `Retry-After` is cut to this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// What is looked at: a minute before the return, and six after it.
const SHOWN_BEFORE: u64 = 60;
const SHOWN_AFTER: u64 = 360;

/// What the agents meet for an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nobody listens, or says 503 without a word on when to come again: the same to an agent.
    NoWord,
    /// 503 with `Retry-After` in seconds.
    Seconds(u64),
    /// 503 with `Retry-After` as the date of the return: the same for every agent.
    Date,
    /// Nothing is wrong with the backend: all hosts start in the same second, and find a window
    /// that the power cut has left.
    Start,
}

/// A trouble and how it is told to people and scripts.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    pub title: &'static str,
    pub trouble: Trouble,
}

/// All of them.
pub const SCENARIOS: [Scenario; 4] = [
    Scenario {
        name: "refused",
        title: "connections are refused, or 503 without Retry-After",
        trouble: Trouble::NoWord,
    },
    Scenario {
        name: "503_seconds",
        title: "503, Retry-After: 120",
        trouble: Trouble::Seconds(120),
    },
    Scenario {
        name: "503_date",
        title: "503, Retry-After: the date of the return, the same for all",
        trouble: Trouble::Date,
    },
    Scenario {
        name: "start",
        title: "all hosts start in one second, after a power cut",
        trouble: Trouble::Start,
    },
];

/// What comes to the backend, second by second.
#[derive(Debug, Clone)]
pub struct Load {
    pub scenario: Scenario,
    pub agents: u32,
    /// Agents whose first request comes in that second; the first entry is the second of the
    /// return.
    pub arrivals: Vec<u32>,
    /// Requests, probes and refused connections among them; [`Load::SHOWN_BEFORE`] entries are from
    /// before the return.
    pub requests: Vec<u32>,
}

impl Load {
    pub const SHOWN_BEFORE: u64 = SHOWN_BEFORE;

    /// The most agents that arrive in one second, percent of all.
    pub fn worst_second_percent(&self) -> f64 {
        let most = self.arrivals.iter().max().copied().unwrap_or(0);
        f64::from(most) * 100.0 / f64::from(self.agents)
    }
}

struct Agent {
    schedule: Schedule,
    pace: Pace,
    /// When the last window ended that was delivered.
    delivered_ms: u64,
    /// The backend was away when it was asked last.
    troubled: bool,
    arrived: bool,
}

struct Fleet {
    trouble: Trouble,
    agents: Vec<Agent>,
    /// When an agent does something next.
    events: BinaryHeap<Reverse<(u64, u32)>>,
    random: fastrand::Rng,
    load: Load,
}

/// The load of `agents` agents in `scenario`. The same seed gives the same load.
pub fn simulate(scenario: Scenario, agents: u32, seed: u64) -> Load {
    let seconds = |count: u64| vec![0; count as usize];
    let load = Load {
        scenario,
        agents,
        arrivals: seconds(SHOWN_AFTER),
        requests: seconds(SHOWN_BEFORE + SHOWN_AFTER),
    };
    let mut fleet = Fleet {
        trouble: scenario.trouble,
        agents: Vec::new(),
        events: BinaryHeap::new(),
        random: fastrand::Rng::with_seed(seed),
        load,
    };
    for number in 0..agents {
        fleet.start(number);
    }
    let end_ms = fleet.back_ms() + SHOWN_AFTER * 1_000;
    while let Some(Reverse((now_ms, number))) = fleet.events.pop() {
        if now_ms >= end_ms {
            break;
        }
        fleet.act(now_ms, number);
    }
    fleet.load
}

impl Fleet {
    fn away(&self) -> std::ops::Range<u64> {
        match self.trouble {
            Trouble::Start => 0..0,
            _ => BEFORE_MS..BEFORE_MS + OUTAGE_MS,
        }
    }

    /// From when on arrivals are counted.
    fn back_ms(&self) -> u64 {
        self.away().end
    }

    fn start(&mut self, number: u32) {
        let mut schedule = windows(WINDOW, Uuid::from_u128(self.random.u128(..)));
        let started_ms = match self.trouble {
            Trouble::Start => 0,
            _ => self.random.u64(..WINDOW.as_millis() as u64), // long ago
        };
        schedule.next(at(started_ms)); // the first tick is the start
        let first = match self.trouble {
            Trouble::Start => found_pause(WINDOW, self.random.f64()),
            _ => schedule.next(at(started_ms)).after,
        };
        let first_ms = started_ms + first.as_millis() as u64;
        let agent = Agent {
            schedule,
            pace: Pace::default(),
            delivered_ms: started_ms,
            troubled: false,
            arrived: false,
        };
        self.agents.push(agent);
        self.events.push(Reverse((first_ms, number)));
    }

    /// A window of an agent has ended, or a pause.
    fn act(&mut self, now_ms: u64, number: u32) {
        self.count_requests(now_ms, 1);
        let (away, trouble) = (self.away(), self.trouble);
        let agent = &mut self.agents[number as usize];
        let next_ms = if away.contains(&now_ms) {
            agent.troubled = true;
            let left_ms = away.end - now_ms / 1_000 * 1_000; // dates have whole seconds
            let asked = match trouble {
                Trouble::Seconds(seconds) => Some(Duration::from_secs(seconds)),
                Trouble::Date => Some(Duration::from_millis(left_ms).min(RETRY_AFTER_MAX)),
                Trouble::NoWord | Trouble::Start => None,
            };
            agent.pace.after_failure(self.random.f64(), asked).as_millis() as u64
        } else {
            let waiting = (now_ms - agent.delivered_ms).div_ceil(WINDOW.as_millis() as u64).max(1);
            agent.delivered_ms = now_ms;
            agent.pace.reset();
            let first = now_ms >= away.end && !std::mem::replace(&mut agent.arrived, true);
            // What came first was the probe when the backend was away, and else the push itself.
            let pushes = if std::mem::take(&mut agent.troubled) { waiting } else { waiting - 1 };
            let next_ms = agent.schedule.next(at(now_ms)).after.as_millis() as u64;
            self.count_pushes(now_ms, pushes);
            if first {
                self.load.arrivals[((now_ms - away.end) / 1_000) as usize] += 1;
            }
            next_ms
        };
        self.events.push(Reverse((now_ms + next_ms.max(1), number)));
    }

    /// Pushes one after the other, then two at a time, then four.
    fn count_pushes(&mut self, mut now_ms: u64, mut pushes: u64) {
        let mut at_once = 1;
        while pushes > 0 {
            now_ms += ANSWER_MS;
            let now = pushes.min(at_once);
            self.count_requests(now_ms, now as u32);
            pushes -= now;
            at_once = (at_once * 2).min(4);
        }
    }

    fn count_requests(&mut self, now_ms: u64, count: u32) {
        let second = (now_ms + SHOWN_BEFORE * 1_000).checked_sub(self.back_ms());
        let second = second.and_then(|ms| self.load.requests.get_mut((ms / 1_000) as usize));
        if let Some(requests) = second {
            *requests += count;
        }
    }
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_millisecond(BEGIN_MS + ms as i64).expect("in range")
}
