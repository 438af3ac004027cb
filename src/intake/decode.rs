//! A body's bytes become metrics and rejects. The bytes of a metric are kept as they came.

use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{METRICS_MAX, Metric, REJECTED_NAMED_MAX};
use crate::metric::envelope::{self, Members, NoPush, Rejected};
use crate::metric::{self, Invalid, Maker, MetricType};

/// How metrics stand in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// One per line, says the `Content-Type`.
    Lines,
    /// `{"metrics": [...]}`, or one per line when the first line shows it.
    Any,
}

/// What a body holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Decoded {
    /// The sound ones, in their order.
    pub(super) metrics: Vec<Metric>,
    /// The others.
    pub(super) rejects: Rejects,
}

/// Metrics that are not taken.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rejects {
    /// The first of them.
    pub(super) named: Vec<Rejected>,
    /// How many there are.
    pub(super) total: u64,
}

/// Reads a whole body; `Err` when it is no push at all.
pub(super) fn decode(body: &Bytes, format: Format, now: Timestamp) -> Result<Decoded, Invalid> {
    let mut reading = Reading { body, now, decoded: Decoded::default() };
    match format {
        Format::Lines => reading.lines()?,
        Format::Any => match envelope(body) {
            Ok(metrics) => reading.array(&metrics),
            Err(_) if begins_with_a_metric(body) => reading.lines()?,
            Err(invalid) => return Err(invalid),
        },
    }
    let mut decoded = reading.decoded;
    release_rest(body, &mut decoded.metrics);
    Ok(decoded)
}

struct Reading<'a> {
    body: &'a Bytes,
    now: Timestamp,
    decoded: Decoded,
}

impl Reading<'_> {
    fn array(&mut self, metrics: &[&RawValue]) {
        self.decoded.metrics.reserve_exact(metrics.len());
        for (index, metric) in metrics.iter().enumerate() {
            self.admit(index, metric.get());
        }
    }

    /// A line that is no JSON is one reject; the others are not harmed.
    fn lines(&mut self) -> Result<(), Invalid> {
        let lines = self.body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        for (index, line) in lines.filter(|line| !line.is_empty()).enumerate() {
            if index >= METRICS_MAX {
                return Err(Invalid::new("", format!("more than {METRICS_MAX} metrics")));
            }
            match serde_json::from_slice::<&RawValue>(line) {
                Ok(metric) => self.admit(index, metric.get()),
                Err(error) => {
                    let message = format!("the line is no JSON: column {}", error.column());
                    self.reject(index, Invalid::new("", message));
                }
            }
        }
        Ok(())
    }

    fn admit(&mut self, index: usize, text: &str) {
        // The document of an older collector is several; it goes to the backend as it came.
        let mut first = None;
        let admitted = metric::each_document(text, self.now, Maker::Ours, |sound, _| {
            if sound.metric_type == MetricType::Agent {
                let message = "`agent` is what the agent says of itself";
                return Err(Invalid::new("type", message));
            }
            first.get_or_insert((sound.metric_type, sound.at));
            Ok(())
        });
        match (admitted, first) {
            (Ok(()), Some((metric_type, at))) => self.decoded.metrics.push(Metric {
                kind: metric_type.to_string(),
                at_ms: at.as_millisecond(),
                payload: on_one_line(self.body, text),
            }),
            (Ok(()), None) => self.reject(index, Invalid::new("databases", "none")),
            (Err(invalid), _) => self.reject(index, invalid),
        }
    }

    fn reject(&mut self, index: usize, Invalid { path, message }: Invalid) {
        let rejects = &mut self.decoded.rejects;
        rejects.total += 1;
        if rejects.named.len() < REJECTED_NAMED_MAX {
            rejects.named.push(Rejected { index, path, message });
        }
    }
}

/// The metric's bytes, shared with the body. Line ends, which JSON has between values only, become
/// spaces: a metric is one line wherever it is written down.
fn on_one_line(body: &Bytes, text: &str) -> Bytes {
    if memchr::memchr2(b'\n', b'\r', text.as_bytes()).is_none() {
        return body.slice_ref(text.as_bytes());
    }
    text.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }).collect()
}

