//! The server's processes and their locks.

use tokio_postgres::Row;

use super::{Asking, CollectError, Document, Query};
use crate::metric::declare::{Columns, Declared};
use crate::metric::pg_activity::{Activity, ActivityGroup, LongSession, Wait};

/// The totals stand in every row; each row has one part of the rest, which `part` names, and there
/// is one without when there is nothing else. All of it is of one moment. Of others' sessions a
/// role without rights sees no more than who they are and where.
const ACTIVITY: Query = Query {
    name: "activity",
    sql: "WITH every AS (
    SELECT v.pid, v.backend_type, v.datname, v.usename, v.application_name, v.state,
           v.wait_event_type, v.wait_event, v.xact_start, v.query_start, v.state_change,
           v.backend_type = 'client backend'
               OR v.backend_type IS NULL AND v.datname IS NOT NULL AND v.usename IS NOT NULL
               AS is_client,
           v.pid = pg_backend_pid()
               OR coalesce(v.usename = current_user
                           AND v.application_name = current_setting('application_name'), false)
               AS is_own
      FROM pg_stat_activity v),
a AS (SELECT * FROM every e WHERE NOT e.is_own),
t AS (
    SELECT count(*) AS total,
           count(*) FILTER (WHERE a.is_client) AS clients,
           count(*) FILTER (WHERE a.is_client AND a.state IN ('active', 'fastpath function call'))
               AS active,
           count(*) FILTER (WHERE a.is_client AND a.state = 'idle') AS idle,
           count(*) FILTER (WHERE a.is_client AND a.state LIKE 'idle in transaction%')
               AS idle_in_transaction,
           count(*) FILTER (WHERE a.is_client AND a.state = 'active'
                              AND a.wait_event_type = 'Lock') AS waiting_for_lock,
           count(*) FILTER (WHERE a.is_client AND a.state IS NULL) AS hidden,
           extract(epoch FROM clock_timestamp() - min(a.xact_start) FILTER (WHERE a.is_client))
               ::float8 AS longest_transaction_s,
           extract(epoch FROM clock_timestamp() - min(a.query_start)
               FILTER (WHERE a.is_client AND a.state = 'active'))::float8 AS longest_query_s,
           extract(epoch FROM clock_timestamp() - min(a.state_change)
               FILTER (WHERE a.is_client AND a.state LIKE 'idle in transaction%'))::float8
               AS longest_idle_in_transaction_s
      FROM a),
c AS (
    SELECT current_setting('max_connections')::int8
               - current_setting('superuser_reserved_connections')::int8
               - coalesce(current_setting('reserved_connections', true)::int8, 0)
               AS connections_max,
           (SELECT count(*) FROM every e
             WHERE e.is_client OR e.backend_type = 'walsender'
                   AND current_setting('server_version_num')::int < 120000)
               AS connections_used),
