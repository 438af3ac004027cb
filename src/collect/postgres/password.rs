//! Where a password comes from: the configuration, a file, a file in libpq's form, a program.
//!
//! It is asked for at each connection, so that one that has changed is used at the next. What a
//! program or a file says besides the password is in no message.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::connection::{PgConnection, USUAL_SOCKET_DIRS};
use super::failure::Failure;
use crate::files::{self, Unreadable};
use crate::metric::Status;

/// How long a program may take to say the password.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// The most that it may say. A token of a cloud has some KiB.
const COMMAND_BYTES_MAX: u64 = 64 << 10;

/// Where the password comes from when the configuration does not have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PasswordFrom {
    /// A file with lines `host:port:database:user:password`, as libpq reads it; absent: `.pgpass`
    /// in the home directory, if it is there.
    Passfile(Option<PathBuf>),
    /// A file whose first line it is.
    File(PathBuf),
    /// A program and its arguments. The first line of its output is the password.
    Command(Vec<String>),
}

impl Default for PasswordFrom {
    fn default() -> Self {
        Self::Passfile(None)
    }
}

impl PgConnection {
    /// The password for a login to `database`, if there is one.
    pub(super) async fn password_for(
        &self,
        database: &str,
    ) -> Result<Option<SecretString>, Failure> {
        if let Some(given) = self.password.as_ref().filter(|it| !it.expose_secret().is_empty()) {
            return Ok(Some(given.clone()));
        }
        if let PasswordFrom::Command(command) = &self.password_from {
            return said_by(command, COMMAND_TIMEOUT).await.map(Some);
        }
        let (place, database) = (self.clone(), database.to_owned());
        let read = tokio::task::spawn_blocking(move || match &place.password_from {
            PasswordFrom::File(path) => password_file(path).map(Some),
            PasswordFrom::Passfile(path) => place.in_passfile(path.as_deref(), &database),
            PasswordFrom::Command(_) => Ok(None),
        });
        match tokio::time::timeout(self.connect_timeout, read).await {
            Ok(Ok(password)) => password,
            Ok(Err(error)) => {
                Err(Failure::own(format!("cannot read the password: {error}"), "it is tried again"))
            }
            Err(_) => Err(Failure::own(
                "reading the password's file does not come to an end",
                "does the file system answer on which it is?",
            )),
        }
    }

    fn in_passfile(
        &self,
        named: Option<&Path>,
        database: &str,
    ) -> Result<Option<SecretString>, Failure> {
        let Some(path) = named.map(Path::to_owned).or_else(usual_passfile) else {
            return Ok(None);
        };
        match files::read_private(&path) {
            Ok(text) => {
                let hosts = self.names_in_passfile();
                let port = self.port.to_string();
                let wanted = |host| [host, port.as_str(), database, self.user.as_str()];
                let text = String::from_utf8_lossy(&text);
                Ok(hosts.iter().find_map(|host| find(&text, wanted(host))).map(SecretString::from))
            }
            // libpq passes over one that it may not trust, and so must a login that needs none.
            Err(_) if named.is_none() => Ok(None),
            Err(unreadable) => Err(not_read("postgres.passfile", &path, &unreadable)),
        }
    }

    /// What a line may call the host: a usual socket directory is `localhost`.
    fn names_in_passfile(&self) -> Vec<&str> {
        let mut names = vec![self.host.as_str()];
        if USUAL_SOCKET_DIRS.contains(&self.host.trim_end_matches('/')) {
            names.push("localhost");
        }
        names
    }
}

fn usual_passfile() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
    Some(Path::new(&home).join(".pgpass"))
}

fn not_read(key: &str, path: &Path, unreadable: &Unreadable) -> Failure {
    match unreadable {
        Unreadable::Failed(error) => {
            Failure::own(format!("{key}: {error}"), "let the agent's user own and read it")
        }
        Unreadable::Open(mode) => Failure::own(
            format!("{key} {} can be read by others (mode {mode:04o})", path.display()),
            format!("chmod 600 {}", path.display()),
        ),
    }
}

fn password_file(path: &Path) -> Result<SecretString, Failure> {
    let key = "postgres.password_file";
    let text = files::read_private(path).map_err(|it| not_read(key, path, &it))?;
    first_line(&text).ok_or_else(|| {
        let message = format!("{key} {}: its first line is not a password", path.display());
        Failure::own(message, "the first line is the password, in UTF-8, and nothing else")
    })
}

/// The text before the first end of a line, unless it is empty.
fn first_line(text: &[u8]) -> Option<SecretString> {
    let line = text.split(|byte| *byte == b'\n').next()?;
    let line = str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)).ok()?;
    (!line.is_empty()).then(|| SecretString::from(line))
}

