//! `[postgres]`, or `[[postgres]]` for each of several: where the server is, how it is reached, and
//! who the agent is there.

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};

use super::{
    Bounds,
    reader::{Document, Section},
    secrets,
};
use crate::collect::postgres::{ChannelBinding, PasswordFrom, PgConnection, PgTls, Roots, SslMode};
use crate::metric::pg_stats::MAIN_INSTANCE;

/// Why the backend may set a key.
const WHAT: &str = "says which databases of the server are measured, within `remote.databases_max`";

/// `sslrootcert` in the place of a file: the CAs that the operating system trusts.
const SYSTEM: &str = "system";

/// One server.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) instance: String,
    pub(super) connection: PgConnection,
    /// The databases to visit.
    pub(super) databases: Vec<String>,
    /// Whether its log is read.
    pub(super) reads_log: bool,
}

/// `log`.
#[derive(Debug, Clone, Copy)]
enum ReadsLog {
    /// Where it is likely to be on this host.
    Auto,
    Always,
    Never,
}

const READS_LOG: [(&str, ReadsLog); 3] =
    [("auto", ReadsLog::Auto), ("on", ReadsLog::Always), ("off", ReadsLog::Never)];

/// The servers that the host's own file names; at least one.
pub(super) fn read(document: &mut Document<'_>, bounds: &Bounds) -> Vec<Server> {
    let entries = document.entries("postgres", MAIN_INSTANCE);
    let mut servers = Vec::with_capacity(entries.len());
    for entry in entries {
        document.with_variables(&entry.section, |name| std::env::var(name).ok());
        let mut section = document.section(&entry.section);
        // It was read when the entries were told apart.
        section.text("name", MAIN_INSTANCE);
        let connection = connection(&mut section);
        let log = READS_LOG[section.choice("log", &READS_LOG.map(|log| log.0))].1;
        servers.push(Server {
            instance: entry.name,
            reads_log: match log {
                // The first one is read as ever.
                ReadsLog::Auto => servers.is_empty() || connection.is_on_this_host(),
                ReadsLog::Always => true,
                ReadsLog::Never => false,
            },
            connection,
            databases: section.remote(WHAT).within(bounds.databases).list("databases", ""),
        });
    }
    servers
}

fn connection(section: &mut Section<'_, '_>) -> PgConnection {
    let password: SecretString = section.secret("password");
    let password = Some(password).filter(|password| !password.expose_secret().is_empty());
    let password_from = password_from(section, password.is_some());
    let port = section.integer("port", 5432, 1..=u64::from(u16::MAX));
    PgConnection {
        host: section.text("host", "localhost"),
        port: u16::try_from(port).unwrap_or(5432),
        user: section.text("user", "postgres"),
        password,
        password_from,
        tls: tls(section),
        database: section.text("database", "postgres"),
        connect_timeout: section.duration("connect_timeout", "3s", ["100ms", "1min"]),
    }
}

/// Where a password comes from that is not in the file; one place at most.
fn password_from(section: &mut Section<'_, '_>, is_given: bool) -> PasswordFrom {
    let file = section.optional_path("password_file");
    let command = section.command("password_command");
    let passfile = section.optional_path("passfile");
    let places = [is_given, file.is_some(), !command.is_empty(), passfile.is_some()];
    if places.into_iter().filter(|is_set| *is_set).count() > 1 {
        let key = match (&file, passfile.is_some()) {
            (_, true) => "passfile",
            (Some(_), _) => "password_file",
            _ => "password_command",
        };
        section.reject_secret(
            key,
            "the password comes from more than one place",
            "set one of password, password_file, password_command and passfile",
        );
    }
    match (file, command.first()) {
        (Some(file), _) => PasswordFrom::File(file),
        (None, Some(program)) => {
            if !program.starts_with('/') {
                let hint = "write the program's whole path; there is no shell that would find it";
                section.reject_secret("password_command", "the program has no path", hint);
            }
            if let Some(why) = secrets::written_by_others(&section.own_file()) {
                let hint = "whoever writes this file would have the agent run what they like: \
                            let it, and its directory, be root's or the agent's, and mode 0640";
                section.reject_secret("password_command", &why, hint);
            }
            PasswordFrom::Command(command)
        }
        (None, None) => PasswordFrom::Passfile(passfile),
    }
}

fn tls(section: &mut Section<'_, '_>) -> PgTls {
    let mode = SslMode::ALL[section.choice("sslmode", &SslMode::ALL.map(|mode| mode.0))].1;
    let roots = match section.optional_path("sslrootcert") {
        None => Roots::Unnamed,
        Some(path) if path.as_os_str() == SYSTEM => Roots::System,
        Some(path) => Roots::File(path),
    };
    let certificate = section.optional_path("sslcert");
    let key = section.optional_path("sslkey");
    let bindings = ChannelBinding::ALL;
    let channel_binding =
        bindings[section.choice("channel_binding", &bindings.map(|binding| binding.0))].1;
    let verifies = matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull);
    match (&roots, mode) {
        (Roots::Unnamed, _) if verifies => section.reject(
            "sslmode",
            "there is no CA to verify with",
            "set sslrootcert to the file of the CA, or, with verify-full, to \"system\"",
        ),
        (Roots::System, mode) if mode != SslMode::VerifyFull => section.reject(
            "sslrootcert",
            "takes sslmode = \"verify-full\"",
            "a public CA certifies for anybody, so the name must be checked, too",
        ),
        (Roots::File(_), SslMode::Disable | SslMode::Allow | SslMode::Prefer) => section.reject(
            "sslrootcert",
            "nothing is verified with this sslmode",
            "set sslmode to \"verify-full\" or \"verify-ca\"",
        ),
        _ => {}
    }
    if channel_binding == ChannelBinding::Require && mode == SslMode::Disable {
        let hint = "set sslmode to \"require\" or more";
        section.reject("channel_binding", "there is nothing to bind to without TLS", hint);
    }
    PgTls { mode, roots, own: own_certificate(section, certificate, key), channel_binding }
}

