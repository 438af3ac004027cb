//! What `pg_stats` says of the relations and other objects of a database, on every major; the
//! second source is the server's own expression.

use std::collections::BTreeSet;
use std::time::Duration;

use pganalytics::clock;
use pganalytics::collect::Collector;
use pganalytics::collect::pg_stats::{PgStatsCollector, PgStatsConfig};
use pganalytics::collect::postgres::PgConnection;
use pganalytics::metric::catalogue::DOCUMENTS;
use pganalytics::metric::validate;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::postgres::{Postgres, majors, shared};
use crate::support::until_async;

const LIMIT: Duration = Duration::from_secs(30);

/// A collector of one database, which is its maintenance database as well.
fn config(server: &Postgres, database: &str) -> PgStatsConfig {
    let host = server.socket_dir().display().to_string();
    let connection =
        PgConnection { host, database: database.to_owned(), ..PgConnection::default() };
    PgStatsConfig { connection, sizes_every: Duration::ZERO, ..PgStatsConfig::default() }
}

/// The database's document.
async fn collect(collector: &mut PgStatsCollector) -> Value {
    let now = clock::now();
    let mut metrics = collector.collect(now).await.expect("collects").metrics;
    assert_eq!(metrics.len(), 1, "{metrics:?}");
    let document = metrics.remove(0);
    validate(&document, now).unwrap_or_else(|invalid| panic!("{invalid} in {document}"));
    document
}

fn names(list: &Value) -> Vec<&str> {
    let list = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    list.iter().map(|entry| entry["name"].as_str().expect("a name")).collect()
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let elements = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    let found = elements.iter().find(|entry| entry["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {list}"))
}

