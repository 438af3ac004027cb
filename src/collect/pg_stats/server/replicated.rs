//! Prepared transactions, and subscriptions with what went wrong with them.

use std::collections::HashMap;

use super::json_row::{JsonRow, Renamed, renamed};
use super::{Asking, CollectError, Document, Query, Views};
use crate::metric::declare::{Columns, Declared};
use crate::metric::pg_server::{Subscription, SubscriptionCounts};

/// The view with the errors of subscriptions, from PostgreSQL 15 on.
pub(super) const COUNTS_VIEW: &str = "pg_stat_subscription_stats";

const PREPARED: Query = Query {
    name: "prepared",
    sql: "SELECT count(*) AS transactions,
       extract(epoch FROM clock_timestamp() - min(p.prepared))::float8 AS oldest_s,
       max(age(p.transaction))::int8 AS oldest_age
  FROM pg_prepared_xacts p",
    rows_max: 1,
};

/// A subscription has a row for each of its workers; its own is about no table and has no leader.
/// What anybody may read of `pg_subscription` has no OID, so it is found by name.
const SUBSCRIPTIONS: Query = Query {
    name: "subscriptions",
    sql: "WITH s AS (
    SELECT v.subid, v.subname, v.pid, v.relid, v.latest_end_time, v.last_msg_receipt_time,
           CASE WHEN v.received_lsn IS NOT NULL AND v.latest_end_lsn IS NOT NULL
                THEN greatest(pg_wal_lsn_diff(v.received_lsn, v.latest_end_lsn), 0) END AS behind,
           v.relid IS NULL AND to_jsonb(v) ->> 'leader_pid' IS NULL AS is_main
      FROM pg_stat_subscription v)
SELECT s.subid::int8 AS id, s.subname AS name,
       (SELECT min(d.datname::text) FROM pg_subscription u JOIN pg_database d ON d.oid = u.subdbid
         WHERE u.subname = s.subname HAVING count(*) = 1) AS database,
       CASE WHEN max(s.pid) FILTER (WHERE s.is_main) IS NOT NULL THEN 'running'
            WHEN (SELECT bool_or(u.subenabled) FROM pg_subscription u
                   WHERE u.subname = s.subname) THEN 'stopped'
            ELSE 'disabled' END AS state,
       count(s.pid) FILTER (WHERE s.relid IS NOT NULL) AS syncing,
       (max(s.behind) FILTER (WHERE s.is_main))::int8 AS behind_bytes,
       CASE WHEN max(s.behind) FILTER (WHERE s.is_main) = 0 THEN 0
            ELSE extract(epoch FROM clock_timestamp()
                     - max(s.latest_end_time) FILTER (WHERE s.is_main)) END::float8 AS behind_s,
       max(s.last_msg_receipt_time) FILTER (WHERE s.is_main) AS last_message_at
  FROM s
 GROUP BY s.subid, s.subname
 ORDER BY s.subname, s.subid
 LIMIT 100",
    rows_max: 100,
};

const COUNTS: Query = Query {
    name: "subscription_stats",
    sql: "SELECT v.subid::int8 AS id, to_json(v) AS row
  FROM pg_stat_subscription_stats v
 ORDER BY v.subname, v.subid
 LIMIT 100",
    rows_max: 100,
};

const COLUMNS: &[Renamed] = &[
    renamed("apply_errors", &["apply_error_count"]),
    renamed("sync_errors", &["sync_error_count"]),
    renamed("conflicts_insert_exists", &["confl_insert_exists"]),
    renamed("conflicts_update_origin_differs", &["confl_update_origin_differs"]),
    renamed("conflicts_update_exists", &["confl_update_exists"]),
    renamed("conflicts_update_missing", &["confl_update_missing"]),
    renamed("conflicts_delete_origin_differs", &["confl_delete_origin_differs"]),
    renamed("conflicts_delete_missing", &["confl_delete_missing"]),
    renamed("conflicts_multiple_unique", &["confl_multiple_unique_conflicts"]),
];

impl Asking<'_> {
    pub(super) async fn add_prepared(
        &mut self,
        document: &mut Document,
    ) -> Result<(), CollectError> {
        document.prepared = self.one(PREPARED).await?;
        Ok(())
    }

    pub(super) async fn add_subscriptions(
        &mut self,
        document: &mut Document,
        views: &Views,
    ) -> Result<(), CollectError> {
        let Some(rows) = self.rows(SUBSCRIPTIONS).await? else { return Ok(()) };
        let mut counts: HashMap<u64, SubscriptionCounts> = HashMap::new();
        if !rows.is_empty() && views.contains(COUNTS_VIEW) {
            let known = self.rows(COUNTS).await?.unwrap_or_default();
            counts.extend(
                known
                    .iter()
                    .filter_map(|row| Some((row.count("id")?, JsonRow::of(row)?.read(COLUMNS)?))),
            );
        }
        let subscriptions = rows.iter().filter_map(|row| {
            let counts = row.count("id").and_then(|id| counts.remove(&id)).unwrap_or_default();
            Some(Subscription { counts, ..Subscription::read(row)? })
        });
        document.subscriptions = Some(subscriptions.collect());
        Ok(())
    }
}
