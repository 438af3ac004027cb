//! The limits of what an agent says of itself with a push (contract section 5).
//!
//! What is over a limit is left out and counted, and the metrics beside it are stored: a refusal
//! would send sound records to the dead letters.

use serde::{Deserialize as _, Serialize};
use serde_json::{Map, Number, Value};

use super::envelope::LostRange;

/// The longest `config_error`, bytes.
pub const CONFIG_ERROR_BYTES_MAX: usize = 4 << 10;
/// The most entries of `lost`.
pub const LOST_MAX: usize = 1_000;
/// How a record may be lost.
pub const LOST_REASONS: &[&str] = &["reject", "evict", "refuse", "corrupt"];
/// The largest `clock_offset_ms` that is believed, either way: 100 years.
pub const CLOCK_OFFSET_MS_MAX: i64 = 100 * 31_557_600_000;

/// What was left out of an `agent` object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Cut {
    /// Bytes of `config_error`.
    #[serde(skip_serializing_if = "is_zero")]
    pub config_error_bytes: u64,
    /// Entries of `lost`: too many, of an unknown reason, or not readable.
    #[serde(skip_serializing_if = "is_zero")]
    pub lost: u64,
    /// Numbers out of their range, which count as 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub numbers: u64,
}

impl Cut {
    /// Nothing was left out.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Brings the members of an `agent` object within the limits.
pub(super) fn bound(agent: &mut Map<String, Value>) -> Cut {
    let mut cut = Cut::default();
    if let Some(Value::String(text)) = agent.get_mut("config_error") {
        let most = text.len().min(CONFIG_ERROR_BYTES_MAX);
        let kept = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        cut.config_error_bytes = (text.len() - kept) as u64;
        text.truncate(kept);
    }
    if let Some(Value::Array(lost)) = agent.get_mut("lost") {
        let said = lost.len();
        lost.truncate(LOST_MAX);
        lost.retain(is_loss);
        cut.lost = (said - lost.len()) as u64;
    }
    let offsets = -CLOCK_OFFSET_MS_MAX..=CLOCK_OFFSET_MS_MAX;
    fit(agent, "clock_offset_ms", &mut cut, |n| n.as_i64().is_some_and(|n| offsets.contains(&n)));
    for key in ["config_version", "config_error_version"] {
        fit(agent, key, &mut cut, Number::is_i64);
    }
    if let Some(Value::Object(backlog)) = agent.get_mut("backlog") {
        for key in ["segments", "batches", "records", "bytes"] {
            fit(backlog, key, &mut cut, Number::is_u64);
        }
    }
    cut
}

fn is_loss(entry: &Value) -> bool {
    LostRange::deserialize(entry).is_ok_and(|entry| LOST_REASONS.contains(&entry.reason.as_str()))
}

fn fit(members: &mut Map<String, Value>, key: &str, cut: &mut Cut, fits: impl Fn(&Number) -> bool) {
    if let Some(value @ Value::Number(_)) = members.get_mut(key)
        && !value.as_number().is_some_and(fits)
    {
        *value = 0.into();
        cut.numbers += 1;
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_over_a_limit_is_cut_and_counted() {
        let check = |key: &str, said: Value, kept: Value, expected: Cut| {
            let mut agent = json!({key: said});
            let cut = bound(agent.as_object_mut().expect("an object"));
            assert_eq!((&agent[key], cut), (&kept, expected));
        };
        let none = Cut::default();
        check("config_error", json!("x".repeat(4096)), json!("x".repeat(4096)), none);
        let cut = Cut { config_error_bytes: 2, ..none };
        check("config_error", json!("\u{e9}".repeat(2049)), json!("\u{e9}".repeat(2048)), cut);
        let loss = |reason: &str| json!({"from": 1, "to": 2, "records": 2, "reason": reason, "at": "2026-01-01T00:00:00Z"});
        let many = json!(vec![loss("evict"); 1005]);
        check("lost", many, json!(vec![loss("evict"); 1000]), Cut { lost: 5, ..none });
        let odd = json!([loss("evict"), loss("else"), loss("corrupt"), {"from": -1}, 5]);
        check("lost", odd, json!([loss("evict"), loss("corrupt")]), Cut { lost: 3, ..none });
        let out = Cut { numbers: 1, ..none };
        let century = CLOCK_OFFSET_MS_MAX;
        check("clock_offset_ms", json!(-century), json!(-century), none);
        check("clock_offset_ms", json!(century + 1), json!(0), out);
        check("clock_offset_ms", json!(-1e15), json!(0), out);
        check("clock_offset_ms", json!(i64::MIN), json!(0), out);
        check("config_version", json!(u64::MAX), json!(0), out);
        check("config_version", json!("3"), json!("3"), none);
        let backlog = json!({"records": -1, "bytes": 1e300, "segments": 5});
        let kept = json!({"records": 0, "bytes": 0, "segments": 5});
        check("backlog", backlog, kept, Cut { numbers: 2, ..none });
    }
}
