//! Looking for the end of short things in a JSON text, eight bytes at a time.

/// One in each byte.
const ONES: u64 = 0x0101_0101_0101_0101;
/// The high bit of each byte.
const HIGHS: u64 = 0x80 * ONES;

/// How many decimal digits `bytes` begins with.
pub(super) fn digits(bytes: &[u8]) -> usize {
    // A digit is 0 to 9 now. What is more has the high bit, or gets it when 0x76 is added.
    let others = |eight: u64| {
        let values = eight ^ (u64::from(b'0') * ONES);
        values | values.wrapping_add(0x76 * ONES)
    };
    position(bytes, others, |byte| !byte.is_ascii_digit()).unwrap_or(bytes.len())
}

/// Where the first quote or backslash is.
pub(super) fn quote_or_escape(bytes: &[u8]) -> Option<usize> {
    // Where the byte is, there is 0 now, and only 0 gets the high bit when 1 is taken from it.
    let equals = |eight: u64, byte: u8| {
        let zero = eight ^ (u64::from(byte) * ONES);
        zero.wrapping_sub(ONES) & !zero
    };
    let either = |eight| equals(eight, b'"') | equals(eight, b'\\');
    position(bytes, either, |byte| matches!(byte, b'"' | b'\\'))
}

/// The first byte for which `is_sought`. `marked` sets the high bit of the first such byte of
/// eight, whatever it does to those after it, and of none before it.
fn position(
    bytes: &[u8],
    marked: impl Fn(u64) -> u64,
    is_sought: impl Fn(u8) -> bool,
) -> Option<usize> {
    let mut at = 0;
    while let Some(eight) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        let marks = marked(u64::from_le_bytes(*eight)) & HIGHS;
        if marks != 0 {
            return Some(at + (marks.trailing_zeros() / 8) as usize);
        }
        at += 8;
    }
    let rest = bytes.get(at..)?;
    rest.iter().position(|byte| is_sought(*byte)).map(|found| at + found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// As one looks at it byte by byte.
        #[test]
        fn the_first_is_found(bytes in r#"[0-9]{0,20}[ -~\x00-\xff"]{0,20}"#) {
            let bytes = bytes.as_bytes();
            for from in 0..=bytes.len() {
                let rest = &bytes[from..];
                let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
                prop_assert_eq!(digits(rest), count);
                let found = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'));
                prop_assert_eq!(quote_or_escape(rest), found);
            }
        }

        #[test]
        fn every_byte_is_told_apart(bytes in proptest::collection::vec(any::<u8>(), 0..24)) {
            let count = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
            prop_assert_eq!(digits(&bytes), count);
            let found = bytes.iter().position(|byte| matches!(byte, b'"' | b'\\'));
            prop_assert_eq!(quote_or_escape(&bytes), found);
        }
    }
}
