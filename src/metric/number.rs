//! Numbers as they stand in a JSON text: what a store can hold, and what a field may be.

use super::declare::Kind;

/// The most digits after the point, those of the exponent counted, that a store can hold: the limit
/// of PostgreSQL's `numeric`, which `jsonb` keeps numbers in.
pub(super) const PLACES_MAX: i64 = 16_383;
/// The most digits before the point: the same limit. A number that is finite has fewer; 0 with an
/// exponent may have more.
const DIGITS_MAX: i64 = 131_072;
/// The most digits that the exponents of a document may stand for. `jsonb` gives every number back
/// written out: a few bytes would be 16,000.
pub(super) const GROWTH_MAX: u64 = 1 << 20;
/// The longest number that is looked at; longer ones may be infinite.
const NUMBER_BYTES_MAX: usize = 40;
/// Percentages this far outside 0 to 100 are left to the shapes, which know the slack: their
/// parser may round the last digit otherwise than this one.
const PERCENT_MARGIN: f64 = 0.05;

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
        let (mut length, mut point, mut exponent) = (0, None, None);
        for byte in text.as_bytes().get(at..)? {
            match byte {
                b'0'..=b'9' | b'+' | b'-' => {}
                b'.' => point = point.or(Some(length)),
                b'e' | b'E' => exponent = exponent.or(Some(length)),
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

    /// Whether a field of this kind may be it, for sure.
    pub(super) fn is_sound(&self, kind: Kind) -> bool {
        let Self { text, point, exponent } = *self;
        let (is_simple, is_negative) = (exponent.is_none(), text.starts_with('-'));
        let is_finite = || text.parse::<f64>().is_ok_and(f64::is_finite);
        text.len() <= NUMBER_BYTES_MAX
            && match kind {
                Kind::Any | Kind::Number => is_simple || is_finite(),
                Kind::Amount => !is_negative && (is_simple || is_finite()),
                Kind::Count => !is_negative && is_simple && point.is_none(),
                // Two digits are below 100.
                Kind::Percent if !is_negative && is_simple && point.unwrap_or(text.len()) <= 2 => {
                    true
                }
                Kind::Percent => {
                    let allowed = -PERCENT_MARGIN..=100.0 + PERCENT_MARGIN;
                    text.parse::<f64>().is_ok_and(|value| allowed.contains(&value))
                }
                _ => false,
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
