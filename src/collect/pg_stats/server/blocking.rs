//! Who waits for whom.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tokio_postgres::Row;

use super::{Asking, CollectError, Document, Query};
use crate::metric::declare::{Columns, Declared};
use crate::metric::pg_activity::{BlockedSession, Blocking};

/// The most sessions that are listed.
const LISTED_MAX: usize = 50;
/// The most that one session is said to be blocked by.
const BLOCKED_BY_MAX: usize = 8;

/// Those who have waited the longest. `pg_blocking_pids` stops the lock manager for a moment, so it
/// is asked only when somebody waits, and not for more than these.
const WAITERS: Query = Query {
    name: "waiters",
    sql: "WITH w AS (
    SELECT l.pid, l.locktype, l.mode, l.database, l.relation,
           extract(epoch FROM clock_timestamp()
               - coalesce((to_jsonb(l) ->> 'waitstart')::timestamptz, a.state_change))::float8
               AS waiting_s,
           count(*) OVER () AS waiting
      FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
     WHERE NOT l.granted AND l.pid <> pg_backend_pid()
     ORDER BY 6 DESC NULLS LAST, l.pid
     LIMIT 200)
SELECT w.pid, (pg_blocking_pids(w.pid))[1:64] AS blockers, w.waiting, w.waiting_s,
       w.locktype AS lock_type, w.mode AS lock_mode,
       coalesce(n.nspname || '.' || c.relname, w.relation::text) AS relation
  FROM w
  LEFT JOIN pg_class c ON c.oid = w.relation AND w.database IN
       (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
  LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
 ORDER BY w.waiting_s DESC NULLS LAST, w.pid",
    rows_max: 200,
};

/// Who they are. The text of a statement is looked at only where it stands for a missing right.
const SESSIONS: Query = Query {
    name: "blocking_sessions",
    sql: "SELECT a.pid::int8 AS pid, a.datname AS database, a.usename AS user,
       a.application_name AS application, a.backend_type, a.state,
       CASE WHEN a.query = '<insufficient privilege>' THEN true END AS hidden,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS transaction_s,
       extract(epoch FROM clock_timestamp() - a.state_change)::float8 AS state_s
  FROM pg_stat_activity a
 WHERE a.pid = ANY ($1)
 LIMIT 50",
    rows_max: 50,
};

/// A process that waits, and those that it waits for.
#[derive(Debug, Clone)]
struct Waiter {
    pid: i32,
    blockers: BTreeSet<i32>,
}

/// Where a process stands in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    pid: i32,
    /// The number of steps to a root; absent when there is none.
    depth: Option<u64>,
    waiting_behind: u64,
}

impl Asking<'_> {
    /// Adds the tree. Nothing is asked when the locks show that nobody waits.
    pub(super) async fn add_blocking(
        &mut self,
        document: &mut Document,
    ) -> Result<(), CollectError> {
        let Some(locks) = &document.locks else { return Ok(()) };
        let nobody = Blocking {
            waiting: Some(0),
            not_looked_at: Some(0),
            roots: Some(0),
            others: Some(0),
            ..Blocking::default()
        };
        if locks.iter().all(|group| group.waiting.unwrap_or(0) == 0) {
            document.blocking = Some(nobody);
            return Ok(());
        }
        let Some(rows) = self.rows(WAITERS).await? else { return Ok(()) };
        let Some(waiting) = rows.first().and_then(|row| row.count("waiting")) else {
            document.blocking = Some(nobody);
            return Ok(());
        };
        let waiters: Vec<Waiter> = rows.iter().filter_map(waiter).collect();
        let places = tree(&waiters);
        let roots = places.iter().filter(|place| place.depth == Some(0)).count();
        let listed = places.get(..LISTED_MAX).unwrap_or(&places);
        let sessions = self.sessions(listed, &rows, &waiters).await?;
        document.blocking = Some(Blocking {
            waiting: Some(waiting),
            not_looked_at: Some(waiting.saturating_sub(rows.len() as u64)),
            roots: Some(roots as u64),
            others: Some((places.len() - listed.len()) as u64),
            sessions,
        });
        Ok(())
    }

    async fn sessions(
        &mut self,
        places: &[Place],
        waits: &[Row],
        waiters: &[Waiter],
    ) -> Result<Vec<BlockedSession>, CollectError> {
        let pids: Vec<i32> = places.iter().map(|place| place.pid).collect();
        let known = self.collector.ask_main(SESSIONS, &[&pids], self.cost, self.problems).await?;
        let known = known.unwrap_or_default();
        let sessions = places.iter().map(|place| {
            let pid = u64::try_from(place.pid).unwrap_or(0);
            let of_pid = |row: &&Row| row.count("pid") == Some(pid);
            let session = known.iter().find(of_pid).and_then(BlockedSession::read);
            let wait = waits.iter().find(|row| process(row) == Some(place.pid));
            let blockers = waiters.iter().find(|waiter| waiter.pid == place.pid);
            let blockers = blockers.into_iter().flat_map(|waiter| &waiter.blockers);
            BlockedSession {
                pid,
                depth: place.depth,
                waiting_behind: Some(place.waiting_behind),
                blocked_by: blockers
                    .take(BLOCKED_BY_MAX)
                    .filter_map(|pid| u64::try_from(*pid).ok())
                    .collect(),
                waiting_s: wait.and_then(|row| row.amount("waiting_s")),
                lock_type: wait.and_then(|row| row.text("lock_type")),
                lock_mode: wait.and_then(|row| row.text("lock_mode")),
                relation: wait.and_then(|row| row.text("relation")),
                ..session.unwrap_or_default()
            }
        });
        Ok(sessions.collect())
    }
}

