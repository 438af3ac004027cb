//! `[backend]`, and the proxy on the way to it.

use secrecy::ExposeSecret;

use super::reader::Section;
use crate::link::endpoint::{Endpoint, Unusable, without_user_info};
use crate::link::{LinkConfig, TlsConfig, proxy::ProxySetting};

/// A request that finds all of them down asks each in turn, within one request timeout.
const BACKENDS_MAX: usize = 8;
const TOO_MANY: &str = "is more than 8 backends";

/// The backends, their limits, and how to be let in.
pub(super) fn link(section: &mut Section<'_, '_>, tls: TlsConfig) -> LinkConfig {
    let urls = section.list("urls", "");
    let mut config = LinkConfig {
        url: section.text("url", "https://localhost:8080"),
        return_after: section.duration("return_after", "1min", ["100ms", "1d"]),
        connect_timeout: section.duration("connect_timeout", "10s", ["100ms", "5min"]),
        request_timeout: section.duration("request_timeout", "30s", ["100ms", "1h"]),
        allow_plaintext: section.boolean("allow_plaintext", false),
        token_file: section.optional_path("token_file"),
        tls,
        ..LinkConfig::default()
    };
    if urls.is_empty() {
        if let Err(error) = Endpoint::parse(&config.url, config.allow_plaintext) {
            section.reject("url", error.what, error.hint);
        }
        return config;
    }
    let parse = |url: &str| Endpoint::parse(url, config.allow_plaintext);
    let set = section.has("url").then_some(config.url.as_str());
    if let Err((Unusable { what, hint }, detail)) = check(&urls, set, parse) {
        section.reject_for("urls", what, &format!("{detail}{what}"), hint);
    }
    let mut urls = urls.into_iter();
    config.url = urls.next().unwrap_or_default();
    config.more_urls = urls.collect();
    config
}

/// Several backends: each may be used, none stands twice, and `backend.url`, if it is set, is the
/// first of them.
fn check(
    urls: &[String],
    url: Option<&str>,
    parse: impl Fn(&str) -> Result<Endpoint, Unusable>,
) -> Result<(), (Unusable, String)> {
    let refuse = |what, hint| Err((Unusable { what, hint }, String::new()));
    if urls.len() > BACKENDS_MAX {
        return refuse(TOO_MANY, "name the nearest of those that share the store");
    }
    let mut bases: Vec<String> = Vec::new();
    for url in urls {
        let which = || format!("one of them = {:?} ", without_user_info(url));
        let endpoint = parse(url).map_err(|unusable| (unusable, which()))?;
        if bases.iter().any(|base| base == endpoint.base()) {
            let (what, hint) = ("is named twice", "name each once, the preferred first");
            return Err((Unusable { what, hint }, format!("{} ", endpoint.base())));
        }
        bases.push(endpoint.base().to_owned());
    }
    let Some(url) = url else { return Ok(()) };
    let agrees = parse(url).is_ok_and(|url| bases.first().is_some_and(|base| base == url.base()));
    if agrees {
        return Ok(());
    }
    refuse(
        "does not begin with backend.url",
        "remove backend.url, or make it the first of backend.urls",
    )
}

/// The way to the backend; the value may hold a password.
pub(super) fn proxy(section: &mut Section<'_, '_>) -> ProxySetting {
    let text = section.secret("proxy");
    ProxySetting::parse(text.expose_secret()).unwrap_or_else(|error| {
        section.reject_secret("proxy", &error.what, &error.hint);
        ProxySetting::Off
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    #[test]
    fn several_backends_are_a_list_in_order() {
        let read = |text: &str| {
            let text = format!("[backend]\n{text}\n");
            Config::read(Path::new("agent.toml"), &text).map(|config| {
                let link = config.link;
                std::iter::once(link.url).chain(link.more_urls).collect::<Vec<_>>()
            })
        };
        let check = |text: &str, expected: &[&str]| {
            assert_eq!(read(text).expect(text), expected, "{text}");
        };
        check("urls = []", &["https://localhost:8080"]);
        check(r#"urls = ["https://a", "https://b"]"#, &["https://a", "https://b"]);
        check(r#"urls = "https://a, https://b""#, &["https://a", "https://b"]);
        let agreeing = "url = \"https://a/\"\nurls = \"https://a, https://b\"";
        check(agreeing, &["https://a", "https://b"]);
        let refuse = |text: &str, part: &str| {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains("backend.urls") && error.contains(part), "{error}");
        };
        let both = "url = \"https://b\"\nurls = \"https://a, https://b\"";
        refuse(both, "does not begin with backend.url");
        refuse(both, "remove backend.url");
        refuse(r#"urls = "https://a, https://a/""#, "https://a is named twice");
        refuse(r#"urls = "https://a, ftp://b""#, "one of them = \"ftp://b\" is neither");
        refuse(r#"urls = "https://a, http://b""#, "plain HTTP to another host");
        let nine: Vec<String> = (1..=9).map(|n| format!("https://b{n}")).collect();
        refuse(&format!("urls = {nine:?}"), "more than 8 backends");
    }

    /// The value may hold a password: a mistake in it does not show it.
    #[test]
    fn a_proxy_is_read_and_never_shown() {
        let read = |value: &str| {
            let text = format!("[forward]\nproxy = {value}\n");
            Config::read(Path::new("agent.toml"), &text)
        };
        let config = read("\"http://u:hunter2@proxy:3128\"").expect("usable");
        assert!(matches!(config.link.proxy, ProxySetting::Url(_)));
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(matches!(read("\"off\"").expect("usable").link.proxy, ProxySetting::Off));
        for wrong in ["\"socks5://u:hunter2@p\"", "4711"] {
            let error = read(wrong).expect_err(wrong).to_string();
            assert!(error.contains("agent.toml:2: forward.proxy"), "{error}");
            assert!(!error.contains("hunter2") && !error.contains("4711"), "{error}");
        }
    }
}