/// A new database in which `statements` ran, each by itself.
async fn filled(server: &Postgres, database: &str, statements: &[&str]) -> Client {
    server.execute("postgres", &format!("CREATE DATABASE {database}")).await;
    let client = server.client(database).await;
    for statement in statements {
        client.batch_execute(statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    }
    client
}

async fn number(client: &Client, sql: &str) -> i64 {
    let row = client.query_one(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    row.get(0)
}

/// A table whose bytes are in TOAST, one that was loaded and never analyzed, and smaller ones that
/// the catalog says are larger.
const SIZES: &[&str] = &[
    "CREATE TABLE toasted (id int PRIMARY KEY, v text) WITH (autovacuum_enabled = off)",
    "ALTER TABLE toasted ALTER v SET STORAGE EXTERNAL",
    "INSERT INTO toasted SELECT i, repeat(md5(i::text), 8000) FROM generate_series(1, 16) i",
    "CREATE TABLE loaded (id int, v text) WITH (autovacuum_enabled = off)",
    "INSERT INTO loaded SELECT i, repeat('x', 500) FROM generate_series(1, 4000) i",
    "CREATE INDEX loaded_v ON loaded (v, id)",
    "UPDATE pg_class SET relpages = 0 WHERE relname IN ('loaded', 'loaded_v', 'toasted')",
    "DO $$ BEGIN FOR i IN 1..6 LOOP
        EXECUTE format('CREATE TABLE small%s (id int PRIMARY KEY, v text)
            WITH (autovacuum_enabled = off)', i);
        EXECUTE format('INSERT INTO small%s SELECT j, md5(j::text)
            FROM generate_series(1, 1000) j', i);
     END LOOP; END $$",
    "VACUUM ANALYZE small1",
    "VACUUM ANALYZE small2",
    "VACUUM ANALYZE small3",
    "VACUUM ANALYZE small4",
];

/// The largest are the largest, whatever the catalog's pages say, and what is left out is as large
/// as the server says.
#[tokio::test]
async fn the_largest_are_those_that_the_server_says_are() {
    for major in majors() {
        let server = shared(major);
        let client = filled(server, "largest", SIZES).await;
        let config = PgStatsConfig { tables_max: 2, indexes_max: 1, ..config(server, "largest") };
        let document = collect(&mut PgStatsCollector::new(config)).await;
        assert_eq!(document["status"], "ok", "{document}");
        assert_eq!(names(&document["tables"]), ["loaded", "toasted"], "on {major}");
        assert_eq!(names(&document["indexes"]), ["loaded_v"], "on {major}");
        let size = |of: &str, whose: &str| {
            format!(
                "SELECT sum({of}(c.oid))::int8 FROM pg_class c
                  WHERE relnamespace = 'public'::regnamespace AND {whose}"
            )
        };
        let total = "pg_total_relation_size";
        let rest = number(&client, &size(total, "relkind = 'r' AND relname LIKE 'small%'")).await;
        let left_out = "relkind = 'i' AND relname <> 'loaded_v'";
        let index_rest = number(&client, &size("pg_relation_size", left_out)).await;
        let relations = json!({
            "tables_total": 8, "tables_left_out": 6, "tables_left_out_bytes": rest,
            "tables_left_out_estimated": 0,
            "indexes_total": 8, "indexes_left_out": 7, "indexes_left_out_bytes": index_rest,
            "indexes_left_out_estimated": 0,
        });
        assert_eq!(document["relations"], relations, "on {major}");
        for name in ["loaded", "toasted"] {
            let table = named(&document["tables"], name);
            let is = format!("relname = '{name}'");
            assert_eq!(table["size_bytes"], number(&client, &size(total, &is)).await);
            assert_eq!(table["index_bytes"], number(&client, &size("pg_indexes_size", &is)).await);
            let toast =
                format!("SELECT pg_total_relation_size(reltoastrelid) FROM pg_class WHERE {is}");
            assert_eq!(table["toast_bytes"], number(&client, &toast).await, "{table}");
            assert_eq!(table.get("estimated_bytes"), None, "{table}");
        }
        assert!(named(&document["tables"], "toasted")["toast_bytes"].as_u64() > Some(2_000_000));
    }
}

/// What one collection does not measure the next ones do; until then it is estimated with what
/// belongs to it, and said to be.
#[tokio::test]
async fn every_relation_is_measured_within_some_collections() {
    for major in [10, 18] {
        let server = shared(major);
        let fill = "DO $$ BEGIN FOR i IN 1..700 LOOP
            EXECUTE format('CREATE TABLE empty%s (id int PRIMARY KEY, v text)', i);
            END LOOP; END $$";
        let client = filled(server, "rounds", &[fill]).await;
        let sizes_every = Duration::from_secs(3600);
        let small = PgStatsConfig {
            tables_max: 10,
            indexes_max: 10,
            sizes_every,
            ..config(server, "rounds")
        };
        let mut collector = PgStatsCollector::new(small);
        let truth = "SELECT sum(pg_total_relation_size(c.oid))::int8 FROM pg_class c
            WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'";
        let truth = number(&client, truth).await;
        for (left, indexes_left) in [(400, 400), (100, 100), (0, 0)] {
            let document = collect(&mut collector).await;
            assert_eq!(document["status"], "ok", "{document}");
            let relations = &document["relations"];
            assert_eq!(relations["tables_left_out"], 690);
            assert_eq!(relations["tables_left_out_estimated"], left, "{relations}");
            assert_eq!(relations["indexes_left_out_estimated"], indexes_left, "{relations}");
            // Each has a page of its key and one of its TOAST table's index, and no other.
            assert_eq!(relations["tables_left_out_bytes"], truth * 690 / 700, "{relations}");
        }
    }
}

/// A table that somebody waits to lock is not measured where it is left out either; it counts by
/// its pages.
#[tokio::test]
async fn what_is_locked_is_estimated_and_said_to_be() {
    for major in [10, 18] {
        let server = shared(major);
        let client = filled(server, "waited", SIZES).await;
        let holder = server.client("waited").await;
        holder
            .batch_execute("BEGIN; LOCK TABLE small1, small5 IN SHARE MODE")
            .await
            .expect("locks");
        let waiter = server.client("waited").await;
        let waiting = tokio::spawn(async move {
            waiter.batch_execute("BEGIN; LOCK TABLE small1, small5 IN ACCESS EXCLUSIVE MODE").await
        });
        let waits = async || {
            let sql = "SELECT count(*) FROM pg_locks WHERE NOT granted AND database =
                (SELECT oid FROM pg_database WHERE datname = current_database())";
            number(&client, sql).await == 1
        };
        until_async("the waiter waits", LIMIT, waits).await;
        let two = PgStatsConfig { tables_max: 2, ..config(server, "waited") };
        let document = collect(&mut PgStatsCollector::new(two)).await;
        assert_eq!(document["relations"]["tables_left_out_estimated"], 1, "{document}");
        let all = collect(&mut PgStatsCollector::new(config(server, "waited"))).await;
        let table = named(&all["tables"], "small1");
        assert_eq!((&table["status"], table.get("size_bytes")), (&json!("locked"), None));
        let pages = "SELECT sum(relpages)::int8 * 8192 FROM pg_class
            WHERE oid IN ('small1'::regclass, 'small1_pkey'::regclass)
               OR oid IN (SELECT indexrelid FROM pg_index WHERE indrelid =
                          (SELECT reltoastrelid FROM pg_class WHERE oid = 'small1'::regclass))";
        assert_eq!(table["estimated_bytes"], number(&client, pages).await, "{table}");
        holder.batch_execute("ROLLBACK").await.expect("unlocks");
        waiting.await.expect("no panic").expect("the lock in the end");
    }
}

/// Small relations are shown when they are busy, or when their transaction ids are old, those of
/// their TOAST tables included.
#[tokio::test]
async fn the_most_active_and_the_oldest_are_shown_too() {
    for major in majors() {
        let server = shared(major);
        let fill = "DO $$ BEGIN FOR i IN 1..20 LOOP
            EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, v text)
                WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off)', i);
            EXECUTE format('INSERT INTO t%s SELECT j, md5(j::text)
                FROM generate_series(1, 100 * (21 - %s)) j', i, i);
            END LOOP; END $$";
        let client = filled(server, "busy", &["CREATE TABLE old (v text)", fill]).await;
        client.batch_execute("VACUUM FREEZE").await.expect("freezes");
        let age = "UPDATE pg_class SET relfrozenxid = (txid_current() - 300)::text::xid
            WHERE oid = (SELECT reltoastrelid FROM pg_class WHERE relname = 'old')";
        client.batch_execute(age).await.expect("ages");
        let eight = PgStatsConfig { tables_max: 8, indexes_max: 8, ..config(server, "busy") };
        let mut collector = PgStatsCollector::new(eight);
        let caught_up = async || {
            client.batch_execute("SELECT 1").await.expect("answers");
            let sql = "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 't20'";
            number(&client, sql).await == 100
        };
        until_async("statistics have caught up", LIMIT, caught_up).await;
        collect(&mut collector).await;
        client
            .batch_execute("UPDATE t19 SET v = 'changed'; SET enable_seqscan = off")
            .await
            .expect("updates");
        for id in 1..200 {
            client.query("SELECT * FROM t18 WHERE id = $1", &[&id]).await.expect("reads");
        }
        let caught_up = async || {
            client.batch_execute("SELECT 1").await.expect("answers");
            let updates = "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 't19'";
            let scans = "SELECT idx_scan FROM pg_stat_user_tables WHERE relname = 't18'";
            number(&client, updates).await == 200 && number(&client, scans).await >= 199
        };
        until_async("statistics have caught up", LIMIT, caught_up).await;
        let document = collect(&mut collector).await;
        let tables = names(&document["tables"]);
        assert_eq!(tables.len(), 8, "{tables:?}");
        for name in ["t1", "t2", "t3", "t19", "old"] {
            assert!(tables.contains(&name), "{name} on {major}: {tables:?}");
        }
        let indexes = names(&document["indexes"]);
        assert!(indexes.contains(&"t18_pkey"), "on {major}: {indexes:?}");
    }
}

/// What the server says of one part of the document: fields and their values.
struct Words {
    /// The part, as in `docs/METRICS.md`.
    part: &'static str,
    sql: String,
}

/// The views before 15 count the index of TOAST once for each index of the table; so this asks
/// their functions.
const TABLE: &str = "SELECT s.schemaname AS schema, s.relname AS name, n_live_tup AS live_tuples,
        n_dead_tup AS dead_tuples, n_mod_since_analyze AS modified_since_analyze,
        seq_scan AS seq_scans, seq_tup_read AS seq_tuples_read, idx_scan AS index_scans,
        idx_tup_fetch AS index_tuples_fetched, n_tup_ins AS tuples_inserted,
        n_tup_upd AS tuples_updated, n_tup_del AS tuples_deleted,
        n_tup_hot_upd AS tuples_hot_updated, last_vacuum, last_autovacuum, last_analyze,
        last_autoanalyze, vacuum_count, autovacuum_count, analyze_count, autoanalyze_count,
        heap_blks_read AS heap_blocks_read, heap_blks_hit AS heap_blocks_hit,
        idx_blks_read AS index_blocks_read, idx_blks_hit AS index_blocks_hit,
        toast_blks_read AS toast_blocks_read, toast_blks_hit AS toast_blocks_hit,
        pg_stat_get_blocks_fetched(x.indexrelid) - pg_stat_get_blocks_hit(x.indexrelid)
            AS toast_index_blocks_read,
        pg_stat_get_blocks_hit(x.indexrelid) AS toast_index_blocks_hit,
        age(c.relfrozenxid) AS xid_age, mxid_age(c.relminmxid) AS multixact_age,
        age(o.relfrozenxid) AS toast_xid_age, mxid_age(o.relminmxid) AS toast_multixact_age,
        c.reltuples::int8 AS planner_tuples, pg_total_relation_size(c.oid) AS size_bytes,
        pg_indexes_size(c.oid) AS index_bytes, pg_total_relation_size(o.oid) AS toast_bytes
    FROM pg_stat_user_tables s JOIN pg_statio_user_tables i USING (relid)
    JOIN pg_class c ON c.oid = s.relid LEFT JOIN pg_class o ON o.oid = c.reltoastrelid
    LEFT JOIN pg_index x ON x.indrelid = o.oid
    WHERE s.relname = 'whole'";
const TABLE_13: &str = "n_ins_since_vacuum AS inserted_since_vacuum";
const TABLE_16: &str = "last_seq_scan, last_idx_scan AS last_index_scan,
        n_tup_newpage_upd AS tuples_newpage_updated";
const TABLE_18: &str = "total_vacuum_time / 1000 AS vacuum_s,
        total_autovacuum_time / 1000 AS autovacuum_s, total_analyze_time / 1000 AS analyze_s,
        total_autoanalyze_time / 1000 AS autoanalyze_s";

const INDEX: &str = "SELECT s.schemaname AS schema, s.indexrelname AS name, s.relname AS table,
        idx_scan AS scans, idx_tup_read AS tuples_read, idx_tup_fetch AS tuples_returned,
        idx_blks_read AS blocks_read, idx_blks_hit AS blocks_hit,
        pg_relation_size(s.indexrelid) AS size_bytes, 'USED' AS status, true AS unique,
        true AS primary, true AS valid
    FROM pg_stat_user_indexes s JOIN pg_statio_user_indexes i USING (indexrelid)
    WHERE s.indexrelname = 'whole_pkey'";
const INDEX_16: &str = "last_idx_scan AS last_scan";

const DATABASE: &str = "SELECT datname AS name, xact_commit AS transactions_committed,
        xact_rollback AS transactions_rolledback, numbackends AS backends,
        blks_read AS blocks_read, blks_hit AS blocks_hit,
        tup_returned AS tuples_returned, tup_fetched AS tuples_fetched,
        tup_inserted AS tuples_inserted, tup_updated AS tuples_updated,
        tup_deleted AS tuples_deleted, conflicts, temp_files, temp_bytes, deadlocks,
        blk_read_time / 1000 AS block_read_s, blk_write_time / 1000 AS block_write_s, stats_reset,
        pg_database_size(datid) AS size_bytes,
        (SELECT age(datfrozenxid) FROM pg_database d WHERE d.oid = datid) AS xid_age,
        (SELECT mxid_age(datminmxid) FROM pg_database d WHERE d.oid = datid) AS multixact_age
    FROM pg_stat_database WHERE datname = current_database()";
const DATABASE_12: &str = "checksum_failures, checksum_last_failure";
const DATABASE_14: &str = "session_time / 1000 AS session_s, active_time / 1000 AS active_s,
        idle_in_transaction_time / 1000 AS idle_in_transaction_s, sessions, sessions_abandoned,
        sessions_fatal, sessions_killed";
const DATABASE_18: &str = "parallel_workers_to_launch AS parallel_workers_planned,
        parallel_workers_launched";

const SHARED: &str = "SELECT blks_read AS blocks_read, blks_hit AS blocks_hit,
        tup_returned AS tuples_returned, tup_fetched AS tuples_fetched,
        tup_inserted AS tuples_inserted, tup_updated AS tuples_updated,
        tup_deleted AS tuples_deleted, blk_read_time / 1000 AS block_read_s,
        blk_write_time / 1000 AS block_write_s, stats_reset, checksum_failures,
        checksum_last_failure
    FROM pg_stat_database WHERE datid = 0";

const PARTITIONED: &str = "SELECT 'public' AS schema, 'ledger' AS name, count(*) AS parts,
        sum(pg_total_relation_size(relid)) AS size_bytes, 0 AS parts_estimated,
        sum(n_live_tup) AS live_tuples, sum(n_dead_tup) AS dead_tuples,
        sum(n_mod_since_analyze) AS modified_since_analyze, sum(seq_scan) AS seq_scans,
        sum(seq_tup_read) AS seq_tuples_read, sum(idx_scan) AS index_scans,
        sum(n_tup_ins) AS tuples_inserted, sum(n_tup_upd) AS tuples_updated,
        sum(n_tup_del) AS tuples_deleted, sum(n_tup_hot_upd) AS tuples_hot_updated,
        max(age(relfrozenxid)) AS xid_age
    FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
    WHERE s.relname LIKE 'ledger\\_%' AND relkind = 'r'";

const SEQUENCE: &str = "SELECT 'public' AS schema, 'ids_id_seq' AS name, 'ids' AS table,
        'id' AS column, last_value, 2147483647 AS end_value,
        100 * (last_value - 1) / 2147483646.0 AS used_percent
    FROM ids_id_seq";

const FUNCTION: &str = "SELECT schemaname AS schema, funcname AS name, 'integer' AS arguments,
        calls, total_time / 1000 AS total_s, self_time / 1000 AS self_s
    FROM pg_stat_user_functions WHERE funcname = 'slow'";

const EXTENSION: &str = "SELECT extname AS name, extversion AS version
    FROM pg_extension WHERE extname = 'pg_stat_statements'";
const EXTENSION_13: &str = "(SELECT a.default_version FROM pg_available_extensions a
        WHERE a.name = extname) AS default_version";

/// What is asked of a server of this major.
fn words(major: u32) -> Vec<Words> {
    let with = |sql: &str, more: &[(u32, &str)]| {
        let more = more.iter().filter(|(first, _)| major >= *first).map(|(_, columns)| *columns);
        let columns: Vec<&str> = std::iter::once("").chain(more).collect();
        let columns = columns.join(", ");
        let (head, tail) = sql.split_once("\n    FROM").expect("a statement");
        format!("{head}{columns} FROM{tail}")
    };
    let database = [(12, DATABASE_12), (14, DATABASE_14), (18, DATABASE_18)];
    let mut words = vec![
        ("tables[]", with(TABLE, &[(13, TABLE_13), (16, TABLE_16), (18, TABLE_18)])),
        ("indexes[]", with(INDEX, &[(16, INDEX_16)])),
        ("databases[]", with(DATABASE, &database)),
        ("partitioned.largest[]", PARTITIONED.to_owned()),
        ("sequences.nearest[]", SEQUENCE.to_owned()),
        ("functions.top[]", FUNCTION.to_owned()),
        ("extensions.installed[]", with(EXTENSION, &[(13, EXTENSION_13)])),
    ];
    if major >= 12 {
        words.push(("shared_objects", SHARED.to_owned()));
    }
    words.into_iter().map(|(part, sql)| Words { part, sql }).collect()
}

const WHOLE: &[&str] = &[
    "CREATE EXTENSION pg_stat_statements VERSION '1.4'",
    "CREATE TABLE whole (id int PRIMARY KEY, v text, w text)
        WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off)",
    "CREATE INDEX whole_v ON whole (v)",
    "ALTER TABLE whole ALTER w SET STORAGE EXTERNAL",
    "INSERT INTO whole SELECT i, i::text, CASE WHEN i <= 10 THEN repeat(md5(i::text), 200) END
        FROM generate_series(1, 3000) i",
    "VACUUM ANALYZE whole",
    "DELETE FROM whole WHERE id <= 5",
    "UPDATE whole SET v = 'changed' WHERE id > 2900",
    "SELECT count(*), max(w) FROM whole",
    "SET enable_seqscan = off",
    "SELECT * FROM whole WHERE id = 7",
    "SELECT * FROM whole WHERE v = '8'",
    "CREATE TABLE ids (id serial PRIMARY KEY)",
    "SELECT setval('ids_id_seq', 2000000000)",
    "CREATE FUNCTION slow(int) RETURNS int LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_sleep(0.01); RETURN $1; END'",
    "SET track_functions = 'all'",
    "SELECT slow(1), slow(2)",
    "CREATE TABLE ledger (day int, entry text) PARTITION BY RANGE (day)",
    "CREATE TABLE ledger_1 PARTITION OF ledger FOR VALUES FROM (1) TO (2)",
    "CREATE TABLE ledger_23 PARTITION OF ledger FOR VALUES FROM (2) TO (4)
        PARTITION BY RANGE (day)",
    "CREATE TABLE ledger_2 PARTITION OF ledger_23 FOR VALUES FROM (2) TO (3)",
    "CREATE TABLE ledger_3 PARTITION OF ledger_23 FOR VALUES FROM (3) TO (4)",
    "CREATE INDEX ledger_3_day ON ledger_3 (day)",
    "ALTER TABLE ledger_1 SET (autovacuum_enabled = off)",
    "ALTER TABLE ledger_2 SET (autovacuum_enabled = off)",
    "ALTER TABLE ledger_3 SET (autovacuum_enabled = off)",
    "INSERT INTO ledger SELECT 1 + i % 3, md5(i::text) FROM generate_series(1, 3000) i",
    "UPDATE ledger SET entry = 'changed' WHERE day = 3",
    "DELETE FROM ledger WHERE day = 1",
];

/// Fields that are about the reading and not about what is read, or that other tests look at.
const ELSEWHERE: &[&str] = &[
    "tables[].estimated_bytes",
    "tables[].size_age_s",
    "tables[].status",
    "indexes[].estimated_bytes",
    "indexes[].size_age_s",
    "indexes[].size_status",
    "databases[].size_age_s",
    "databases[].visit_age_s",
    "databases[].conflicts_tablespace",
    "databases[].conflicts_lock",
    "databases[].conflicts_snapshot",
    "databases[].conflicts_bufferpin",
    "databases[].conflicts_deadlock",
    "databases[].conflicts_logicalslot",
];

/// The part of the document that the words are about.
fn part_of<'a>(document: &'a Value, part: &str, name: &Value) -> &'a Value {
    let mut value = document;
    for step in part.split('.') {
        value = match step.strip_suffix("[]") {
            Some(list) => named(&value[list], name.as_str().expect("a name")),
            None => &value[step],
        };
    }
    value
}

