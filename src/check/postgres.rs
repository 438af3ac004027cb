//! PostgreSQL: its statistics and its log.

use std::collections::BTreeMap;

use super::{Finding, Verdict, collected};
use crate::collect::pg_check::{self, Role, Server};
use crate::collect::pg_log::{PgLogCollector, PgLogConfig, StartAt};
use crate::collect::pg_stats::{PgStatsCollector, PgStatsConfig};
use crate::collect::postgres::{Timeouts, quoted};
use crate::config::{Collectors, Timing};
use crate::metric::Status;
use crate::metric::catalogue::DOCUMENTS;
use crate::metric::declare::Field;
use crate::metric::pg_stats::PgStats;

const STATS: &str = "pg_stats";
const LOG: &str = "pg_log";
/// With fewer free connections the agent may find none: it needs two.
const FREE_MIN: i64 = 3;

/// The statistics, then the log, as far as they are enabled.
pub(super) async fn check(enabled: &Collectors) -> Vec<Finding> {
    let mut findings = Vec::new();
    let of = |instance: &str, finding| Finding { instance: Some(instance.to_owned()), ..finding };
    for (timing, config) in each(enabled.pg_stats.as_ref()) {
        let named: Vec<_> = named(config).cloned().collect();
        let server = pg_check::ask(&config.connection, &config.timeouts, &named).await;
        let found = match &server {
            Ok(server) => statistics(timing, config, server).await,
            Err(error) => vec![Finding::failed(STATS, "connection", error)],
        };
        findings.extend(found.into_iter().map(|finding| of(&config.instance, finding)));
    }
    for (timing, config) in each(enabled.pg_log.as_ref()) {
        let server = pg_check::ask(&config.connection, &Timeouts::default(), &[]).await;
        let found = log(timing, config, server.as_ref().ok()).await;
        findings.push(of(&config.instance, found));
    }
    findings
}

/// The configuration for each server.
fn each<T>(enabled: Option<&(Timing, Vec<T>)>) -> impl Iterator<Item = (Timing, &T)> {
    enabled.into_iter().flat_map(|(timing, all)| all.iter().map(|one| (*timing, one)))
}

/// The databases that are named, not found by a pattern.
fn named(config: &PgStatsConfig) -> impl Iterator<Item = &String> {
    config.databases.iter().filter(|name| !name.starts_with('!') && !name.contains(['*', '?']))
}

async fn statistics(timing: Timing, config: &PgStatsConfig, server: &Server) -> Vec<Finding> {
    let mut findings = vec![connection(server), rights(&server.role)];
    findings.extend(version(&server.role));
    let mut collector = PgStatsCollector::new(config.clone());
    match collected(&mut collector, timing).await {
        Ok(collected) => {
            let documents = collected.metrics.into_iter();
            let read = |value| serde_json::from_value::<PgStats>(value).ok();
            let documents = documents.filter_map(read).map(|it| (it.database.clone(), it));
            findings.extend(databases(config, server, &documents.collect()));
        }
        Err(error) => findings.push(Finding::failed(STATS, "collection", &error)),
    }
    findings.extend(settings(&server.settings));
    findings
}

fn connection(server: &Server) -> Finding {
    let Role { version, in_recovery, connections_max, connections, .. } = &server.role;
    let kind = if *in_recovery { "a standby" } else { "a primary" };
    let says = format!(
        "PostgreSQL {version}, {kind}, {connections} of {connections_max} connections used"
    );
    if connections_max - connections >= FREE_MIN {
        return Finding::ok(STATS, "connection", says);
    }
    let hint = "raise max_connections, or put a pooler before the applications: the agent needs \
                two connections";
    Finding::new(STATS, "connection", Verdict::Limited, says).hint(hint)
}

fn rights(role: &Role) -> Finding {
    let (name, of) = (&role.name, "role");
    if role.superuser {
        let says = format!("{name:?} is a superuser; a role of its own needs pg_monitor alone");
        let sql = [
            "CREATE ROLE pganalytics LOGIN;".to_owned(),
            "GRANT pg_monitor TO pganalytics;".to_owned(),
        ];
        return Finding::new(STATS, of, Verdict::Could, says).sql(sql);
    }
    if role.reads_stats && role.reads_settings {
        return Finding::ok(STATS, of, format!("{name:?} has what pg_monitor gives"));
    }
    let hidden = match (role.reads_stats, role.reads_settings) {
        (true, _) => "settings such as data_directory",
        (_, true) => "what other roles' sessions do, and the sizes of databases",
        _ => "what other roles' sessions do, the sizes of databases, and settings",
    };
    let says = format!("{name:?} may not see {hidden}");
    let grant = format!("GRANT pg_monitor TO {};", quoted(name));
    Finding::new(STATS, of, Verdict::Limited, says).sql([grant])
}

