//! A quick look at a metric's text: one pass over the bytes, and nothing allocated but a list of
//! the keys of the objects that are open.
//!
//! It says either "[`validate`](super::validate) accepts this, and no key stands twice in an
//! object" or "ask". So the verdict is
//! always that of the shapes, and what is wrong is always told in its words; what is sound, nearly
//! everything, costs no value to be built first. A property test holds the two together.

use std::borrow::Cow;

use jiff::Timestamp;

use super::declare::{self, Field, Kind};
use super::shape::{
    ARRAY_ELEMENTS_MAX, COMMON, DEPTH_MAX, STRING_BYTES_MAX, TimeBounds, parse_time,
};

use super::MetricType;
use super::number::{self, Number};

/// Keys of one object that are compared with each other; objects with more are left to the parser.
const KEYS_COMPARED_MAX: usize = 64;

/// A sound metric, as far as the queue and the store want to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sound<'a> {
    /// Its type.
    pub metric_type: MetricType,
    /// When it was taken.
    pub at: Timestamp,
    /// Its `database`, when that is a string.
    pub database: Option<Cow<'a, str>>,
}

/// `Some` only for what `validate` accepts. `text` must be one JSON value; of other text nothing
/// is promised but an end.
pub(super) fn look(text: &str, now: Timestamp) -> Option<Sound<'_>> {
    // The type may stand anywhere in the object. The first guess is nearly always right, and it is
    // checked on the way.
    let guess = guess_type(text)?;
    let mut look = Look::new(text, now, guess);
    if let Some(sound) = look.metric() {
        return Some(sound);
    }
    let other = look.found.filter(|found| *found != guess)?;
    Look::new(text, now, other).metric()
}

fn guess_type(text: &str) -> Option<&str> {
    const KEY: &str = "\"type\"";
    let at = memchr::memmem::find(text.as_bytes(), KEY.as_bytes())? + KEY.len();
    let value = text.get(at..)?.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    value.split_once('"').map(|(name, _)| name)
}

struct Look<'a> {
    text: &'a str,
    at: usize,
    bounds: TimeBounds,
    /// The metric's type, as it is believed to be.
    believed: &'a str,
    /// The metric's type, as it was found.
    found: Option<&'a str>,
    /// The metric's own time.
    taken: Option<Timestamp>,
    /// The metric's `database`, as it stands in the text.
    database: Option<&'a str>,
    /// The keys so far of each object that is open, but those of fields, outermost first.
    keys: Vec<&'a str>,
    /// By how much its numbers grow when they are written out.
    written: u64,
}

/// A string as it stands in the text.
#[derive(Clone, Copy)]
struct Raw<'a> {
    text: &'a str,
    is_plain: bool,
}

impl<'a> Look<'a> {
    fn new(text: &'a str, now: Timestamp, believed: &'a str) -> Self {
        let bounds = TimeBounds::new(now);
        let (found, taken, database) = (None, None, None);
        Self { text, at: 0, bounds, believed, found, taken, database, keys: Vec::new(), written: 0 }
    }

