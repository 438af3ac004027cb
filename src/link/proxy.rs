//! Which HTTP proxy the way to a backend leads through, if any: `forward.proxy`, or the variables
//! of the environment that most programs follow.

use std::fmt;

use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use secrecy::{ExposeSecret, SecretString};

use super::LinkError;
use super::endpoint::Endpoint;

const EXAMPLE: &str = "write it like http://proxy.example.com:3128, with user:password@ before \
                       the host if it wants that; characters such as @ and / as %40 and %2F";

/// `forward.proxy`.
#[derive(Debug, Clone, Default)]
pub enum ProxySetting {
    /// What `HTTPS_PROXY` and `NO_PROXY` say.
    #[default]
    Environment,
    /// None, whatever the environment says.
    Off,
    /// This one for every backend, whatever the environment says.
    Url(SecretString),
}

/// A proxy that is asked to `CONNECT`.
#[derive(Clone)]
pub struct Proxy {
    uri: Uri,
    authorization: Option<HeaderValue>,
}

impl ProxySetting {
    /// Reads the key's value. Errors do not show it: it may hold a password.
    pub fn parse(text: &str) -> Result<Self, LinkError> {
        match text.trim() {
            "" => Ok(Self::Environment),
            "off" => Ok(Self::Off),
            url => {
                Proxy::parse(url, "forward.proxy")?;
                Ok(Self::Url(SecretString::from(url)))
            }
        }
    }

    /// The proxy for this backend. Plain HTTP, which stays on this host, has none; and the
    /// environment has none for a loopback address, which a proxy could not reach.
    pub fn choose(&self, backend: &Endpoint) -> Result<Option<Proxy>, LinkError> {
        self.choose_with(backend, |name| std::env::var(name).ok())
    }

    fn choose_with(
        &self,
        backend: &Endpoint,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Proxy>, LinkError> {
        if backend.is_plaintext() {
            return Ok(None);
        }
        match self {
            Self::Off => Ok(None),
            Self::Url(url) => Proxy::parse(url.expose_secret(), "forward.proxy").map(Some),
            Self::Environment => {
                let first = |names: [&str; 2]| {
                    let mut set = names.into_iter().filter_map(&variable);
                    set.find(|value| !value.trim().is_empty())
                };
                let Some(url) = first(["HTTPS_PROXY", "https_proxy"]) else { return Ok(None) };
                let except = first(["NO_PROXY", "no_proxy"]).unwrap_or_default();
                if backend.is_loopback() || excepted(&except, backend) {
                    return Ok(None);
                }
                Proxy::parse(url.trim(), "the variable HTTPS_PROXY").map(Some)
            }
        }
    }
}

impl Proxy {
    fn parse(url: &str, name: &str) -> Result<Self, LinkError> {
        let refuse = |what: &str| LinkError::new(format!("{name} {what}"), EXAMPLE);
        // Where user and password end would be a guess, and a piece of them a host's name.
        let place = url.split_once("://").map_or(url, |(_, place)| place);
        let (head, rest) = place.split_at(place.find(['/', '?', '#']).unwrap_or(place.len()));
        if rest.contains('@') || head.matches('@').count() > 1 {
            return Err(refuse("has one of @ / ? # in its user or password"));
        }
        let any = Uri::from_static("https://backend.invalid");
        let found = Matcher::builder().https(url).build().intercept(&any);
        let Some(found) = found else {
            return Err(refuse("is not the URL of an HTTP proxy"));
        };
        let uri = found.uri().clone();
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(refuse("is not an HTTP proxy"));
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(refuse("names no host"));
        }
        Ok(Self { uri, authorization: found.basic_auth().cloned() })
    }

    /// Where it is, without user and password.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Host and port.
    pub fn authority(&self) -> &str {
        self.uri.authority().map_or("", http::uri::Authority::as_str)
    }

