//! `pg_stats` against real servers of every major; the second source is the server's own views.

use std::time::Duration;

use jiff::Timestamp;
use pganalytics::clock;
use pganalytics::collect::pg_stats::{PgStatsCollector, PgStatsConfig};
use pganalytics::collect::postgres::{PgConnection, Timeouts};
use pganalytics::collect::{CollectError, Collector};
use pganalytics::metric::validate;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::operator::Host;
use crate::support::false_postgres::SSL_REQUEST;
use crate::support::postgres::{Postgres, majors, shared};
use crate::support::{until, until_async};

const LIMIT: Duration = Duration::from_secs(20);

fn place(server: &Postgres, database: &str) -> PgConnection {
    let host = server.socket_dir().display().to_string();
    PgConnection { host, database: database.to_owned(), ..PgConnection::default() }
}

fn config(server: &Postgres, databases: &[&str]) -> PgStatsConfig {
    PgStatsConfig {
        connection: place(server, "postgres"),
        databases: databases.iter().map(ToString::to_string).collect(),
        sizes_every: Duration::ZERO,
        ..PgStatsConfig::default()
    }
}

async fn collect(collector: &mut PgStatsCollector) -> Result<Vec<Value>, CollectError> {
    let now = clock::now();
    let collected = collector.collect(now).await?;
    for metric in &collected.metrics {
        validate(metric, now).unwrap_or_else(|invalid| panic!("{invalid} in {metric}"));
    }
    Ok(collected.metrics)
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let list = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    list.iter().find(|entry| entry["name"] == name).unwrap_or_else(|| panic!("{name} in {list:?}"))
}