    fn metric(&mut self) -> Option<Sound<'a>> {
        let metric_type: MetricType = self.believed.parse().ok()?;
        self.object(metric_type.fields(), &COMMON, 1)?;
        let database = match self.database.filter(|text| text.starts_with('"')) {
            None => None,
            Some(text) if text.contains('\\') => Some(serde_json::from_str(text).ok()?),
            Some(text) => Some(text.trim_matches('"').into()),
        };
        Some(Sound { metric_type, at: self.taken?, database })
    }

    fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(byte) = bytes.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    fn eat(&mut self, expected: u8) -> Option<()> {
        if self.peek()? != expected {
            return None;
        }
        self.at += 1;
        Some(())
    }

    /// Whether the next byte is `end`, which is eaten, or a comma, which is eaten too.
    fn ends(&mut self, end: u8) -> Option<bool> {
        let byte = self.peek()?;
        self.at += 1;
        match byte {
            b',' => Some(false),
            byte if byte == end => Some(true),
            _ => None,
        }
    }

    fn object(&mut self, own: &[Field], common: &[Field], depth: usize) -> Option<()> {
        if depth > DEPTH_MAX {
            return None;
        }
        self.eat(b'{')?;
        let outer = self.keys.len();
        let mut present = 0_u128;
        let mut ended = self.peek()? == b'}';
        self.at += usize::from(ended);
        while !ended {
            let key = self.string()?;
            // An escaped key may be that of a field, or one that stands there already.
            if key.text.len() > STRING_BYTES_MAX || !key.is_plain {
                return None;
            }
            self.eat(b':')?;
            self.peek()?;
            let begin = self.at;
            if let Some((index, field)) = find(own, common, key.text) {
                let bit = 1_u128.checked_shl(bits(index)?)?;
                if present & bit != 0 {
                    return None;
                }
                present |= bit;
                self.field(field, depth)?;
            } else {
                let others = self.keys.get(outer..)?;
                if others.len() == KEYS_COMPARED_MAX || others.contains(&key.text) {
                    return None;
                }
                self.keys.push(key.text);
                self.value(Kind::Any, depth)?;
            }
            if depth == 1 && key.text == "database" {
                self.database = self.text.get(begin..self.at);
            }
            ended = self.ends(b'}')?;
        }
        self.keys.truncate(outer);
        let required = declare::up_to_required(own).iter().enumerate();
        let missing = required.chain((own.len()..).zip(common)).any(|(index, field)| {
            field.required && bits(index).is_none_or(|bit| present & (1 << bit) == 0)
        });
        (!missing).then_some(())
    }

    fn map(&mut self, kind: Kind, depth: usize) -> Option<()> {
        if depth > DEPTH_MAX {
            return None;
        }
        self.eat(b'{')?;
        let mut ended = self.peek()? == b'}';
        self.at += usize::from(ended);
        while !ended {
            if self.string()?.text.len() > STRING_BYTES_MAX {
                return None;
            }
            self.eat(b':')?;
            self.value(kind, depth)?;
            ended = self.ends(b'}')?;
        }
        Some(())
    }

    fn field(&mut self, field: &Field, depth: usize) -> Option<()> {
        if self.peek()? == b'n' {
            // Not known, which a required field must not be.
            return if field.required { None } else { self.word("null") };
        }
        if depth > 1 {
            return self.value(field.kind, depth);
        }
        match field.name {
            "type" => {
                let name = self.string()?.text;
                self.found = Some(name);
                (name == self.believed).then_some(())
            }
            "timestamp" => {
                let text = self.string()?;
                let at = parse_time(text.text).ok()?;
                self.taken = Some(at);
                (text.is_plain && self.bounds.contain(at)).then_some(())
            }
            _ => self.value(field.kind, depth),
        }
    }

    fn array(&mut self, kind: Kind, depth: usize) -> Option<()> {
        if depth > DEPTH_MAX {
            return None;
        }
        self.eat(b'[')?;
        let mut ended = self.peek()? == b']';
        self.at += usize::from(ended);
        let mut elements = 0;
        while !ended {
            elements += 1;
            if elements > ARRAY_ELEMENTS_MAX {
                return None;
            }
            self.value(kind, depth)?;
            ended = self.ends(b']')?;
        }
        Some(())
    }

    /// A value in the object or array at `depth`.
    fn value(&mut self, kind: Kind, depth: usize) -> Option<()> {
        match (self.peek()?, kind) {
            (b'{', Kind::Any) => self.object(&[], &[], depth + 1),
            (b'{', Kind::Object(own)) => self.object(own, &[], depth + 1),
            (b'{', Kind::Map(value)) => self.map(*value, depth + 1),
            (b'[', Kind::Any) => self.array(Kind::Any, depth + 1),
            (b'[', Kind::Array(element)) => self.array(*element, depth + 1),
            (b'"', kind) => {
                let text = self.string()?;
                self.check_text(text, kind)
            }
            (b't', Kind::Any | Kind::Bool) => self.word("true"),
            (b'f', Kind::Any | Kind::Bool) => self.word("false"),
            (b'n', Kind::Any) => self.word("null"),
            (b'-' | b'0'..=b'9', kind) => self.number(kind),
            _ => None,
        }
    }

    fn word(&mut self, word: &str) -> Option<()> {
        self.text.get(self.at..)?.strip_prefix(word)?;
        self.at += word.len();
        Some(())
    }

    fn string(&mut self) -> Option<Raw<'a>> {
        self.eat(b'"')?;
        let start = self.at;
        let mut is_plain = true;
        loop {
            let rest = self.text.as_bytes().get(self.at..)?;
            self.at += memchr::memchr2(b'"', b'\\', rest)?;
            if self.text.as_bytes().get(self.at)? == &b'"' {
                let text = self.text.get(start..self.at)?;
                self.at += 1;
                return Some(Raw { text, is_plain });
            }
            is_plain = false;
            // Half a pair of surrogates is no text: the parser decides.
            if self.text.as_bytes().get(self.at + 1)? == &b'u'
                && matches!(self.text.as_bytes().get(self.at + 2)?, b'd' | b'D')
            {
                return None;
            }
            self.at += 2;
        }
    }

    fn number(&mut self, kind: Kind) -> Option<()> {
        let number = Number::at(self.text, self.at)?;
        self.at += number.text.len();
        self.written = self.written.saturating_add(number.grows_by()?);
        (self.written <= number::GROWTH_MAX && number.is_sound(kind)).then_some(())
    }

    /// Lengths are taken before escapes are undone, which only shortens.
    fn check_text(&self, raw: Raw<'_>, kind: Kind) -> Option<()> {
        let sound = match kind {
            Kind::Any | Kind::Text => raw.text.len() <= STRING_BYTES_MAX,
            Kind::Name => !raw.text.is_empty() && raw.text.len() <= STRING_BYTES_MAX,
            Kind::OneOf(words) => words.contains(&raw.text),
            Kind::Time => parse_time(raw.text).is_ok(),
            Kind::Taken => parse_time(raw.text).is_ok_and(|time| self.bounds.contain(time)),
            _ => false,
        };
        (sound && (raw.is_plain || matches!(kind, Kind::Any | Kind::Text | Kind::Name)))
            .then_some(())
    }
}