/// Holds `ours` between what the server said before and after.
fn compare(what: &str, before: &Value, ours: &Value, after: &Value) {
    let say = || format!("{what}: {before}, ours {ours}, {after}");
    let time = |value: &Value| value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let numbers = (before.as_f64(), ours.as_f64(), after.as_f64());
    let times = (time(before), time(ours), time(after));
    let fits = match (numbers, times) {
        ((Some(before), Some(ours), Some(after)), _) => {
            let slack = 1e-9 * after.abs();
            (before - slack..=after + slack).contains(&ours)
        }
        (_, (Some(before), Some(ours), Some(after))) => {
            (before.as_millisecond()..=after.as_millisecond()).contains(&ours.as_millisecond())
        }
        _ => ours == before || ours == after,
    };
    assert!(fits, "{}", say());
}

async fn row(client: &Client, sql: &str) -> Value {
    let sql = format!("SELECT row_to_json(r) FROM ({sql}) r");
    client.query_one(&sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
}

/// Every field of these parts, on every major, is what the server's views say, and none is said
/// that the major does not have.
#[tokio::test]
async fn every_field_is_that_of_the_views_on_every_major() {
    let declared = DOCUMENTS.iter().find(|document| document.name == "pg_stats").expect("declared");
    let declared = declared.entries();
    let parts: Vec<&str> = words(18).iter().map(|words| words.part).collect();
    let mut looked_at: BTreeSet<String> = ELSEWHERE.iter().map(ToString::to_string).collect();
    for major in majors() {
        let server = Postgres::start_with(major, &[("track_io_timing", "on")]);
        let client = filled(&server, "words", WHOLE).await;
        let caught_up = async || {
            client.batch_execute("SELECT 1").await.expect("answers");
            let sql = "SELECT (SELECT n_tup_del + n_tup_upd + idx_scan FROM pg_stat_user_tables
                    WHERE relname = 'whole')
                + (SELECT sum(n_tup_del + n_tup_upd)::int8 FROM pg_stat_user_tables
                    WHERE relname LIKE 'ledger%')
                + coalesce((SELECT calls FROM pg_stat_user_functions WHERE funcname = 'slow'), 0)";
            number(&client, sql).await >= 5 + 100 + 2 + 2000 + 2
        };
        until_async("statistics have caught up", LIMIT, caught_up).await;
        let mut collector = PgStatsCollector::new(config(&server, "words"));
        // The first collection connects, which counts as well.
        collect(&mut collector).await;
        let words = words(major);
        let mut before = Vec::new();
        for words in &words {
            before.push(row(&client, &words.sql).await);
        }
        let document = collect(&mut collector).await;
        assert_eq!((&document["status"], document.get("problems")), (&json!("ok"), None));
        for (words, before) in words.iter().zip(&before) {
            let after = row(&client, &words.sql).await;
            let ours = part_of(&document, words.part, &before["name"]);
            let said = before.as_object().expect("an object");
            for (field, before) in said {
                let what = format!("{}.{field} on {major}", words.part);
                compare(&what, before, &ours[field], &after[field]);
                looked_at.insert(format!("{}.{field}", words.part));
            }
            for (field, value) in ours.as_object().expect("an object") {
                let path = format!("{}.{field}", words.part);
                let known = said.contains_key(field) || ELSEWHERE.contains(&path.as_str());
                assert!(known, "{path}: {value} on {major}");
            }
        }
        let status = if major < 13 { json!("unsupported_version") } else { Value::Null };
        assert_eq!(document["extensions"]["status"], status, "{document}");
        let log = fs_err::read_to_string(server.log_file()).expect("the log");
        assert!(!log.contains("ERROR"), "on {major}: {log}");
    }
    for entry in declared {
        let is_of = |part: &&str| {
            entry
                .path
                .strip_prefix(*part)
                .is_some_and(|end| end.strip_prefix('.').is_some_and(|end| !end.contains('.')))
        };
        if parts.iter().any(is_of) {
            assert!(looked_at.contains(&entry.path), "nobody looks at {}", entry.path);
        }
    }
}

