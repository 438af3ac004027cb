//! `pg_log`: servers that are made to write a secret into every place of their logs, in other
//! languages than English, and in English on every major.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use pganalytics::clock;
use pganalytics::collect::Collector as _;
use pganalytics::collect::pg_log::{PgLogCollector, PgLogConfig, StartAt};
use pganalytics::collect::postgres::PgConnection;
use serde_json::Value;
use tokio_postgres::error::{DbError, Severity};

use crate::support::postgres::{Postgres, majors};
use crate::support::until;

const SECRET: &str = "geheim7";
/// `C` is English; the word that each has for an error.
const LANGUAGES: [(&str, &str); 6] = [
    ("C", "ERROR:"),
    ("de", "FEHLER:"),
    ("es", "ERROR:"),
    ("fr", "ERREUR:"),
    ("ja", "ERROR:"),
    ("ru", "\u{41e}\u{428}\u{418}\u{411}\u{41a}\u{410}:"),
];

/// Nothing in the background, and everything of connections.
const SETTINGS: [(&str, &str); 6] = [
    ("autovacuum", "off"),
    ("log_connections", "on"),
    ("log_disconnections", "on"),
    ("log_lock_waits", "on"),
    ("deadlock_timeout", "10ms"),
    ("max_prepared_transactions", "2"),
];

/// What a session has logged of itself. A setting that a major does not know is left out.
const TELL: [&str; 19] = [
    "LOAD 'auto_explain'",
    "SET auto_explain.log_min_duration = 0",
    "SET auto_explain.log_analyze = on",
    "SET auto_explain.log_verbose = on",
    "SET auto_explain.log_settings = on",
    "SET auto_explain.log_triggers = on",
    "SET auto_explain.log_nested_statements = on",
    "SET log_statement = 'all'",
    "SET log_min_duration_statement = 0",
    "SET log_error_verbosity = 'verbose'",
    "SET log_min_messages = 'debug2'",
    "SET log_parameter_max_length_on_error = -1",
    "SET debug_print_parse = on",
    "SET debug_print_rewritten = on",
    "SET debug_print_plan = on",
    "SET log_parser_stats = on",
    "SET log_temp_files = 0",
    "SET log_replication_commands = on",
    "SET lock_timeout = '100ms'",
];

/// Types whose input functions say what they could not read.
const TYPES: &str = "int2 int4 int8 float4 float8 numeric bool oid money date time timetz timestamp
    timestamptz interval uuid inet cidr macaddr macaddr8 bit(8) bytea json jsonb xml point box path
    polygon circle lseg line int4range tsrange daterange tsquery pg_lsn txid_snapshot regclass
    regproc regprocedure regoper regoperator regtype regrole regnamespace regconfig regdictionary
    int[] tid xid cid jsonpath xid8 pg_snapshot int4multirange mood pos hstore ltree lquery cube seg
    isbn query_int lo";

const EXTENSIONS: &str =
    "hstore ltree cube seg isn intarray lo dblink file_fdw postgres_fdw pgcrypto
    tablefunc pg_stat_statements pageinspect pgrowlocks pgstattuple pg_prewarm amcheck pg_visibility
    citext fuzzystrmatch unaccent xml2 dict_int adminpack uuid-ossp pg_trgm earthdistance tcn";

/// Tables, a type, a domain and functions to make mistakes with.
const SCHEMA: [&str; 8] = [
    "CREATE TABLE t (a text PRIMARY KEY, b int CHECK (b > 0), c int NOT NULL DEFAULT 1)",
    "CREATE TABLE child (a text REFERENCES t, d date)",
    "CREATE TABLE part (a text) PARTITION BY LIST (a)",
    "CREATE TYPE mood AS ENUM ('good')",
    "CREATE DOMAIN pos AS text CHECK (value = 'positive')",
    "INSERT INTO t VALUES ('geheim7', 1)",
    "CREATE FUNCTION deep(what text) RETURNS int LANGUAGE plpgsql AS $$
       BEGIN EXECUTE 'SELECT ' || quote_literal(what) || '::int'; RETURN 1; END $$",
    "CREATE FUNCTION deeper(what text) RETURNS int LANGUAGE sql AS $$ SELECT deep(what) $$",
];

/// One statement in each line; most fail. What each line has of `geheim7`, the log has.
const STATEMENTS: &str = include_str!("pg_log/statements.sql");