/// The field with this name, and which one it is.
fn find<'f>(own: &'f [Field], common: &'f [Field], name: &str) -> Option<(usize, &'f Field)> {
    let rest = || (own.len()..).zip(common).find(|(_, field)| field.name == name);
    declare::find(own, name).or_else(rest)
}

/// The bit of a field, when there is one for it.
fn bits(index: usize) -> Option<u32> {
    u32::try_from(index).ok().filter(|bit| *bit < u128::BITS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::{glance::Glance, keys::names_a_key_twice, parse_value, validate};
    use super::*;

    fn now() -> Timestamp {
        "2026-03-01T12:00:00Z".parse().expect("a time")
    }

    /// `Some` when the look is sure, which it must be right about.
    fn held_together(text: &str) -> Option<Sound<'_>> {
        let sound = look(text, now());
        if let Some(sound) = &sound {
            let value = parse_value(text.as_bytes())
                .unwrap_or_else(|error| panic!("accepted, and is no JSON: {error}: {text}"));
            assert_eq!(validate(&value, now()).as_ref(), Ok(&sound.metric_type), "{text}");
            assert!(!names_a_key_twice(text, &value), "accepted with a key twice: {text}");
            let at = value["timestamp"].as_str().map(str::parse::<Timestamp>);
            assert_eq!(at.and_then(Result::ok), Some(sound.at), "{text}");
            assert_eq!(value["database"].as_str(), sound.database.as_deref(), "{text}");
            assert_eq!(Glance::of(text).check_numbers(text), Ok(()), "{text}");
        }
        sound
    }

    /// What is ordinary must not take the long way.
    #[test]
    fn ordinary_metrics_are_sure() {
        let check = |metric: Value| {
            assert!(held_together(&metric.to_string()).is_some(), "{metric}");
            let pretty = serde_json::to_string_pretty(&metric).expect("JSON");
            assert!(held_together(&pretty).is_some(), "{pretty}");
        };
        let at = "2026-03-01T11:59:00.123Z";
        check(json!({"type": "custom.a_1", "timestamp": at}));
        check(json!({"timestamp": at, "type": "sysstat", "cpu": {"user": 99.99, "cores": 8},
            "memory": null, "disk_io": [{"device": "sda", "read_iops": 0.5}, {"device": "b"}]}));
        check(json!({"type": "pg_log", "timestamp": at, "database": "a", "entries":
            [{"timestamp": at, "level": "LOG", "message": "a \"quoted\" \\ \n\u{1} caf\u{e9}"}]}));
        check(
            json!({"type": "pg_stats", "timestamp": at, "database": "a", "other": [[], {}, true],
            "tables": [{"schema": "s", "name": "t", "live_tuples": 18_446_744_073_709_551_615_u64,
                "last_vacuum": at, "size_bytes": 0}]}),
        );
        check(
            json!({"type": "custom.x", "timestamp": at, "a": {"type": "sysstat"}, "n": -1.5e300}),
        );
        check(
            json!({"type": "custom.x", "timestamp": at, "a": [{"b": {"a": 1}}, {"b": 2}], "b": 3}),
        );
        for database in [json!("a"), json!("\"a\\\n"), json!(""), json!(5), json!(null)] {
            check(json!({"type": "custom.x", "timestamp": at, "database": database}));
        }
    }

    /// What is not sound, or not sure, is left to the shapes.
    #[test]
    fn what_is_not_sure_is_not_accepted() {
        let check = |text: &str| assert_eq!(held_together(text), None, "{text}");
        let of = |kind: &str, more: &str| {
            format!(r#"{{"type":"{kind}","timestamp":"2026-03-01T11:59:00Z"{more}}}"#)
        };
        assert!(held_together(&of("sysstat", "")).is_some());
        check("");
        check("[]");
        check("{}");
        check(r#"{"type":"sysstat"}"#);
        check(r#"{"type":"sysstat","timestamp":null}"#);
        check(&of("nonsense", ""));
        check(&of("custom.", ""));
        check(&of("sysstat", r#","cpu":{"user":101}"#));
        check(&of("sysstat", r#","cpu":{"cores":1.5}"#));
        check(&of("sysstat", r#","cpu":{"load_1m":-1}"#));
        check(&of("sysstat", r#","cpu":{"load_1m":1e999}"#));
        check(&of("sysstat", r#","cpu":{"load_1m":1e-20000}"#));
        check(&of("custom.x", r#","a":[0e999999]"#));
        check(&of("sysstat", r#","disk_io":[{}]"#));
        check(&of("sysstat", r#","disk_io":[null]"#));
        check(&of("sysstat", r#","x":"\ud800""#));
        check(&of("sysstat", r#","type":"pg_log""#));
        check(&of("sysstat", r#","timestamp":null"#));
        check(&of("sysstat", r#","cpu":{},"cpu":{}"#));
        check(&of("sysstat", r#","cpu":{"user":1,"user":1}"#));
        check(&of("custom.x", r#","a":1,"b":2,"a":1"#));
        check(&of("custom.x", r#","a":1,"\u0061":1"#));
        check(&of("custom.x", r#","x":[{"y":{"a":{"b":1},"b":{"a":1},"a":2}}]"#));
        check(&of("custom.x", r#","timestamp":"2026-03-01T11:59:00Z""#));
        check(&of("sysstat", r#","\u0063pu":{"user":101}"#));
        check(&of("sysstat", r#","timestamp":"1999-01-01T00:00:00Z""#));
        check(&of("sysstat", r#","timestamp":"2026-03-03T00:00:00Z""#));
        check(&of("sysstat", &format!(",\"x\":{}{}", "[".repeat(16), "]".repeat(16))));
        check(&of("sysstat", &format!(",\"x\":[0{}]", ",0".repeat(ARRAY_ELEMENTS_MAX))));
        check(&of("sysstat", &format!(",\"x\":\"{}\"", "x".repeat(STRING_BYTES_MAX + 1))));
        check(&of("sysstat", &format!(",\"x\":1{}", "0".repeat(400))));
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

    const KINDS: &[&str] =
        &["sysstat", "disk_usage", "pg_stats", "pg_log", "agent", "custom.x", "odd"];

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
        fn the_look_is_never_more_generous_than_the_shapes(text in document()) {
            held_together(&text);
        }

        /// A byte changed: mostly no JSON any more, which the look's caller has seen to.
        #[test]
        fn the_look_ends_on_any_text(text in ".{0,200}", document in document(), at in 0..400_usize) {
            look(&text, now());
            let cut: String = document.chars().take(at).collect();
            look(&cut, now());
        }
    }
}