/// What a server of this version does not have.
fn version(role: &Role) -> Option<Finding> {
    let major = u16::try_from(role.version_num / 10_000).unwrap_or(u16::MAX);
    let (oldest, newest) = Field::MAJORS;
    if major < oldest {
        let says = format!("PostgreSQL {major} is older than {oldest}, the oldest that is read");
        return Some(Finding::new(STATS, "version", Verdict::Limited, says));
    }
    if major > newest {
        let says = format!("PostgreSQL {major} is newer than {newest}, the newest that is known");
        return Some(Finding::new(STATS, "version", Verdict::Could, says));
    }
    let document = DOCUMENTS.iter().find(|document| document.name == STATS)?;
    let mut later = BTreeMap::<u16, usize>::new();
    for entry in document.entries().iter().filter(|entry| entry.field.majors.0 > major) {
        *later.entry(entry.field.majors.0).or_default() += 1;
    }
    let later: Vec<_> =
        later.iter().map(|(major, count)| format!("{count} from {major}")).collect();
    let says = format!("fields that a later PostgreSQL has: {} on", later.join(" on, "));
    let finding = Finding::ok(STATS, "version", says).hint("`agent metrics pg_stats` lists them");
    (!later.is_empty()).then_some(finding)
}

fn databases(
    config: &PgStatsConfig,
    server: &Server,
    collected: &BTreeMap<String, PgStats>,
) -> Vec<Finding> {
    let mut names = vec![&config.connection.database];
    for name in named(config).chain(collected.keys()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.into_iter().map(|name| database(name, server, collected.get(name))).collect()
}

fn database(name: &str, server: &Server, document: Option<&PgStats>) -> Finding {
    let of = format!("database {name:?}");
    let role = quoted(&server.role.name);
    let known = server.databases.get(name);
    if known.is_some_and(|known| !known.allows) {
        let says = "takes no connections (datallowconn)";
        return Finding::new(STATS, &of, Verdict::Failed, says).hint("leave it out of databases");
    }
    if known.is_some_and(|known| !known.may_connect) {
        let grant = format!("GRANT CONNECT ON DATABASE {} TO {role};", quoted(name));
        return Finding::new(STATS, &of, Verdict::Failed, "may not connect").sql([grant]);
    }
    let Some(document) = document else {
        let hint = "is the name in postgres.databases right?";
        return Finding::new(STATS, &of, Verdict::Failed, "is not there").hint(hint);
    };
    let count = |rows: Option<usize>, what: &str| rows.map(|rows| format!("{rows} {what}"));
    let rows = [
        count(document.tables.as_ref().map(Vec::len), "tables"),
        count(document.indexes.as_ref().map(Vec::len), "indexes"),
    ];
    let rows: Vec<_> = rows.into_iter().flatten().collect();
    if document.problems.is_empty() {
        return Finding::ok(STATS, &of, format!("works: {}", rows.join(", ")));
    }
    let problem = |it: &crate::metric::pg_stats::Problem| {
        let state = it.sqlstate.as_ref().map(|state| format!(", SQLSTATE {state}"));
        format!("{}: {}{}", it.query, word(it.status), state.unwrap_or_default())
    };
    let says: Vec<_> = document.problems.iter().map(problem).collect();
    Finding::new(STATS, &of, Verdict::Limited, says.join("; "))
}

/// Why a statement gave nothing.
fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "works",
        Status::UnsupportedVersion => "this server does not have it",
        Status::Permission => "no right to it",
        Status::Locked => "locked by others; it is tried again",
        Status::Timeout => "took too long",
        Status::Recovery => "not during recovery",
        Status::Disabled => "switched off",
        Status::Error => "failed; the server's log says more",
    }
}

/// A setting that the numbers need, or would gain from.
struct Wanted {
    name: &'static str,
    value: &'static str,
    verdict: Verdict,
    /// What is missing without it.
    without: &'static str,
    /// What it costs.
    cost: &'static str,
}

const WANTED: [Wanted; 5] = [
    Wanted {
        name: "track_counts",
        value: "on",
        verdict: Verdict::Limited,
        without: "no counters of tables and indexes, and no autovacuum",
        cost: "it is on unless somebody switched it off",
    },
    Wanted {
        name: "track_activities",
        value: "on",
        verdict: Verdict::Limited,
        without: "nothing of what sessions do and wait for",
        cost: "it is on unless somebody switched it off",
    },
    Wanted {
        name: "track_io_timing",
        value: "on",
        verdict: Verdict::Could,
        without: "no times of reads and writes",
        cost: "two looks at the clock for a block that is not in memory: `pg_test_timing` on the \
               server shows what that takes; below 100 ns it is not noticed",
    },
    Wanted {
        name: "track_functions",
        value: "pl",
        verdict: Verdict::Could,
        without: "no calls and times of functions",
        cost: "a little for each call of a function that is not SQL or C",
    },
    Wanted {
        name: "log_lock_waits",
        value: "on",
        verdict: Verdict::Could,
        without: "long waits for locks are not in the log",
        cost: "a line for each wait longer than deadlock_timeout",
    },
];

