use serde_json::json;

use super::*;

const NOW: &str = "2026-03-01T12:00:00Z";

fn refused(metric: &Value) -> String {
    match validate(metric, NOW.parse().expect("a time")) {
        Ok(_) => String::new(),
        Err(invalid) => invalid.to_string(),
    }
}

/// Adds the common fields to `fields` and compares the refusal, empty for none.
fn check(kind: &str, fields: Value, expected: &str) {
    let mut metric = json!({"type": kind, "timestamp": "2026-03-01T11:59:00.123Z"});
    let Value::Object(fields) = fields else { unreachable!("fields are an object") };
    metric.as_object_mut().expect("an object").extend(fields);
    assert_eq!(refused(&metric), expected, "{metric}");
}

/// C3: any subset of sysstat's parts is good; a part of the wrong type is not.
#[test]
fn sysstat_parts_are_optional_and_typed() {
    check("sysstat", json!({}), "");
    check("sysstat", json!({"cpu": null}), "");
    check("sysstat", json!({"cpu": {"user": 1.5, "idle": 98.5}}), "");
    check("sysstat", json!({"memory": {"total_mb": 2048}}), "");
    check("sysstat", json!({"cpu": []}), "cpu: expected an object, found an array");
    check("sysstat", json!({"disk_io": [{"read_ops": 1}]}), "disk_io[0].device: missing");
    check("sysstat", json!({"cpu": {"user": "1"}}), "cpu.user: expected a number, found a string");
}

/// C3: what a metric cannot do without.
#[test]
fn required_fields_are_required() {
    check("pg_stats", json!({}), "database: missing");
    check("pg_stats", json!({"database": null}), "database: missing");
    check("pg_stats", json!({"database": ""}), "database: empty");
    check("pg_stats", json!({"database": 5}), "database: expected a string, found a number");
    check("pg_stats", json!({"database": "a"}), "");
    check(
        "pg_stats",
        json!({"database": "a", "tables": [{"name": "t"}]}),
        "tables[0].schema: missing",
    );
    let tables = json!([{"name": "t", "schema": "s"}, {"schema": "s"}]);
    check("pg_stats", json!({"database": "a", "tables": tables}), "tables[1].name: missing");
    check("pg_log", json!({"entries": []}), "database: missing");
    let entry = |change: Value| {
        let mut entry = json!({"timestamp": NOW, "level": "LOG", "message": "m"});
        let Value::Object(change) = change else { unreachable!("an object") };
        entry.as_object_mut().expect("an object").extend(change);
        json!({"database": "a", "entries": [entry]})
    };
    check("pg_log", entry(json!({})), "");
    check("pg_log", entry(json!({"timestamp": null})), "entries[0].timestamp: missing");
    check("pg_log", entry(json!({"level": null})), "entries[0].level: missing");
    check("pg_log", entry(json!({"message": null})), "entries[0].message: missing");
    let filesystems = |f: Value| json!({"filesystems": [f]});
    check("disk_usage", filesystems(json!({"mount": "/"})), "filesystems[0].device: missing");
    check("disk_usage", filesystems(json!({"device": "d"})), "filesystems[0].mount: missing");
    check("disk_usage", filesystems(json!({"device": "d", "mount": "/"})), "");
    check(
        "disk_usage",
        json!({"filesystems": ["/"]}),
        "filesystems[0]: expected an object, found a string",
    );
}

/// C3, C4: a metric that is no object or has no known type.
#[test]
fn unknown_types_are_refused_with_the_contracts_words() {
    let check = |metric: Value, expected: &str| assert_eq!(refused(&metric), expected, "{metric}");
    check(json!(5), "a metric is an object, not a number");
    check(json!([]), "a metric is an object, not an array");
    check(json!({}), "type: missing");
    check(json!({"type": 5}), "type: expected a string, found a number");
    check(json!({"type": "mystery"}), "type: Unknown metric type: \"mystery\"");
    check(json!({"type": "custom."}), "type: Unknown metric type: \"custom.\"");
    check(json!({"type": "custom.Big"}), "type: Unknown metric type: \"custom.Big\"");
    let long = format!("custom.{}", "a".repeat(65));
    assert!(refused(&json!({"type": long})).contains("Unknown metric type"));
    check(json!({"type": "sysstat"}), "timestamp: missing");
    check(json!({"type": "custom.my_job1", "timestamp": NOW, "x": [{"y": -1}]}), "");
}

