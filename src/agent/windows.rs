//! When push windows end, and when a start sends what it finds: so that a fleet's requests are
//! spread evenly, also when all of its hosts start in the same second.

use std::time::Duration;

use uuid::Uuid;

use crate::collect::schedule::Schedule;

/// What a start finds is sent within this long, and within three halves of a window.
const FOUND_MAX: Duration = Duration::from_secs(120);

/// Windows of `interval`, which end at another part of it on each host. All parts are equally
/// likely, so a backend of many agents is asked as often in one second as in any other.
pub fn windows(interval: Duration, queue_id: Uuid) -> Schedule {
    Schedule::new(interval, interval.mul_f64(spread(queue_id)))
}

/// The part of an interval that is this host's, from 0 to 1.
pub(super) fn spread(queue_id: Uuid) -> f64 {
    let part = u32::try_from(queue_id.as_u128() % 10_000).unwrap_or(0);
    f64::from(part) / 10_000.0
}

/// How long a start leaves what it finds where it is. `draw` is from 0 to 1.
///
/// After a power cut every host of a fleet finds something, and all of them start in the same
/// second. Over one window they would be spread as thinly as their windows are; over more than one,
/// more thinly.
pub fn found_pause(interval: Duration, draw: f64) -> Duration {
    interval.mul_f64(1.5).min(FOUND_MAX).mul_f64(draw.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// The end of the first window after a start at `start_ms`.
    fn first_end_ms(part: u128, start_ms: i64) -> i64 {
        let mut schedule = windows(MINUTE, Uuid::from_u128(part));
        let now = Timestamp::from_millisecond(start_ms).expect("in range");
        schedule.next(now);
        start_ms + i64::try_from(schedule.next(now).after.as_millis()).expect("soon")
    }

    #[test]
    fn windows_of_a_fleet_end_in_every_second_alike() {
        let mut per_second = [0; 60];
        for part in 0..10_000 {
            let end_ms = first_end_ms(part, 1_700_000_012_345);
            per_second[usize::try_from(end_ms / 1_000 % 60).expect("below 60")] += 1;
        }
        assert!(per_second.iter().all(|ends| (160..175).contains(ends)), "{per_second:?}");
    }

    #[test]
    fn what_a_start_finds_is_sent_soon_and_at_another_time_on_each_host() {
        let check = |interval, draw, expected| {
            assert_eq!(found_pause(interval, draw), Duration::from_secs(expected));
        };
        check(MINUTE, 0.0, 0);
        check(MINUTE, 0.5, 45);
        check(MINUTE, 1.0, 90);
        check(MINUTE * 60, 1.0, 120);
    }
}
