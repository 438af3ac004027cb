//! Held against an oracle: a walk over a tree of values, which is slow, and says yes or no.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::parse_value;
use super::*;

mod oracle;

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().expect("a time")
}

/// What is admitted, which must be what the oracle says.
fn admitted(text: &str) -> Option<Sound<'_>> {
    let found = admit(text, now());
    assert_eq!(found.as_ref().map(drop).map_err(drop), oracle::verdict(text, now()), "{text}");
    let sound = found.ok()?;
    let value = parse_value(text.as_bytes()).expect("what is admitted is JSON");
    assert_eq!(value["type"].as_str(), Some(&*sound.metric_type.to_string()), "{text}");
    let at = value["timestamp"].as_str().map(str::parse::<Timestamp>);
    assert_eq!(at.and_then(Result::ok), Some(sound.at), "{text}");
    assert_eq!(value["database"].as_str(), sound.database.as_deref(), "{text}");
    Some(sound)
}

fn of(kind: &str, more: &str) -> String {
    format!(r#"{{"type":"{kind}","timestamp":"2026-03-01T11:59:00Z"{more}}}"#)
}

#[test]
fn sound_metrics_are_admitted() {
    let check = |metric: Value| {
        assert!(admitted(&metric.to_string()).is_some(), "{metric}");
        let pretty = serde_json::to_string_pretty(&metric).expect("JSON");
        assert!(admitted(&pretty).is_some(), "{pretty}");
    };
    let at = "2026-03-01T11:59:00.123Z";
    check(json!({"type": "custom.a_1", "timestamp": at}));
    check(json!({"timestamp": at, "type": "sysstat", "cpu": {"user": 99.99, "cores": 8},
        "memory": null, "disk_io": [{"device": "sda", "read_iops": 0.5}, {"device": "b"}]}));
    check(json!({"type": "pg_log", "timestamp": at, "database": "a", "entries":
        [{"timestamp": at, "level": "LOG", "message": "a \"quoted\" \\ \n\u{1} caf\u{e9}"}]}));
    check(json!({"type": "pg_stats", "timestamp": at, "database": "a", "other": [[], {}, true],
        "tables": [{"schema": "s", "name": "t", "live_tuples": 18_446_744_073_709_551_615_u64,
            "last_vacuum": at, "size_bytes": 0}]}));
    check(json!({"type": "custom.x", "timestamp": at, "a": {"type": "sysstat"}, "n": -1.5e300}));
    check(json!({"type": "custom.x", "timestamp": at, "a": [{"b": {"a": 1}}, {"b": 2}], "b": 3}));
    for database in [json!("a"), json!("\"a\\\n"), json!(""), json!(5), json!(null)] {
        check(json!({"type": "custom.x", "timestamp": at, "database": database}));
    }
}

/// What is refused, where, and why.
#[test]
fn what_is_not_sound_is_refused() {
    let check = |text: &str, expected: &str| {
        assert_eq!(admitted(text), None, "{text}");
        let words = admit(text, now()).expect_err("refused").to_string();
        assert_eq!(words, expected, "{text}");
    };
    check("", "no JSON");
    check("[]", "a metric is an object, not an array");
    check("{}", "type: missing");
    check(r#"{"type":"sysstat"}"#, "timestamp: missing");
    check(r#"{"type":"sysstat","timestamp":null}"#, "timestamp: missing");
    check(r#"{"timestamp":null,"type":"sysstat"}"#, "timestamp: missing");
    check(r#"{"a":{"type":"x"},"type":5}"#, "type: expected a string, found a number");
    check(&of("nonsense", ""), "type: Unknown metric type: \"nonsense\"");
    check(&of("custom.", ""), "type: Unknown metric type: \"custom.\"");
    let cpu = |member: &str| of("sysstat", &format!(",\"cpu\":{{{member}}}"));
    check(&cpu(r#""user":101"#), "cpu.user: 101 is no percentage of 0 to 100");
    check(&cpu(r#""cores":1.5"#), "cpu.cores: 1.5 is no whole number");
    check(&cpu(r#""load_1m":-1"#), "cpu.load_1m: -1 is negative");
    check(&cpu(r#""load_1m":1e999"#), "cpu.load_1m: not a finite number");
    check(&cpu(r#""user":1,"user":1"#), "cpu: a key stands twice in one object");
    let digits = "a number has at most 16383 digits after the point";
    check(&cpu(r#""load_1m":1e-20000"#), &format!("cpu.load_1m: {digits}"));
    check(&of("custom.x", r#","a":[1,[0e999999]]"#), &format!("a[1][0]: {digits}"));
    let growing = of("custom.x", &format!(r#","a":[{}0]"#, "1e-16383,".repeat(65)));
    check(&growing, "a[64]: the numbers up to here are more than 1048576 digits");
    check(&of("sysstat", r#","disk_io":[{}]"#), "disk_io[0].device: missing");
    check(&of("sysstat", r#","disk_io":[null]"#), "disk_io[0]: expected an object, found null");
    let half = "no JSON: an escape does not stand for a character";
    check(&of("sysstat", r#","x":"\ud800""#), &format!("x: {half}"));
    let twice = "a key stands twice in one object";
    check(&of("sysstat", r#","type":"pg_log""#), twice);
    check(&of("sysstat", r#","timestamp":null"#), twice);
    check(&of("sysstat", r#","cpu":{},"cpu":{}"#), twice);
    check(&of("custom.x", r#","a":1,"b":2,"a":1"#), twice);
    check(&of("custom.x", r#","a":1,"\u0061":1"#), twice);
    let inner = of("custom.x", r#","x":[{"y":{"a":{"b":1},"b":{"a":1},"a":2}}]"#);
    check(&inner, &format!("x[0].y: {twice}"));
    check(&of("agent", r#","collectors":{"x":{},"x":{}}"#), &format!("collectors: {twice}"));
    let escaped = of("sysstat", r#","\u0063pu":{"user":101}"#);
    check(&escaped, "cpu.user: 101 is no percentage of 0 to 100");
    let at = |at: &str| format!(r#"{{"type":"sysstat","timestamp":"{at}"}}"#);
    let early = "timestamp: \"1999-01-01T00:00:00Z\" is before 2000-01-01";
    check(&at("1999-01-01T00:00:00Z"), early);
    let ahead = "timestamp: \"2026-03-03T00:00:00Z\" is more than 24 h ahead of this host's clock";
    check(&at("2026-03-03T00:00:00Z"), ahead);
    let deep = of("sysstat", &format!(",\"x\":{}{}", "[".repeat(16), "]".repeat(16)));
    check(&deep, &format!("x{}: nested more than 16 levels deep", "[0]".repeat(15)));
    let many = of("sysstat", &format!(",\"x\":[0{}]", ",0".repeat(ELEMENTS_MAX)));
    check(&many, "x: more than 100000 elements");
    let long = of("sysstat", &format!(",\"x\":\"{}\"", "x".repeat(STRING_BYTES_MAX + 1)));
    check(&long, "x: 65537 bytes long, the limit is 65536");
    let infinite = of("sysstat", &format!(",\"x\":1{}", "0".repeat(400)));
    check(&infinite, "x: not a finite number");
}

/// Escapes count as what they stand for.
#[test]
fn escapes_are_undone() {
    let text = format!(",\"x\":\"{}\"", "\\u0061".repeat(STRING_BYTES_MAX));
    assert!(admitted(&of("sysstat", &text)).is_some());
    let index = |status: &str| {
        of(
            "pg_stats",
            &format!(r#","database":"a","indexes":[{{"name":"i","status":"{status}"}}]"#),
        )
    };
    assert!(admitted(&index(r"US\u0045D")).is_some());
    assert!(admitted(&index(r"US\u0046D")).is_none());
    for text in [
        r#"{"typ\u0065":"sysst\u0061t","timestamp":"2026-03-01T11:59:00Z"}"#,
        r#"{"a":{"type":"pg_log"},"type":"sysstat","timestamp":"2026-03-01T11:59:0\u0030Z"}"#,
        r#"{"x":"\"type\":\"pg_log\"","type":"sysstat","timestamp":"2026-03-01T11:59:00Z"}"#,
    ] {
        assert_eq!(admitted(text).map(|sound| sound.metric_type), Some(MetricType::Sysstat));
    }
}

/// An object may have many keys, and each of them once.
#[test]
fn many_keys_are_told_apart() {
    let keys = |count: usize| {
        let keys: Vec<String> = (0..count).map(|n| format!(",\"k{n}\":{{\"a\":0}}")).collect();
        keys.concat()
    };
    for count in [1, KEYS_COMPARED_MAX, KEYS_COMPARED_MAX + 1, 500] {
        assert!(admitted(&of("custom.x", &keys(count))).is_some());
        for twice in [0, count - 1] {
            let text = of("custom.x", &format!("{},\"k{twice}\":1", keys(count)));
            assert!(admitted(&text).is_none(), "{count} keys and k{twice} again");
        }
    }
    assert!(admitted(&of("custom.x", &keys(ELEMENTS_MAX))).is_some());
    let more = of("custom.x", &format!(",\"x\":[{{\"a\":1{}}}]", keys(ELEMENTS_MAX)));
    let words = admit(&more, now()).expect_err("more").to_string();
    assert_eq!(words, "x[0]: more than 100000 members");
}

/// What is in strings counts for nothing.
#[test]
fn memory_is_told_from_the_text() {
    let check = |text: &str, objects: usize, values: usize| {
        let expected = objects * OBJECT_BYTES + values * VALUE_BYTES;
        assert_eq!(memory_of(text), Ok(expected), "{text}");
    };
    check("5", 0, 0);
    check(r#"["{,",{}]"#, 1, 2);
    check(r#"[{"":0},{"a":[1,2,3],"b":{}}]"#, 3, 6);
}

/// Values that are interesting in many places.
fn leaf() -> impl Strategy<Value = String> {
    const WORDS: &[&str] = &[
        "null",
        "true",
        "false",
        "0",
        "-0",
        "1",
        "-1",
        "1.0",
        "1.5",
        "100",
        "100.1",
        "100.05",
        "100.11",
        "-0.1",
        "-0.05",
        "-0.2",
        "1e2",
        "1E-400",
        "1e308",
        "1e309",
        "1e-16383",
        "1e-16384",
        "0e999999",
        "\"\"",
        "{}",
        "[]",
        "18446744073709551616",
        "0.1e3",
        "\"x\"",
        "\"\\u0041\"",
        "\"\\ud83d\\ude00\"",
        "\"\\udc00\"",
        "\"\\n\"",
        "\"ok\"",
        "\"o\\u006b\"",
        "\"USED\"",
        "\"LOG\"",
        "\"2026-03-01T11:00:00Z\"",
        "\"2026-03-01T11:00:00+00:00\"",
        "\"1999-12-31T23:59:59Z\"",
        "\"2026-03-02T12:00:00Z\"",
        "\"2026-03-02T12:00:01Z\"",
        "\"2026-03-01T11:00:0\\u0030Z\"",
    ];
    prop_oneof![
        4 => proptest::sample::select(WORDS).prop_map(str::to_owned),
        1 => any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(|n| format!("{n:e}")),
        1 => any::<String>().prop_map(|text| json!(text).to_string()),
    ]
}

fn key() -> impl Strategy<Value = String> {
    const WORDS: &[&str] = &[
        "type",
        "timestamp",
        "cpu",
        "user",
        "cores",
        "load_1m",
        "disk_io",
        "device",
        "read_iops",
        "database",
        "tables",
        "schema",
        "name",
        "live_tuples",
        "last_vacuum",
        "entries",
        "level",
        "message",
        "filesystems",
        "mount",
        "status",
        "typ\\u0065",
        "$serde_json::private::RawValue",
        "percent_used",
        "total_gb",
        "read_only",
        "indexes",
        "table",
        "collectors",
        "runs",
        "boot_at",
        "counts",
        "x",
        "",
    ];
    proptest::sample::select(WORDS).prop_map(str::to_owned)
}

const KINDS: &[&str] = &["sysstat", "disk_usage", "pg_stats", "pg_log", "agent", "custom.x", "odd"];

fn document() -> impl Strategy<Value = String> {
    let space = || proptest::sample::select(&["", "", "", " ", "\n\t"]);
    let inner = leaf().prop_recursive(4, 48, 6, move |inner| {
        let member = (key(), space(), inner.clone())
            .prop_map(|(key, space, value)| format!("\"{key}\"{space}:{space}{value}"));
        let list = |open: char, close: char| {
            move |parts: Vec<String>| format!("{open}{}{close}", parts.join(","))
        };
        prop_oneof![
            proptest::collection::vec(inner, 0..4).prop_map(list('[', ']')),
            proptest::collection::vec(member, 0..5).prop_map(list('{', '}')),
        ]
    });
    let member = (key(), inner.clone()).prop_map(|(key, value)| format!("\"{key}\":{value}"));
    let members = proptest::collection::vec(member, 0..8);
    (proptest::sample::select(KINDS), members, 0..9_usize, 0..9_usize).prop_map(
        |(kind, mut members, a, b)| {
            members.insert(a.min(members.len()), format!("\"type\":\"{kind}\""));
            let at = "\"timestamp\":\"2026-03-01T11:00:00Z\"".to_owned();
            members.insert(b.min(members.len()), at);
            format!("{{{}}}", members.join(","))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn the_walk_says_what_the_oracle_says(text in document()) {
        admitted(&text);
    }

    /// A byte changed: mostly no JSON any more, which who asks has seen to.
    #[test]
    fn the_walk_ends_on_any_text(text in ".{0,200}", document in document(), at in 0..400_usize) {
        _ = admit(&text, now());
        let cut: String = document.chars().take(at).collect();
        _ = admit(&cut, now());
    }
}