/// Conflicts with recovery are told by reason where there are any: on a standby.
#[tokio::test]
async fn conflicts_are_told_by_reason_on_a_standby() {
    for major in [10, 16, 18] {
        let settings = [("max_standby_streaming_delay", "0"), ("hot_standby_feedback", "off")];
        let mut primary = Postgres::start_with(major, &settings);
        primary.execute("postgres", "CREATE TABLE t AS SELECT 1 AS i").await;
        let standby = Postgres::standby_of(&mut primary);
        let document = collect(&mut PgStatsCollector::new(config(&primary, "postgres"))).await;
        let of = |document: &Value| named(&document["databases"], "postgres").clone();
        assert_eq!(of(&document).get("conflicts_lock"), None, "{document}");

        let client = standby.client("postgres").await;
        let is_there = async || {
            number(&client, "SELECT count(*) FROM pg_class WHERE relname = 't'").await == 1
        };
        until_async("the table is there", LIMIT, is_there).await;
        let reader = standby.client("postgres").await;
        reader.batch_execute("BEGIN; SELECT * FROM t").await.expect("reads");
        primary.execute("postgres", "DROP TABLE t").await;
        let conflicts = "SELECT confl_lock FROM pg_stat_database_conflicts
            WHERE datname = current_database()";
        until_async("the reader is in the way", LIMIT, async || {
            number(&client, conflicts).await == 1
        })
        .await;
        let document = collect(&mut PgStatsCollector::new(config(&standby, "postgres"))).await;
        let more =
            if major >= 16 { ", confl_active_logicalslot AS conflicts_logicalslot" } else { "" };
        let sql = format!(
            "SELECT confl_tablespace AS conflicts_tablespace, confl_lock AS conflicts_lock,
                confl_snapshot AS conflicts_snapshot, confl_bufferpin AS conflicts_bufferpin,
                confl_deadlock AS conflicts_deadlock{more}
            FROM pg_stat_database_conflicts WHERE datname = current_database()"
        );
        let ours = of(&document);
        for (field, value) in row(&client, &sql).await.as_object().expect("an object") {
            assert_eq!(&ours[field], value, "{field} on {major}");
        }
        assert_eq!(ours["conflicts_lock"], 1);
        assert_eq!(ours.get("conflicts_logicalslot").is_some(), major >= 16);
        // Nothing is opened there, and that is said.
        assert_eq!(document["sequences"], json!({"status": "recovery"}));
    }
}

