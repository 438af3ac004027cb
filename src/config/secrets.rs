//! What others on the host can read: passwords in a configuration, a token, the state directory.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Keys whose values are, or may hold, passwords.
const KEYS: [(&str, &str); 3] =
    [("postgres", "password"), ("forward", "proxy"), ("backend", "store")];

/// What to say of the file at `path` when every user of the host can read a password in it.
pub fn exposed(path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.mode();
    if mode & 0o004 == 0 {
        return None;
    }
    let key = password_in(&std::fs::read_to_string(path).ok()?)?;
    let path = path.display();
    Some(format!(
        "every user of this host can read {key} in {path} (mode {:04o}); hint: chmod o-r {path}",
        mode & 0o7777
    ))
}

/// What to say of the file at `path`, a secret that `key` names, when every user of the host can
/// read it.
pub fn exposed_file(key: &str, path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.mode();
    let path = path.display();
    (mode & 0o004 != 0).then(|| {
        let mode = mode & 0o7777;
        format!("every user of this host can read {key} {path} (mode {mode:04o}); hint: chmod o-r")
    })
}

/// What to say of the directory at `path`, which `key` names, when others than its owner get in.
/// Its files are their owner's alone all the same; but who may write in it can put others in their
/// place. It may have been made for more than the agent, so nothing is changed.
pub fn open_folder(key: &str, path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.mode();
    let path = path.display();
    (mode & 0o077 != 0).then(|| {
        let what = if mode & 0o022 == 0 { "list" } else { "replace what is in" };
        let mode = mode & 0o7777;
        format!("others can {what} {key} {path} (mode {mode:04o}); hint: chmod 700 {path}")
    })
}

/// Who else than root and the user of this process can say what is in the file at `path`, if
/// anybody can: its owner, its group or others, or whoever may put another file in its place.
pub fn written_by_others(path: &Path) -> Option<String> {
    const STICKY: u32 = 0o1000;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    for path in [Some(path), folder].into_iter().flatten() {
        let shown = path.display();
        let Ok(facts) = std::fs::metadata(path) else {
            return Some(format!("who can write {shown} is not known"));
        };
        let (mode, owner) = (facts.mode() & 0o7777, facts.uid());
        if owner != 0 && owner != rustix::process::geteuid().as_raw() {
            return Some(format!("{shown} belongs to another user (id {owner})"));
        }
        if mode & 0o022 != 0 && !(facts.is_dir() && mode & STICKY != 0) {
            return Some(format!("{shown} can be written by others (mode {mode:04o})"));
        }
    }
    None
}

/// The first key with a password in it. One that the environment has is not in the file.
fn password_in(text: &str) -> Option<String> {
    let document: toml::Table = text.parse().ok()?;
    let is_password = |(section, key): &(&str, &str)| {
        let found = document.get(*section)?;
        let several = found.as_array().map_or(std::slice::from_ref(found), Vec::as_slice);
        let is_secret = |value: &str| *key == "password" || has_password(value);
        let holds = |value: &str| !value.is_empty() && !value.contains("${") && is_secret(value);
        let mut values = several.iter().filter_map(|one| one.get(*key)?.as_str());
        values.any(holds).then(|| format!("{section}.{key}"))
    };
    KEYS.iter().find_map(is_password)
}

/// Whether a URL has a password, before its host or among its parameters.
fn has_password(url: &str) -> bool {
    let user = url.split_once("://").and_then(|(_, rest)| rest.split_once('@'));
    user.is_some_and(|(user, _)| user.contains(':')) || url.contains("password=")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_passwords_that_everyone_can_read_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        let said = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            exposed(&path)
        };
        let text = "[postgres]\npassword = \"hush\"\n";
        let warning = said(text, 0o644).unwrap();
        assert!(warning.contains("postgres.password") && !warning.contains("hush"), "{warning}");
        assert_eq!(said(text, 0o640), None);
        assert_eq!(said("[postgres]\npassword = \"${PGPASSWORD}\"\n", 0o644), None);
        assert_eq!(said("[postgres]\npassword = \"\"\n", 0o644), None);
        let several = "[[postgres]]\n[[postgres]]\nname = \"b\"\npassword = \"hush\"\n";
        assert!(said(several, 0o644).is_some());
        assert_eq!(said("[forward]\nproxy = \"http://proxy:3128\"\n", 0o644), None);
        let store = |url: &str| said(&format!("[backend]\nstore = \"{url}\"\n"), 0o644);
        assert_eq!(store("sqlite:/var/lib/backend/store.db"), None);
        assert_eq!(store("postgres://u@db/metrics"), None);
        assert!(store("postgres://u:hush@db/metrics").is_some());
        assert!(store("postgres://db/metrics?user=u&password=hush").is_some());
        assert!(said("[forward]\nproxy = \"http://u:p@proxy:3128\"\n", 0o604).is_some());
        let token = exposed_file("backend.token_file", &path).unwrap();
        assert!(token.contains("backend.token_file") && token.contains("0604"), "{token}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(exposed_file("backend.token_file", &path), None);
    }

    #[test]
    fn a_folder_that_others_get_into_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let said = |mode: u32| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(folder.path(), mode).unwrap();
            open_folder("collector.state_dir", folder.path())
        };
        assert_eq!(said(0o700), None);
        let listed = said(0o755).unwrap();
        assert!(listed.contains("list collector.state_dir") && listed.contains("0755"), "{listed}");
        assert!(said(0o710).unwrap().contains("list"));
        assert!(said(0o770).unwrap().contains("replace what is in"));
        assert!(said(0o1777).unwrap().contains("replace what is in"));
        assert_eq!(open_folder("collector.state_dir", &folder.path().join("absent")), None);
    }
}