/// A row of the view as JSON, made by the server.
async fn view(client: &Client, sql: &str) -> Value {
    let sql = format!("SELECT row_to_json(r) FROM ({sql}) r");
    client.query_one(&sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
}

fn same_time(ours: &Value, theirs: &Value) {
    if theirs.is_null() {
        return assert!(ours.is_null(), "{ours} {theirs}");
    }
    let read = |value: &Value| -> Timestamp {
        value.as_str().expect("a string").parse().unwrap_or_else(|e| panic!("{value}: {e}"))
    };
    assert_eq!(read(ours).as_millisecond(), read(theirs).as_millisecond(), "{ours} {theirs}");
}

const FILL: &str = "
    CREATE SCHEMA \"odd schema\";
    CREATE TABLE \"odd schema\".\"quo\"\"ted\" (id int PRIMARY KEY, v text)
        WITH (autovacuum_enabled = off);
    CREATE INDEX unused ON \"odd schema\".\"quo\"\"ted\" (v);
    INSERT INTO \"odd schema\".\"quo\"\"ted\"
        SELECT i, repeat('x', 50) FROM generate_series(1, 5000) i;
    VACUUM ANALYZE \"odd schema\".\"quo\"\"ted\";
    SET enable_seqscan = off;
    SELECT * FROM \"odd schema\".\"quo\"\"ted\" WHERE id = 7;
    DELETE FROM \"odd schema\".\"quo\"\"ted\" WHERE id <= 100;
    UPDATE \"odd schema\".\"quo\"\"ted\" SET v = 'y' WHERE id <= 110;";

/// Fills a new database and waits until the server's statistics have caught up.
async fn filled(server: &Postgres, database: &str) -> Client {
    server.execute("postgres", &format!("CREATE DATABASE {database}")).await;
    let client = server.client(database).await;
    for statement in FILL.split(";\n") {
        client.batch_execute(statement).await.unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    }
    let sql = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'quo\"ted'";
    let caught_up = async || {
        // Reports are sent at the end of a transaction, at most twice a second before 15.
        client.batch_execute("SELECT 1").await.expect("answers");
        client.query_one(sql, &[]).await.expect("a row").get::<_, i64>(0) == 110
    };
    until_async("statistics have caught up", LIMIT, caught_up).await;
    client
}

/// C44, C46: on every major the numbers are those of the server's views and size functions.
#[tokio::test]
async fn numbers_are_those_of_the_views_on_every_major() {
    for major in majors() {
        let server = shared(major);
        let client = filled(server, "numbers").await;
        let mut collector = PgStatsCollector::new(config(server, &["postgres", "numbers"]));
        let metrics = collect(&mut collector).await.expect("collects");
        assert_eq!(metrics.len(), 2, "{metrics:?}");
        let (cluster, own) = (&metrics[0], &metrics[1]);
        for metric in &metrics {
            assert_eq!((&metric["status"], metric.get("problems")), (&json!("ok"), None));
        }
        assert_eq!(own["database"], "numbers");
        assert_eq!(
            cluster["server"]["version_num"].as_u64().expect("a number") / 10_000,
            u64::from(major)
        );
        assert_eq!(cluster["server"]["in_recovery"], false);
        assert_eq!(cluster["cost"]["timeouts"], 0);

        table_is_that_of_the_view(own, &client).await;
        indexes_are_those_of_the_view(own, &client).await;
        let size = view(&client, "SELECT pg_database_size('numbers') AS size_bytes").await;
        assert_eq!(own["size_bytes"], size["size_bytes"]);
        let listed = named(&cluster["databases"], "numbers");
        assert_eq!(listed["size_bytes"], own["size_bytes"]);
        database_is_that_of_the_view(listed, &client).await;
        assert_eq!(
            own["relations"],
            json!({
                "tables_total": 1, "tables_left_out": 0, "tables_left_out_bytes": 0,
                "tables_left_out_estimated": 0,
                "indexes_total": 2, "indexes_left_out": 0, "indexes_left_out_bytes": 0,
                "indexes_left_out_estimated": 0,
            })
        );
    }
}

async fn table_is_that_of_the_view(own: &Value, client: &Client) {
    let table = named(&own["tables"], "quo\"ted");
    let sql = "SELECT schemaname AS schema, n_live_tup AS live_tuples, n_dead_tup AS dead_tuples,
            n_mod_since_analyze AS modified_since_analyze, vacuum_count, autovacuum_count,
            analyze_count, autoanalyze_count, seq_scan AS seq_scans, n_tup_ins AS tuples_inserted,
            n_tup_upd AS tuples_updated, n_tup_del AS tuples_deleted,
            n_tup_hot_upd AS tuples_hot_updated, pg_total_relation_size(relid) AS size_bytes
        FROM pg_stat_user_tables";
    for (name, value) in view(client, sql).await.as_object().expect("an object") {
        assert_eq!(&table[name], value, "{name} of {table}");
    }
    assert_eq!(table["vacuum_count"], 1);
    assert_eq!(table.get("status"), None);
    let times = "SELECT last_vacuum, last_autovacuum, last_analyze, last_autoanalyze
        FROM pg_stat_user_tables";
    for (name, value) in view(client, times).await.as_object().expect("an object") {
        same_time(&table[name], value);
    }
    assert!(!table["last_vacuum"].is_null() && table["last_autovacuum"].is_null());
}

async fn indexes_are_those_of_the_view(own: &Value, client: &Client) {
    let sql = |name: &str| {
        format!(
            "SELECT schemaname AS schema, relname AS \"table\", idx_scan AS scans,
                idx_tup_read AS tuples_read, idx_tup_fetch AS tuples_returned,
                pg_relation_size(indexrelid) AS size_bytes
            FROM pg_stat_user_indexes WHERE indexrelname = '{name}'"
        )
    };
    for (name, usage) in [("quo\"ted_pkey", "USED"), ("unused", "UNUSED")] {
        let index = named(&own["indexes"], name);
        for (field, value) in view(client, &sql(name)).await.as_object().expect("an object") {
            assert_eq!(&index[field], value, "{field} of {index}");
        }
        assert_eq!(index["status"], usage);
        let primary = usage == "USED";
        assert_eq!((&index["primary"], &index["valid"]), (&json!(primary), &json!(true)));
    }
}

/// The view is read after the collection, so its counters may have gone on, never back.
async fn database_is_that_of_the_view(listed: &Value, client: &Client) {
    let sql =
        "SELECT xact_commit AS transactions_committed, xact_rollback AS transactions_rolledback,
            tup_returned AS tuples_returned, tup_fetched AS tuples_fetched,
            tup_inserted AS tuples_inserted, tup_updated AS tuples_updated,
            tup_deleted AS tuples_deleted, blks_read AS blocks_read, blks_hit AS blocks_hit,
            temp_files, temp_bytes, deadlocks, conflicts
        FROM pg_stat_database WHERE datname = current_database()";
    for (name, value) in view(client, sql).await.as_object().expect("an object") {
        let (ours, theirs) = (listed[name].as_u64(), value.as_u64().expect("a number"));
        let ours = ours.unwrap_or_else(|| panic!("no {name} in {listed}"));
        assert!(ours <= theirs, "{name}: {ours} {theirs}");
    }
    assert_eq!(listed["tuples_deleted"], 100);
    assert!(listed["transactions_committed"].as_u64() > Some(5), "{listed}");
    assert!(listed["backends"].as_u64() >= Some(1), "{listed}");
}

/// C42: no databases configured means the maintenance database, with its tables.
#[tokio::test]
async fn empty_database_list_visits_the_maintenance_database() {
    let server = shared(16);
    let mut collector = PgStatsCollector::new(config(server, &[]));
    let metrics = collect(&mut collector).await.expect("collects");
    assert_eq!(metrics.len(), 1);
    assert_eq!(metrics[0]["database"], "postgres");
    assert!(metrics[0]["tables"].is_array() && metrics[0]["databases"].is_array());
}

/// C41: without a server there is a clear error in less than 10 s, and the hint stays the same.
#[tokio::test]
async fn no_server_is_an_error_with_a_hint_and_soon() {
    let directory = crate::support::directory();
    let mut absent = PgStatsConfig::default();
    absent.connection.host = directory.path().display().to_string();
    let mut refused = PgStatsConfig::default();
    refused.connection.port = 1;
    // A listener that never answers: only the agent's own deadline helps.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let mut mute = PgStatsConfig::default();
    mute.connection.host = "127.0.0.1".to_owned();
    mute.connection.port = silent.local_addr().expect("an address").port();
    mute.connection.connect_timeout = Duration::from_millis(300);
    for config in [absent, refused, mute] {
        let begun = clock::monotonic();
        let place = config.connection.place();
        let mut collector = PgStatsCollector::new(config);
        let first = collect(&mut collector).await.expect_err("no server").to_string();
        assert!(first.contains(&place) && first.contains("hint:"), "{first}");
        let second = collect(&mut collector).await.expect_err("no server").to_string();
        assert_eq!(first, second, "the same while the cause is");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}

/// C43: names and passwords with every awkward character reach the server as they are.
#[tokio::test]
async fn special_characters_in_names_and_passwords() {
    let server = Postgres::start(17);
    let admin = server.client("postgres").await;
    let (user, password, database) =
        ("we\"ird us'er", "p@:/ '\"\\ = \u{fc}\u{df}%40", "db \"x\" 'y' -c z=1 \u{fc}");
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    admin
        .batch_execute(&format!(
            "CREATE ROLE {} LOGIN PASSWORD E'{}'",
            quoted(user),
            password.replace('\\', "\\\\").replace('\'', "''")
        ))
        .await
        .expect("a role");
    admin
        .batch_execute(&format!("CREATE DATABASE {}", quoted(database)))
        .await
        .expect("a database");
    let rules = "local all postgres trust\nlocal all all scram-sha-256\n";
    fs_err::write(server.data_dir().join("pg_hba.conf"), rules).expect("write the rules");
    admin.batch_execute("SELECT pg_reload_conf()").await.expect("reloads");

    let mut config = config(&server, &[database]);
    config.connection.user = user.to_owned();
    config.connection.password = Some(SecretString::from("wrong"));
    let refused = async || {
        let error = collect(&mut PgStatsCollector::new(config.clone())).await.expect_err("wrong");
        error.to_string().contains("postgres.password")
    };
    until_async("the rules hold", LIMIT, refused).await;

    config.connection.password = Some(SecretString::from(password));
    let metrics = collect(&mut PgStatsCollector::new(config.clone())).await.expect("collects");
    assert_eq!(metrics.len(), 2, "{metrics:?}");
    assert_eq!(metrics[1]["database"], database);
    assert_eq!(metrics[1]["status"], "ok", "{metrics:?}");
    // An ordinary role has no right to the sizes of a database it may not connect to.
    let lock_out = format!("REVOKE CONNECT ON DATABASE {} FROM PUBLIC", quoted(database));
    admin.batch_execute(&lock_out).await.expect("revokes");
    let metrics = collect(&mut PgStatsCollector::new(config)).await.expect("collects");
    let locked_out = metrics.iter().find(|m| m["database"] == database).expect("listed");
    assert_eq!(locked_out["status"], "permission", "{locked_out}");
    assert_eq!((locked_out.get("tables"), locked_out.get("size_bytes")), (None, None));
    assert!(locked_out["transactions_committed"].is_number(), "{locked_out}");
}

/// A relation that someone locks, or waits to lock, is left alone, and nothing waits for it.
#[tokio::test]
async fn locked_relations_are_skipped_not_waited_for() {
    for major in [10, 18] {
        let server = shared(major);
        server.execute("postgres", "CREATE DATABASE locks").await;
        let holder = server.client("locks").await;
        let tables = "CREATE TABLE free (i int); CREATE TABLE held (i int PRIMARY KEY);
            CREATE TABLE waited (i int)";
        holder.batch_execute(tables).await.expect("creates");
        let locks = "BEGIN; LOCK TABLE held IN ACCESS EXCLUSIVE MODE;
            LOCK TABLE waited IN SHARE MODE";
        holder.batch_execute(locks).await.expect("locks");
        let waiter = server.client("locks").await;
        let cancel = waiter.cancel_token();
        let waiting = tokio::spawn(async move {
            waiter.batch_execute("BEGIN; LOCK TABLE waited IN ACCESS EXCLUSIVE MODE").await
        });
        let waits = async || {
            let sql = "SELECT count(*) FROM pg_locks WHERE NOT granted";
            server.query("locks", sql).await[0].get::<_, i64>(0) > 0
        };
        until_async("the waiter waits", LIMIT, waits).await;

        let mut collector = PgStatsCollector::new(config(server, &["locks"]));
        let metrics = collect(&mut collector).await.expect("collects");
        let metric = metrics.iter().find(|m| m["database"] == "locks").expect("there");
        assert_eq!(metric["status"], "ok", "{metric}");
        for name in ["held", "waited"] {
            let table = named(&metric["tables"], name);
            assert_eq!((&table["status"], table.get("size_bytes")), (&json!("locked"), None));
            assert!(table["live_tuples"].is_number());
        }
        assert_eq!(named(&metric["tables"], "free")["size_bytes"], 0);

        holder.batch_execute("COMMIT").await.expect("commits");
        cancel.cancel_query(tokio_postgres::NoTls).await.expect("cancels");
        drop(waiting.await.expect("joins"));
        let metrics = collect(&mut collector).await.expect("collects");
        let metric = metrics.iter().find(|m| m["database"] == "locks").expect("there");
        assert!(named(&metric["tables"], "held")["size_bytes"].is_number(), "{metric}");
    }
}

/// At most two connections, kept over collections, with the limits of the session rules.
#[tokio::test]
async fn connections_are_few_and_kept() {
    const VISITED: [&str; 2] = ["kept_a", "kept_b"];
    for major in [10, 18] {
        let server = shared(major);
        for name in VISITED {
            server.execute("postgres", &format!("CREATE DATABASE {name}")).await;
        }
        server.execute("postgres", "CREATE DATABASE kept_main").await;
        let sessions = "SELECT pid FROM pg_stat_activity
            WHERE application_name LIKE 'pganalytics-agent/%' AND datname = ANY ($1) ORDER BY pid";
        let admin = server.client("postgres").await;
        let pids = async |databases: &[&str]| -> Vec<i32> {
            let rows = admin.query(sessions, &[&databases]).await.expect("answers");
            rows.iter().map(|row| row.get(0)).collect()
        };
        let config =
            PgStatsConfig { connection: place(server, "kept_main"), ..config(server, &VISITED) };
        let mut collector = PgStatsCollector::new(config);
        collect(&mut collector).await.expect("collects");
        let first = pids(&["kept_main"]).await;
        assert_eq!(first.len(), 1);
        for _ in 0..3 {
            let metrics = collect(&mut collector).await.expect("collects");
            let names: Vec<_> = metrics.iter().map(|m| m["database"].clone()).collect();
            assert_eq!(names, ["kept_main", "kept_a", "kept_b"]);
            assert_eq!(metrics[0]["cost"]["connects"], 2, "one for each visit");
        }
        assert_eq!(pids(&["kept_main"]).await, first);
        let gone = async || pids(&VISITED).await.is_empty();
        until_async("no visiting connection", LIMIT, gone).await;
    }
}

/// A killed session costs nothing; a server that went away is found again.
#[tokio::test]
async fn lost_connections_are_made_anew() {
    let mut server = Postgres::start(14);
    let mut collector = PgStatsCollector::new(config(&server, &[]));
    collect(&mut collector).await.expect("collects");
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name LIKE 'pganalytics-agent/%'";
    server.query("postgres", kill).await;
    let metrics = collect(&mut collector).await.expect("connects again within the collection");
    assert_eq!(metrics[0]["cost"]["connects"], 1);
    let metrics = collect(&mut collector).await.expect("collects");
    assert_eq!(metrics[0]["cost"]["connects"], 0);

    server.stop();
    collect(&mut collector).await.expect_err("stopped");
    let error = collect(&mut collector).await.expect_err("still stopped").to_string();
    assert!(error.contains("hint: is PostgreSQL running there?"), "{error}");
    server.resume();
    let begun = clock::monotonic();
    while collect(&mut collector).await.is_err() {
        assert!(begun.elapsed() < LIMIT, "found again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A statement that runs into its limit leaves its numbers out; the others are there.
#[tokio::test]
async fn failing_statement_leaves_its_part_out() {
    let server = Postgres::start(15);
    server.execute("postgres", "CREATE TABLE t (i int)").await;
    let mut config = config(&server, &[]);
    config.timeouts = Timeouts { lock: Duration::from_millis(50), ..Timeouts::default() };
    let mut collector = PgStatsCollector::new(config);
    collect(&mut collector).await.expect("collects");
    let blocker = server.client("postgres").await;
    blocker
        .batch_execute("BEGIN; LOCK TABLE pg_index IN ACCESS EXCLUSIVE MODE")
        .await
        .expect("locks");
    let metric = &collect(&mut collector).await.expect("collects")[0];
    assert_eq!(metric["status"], "locked", "{metric}");
    assert!(metric.get("indexes").is_none() && metric["transactions_committed"].is_number());
    let problems = metric["problems"].as_array().expect("a list");
    assert!(
        problems.contains(&json!({"query": "indexes", "status": "locked", "sqlstate": "55P03"})),
        "{problems:?}"
    );
    blocker.batch_execute("ROLLBACK").await.expect("unlocks");
    let metric = &collect(&mut collector).await.expect("collects")[0];
    assert_eq!((&metric["status"], metric.get("problems")), (&json!("ok"), None), "{metric}");
}

/// On a standby counters are read and no size function is called.
#[tokio::test]
async fn standby_is_read_without_sizes() {
    let mut server = Postgres::start_with(17, &[("log_statement", "all")]);
    server.execute("postgres", "CREATE TABLE t (i int)").await;
    server.stop();
    fs_err::write(server.data_dir().join("standby.signal"), "").expect("write the signal");
    server.resume();
    let mut collector = PgStatsCollector::new(config(&server, &[]));
    let metric = &collect(&mut collector).await.expect("collects")[0];
    assert_eq!(metric["server"]["in_recovery"], true);
    assert_eq!(metric["status"], "ok", "{metric}");
    let table = named(&metric["tables"], "t");
    assert_eq!((&table["status"], table.get("size_bytes")), (&json!("recovery"), None));
    let asked = fs_err::read_to_string(server.log_file()).expect("the log");
    assert!(asked.contains("agent:tables") && !asked.contains("_size("), "{asked}");

    server.execute("postgres", "SELECT pg_promote()").await;
    let promoted =
        async || server.query("postgres", "SELECT pg_is_in_recovery()").await[0].get::<_, bool>(0);
    until_async("promoted", LIMIT, async || !promoted().await).await;
    let metric = &collect(&mut collector).await.expect("collects")[0];
    assert!(named(&metric["tables"], "t")["size_bytes"].is_number(), "{metric}");
}

/// The lists are cut at the limit, largest first, and the rest is counted.
#[tokio::test]
async fn what_is_left_out_is_counted() {
    let server = shared(13);
    server.execute("postgres", "CREATE DATABASE many").await;
    let client = server.client("many").await;
    for i in 1..=5 {
        let sql = format!(
            "CREATE TABLE t{i} (i int PRIMARY KEY);
             INSERT INTO t{i} SELECT generate_series(1, {})",
            i * 1000
        );
        client.batch_execute(&sql).await.expect("fills");
        client.batch_execute(&format!("VACUUM ANALYZE t{i}")).await.expect("vacuums");
    }
    let config = PgStatsConfig { tables_max: 2, indexes_max: 1, ..config(server, &["many"]) };
    let metrics = collect(&mut PgStatsCollector::new(config)).await.expect("collects");
    let metric = metrics.iter().find(|m| m["database"] == "many").expect("there");
    let names = |list: &str| -> Vec<Value> {
        metric[list].as_array().expect("a list").iter().map(|e| e["name"].clone()).collect()
    };
    assert_eq!(names("tables"), ["t5", "t4"]);
    assert_eq!(names("indexes"), ["t5_pkey"]);
    let bytes = "SELECT sum(pg_total_relation_size(oid))::int8 FROM pg_class
        WHERE relname IN ('t1', 't2', 't3')";
    let bytes: i64 = client.query_one(bytes, &[]).await.expect("answers").get(0);
    let relations = &metric["relations"];
    assert_eq!(relations["tables_total"], 5);
    assert_eq!(relations["tables_left_out"], 3);
    assert_eq!(relations["tables_left_out_bytes"], bytes);
    assert_eq!(
        (&relations["indexes_total"], &relations["indexes_left_out"]),
        (&json!(5), &json!(4))
    );
}

/// What an honest server sends is within what is read of it, however long its names are.
#[tokio::test]
async fn names_of_the_greatest_length_are_read() {
    let fill = "DO $$ BEGIN
        EXECUTE format('CREATE SCHEMA %I', repeat('s', 63));
        FOR i IN 1..400 LOOP
            EXECUTE format('CREATE TABLE %I.%I (i int, CONSTRAINT %I PRIMARY KEY (i))',
                repeat('s', 63), rpad(i || '_', 63, 't'), rpad(i || '_', 63, 'k'));
        END LOOP; END $$";
    for major in [10, 18] {
        let server = shared(major);
        server.execute("postgres", "CREATE DATABASE long_names").await;
        server.execute("long_names", fill).await;
        let lists = PgStatsConfig { tables_max: 400, indexes_max: 400, ..PgStatsConfig::default() };
        let config = PgStatsConfig { connection: place(server, "long_names"), ..lists };
        let metrics = collect(&mut PgStatsCollector::new(config)).await.expect("collects");
        let metric = metrics.iter().find(|m| m["database"] == "long_names").expect("there");
        assert_eq!((&metric["status"], metric.get("problems")), (&json!("ok"), None), "{metric}");
        for list in ["tables", "indexes"] {
            let rows = metric[list].as_array().expect("a list");
            assert_eq!(rows.len(), 400, "{list}");
            assert!(rows.iter().all(|row| row["name"].as_str().is_some_and(|n| n.len() == 63)));
        }
    }
}

/// Databases that are not there are told in one line, however many are named.
#[tokio::test(flavor = "multi_thread")]
async fn absent_databases_are_told_once() {
    let (server, host) = (shared(18), Host::new("1h").await);
    let file = host.path("agent.toml");
    let config = fs_err::read_to_string(&file).expect("read");
    let config = config.replace("[pg_stats]\nenabled = false\n", "[pg_stats]\ntimeout = \"10s\"\n");
    let names: Vec<_> = (0..300).map(|n| format!("absent{n}")).collect();
    let socket = server.socket_dir();
    let place = format!("[postgres]\nhost = {socket:?}\ndatabases = {names:?}\n");
    fs_err::write(&file, format!("{config}{place}")).expect("write");
    let agent = host.start();
    let runs = || {
        let status = host.json(&["status", "--json"]);
        let all = status["collectors"].as_array().expect("collectors").clone();
        let pg_stats = all.into_iter().find(|it| it["name"] == "pg_stats").expect("it runs");
        let notices = pg_stats["notices"].as_array().expect("a list").clone();
        (pg_stats["metrics"].as_u64().expect("a number"), notices)
    };
    until("the agent runs", LIMIT, || agent.stderr().contains("the agent runs"));
    until("two collections", LIMIT, || runs().0 >= 2);
    let told = "postgres.databases: no database \"absent0\", nor 299 others that are named; hint: \
                are the names right?";
    assert_eq!(runs().1, [told]);
    let shown = host.ask(&["status"]).stdout;
    assert!(shown.contains("\npg_stats: postgres.databases: no database \"absent0\""), "{shown}");
    let log = agent.stop().stderr;
    assert_eq!(log.matches("absent").count(), 1, "{log}");
    assert!(log.contains("no database \"absent0\", nor 299 others"), "{log}");
}

/// The agent's own deadline: the statement is cancelled and nothing of it stays on the server.
#[tokio::test]
async fn statement_over_the_clients_deadline_is_cancelled() {
    let server = Postgres::start(12);
    let mut config = config(&server, &[]);
    let long = Duration::from_secs(60);
    config.timeouts = Timeouts { lock: long, statement: long, client: Duration::from_secs(1) };
    let mut collector = PgStatsCollector::new(config);
    collect(&mut collector).await.expect("collects");
    let blocker = server.client("postgres").await;
    let lock = "BEGIN; LOCK TABLE pg_index IN ACCESS EXCLUSIVE MODE";
    blocker.batch_execute(lock).await.expect("locks");
    let error = collect(&mut collector).await.expect_err("over the deadline").to_string();
    assert!(error.contains("no answer within 1 s"), "{error}");
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    // A new session would wait for the lock as well, so the one that holds it looks.
    let none =
        async || blocker.query_one(waiting, &[]).await.expect("answers").get::<_, i64>(0) == 0;
    until_async("nothing waits any more", LIMIT, none).await;
    blocker.batch_execute("ROLLBACK").await.expect("unlocks");
    collect(&mut collector).await.expect("collects again");
}

/// Takes TCP connections to a server; refuses those whose first packet has options, as a pooler
/// does.
async fn pooler(listener: tokio::net::TcpListener, socket: std::path::PathBuf) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    while let Ok((mut client, _)) = listener.accept().await {
        let mut length = [0; 4];
        client.read_exact(&mut length).await.expect("a startup packet");
        let mut packet = vec![0; u32::from_be_bytes(length) as usize - 4];
        client.read_exact(&mut packet).await.expect("a startup packet");
        if packet == SSL_REQUEST.to_be_bytes() {
            client.write_all(b"N").await.expect("answers");
            client.read_exact(&mut length).await.expect("a startup packet");
            packet = vec![0; u32::from_be_bytes(length) as usize - 4];
            client.read_exact(&mut packet).await.expect("a startup packet");
        }
        if packet.windows(8).any(|window| window == b"options\0") {
            let fields = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0";
            let mut answer = vec![b'E'];
            answer.extend((u32::try_from(fields.len()).expect("small") + 4).to_be_bytes());
            answer.extend(fields);
            client.write_all(&answer).await.expect("refuses");
            continue;
        }
        let mut server = tokio::net::UnixStream::connect(&socket).await.expect("connects");
        server.write_all(&length).await.expect("forwards");
        server.write_all(&packet).await.expect("forwards");
        tokio::spawn(async move {
            drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
        });
    }
}

/// Behind a pooler that refuses startup options the limits are set as statements.
#[tokio::test]
async fn limits_are_set_where_startup_options_are_refused() {
    let server = shared(15);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let port = listener.local_addr().expect("an address").port();
    let pooler = tokio::spawn(pooler(listener, server.socket_dir().join(".s.PGSQL.5432")));
    server.execute("postgres", "CREATE DATABASE pooled; ").await;
    let mut config = config(server, &[]);
    config.connection =
        PgConnection { host: "127.0.0.1".to_owned(), port, ..place(server, "pooled") };
    let mut collector = PgStatsCollector::new(config);
    let metrics = collect(&mut collector).await.expect("collects");
    assert_eq!(metrics[0]["status"], "ok", "{metrics:?}");
    // The limits hold: a table that another session locks does not keep the agent waiting.
    let blocker = server.client("pooled").await;
    let lock = "BEGIN; LOCK TABLE pg_index IN ACCESS EXCLUSIVE MODE";
    blocker.batch_execute(lock).await.expect("locks");
    let metrics = collect(&mut collector).await.expect("collects");
    assert_eq!(metrics[0]["status"], "locked", "{metrics:?}");
    blocker.batch_execute("ROLLBACK").await.expect("unlocks");
    pooler.abort();
}

/// Names in a database with the encoding `SQL_ASCII` are bytes: one that is not UTF-8 is shown as
/// far as it can be, and takes no other name away.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_utf_8_are_shown_as_far_as_they_can_be() {
    for major in majors() {
        let server = shared(major);
        let create = "CREATE DATABASE bytes ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'
            TEMPLATE template0";
        server.execute("postgres", create).await;
        let odd = "DO $$ BEGIN EXECUTE format('CREATE TABLE %I (i int PRIMARY KEY)',
            't' || chr(255)); END $$";
        server.execute("bytes", odd).await;
        server.execute("bytes", "CREATE TABLE plain (i int)").await;
        for main in ["postgres", "bytes"] {
            let config =
                PgStatsConfig { connection: place(server, main), ..config(server, &["bytes"]) };
            let mut collector = PgStatsCollector::new(config);
            let documents = collect(&mut collector).await.expect("collects");
            let bytes = documents.iter().find(|it| it["database"] == "bytes");
            let bytes = bytes.unwrap_or_else(|| panic!("{major}: {documents:?}"));
            let tables = bytes["tables"].as_array().unwrap_or_else(|| panic!("{major}: {bytes}"));
            let names: Vec<_> = tables.iter().map(|table| table["name"].clone()).collect();
            assert!(names.contains(&"plain".into()), "{major}: {names:?}");
            assert!(names.contains(&"t\u{fffd}".into()), "{major}: {names:?}");
            assert_eq!(bytes["indexes"][0]["name"], "t\u{fffd}_pkey", "{major}: {bytes}");
        }
    }
}