/// `RAISE` at every level, with all that one can say.
const RAISING: &str = r#"DO $$ DECLARE word text := 'geheim7'; BEGIN
      RAISE DEBUG 'DEBUG: %', word; RAISE LOG '%', word; RAISE INFO 'INFO: %', word;
      RAISE NOTICE 'geheim7: %', word; RAISE WARNING 'relation "%" does not exist', word;
      RAISE LOG E'two\nlines\n\tof geheim7\nFEHLER:  %', word;
      RAISE LOG E'checkpoint complete: wrote % buffers', word;
      RAISE WARNING 'x' USING DETAIL = 'geheim7', HINT = 'geheim7', ERRCODE = 'GEHEI',
        COLUMN = 'geheim7', CONSTRAINT = 'geheim7', DATATYPE = 'geheim7', TABLE = 'geheim7',
        SCHEMA = 'geheim7';
      EXECUTE 'SELECT ''geheim7'', pg_sleep(0)';
      RAISE EXCEPTION '% is not known', word USING DETAIL = E'geheim7\ngeheim7', HINT = word;
    END $$"#;

/// What a server was made to write.
#[derive(Debug, Default)]
struct Written {
    /// Statements that failed with an error.
    errors: u64,
    /// Sessions that ended so.
    fatal: u64,
}

impl Written {
    fn count(&mut self, error: &tokio_postgres::Error) {
        match error.as_db_error().and_then(DbError::parsed_severity) {
            Some(Severity::Error) => self.errors += 1,
            Some(Severity::Fatal) => self.fatal += 1,
            _ => {}
        }
    }
}

fn socket(server: &Postgres) -> String {
    server.socket_dir().display().to_string()
}

/// A database with everything to make mistakes with.
async fn prepare(server: &Postgres) {
    server.execute("postgres", "CREATE DATABASE secrets").await;
    let session = server.client("secrets").await;
    for extension in EXTENSIONS.split_whitespace() {
        // Not every major and every package has each of them.
        drop(session.batch_execute(&format!("CREATE EXTENSION \"{extension}\"")).await);
    }
    for statement in SCHEMA {
        session.batch_execute(statement).await.expect("the schema is made");
    }
}

/// Has the server write the secret in every way there is.
async fn write_secrets(server: &Postgres) -> Written {
    let mut written = Written::default();
    let session = server.client("secrets").await;
    for setting in TELL {
        if let Err(error) = session.batch_execute(setting).await {
            written.count(&error);
        }
    }
    let mut statements = String::new();
    for kind in TYPES.split_whitespace() {
        writeln!(statements, "SELECT 'geheim7'::{kind}").expect("to memory");
        writeln!(statements, "SELECT '1, geheim7}} ('::{kind} /* geheim7 */").expect("to memory");
    }
    statements.push_str(&STATEMENTS.replace("{socket}", &socket(server)));
    let lines = statements.lines().filter(|line| !line.starts_with("--"));
    for statement in lines.chain([RAISING]) {
        if let Err(error) = session.batch_execute(statement).await {
            written.count(&error);
            drop(session.batch_execute("ROLLBACK").await);
        }
    }
    for format in ["text", "json", "xml", "yaml"] {
        let set = format!("SET auto_explain.log_format = {format}");
        session.batch_execute(&set).await.expect("a format");
        let explained = "SELECT count(*) FROM t WHERE a = 'geheim7' AND b < length('geheim7')";
        session.batch_execute(explained).await.expect("it is explained");
    }
    parameters(&session, &mut written).await;
    waiting(server, &session, &mut written).await;
    strangers(server, &mut written).await;
    let last = "DO $$ BEGIN RAISE LOG 'the last line'; END $$";
    session.batch_execute(last).await.expect("it is raised");
    written
}

/// The extended protocol, whose values are in `DETAIL` or `CONTEXT`.
async fn parameters(session: &tokio_postgres::Client, written: &mut Written) {
    for statement in ["SELECT $1::text", "SELECT $1::text::int", "SELECT deeper($1::text)"] {
        if let Err(error) = session.query(statement, &[&SECRET]).await {
            written.count(&error);
        }
    }
}

/// A lock that is waited for in vain, and a statement that takes too long.
async fn waiting(server: &Postgres, session: &tokio_postgres::Client, written: &mut Written) {
    let other = server.client("secrets").await;
    let lock = "BEGIN; UPDATE t SET c = 2 WHERE a = 'geheim7'";
    other.batch_execute(lock).await.expect("it is locked");
    for statement in [
        "UPDATE t SET c = 3 WHERE a = 'geheim7'",
        "SET statement_timeout = '50ms'",
        "SELECT pg_sleep(60), 'geheim7'",
        "SET statement_timeout = 0",
    ] {
        if let Err(error) = session.batch_execute(statement).await {
            written.count(&error);
        }
    }
    other.batch_execute("ROLLBACK").await.expect("it is unlocked");
}

