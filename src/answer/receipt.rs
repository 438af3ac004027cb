//! What the answer to a push says beside its status. Each field is read by itself: what one of them
//! is does not hide another, and older backends leave some out.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Answer, Meaning};
use crate::metric::envelope::Rejected;

/// A backend's word for what it has taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Receipt {
    /// The batch had been stored before.
    pub duplicate: bool,
    /// The version of the configuration that the backend has for this agent.
    pub next_config_version: Option<i64>,
    /// Metrics that it does not take, by their place in the push.
    pub rejected: Vec<Rejected>,
}

impl Receipt {
    /// Reads what comes with a success to a push of so many `records`; of any other answer it is
    /// empty. `Err` says what cannot be read of `rejected`: which records the backend has not taken
    /// is not known then.
    pub fn of(answer: &Answer, records: usize) -> Result<Self, String> {
        if answer.meaning() != Meaning::Success {
            return Ok(Self::default());
        }
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        Ok(Self {
            duplicate: body.get("duplicate") == Some(&Value::Bool(true)),
            next_config_version: body.get("next_config_version").and_then(Value::as_i64),
            rejected: match body.get("rejected") {
                None | Some(Value::Null) => Vec::new(),
                Some(Value::Array(list)) => read_rejected(list, records)?,
                Some(_) => return Err("`rejected` is not a list".to_owned()),
            },
        })
    }
}

/// Each metric once, with what was said of it first.
fn read_rejected(list: &[Value], records: usize) -> Result<Vec<Rejected>, String> {
    let mut named = BTreeSet::new();
    let mut rejected = Vec::new();
    for (place, entry) in list.iter().enumerate() {
        let index = entry.get("index").and_then(Value::as_u64);
        let index = index.and_then(|index| usize::try_from(index).ok());
        let index = index.filter(|index| *index < records).ok_or_else(|| {
            format!("`rejected[{place}].index` names none of the {records} metrics of the push")
        })?;
        let text = |field| entry.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        if named.insert(index) {
            rejected.push(Rejected { index, path: text("path"), message: text("message") });
        }
    }
    Ok(rejected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Purpose;

    fn read(status: u16, body: &str) -> Result<Receipt, String> {
        Receipt::of(&Answer::new(Purpose::Data, status, body.to_owned()), 3)
    }

    fn bad(index: usize, path: &str, message: &str) -> Rejected {
        Rejected { index, path: path.to_owned(), message: message.to_owned() }
    }

    /// C32: a metric that a backend names is not lost among fields that it leaves out.
    #[test]
    fn each_field_is_read_by_itself() {
        let short = r#"{"status":"success","rejected":[{"index":2,"message":"no"},
            {"index":0,"path":"cpu","message":5}],"next_config_version":"7"}"#;
        let receipt = read(200, short).unwrap();
        assert_eq!(receipt.rejected, [bad(2, "", "no"), bad(0, "cpu", "")]);
        assert_eq!((receipt.duplicate, receipt.next_config_version), (false, None));
        let known = r#"{"status":"success","duplicate":true,"next_config_version":4}"#;
        let known = read(200, known).unwrap();
        assert_eq!((known.duplicate, known.next_config_version), (true, Some(4)));
        for none in ["[]", "null"] {
            let body = format!(r#"{{"status":"success","rejected":{none}}}"#);
            assert_eq!(read(200, &body), Ok(Receipt::default()));
        }
        assert_eq!(read(200, r#"{"status":"error","duplicate":true}"#), Ok(Receipt::default()));
    }

    #[test]
    fn a_metric_is_refused_once() {
        let twice = r#"{"status":"success","rejected":[{"index":1,"message":"a"},
            {"index":0,"message":"b"},{"index":1,"message":"c"}]}"#;
        assert_eq!(read(200, twice).unwrap().rejected, [bad(1, "", "a"), bad(0, "", "b")]);
    }

    /// What is refused and not named is in no batch's letters: nothing is taken for delivered.
    #[test]
    fn refusals_that_name_no_metric_are_not_passed_over() {
        let check = |rejected: &str, expected: &str| {
            let body = format!(r#"{{"status":"success","rejected":{rejected}}}"#);
            let error = read(200, &body).expect_err(rejected);
            assert!(error.contains(expected), "{rejected}: {error}");
        };
        for rejected in ["{}", "2", "true", r#""1""#] {
            check(rejected, "not a list");
        }
        for entry in [
            r#"{"path":"x"}"#,
            "7",
            "null",
            r#"{"index":-1}"#,
            r#"{"index":"1"}"#,
            r#"{"index":1.0}"#,
            r#"{"index":null}"#,
            r#"{"index":3}"#,
        ] {
            check(
                &format!(r#"[{{"index":0}},{entry}]"#),
                "`rejected[1].index` names none of the 3",
            );
        }
    }
}
