use super::*;
use crate::config::Config;

fn read<T>(text: &str, take: impl FnOnce(&mut Section<'_, '_>) -> T) -> Result<T, String> {
    let mut document =
        Document::parse(Path::new("agent.toml"), text).map_err(|error| error.to_string())?;
    let value = take(&mut document.section("queue"));
    document.finish().map(|_| value).map_err(|error| error.to_string())
}

/// C21
#[test]
fn absent_keys_have_their_defaults() {
    let sizes = read("", |s| (s.size("bytes_max", "1GiB", ["16MiB", "1TiB"]), s.list("l", "")));
    assert_eq!(sizes, Ok((1 << 30, vec![])));
}

#[test]
fn a_value_out_of_range_names_line_key_value_and_range() {
    let error = read("[queue]\n\nbytes_max = \"1MiB\"\n", |s| {
        s.size("bytes_max", "1GiB", ["16MiB", "1TiB"])
    });
    let expected = "agent.toml:3: queue.bytes_max = \"1MiB\": is not allowed\n  hint: a size \
                    such as \"64MiB\", from 16MiB to 1TiB";
    assert_eq!(error, Err(expected.to_owned()));
}

/// C23
#[test]
fn unknown_names_are_errors_with_the_nearest_known_name() {
    let check = |text: &str, expected: &str| {
        let error =
            read(text, |s| s.size("bytes_max", "1GiB", ["0", "1TiB"])).expect_err("unknown name");
        assert!(error.contains(expected), "{error}");
    };
    check("[queue]\nbyte_max = 1", "agent.toml:2: queue.byte_max: unknown key");
    check("[queue]\nbyte_max = 1", "did you mean `bytes_max`?");
    check("[queue]\nBytes_max = 1", "did you mean `bytes_max`?");
    check("[Queue]\nbytes_max = 1", "[Queue]: unknown section");
    check("[elsewhere]\n", "known here: queue");
    check("queue = 1", "a section was expected");
}

/// C24
#[test]
fn malformed_toml_names_its_line() {
    let error = read("[queue]\nbytes_max = = 1", |_| ()).expect_err("malformed");
    assert!(error.starts_with("agent.toml:2: not valid TOML"), "{error}");
}

#[test]
fn every_mistake_is_reported_at_once() {
    let error = read("[queue]\na = \"x\"\nb = 3\nc = 9\n", |s| {
        (s.boolean("a", true), s.text("b", ""), s.integer("c", 1, 1..=5))
    })
    .expect_err("three mistakes");
    assert_eq!(error.lines().count(), 6, "{error}");
}

/// What is told of a text that holds nothing else than mistakes is short, and soon told.
#[test]
fn mistakes_without_end_are_counted() {
    let begun = crate::clock::monotonic();
    let keys: String = (0..60_000).flat_map(|n| [format!("k{n} = 1\n")]).collect();
    let text = format!("[queue]\n{keys}");
    let error = read(&text, |s| s.boolean("b", true)).expect_err("unknown keys");
    assert!(error.starts_with("agent.toml:2: queue.k0: unknown key\n"), "{error}");
    assert!(error.ends_with("\nand 59980 more like these"), "{error}");
    let sections: String = (0..30_000).flat_map(|n| [format!("[s{n}]\n")]).collect();
    let error = read(&sections, |_| ()).expect_err("unknown sections");
    assert!(error.ends_with("\nand 29980 more like these") && error.lines().count() == 41);
    let long = "n".repeat(1 << 20);
    for text in [format!("[queue]\n{long} = 1"), format!("[queue]\nb = \"{long}\"")] {
        let error = read(&text, |s| s.boolean("b", true)).expect_err("a mistake");
        assert!(error.len() < 400 && error.contains("nnn..."), "{error}");
    }
    assert!(crate::clock::monotonic() - begun < Duration::from_secs(10));
}

#[test]
fn a_secret_is_not_shown() {
    let error = read("[queue]\npassword = 4711\n", |s| s.secret("password").clone());
    let error = error.map(|_| ()).expect_err("not a string");
    assert!(!error.contains("4711"), "{error}");
}

/// C22, C43
#[test]
fn lists_are_arrays_or_comma_lists() {
    let check = |text: &str, expected: &[&str]| {
        let list = read(&format!("[queue]\nnames = {text}\n"), |s| s.list("names", ""));
        assert_eq!(list.expect(text), expected, "{text}");
    };
    check(r#""a, b""#, &["a", "b"]);
    check(r#"["a", "b c"]"#, &["a", "b c"]);
    check(r#""[a, b]""#, &["a", "b"]);
    check(r#""""#, &[]);
    check("[]", &[]);
}

/// Of the host's own file the backend hears the key and the kind of a mistake; of what it has said
/// itself, everything.
#[test]
fn no_value_of_the_hosts_file_is_in_the_report() {
    let check = |text: &str, expected: &str| {
        let error = Config::read(Path::new("agent.toml"), text).expect_err(text);
        assert!(!error.report().contains("hunter2"), "{text}: {}", error.report());
        assert_eq!(error.report(), format!("agent.toml:2: {expected}"), "{text}");
    };
    let userinfo = "needs a host and takes no user name or password";
    let url = |key: &str| format!("backend.{key}: {userinfo}");
    check("[backend]\nurl = \"https://admin:hunter2@b\"", &url("url"));
    check("[backend]\nurls = [\"https://admin:hunter2@b\"]", &url("urls"));
    check("[backend]\nurls = \"hunter2\"", "backend.urls: has no scheme or no host");
    let twice = "[backend]\nurls = \"https://hunter2, https://hunter2\"";
    check(twice, "backend.urls: is named twice");
    check("[collector]\npush_interval = \"hunter2\"", "collector.push_interval: is not allowed");
    check("[forward]\nproxy = \"ftp://hunter2\"", "forward.proxy: is not usable");
    check("[intake]\nlisten = \"hunter2\"", "intake.listen: is not an address");
    let retain = "queue.retain_delivered: is neither a size nor a time";
    check("[queue]\nretain_delivered = \"hunter2\"", retain);
    check("[queue]\nhunter2 = 1", "queue: unknown key");
    check("\n[hunter2]\n", "unknown section");
    check("\nbackend = \"hunter2\"\n", "backend: a section was expected");
    check("[queue]\nurl = \"a\" hunter2", "not valid TOML");
    let shown = |text: &str| Config::read(Path::new("a"), text).expect_err(text).to_string();
    for key in ["url", "urls", "request_timeout"] {
        let error = shown(&format!("[backend]\n{key} = \"https://admin:hunter2@b\""));
        assert!(!error.contains("hunter2") && error.contains("...@b"), "{error}");
    }
    let own = Text { file: Path::new("agent.toml"), text: "" };
    let remote = Text { file: Path::new("remote"), text: "[sysstat]\nenabled = 7" };
    let error = Config::read_layers(own, Some(remote)).expect_err("no boolean");
    assert_eq!(error.report(), error.to_string());
    assert!(error.report().contains("sysstat.enabled = 7: is not allowed"), "{error}");
}