fn settings(present: &BTreeMap<String, String>) -> Vec<Finding> {
    let is_missing = |wanted: &&Wanted| {
        present.get(wanted.name).is_some_and(|value| value == "off" || value == "none")
    };
    let found = |wanted: &Wanted| {
        let Wanted { name, value, verdict, without, cost } = wanted;
        let of = format!("setting {name}");
        let sql =
            [format!("ALTER SYSTEM SET {name} = {value};"), "SELECT pg_reload_conf();".into()];
        Finding::new(STATS, &of, *verdict, format!("is {}: {without}", present[*name]))
            .hint(format!("cost: {cost}"))
            .sql(sql)
    };
    WANTED.iter().filter(is_missing).map(found).chain(preloaded(present)).collect()
}

fn preloaded(present: &BTreeMap<String, String>) -> Option<Finding> {
    const LIBRARY: &str = "pg_stat_statements";
    let libraries = present.get("shared_preload_libraries")?;
    let mut names: Vec<_> = libraries.split(',').map(str::trim).collect();
    if names.contains(&LIBRARY) {
        return None;
    }
    names.retain(|name| !name.is_empty());
    names.push(LIBRARY);
    let of = "setting shared_preload_libraries";
    let says = format!("is {libraries:?}: nothing of single statements");
    let hint = "cost: a restart of the server, some MB of memory, and a few per cent of the CPU \
                where statements are many and short; after the restart: CREATE EXTENSION";
    let sql = [
        format!("ALTER SYSTEM SET shared_preload_libraries = '{}';", names.join("', '")),
        format!("CREATE EXTENSION {LIBRARY};"),
    ];
    Some(Finding::new(STATS, of, Verdict::Could, says).hint(hint).sql(sql))
}

async fn log(timing: Timing, config: &PgLogConfig, server: Option<&Server>) -> Finding {
    let from_now = PgLogConfig { start_at: StartAt::End, ..config.clone() };
    let mut collector = PgLogCollector::new(from_now, None);
    let done = collected(&mut collector, timing).await;
    let place = collector.place().unwrap_or_else(|| "where the server says".to_owned());
    let Err(error) = done else {
        return Finding::ok(LOG, "log", format!("can be read: {place}"));
    };
    let finding = Finding::failed(LOG, "log", &error);
    let Some(role) = server.map(|server| &server.role).filter(|_| config.path.is_none()) else {
        return finding;
    };
    let (name, database) = (quoted(&role.name), &config.connection.database);
    let logfile = format!("GRANT EXECUTE ON FUNCTION pg_current_logfile(text) TO {name};");
    let monitor = format!("GRANT pg_monitor TO {name};");
    let missing = [(!role.asks_for_log, logfile), (!role.reads_settings, monitor)];
    let hint = format!("in the database {database:?} run this, or name the log in pg_log.path");
    let finding =
        if missing.iter().any(|(missing, _)| *missing) { finding.hint(hint) } else { finding };
    finding.sql(missing.into_iter().filter(|(missing, _)| *missing).map(|(_, sql)| sql))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role() -> Role {
        Role {
            version: "15.3".to_owned(),
            version_num: 150_003,
            in_recovery: false,
            name: "o\"brien".to_owned(),
            superuser: false,
            reads_stats: true,
            reads_settings: true,
            asks_for_log: true,
            connections_max: 97,
            connections: 3,
        }
    }

    #[test]
    fn what_a_role_lacks_is_said_with_the_grant() {
        assert_eq!(rights(&role()).verdict, Verdict::Ok);
        for (reads_stats, reads_settings) in [(false, true), (true, false), (false, false)] {
            let lacking = rights(&Role { reads_stats, reads_settings, ..role() });
            assert_eq!(lacking.verdict, Verdict::Limited);
            assert_eq!(lacking.sql, ["GRANT pg_monitor TO \"o\"\"brien\";"]);
        }
        assert_eq!(rights(&Role { superuser: true, ..role() }).verdict, Verdict::Could);
    }

    #[test]
    fn settings_that_are_off_are_said_with_what_they_cost() {
        let present = |pairs: &[(&str, &str)]| {
            let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            settings(&pairs.iter().map(own).collect())
        };
        let fine = [("track_counts", "on"), ("shared_preload_libraries", "x, pg_stat_statements")];
        assert_eq!(present(&fine), []);
        assert_eq!(present(&[]), [], "what the role may not see is not judged");
        let found =
            present(&[("track_counts", "off"), ("shared_preload_libraries", "auto_explain")]);
        let verdicts: Vec<_> = found.iter().map(|finding| finding.verdict).collect();
        assert_eq!(verdicts, [Verdict::Limited, Verdict::Could]);
        assert_eq!(
            found[1].sql[0],
            "ALTER SYSTEM SET shared_preload_libraries = 'auto_explain', 'pg_stat_statements';"
        );
        assert!(found.iter().all(|finding| finding.hint.is_some()));
    }

    #[test]
    fn what_a_version_does_not_have_is_said() {
        let says = |major: i64| {
            version(&Role { version_num: major * 10_000, ..role() }).map(|finding| finding.says)
        };
        assert!(says(12).is_some_and(|says| says.contains(" from 14 on, ")), "{:?}", says(12));
        assert!(says(9).is_some_and(|says| says.contains("older than 10")));
        assert!(says(99).is_some_and(|says| says.contains("newer than")));
    }
}