fn own_certificate(
    section: &mut Section<'_, '_>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Option<(PathBuf, PathBuf)> {
    match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (certificate, _) => {
            let given = if certificate.is_some() { "sslcert" } else { "sslkey" };
            section.reject(given, "has no other half", "set sslcert and sslkey, or neither");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn read_at(path: &Path, text: &str) -> Result<PgConnection, String> {
        let config = Config::read(path, &format!("[postgres]\n{text}"));
        let config = config.map_err(|error| error.to_string())?;
        Ok(config.collectors.pg_stats.expect("it is on").1.remove(0).connection)
    }

    fn read(text: &str) -> Result<PgConnection, String> {
        read_at(Path::new("agent.toml"), text)
    }

    #[test]
    fn tls_is_what_libpq_means_by_it() {
        let tls = read("").unwrap().tls;
        assert_eq!(tls, PgTls::default());
        assert_eq!((tls.mode, tls.channel_binding), (SslMode::Prefer, ChannelBinding::Prefer));
        let all = "sslmode = \"verify-full\"\nsslrootcert = \"/ca\"\nsslcert = \"/c\"\n\
                   sslkey = \"/k\"\nchannel_binding = \"require\"";
        let tls = read(all).unwrap().tls;
        assert_eq!((tls.mode, tls.roots), (SslMode::VerifyFull, Roots::File("/ca".into())));
        assert_eq!(tls.own, Some(("/c".into(), "/k".into())));
        assert_eq!(tls.channel_binding, ChannelBinding::Require);
        let system = read("sslmode = \"verify-full\"\nsslrootcert = \"system\"").unwrap().tls;
        assert_eq!(system.roots, Roots::System);
        let refused = |text: &str, expected: &str| {
            let error = read(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        };
        refused("sslmode = \"verify_full\"", "one of prefer, disable, allow, require, verify-ca");
        refused("sslmode = \"verify-full\"", "agent.toml:2: postgres.sslmode");
        refused("sslmode = \"verify-ca\"", "there is no CA to verify with");
        refused("sslmode = \"verify-ca\"\nsslrootcert = \"system\"", "takes sslmode");
        refused("sslrootcert = \"/ca\"", "nothing is verified with this sslmode");
        refused("sslcert = \"/c\"", "postgres.sslcert = \"/c\": has no other half");
        refused("sslkey = \"/k\"", "postgres.sslkey = \"/k\": has no other half");
        refused("channel_binding = \"require\"\nsslmode = \"disable\"", "nothing to bind to");
    }

    #[test]
    fn a_password_comes_from_one_place() {
        let from = |text: &str| read(text).unwrap().password_from;
        assert_eq!(from(""), PasswordFrom::Passfile(None));
        assert_eq!(from("passfile = \"/p\""), PasswordFrom::Passfile(Some("/p".into())));
        assert_eq!(from("password_file = \"/p\""), PasswordFrom::File("/p".into()));
        for two in [
            "password_file = \"/p\"\npassfile = \"/q\"",
            "password = \"hush\"\npassfile = \
                     \"/q\"",
            "password = \"hush\"\npassword_file = \"/q\"",
        ] {
            let error = read(two).unwrap_err();
            assert!(error.contains("more than one place") && !error.contains("hush"), "{error}");
        }
    }

    /// A program is run only where nobody else can say which.
    #[test]
    fn a_command_takes_a_file_that_nobody_else_writes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        let at = |mode: u32, text: &str| {
            fs_err::write(&path, text).unwrap();
            fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            read_at(&path, text)
        };
        let text = "password_command = [\"/bin/ask\", \"a, b\"]";
        let command = PasswordFrom::Command(vec!["/bin/ask".to_owned(), "a, b".to_owned()]);
        assert_eq!(at(0o640, text).unwrap().password_from, command);
        for (mode, text, expected) in [
            (0o660, text, "agent.toml can be written by others (mode 0660)"),
            (0o602, text, "can be written by others (mode 0602)"),
            (0o600, "password_command = [\"ask\"]", "the program has no path"),
            (0o600, "password_command = \"/bin/ask hush\"", "is not a command"),
            (0o600, "password_command = [\"/bin/ask\", 1]", "is not a command"),
        ] {
            let error = at(mode, text).unwrap_err();
            assert!(error.contains(expected) && !error.contains("hush"), "{error}");
        }
        let open = std::fs::Permissions::from_mode(0o770);
        fs_err::set_permissions(folder.path(), open).unwrap();
        let error = at(0o600, text).unwrap_err();
        assert!(error.contains("can be written by others (mode 0770)"), "{error}");
        let elsewhere = read(text).unwrap_err();
        assert!(elsewhere.contains("who can write agent.toml is not known"), "{elsewhere}");
    }

    /// The values come from the environment, and neither of them is shown.
    #[test]
    fn variables_of_the_environment_are_values() {
        let home = std::env::var("HOME").unwrap();
        let read_home = read("user = \"${HOME}\"\npassword = \"x${HOME}\"").unwrap();
        assert_eq!(read_home.user, home);
        assert_eq!(read_home.password.unwrap().expose_secret(), &format!("x{home}"));
        let error = read("\nuser = \"${NO_SUCH_VARIABLE_HERE}\"").unwrap_err();
        assert!(error.starts_with("agent.toml:3: [postgres]: ${NO_SUCH_VARIABLE_HERE}"), "{error}");
        assert!(error.contains("hint: set NO_SUCH_VARIABLE_HERE for the agent"), "{error}");
    }
}