/// Who does not get in, and says the secret at the door.
async fn strangers(server: &Postgres, written: &mut Written) {
    let host = socket(server);
    for options in [
        "user=postgres dbname=geheim7",
        "user=geheim7 dbname=secrets",
        "user=postgres dbname=secrets options='-c geheim7=1'",
        "user=postgres dbname=secrets options='-c work_mem=geheim7'",
        "user=postgres dbname=secrets options='--geheim7'",
        "user=postgres dbname=secrets application_name=geheim7",
    ] {
        let target = format!("host={host} port=5432 {options}");
        match tokio_postgres::connect(&target, tokio_postgres::NoTls).await {
            Ok((_, connection)) => drop(connection),
            Err(error) => written.count(&error),
        }
    }
}

/// What leaves of this log.
async fn sent(server: &Postgres, log: &Path) -> Vec<Value> {
    let config = PgLogConfig {
        connection: PgConnection { host: socket(server), ..PgConnection::default() },
        path: Some(log.to_owned()),
        start_at: StartAt::Beginning,
        ..PgLogConfig::default()
    };
    let mut collector = PgLogCollector::new(config, None);
    let mut metrics = Vec::new();
    loop {
        let later = clock::now() + Duration::from_secs(60);
        metrics.extend(collector.collect(later).await.expect("collects").metrics);
        collector.committed();
        if !collector.has_more() {
            return metrics;
        }
    }
}

/// Makes the server write, and looks at what leaves: not one byte of the secret, and of every level
/// as many entries as there were. Returns the errors and fatal errors.
async fn check(server: &Postgres, log: &Path, what: &str) -> BTreeMap<String, u64> {
    let written = write_secrets(server).await;
    let text = || String::from_utf8_lossy(&fs_err::read(log).unwrap_or_default()).into_owned();
    until("the log is written", Duration::from_secs(20), || text().contains("the last line"));
    let text = text();
    for explained in ["Query Text: ", "\"Query Text\": ", "<Query-Text>"] {
        assert!(text.contains(explained), "{what}: auto_explain has not written {explained}");
    }
    let told = text.matches(SECRET).count();
    assert!(told > 1000, "{what}: the log has the secret {told} times");
    let metrics = sent(server, log).await;
    let documents = serde_json::to_string(&metrics).expect("encodes").to_lowercase();
    if let Some(at) = documents.find(SECRET) {
        let around = documents.get(at.saturating_sub(300)..(at + 100).min(documents.len()));
        panic!("{what}: {around:?}");
    }
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for entry in metrics.iter().flat_map(|metric| metric["entries"].as_array().expect("a list")) {
        *counts.entry(entry["level"].as_str().expect("a level").to_owned()).or_default() += 1;
    }
    let count = |level: &str| counts.get(level).copied().unwrap_or_default();
    assert!(written.errors > 150, "{what}: {written:?}");
    // The sessions of dblink and postgres_fdw fail, too, and log it for themselves.
    assert!(count("ERROR") >= written.errors, "{what}: {written:?}, {counts:?}");
    assert!(
        written.fatal >= 4 && count("FATAL") >= written.fatal,
        "{what}: {written:?}, {counts:?}"
    );
    assert!(count("WARNING") >= 2 && count("LOG") > 300, "{what}: {counts:?}");
    counts.retain(|level, _| ["ERROR", "FATAL", "WARNING"].contains(&level.as_str()));
    counts
}

/// C46: nothing of a statement, a value or a name leaves, whatever language the server writes; and
/// what it writes is counted at the levels that it has in English.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_leaves_in_the_languages_of_a_real_server() {
    let mut server = Postgres::translated(&SETTINGS);
    let mut english = None;
    for (language, error) in LANGUAGES {
        let log = server.speak(language);
        if english.is_none() {
            prepare(&server).await;
        }
        let counts = check(&server, &log, language).await;
        let text = String::from_utf8_lossy(&fs_err::read(&log).expect("the log")).into_owned();
        assert!(text.contains(error), "{language}: the server does not speak it");
        assert_eq!(english.get_or_insert_with(|| counts.clone()), &counts, "{language}");
    }
}

/// C46: the same in English on every major, with `auto_explain` in each of its formats.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_leaves_in_english_on_every_major() {
    for major in majors() {
        let server = Postgres::start_with(major, &SETTINGS);
        prepare(&server).await;
        check(&server, &server.log_file(), &format!("PostgreSQL {major}")).await;
    }
}
