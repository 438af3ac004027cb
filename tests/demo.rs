//! The demo: everything real in one process, an outage, and an account of every record.

use crate::support::process::{Finished, agent, run};

/// The number behind `name` in the account that the demo ends with.
fn account(done: &Finished, name: &str) -> u64 {
    let line = done.stdout.lines().find_map(|line| line.strip_prefix(name));
    let count = line.and_then(|rest| rest.trim().parse().ok());
    count.unwrap_or_else(|| panic!("no {name:?} in {done:?}"))
}

/// C19, C20, C45: the backend goes away and comes back, and every record is in its store once.
/// What an earlier demo left in the directory is not counted.
#[test]
fn an_outage_in_the_demo_loses_nothing() {
    let directory = crate::support::directory();
    let dir = directory.path().to_str().expect("UTF-8");
    let earlier = run(agent(["demo", "--for", "2s", "--dir", dir]));
    assert_eq!(earlier.code, Some(0), "{earlier:?}");
    let done = run(agent(["demo", "--outage", "3s", "--dir", dir]));
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stdout.contains("page       http://127.0.0.1:"), "{done:?}");
    assert!(done.stdout.contains("the backend is back"), "{done:?}");
    let collected = account(&done, "records collected");
    assert!(collected > 10, "{done:?}");
    assert_eq!(account(&done, "records delivered"), collected);
    assert_eq!(account(&done, "records duplicated"), 0);
    assert_eq!(account(&done, "records lost"), 0);
}