fn process(row: &Row) -> Option<i32> {
    row.try_get("pid").ok()
}

/// A row of [`WAITERS`]; absent when it does not wait any more. The leader of a parallel query
/// stands for its workers, and so may be said to wait for itself.
fn waiter(row: &Row) -> Option<Waiter> {
    let pid = process(row)?;
    let blockers: Vec<i32> = row.try_get("blockers").ok()?;
    let blockers: BTreeSet<i32> = blockers.into_iter().filter(|other| *other != pid).collect();
    (!blockers.is_empty()).then_some(Waiter { pid, blockers })
}

/// Everybody who waits or is waited for: the roots first, then by the number of steps to one, last
/// those who wait for each other; among equals first who holds up the most.
fn tree(waiters: &[Waiter]) -> Vec<Place> {
    let mut behind: BTreeMap<i32, BTreeSet<i32>> = BTreeMap::new();
    for waiter in waiters {
        behind.entry(waiter.pid).or_default();
        for blocker in &waiter.blockers {
            behind.entry(*blocker).or_default().insert(waiter.pid);
        }
    }
    let waiting: BTreeSet<i32> = waiters.iter().map(|waiter| waiter.pid).collect();
    let mut depths: BTreeMap<i32, u64> =
        behind.keys().filter(|pid| !waiting.contains(pid)).map(|pid| (*pid, 0)).collect();
    let mut queue: VecDeque<(i32, u64)> =
        depths.iter().map(|(pid, depth)| (*pid, *depth)).collect();
    while let Some((pid, depth)) = queue.pop_front() {
        for next in behind.get(&pid).into_iter().flatten() {
            depths.entry(*next).or_insert_with(|| {
                queue.push_back((*next, depth + 1));
                depth + 1
            });
        }
    }
    let reach: BTreeMap<i32, BTreeSet<i32>> =
        waiting.iter().map(|pid| (*pid, reached(*pid, &behind))).collect();
    let mut places: Vec<Place> = behind
        .iter()
        .map(|(pid, direct)| {
            let further = direct.iter().filter_map(|waiter| reach.get(waiter)).flatten();
            let all: BTreeSet<&i32> = direct.iter().chain(further).filter(|p| *p != pid).collect();
            let depth = depths.get(pid).copied();
            Place { pid: *pid, depth, waiting_behind: all.len() as u64 }
        })
        .collect();
    places.sort_by_key(|place| {
        (place.depth.unwrap_or(u64::MAX), u64::MAX - place.waiting_behind, place.pid)
    });
    places
}

/// Who waits for `pid`, or for somebody who does, and so on.
fn reached(pid: i32, behind: &BTreeMap<i32, BTreeSet<i32>>) -> BTreeSet<i32> {
    let (mut found, mut open) = (BTreeSet::new(), vec![pid]);
    while let Some(pid) = open.pop() {
        for next in behind.get(&pid).into_iter().flatten() {
            if found.insert(*next) {
                open.push(*next);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each place as process, depth and how many wait behind it.
    fn check(waits: &[(i32, &[i32])], expected: &[(i32, Option<u64>, u64)]) {
        let waiters: Vec<Waiter> = waits
            .iter()
            .map(|(pid, blockers)| Waiter {
                pid: *pid,
                blockers: blockers.iter().copied().collect(),
            })
            .collect();
        let places: Vec<_> = tree(&waiters)
            .into_iter()
            .map(|place| (place.pid, place.depth, place.waiting_behind))
            .collect();
        assert_eq!(places, expected);
    }

    #[test]
    fn roots_come_first_and_everybody_behind_them_counts_once() {
        check(&[], &[]);
        check(&[(2, &[1])], &[(1, Some(0), 1), (2, Some(1), 0)]);
        // 4 waits for two of which one waits for the other.
        let chain = [(1, Some(0), 3), (2, Some(1), 2), (4, Some(1), 0), (3, Some(2), 1)];
        check(&[(2, &[1]), (3, &[2]), (4, &[1, 3])], &chain);
        // A prepared transaction, and a root that holds up more.
        let two =
            [(9, Some(0), 2), (0, Some(0), 1), (5, Some(1), 0), (6, Some(1), 0), (7, Some(1), 0)];
        check(&[(5, &[9]), (6, &[9]), (7, &[0])], &two);
    }

    #[test]
    fn those_who_wait_for_each_other_have_no_depth() {
        check(&[(1, &[2]), (2, &[1])], &[(1, None, 1), (2, None, 1)]);
        let beside = [(3, Some(0), 1), (4, Some(1), 0), (1, None, 1), (2, None, 1)];
        check(&[(1, &[2]), (2, &[1]), (4, &[3])], &beside);
    }
}
