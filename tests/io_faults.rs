//! Calls that a failing disk fails, some on one kind of file at a time, while the real agent runs
//! and programs push to it: nothing that was acknowledged is lost, nothing is stored twice, and the
//! queue is well again when the disk is.

mod lane; // a site of its own, its load, and what is asked of it after each fault
mod settings; // which calls fail, on which files, how, and when

use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};

use self::lane::Lane;
use self::settings::{Kind, Setting};

/// Settings in a run of the tests; the environment variable sets another number.
const SETTINGS: usize = 60;
const SETTINGS_VARIABLE: &str = "PGANALYTICS_IO_FAULTS";
/// Repeats the settings of an earlier run.
const SEED_VARIABLE: &str = "PGANALYTICS_IO_FAULTS_SEED";
/// Sites at work at the same time, each under a fault of its own.
const LANES: usize = 4;

/// What has come of one setting.
struct Outcome {
    setting: Setting,
    /// Calls that have failed.
    struck: u64,
    /// Exit codes of an agent that ended meanwhile, and was started again.
    ended: Vec<String>,
    /// Why it is not well.
    failure: Option<String>,
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Q1, Q2, Q5, Q7: whatever fails, and wherever.
#[test]
fn a_failing_call_costs_no_acknowledged_record() {
    let seed = number(SEED_VARIABLE).unwrap_or_else(|| fastrand::u64(..));
    let count = number(SETTINGS_VARIABLE).map_or(SETTINGS, |n| usize::try_from(n).expect("fits"));
    let queues = settings::drawn(count, seed).map(VecDeque::from).map(Mutex::new);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for number in 0..LANES {
            let (queues, outcomes) = (&queues, &outcomes);
            scope.spawn(move || {
                let runtime = tokio::runtime::Runtime::new().expect("a runtime");
                let kind = Kind::ALL[number % Kind::ALL.len()];
                let next = || {
                    let queue = &queues[number % Kind::ALL.len()];
                    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
                };
                let tell = |outcome: Outcome| {
                    say(&outcome.line());
                    outcomes.lock().expect("nobody panicked").push(outcome);
                };
                runtime.block_on(run(kind, next, tell));
            });
        }
    });
    let outcomes = outcomes.into_inner().expect("nobody panicked");
    let struck = outcomes.iter().filter(|outcome| outcome.struck > 0).count();
    let ended: usize = outcomes.iter().map(|outcome| outcome.ended.len()).sum();
    let calls: u64 = outcomes.iter().map(|outcome| outcome.struck).sum();
    say(&format!(
        "seed {seed}: {} settings, {struck} struck {calls} calls; the agent ended {ended} times",
        outcomes.len()
    ));
    let blunt = outcomes.iter().filter(|o| o.struck == 0 && o.setting.must_strike);
    let blunt: Vec<String> = blunt.map(|outcome| outcome.setting.to_string()).collect();
    let failures: Vec<String> = outcomes.iter().filter_map(Outcome::failed).collect();
    assert!(failures.is_empty(), "seed {seed}: {} fail\n{}", failures.len(), failures.join("\n"));
    assert!(blunt.is_empty(), "seed {seed}: struck nothing: {blunt:?}");
    assert_eq!(outcomes.len(), count, "seed {seed}");
}

/// One setting after the other on one site; after a failure on another one.
async fn run(kind: Kind, mut next: impl FnMut() -> Option<Setting>, mut tell: impl FnMut(Outcome)) {
    let mut waiting = next();
    while let Some(first) = waiting.take() {
        let mut lane = Lane::new(kind).await;
        let mut setting = Some(first);
        while let Some(current) = setting.take() {
            let mut outcome = lane.suffer(current);
            waiting = next();
            if outcome.failure.is_none() {
                setting = waiting.take();
                if setting.is_none() {
                    outcome.failure = lane.end().err().map(|why| format!("at the end: {why}"));
                }
            }
            tell(outcome);
        }
    }
}

impl Outcome {
    fn line(&self) -> String {
        let Self { setting, struck, ended, failure } = self;
        let ended =
            if ended.is_empty() { String::new() } else { format!(", {}", ended.join(", ")) };
        let verdict = if failure.is_some() { "FAILS" } else { "ok" };
        format!("{verdict}: {setting}: {struck} calls{ended}")
    }

    fn failed(&self) -> Option<String> {
        let failure = self.failure.as_ref()?;
        Some(format!("{}\n    {}", self.line(), failure.replace('\n', "\n    ")))
    }
}

fn say(line: &str) {
    let mut error = std::io::stderr();
    writeln!(error, "{line}").expect("say");
}