/// Sequences near their end are told, and those that cannot be read are counted.
#[tokio::test]
async fn sequences_are_told_when_they_near_their_end() {
    for major in [10, 14, 18] {
        let server = shared(major);
        let client = filled(
            server,
            "sequences",
            &[
                "CREATE TABLE wide (id bigserial PRIMARY KEY)",
                // The column ends before its sequence does.
                "ALTER TABLE wide ALTER id TYPE int; ALTER SEQUENCE wide_id_seq AS bigint
                    MAXVALUE 9223372036854775807",
                "SELECT setval('wide_id_seq', 1610612736)",
                "CREATE SEQUENCE falling INCREMENT -1 MINVALUE -100 MAXVALUE 0 START 0",
                "SELECT setval('falling', -60)",
                "CREATE SEQUENCE cycling MAXVALUE 100 CYCLE",
                "SELECT setval('cycling', 99)",
                "CREATE SEQUENCE half MAXVALUE 1001",
                "SELECT setval('half', 500)",
                "CREATE SEQUENCE unused MAXVALUE 10",
                "CREATE SEQUENCE held MAXVALUE 10",
                "SELECT setval('held', 9)",
            ],
        )
        .await;
        let document = collect(&mut PgStatsCollector::new(config(server, "sequences"))).await;
        let sequences = &document["sequences"];
        assert_eq!(names(&sequences["nearest"]), ["held", "wide_id_seq", "falling"]);
        let counts = json!({
            "total": 6, "hidden": 0, "locked": 0, "unread": 0, "near_end": 3, "left_out": 0,
        });
        for (name, count) in counts.as_object().expect("an object") {
            assert_eq!(&sequences[name], count, "{name} on {major}: {sequences}");
        }
        let wide = named(&sequences["nearest"], "wide_id_seq");
        assert_eq!(wide["end_value"], 2_147_483_647);
        assert_eq!(wide["used_percent"].as_f64().map(f64::round), Some(75.0), "{wide}");
        let falling = named(&sequences["nearest"], "falling");
        assert_eq!(falling["used_percent"], 60.0, "{falling}");

        // A lock against those who take values, and a role without rights.
        let holder = server.client("sequences").await;
        holder.batch_execute("BEGIN; ALTER SEQUENCE held MAXVALUE 12").await.expect("locks");
        let document = collect(&mut PgStatsCollector::new(config(server, "sequences"))).await;
        assert_eq!(
            (&document["status"], &document["sequences"]["locked"]),
            (&json!("ok"), &json!(1))
        );
        assert_eq!(names(&document["sequences"]["nearest"]), ["wide_id_seq", "falling"]);
        holder.batch_execute("ROLLBACK").await.expect("unlocks");
        client.batch_execute("CREATE ROLE sequence_blind LOGIN").await.expect("a role");
        let mut blind = config(server, "sequences");
        blind.connection.user = "sequence_blind".to_owned();
        let document = collect(&mut PgStatsCollector::new(blind)).await;
        let sequences = &document["sequences"];
        assert_eq!(document["status"], "ok", "{document}");
        assert_eq!((&sequences["hidden"], &sequences["near_end"]), (&json!(6), &json!(0)));
    }
}