/// C2: timestamps are RFC 3339, UTC, end in `Z`, and lie within the contract's bounds.
#[test]
fn timestamps_are_utc_and_bounded() {
    let check = |timestamp: Value, expected: &str| {
        let metric = json!({"type": "sysstat", "timestamp": timestamp});
        assert_eq!(refused(&metric), expected, "{metric}");
    };
    check(json!("2026-03-01T12:00:00Z"), "");
    check(json!("2026-03-01T12:00:00.123456Z"), "");
    check(json!("2000-01-01T00:00:00Z"), "");
    check(json!("2026-03-02T12:00:00Z"), "");
    check(json!(5), "timestamp: expected a timestamp, found a number");
    check(
        json!("2026-03-01T12:00:00+00:00"),
        "timestamp: \"2026-03-01T12:00:00+00:00\" does not end in `Z`: timestamps are UTC",
    );
    check(json!("yesterdayZ"), "timestamp: \"yesterdayZ\" is no RFC 3339 timestamp");
    check(
        json!("1999-12-31T23:59:59Z"),
        "timestamp: \"1999-12-31T23:59:59Z\" is before 2000-01-01",
    );
    check(
        json!("2026-03-02T12:00:01Z"),
        "timestamp: \"2026-03-02T12:00:01Z\" is more than 24 h ahead of this host's clock",
    );
}

/// C44: counts and sizes are whole and not negative, percentages lie in 0..100 with slack.
#[test]
fn numbers_are_bounded() {
    let cpu = |user: f64| json!({"cpu": {"user": user}});
    check("sysstat", cpu(0.0), "");
    check("sysstat", cpu(-0.1), "");
    check("sysstat", cpu(100.1), "");
    check("sysstat", cpu(100.2), "cpu.user: 100.2 is no percentage of 0 to 100");
    check("sysstat", cpu(-0.2), "cpu.user: -0.2 is no percentage of 0 to 100");
    check("sysstat", json!({"memory": {"total_mb": -1}}), "memory.total_mb: -1 is negative");
    check(
        "sysstat",
        json!({"memory": {"total_mb": 1.5}}),
        "memory.total_mb: 1.5 is no whole number",
    );
    check("sysstat", json!({"memory": {"total_mb": 12.0}}), "");
    check("sysstat", json!({"cpu": {"load_1m": -0.5}}), "cpu.load_1m: -0.5 is negative");
    check("pg_stats", json!({"database": "a", "size_bytes": u64::MAX}), "");
    let index = json!({"database": "a", "indexes": [{"name": "i", "status": "MAYBE"}]});
    check("pg_stats", index, "indexes[0].status: \"MAYBE\" is none of USED, UNUSED");
    check(
        "pg_stats",
        json!({"database": "a", "status": "tired"}),
        "status: \"tired\" is none of ok, unsupported_version, permission, locked, timeout, \
         recovery, disabled, error",
    );
}

/// A time that somebody else's clock says is no reason to refuse what stands beside it.
#[test]
fn only_a_documents_own_time_is_near_the_present() {
    let ahead = json!({"database": "a", "server": {"started_at": "2027-03-01T12:00:00Z"}});
    check("pg_stats", ahead, "");
    check("sysstat", json!({"boot_at": "1970-01-01T00:00:01Z"}), "");
    let no_time = json!({"boot_at": "yesterday"});
    check("sysstat", no_time, "boot_at: \"yesterday\" does not end in `Z`: timestamps are UTC");
}

/// What stands under the names of a map is held to its declaration.
#[test]
fn the_names_of_a_map_are_free() {
    check("agent", json!({"collectors": {"any name": {"runs": 1}, "": {}}}), "");
    let negative = json!({"collectors": {"x": {"runs": -1}}});
    check("agent", negative, "collectors.x.runs: -1 is negative");
    let list = json!({"collectors": []});
    check("agent", list, "collectors: expected an object, found an array");
}

/// Fields the contract does not know are kept within the common limits, which hold everywhere.
#[test]
fn common_limits_hold_in_unknown_fields() {
    check("sysstat", json!({"new": {"deep": [1, "x", null, -5]}}), "");
    check("sysstat", json!({"new": "x".repeat(STRING_BYTES_MAX)}), "");
    let long = json!({"new": {"a": ["x".repeat(STRING_BYTES_MAX + 1)]}});
    check("sysstat", long, "new.a[0]: 65537 bytes long, the limit is 65536");
    check("sysstat", json!({"new": vec![1; ELEMENTS_MAX]}), "");
    let many = json!({"new": vec![1; ELEMENTS_MAX + 1]});
    check("sysstat", many, "new: more than 100000 elements");
    let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
    check("sysstat", json!({"new": nested(DEPTH_MAX - 1)}), "");
    let path = format!("new{}", "[0]".repeat(DEPTH_MAX - 1));
    let deep = json!({"new": nested(DEPTH_MAX)});
    check("sysstat", deep, &format!("{path}: nested more than 16 levels deep"));
}

