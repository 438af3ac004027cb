//! When a certificate is renewed, and how long to wait after a failure. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::link::tls::Validity;

/// The longest pause: a host's clock may be set meanwhile.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(3600);
/// The shortest one.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// The ceiling of the pause after the first failure, and the highest one.
const FIRST: Duration = Duration::from_secs(60);
const CAP: Duration = Duration::from_secs(6 * 3600);

/// When a certificate is due: between a half and two thirds of its life, by `draw` (0 to 1), which
/// is another one on each host, so that hosts that registered together do not come together.
pub(super) fn due(validity: Validity, draw: f64) -> Timestamp {
    let part = 0.5 + draw.clamp(0.0, 1.0) / 6.0;
    let passed = Duration::try_from(validity.life()).unwrap_or_default().mul_f64(part);
    validity.begins.saturating_add(passed).unwrap_or(Timestamp::MAX)
}

/// When a certificate that was given at `now` is due: a backend that gives short-lived or backdated
/// ones is not asked again and again.
pub(super) fn due_after_renewal(validity: Validity, now: Timestamp, draw: f64) -> Timestamp {
    let third = left(validity, now) / 3;
    due(validity, draw).max(now.saturating_add(third).unwrap_or(Timestamp::MAX))
}

/// How long until `at`, at most [`LOOK_AGAIN`].
pub(super) fn wait(now: Timestamp, at: Timestamp) -> Duration {
    let wait = Duration::try_from(at.duration_since(now)).unwrap_or_default();
    wait.clamp(PAUSE_MIN, LOOK_AGAIN)
}

/// The pause after the `failures`th failure in a row, with `draw` (0 to 1): a minute, doubling, up
/// to six hours, and never so long that fewer than ten tries are left; at least what the backend
/// asks.
pub(super) fn pause(failures: u32, left: Duration, asked: Option<Duration>, draw: f64) -> Duration {
    let doubled = FIRST.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(20)));
    let mut ceiling = doubled.min(CAP);
    if !left.is_zero() {
        ceiling = ceiling.min(left / 10);
    }
    let drawn = ceiling.mul_f64(0.5 + draw.clamp(0.0, 1.0) / 2.0);
    drawn.max(asked.unwrap_or_default()).max(PAUSE_MIN)
}

/// What is left of a certificate's life; zero after its end.
pub(super) fn left(validity: Validity, now: Timestamp) -> Duration {
    let left: SignedDuration = validity.ends.duration_since(now);
    Duration::try_from(left).unwrap_or_default()
}

/// 0 to 1, the same for a host and a certificate always: starting again draws no other lot.
pub(super) fn lot(collector_id: &str, certificate: &[u8]) -> f64 {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    hash.update(collector_id.as_bytes());
    hash.update(certificate);
    let digest = hash.finish();
    let two = digest.as_ref().first_chunk::<2>().copied().unwrap_or_default();
    f64::from(u16::from_be_bytes(two)) / f64::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn day(day: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + day * 86_400).expect("in range")
    }

    fn year() -> Validity {
        Validity { begins: day(0), ends: day(360) }
    }

    #[test]
    fn a_certificate_is_due_before_two_thirds_of_its_life_and_not_before_a_half() {
        assert_eq!(due(year(), 0.0), day(180));
        assert_eq!(due(year(), 0.5), day(210));
        assert_eq!(due(year(), 1.0), day(240));
        let backwards = Validity { begins: day(9), ends: day(0) };
        assert_eq!(due(backwards, 1.0), day(9));
    }

    #[test]
    fn lots_differ_between_hosts_and_stay_with_them() {
        let lots: Vec<f64> = (0..1000).map(|n| lot(&n.to_string(), b"certificate")).collect();
        assert!(lots.iter().all(|lot| (0.0..=1.0).contains(lot)));
        for tenth in 0_u8..10 {
            let from = f64::from(tenth) / 10.0;
            let here = lots.iter().filter(|lot| (from..from + 0.1).contains(*lot)).count();
            assert!((50..150).contains(&here), "{here} of 1000 hosts in a tenth of the time");
        }
        assert_eq!(lot("7", b"x").to_bits(), lot("7", b"x").to_bits());
        assert_ne!(lot("7", b"x").to_bits(), lot("7", b"y").to_bits());
    }

    #[test]
    fn a_certificate_that_is_due_at_once_is_used_for_a_while() {
        assert_eq!(due_after_renewal(year(), day(0), 0.0), day(180));
        assert_eq!(due_after_renewal(year(), day(300), 0.0), day(320));
        assert_eq!(due_after_renewal(year(), day(400), 0.0), day(400));
    }

    #[test]
    fn failures_are_tried_again_often_enough_to_the_end() {
        let check = |failures, left, expected: Duration| {
            assert_eq!(pause(failures, left, None, 1.0), expected, "{failures} {left:?}");
            assert_eq!(pause(failures, left, None, 0.0), expected / 2, "{failures} {left:?}");
        };
        check(1, 100 * DAY, Duration::from_secs(60));
        check(2, 100 * DAY, Duration::from_secs(120));
        check(60, 100 * DAY, CAP);
        check(60, DAY, DAY / 10);
        check(60, Duration::ZERO, CAP);
        assert_eq!(pause(1, Duration::from_secs(1), None, 0.0), PAUSE_MIN);
        assert_eq!(pause(1, 100 * DAY, Some(DAY), 0.0), DAY);
        assert_eq!(wait(day(0), day(9)), LOOK_AGAIN);
        assert_eq!(wait(day(9), day(0)), PAUSE_MIN);
    }
}