g AS (
    (SELECT 'group' AS part, NULL::text AS kind, NULL::int8 AS pid, a.backend_type,
            a.datname AS database, a.usename AS user, NULL::text AS application, a.state,
            a.wait_event_type, a.wait_event, count(*) AS processes, NULL::float8 AS lasted_s
       FROM a
      GROUP BY a.backend_type, a.datname, a.usename, a.state, a.wait_event_type, a.wait_event
      ORDER BY count(*) DESC, a.backend_type, a.datname, a.usename, a.state
      LIMIT 100)
    UNION ALL
    (SELECT 'state', NULL, NULL, NULL, NULL, NULL, NULL, a.state, NULL, NULL, count(*), NULL
       FROM a WHERE a.is_client AND a.state IS NOT NULL
      GROUP BY a.state ORDER BY a.state LIMIT 20)
    UNION ALL
    (SELECT 'backend_type', NULL, NULL, a.backend_type, NULL, NULL, NULL, NULL, NULL, NULL,
            count(*), NULL
       FROM a WHERE a.backend_type IS NOT NULL
      GROUP BY a.backend_type ORDER BY count(*) DESC, a.backend_type LIMIT 50)
    UNION ALL
    (SELECT 'wait', NULL, NULL, NULL, NULL, NULL, NULL, NULL, a.wait_event_type, a.wait_event,
            count(*), NULL
       FROM a WHERE a.wait_event_type IS NOT NULL
      GROUP BY a.wait_event_type, a.wait_event
      ORDER BY count(*) DESC, a.wait_event_type, a.wait_event LIMIT 50)
    UNION ALL
    (SELECT 'longest', 'transaction', a.pid, NULL, a.datname, a.usename, a.application_name,
            a.state, a.wait_event_type, a.wait_event, NULL,
            extract(epoch FROM clock_timestamp() - a.xact_start)
       FROM a WHERE a.is_client AND a.xact_start IS NOT NULL
      ORDER BY a.xact_start, a.pid LIMIT 1)
    UNION ALL
    (SELECT 'longest', 'statement', a.pid, NULL, a.datname, a.usename, a.application_name,
            a.state, a.wait_event_type, a.wait_event, NULL,
            extract(epoch FROM clock_timestamp() - a.query_start)
       FROM a WHERE a.is_client AND a.state = 'active' AND a.query_start IS NOT NULL
      ORDER BY a.query_start, a.pid LIMIT 1)
    UNION ALL
    (SELECT 'longest', 'idle_in_transaction', a.pid, NULL, a.datname, a.usename,
            a.application_name, a.state, a.wait_event_type, a.wait_event, NULL,
            extract(epoch FROM clock_timestamp() - a.state_change)
       FROM a WHERE a.is_client AND a.state LIKE 'idle in transaction%'
      ORDER BY a.state_change, a.pid LIMIT 1))
SELECT t.*, c.*, g.*,
       least(100, round(100.0 * c.connections_used / nullif(c.connections_max, 0), 2))::float8
           AS connections_used_percent
  FROM t CROSS JOIN c LEFT JOIN g ON true",
    rows_max: 223,
};

const LOCKS: Query = Query {
    name: "locks",
    sql: "SELECT d.datname AS database, l.mode,
       count(*) FILTER (WHERE l.granted) AS granted,
       count(*) FILTER (WHERE NOT l.granted) AS waiting
  FROM pg_locks l LEFT JOIN pg_database d ON d.oid = l.database
 WHERE l.pid IS DISTINCT FROM pg_backend_pid()
 GROUP BY d.datname, l.mode
 ORDER BY 4 DESC, 3 DESC, 1, 2
 LIMIT 100",
    rows_max: 100,
};

impl Asking<'_> {
    pub(super) async fn add_activity(
        &mut self,
        document: &mut Document,
    ) -> Result<(), CollectError> {
        document.activity = self.rows(ACTIVITY).await?.as_deref().and_then(activity);
        document.locks = self.list(LOCKS).await?;
        Ok(())
    }
}

/// Rows of [`ACTIVITY`].
fn activity(rows: &[Row]) -> Option<Activity> {
    let first = rows.first()?;
    let of = |part: &'static str| {
        rows.iter().filter(move |row| row.text("part").as_deref() == Some(part))
    };
    let groups: Vec<ActivityGroup> = of("group").filter_map(ActivityGroup::read).collect();
    let listed: u64 = groups.iter().map(|group| group.processes).sum();
    let others = first.count("total").map(|total| total.saturating_sub(listed));
    let counts = |part: &'static str| {
        of(part).filter_map(|row| Some((row.text(part)?, row.count("processes")?))).collect()
    };
    Some(Activity {
        longest: of("longest").filter_map(LongSession::read).collect(),
        by_state: counts("state"),
        by_backend_type: counts("backend_type"),
        waits: of("wait").filter_map(Wait::read).collect(),
        groups,
        others,
        ..Activity::read(first)?
    })
}
