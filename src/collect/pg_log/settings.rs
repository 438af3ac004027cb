//! What the server says about its log.

use std::path::{Path, PathBuf};

use tokio_postgres::Row;

use super::follow::Place;
use crate::collect::postgres::{PgConnection, Query, Session, Timeouts, quoted};
use crate::metric::Status;
use crate::metric::pg_stats::Cost;

const SETTINGS: Query = Query {
    name: "log_settings",
    rows_max: 1,
    sql: "SELECT current_setting('log_line_prefix') AS prefix,
       current_setting('log_timezone') AS timezone,
       current_setting('logging_collector') AS logging_collector,
       current_setting('log_destination') AS log_destination,
       has_function_privilege('pg_catalog.pg_current_logfile(text)', 'EXECUTE') AS asks_for_log,
       session_user::text AS role,
       (SELECT setting FROM pg_settings WHERE name = 'data_directory') AS data_directory",
};

/// Only with the right to call it, which `pg_monitor` has from 17 on: without it the server would
/// write an error into its log, each time.
const CURRENT_FILE: Query =
    Query { name: "log_file", rows_max: 1, sql: "SELECT pg_current_logfile('stderr') AS file" };

/// The settings that reading the log depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) prefix: String,
    pub(super) timezone: String,
    /// Where the log is, or why that is not known, with a hint.
    pub(super) place: Result<Place, String>,
}

/// Asks the server on a connection that is closed again: the answer is good for minutes.
pub(super) async fn ask(connection: &PgConnection) -> Result<Asked, String> {
    let mut cost = Cost::default();
    let mut session = Session::open(connection, &connection.database, &Timeouts::default())
        .await
        .map_err(|failure| failure.to_connect(connection))?;
    let rows = session.rows(SETTINGS, &[], &mut cost).await.map_err(|failure| failure.message)?;
    let row = rows.first().ok_or("the server gave no settings")?;
    let may_ask = row.try_get("asks_for_log").unwrap_or(true);
    let file = if may_ask {
        let rows = session.rows(CURRENT_FILE, &[], &mut cost).await;
        let rows = rows.map_err(|failure| failure.message)?;
        Ok(rows.first().and_then(|row| text(row, "file")))
    } else {
        Err(Status::Permission)
    };
    Ok(Asked {
        prefix: text(row, "prefix").unwrap_or_default(),
        timezone: text(row, "timezone").unwrap_or_default(),
        place: place(row, file, &connection.database),
    })
}

fn place(row: &Row, file: Result<Option<String>, Status>, database: &str) -> Result<Place, String> {
    let setting = |name: &str| text(row, name).unwrap_or_default();
    let log_destination = setting("log_destination");
    if !log_destination.split(',').any(|destination| destination.trim() == "stderr") {
        return Err(format!(
            "log_destination is {log_destination:?}; hint: only the stderr format is read"
        ));
    }
    if setting("logging_collector") != "on" {
        return Err("logging_collector is off, so the server does not know its log file; \
                    hint: name it in pg_log.path"
            .to_owned());
    }
    let role = quoted(&setting("role"));
    let file = match file {
        Ok(Some(file)) => PathBuf::from(file),
        Ok(None) => return Err("the server has no log file yet".to_owned()),
        Err(_) => {
            return Err(format!(
                "may not ask for the current log file; hint: in the database {database:?} GRANT \
                 EXECUTE ON FUNCTION pg_current_logfile(text) TO {role}, or name the log in \
                 pg_log.path"
            ));
        }
    };
    let file = match text(row, "data_directory") {
        Some(data) => Path::new(&data).join(file),
        None if file.is_absolute() => file,
        None => {
            return Err(format!(
                "may not ask for data_directory; hint: GRANT pg_monitor TO {role}, or name the log \
                 in pg_log.path"
            ));
        }
    };
    let directory = file.parent().unwrap_or(Path::new("/"));
    Ok(Place::Directory(directory.to_owned()))
}

fn text(row: &Row, column: &str) -> Option<String> {
    row.try_get::<_, Option<String>>(column).ok().flatten()
}
