//! What the answer to a push says beside its status. Each field is read by itself: what one of them
//! is does not hide another, and older backends leave some out.

use std::collections::BTreeSet;

use serde_json::value::RawValue;

use super::{Answer, Meaning};
use crate::metric::{envelope::Rejected, members};

/// Characters that are kept of a text of the backend's.
const TEXT_MAX: usize = 1_000;

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
        let (mut receipt, mut rejected) = (Self::default(), None);
        members::each_member(&answer.body, |name, value| match name {
            "duplicate" => receipt.duplicate = value.get() == "true",
            "next_config_version" => {
                receipt.next_config_version = serde_json::from_str(value.get()).ok();
            }
            "rejected" => rejected = Some(value),
            _ => {}
        });
        if let Some(list) = rejected.filter(|list| list.get() != "null") {
            receipt.rejected = read_rejected(list, records)?;
        }
        Ok(receipt)
    }
}

/// Each metric once, with what was said of it first. A list that is longer than the push is not
/// about it.
fn read_rejected(list: &RawValue, records: usize) -> Result<Vec<Rejected>, String> {
    let (mut named, mut rejected, mut place) = (BTreeSet::new(), Vec::new(), 0);
    let mut problem = None;
    let is_read = members::each_entry(list, |entry| {
        if place == records {
            problem = Some(format!("`rejected` has more entries than the push has, {records}"));
            return false;
        }
        let Some(found) = read_entry(entry, records) else {
            problem = Some(format!(
                "`rejected[{place}].index` names none of the {records} metrics of the push"
            ));
            return false;
        };
        place += 1;
        if named.insert(found.index) {
            rejected.push(found);
        }
        true
    });
    match problem {
        Some(problem) => Err(problem),
        None if is_read => Ok(rejected),
        None => Err("`rejected` is not a list".to_owned()),
    }
}

fn read_entry(entry: &RawValue, records: usize) -> Option<Rejected> {
    let (mut index, mut path, mut message) = (None, String::new(), String::new());
    let text = |value| {
        let text = members::text(value).unwrap_or_default();
        text.chars().take(TEXT_MAX).collect()
    };
    members::each_member(entry.get().as_bytes(), |name, value| match name {
        "index" => index = serde_json::from_str(value.get()).ok(),
        "path" => path = text(value),
        "message" => message = text(value),
        _ => {}
    });
    let index = index.filter(|index| *index < records)?;
    Some(Rejected { index, path, message })
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

    /// An answer of the largest size costs what it is, and not hundreds of times as much; a list that
    /// is longer than the push is not about it.
    #[test]
    fn a_list_is_bounded_by_the_push() {
        let list = |count: usize| {
            let entries = vec![r#"{"index":0}"#; count].join(",");
            format!(r#"{{"status":"success","rejected":[{entries}]}}"#)
        };
        assert_eq!(read(200, &list(3)).unwrap().rejected, [bad(0, "", "")]);
        for count in [4, 300_000] {
            let error = read(200, &list(count)).expect_err("too many");
            assert!(error.contains("more entries than the push has, 3"), "{error}");
        }
        let long = "m".repeat(1 << 20);
        let body =
            format!(r#"{{"status":"success","rejected":[{{"index":1,"message":"{long}"}}]}}"#);
        assert_eq!(read(200, &body).unwrap().rejected[0].message.len(), TEXT_MAX);
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
