//! What a PostgreSQL server allows the agent's role, and which of its settings the numbers need.

use std::collections::BTreeMap;

use tokio_postgres::Row;

use super::CollectError;
use super::postgres::{PgConnection, Query, Session, Timeouts};
use crate::metric::pg_stats::Cost;

const ROLE: Query = Query {
    name: "check_role",
    rows_max: 1,
    sql: "SELECT current_setting('server_version') AS version,
       current_setting('server_version_num')::int8 AS version_num,
       pg_is_in_recovery() AS in_recovery,
       session_user::text AS name,
       EXISTS (SELECT FROM pg_roles r WHERE r.rolname = session_user AND r.rolsuper) AS superuser,
       EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'pg_read_all_stats'
                  AND pg_has_role(r.oid, 'USAGE')) AS reads_stats,
       EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'pg_read_all_settings'
                  AND pg_has_role(r.oid, 'USAGE')) AS reads_settings,
       has_function_privilege('pg_catalog.pg_current_logfile(text)', 'EXECUTE') AS asks_for_log,
       current_setting('max_connections')::int8
           - current_setting('superuser_reserved_connections')::int8 AS connections_max,
       (SELECT coalesce(sum(pg_stat_get_db_numbackends(d.oid)), 0)::int8
          FROM pg_database d) AS connections",
};

const SETTINGS: Query = Query {
    name: "check_settings",
    rows_max: 50,
    sql: "SELECT s.name, s.setting FROM pg_settings s
 WHERE s.name IN ('track_activities', 'track_counts', 'track_io_timing', 'track_functions',
                  'shared_preload_libraries', 'logging_collector', 'log_lock_waits')
 ORDER BY s.name",
};

const DATABASES: Query = Query {
    name: "check_databases",
    rows_max: 20_000,
    sql: "SELECT d.datname AS name, d.datallowconn AS allows,
       has_database_privilege(d.oid, 'CONNECT') AS may_connect
  FROM pg_database d
 WHERE d.datname = ANY ($1::text[])
 ORDER BY d.datname",
};

/// The server, and what the role may do on it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an answer of the server")]
pub struct Role {
    /// The server's version, as it writes it.
    pub version: String,
    /// The same as a number, such as 150003.
    pub version_num: i64,
    /// The server replays another's log.
    pub in_recovery: bool,
    /// The role that the agent logs in as.
    pub name: String,
    /// It may do everything.
    pub superuser: bool,
    /// It has the rights of `pg_read_all_stats`.
    pub reads_stats: bool,
    /// It has the rights of `pg_read_all_settings`.
    pub reads_settings: bool,
    /// It may call `pg_current_logfile`.
    pub asks_for_log: bool,
    /// Connections that the server takes, without those that it keeps for superusers.
    pub connections_max: i64,
    /// Connections that there are.
    pub connections: i64,
}

/// A database as the role sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// It takes connections at all.
    pub allows: bool,
    /// The role may connect.
    pub may_connect: bool,
}

/// What one connection has said.
#[derive(Debug, Clone)]
pub struct Server {
    /// The role, on this server.
    pub role: Role,
    /// Settings by name; those that the role may not see are left out.
    pub settings: BTreeMap<String, String>,
    /// Those of the databases asked for that there are.
    pub databases: BTreeMap<String, Access>,
}

/// Asks on a connection that is closed again. Errors: no connection, or a failed statement, with a
/// hint.
pub async fn ask(
    connection: &PgConnection,
    timeouts: &Timeouts,
    databases: &[String],
) -> Result<Server, CollectError> {
    let mut session = Session::open(connection, &connection.database, timeouts)
        .await
        .map_err(|failure| CollectError::new(failure.to_connect(connection)))?;
    let mut cost = Cost::default();
    let failed = |query: Query| {
        move |failure: super::postgres::Failure| {
            CollectError::new(format!("statement {}: {}", query.name, failure.message))
        }
    };
    let rows = session.rows(ROLE, &[], &mut cost).await.map_err(failed(ROLE))?;
    let role = rows.first().and_then(|row| role(row).ok());
    let role = role.ok_or_else(|| CollectError::new("the server said nothing of the role"))?;
    let rows = session.rows(SETTINGS, &[], &mut cost).await.map_err(failed(SETTINGS))?;
    let setting = |row: &Row| Some((row.try_get("name").ok()?, row.try_get("setting").ok()?));
    let settings = rows.iter().filter_map(setting).collect();
    let rows = session.rows(DATABASES, &[&databases], &mut cost).await;
    let rows = rows.map_err(failed(DATABASES))?;
    let access = |row: &Row| {
        let (allows, may_connect) = (row.try_get("allows").ok()?, row.try_get("may_connect").ok()?);
        Some((row.try_get("name").ok()?, Access { allows, may_connect }))
    };
    Ok(Server { role, settings, databases: rows.iter().filter_map(access).collect() })
}

fn role(row: &Row) -> Result<Role, tokio_postgres::Error> {
    Ok(Role {
        version: row.try_get("version")?,
        version_num: row.try_get("version_num")?,
        in_recovery: row.try_get("in_recovery")?,
        name: row.try_get("name")?,
        superuser: row.try_get("superuser")?,
        reads_stats: row.try_get("reads_stats")?,
        reads_settings: row.try_get("reads_settings")?,
        asks_for_log: row.try_get("asks_for_log")?,
        connections_max: row.try_get("connections_max")?,
        connections: row.try_get("connections")?,
    })
}
