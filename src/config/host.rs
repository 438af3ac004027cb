//! What this host calls itself.

/// Where names of this host may stand with their domain.
const HOSTS_FILE: &str = "/etc/hosts";

/// The configured name of the host, or else its own: two hosts with one name would be one
/// collector.
pub(super) fn named(configured: &str) -> String {
    let configured = configured.trim();
    if !configured.is_empty() {
        return configured.to_owned();
    }
    let short = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let hosts = fs_err::read_to_string(HOSTS_FILE).unwrap_or_default();
    full_name(&short, &hosts).unwrap_or(short)
}

/// The name with its domain, as the table of hosts has it: the first of the line that has `short`.
fn full_name(short: &str, hosts: &str) -> Option<String> {
    if short.contains('.') {
        return None;
    }
    let names = |line: &'_ str| -> Vec<String> {
        let text = line.split('#').next().unwrap_or_default();
        text.split_whitespace().skip(1).map(str::to_owned).collect()
    };
    let of_this_host = hosts.lines().map(names).find(|names| names.iter().any(|n| n == short))?;
    let begins = |name: &String| name.strip_prefix(short).is_some_and(|rest| rest.starts_with('.'));
    of_this_host.into_iter().find(begins)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_full_name_is_found() {
        let hosts =
            "127.0.0.1 localhost\n# 10.0.0.1 db1.old db1\n127.0.1.1\tdb1.example.com db1 # x\n";
        assert_eq!(full_name("db1", hosts).as_deref(), Some("db1.example.com"));
        assert_eq!(full_name("db1.example.com", hosts), None);
        assert_eq!(full_name("db", hosts), None);
        assert_eq!(full_name("localhost", hosts), None);
        assert_eq!(named(" given "), "given");
        assert!(!named("").is_empty());
    }
}
