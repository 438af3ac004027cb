//! Numbers as they stand in a JSON text: what a store can hold, and what a field may be.

use super::declare::Kind;
use super::scan;

/// The most digits after the point, those of the exponent counted, that a store can hold: the limit
/// of PostgreSQL's `numeric`, which `jsonb` keeps numbers in.
pub(super) const PLACES_MAX: i64 = 16_383;
/// The most digits before the point: the same limit. A number that is finite has fewer; 0 with an
/// exponent may have more.
const DIGITS_MAX: i64 = 131_072;
/// The most digits that the exponents of a document may stand for. `jsonb` gives every number back
/// written out: a few bytes would be 16,000.
pub(super) const GROWTH_MAX: u64 = 1 << 20;
/// A number this short is finite unless it has an exponent.
const SHORT_BYTES_MAX: usize = 40;
/// What rounding may add to a percentage, or take from it.
const PERCENT_SLACK: f64 = 0.1;
/// The most of a number that words show, characters.
const SHOWN_MAX: usize = 40;

/// A number as it stands in a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Number<'a> {
    pub(super) text: &'a str,
    /// Where its point is.
    point: Option<usize>,
    /// Where its exponent begins.
    exponent: Option<usize>,
}

impl<'a> Number<'a> {
    /// The number that begins at byte `at`.
    pub(super) fn at(text: &'a str, at: usize) -> Option<Self> {
        let rest = text.as_bytes().get(at..)?;
        let (mut length, mut point, mut exponent) = (0, None, None);
        loop {
            length += scan::digits(rest.get(length..)?);
            match rest.get(length) {
                Some(b'+' | b'-') => {}
                Some(b'.') => point = point.or(Some(length)),
                Some(b'e' | b'E') => exponent = exponent.or(Some(length)),
                _ => break,
            }
            length += 1;
        }
        Some(Self { text: text.get(at..at + length)?, point, exponent })
    }

    /// By how many digits it grows when it is written without an exponent; `None` when no store can
    /// hold it.
    pub(super) fn grows_by(&self) -> Option<u64> {
        let digits = |from: usize, to: usize| i64::try_from(to.saturating_sub(from)).ok();
        let mantissa = self.exponent.unwrap_or(self.text.len());
        let exponent: i32 = match self.exponent {
            Some(at) => self.text.get(at + 1..)?.parse().ok()?,
            None => 0,
        };
        let whole = digits(0, self.point.unwrap_or(mantissa))?;
        let fraction = self.point.map_or(Some(0), |point| digits(point + 1, mantissa))?;
        let fits = fraction.saturating_sub(exponent.into()) <= PLACES_MAX
            && whole.saturating_add(exponent.into()) <= DIGITS_MAX;
        fits.then_some(exponent.unsigned_abs().into())
    }

    /// Whether a field of this kind may be it, as its text shows.
    pub(super) fn is_clear(&self, kind: Kind) -> bool {
        let Self { text, point, exponent } = *self;
        let is_simple = exponent.is_none() && text.len() <= SHORT_BYTES_MAX;
        let is_negative = text.starts_with('-');
        is_simple
            && match kind {
                Kind::Any | Kind::Number => true,
                Kind::Amount => !is_negative,
                Kind::Count => !is_negative && point.is_none(),
                // Two digits are below 100.
                Kind::Percent => !is_negative && point.unwrap_or(text.len()) <= 2,
                _ => false,
            }
    }

    /// Why a field of this kind may not be it.
    pub(super) fn refused_as(&self, kind: Kind) -> Option<String> {
        let text = self.text;
        let shown = || text.chars().take(SHOWN_MAX).collect::<String>();
        match (kind, text.parse().unwrap_or(f64::NAN)) {
            (_, value) if !value.is_finite() => Some("not a finite number".to_owned()),
            (Kind::Percent, value)
                if !(-PERCENT_SLACK..=100.0 + PERCENT_SLACK).contains(&value) =>
            {
                Some(format!("{} is no percentage of 0 to 100", shown()))
            }
            (Kind::Count | Kind::Amount, value) if value < 0.0 => {
                Some(format!("{} is negative", shown()))
            }
            (Kind::Count, value) if value.fract() != 0.0 => {
                Some(format!("{} is no whole number", shown()))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_that_a_store_can_hold() {
        let zeros = |count: usize| "0".repeat(count);
        let check = |number: &str, expected: bool| {
            let shown: String = number.chars().take(40).collect();
            let fits = Number::at(number, 0).and_then(|number| number.grows_by()).is_some();
            assert_eq!(fits, expected, "{shown}");
        };
        for number in ["0", "-0.0", "1e308", "1E-400", "5e-324", "1e+5", "0e131071"] {
            check(number, true);
        }
        check("1e-16383", true);
        check("1e-16384", false);
        check("1.5e-16383", false);
        check("1e-20000", false);
        check(&format!("0.{}", zeros(16_383)), true);
        check(&format!("0.{}", zeros(16_384)), false);
        check(&format!("0.{}e1", zeros(16_384)), true);
        check("0e131072", false);
        check("0e99999999999", false);
        check("1e-99999999999", false);
    }
}
