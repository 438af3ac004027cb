//! How fast the backlog has left lately. Pure: it is told the time.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

/// How far back it looks.
const SPAN: Duration = Duration::from_secs(60);
/// How far apart what is remembered is at least.
const STEP: Duration = Duration::from_secs(1);

/// Batches that have left, by time.
#[derive(Debug, Default)]
pub struct Recent {
    batches: u64,
    /// When, and how many had left before; oldest first.
    seen: VecDeque<(Duration, u64)>,
}

/// How fast the backlog leaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speed {
    /// Batches of the backlog that were delivered lately.
    pub batches: u64,
    /// In how many milliseconds.
    pub millis: u64,
}

impl Recent {
    /// A batch of the backlog is delivered. `now` counts from any fixed moment.
    pub fn note(&mut self, now: Duration) {
        if self.seen.back().is_none_or(|(last, _)| now.saturating_sub(*last) >= STEP) {
            self.seen.push_back((now, self.batches));
        }
        self.batches += 1;
        while self.seen.front().is_some_and(|(first, _)| now.saturating_sub(*first) > SPAN) {
            self.seen.pop_front();
        }
    }

    /// The speed of the last minute; `None` before there is one.
    pub fn speed(&self, now: Duration) -> Option<Speed> {
        let (first, before) = self.seen.front()?;
        let millis = u64::try_from(now.saturating_sub(*first).as_millis()).unwrap_or(u64::MAX);
        let batches = self.batches - before;
        (millis > 0 && batches > 1).then_some(Speed { batches, millis })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_is_that_of_the_last_minute() {
        let mut recent = Recent::default();
        assert_eq!(recent.speed(SPAN), None);
        let ms = Duration::from_millis;
        // Ten a second for an hour, then one a second.
        (0..36_000).for_each(|n| recent.note(ms(n * 100)));
        let speed = recent.speed(ms(3_600_000)).unwrap();
        assert_eq!(speed.batches * 100, speed.millis);
        (0..200).for_each(|n| recent.note(ms(3_600_000 + n * 1_000)));
        let speed = recent.speed(ms(3_800_000)).unwrap();
        assert!((59..=61).contains(&speed.batches), "{speed:?}");
        assert!(recent.seen.len() <= 62, "{}", recent.seen.len());
    }
}