/// Runs a program, without a shell, and takes the first line of its output. It is ended when it
/// takes too long, and when nobody waits for it any more.
async fn said_by(command: &[String], limit: Duration) -> Result<SecretString, Failure> {
    let key = "postgres.password_command";
    let Some((program, arguments)) = command.split_first() else {
        return Err(Failure::own(format!("{key} is empty"), "name a program"));
    };
    let failed = |what: &str| {
        let hint = "run it by hand as the agent's user; its first line must be the password";
        Failure::own(format!("{key} {program}: {what}"), hint)
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(&format!("cannot be run: {error}")))?;
    let output = child.stdout.take();
    let running = async {
        let mut said = Vec::new();
        if let Some(output) = output {
            output.take(COMMAND_BYTES_MAX + 1).read_to_end(&mut said).await?;
        }
        if said.len() as u64 > COMMAND_BYTES_MAX {
            return Ok((said, None));
        }
        Ok::<_, std::io::Error>((said, Some(child.wait().await?)))
    };
    let Ok(ended) = tokio::time::timeout(limit, running).await else {
        let message = format!("{key} {program}: no answer within {} s", limit.as_secs_f32());
        let failure = failed("").with_message(Status::Timeout, message);
        return Err(failure);
    };
    let (said, status) = ended.map_err(|error| failed(&format!("cannot be read: {error}")))?;
    let said = SecretBytes(said);
    match status {
        None => Err(failed(&format!("says more than {COMMAND_BYTES_MAX} bytes"))),
        Some(status) if !status.success() => Err(failed(&format!("ended with {status}"))),
        Some(_) => first_line(&said.0).ok_or_else(|| failed("its first line is not a password")),
    }
}

/// Bytes that are wiped when they are done with.
struct SecretBytes(Vec<u8>);

impl Drop for SecretBytes {
    fn drop(&mut self) {
        self.0.fill(0);
    }
}

/// The password of the first line of a passfile that is for these: host, port, database, user.
fn find(text: &str, wanted: [&str; 4]) -> Option<String> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line;
        for wanted in wanted {
            let (field, after) = field(rest);
            if field != "*" && unescaped(field) != wanted {
                return None;
            }
            rest = after?;
        }
        let password = unescaped(field(rest).0);
        (!password.is_empty()).then_some(password)
    })
}

/// What stands before the next `:` that has no backslash before it, and what follows.
fn field(text: &str) -> (&str, Option<&str>) {
    let mut is_escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b':' if !is_escaped => return (&text[..at], text.get(at + 1..)),
            b'\\' => is_escaped = !is_escaped,
            _ => is_escaped = false,
        }
    }
    (text, None)
}