/// Functions that nobody tracks are not known, which is not the same as none.
#[tokio::test]
async fn functions_that_are_not_tracked_are_not_known() {
    let server = shared(15);
    let client = filled(server, "untracked", &[]).await;
    let document = collect(&mut PgStatsCollector::new(config(server, "untracked"))).await;
    assert_eq!(document.get("functions"), None, "{document}");
    let track = "ALTER DATABASE untracked SET track_functions = 'all'";
    client.batch_execute(track).await.expect("sets");
    let document = collect(&mut PgStatsCollector::new(config(server, "untracked"))).await;
    assert_eq!(document["functions"], json!({"total": 0, "left_out": 0}), "{document}");
}

/// A session that has opened many relations is replaced, and nothing is forgotten over it.
#[tokio::test]
async fn sessions_that_keep_much_in_memory_are_replaced() {
    let server = shared(17);
    let fill = "DO $$ BEGIN FOR i IN 1..6 LOOP
        EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY)', i); END LOOP; END $$";
    filled(server, "opened_a", &[fill]).await;
    filled(server, "opened_b", &[fill]).await;
    let main = config(server, "opened_a");
    let databases = vec!["opened_a".to_owned(), "opened_b".to_owned()];
    let sizes_every = Duration::from_secs(3600);
    // Nobody looks for pg_stat_statements in the other database.
    let statements_max = 0;
    let few = PgStatsConfig { databases, sizes_every, opened_max: 12, statements_max, ..main };
    let mut collector = PgStatsCollector::new(few);
    // The session of a visit ends with it; that to the maintenance database was replaced once.
    for connects in [2, 2, 1] {
        let metrics = collector.collect(clock::now()).await.expect("collects").metrics;
        assert_eq!(metrics.len(), 2, "{metrics:?}");
        assert_eq!(metrics[0]["cost"]["connects"], connects, "{metrics:?}");
        for metric in &metrics {
            assert_eq!(metric["status"], "ok", "{metric}");
            let table = named(&metric["tables"], "t1");
            assert_eq!((&table["size_bytes"], table.get("status")), (&json!(8192), None));
        }
    }
}

