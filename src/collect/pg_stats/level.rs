//! Which statistics functions a server has.
//!
//! One that is not there would fail a whole statement, so statements are written for levels, named
//! after the majors that brought the functions. The functions are looked up once per connection: a
//! fork that lacks one gets the statements of the level below.

use std::collections::HashSet;

use crate::collect::postgres::Query;

/// A set of functions; each has those of the levels below.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    #[default]
    V10,
    V12,
    V13,
    V14,
    V16,
    V18,
}

/// What each level adds.
const ADDED: &[(Level, &[&str])] = &[
    (Level::V12, &["pg_stat_get_db_checksum_failures", "pg_stat_get_db_checksum_last_failure"]),
    (Level::V13, &["pg_stat_get_ins_since_vacuum"]),
    (
        Level::V14,
        &[
            "pg_stat_get_db_session_time",
            "pg_stat_get_db_active_time",
            "pg_stat_get_db_idle_in_transaction_time",
            "pg_stat_get_db_sessions",
            "pg_stat_get_db_sessions_abandoned",
            "pg_stat_get_db_sessions_fatal",
            "pg_stat_get_db_sessions_killed",
        ],
    ),
    (
        Level::V16,
        &[
            "pg_stat_get_lastscan",
            "pg_stat_get_tuples_newpage_updated",
            "pg_stat_get_db_conflict_logicalslot",
        ],
    ),
    (
        Level::V18,
        &[
            "pg_stat_get_total_vacuum_time",
            "pg_stat_get_total_autovacuum_time",
            "pg_stat_get_total_analyze_time",
            "pg_stat_get_total_autoanalyze_time",
            "pg_stat_get_db_parallel_workers_to_launch",
            "pg_stat_get_db_parallel_workers_launched",
        ],
    ),
];

/// Those of the functions `$1` that the server has.
pub(super) const FUNCTIONS: Query = Query {
    name: "functions",
    rows_max: 100,
    sql: "SELECT DISTINCT p.proname AS name
  FROM pg_proc p
 WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY ($1::text[]::name[])",
};

impl Level {
    /// The functions to look for.
    pub(super) fn functions() -> Vec<&'static str> {
        ADDED.iter().flat_map(|(_, names)| names.iter().copied()).collect()
    }

    /// The highest one of a server that has these functions.
    pub(super) fn of(functions: &HashSet<String>) -> Self {
        let whole = |names: &&[&str]| names.iter().all(|name| functions.contains(*name));
        let reached = ADDED.iter().take_while(|(_, names)| whole(names)).last();
        reached.map(|(level, _)| *level).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_reached_when_all_below_it_are_whole() {
        let all: HashSet<String> = Level::functions().into_iter().map(str::to_owned).collect();
        assert_eq!(Level::of(&all), Level::V18);
        assert_eq!(Level::of(&HashSet::new()), Level::V10);
        let without = |name: &str| {
            let mut some = all.clone();
            assert!(some.remove(name));
            Level::of(&some)
        };
        assert_eq!(without("pg_stat_get_total_analyze_time"), Level::V16);
        assert_eq!(without("pg_stat_get_db_sessions_killed"), Level::V13);
        assert_eq!(without("pg_stat_get_db_checksum_failures"), Level::V10);
    }
}
