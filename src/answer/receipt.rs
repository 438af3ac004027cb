//! What the answer to a push says beside its status. Each field is read by itself: what one of them
//! is does not hide another, and older backends leave some out.

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
    /// Reads what comes with a success; of any other answer it is empty.
    pub fn of(answer: &Answer) -> Self {
        if answer.meaning() != Meaning::Success {
            return Self::default();
        }
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let rejected = body.get("rejected").and_then(Value::as_array);
        Self {
            duplicate: body.get("duplicate") == Some(&Value::Bool(true)),
            next_config_version: body.get("next_config_version").and_then(Value::as_i64),
            rejected: rejected.into_iter().flatten().filter_map(read_rejected).collect(),
        }
    }
}

/// Without an index there is no metric that it is about.
fn read_rejected(rejected: &Value) -> Option<Rejected> {
    let index = usize::try_from(rejected.get("index")?.as_u64()?).ok()?;
    let text = |field| rejected.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    Some(Rejected { index, path: text("path"), message: text("message") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Purpose;

    fn read(status: u16, body: &str) -> Receipt {
        Receipt::of(&Answer::new(Purpose::Data, status, body.to_owned()))
    }

    /// C32: a metric that a backend names is not lost among fields that it leaves out.
    #[test]
    fn each_field_is_read_by_itself() {
        let bad = |index, path: &str, message: &str| Rejected {
            index,
            path: path.to_owned(),
            message: message.to_owned(),
        };
        let short = r#"{"status":"success","rejected":[{"index":2,"message":"no"},{"path":"x"},7,
            {"index":-1},{"index":0,"path":"cpu","message":5}],"next_config_version":"7"}"#;
        let receipt = read(200, short);
        assert_eq!(receipt.rejected, [bad(2, "", "no"), bad(0, "cpu", "")]);
        assert_eq!((receipt.duplicate, receipt.next_config_version), (false, None));
        let known = read(200, r#"{"status":"success","duplicate":true,"next_config_version":4}"#);
        assert_eq!((known.duplicate, known.next_config_version), (true, Some(4)));
        assert_eq!(read(200, r#"{"status":"success","rejected":{}}"#), Receipt::default());
        assert_eq!(read(200, r#"{"status":"error","duplicate":true}"#), Receipt::default());
    }
}