/// Metrics that are a small part of the body get memory of their own, so that the queue does not
/// hold the rest with them.
fn release_rest(body: &Bytes, metrics: &mut [Metric]) {
    let kept: usize = metrics.iter().map(|metric| metric.payload.len()).sum();
    if kept < body.len() / 2 {
        for metric in metrics {
            metric.payload = Bytes::copy_from_slice(&metric.payload);
        }
    }
}

/// Whether the first line is a metric: an object with a type and without `metrics`, or the first of
/// several objects.
fn begins_with_a_metric(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct First<'a> {
        #[serde(borrow, default, rename = "type")]
        kind: Option<&'a RawValue>,
        #[serde(borrow, default)]
        metrics: Option<&'a RawValue>,
    }
    let body = body.trim_ascii();
    let (line, more) = match memchr::memchr(b'\n', body) {
        Some(end) => (&body[..end], true),
        None => (body, false),
    };
    line.starts_with(b"{")
        && serde_json::from_slice::<First<'_>>(line)
            .is_ok_and(|first| first.metrics.is_none() && (more || first.kind.is_some()))
}

/// The metrics of an envelope, all of whose other members may be absent.
fn envelope(body: &[u8]) -> Result<Vec<&RawValue>, Invalid> {
    let members = Members::read(body)?;
    for (name, said) in [
        ("collector_id", members.collector_id),
        ("hostname", members.hostname),
        ("timestamp", members.timestamp),
        ("version", members.version),
    ] {
        said.map_or(Ok(()), |said| envelope::check_string(name, said))?;
    }
    members.metrics().map_err(|no_push| match no_push {
        NoPush::Invalid(invalid) => invalid,
        NoPush::TooMany => Invalid::new("", no_push.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"type":"custom.a","timestamp":"2026-01-01T00:00:00Z"}"#;
    const BAD: &str = r#"{"type":"sysstat","timestamp":"2026-01-01T00:00:00Z","cpu":{"user":101}}"#;

    fn read(format: Format, body: impl Into<Bytes>) -> Result<Decoded, String> {
        let now = "2026-01-02T00:00:00Z".parse().expect("a time");
        decode(&body.into(), format, now).map_err(|invalid| invalid.to_string())
    }

    fn payloads(decoded: &Decoded) -> Vec<&str> {
        let text = |metric: &Metric| std::str::from_utf8(&metric.payload).expect("text").to_owned();
        let texts: Vec<String> = decoded.metrics.iter().map(text).collect();
        texts.into_iter().map(|text| &*text.leak()).collect()
    }

    /// The bytes are kept, the bad ones are named, and the others taken.
    #[test]
    fn metrics_are_told_apart_one_by_one() {
        let body =
            format!(r#"{{"hostname":"h","x":1,"metrics_count":3,"metrics":[{GOOD}, {BAD},1]}}"#);
        let decoded = read(Format::Any, body).unwrap();
        assert_eq!(payloads(&decoded), [GOOD]);
        let [metric] = &decoded.metrics[..] else { panic!("one") };
        assert_eq!((metric.kind.as_str(), metric.at_ms), ("custom.a", 1_767_225_600_000));
        let named: Vec<_> = decoded.rejects.named.iter().map(|r| (r.index, &*r.path)).collect();
        assert_eq!(named, [(1, "cpu.user"), (2, "")]);
        assert_eq!(decoded.rejects.total, 2);
    }

    #[test]
    fn lines_are_known_by_their_label_or_their_first_line() {
        let two = format!("{GOOD}\r\n\n {BAD}\n{GOOD}\n{{\"cut\n");
        for format in [Format::Lines, Format::Any] {
            let decoded = read(format, two.clone()).unwrap();
            assert_eq!(payloads(&decoded), [GOOD, GOOD]);
            let named: Vec<_> = decoded.rejects.named.iter().map(|r| r.index).collect();
            assert_eq!(named, [1, 3]);
        }
        for body in [GOOD.to_owned(), format!("\n{GOOD}\n")] {
            assert_eq!(payloads(&read(Format::Any, body).unwrap()), [GOOD]);
        }
        let pretty = format!("{{\n\"metrics\"\n:[\n{GOOD}\n]\n}}\n");
        assert_eq!(payloads(&read(Format::Any, pretty).unwrap()), [GOOD]);
        assert_eq!(read(Format::Lines, ""), Ok(Decoded::default()));
    }

    /// Other programs do not speak for the agent.
    #[test]
    fn the_agents_own_type_is_rejected() {
        let at = "2026-01-01T00:00:00Z";
        let agent = format!(r#"{{"type":"agent","timestamp":"{at}","started_at":"{at}"}}"#);
        metric::admit(&agent, at.parse().expect("a time")).expect("sound");
        let decoded = read(Format::Any, format!(r#"{{"metrics":[{agent},{GOOD}]}}"#)).unwrap();
        assert_eq!(payloads(&decoded), [GOOD]);
        let [rejected] = &decoded.rejects.named[..] else { panic!("one") };
        assert_eq!((rejected.index, rejected.path.as_str()), (0, "type"));
    }

    /// C5
    #[test]
    fn no_metrics_are_fine() {
        assert_eq!(read(Format::Any, r#" {"metrics":[]} "#), Ok(Decoded::default()));
    }

    /// The agent needs none of what stands beside the metrics: it may be empty.
    #[test]
    fn what_stands_beside_the_metrics_may_be_empty() {
        let body =
            format!(r#"{{"hostname":"","version":"","collector_id":"","metrics":[{GOOD}]}}"#);
        assert_eq!(payloads(&read(Format::Any, body).unwrap()), [GOOD]);
    }

    #[test]
    fn a_body_that_is_no_push_says_why() {
        let check = |body: &str, expected: &str| {
            let error = read(Format::Any, body.to_owned()).expect_err(body);
            assert!(error.contains(expected), "{body}: {error}");
        };
        check("", "no JSON: line 1, column 0");
        check("{", "no JSON: line 1, column 1");
        check("{}", "metrics: missing");
        check("{\"metrics\":null}", "metrics: missing");
        check("{\"metrics\":5}", "metrics: expected an array, found a number");
        check("[]", "expected an object");
        check("5", "expected an object");
        check("{\"metrics\":[],\"hostname\":5}", "hostname: expected a string");
        check(
            "{\"metrics\":[],\"metrics_count\":1}",
            "metrics_count: 1 announced, the array holds 0",
        );
        check("{\"metrics\":[]} x", "no JSON");
        check("{\"metrics\":[\"\u{0}\"]}", "no JSON");
        check(&format!("{{\"metrics\":[1{}]}}", ",1".repeat(METRICS_MAX)), "more than 100000");
        let error =
            decode(&Bytes::from_static(b"{\"metrics\":[\"\xff\"]}"), Format::Any, Timestamp::MIN);
        assert!(error.is_err_and(|error| error.message.contains("no JSON")));
    }

    #[test]
    fn rejects_beyond_the_named_ones_are_counted() {
        let many = format!("{{\"metrics\":[1{}]}}", ",1".repeat(REJECTED_NAMED_MAX + 4));
        let decoded = read(Format::Any, many).unwrap();
        assert_eq!(decoded.rejects.named.len(), REJECTED_NAMED_MAX);
        assert_eq!(decoded.rejects.total, REJECTED_NAMED_MAX as u64 + 5);
    }

    #[test]
    fn a_payload_is_one_line_and_holds_no_rest_of_the_body() {
        let pretty = GOOD.replace(',', ",\r\n  ");
        let decoded = read(Format::Any, format!("{{\"metrics\":[{pretty}]}}")).unwrap();
        assert_eq!(payloads(&decoded), [GOOD.replace(',', ",    ")]);
        let padded = Bytes::from(format!("{{\"metrics\":[{GOOD}],\"x\":\"{}\"}}", "x".repeat(500)));
        let decoded = read(Format::Any, padded.clone()).unwrap();
        assert!(!padded.as_ptr_range().contains(&decoded.metrics[0].payload.as_ptr()));
    }

    /// The compatible document of older collectors goes to the backend as it came.
    #[test]
    fn nested_databases_are_taken() {
        let nested = r#"{"type":"pg_stats","timestamp":"2026-01-01T00:00:00Z","databases":[{"name":"a","tables":[]}]}"#;
        let decoded = read(Format::Any, format!("{{\"metrics\":[{nested}]}}")).unwrap();
        assert_eq!(payloads(&decoded), [nested], "{:?}", decoded.rejects);
    }
}
