//! `backend.url`, checked once: scheme, host, and whether plain HTTP may be used.

use std::net::IpAddr;

use http::Uri;

use super::{LinkConfig, LinkError};

/// A backend address that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    base: String,
    authority: String,
    port: u16,
    place: Place,
    scheme: Scheme,
}

/// Why a URL cannot be used, without the URL: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unusable {
    /// What is wrong.
    pub what: &'static str,
    /// What to do about it.
    pub hint: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Https,
    Plain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Loopback,
    Elsewhere,
}

impl Endpoint {
    /// Checks a URL. Plain HTTP needs `allow_plaintext` and a loopback host.
    pub fn parse(url: &str, allow_plaintext: bool) -> Result<Self, Unusable> {
        let refuse = |what, hint| Err(Unusable { what, hint });
        let example = "write it like https://backend.example.com:8080";
        let Ok(uri) = url.trim().parse::<Uri>() else {
            return refuse("is not a URL", example);
        };
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return refuse("has no scheme or no host", example);
        };
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return refuse("needs a host and takes no user name or password", example);
        }
        if uri.query().is_some() {
            return refuse("must not have a query", example);
        }
        let loopback = is_loopback(authority.host());
        let place = if loopback { Place::Loopback } else { Place::Elsewhere };
        let scheme = match scheme {
            "https" => Scheme::Https,
            "http" if place == Place::Elsewhere => {
                return refuse(
                    "is plain HTTP to another host",
                    "use https; plain HTTP is for loopback only",
                );
            }
            "http" if !allow_plaintext => {
                return refuse(
                    "is plain HTTP",
                    "use https, or set backend.allow_plaintext = true for this loopback address",
                );
            }
            "http" => Scheme::Plain,
            _ => return refuse("is neither https nor http", example),
        };
        let base = format!(
            "{}://{authority}{}",
            if scheme == Scheme::Plain { "http" } else { "https" },
            uri.path().trim_end_matches('/')
        );
        let usual = if scheme == Scheme::Plain { 80 } else { 443 };
        let port = authority.port_u16().unwrap_or(usual);
        Ok(Self { base, authority: authority.to_string(), port, place, scheme })
    }

    /// The URL of `path`, which starts with `/`.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// The URL without a trailing slash.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Host and port.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The port, which may be the scheme's usual one.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the host is this one, by its name or address.
    pub fn is_loopback(&self) -> bool {
        self.place == Place::Loopback
    }

    /// Plain HTTP, on loopback.
    pub fn is_plaintext(&self) -> bool {
        self.scheme == Scheme::Plain
    }
}

impl LinkConfig {
    /// The backends in their order, each checked.
    pub fn endpoints(&self) -> Result<Vec<Endpoint>, LinkError> {
        let urls = std::iter::once(&self.url).chain(&self.more_urls);
        let parse = |url: &String| {
            Endpoint::parse(url, self.allow_plaintext).map_err(|unusable| unusable.error(url))
        };
        urls.map(parse).collect()
    }
}

impl Unusable {
    /// The error about `url`.
    fn error(self, url: &str) -> LinkError {
        let url = without_user_info(url);
        LinkError::new(format!("backend.url = {url:?} {}", self.what), self.hint)
    }
}

/// `text` without what stands before the `@` in each of its URLs: user and password. It may be a
/// list of URLs or no URL at all, and a password may hold `@`, `/` or blanks: rather more is cut.
pub fn without_user_info(text: &str) -> String {
    let mut parts = text.split("://").map(|part| match part.rsplit_once('@') {
        Some((before, host)) => {
            let quotes = before.len() - before.trim_start_matches(['[', '"', '\'', ' ']).len();
            format!("{}...@{host}", &before[..quotes])
        }
        None => part.to_owned(),
    });
    let first = parts.next().unwrap_or_default();
    parts.fold(first, |text, part| text + "://" + &part)
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_accepted_or_refused_with_a_reason() {
        let check = |url: &str, plaintext: bool, expected: Result<&str, &str>| {
            let got = Endpoint::parse(url, plaintext);
            match (got, expected) {
                (Ok(endpoint), Ok(base)) => assert_eq!(endpoint.base(), base, "{url}"),
                (Err(error), Err(part)) => {
                    let error = error.error(url).to_string();
                    assert!(error.contains(part), "{url}: {error}");
                }
                (got, _) => panic!("{url}: {got:?}"),
            }
        };
        check("https://localhost:8080", false, Ok("https://localhost:8080"));
        check("https://a.example/", false, Ok("https://a.example"));
        check("https://a.example/pg/", false, Ok("https://a.example/pg"));
        check("https://[2001:db8::1]:8443", false, Ok("https://[2001:db8::1]:8443"));
        check("http://127.0.0.1:1", true, Ok("http://127.0.0.1:1"));
        check("http://[::1]:1", true, Ok("http://[::1]:1"));
        check("http://localhost:1", true, Ok("http://localhost:1"));
        check("http://127.0.0.1:1", false, Err("allow_plaintext"));
        check("http://10.0.0.1:1", true, Err("another host"));
        check("http://127.0.0.1.example.com", true, Err("another host"));
        check("ftp://a.example", true, Err("neither https nor http"));
        check("a.example:8080", false, Err("no scheme"));
        check("https://user:pw@a.example", false, Err("no user name"));
        check("https://a.example/?x=1", false, Err("query"));
        check("https://a b", false, Err("is not a URL"));
        check("", false, Err("is not a URL"));
    }

    #[test]
    fn user_and_password_are_cut_out_of_urls() {
        let check = |text: &str, expected: &str| {
            assert_eq!(without_user_info(text), expected, "{text}");
        };
        check("https://a.example:1/x", "https://a.example:1/x");
        check("https://u:p@a.example", "https://...@a.example");
        check("\"https://u:p@ss/w o@rd@a\"", "\"https://...@a\"");
        check("[\"https://u:p@a\", 'https://v:q@b']", "[\"https://...@a\", 'https://...@b']");
        check("\"u:p@a\"", "\"...@a\"");
        check("p@https://a", "...@https://a");
        check("\"30s\"", "\"30s\"");
        let error = Endpoint::parse("https://u:pw@a.example", false).expect_err("user information");
        assert!(!error.error("https://u:pw@a.example").to_string().contains("pw"));
    }
}
