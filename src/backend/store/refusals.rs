//! What collectors send and the backend does not take, counted.

use jiff::Timestamp;
use serde::{Serialize, Serializer};

/// The longest message kept, characters.
const MESSAGE_CHARS_MAX: usize = 200;

/// Why something was not taken. There are few, so that a collector has few rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RefusalReason {
    /// Metrics that are not sound; what was sound beside them is stored.
    InvalidMetric,
    /// Pushes that cannot be read: damaged, in an unknown encoding, or with a wrong envelope.
    BadPush,
    /// Pushes with too many bytes.
    TooLarge,
    /// Pushes with too many metrics, or with too many that are not sound.
    TooManyMetrics,
    /// Pushes whose envelope names another collector.
    OtherCollector,
    /// Pushes that the store can never hold, or that are over one of its bounds.
    Store,
    /// Requests without a good token, of a collector that is known by something else: by the
    /// signature of a token that has ended, or by its certificate.
    Unauthorized,
    /// Requests with a good token over a connection without the collector's certificate.
    Certificate,
}

/// How often something of a collector was not taken for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusalCount {
    /// Why.
    pub reason: RefusalReason,
    /// How many metrics, pushes or requests.
    pub count: u64,
    /// The last time.
    #[serde(serialize_with = "super::rows::rfc3339")]
    pub last_at: Timestamp,
    /// What was said the last time, cut.
    pub last_message: String,
}

impl RefusalReason {
    const ALL: [Self; 8] = [
        Self::InvalidMetric,
        Self::BadPush,
        Self::TooLarge,
        Self::TooManyMetrics,
        Self::OtherCollector,
        Self::Store,
        Self::Unauthorized,
        Self::Certificate,
    ];

    /// The word for it, in the store and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidMetric => "invalid_metric",
            Self::BadPush => "bad_push",
            Self::TooLarge => "too_large",
            Self::TooManyMetrics => "too_many_metrics",
            Self::OtherCollector => "other_collector",
            Self::Store => "store",
            Self::Unauthorized => "unauthorized",
            Self::Certificate => "certificate",
        }
    }

    /// Reads what [`RefusalReason::as_str`] writes.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

impl Serialize for RefusalReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl RefusalCount {
    /// So many at once. The message may have a client's words in it.
    pub fn new(reason: RefusalReason, count: u64, message: &str, at: Timestamp) -> Self {
        let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        let last_message = message.chars().take(MESSAGE_CHARS_MAX).map(shown).collect();
        Self { reason, count, last_at: at, last_message }
    }

    /// Adds others of the same reason.
    pub fn add(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        if other.last_at >= self.last_at {
            self.last_at = other.last_at;
            self.last_message = other.last_message;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_read_as_they_are_written() {
        for reason in RefusalReason::ALL {
            assert_eq!(RefusalReason::parse(reason.as_str()), Some(reason));
        }
        assert_eq!(RefusalReason::parse("else"), None);
    }

    /// The words are a client's: they are cut, and have nothing that a database does not hold.
    #[test]
    fn messages_are_cut() {
        let at = Timestamp::UNIX_EPOCH;
        let made = RefusalCount::new(RefusalReason::BadPush, 1, &"\0\u{e9}".repeat(1_000), at);
        assert_eq!(made.last_message, "\u{fffd}\u{e9}".repeat(100));
    }
}