/// A list is cut where it would make the document too large, and what is cut is counted.
#[tokio::test]
async fn a_list_that_is_too_large_is_cut_and_counted() {
    let server = shared(11);
    let fill = "DO $$ BEGIN FOR i IN 1..60 LOOP
        EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY)', i); END LOOP; END $$";
    filled(server, "cut", &[fill]).await;
    let short = PgStatsConfig { list_bytes_max: 10_000, ..config(server, "cut") };
    let document = collect(&mut PgStatsCollector::new(short)).await;
    for (list, total) in [("tables", "tables_left_out"), ("indexes", "indexes_left_out")] {
        let bytes = document[list].to_string().len();
        let shown = document[list].as_array().expect("a list").len() as u64;
        assert!((8_000..=10_000).contains(&bytes) && shown < 60, "{bytes} bytes of {list}");
        let relations = &document["relations"];
        assert_eq!(relations[total], 60 - shown, "{relations}");
        assert_eq!(relations[format!("{total}_bytes")], 8192 * (60 - shown), "{relations}");
    }
}

/// Default versions that cannot be read take no extension away, and are not asked for again.
#[tokio::test]
async fn extensions_are_listed_without_default_versions_that_cannot_be_read() {
    let server = shared(18);
    let revoke = "REVOKE EXECUTE ON FUNCTION pg_available_extensions() FROM PUBLIC";
    let fill = ["CREATE ROLE extension_blind LOGIN", revoke];
    filled(server, "extensions", &fill).await;
    let mut blind = config(server, "extensions");
    blind.connection.user = "extension_blind".to_owned();
    let mut collector = PgStatsCollector::new(blind);
    let document = collect(&mut collector).await;
    assert_eq!((&document["status"], document.get("extensions")), (&json!("permission"), None));
    for _ in 0..2 {
        let document = collect(&mut collector).await;
        assert_eq!(document["status"], "ok", "{document}");
        let extensions = &document["extensions"];
        assert_eq!((&extensions["status"], &extensions["total"]), (&json!("error"), &json!(1)));
        let plpgsql = named(&extensions["installed"], "plpgsql");
        assert!(plpgsql["version"].is_string(), "{extensions}");
        assert_eq!(plpgsql.get("default_version"), None, "{extensions}");
    }
}