    /// Whether the way to the proxy itself is TLS.
    pub fn is_tls(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    /// What `Proxy-Authorization` says; never shown.
    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.uri.scheme_str().unwrap_or("http"), self.authority())
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

/// Whether a list as in `NO_PROXY` names the backend: a host with all below it, with or without a
/// dot in front, an address, a network (`10.0.0.0/8`) or `*`; each perhaps with a port.
fn excepted(list: &str, backend: &Endpoint) -> bool {
    let mut names = Vec::new();
    for entry in list.split([',', ' ']).filter(|entry| !entry.is_empty()) {
        let (name, port) = split_port(entry);
        if port.is_some_and(|port| port != backend.port()) {
            continue;
        }
        match name.strip_prefix('*').unwrap_or(name) {
            "" => return true,
            name => names.push(name),
        }
    }
    let any = Matcher::builder().https("http://proxy.invalid").no(names.join(",")).build();
    backend.base().parse().is_ok_and(|backend: Uri| any.intercept(&backend).is_none())
}

/// `a.example:8443`, `[::1]:8443`, `::1`, `10.0.0.0/8`.
fn split_port(entry: &str) -> (&str, Option<u16>) {
    let split = entry.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse().ok()?)));
    let bare = |name: &str| name.starts_with('[') || !name.contains(':');
    let (name, port) = match split {
        Some((name, port)) if bare(name) => (name, Some(port)),
        _ => (entry, None),
    };
    (name.trim_start_matches('[').trim_end_matches(']'), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(url: &str) -> Endpoint {
        Endpoint::parse(url, true).expect(url)
    }

    fn chosen(setting: &str, url: &str, variables: &[(&str, &str)]) -> Option<String> {
        let setting = ProxySetting::parse(setting).expect(setting);
        let variable = |name: &str| {
            let set = variables.iter().find(|(set, _)| *set == name);
            set.map(|(_, value)| (*value).to_owned())
        };
        let proxy = setting.choose_with(&backend(url), variable).expect("usable");
        proxy.map(|proxy| proxy.to_string())
    }

    #[test]
    fn the_configuration_wins_over_the_environment() {
        let check = |setting, url, variables: &[_], expected: Option<&str>| {
            let what = format!("{setting:?} {url} {variables:?}");
            assert_eq!(chosen(setting, url, variables).as_deref(), expected, "{what}");
        };
        let far = "https://backend.example:8080";
        let set = [("HTTPS_PROXY", "http://p:1")];
        check("", far, &[], None);
        check("", far, &set, Some("http://p:1"));
        check("off", far, &set, None);
        check("http://q:2", far, &set, Some("http://q:2"));
        check("https://q:2/", far, &[("NO_PROXY", "*")], Some("https://q:2"));
        check("q:2", far, &[], Some("http://q:2"));
        check("", far, &[("https_proxy", "p:1")], Some("http://p:1"));
        check("", far, &[("HTTPS_PROXY", ""), ("https_proxy", "p:1")], Some("http://p:1"));
        check("", far, &[("HTTP_PROXY", "p:1"), ("http_proxy", "p:1")], None);
        check("", far, &[set[0], ("NO_PROXY", "backend.example")], None);
        check("", far, &[set[0], ("no_proxy", ".example")], None);
        check("", "https://127.0.0.1:1", &set, None);
        check("", "https://localhost:1", &set, None);
        check("http://q:2", "https://127.0.0.1:1", &set, Some("http://q:2"));
        check("http://q:2", "http://127.0.0.1:1", &set, None);
    }

    #[test]
    fn exceptions_are_hosts_suffixes_addresses_and_networks() {
        let check = |list: &str, url: &str, expected: bool| {
            assert_eq!(excepted(list, &backend(url)), expected, "{list:?} {url}");
        };
        let far = "https://a.example.com:8443";
        for list in [
            "*",
            "x, *",
            "a.example.com",
            "A.EXAMPLE.COM",
            "example.com",
            ".example.com",
            "*.example.com",
            "x,example.com",
            "x example.com",
            "a.example.com:8443",
            "*:8443",
        ] {
            check(list, far, true);
        }
        for list in ["", ",", "b.example.com", "ample.com", "a.example.com:443", "10.0.0.0/8"] {
            check(list, far, false);
        }
        check("10.0.0.0/8", "https://10.1.2.3", true);
        check("10.1.2.3", "https://10.1.2.3", true);
        check("10.1.2.3:443", "https://10.1.2.3", true);
        check("10.1.2.3:444", "https://10.1.2.3", false);
        check("*", "https://10.1.2.3", true);
        check("10.1.2.4,192.168.0.0/16", "https://10.1.2.3", false);
        check("2001:db8::1", "https://[2001:db8::1]:8443", true);
        check("[2001:db8::1]:8443", "https://[2001:db8::1]:8443", true);
        check("[2001:db8::1]:443", "https://[2001:db8::1]:8443", false);
        check("2001:db8::/32", "https://[2001:db8::1]", true);
    }

    #[test]
    fn a_password_is_sent_and_never_shown() {
        let url = "http://agent:p%40ss@proxy.example:3128";
        let setting = ProxySetting::parse(url).expect("usable");
        let proxy = setting.choose_with(&backend("https://b.example"), |_| None);
        let proxy = proxy.expect("usable").expect("a proxy");
        // agent:p@ss
        assert_eq!(proxy.authorization().expect("credentials"), "Basic YWdlbnQ6cEBzcw==");
        for shown in [format!("{setting:?} {proxy:?}"), proxy.to_string(), proxy.uri().to_string()]
        {
            assert!(!shown.contains("p%40ss") && !shown.contains("agent"), "{shown}");
        }
        for wrong in [
            "socks5://u:secret@p:1",
            "http://u:secret@",
            "http://u:se cret@p",
            "ftp://p",
            "http://u:a@secret@p:1",
            "u:a@secret@p:1",
            "http://u:1/secret@p:1",
            "http://u?secret@p:1",
            "http://u#secret@p:1",
        ] {
            let error = ProxySetting::parse(wrong).expect_err(wrong).to_string();
            assert!(error.contains("forward.proxy") && !error.contains("secret"), "{error}");
            let variable = |name: &str| (name == "HTTPS_PROXY").then(|| wrong.to_owned());
            let chosen = ProxySetting::Environment
                .choose_with(&backend("https://b.example"), variable)
                .expect_err(wrong)
                .to_string();
            assert!(chosen.contains("HTTPS_PROXY") && !chosen.contains("secret"), "{chosen}");
        }
    }
}
