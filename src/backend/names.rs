//! What may be a name of a collector or of a host: text that looks like what it is.

use std::net::IpAddr;

use unicode_normalization::UnicodeNormalization as _;
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory as _};

use super::store::Labels;

/// Longest name, host name or address, bytes.
const BYTES_MAX: usize = 255;
/// Labels of a collector.
const LABELS_MAX: usize = 64;
const LABEL_KEY_BYTES_MAX: usize = 64;

/// Trims `text` and composes its letters, or says why it is refused. Characters that are not seen,
/// look like a space, or change how others are shown, are refused: two names that look the same
/// would be two collectors.
pub(super) fn checked(what: &str, text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err(format!("{what} is missing or empty"));
    }
    if text.len() > BYTES_MAX {
        return Err(format!("{what} is longer than {BYTES_MAX} bytes"));
    }
    if let Some(unseen) = text.chars().find(|c| is_unseen(*c)) {
        return Err(format!("{what} has the character {} in it", unseen.escape_unicode()));
    }
    Ok(text.nfc().collect())
}

/// The name or address of a host as it is kept: an address in its canonical form, a name without
/// the dot that may end it.
pub(super) fn checked_host(what: &str, text: &str) -> Result<String, String> {
    let text = checked(what, text)?;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_canonical().to_string());
    }
    let name = text.strip_suffix('.').unwrap_or(&text);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let is_label =
        |label: &str| !label.is_empty() && label.chars().all(is_plain) && !label.starts_with('-');
    // `010.0.0.1` and `10.0.1` would be other writings of an address.
    let is_number = |label: &str| label.chars().all(|c| c.is_ascii_digit());
    let is_odd_address = name.rsplit_once('.').is_some_and(|(_, last)| is_number(last));
    if name.split('.').all(is_label) && !is_odd_address {
        return Ok(name.to_owned());
    }
    Err(format!(
        "{what} \"{}\" is not the name of a host, such as db1.example.com, or an address; hint: \
         letters other than a to z are written as xn--",
        text.escape_debug()
    ))
}

/// The labels of a collector: at most 64, keys like those of other monitoring systems, and values
/// that are held to what names are.
pub(super) fn checked_labels(labels: Labels) -> Result<Labels, String> {
    if labels.len() > LABELS_MAX {
        return Err(format!("{} labels are more than {LABELS_MAX}", labels.len()));
    }
    let check = |(key, value): (String, String)| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        if key.is_empty() || key.len() > LABEL_KEY_BYTES_MAX || !key.chars().all(is_plain) {
            let key = key.escape_debug();
            return Err(format!("labels: the key \"{key}\" is not 1 to 64 of A-Z a-z 0-9 _ - . /"));
        }
        let value = checked(&format!("labels.{key}"), &value)?;
        Ok((key, value))
    };
    labels.into_iter().map(check).collect()
}

/// What Unicode calls control, format, unassigned or a separator, but for the space itself; and the
/// letters, marks and symbols that show nothing.
pub(super) fn is_unseen(c: char) -> bool {
    use GeneralCategoryGroup::{Other, Separator};
    let is_blank = matches!(c.general_category_group(), Other | Separator) && c != ' ';
    is_blank
        || matches!(
            c,
            '\u{34f}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{2800}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{ffa0}'
                | '\u{16fe4}'
                | '\u{1d159}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_they_look_like() {
        assert_eq!(checked("name", "  db1.example.com ").as_deref(), Ok("db1.example.com"));
        assert_eq!(checked("name", "K\u{f6}ln 1").as_deref(), Ok("K\u{f6}ln 1"));
        let refused = |text: &str| checked("name", text).expect_err(text);
        for empty in ["", "  ", "\t"] {
            assert_eq!(refused(empty), "name is missing or empty");
        }
        assert_eq!(checked("name", "Ko\u{308}ln").as_deref(), Ok("K\u{f6}ln"));
        for unseen in [
            "a\nb",
            "a\u{0}",
            "a\u{9b}b",
            "a\u{202e}b",
            "a\u{200b}",
            "a\u{feff}b",
            "\u{2066}a",
            "a\u{ad}b",
            "a\u{fff9}b",
            "a\u{e000}b",
            "a\u{2028}b",
            "a\u{a0}b",
            "a\u{2800}",
        ] {
            assert!(refused(unseen).contains("has the character"), "{unseen:?}");
        }
        assert!(refused(&"a".repeat(256)).contains("longer than 255 bytes"));
    }

    #[test]
    fn labels_are_few_and_short() {
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let good = labels(&[("site", "Lyon 2"), ("example.com/tier-1_a", "x")]);
        assert_eq!(checked_labels(good.clone()), Ok(good));
        assert_eq!(checked_labels(labels(&[("a", " b ")])), Ok(labels(&[("a", "b")])));
        let refused = |pairs: &[(&str, &str)], part: &str| {
            let why = checked_labels(labels(pairs)).expect_err(part);
            assert!(why.contains(part), "{why}");
        };
        refused(&[("", "x")], "the key \"\"");
        refused(&[("a b", "x")], "the key \"a b\"");
        refused(&[(&"k".repeat(65), "x")], "is not 1 to 64");
        refused(&[("a", "")], "labels.a is missing or empty");
        refused(&[("a", "\u{202e}")], "labels.a has the character");
        refused(&[("a", &"v".repeat(256))], "labels.a is longer");
        let many: Labels = (0..65).map(|n| (format!("k{n}"), "v".to_owned())).collect();
        assert!(checked_labels(many).expect_err("too many").contains("more than 64"));
    }
}
