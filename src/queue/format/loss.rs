//! Entries of the ledger, as they are kept and told.

use serde::{Deserialize, Serialize};

/// Why records are not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossReason {
    /// Invalid at the door.
    Reject,
    /// The disk budget, or the memory while there is no disk, had no room for them.
    Evict,
    /// The backend's final no; they are in the dead letters, but for what a backend does not know
    /// of the agent itself.
    Refuse,
    /// Damaged on disk.
    Corrupt,
}

/// An entry of the ledger: records `from..=to`, or some of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// The entry's number.
    pub id: u64,
    /// The first sequence number.
    pub from: u64,
    /// The last sequence number.
    pub to: u64,
    /// How many of them are lost: fewer than the range holds after thinning.
    pub records: u64,
    /// Why.
    pub reason: LossReason,
    /// The time that the records are about, milliseconds since 1970 UTC, both ends.
    pub time_ms: (i64, i64),
    /// When the loss was noticed.
    pub at_ms: i64,
    /// Whether the backend knows.
    pub acknowledged: bool,
}

impl LossReason {
    /// As it is written in the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reject => "reject",
            Self::Evict => "evict",
            Self::Refuse => "refuse",
            Self::Corrupt => "corrupt",
        }
    }
}

impl std::fmt::Display for LossReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