/// The documents the collectors build are valid and keep "not known" apart from 0.
#[test]
fn typed_documents_are_valid() {
    let at = Time(NOW.parse().expect("a time"));
    let sysstat = sysstat::Sysstat {
        timestamp: at,
        cpu: Some(sysstat::Cpu { cores: Some(2), ..Default::default() }),
        disk_io: Some(vec![sysstat::DiskIo { device: "sda".into(), ..Default::default() }]),
        uptime_s: Some(1.5),
        ..Default::default()
    };
    let value = serde_json::to_value(&sysstat).expect("encodes");
    assert_eq!(refused(&value), "");
    assert_eq!(value["type"], "sysstat");
    assert_eq!(value["timestamp"], "2026-03-01T12:00:00.000Z");
    assert_eq!(value["cpu"].get("user"), None);
    assert_eq!(value.get("memory"), None);
    assert_eq!(value["disk_io"][0].get("read_iops"), None);

    let index = pg_stats::Index {
        name: "i".into(),
        status: Some(pg_stats::Usage::Unused),
        ..Default::default()
    };
    assert_eq!(serde_json::to_value(&index).expect("encodes")["status"], "UNUSED");
    for status in [Status::Ok, Status::UnsupportedVersion, Status::Error] {
        assert_eq!(serde_json::to_value(status).expect("encodes"), status.name());
    }
}

/// The names on the wire, both ways.
#[test]
fn types_are_read_back_from_their_names() {
    for name in ["sysstat", "disk_usage", "pg_stats", "pg_log", "agent", "custom.a_1"] {
        assert_eq!(name.parse::<MetricType>().map(|t| t.to_string()), Ok(name.to_owned()));
    }
}

/// An existing collector's nested `databases[]` becomes one metric for each database.
#[test]
fn nested_databases_are_split() {
    let nested = json!({
        "type": "pg_stats", "timestamp": NOW, "server_version": "16",
        "databases": [
            {"database": "a", "size_bytes": 5, "tables": [{"schema": "s", "name": "t"}]},
            {"name": "b", "indexes": []},
            {"tables": []},
        ],
    });
    let split: Vec<Value> = split_compat(nested).collect();
    assert_eq!(split.len(), 3);
    assert_eq!(
        split[0],
        json!({
            "type": "pg_stats", "timestamp": NOW, "server_version": "16", "database": "a",
            "size_bytes": 5, "tables": [{"schema": "s", "name": "t"}],
            "databases": [{"name": "a", "size_bytes": 5}, {"name": "b"}],
        })
    );
    assert_eq!(split[1]["database"], "b");
    assert_eq!(split.iter().map(refused).collect::<Vec<_>>(), ["", "", "database: missing"]);

    let unchanged = |metric: Value| {
        assert_eq!(split_compat(metric.clone()).collect::<Vec<_>>(), [metric]);
    };
    unchanged(
        json!({"type": "pg_stats", "database": "a", "databases": [{"name": "a", "tables": []}]}),
    );
    unchanged(json!({"type": "pg_stats", "databases": [{"name": "a"}]}));
    unchanged(json!({"type": "sysstat", "databases": [{"name": "a", "tables": []}]}));
    unchanged(json!(5));
}

#[test]
fn refusals_are_placed_under_their_parent() {
    let check = |path: &str, expected: &str| {
        assert_eq!(Invalid::new(path, "m").under("metrics[3]").path, expected);
    };
    check("", "metrics[3]");
    check("cpu.user", "metrics[3].cpu.user");
    check("[0].x", "metrics[3][0].x");
}

/// What a document quotes is not the document.
#[test]
fn a_document_is_judged_by_what_it_is() {
    let now: Timestamp = NOW.parse().expect("a time");
    let key = "$serde_json::private::RawValue";
    let good = r#"{"type":"custom.x","timestamp":"2026-03-01T11:59:00Z"}"#;
    let posing = format!("{{\"{key}\":{}}}", json!(good));
    assert_eq!(admit(&posing, now).expect_err("no type").to_string(), "type: missing");
    for inner in [json!(good), json!("no json"), json!(5), json!({})] {
        let head = format!("{{\"{key}\":{inner},");
        let text = good.replacen('{', &head, 1);
        let sound = admit(&text, now).expect(&text);
        assert_eq!(sound.metric_type.to_string(), "custom.x");
        let value = parse_value(text.as_bytes()).expect("JSON");
        assert_eq!(validate(&value, now), Ok(sound.metric_type), "the backend says the same");
    }
}
