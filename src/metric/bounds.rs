//! The limits that hold for every document, whatever its type.

use jiff::Timestamp;

/// The longest string of a document, in bytes.
pub const STRING_BYTES_MAX: usize = 64 * 1024;
/// The most elements of one array, and the most members of one object.
pub const ELEMENTS_MAX: usize = 100_000;
/// The deepest nesting of objects and arrays, the metric itself being the first level.
pub const DEPTH_MAX: usize = 16;
/// How far ahead of our clock another host's clock may be.
const AHEAD_HOURS_MAX: i64 = 24;

/// 2000-01-01T00:00:00Z.
const EARLIEST: Timestamp = Timestamp::constant(946_684_800, 0);

/// The instants at which a document may have been taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeBounds {
    latest: Timestamp,
}

impl TimeBounds {
    /// As a host with the time `now` sees them.
    pub(super) fn new(now: Timestamp) -> Self {
        let ahead = jiff::SignedDuration::from_hours(AHEAD_HOURS_MAX);
        Self { latest: now.checked_add(ahead).unwrap_or(Timestamp::MAX) }
    }

    /// Refuses an instant that lies outside; `text` is how it is written.
    pub(super) fn check(&self, time: Timestamp, text: &str) -> Result<(), String> {
        if time < EARLIEST {
            return Err(format!("{} is before 2000-01-01", shown(text)));
        }
        if time > self.latest {
            return Err(format!(
                "{} is more than {AHEAD_HOURS_MAX} h ahead of this host's clock",
                shown(text)
            ));
        }
        Ok(())
    }
}

/// Checks that `text` is an instant as the contract writes it, without bounds.
pub(super) fn parse_time(text: &str) -> Result<Timestamp, String> {
    if !text.ends_with('Z') {
        return Err(format!("{} does not end in `Z`: timestamps are UTC", shown(text)));
    }
    text.parse().map_err(|_| format!("{} is no RFC 3339 timestamp", shown(text)))
}

/// What is wrong with a text of this length.
pub(super) fn too_long(bytes: usize) -> String {
    format!("{bytes} bytes long, the limit is {STRING_BYTES_MAX}")
}

/// The beginning of a text, in quotes.
pub(super) fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(40).collect::<String>())
}