fn unescaped(field: &str) -> String {
    let mut plain = String::with_capacity(field.len());
    let mut characters = field.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => plain.extend(characters.next()),
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(folder: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = folder.join(name);
        fs_err::write(&path, text).unwrap();
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    async fn found(place: &PgConnection) -> Result<Option<String>, String> {
        let password = place.password_for("app").await;
        password
            .map(|password| password.map(|it| it.expose_secret().to_owned()))
            .map_err(|failure| failure.to_connect(place))
    }

    /// The fields, the stars and the escapes of libpq's manual; the first line that fits counts.
    #[test]
    fn a_passfile_is_read_as_libpq_reads_it() {
        let check = |text: &str, expected: Option<&str>| {
            let wanted = ["db.example.com", "5432", "app", "o:b\\c"];
            assert_eq!(find(text, wanted).as_deref(), expected, "{text}");
        };
        check("db.example.com:5432:app:o\\:b\\\\c:hush", Some("hush"));
        check("*:*:*:*:hush", Some("hush"));
        check("*:*:*:*:a\\:b\\\\c\\d", Some("a:b\\cd"));
        check("*:*:*:*:a:b", Some("a"));
        check("#*:*:*:*:no\n\n*:*:*:x:no\n*:5433:*:*:no\n*:*:*:*:yes\n*:*:*:*:late", Some("yes"));
        check("db:5432:app:o\\:b\\\\c:no", None);
        check("*:*:*:o:b\\c:no", None);
        check("*:*:*:*", None);
        check("*:*:*:*:", None);
        check("*:*:\\*:*:no", None);
        check("*:*:*:*:hush\r\n", Some("hush"));
        check("", None);
    }

    #[tokio::test]
    async fn a_passfile_gives_a_password_to_whom_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let text = "localhost:5432:*:mon:socket\ndb:5432:app:mon:tcp\n";
        let path = file(folder.path(), "passfile", text, 0o600);
        let place = |host: &str, path: &Path| PgConnection {
            host: host.to_owned(),
            user: "mon".to_owned(),
            password_from: PasswordFrom::Passfile(Some(path.to_owned())),
            ..PgConnection::default()
        };
        let given = |password: &str| Ok(Some(password.to_owned()));
        assert_eq!(found(&place("/var/run/postgresql", &path)).await, given("socket"));
        assert_eq!(found(&place("db", &path)).await, given("tcp"));
        assert_eq!(found(&place("/elsewhere", &path)).await, Ok(None));
        let open = file(folder.path(), "open", text, 0o640);
        let error = found(&place("db", &open)).await.unwrap_err();
        assert!(error.contains("(mode 0640); hint: chmod 600"), "{error}");
        let error = found(&place("db", &folder.path().join("none"))).await.unwrap_err();
        assert!(error.contains("postgres.passfile: ") && error.contains("none"), "{error}");
    }

    #[tokio::test]
    async fn a_password_file_is_one_line_and_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let of = async |text: &str, mode: u32| {
            let path = file(folder.path(), "password", text, mode);
            let password_from = PasswordFrom::File(path);
            found(&PgConnection { password_from, ..PgConnection::default() }).await
        };
        assert_eq!(of("hush\n", 0o600).await, Ok(Some("hush".to_owned())));
        assert_eq!(of(" hu sh \r\nmore\n", 0o400).await, Ok(Some(" hu sh ".to_owned())));
        for (text, mode, what) in [
            ("hush", 0o644, "can be read by others (mode 0644); hint: chmod 600"),
            ("hush", 0o620, "(mode 0620)"),
            ("", 0o600, "its first line is not a password"),
            ("\nhush", 0o600, "its first line is not a password"),
        ] {
            let error = of(text, mode).await.unwrap_err();
            assert!(error.contains(what) && !error.contains("hush"), "{error}");
        }
    }

    fn script(folder: &Path, text: &str) -> Vec<String> {
        let path = file(folder, "ask", &format!("#!/bin/sh\n{text}\n"), 0o700);
        vec![path.display().to_string(), "$HOME; echo x".to_owned()]
    }

    async fn asked(command: &[String], limit: Duration) -> Result<String, Failure> {
        said_by(command, limit).await.map(|password| password.expose_secret().to_owned())
    }

    /// The arguments are what they are, the first line counts, and of what else is said nothing is
    /// in a message.
    #[tokio::test]
    async fn a_command_says_the_password() {
        let folder = tempfile::tempdir().unwrap();
        let long = Duration::from_secs(60);
        let of = async |text: &str| {
            asked(&script(folder.path(), text), long)
                .await
                .map_err(|failure| failure.to_connect(&PgConnection::default()))
        };
        assert_eq!(of("echo hush; echo more; echo noise >&2").await.as_deref(), Ok("hush"));
        assert_eq!(of("printf %s \"$1\"").await.as_deref(), Ok("$HOME; echo x"));
        for (text, what) in [
            ("echo hush; echo hush >&2; exit 3", "ended with exit status: 3"),
            ("echo; echo hush", "its first line is not a password"),
            ("head -c 70000 /dev/zero", "says more than 65536 bytes"),
        ] {
            let error = of(text).await.unwrap_err();
            assert!(error.contains(what) && !error.contains("hush"), "{error}");
            assert!(error.contains("hint: run it by hand as the agent's user"), "{error}");
        }
        let none = folder.path().join("none").display().to_string();
        let error = asked(&[none], long).await.unwrap_err().message;
        assert!(error.contains("cannot be run"), "{error}");
    }

    /// One that does not end is ended.
    #[tokio::test]
    async fn a_command_that_hangs_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let pid_file = folder.path().join("pid");
        let text = format!("echo $$ > {}\nexec sleep 1000", pid_file.display());
        let command = script(folder.path(), &text);
        // Long enough for the program to begin is decided by what it writes, not by a clock.
        let begun = async {
            while !fs_err::read_to_string(&pid_file).is_ok_and(|text| text.ends_with('\n')) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            ended = asked(&command, Duration::from_secs(600)) => panic!("{ended:?}"),
            () = begun => {}
        }
        let pid = fs_err::read_to_string(&pid_file).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        let is_gone = || {
            let stat = fs_err::read_to_string(&stat).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        while !is_gone() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let failure = asked(&command, Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(failure.status, Status::Timeout);
        assert!(failure.message.contains("no answer within 0.05 s"), "{}", failure.message);
    }
}
